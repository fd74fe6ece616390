"""``hwbench report``: one self-contained page from one or more runs."""

from __future__ import annotations

import contextlib
import gc
import webbrowser
from collections.abc import Iterator
from pathlib import Path

import typer

from hwbench import files
from hwbench.cli import _shared
from hwbench.errors import UsageError


def report(
    runs: list[Path] = typer.Argument(..., help="Run files, or folders of them."),
    out: Path | None = typer.Option(
        None, "--out", "-o", help="The file to write; without it, report.html, and Markdown here."
    ),
    format_: str | None = typer.Option(
        None, "--format", help="html, or md: the answer and the rankings for a pull request."
    ),
    open_: bool = typer.Option(False, "--open", help="Open the page in your browser."),
    samples: list[str] | None = typer.Option(
        None, "--samples", help="Cases, or parts of their names, to show every sample of."
    ),
    unfinished: bool = typer.Option(
        False,
        "--unfinished",
        help="A run that was cut off: the page says how far it got, always.",
    ),
) -> None:
    """Write one HTML page that opens from disk, with no network: answers, charts and every row.

    A name that ends in .md, or --format md, asks for the answer as Markdown.
    """
    del unfinished
    from hwbench.report import html, issue
    from hwbench.store import read_run

    markdown = _is_markdown(format_, out)
    if samples and markdown:
        raise UsageError("--samples is for the HTML page; Markdown shows no samples.")
    if open_ and markdown:
        raise UsageError("--open is for the HTML page; Markdown is text.")
    paths = _shared.run_files(runs)
    if out is None and not markdown:
        out = Path("report.html")
    files.refuse_inputs([out], paths)
    if out is not None:
        files.check_replaceable(out, "the report ")
    with _uncollected():
        read = [read_run(path) for path in paths]
        page = issue.render(read) if markdown else html.render(read, samples=samples or [])
    if out is None:
        for line in page.splitlines():
            _shared.say(line)
        return
    aside = _shared.is_stream(out)
    files.write_text(out, page, "the report ")
    _shared.say(f"The report is in {out}.", error=aside)
    if open_ and not webbrowser.open(out.resolve().as_uri()):
        _shared.say("No browser could be started; open that file yourself.", error=True)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without the collector of cycles: rows stay to the end, and it would walk them all again."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _is_markdown(format_: str | None, out: Path | None) -> bool:
    """Whether to write Markdown: by --format, else by the ending of the file."""
    if format_ is None:
        return out is not None and out.suffix.lower() in (".md", ".markdown")
    if format_ not in ("html", "md"):
        raise UsageError(f"--format is html or md, not {format_!r}.")
    return format_ == "md"
