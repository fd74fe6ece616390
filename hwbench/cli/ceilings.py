"""``hwbench ceilings``: what this machine reaches at best, measured in full and kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from hwbench.cli import _options, _shared
from hwbench.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

_DTYPES = ("float32", "bfloat16", "float16", "float64")


def ceilings(
    device: _options.Device = "auto",
    dtype: list[str] | None = typer.Option(
        None, "--dtype", help="Matrix rates of these dtypes only.  \\[default: all four]"
    ),
    threads: _options.Threads = None,
    as_json: _options.PrintJson = False,
) -> None:
    """Measure the peaks of this machine, which the roofline is made of.

    The largest rate of a matrix product, by dtype, over every library that a format may use; copy
    and triad from every memory level; and the smallest call.
    It takes about a minute. The runs that follow on this machine copy it into their file.
    """
    from hwbench import protocol
    from hwbench.measure import ceilings as kept
    from hwbench.measure import run as runner
    from hwbench.measure.transports.local import LocalWorker
    from hwbench.records import ITEM_BYTES

    dtypes = _shared.listed(dtype) or list(_DTYPES)
    if unknown := [name for name in dtypes if name not in ITEM_BYTES]:
        raise UsageError(f"--dtype takes {', '.join(ITEM_BYTES)}, not {unknown[0]!r}.")
    threads = runner.usable_threads(threads)
    worker = LocalWorker(runner.resolve_device(device), threads)
    try:
        reply = worker.ask(protocol.PlanRequest(cases=[]), protocol.PlanReply, 120)
        before = kept.kept(reply, threads)
        # A line and no spinner: nothing of ours may run while the machine is timed.
        _shared.say("Measuring sizes and working sets, about a minute …", error=True)
        measured = kept.measure(worker, reply, threads, dtypes)
    finally:
        worker.close()
    if as_json:
        _shared.say_json(measured)
        return
    out = _shared.console()
    for part in _tables(measured):
        out.print(part)
    if kept.busy(measured):
        _shared.say(
            f"The machine was busy in {measured['disturbed']:.0%} of that time, so these may be "
            "too low; the next run measures them again."
        )
    where = measured.get("not_kept") or f"Kept in {kept.path(reply, threads)}."
    _shared.say(where)
    _shared.say(_summary(measured))
    if said := _against(before, measured):
        _shared.say(said)


def _summary(measured: dict[str, Any]) -> str:
    """The peaks of the machine in one sentence: by dtype, and of its memory."""
    from hwbench import units

    rates = [
        f"{name} {units.flops_per_second(entry['flops_per_second'])}"
        for name, entry in measured["matmul"].items()
    ]
    moved = {name: measured[name]["bytes_per_second"] for name in ("copy", "triad")}
    memory = [f"{name} {units.si(rate, 'B/s')}" for name, rate in moved.items()]
    return f"This machine reaches {', '.join([*rates, *memory])}."


def _against(before: dict[str, Any], measured: dict[str, Any]) -> str | None:
    """How the peaks moved since they were kept; None where none of them were."""
    from hwbench import units
    from hwbench.report._facts import moment

    rates = {
        name: (before["matmul"][name], entry, "flops_per_second")
        for name, entry in measured["matmul"].items()
        if before and name in before["matmul"]
    }
    if before:
        rates["copy"] = (before["copy"], measured["copy"], "bytes_per_second")
    moves = {name: now[rate] / was[rate] - 1 for name, (was, now, rate) in rates.items()}
    said = [
        f"{name} {'+' if move > 0 else ''}{units.percent(move)}" for name, move in moves.items()
    ]
    when = moment(str(before.get("measured", "the last time")))
    return f"Against those of {when}: {', '.join(said)}." if said else None


def _tables(measured: dict[str, Any]) -> list[RenderableType]:
    from hwbench import units
    from hwbench.report._facts import LAUNCH

    matmul = [
        (name, units.flops_per_second(entry["flops_per_second"]), entry["library"],
         _product(entry["shape"]),
         ", ".join(f"{at['shape'][0]}: {units.si(at['flops_per_second'], '')}"
                   for at in entry["sweep"]))
        for name, entry in measured["matmul"].items()
    ]  # fmt: skip
    libraries = [
        (f"{name} by {library}", units.flops_per_second(each["flops_per_second"]),
         _product(each["shape"]))
        for name, entry in measured["matmul"].items() if len(entry["libraries"]) > 1
        for library, each in entry["libraries"].items()
    ]  # fmt: skip
    levels = [
        (level["name"], units.si(level["bytes_per_second"], "B/s"),
         " to ".join(units.nbytes(size) for size in dict.fromkeys(level["working_set_bytes"])))
        for level in measured["levels"]
    ]  # fmt: skip
    moved = [
        (name, units.si(measured[name]["bytes_per_second"], "B/s"),
         units.nbytes(measured[name]["working_set_bytes"]))
        for name in ("copy", "triad")
    ]  # fmt: skip
    launch = [
        (words, units.seconds(measured["launch"][name]))
        for name, words in LAUNCH.items()
        if name in measured["launch"]
    ]
    if "graph" in measured["launch"]:
        launch.append(("replayed from a graph", measured["launch"]["graph"]))
    heads = ("matrix product", "at best", "by", "side", "by side")
    through = ("each library", "at best", "side")
    return [
        _table(heads, matmul),
        *([_table(through, libraries)] if libraries else []),
        _table(("memory level (copy)", "at best", "working sets"), levels),
        _table(("largest working set", "at best", "working set"), moved),
        _table(("smallest call", "at best"), launch),
    ]


def _product(shape: list[int]) -> str:
    return " × ".join(map(str, shape)) if len(set(shape)) > 1 else str(shape[0])


def _table(heads: tuple[str, ...], rows: Sequence[Sequence[str]]) -> RenderableType:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number == 1 else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
