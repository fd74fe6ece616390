"""Suite → Run: planned anew, or gone on with; no torch.

A planning worker resolves what only torch knows; ``execution`` then measures what is missing.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec.structs import replace

import hwbench
from hwbench import environment, files, plugins, protocol
from hwbench import suite as suites
from hwbench.analysis import fingerprint
from hwbench.analysis.fingerprint import Difference, Severity
from hwbench.errors import RunFileError, SuiteError, UsageError
from hwbench.measure import ceilings, references, revision, telling
from hwbench.measure.replicate import ANCHOR
from hwbench.measure.schedule import Listener, Progress, State, execute
from hwbench.measure.transports._base import Seat, Worker
from hwbench.measure.transports.local import LocalSeat
from hwbench.records import (
    SCHEMA,
    Allocator,
    Case,
    Environment,
    Header,
    Plan,
    PlannedLine,
    Status,
    Suite,
    without_gc,
)
from hwbench.store import Run, RunWriter, read_run, run_path

_PLAN_SECONDS = 600.0  # planning a large suite
_PEAKS = "measuring the peaks of this machine, which are kept"
_MOST_MISTAKES = 5  # sentences of a planning error that are shown


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
    scores: bool = True,
    listener: Listener | None = None,
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
        scores: Measure accuracy too; without it the cases of scored workloads are left out.
        listener: Called with a ``Progress`` after every result. Without one, a notebook shows a
            line with what is done and the time left, and a script shows nothing.
        changes: Fields of the plan to replace, such as ``replicates=1``.

    Raises:
        UsageError: the suite, a field of the plan, a knob, the device or the folder is not usable
            as asked.
    """
    question = Question(
        document=suites.read(suite) if isinstance(suite, str) else suite,
        out=files.named(out, RunFileError), filter=filter, seed=seed, energy=energy, scores=scores,
        changes=changes, listener=listener or telling.in_notebook() or (lambda progress: None),
    )  # fmt: skip
    return answer(question, device, threads, time_budget_seconds)


@dataclass(frozen=True, kw_only=True)
class Question:
    """The suite to measure on every device, and how to measure it."""

    document: dict[str, Any]
    out: Path
    filter: str | None = None
    seed: int = 0
    energy: bool = False
    scores: bool = True
    changes: dict[str, Any] = field(default_factory=dict)
    listener: Listener = lambda progress: None


def answer(
    question: Question, device: str, threads: int | None, time_budget_seconds: float | None
) -> Path:
    """Measure on one device of this machine; returns the run file, and raises as ``run`` does."""
    seat = LocalSeat(resolve_device(device), usable_threads(threads))
    return with_references(execute(begin(question, seat), seat, time_budget_seconds))


def with_references(path: Path) -> Path:
    """The path of a run; the machine keeps the run's times of dense as a reference."""
    if (stored := read_run(path)).complete:
        references.add(stored)
    return path


@without_gc()
def begin(question: Question, seat: Seat, **arguments: Any) -> State:
    """Plan the suite on a seat and open the run file; nothing of it is measured yet.

    Raises:
        UsageError: the suite, a knob, the device or the folder is not usable as asked.
        SeatLostError: the machine went away.
    """
    begun = time.monotonic()
    built = suites.build(question.document, seat.device.partition(":")[0])
    built = replace(built, plan=suites.replanned(built.plan, question.changes))
    cases = suites.select(built.cases, question.filter) if question.filter else built.cases
    worker = seat.start()
    try:
        cases = with_anchors(cases)
        reply = _planned(worker, cases)
        dtypes = {case.dtype for case in cases if case.tokens is not None}
        peaks = Progress(0, len(cases), 0.0, question.out, note=_PEAKS, begun=False)
        roofs = ceilings.of_machine(
            worker, reply, seat.threads, dtypes, lambda: question.listener(peaks)
        )
    finally:
        worker.close()
    arguments |= {
        "filter": question.filter,
        "threads": seat.threads,
        "energy": question.energy,
    }
    if not question.scores:
        timed = [planned for planned in reply.planned if planned.seeds is None]
        arguments["scores_left_out"] = len(reply.planned) - len(timed)
        reply = replace(reply, planned=timed)
        if not timed:
            raise UsageError(
                f"The suite {built.name} has scored cases only; leave --no-scores out to measure "
                "them."
            )
    header = header_of(built, seat.device, question.seed, seat.threads, reply, roofs, arguments)
    while run_path(question.out, header.run).exists():  # another run of this second drew its number
        header = replace(header, run=_with_number(header.run.rpartition("-")[0]))
    lines = [PlannedLine(id=planned.case.id, planned=planned) for planned in reply.planned]
    planned = {line.id: line.planned for line in lines}
    stored = references.of_machine(header.environment, planned)
    header = replace(header, references=stored)
    return State(
        header=header,
        planned=planned,
        writer=RunWriter.create(question.out, header, lines),
        listener=question.listener,
        done=set(),
        begun=begun,
    )


