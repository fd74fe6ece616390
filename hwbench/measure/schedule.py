"""A run while it is made: replicates, order, time budget and progress events; no torch.

Each replicate visits every group of cases once, in a new random order. Each result is kept as soon
as it is final, so a run that is killed loses at most the chunk in flight. Progress is told to a
listener, so that nothing here prints. One device is measured here, without a thread; ``pool.py``
has several share the same work.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from hwbench import environment
from hwbench.analysis import contested, quiet
from hwbench.errors import HwbenchError
from hwbench.measure import references
from hwbench.measure.pace import Pace
from hwbench.measure.replicate import ANCHOR, SPANS, Keep, Replicate
from hwbench.measure.transports._base import Seat, Worker
from hwbench.quantities import RELATIVE, TIME
from hwbench.records import CONFIRMS, Footer, Header, Planned, Result, ResultLine, Status
from hwbench.store import RunWriter, read_run

WHOLE = (0, 1)
"""The only share of one."""

CONTESTED_SHARE = 0.1  # of the plan's seconds, for contested cases, without a time budget
GLANCE_SECONDS = 0.05  # between two sums of the time that is left
LEAST_FURTHER_SECONDS = 60.0  # that further replicates may take, however short the plan's were


@dataclass(frozen=True)
class Progress:
    """The state of a run after a step ended; listeners receive it."""

    done: int
    total: int
    seconds: float
    path: Path
    result: Result | None = None
    note: str = ""  # the reason for waiting
    begun: bool = True  # else nothing is in the run file yet, and path is its folder
    left: float | None = None  # seconds until the last result; None where nothing tells of it yet


Listener = Callable[[Progress], None]


class _StoppedError(HwbenchError):
    """The run was interrupted: no further result is stored."""


@dataclass
class State:
    """A run in progress: its plan, and its results so far."""

    header: Header
    planned: dict[str, Planned]
    writer: RunWriter
    listener: Listener
    done: set[tuple[str, int]]
    failed: dict[str, Result] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)  # for the footer
    right: set[str] = field(default_factory=set)  # cases that a replicate has found right
    timed: list[Result] = field(default_factory=list)  # times alone, which show slow replicates
    extra: dict[int, set[str]] = field(default_factory=dict)  # cases of further replicates
    total: int = field(init=False)  # results, those of further replicates too
    begun: float = field(default_factory=time.monotonic)
    end: float | None = None  # of the time budget
    seats: int = 1  # devices that measure side by side
    left: float | None = None  # the seconds that were told last, and when they were added up
    looked_at: float = 0.0
    stopped: bool = False
    pace: Pace = field(init=False)

    def __post_init__(self) -> None:
        self.total = sum(map(self.header.plan.seeds, self.planned.values()))
        self.pace = Pace.of(self.header, self.planned, self.done)

    def ask_for(self, cases: Collection[str], replicate: int) -> None:
        """Ask for cases in a further replicate."""
        self.total += len(cases)
        for case in cases:
            self.pace.expect(self.planned[case], replicate)

    def give_up(self, cases: Collection[str], replicate: int) -> None:
        """Wait no longer for those cases of a further replicate that have no result."""
        self.total -= sum((case, replicate) not in self.done for case in cases)
        self.pace.give_up(replicate)

    def seconds_left(self) -> float | None:
        """Seconds until the last result, at most until the time budget ends; None if unknown."""
        left = self.pace.seconds()
        if left is None:
            return None
        left /= self.seats
        return left if self.end is None else min(left, max(0.0, self.end - time.monotonic()))

    def keep(self, result: Result, seconds: float | None) -> None:
        """Store one result, and call the listener; ``seconds`` as ``Keep`` says."""
        if self.stopped:
            raise _StoppedError("The run was interrupted.")
        self.writer.append(ResultLine(result=result))
        self.done.add((result.case, result.replicate))
        self.pace.add(self.planned[result.case], result, seconds)
        self.remember(result)
        if result.status is not Status.OK:
            self.failed.setdefault(result.case, result)
        self.tell(result=result)

    def remember(self, result: Result) -> None:
        """Keep that the case is right, and the readings that show whether the machine was quiet."""
        if result.status is Status.OK:
            self.right.add(result.case)
        times = [
            replace(each, samples=None)
            for each in result.measurements
            if each.quantity in (TIME.name, RELATIVE.name)
        ]
        if times:
            self.timed.append(replace(result, measurements=times))

    def wants(self, planned: Planned, replicate: int) -> bool:
        """Whether the case is part of a replicate."""
        extra = self.extra.get(replicate, ())
        return replicate < self.header.plan.seeds(planned) or planned.case.id in extra

    def tell(self, *, result: Result | None = None, note: str = "") -> None:
        """Tell the listener where the run stands."""
        now, path = time.monotonic(), self.writer.path
        # Results come in bunches; what is left is added up once for each.
        if result is None or self.pace.over or now - self.looked_at > GLANCE_SECONDS:
            self.left, self.looked_at = self.seconds_left(), now
        done, seconds = len(self.done), now - self.begun
        self.listener(Progress(done, self.total, seconds, path, result, note, left=self.left))


@dataclass(frozen=True)
class Unit:
    """The work of one fresh worker: a share of the groups in one replicate."""

    replicate: int
    shard: int


@dataclass(frozen=True)
class Ends:
    """Host times (``time.monotonic``) of a time budget; None where there is none.

    ``share`` is when one replicate should be done: groups after it are measured as coarsely as
    possible. ``budget`` is the end of all: no further group is begun.
    """

    share: float | None = None
    budget: float | None = None

    @property
    def spent(self) -> bool:
        """Whether the whole budget is spent."""
        return self.budget is not None and time.monotonic() >= self.budget


@dataclass
class Work:
    """The unfinished part of a run, and how its seconds were spent."""

    state: State
    shards: int
    units: deque[Unit] = field(default_factory=deque)
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SPANS, 0.0))
    longest: float = 0.0
    taken: float = 0.0  # seconds of all units together
    stopped: str | None = None  # why units were left out

    @classmethod
    def of(cls, state: State, time_budget_seconds: float | None, shards: int = 1) -> Work:
        """Every replicate of a run, each in so many shards."""
        replicates = max(state.header.plan.seeds(planned) for planned in state.planned.values())
        if time_budget_seconds is not None:
            state.end = state.begun + time_budget_seconds
        units = deque(Unit(r, shard) for r in range(replicates) for shard in range(shards))
        return cls(state, shards, units)

    def serve(self, seat: Seat) -> None:
        """Measure units on one seat until none is left."""
        while (taken := self.take()) is not None:
            unit, ends = taken
            begun = time.monotonic()
            spans = measure(self.state, unit.replicate, seat.start, ends)
            self.add(spans, time.monotonic() - begun)

    def take(self, seats: int = 1) -> tuple[Unit, Ends] | None:
        """The next unit and its time limit, if ``seats`` share the rest of the budget."""
        if not self.units or self.state.stopped:
            return None
        if self.state.end is None:
            return self.units.popleft(), Ends()
        if self.ended():
            return None
        now, replicates = time.monotonic(), self.state.header.plan.replicates
        left = sum(unit.replicate < replicates for unit in self.units) / max(1, seats)
        ends = Ends(now + (self.state.end - now) / max(1.0, left), self.state.end)
        return self.units.popleft(), ends

    @property
    def over(self) -> bool:
        """Whether the whole time budget is spent."""
        return Ends(budget=self.state.end).spent

    def ended(self) -> bool:
        """Whether the time budget leaves no room for another replicate; its units are left out.

        A replicate that is the first of its cases is made in any case.
        """
        first = min((unit.replicate for unit in self.units), default=0)
        if first == 0 or self.affords_another():
            return False
        self.stopped = f"The time budget ended after {first} replicates."
        self.units.clear()
        return True

    def add(self, spans: dict[str, float], seconds: float) -> None:
        """Count a unit that was measured: its seconds by span, and in all."""
        self.longest, self.taken = max(self.longest, seconds), self.taken + seconds
        for span in SPANS:
            self.spent[span] += spans[span]

    def affords_another(self) -> bool:
        """Whether the time budget leaves room for one more replicate."""
        return self.state.end is None or time.monotonic() + 0.7 * self.longest <= self.state.end

    def conclude(self, notes: dict[str, Any], *, here: bool = True) -> None:
        """Write the footer; none where the run was interrupted, or a case has no result at all."""
        state = self.state
        if state.stopped or state.planned.keys() - {case for case, _ in state.done}:
            return
        if self.stopped is None and len(state.done) < state.total:
            self.stopped = "The time budget ended within the last replicate."
        stopped = {"stopped": self.stopped} if self.stopped else {}
        folder = state.writer.path.parent
        moved = references.between_runs(state.header, state.planned, folder)
        between = {"between_runs": moved} if moved else {}
        finish(state, self.spent, {**stopped, **notes, **between}, here=here)


def execute(state: State, seat: Seat, time_budget_seconds: float | None) -> Path:
    """Measure the missing cases on one seat, write the footer and return the file."""
    work = Work.of(state, time_budget_seconds)
    try:
        state.tell()
        work.serve(seat)
        planned = work.taken
        _until_quiet(work, seat)
        _settle(work, seat, planned)
        work.conclude({"planned_seconds": planned})
    finally:
        state.writer.close()
    return state.writer.path


def _until_quiet(work: Work, seat: Seat) -> None:
    """Make further replicates of the cases that the machine slowed, until enough were quiet.

    There are at most ``replicates_most`` of the plan, and as many as the time budget allows. They
    take no longer than the plan's replicates did, or a minute: who runs a suite waits twice for a
    machine that stays busy, and no more.
    """
    state, plan = work.state, work.state.header.plan
    end = time.monotonic() + max(LEAST_FURTHER_SECONDS, work.taken)
    for number in range(plan.replicates, plan.most):
        state.extra[number] = slowed_cases(state)
        missing = {case for case in state.extra[number] if (case, number) not in state.done}
        if not state.extra[number] or work.stopped or not work.affords_another():
            state.extra.pop(number)
            return
        if not missing:
            continue
        if number > plan.replicates and time.monotonic() + 0.7 * work.longest > end:
            state.extra.pop(number)
            state.tell(note="the machine stays slow: no further replicates")
            return
        state.ask_for(missing, number)
        state.tell(note=f"the machine was slower in part of the run: replicate {number + 1}")
        work.units.append(Unit(number, 0))
        work.serve(seat)
        state.notes["further_replicates"] = number + 1 - plan.replicates


def slowed_cases(state: State) -> set[str]:
    """The cases that were slowed in so many replicates that too few were quiet; with their dense.

    A case that failed in some replicate has its answer.
    """
    counted = quiet.counted(state.header, state.planned, state.timed)
    few = {
        case
        for case, each in counted.items()
        if each.slow and len(each.quiet) < state.header.plan.replicates
        and case not in state.failed
    }  # fmt: skip
    return _with_dense(state, few)


def _settle(work: Work, seat: Seat, planned_seconds: float) -> None:
    """Measure the cases that the answer leaves open again, in the remaining seconds.

    All further replicates of a run take no longer than its planned ones; without a time budget,
    those of contested cases take a tenth of that. The contested cases are chosen once, and the time
    gives the number of replicates: looking after each replicate would find a winner by chance. A
    run that confirms another has no answer of its own.
    """
    state, plan = work.state, work.state.header.plan
    first = 1 + max((each.replicate for each in state.timed), default=plan.most)
    if first >= plan.most or work.stopped or CONFIRMS in state.header.arguments:
        return
    now, left = time.monotonic(), 2 * planned_seconds - work.taken
    left = min(left, CONTESTED_SHARE * planned_seconds if state.end is None else state.end - now)
    cases = contested_cases(state) if left > 0 else set()
    timed = sum(planned.seeds is None for planned in state.planned.values())
    usual = work.longest * len(cases) / max(1, timed)
    for number in range(first, plan.most):
        begun = time.monotonic()
        if not cases or begun + usual > now + left:
            return
        state.extra[number] = cases
        state.ask_for(cases, number)
        state.tell(note=f"too close to call: replicate {number + 1} of {len(cases)} cases")
        spans = measure(state, number, seat.start, Ends(state.end, state.end))
        state.give_up(cases, number)
        usual = time.monotonic() - begun
        work.add(spans, usual)
        state.notes["contested"] = {"cases": len(cases), "replicates": number + 1 - first}


def contested_cases(state: State) -> set[str]:
    """The cases of pairs that the answer leaves undecided, with their dense."""
    open_ = contested.contested(read_run(state.writer.path))
    return _with_dense(state, open_ - state.failed.keys())


def _with_dense(state: State, cases: set[str]) -> set[str]:
    groups = {state.planned[case].case.group for case in cases}
    return cases | {
        case
        for case, planned in state.planned.items()
        if _is_anchor(state, planned) and planned.case.group in groups
    }


def measure(
    state: State,
    number: int,
    start: Callable[[], Worker],
    ends: Ends = Ends(),
    share: tuple[int, int] = WHOLE,
    keep: Keep | None = None,
) -> dict[str, float]:
    """Measure the missing cases of one replicate; returns its seconds by span.

    ``start`` opens a worker; ``ends`` are the limits of the time budget; ``share`` is the number of
    this share of the groups and the number of all shares. ``keep`` takes each result in place of
    the state.
    """
    replicate = Replicate(
        number=number,
        seed=state.header.seed + number,
        plan=state.header.plan,
        start=start,
        keep=keep or state.keep,
        on_request=["energy"] if state.header.arguments.get("energy") else [],
        right=state.right,
    )
    try:
        _visit(state, replicate, ends, share)
    finally:
        replicate.close()
    state.pace.starts.append(replicate.seconds["start"])
    return replicate.seconds


def finish(
    state: State, spent: dict[str, float], notes: dict[str, Any], *, here: bool = True
) -> None:
    """Write the footer of a run that is complete; with the state of this machine if it ran here."""
    spans = {f"{span}_seconds": seconds for span, seconds in spent.items()}
    notes = {**state.notes, **notes, **spans}
    wall = time.monotonic() - state.begun
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    machine = {**(environment.machine_state() if here else {}), **notes}
    state.writer.append(Footer(finished=finished, wall_seconds=wall, state=machine))


def _visit(state: State, replicate: Replicate, ends: Ends, share: tuple[int, int]) -> None:
    """One replicate: every group of the share, in a new random order, and the scored cases.

    When the whole time budget is spent, the groups that are left are not begun.
    """
    rng = random.Random(f"{state.header.seed}/{replicate.number}")
    groups: dict[tuple[Any, ...], list[Planned]] = defaultdict(list)
    for planned in state.planned.values():
        if state.wants(planned, replicate.number):
            groups[planned.case.group].append(planned)
    mine = {key: groups[key] for key in list(groups)[share[0] :: share[1]]}
    for members in mine.values():
        for planned in members:
            _answer_early(state, planned.case.id, planned, replicate)
    order = rng.sample(list(mine), len(mine))
    missing = [key for key in order if _pending(state, mine[key], replicate)]
    for index, key in enumerate(missing):
        pending = _pending(state, mine[key], replicate)
        members = [p for p in mine[key] if p.case.id in pending or _is_anchor(state, p)]
        rng.shuffle(members)
        if members[0].seeds is not None:
            for planned in members:
                if planned.case.id in pending and not ends.spent:
                    replicate.score(planned)
            continue
        if ends.spent:
            continue
        seconds = None
        if ends.share is not None:
            seconds = max(0.0, ends.share - time.monotonic()) / (len(missing) - index)
        replicate.time_group(members, pending, seconds)


def _is_anchor(state: State, planned: Planned) -> bool:
    return planned.case.format == ANCHOR and planned.case.id not in state.failed


def _pending(state: State, members: list[Planned], replicate: Replicate) -> set[str]:
    ids = {planned.case.id for planned in members}
    return {case for case in ids if (case, replicate.number) not in state.done}


def _answer_early(state: State, case: str, planned: Planned, replicate: Replicate) -> None:
    """Store the results known without measuring: unsupported, or failed before."""
    if (case, replicate.number) in state.done:
        return
    before = state.failed.get(case)
    status, reason = Status.UNSUPPORTED, planned.unsupported
    if reason is None and before is not None:
        status, reason = before.status, before.reason
    if reason is not None:
        replicate.keep(
            Result(
                case=case,
                replicate=replicate.number,
                seed=replicate.seed,
                status=status,
                reason=reason,
            ),
            None,
        )
