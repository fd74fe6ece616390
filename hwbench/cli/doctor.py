"""``hwbench doctor``: whether this machine can be trusted now, on one page."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from hwbench.channels import visible
from hwbench.cli import _options, _shared
from hwbench.errors import shortened

if TYPE_CHECKING:
    from hwbench.studies.doctor import Check

_STYLES = {"fine": "green", "doubt": "yellow", "absent": "dim", "unknown": "dim"}


def doctor(
    device: _options.Device = "auto",
    require: list[str] | None = typer.Option(
        None,
        "--require",
        help="Checks that must be fine, else exit code 4: device, libraries, peak, clocks, power, "
        "throttling, processes, load, quota, quiet, steady, speed, linear, timer, two_four or "
        "pynvml. Repeat, or use commas.",
    ),
    threads: _options.Threads = None,
    cluster: str | None = typer.Option(
        None, "--cluster", help="Every device of a Ray cluster: auto, or ray://HOST:PORT."
    ),
    as_json: _options.PrintJson = False,
) -> None:
    """Say whether this machine can be trusted now, and what speaks against it.

    Device, driver, libraries, clocks, power, throttling, other processes, load, quota, a second of
    equal work and what disturbed it, whether the machine is as fast as its ceilings say, the timer,
    and whether 2:4 really runs. With --require it is a gate: hwbench doctor --require quiet,load
    """
    from hwbench.studies import doctor as study

    required = _shared.listed(require)
    study.demand([], required)  # an unknown name fails before anything is measured
    if cluster is not None:
        return _cluster(cluster, device, threads, required, as_json=as_json)
    checks = study.examine(device, threads)
    if as_json:
        _shared.say_json([asdict(check) for check in checks])
    else:
        _show(checks)
    study.demand(checks, required)


def _cluster(
    address: str, device: str, threads: int | None, required: list[str], *, as_json: bool
) -> None:
    """Prints a line for every device of a cluster, and the differences between equal ones."""
    from rich.table import Table
    from rich.text import Text

    from hwbench.measure.transports.ray import Cluster
    from hwbench.studies import nodes as study

    study.check_required(required)
    joined = Cluster(address)
    try:
        nodes = study.examine(joined.seats(device, threads))
    finally:
        joined.close()
    if as_json:
        _shared.say_json([asdict(node) for node in nodes])
    else:
        table = Table.grid(padding=(0, 2))
        for node in nodes:
            messages = {check.key: check.says for check in node.checks}
            doubts = [c for c in node.checks if c.verdict.value == "doubt"]
            words = "; ".join(f"{c.key}: {c.says}" for c in doubts) or node.missed or "fine"
            facts = (messages.get("device", ""), messages.get("libraries", ""), words)
            texts = (shortened(each, 300) for each in facts)
            table.add_row(Text(visible(node.name), style="bold"), *map(Text, texts))
        out = _shared.console()
        out.print(table)
        for sentence in study.unequal(nodes):
            out.print(Text(shortened(sentence, 1000)))
    study.demand(nodes, required)


def _show(checks: list[Check]) -> None:
    from rich.table import Table
    from rich.text import Text

    from hwbench.studies import doctor as study

    table = Table.grid(padding=(0, 2))
    for check in checks:
        verdict = Text(check.verdict.value, style=_STYLES[check.verdict.value])
        table.add_row(Text(check.key, style="bold"), verdict, visible(check.says))
    _shared.console().print(table)
    _shared.say()
    for line in study.verdict(checks):
        _shared.say(line)