def facts(seat: Seat, cases: Sequence[Case] = ()) -> protocol.PlanReply:
    """Ask a worker on the seat for the facts of its machine, and for its plan of these cases.

    Raises:
        UsageError: there is no such device, or a knob or an option does not fit.
        SeatLostError: the machine went away.
    """
    worker = seat.start()
    try:
        return _planned(worker, list(cases))
    finally:
        worker.close()


def unsupported(case: Case) -> str | None:
    """Why a case cannot run on the CPU of this machine, in words; None where it can."""
    seat = LocalSeat("cpu", usable_threads(None))
    return facts(seat, [case]).planned[0].unsupported


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
    stored = read_run(files.named(path, RunFileError))
    if stored.complete:
        return stored.path
    seat = LocalSeat(stored.header.device, threads_of(stored))
    noted = _same_machine(stored, facts(seat))
    state = reopened(stored, listener)
    if noted:
        state.notes["resumed_after"] = noted
    return with_references(execute(state, seat, time_budget_seconds))


def reopened(stored: Run, listener: Listener) -> State:
    """A run that was cut off, ready to be gone on with.

    Raises:
        RunFileError: the run cannot be written, another process writes it, or it is a side of
            ``hwbench ab``.
    """
    if not stored.header.resumable:
        raise RunFileError(
            f"{stored.path} is a side of hwbench ab, which measures both in pairs; start it again."
        )
    # Under the lock the writer reads the file again, and brings the run up to date.
    writer = RunWriter.resume(stored)
    state = State(
        header=stored.header,
        planned=stored.planned,
        writer=writer,
        listener=listener,
        done=stored.done,
        failed={r.case: r for r in stored.results if r.status is not Status.OK},
    )
    for result in stored.results:
        state.remember(result)
    return state


def resolve_device(device: str) -> str:
    """The device that ``auto`` stands for here; any other name is returned unchanged."""
    if device != "auto":
        plugins.check("devices", device.partition(":")[0])
        return device
    return "cuda" if environment.nvidia_devices() else "cpu"


def threads_of(stored: Run) -> int:
    """The threads that a run was made with."""
    return int(stored.header.arguments.get("threads") or environment.usable_cores())


def usable_threads(threads: int | None) -> int:
    """The requested threads, else those of ``OMP_NUM_THREADS``, else one per usable core.

    Raises:
        UsageError: it is no number of threads.
    """
    if threads is None:
        return environment.default_threads()
    if not 1 <= threads <= environment.MOST_THREADS:
        raise UsageError(
            f"--threads must be between 1 and {environment.MOST_THREADS}, not {threads}."
        )
    return threads


def with_anchors(cases: list[Case]) -> list[Case]:
    """Return the cases, with a dense one added to each timed group that has none."""
    have = {case.group for case in cases if _is_anchor(case)}
    extended = list(cases)
    for case in cases:
        if case.tokens is not None and case.group not in have:
            have.add(case.group)
            extended.append(replace(case, format=ANCHOR, knobs={}))
    return extended


def case_count(document: dict[str, Any], kind: str) -> int:
    """Return how many cases a run of a suite has on a kind of device, added dense ones included.

    Raises:
        SuiteError: the document is no valid suite.
    """
    return len(with_anchors(suites.build(document, kind).cases))


def _is_anchor(case: Case) -> bool:
    """Whether it is dense, without a density that dense cannot have."""
    return case.format == ANCHOR and case.knobs.get("density", 1.0) == 1


