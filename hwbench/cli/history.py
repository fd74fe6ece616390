"""``hwbench history``: every case over many runs, and the first run at which one changed."""

from __future__ import annotations

from pathlib import Path

import typer

from hwbench import files
from hwbench.cli import _options, _shared
from hwbench.cli.check import fraction


def history(
    folder: Path = typer.Argument(..., help="A folder of run files."),
    metric: str = typer.Option(
        "auto",
        "--metric",
        help="auto, time, relative, memory, score or a quantity; auto prefers relative.",
    ),
    threshold: str = typer.Option(
        "3%", "--threshold", help="The smallest change that counts, such as 3%."
    ),
    suite: str | None = typer.Option(None, "--suite", "-s", help="Only runs of this suite."),
    case: str | None = typer.Option(
        None, "--case", help="Only cases whose id has this part, or matches this glob."
    ),
    out: Path | None = typer.Option(
        None, "--out", "-o", help="Write a page with a line for every case here."
    ),
    as_json: _options.PrintJson = False,
) -> None:
    """Show what changed and since when: the first run, its commit, and what else differed in it.

    Runs are grouped by suite and machine. A change is reported once it has lasted for three runs;
    hwbench check judges the last night alone. This verb never fails CI: its exit code is 0.
    """
    from hwbench.report import history as pages
    from hwbench.studies import history as study

    share = fraction("--threshold", threshold)
    files.refuse_inputs([out], [folder])
    aside = _shared.is_stream(out)
    histories = study.history(folder, metric=metric, threshold=share, suite=suite, cases=case)
    if out is not None:
        files.write_text(out, pages.render(histories.histories, histories.notes))
    if as_json:
        _shared.say_json(pages.plain(histories.histories, histories.notes))
        return
    for each in histories.histories:
        for line in pages.lines(each):
            _shared.say(line, error=aside)
        _shared.say(error=aside)
    for note in histories.notes:
        _shared.say(note, error=aside)
    if out is not None:
        _shared.say(f"The page is in {out}.", error=aside)
