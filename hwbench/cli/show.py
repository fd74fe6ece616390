"""``hwbench show``: the table and the answer of a stored run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hwbench.cli import _options, _shared
from hwbench.errors import UnknownNameError

if TYPE_CHECKING:
    from hwbench.store import Run

_ORDERS = ("time", "suite")
_WIDE = 400  # columns, which no table fills


def show(
    run: Path = typer.Argument(..., help="A run file, or a folder whose newest run is shown."),
    wide: bool = typer.Option(False, "--wide", help="Every column, however narrow the terminal."),
    sort: str = typer.Option("time", "--sort", help="time: the fastest first. suite: as asked."),
    as_json: _options.RowsAsJson = False,
) -> None:
    """Print the table of a stored run, and what to use by the error that you accept.

    hwbench show runs        hwbench show runs/20260102-030405-linear-cpu-1dba.jsonl --wide
    """
    from hwbench.store import read_run

    if sort not in _ORDERS:
        raise UnknownNameError("order", sort, _ORDERS)
    path = _shared.run_files([run])[-1]
    print_run(path, read_run(path), as_json=as_json, width=_WIDE if wide else 0, sort=sort)


def print_run(path: Path, run: Run, *, as_json: bool, width: int = 0, sort: str = "time") -> None:
    """Print a run as a table of at least so many columns with its answer, or its rows as JSON."""
    from hwbench.report.text import rows_json, table

    if as_json:
        _shared.say_json(rows_json(run))
        return
    console = _shared.console()
    console.width = max(console.width, width)
    for part in table(run, console.width, sort):
        console.print(part)
    _shared.say()
    _shared.say(f"The run is in {path}. Its page: hwbench report {shlex.quote(str(path))}")