def _planned(worker: Worker, cases: list[Case]) -> protocol.PlanReply:
    reply = worker.ask(protocol.PlanRequest(cases=cases), protocol.PlanReply, _PLAN_SECONDS)
    if reply.mistakes:
        mistakes = reply.mistakes[:_MOST_MISTAKES]
        more = len(reply.mistakes) - len(mistakes)
        raise SuiteError(" ".join(mistakes) + (f" And {more} more like these." if more else ""))
    return reply


def _with_number(name: str) -> str:
    """The name with a random number, which tells apart the runs of one second."""
    return f"{name}-{secrets.token_hex(2)}"


def header_of(
    suite: Suite,
    device: str,
    seed: int,
    threads: int,
    reply: protocol.PlanReply,
    roofs: dict[str, Any],
    arguments: dict[str, Any],
) -> Header:
    """The header of a new run of a suite, with a name of its own."""
    now = datetime.now(UTC)
    kind = re.sub(r"[^A-Za-z0-9.]+", "-", str(arguments.get("cluster") or device.replace(":", "")))[
        :40
    ]
    name = _with_number(f"{now:%Y%m%d-%H%M%S}-{suite.name}-{kind}")
    allocator, refused = _allocator(suite.plan, reply)
    state = {**state_of(reply), **({"allocator": refused} if refused else {})}
    return Header(
        schema=SCHEMA,
        run=name,
        created=now.isoformat(timespec="seconds"),
        version=hwbench.__version__,
        suite=suite.name,
        about=suite.about,
        plan=replace(suite.plan, allocator=allocator),
        seed=seed,
        device=device,
        environment=Environment(
            fingerprint=reply.machine(threads), state=state, settings=_settings(allocator, reply)
        ),
        ceilings=roofs,
        arguments=arguments,
        quantities=reply.quantities,
    )


def _allocator(plan: Plan, reply: protocol.PlanReply) -> tuple[str, str]:
    """The allocator that the worker will use, and why it is not the requested one ("" if it is).

    A worker of an older hwbench, and a device with times that do not depend on it, offer none.
    """
    refused = reply.allocators.get(plan.allocator, "")
    usable = plan.allocator in reply.allocators and not refused
    return plan.allocator if usable else Allocator.SYSTEM.value, refused


def _settings(allocator: str, reply: protocol.PlanReply) -> dict[str, Any]:
    """Return the worker's settings; an allocator that keeps memory counts as one."""
    own = {"allocator": allocator} if allocator != Allocator.SYSTEM else {}
    return {**reply.settings, **own}


def state_of(reply: protocol.PlanReply) -> dict[str, Any]:
    """The worker's state of the machine now, and the revision of the caller's own code."""
    return {**reply.state, **revision.commit(), **revision.remote()}


def deciding(differences: Sequence[Difference]) -> list[str]:
    """In words, those that no two parts of one run may have: of machine, settings or software."""
    return [str(d) for d in differences if d.severity is Severity.FATAL or d.software]


def differences(stored: Run, reply: protocol.PlanReply) -> list[Difference]:
    """The differences between this machine and the run's, as ``fingerprint`` compares them."""
    before = fingerprint.facts(stored.header.environment)
    settings = _settings(_allocator(stored.header.plan, reply)[0], reply)
    now = {**reply.fingerprint, "threads": before.get("threads"), "settings": settings}
    return fingerprint.differences(before, now)


def _same_machine(stored: Run, reply: protocol.PlanReply) -> list[str]:
    """Differences from the run's machine that may explain times, in words.

    Raises:
        RunFileError: a difference decides times.
    """
    different = differences(stored, reply)
    if fatal := deciding(different):
        raise RunFileError(
            f"{stored.path} was made on another machine or version ({'; '.join(fatal)}); start "
            "a new run instead."
        )
    return [str(each) for each in different]


def smallest(plan: Plan) -> dict[str, Any]:
    """The settings of ``--quick``: one replicate and a fifth of each budget."""
    return {
        "replicates": 1,
        "budget_seconds": plan.budget_seconds / 5,
        "relative_width": max(plan.relative_width, 0.05),
    }
