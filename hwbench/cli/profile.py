"""``hwbench profile``: one case under torch.profiler, and whether it ran what it claims."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hwbench import files
from hwbench.cli import _options, _shared
from hwbench.errors import CasesFailedError, SuiteError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hwbench.protocol import Profile
    from hwbench.records import Case, Planned

_MOST_ROWS = 20
_LEAST_SHARE = 0.01  # of the time: rows below it are in --json only
_TRACE = "the trace "


def profile(
    format_: str = typer.Option(..., "--format", "-f", help="The format, such as low_rank."),
    density: float | None = typer.Option(None, "--density", help="Kept fraction of the weights."),
    stored: float | None = typer.Option(
        None, "--stored", help="Stored bytes over those of dense, in place of a density."
    ),
    knob: list[str] | None = typer.Option(
        None, "--knob", help="A knob of the format: blocks=16 or kernel=einsum. Repeat it."
    ),
    shape: str = typer.Option("1024x1024", "--shape", help="OUTxIN."),
    tokens: int = typer.Option(256, "--tokens", min=1, help="Batch × sequence."),
    dtype: str = typer.Option("float32", "--dtype", help="float32, bfloat16 or float16."),
    direction: str = typer.Option(
        "forward", "--direction", help="forward, backward, backward_input, backward_weight, step."
    ),
    device: _options.Device = "auto",
    threads: _options.Threads = None,
    calls: int = typer.Option(10, "--calls", min=1, max=10_000, help="Calls that are profiled."),
    trace: Path | None = typer.Option(
        None,
        "--trace",
        help="Write a Chrome trace here (.json or .json.gz), for ui.perfetto.dev.",
    ),
    as_json: _options.PrintJson = False,
) -> None:
    """Show what one case runs: kernels (operators on a CPU), calls, and share of the time.

    They are checked against what the format claims: for 2:4, that the sparse tensor cores ran.
    Its times are those of the profiler and no benchmark.
    """
    import msgspec

    from hwbench import suite as suites
    from hwbench.measure import run as runner

    if trace is not None and not trace.parent.is_dir():
        raise UsageError(f"There is no folder {trace.parent} for the trace.")
    if trace is not None:
        files.check_replaceable(trace, _TRACE)
    aside = _shared.is_stream(trace)
    name = runner.resolve_device(device)
    entry: dict[str, Any] = {"name": format_, **_knobs(knob)}
    shares = {"density": density, "stored": stored}
    entry |= {name: share for name, share in shares.items() if share is not None}
    document = {
        "schema": 1,
        "name": "profile",
        "cases": [
            {"workload": "linear", "shape": _shared.shapes([shape]), "tokens": tokens,
             "dtype": dtype, "direction": direction, "format": [entry]}
        ],
    }  # fmt: skip
    cases = suites.build(document, name.partition(":")[0]).cases
    if len(cases) != 1:
        raise UsageError(
            f"profile takes one case, and these options make {len(cases)}: give one of each."
        )
    planned, result = _profiled(cases, name, threads, calls, trace)
    if as_json:
        _shared.say_json({"case": planned.case.id, **msgspec.to_builtins(result)})
    else:
        for part in _report(planned.case.id, result):
            _shared.console(error=aside).print(part, soft_wrap=isinstance(part, str))
    if result.verdict == "contradicted":
        raise CasesFailedError(f"{planned.case.label} did not run what it claims: {result.says}.")


def _profiled(
    cases: list[Case], device: str, threads: int | None, calls: int, trace: Path | None
) -> tuple[Planned, Profile]:
    """The one case, planned and profiled by a worker of its own; its trace, where one is asked for.

    Raises:
        RunFileError: the trace cannot be written.
        SuiteError: the case is a mistake.
        UsageError: it cannot run on the device.
    """
    from msgspec.structs import replace

    with tempfile.TemporaryDirectory(prefix="hwbench-trace-") as folder:
        # The standard output of a worker is its own, so it cannot write to ours.
        made = Path(folder) / "trace.json"
        where = "" if trace is None else str(made)
        planned, found = _answered(cases, device, threads, calls, where)
        if trace is None:
            return planned, found
        with files.opened(made) as file:
            data = file.read()
    files.write(trace, gzip.compress(data) if trace.suffix == ".gz" else data, _TRACE)
    return planned, replace(found, trace=str(trace.absolute()))


def _answered(
    cases: list[Case], device: str, threads: int | None, calls: int, trace: str
) -> tuple[Planned, Profile]:
    """What a worker answers that plans the case and profiles it."""
    from hwbench import protocol
    from hwbench.measure import run as runner
    from hwbench.measure.transports.local import LocalWorker

    worker = LocalWorker(device, runner.usable_threads(threads))
    try:
        reply = worker.ask(protocol.PlanRequest(cases=cases), protocol.PlanReply, 300)
        if reply.mistakes:
            raise SuiteError(reply.mistakes[0])
        (planned,) = reply.planned
        if planned.unsupported:
            raise UsageError(f"{planned.case.label} cannot run here: {planned.unsupported}")
        request = protocol.ProfileRequest(planned=planned, seed=0, calls=calls, trace=trace)
        return planned, worker.ask(request, protocol.ProfileReply, 600).found
    finally:
        worker.close()


def _knobs(texts: list[str] | None) -> dict[str, Any]:
    """``blocks=16`` as a knob; numbers and truth values are read as such."""
    knobs: dict[str, Any] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UsageError(f"--knob is NAME=VALUE, such as blocks=16, not {text!r}.")
        try:
            knobs[name] = json.loads(value)
        except json.JSONDecodeError:
            knobs[name] = value
    return knobs


def _report(case: str, result: Profile) -> list[RenderableType]:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from hwbench import units

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("ran", overflow="fold")
    for head in ("calls", "each", "share"):
        table.add_column(head, justify="right")
    shown = [row for row in result.rows[:_MOST_ROWS] if row.share >= _LEAST_SHARE]
    for row in shown:
        each = units.seconds(row.seconds / row.calls)
        table.add_row(Text(row.name), str(row.calls), each, units.percent(row.share))
    hidden = len(result.rows) - len(shown)
    more = f" {hidden} more are in --json." if hidden else ""
    traced = f"The trace is in {result.trace}." if result.trace else "--trace FILE writes a trace."
    return [
        f"{case}, {result.calls} calls, {units.seconds(result.seconds)} in all",
        table,
        f"{result.verdict}: {result.says}.{more}",
        traced,
    ]
