"""Suite → Run: planning, replicates, order, time budget and progress events; no torch.

The runner decides what is measured when; a worker measures; the store keeps each result as it
comes. Progress is told to a listener, so that nothing here prints.
"""

from __future__ import annotations

import random
import secrets
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec.structs import replace

import hwbench
from hwbench import environment, plugins, protocol
from hwbench import suite as suites
from hwbench.errors import RunFileError, SuiteError, UsageError
from hwbench.records import (
    SCHEMA,
    Case,
    Environment,
    Footer,
    Header,
    Plan,
    Planned,
    PlannedLine,
    Result,
    ResultLine,
    Status,
    Suite,
)
from hwbench.replicate import ANCHOR, SPANS, Replicate
from hwbench.store import Run, RunWriter, read_run
from hwbench.transports.local import LocalWorker

_PLAN_SECONDS = 600.0  # planning a large suite, with its ceilings
_MOST_MISTAKES = 5  # sentences of a planning error that are shown


@dataclass(frozen=True)
class Progress:
    """What a listener is told: where the run stands after something ended."""

    done: int
    total: int
    seconds: float
    path: Path
    result: Result | None = None


Listener = Callable[[Progress], None]


@dataclass
class _State:
    """A run while it is made."""

    header: Header
    planned: dict[str, Planned]
    writer: RunWriter
    listener: Listener
    done: set[tuple[str, int]]
    failed: dict[str, Result] = field(default_factory=dict)
    total: int = 0
    begun: float = field(default_factory=time.monotonic)

    def keep(self, result: Result) -> None:
        """Store one result and tell the listener."""
        self.writer.append(ResultLine(result=result))
        self.done.add((result.case, result.replicate))
        if result.status is not Status.OK:
            self.failed.setdefault(result.case, result)
        seconds = time.monotonic() - self.begun
        self.listener(Progress(len(self.done), self.total, seconds, self.writer.path, result))

    def seeds(self, planned: Planned) -> int:
        """How many results the case shall have."""
        return self.header.plan.replicates if planned.seeds is None else planned.seeds


def run(  # noqa: PLR0913 (each is an option of the command line)
    suite: str | dict[str, Any] = "linear",
    *,
    device: str = "auto",
    out: str | Path = "runs",
    filter: str | None = None,  # noqa: A002 (the option's name on the command line)
    threads: int | None = None,
    seed: int = 0,
    time_budget_seconds: float | None = None,
    energy: bool = False,
    listener: Listener = lambda progress: None,
    **changes: Any,
) -> Path:
    """Run a suite on one device and return the path of the run file.

    Args:
        suite: The name of a shipped suite, the path of a suite file, or a suite's document.
        device: ``auto`` (the first CUDA device, else the CPU), ``cpu``, ``cuda`` or ``cuda:1``.
        out: The folder that the run file is written into.
        filter: Keep only the cases that match, see ``hwbench.suite.select``.
        threads: Threads that a CPU worker uses; the usable cores by default.
        seed: Seeds all data and all orders.
        time_budget_seconds: Return a complete, coarser answer in about this time.
        energy: Read the energy of a call too, two seconds a case, in the first replicate.
        listener: Told of every result.
        changes: Fields of the plan to replace, such as ``replicates=1``.

    Raises:
        UsageError: the suite, a knob, the device or the folder is not usable as asked.
    """
    begun = time.monotonic()
    threads = _threads(threads)
    document = suites.read(suite) if isinstance(suite, str) else suite
    device = resolve_device(device)
    built = suites.build(document, device.partition(":")[0])
    built = replace(built, plan=replace(built.plan, **changes))
    cases = suites.select(built.cases, filter) if filter else built.cases
    cases = _with_anchors(cases)
    worker = LocalWorker(device, threads)
    try:
        reply = _planned(worker, cases)
    finally:
        worker.close()
    header = _header(
        built,
        device,
        seed,
        threads,
        reply,
        {"filter": filter, "threads": threads, "energy": energy},
    )
    lines = [PlannedLine(id=planned.case.id, planned=planned) for planned in reply.planned]
    writer = RunWriter.create(Path(out), header, lines)
    state = _State(
        header=header,
        planned={line.id: line.planned for line in lines},
        writer=writer,
        listener=listener,
        done=set(),
        begun=begun,
    )
    return _execute(state, threads, time_budget_seconds)


