"""``hwbench share``: a cleaned run file to give to others, and the words to go with it."""

from __future__ import annotations

from pathlib import Path

import typer

from hwbench.cli import _shared

_NEXT = """\
The cleaned run is in {target}. To give it to hwbench, add it to reports/ in a
folder named after the day and the machine, with this table in the pull request,
and run make docs: docs/machines.html then compares your machine with the others."""


def share(
    run: Path = typer.Argument(..., help="A run file, or a folder whose newest run is taken."),
    out: Path | None = typer.Option(
        None, "--out", "-o", help="The file to write.  \\[default: RUN.shared.jsonl beside it]"
    ),
) -> None:
    """Write a copy of a run without host names, paths and serials, and the text to give with it.

    What was measured stays as it is. Look at the file before you give it away: it names the
    processor or GPU, versions and settings, and the formats and shapes that you asked for.
    """
    from hwbench.studies import share as study

    path = _shared.run_files([run])[-1]
    target = out or path.with_suffix(".shared.jsonl")
    aside = _shared.is_stream(target)
    shared = study.share(path, target)
    for line in (*study.words(shared).splitlines(), "", *_NEXT.format(target=target).splitlines()):
        _shared.say(line, error=aside)
