"""``hwbench doctor``: whether this machine can be trusted now, on one page."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from hwbench.cli import _shared

if TYPE_CHECKING:
    from hwbench.studies.doctor import Check

_STYLES = {"fine": "green", "doubt": "yellow", "absent": "dim", "unknown": "dim"}


def doctor(
    device: str = typer.Option("auto", "--device", "-d", help="auto, cpu, cuda or cuda:N."),
    require: list[str] | None = typer.Option(
        None, "--require", help="Checks that must be fine, else exit code 4. Repeat, or use commas."
    ),
    threads: int | None = typer.Option(
        None, "--threads", min=1, help="Threads on a CPU.  [default: the usable cores]"
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Say whether this machine can be trusted now, and what speaks against it.

    Device, driver, libraries, clocks, power, throttling, other processes, load, quota, a second of
    equal work and what disturbed it, the timer, and whether 2:4 really runs. With --require it is a
    gate: hwbench doctor --require quiet,load
    """
    from hwbench.studies import doctor as study

    required = _shared.listed(require)
    study.demand([], required)  # a name that is none is told before anything is measured
    found = study.examine(device, threads)
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in found]))
    else:
        _show(found)
    study.demand(found, required)


def _show(found: list[Check]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for check in found:
        verdict = Text(check.verdict.value, style=_STYLES[check.verdict.value])
        table.add_row(Text(check.key, style="bold"), verdict, check.says)
    _shared.console().print(table)