def resume(
    path: str | Path,
    *,
    time_budget_seconds: float | None = None,
    listener: Listener = lambda progress: None,
) -> Path:
    """Finish a run that was cut off; nothing that it holds is measured again.

    Raises:
        RunFileError: the run cannot be read or written, or was made on another machine.
    """
    begun = time.monotonic()
    found = read_run(Path(path))
    if found.complete:
        return found.path
    threads = int(found.header.arguments.get("threads") or environment.usable_cores())
    worker = LocalWorker(found.header.device, threads)
    try:
        reply = worker.ask(protocol.PlanRequest(cases=[]), protocol.PlanReply, _PLAN_SECONDS)
    finally:
        worker.close()
    _same_machine(found, reply)
    state = _State(
        header=found.header,
        planned=found.planned,
        writer=RunWriter.resume(found),
        listener=listener,
        done=found.done,
        failed={r.case: r for r in found.results if r.status is not Status.OK},
        begun=begun,
    )
    return _execute(state, threads, time_budget_seconds)


def resolve_device(device: str) -> str:
    """``auto`` as what it stands for here; the name is otherwise returned as it is."""
    if device != "auto":
        plugins.check("devices", device.partition(":")[0])
        return device
    return "cuda" if environment.nvidia_devices() else "cpu"


def _threads(threads: int | None) -> int:
    if threads is None:
        return environment.usable_cores()
    if not 1 <= threads <= 4096:
        raise UsageError(f"--threads must be between 1 and 4096, not {threads}.")
    return threads


def _with_anchors(cases: list[Case]) -> list[Case]:
    """The cases, and a dense one for each timed group that has none: it is the yardstick."""
    have = {case.group for case in cases if case.format == ANCHOR}
    found = list(cases)
    for case in cases:
        if case.tokens is not None and case.group not in have:
            have.add(case.group)
            found.append(replace(case, format=ANCHOR, knobs={}))
    return found


def _planned(worker: LocalWorker, cases: list[Case]) -> protocol.PlanReply:
    dtypes = sorted({case.dtype for case in cases if case.tokens is not None})
    request = protocol.PlanRequest(cases=cases, ceilings=dtypes)
    reply = worker.ask(request, protocol.PlanReply, _PLAN_SECONDS)
    if reply.mistakes:
        shown = reply.mistakes[:_MOST_MISTAKES]
        more = len(reply.mistakes) - len(shown)
        raise SuiteError(" ".join(shown) + (f" And {more} more like these." if more else ""))
    return reply


def _header(
    suite: Suite,
    device: str,
    seed: int,
    threads: int,
    reply: protocol.PlanReply,
    arguments: dict[str, Any],
) -> Header:
    now = datetime.now(UTC)
    kind = device.replace(":", "")
    name = f"{now:%Y%m%d-%H%M%S}-{suite.name}-{kind}-{secrets.token_hex(2)}"
    fingerprint = {**reply.fingerprint, "threads": threads}
    return Header(
        schema=SCHEMA,
        run=name,
        created=now.isoformat(timespec="seconds"),
        version=hwbench.__version__,
        suite=suite.name,
        about=suite.about,
        plan=suite.plan,
        seed=seed,
        device=device,
        environment=Environment(
            fingerprint=fingerprint, state=reply.state, settings=reply.settings
        ),
        ceilings=reply.ceilings,
        arguments=arguments,
    )


def _same_machine(found: Run, reply: protocol.PlanReply) -> None:
    before = found.header.environment.fingerprint
    now = {**reply.fingerprint, "threads": before.get("threads")}
    different = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    if different:
        raise RunFileError(
            f"{found.path} was made on another machine or version ({', '.join(different)} "
            "differ); start a new run instead."
        )


