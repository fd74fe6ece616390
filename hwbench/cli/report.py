"""``hwbench report``: one self-contained page from one or more runs."""

from __future__ import annotations

from pathlib import Path

import typer

from hwbench.cli import _shared


def report(
    runs: list[Path] = typer.Argument(..., help="Run files, or folders of them."),
    out: Path = typer.Option(Path("report.html"), "--out", "-o", help="The page to write."),
    samples: list[str] | None = typer.Option(
        None, "--samples", help="Cases, or parts of their names, to show every sample of."
    ),
    unfinished: bool = typer.Option(
        False,
        "--unfinished",
        help="A run that was cut off: the page says how far it got, always.",
    ),
) -> None:
    """Write one HTML page that opens from disk, with no network: answers, charts and every row."""
    del unfinished
    from hwbench.errors import RunFileError
    from hwbench.report.html import render
    from hwbench.store import read_run

    read = [read_run(path) for path in _shared.run_files(runs)]
    page = render(read, samples=samples or [])
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise RunFileError(f"Cannot write the report {out}: {error.strerror}.") from error
    _shared.say(f"The report is in {out}.")
