"""``hwbench report``: one self-contained page from one or more runs."""

from __future__ import annotations

from pathlib import Path

import typer

from hwbench import files
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
    from hwbench.report.html import render
    from hwbench.store import read_run

    paths = _shared.run_files(runs)
    files.refuse_inputs([out], paths)
    page = render([read_run(path) for path in paths], samples=samples or [])
    files.write_text(out, page, "the report ")
    _shared.say(f"The report is in {out}.")