def _execute(state: _State, threads: int, time_budget_seconds: float | None) -> Path:
    """Measure what is missing, replicate by replicate, and write the footer."""
    plan = state.header.plan
    state.total = sum(state.seeds(planned) for planned in state.planned.values())
    end = None if time_budget_seconds is None else state.begun + time_budget_seconds
    replicates = max(state.seeds(planned) for planned in state.planned.values())
    notes: dict[str, Any] = {}
    spent = dict.fromkeys(SPANS, 0.0)
    longest = 0.0
    try:
        state.listener(
            Progress(
                len(state.done), state.total, time.monotonic() - state.begun, state.writer.path
            )
        )
        for number in range(replicates):
            begun = time.monotonic()
            if end is not None and number > 0 and begun + 0.7 * longest > end:
                notes["stopped"] = f"The time budget ended after {number} replicates."
                break
            share = None if end is None else (end - begun) / max(1, plan.replicates - number)
            replicate = Replicate(
                number=number,
                seed=state.header.seed + number,
                plan=plan,
                start=lambda: LocalWorker(state.header.device, threads),
                keep=state.keep,
                on_request=["energy"] if state.header.arguments.get("energy") else [],
            )
            try:
                _visit(state, replicate, None if share is None else begun + share)
            finally:
                replicate.close()
            spent = {span: spent[span] + replicate.seconds[span] for span in SPANS}
            longest = max(longest, time.monotonic() - begun)
        notes |= {f"{span}_seconds": seconds for span, seconds in spent.items()}
        wall = time.monotonic() - state.begun
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        machine = {**environment.machine_state(), **notes}
        state.writer.append(Footer(finished=finished, wall_seconds=wall, state=machine))
    finally:
        state.writer.close()
    return state.writer.path


def _visit(state: _State, replicate: Replicate, end: float | None) -> None:
    """One replicate: every group, in a new random order, and what is scored."""
    rng = random.Random(f"{state.header.seed}/{replicate.number}")
    groups: dict[tuple[Any, ...], list[Planned]] = defaultdict(list)
    for case, planned in state.planned.items():
        if replicate.number < state.seeds(planned):
            _answer_early(state, case, planned, replicate)
            groups[planned.case.group].append(planned)
    order = rng.sample(list(groups), len(groups))
    missing = [key for key in order if _wanted(state, groups[key], replicate)]
    for index, key in enumerate(missing):
        wanted = _wanted(state, groups[key], replicate)
        members = [p for p in groups[key] if p.case.id in wanted or _is_anchor(state, p)]
        rng.shuffle(members)
        if members[0].seeds is not None:
            for planned in members:
                if planned.case.id in wanted:
                    replicate.score(planned)
            continue
        seconds = None
        if end is not None:
            seconds = max(0.0, end - time.monotonic()) / (len(missing) - index)
        replicate.time_group(members, wanted, seconds)


def _is_anchor(state: _State, planned: Planned) -> bool:
    return planned.case.format == ANCHOR and planned.case.id not in state.failed


def _wanted(state: _State, members: list[Planned], replicate: Replicate) -> set[str]:
    ids = {planned.case.id for planned in members}
    return {case for case in ids if (case, replicate.number) not in state.done}


def _answer_early(state: _State, case: str, planned: Planned, replicate: Replicate) -> None:
    """Keep what is known without measuring: unsupported, or failed in an earlier replicate."""
    if (case, replicate.number) in state.done:
        return
    before = state.failed.get(case)
    status, reason = Status.UNSUPPORTED, planned.unsupported
    if reason is None and before is not None:
        status, reason = before.status, before.reason
    if reason is not None:
        state.keep(
            Result(
                case=case,
                replicate=replicate.number,
                seed=replicate.seed,
                status=status,
                reason=reason,
            )
        )


def smallest(plan: Plan) -> dict[str, Any]:
    """What ``--quick`` changes: one replicate and a fifth of each budget."""
    return {
        "replicates": 1,
        "budget_seconds": plan.budget_seconds / 5,
        "relative_width": max(plan.relative_width, 0.05),
    }
