"""A run while it is made: replicates, order, time budget and progress events; no torch.

Each replicate visits every group of cases once, in a new random order. Each result is kept as soon
as it is final, so a run that is killed loses at most the chunk in flight. Progress is told to a
listener, so that nothing here prints.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hwbench import environment
from hwbench.records import Footer, Header, Planned, Result, ResultLine, Status
from hwbench.replicate import ANCHOR, SPANS, Replicate
from hwbench.store import RunWriter
from hwbench.transports.local import LocalWorker


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
class State:
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


def execute(state: State, threads: int, time_budget_seconds: float | None) -> Path:
    """Measure what is missing, replicate by replicate, write the footer and return the file."""
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
            seconds = measure(
                state,
                number,
                lambda: LocalWorker(state.header.device, threads),
                None if share is None else begun + share,
            )
            spent = {span: spent[span] + seconds[span] for span in SPANS}
            longest = max(longest, time.monotonic() - begun)
        finish(state, spent, notes)
    finally:
        state.writer.close()
    return state.writer.path


def measure(
    state: State, number: int, start: Callable[[], LocalWorker], end: float | None = None
) -> dict[str, float]:
    """Measure what is missing of one replicate; the seconds that it took, by span.

    ``start`` opens a worker; ``end`` is the host time (``time.monotonic``) to be done by.
    """
    replicate = Replicate(
        number=number,
        seed=state.header.seed + number,
        plan=state.header.plan,
        start=start,
        keep=state.keep,
        on_request=["energy"] if state.header.arguments.get("energy") else [],
    )
    try:
        _visit(state, replicate, end)
    finally:
        replicate.close()
    return replicate.seconds


def finish(state: State, spent: dict[str, float], notes: dict[str, Any]) -> None:
    """Write the footer of a run that is complete."""
    notes = {**notes, **{f"{span}_seconds": seconds for span, seconds in spent.items()}}
    wall = time.monotonic() - state.begun
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    machine = {**environment.machine_state(), **notes}
    state.writer.append(Footer(finished=finished, wall_seconds=wall, state=machine))


def _visit(state: State, replicate: Replicate, end: float | None) -> None:
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


def _is_anchor(state: State, planned: Planned) -> bool:
    return planned.case.format == ANCHOR and planned.case.id not in state.failed


def _wanted(state: State, members: list[Planned], replicate: Replicate) -> set[str]:
    ids = {planned.case.id for planned in members}
    return {case for case in ids if (case, replicate.number) not in state.done}


def _answer_early(state: State, case: str, planned: Planned, replicate: Replicate) -> None:
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
