"""One replicate: a fresh worker process that visits every case, restarted when a case kills it.

Each member of a group (same shape, tokens, dtype, direction, regime and mode) first runs alone
under its time limit; what crashes, hangs or runs out of memory there is left out. The rest is timed
in chunks of at most eight members in rounds around dense. If a chunk dies, its members are measured
again one at a time, each with dense.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from hwbench import protocol
from hwbench.errors import WorkerError
from hwbench.measure.transports._base import (
    Worker,
    WorkerDiedError,
    WorkerFailedError,
    WorkerTimedOutError,
)
from hwbench.records import Plan, Planned, Result, Status

CHUNK = 8  # the most members that are timed in the same rounds
MEMORY_SHARE = 0.5  # of the free memory may be held by one chunk
ANCHOR = "dense"
SPANS = ("start", "solo", "chunk", "sampled", "warm")
"""Where the seconds of a replicate go: worker starts, solo readings, chunks; of the chunks, inside
timed samples, and in calls that are not timed."""

_LOST = (WorkerDiedError, WorkerTimedOutError, WorkerFailedError)
"""After these a worker is of no use: it is gone, or may have lost its GPU."""

Keep = Callable[[Result, float | None], None]
"""Called with each result as soon as it is final, and the seconds since the one before it.

Those of a worker's start do not count. They are None for a case that was not measured.
"""


@dataclass
class Solo:
    """A member that ran alone and may be timed."""

    planned: Planned
    result: Result
    held_bytes: int


@dataclass
class Replicate:
    """The state of one replicate; ``start`` opens a worker, ``keep`` receives the results.

    ``right`` are the cases whose numbers an earlier replicate held to float64: once a run suffices.
    """

    number: int
    seed: int
    plan: Plan
    start: Callable[[], Worker]
    keep: Keep
    on_request: list[str] = field(default_factory=list)
    right: Collection[str] = ()
    worker: Worker | None = None
    free_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SPANS, 0.0))
    handed_on: float = field(default_factory=time.monotonic)  # when the last result was

    def close(self) -> None:
        """End the worker process."""
        if self.worker is not None:
            self.worker.close()
            self.worker = None

    def score(self, planned: Planned) -> None:
        """Run one scored case (a replicate is its seed) and keep its result."""
        reply = self._solo(planned)
        self._hand_on(reply.result if isinstance(reply, Solo) else reply)

    def time_group(
        self, members: Sequence[Planned], pending: set[str], seconds: float | None = None
    ) -> None:
        """Measure one group and keep the results of the wanted members.

        ``members`` come in the order in which they shall run; dense is among them or there is no
        relative time. ``seconds`` is what the time budget leaves for this group.
        """
        begun, started = time.monotonic(), self.seconds["start"]
        ready = []
        for number, planned in enumerate(members):
            left = None
            if seconds is not None:
                left = max(0.0, seconds - (time.monotonic() - begun)) / (len(members) - number)
            if reply := self._alone(planned, pending, left):
                ready.append(reply)
        self.seconds["solo"] += time.monotonic() - begun - (self.seconds["start"] - started)
        anchor = next((solo for solo in ready if solo.planned.case.format == ANCHOR), None)
        others = [solo for solo in ready if solo is not anchor]
        chunks = list(self._chunks(others, anchor)) or ([[]] if anchor else [])
        for index, chunk in enumerate(chunks):
            left = None
            if seconds is not None:
                left = max(0.0, seconds - (time.monotonic() - begun)) / (len(chunks) - index)
            self._time(chunk, anchor, pending, left)
        if anchor and anchor.planned.case.id in pending:  # all that was beside it died
            self._time([], anchor, pending, None if seconds is None else 0.0)
        self._forget()

    def _forget(self) -> None:
        """Have the worker drop the group; one that dies of it is replaced by the next case's."""
        if self.worker is None:
            return
        try:
            forgotten = self.worker.ask(protocol.ForgetRequest(), protocol.ForgetReply, 60)
        except _LOST:
            self.close()
            return
        self.free_bytes = forgotten.free_bytes

    def _alone(self, planned: Planned, pending: set[str], seconds: float | None) -> Solo | None:
        reply = self._solo(planned, seconds)
        if isinstance(reply, Solo):
            return reply
        if planned.case.id in pending:
            self._hand_on(reply)
        return None

    def _solo(self, planned: Planned, seconds: float | None = None) -> Solo | Result:
        request = protocol.SoloRequest(
            planned=planned,
            replicate=self.number,
            seed=self.seed,
            on_request=self.on_request,
            deadline_seconds=seconds,
            allocator=self.plan.allocator,
            right=planned.case.id in self.right,
        )
        try:
            reply = self._opened().ask(request, protocol.SoloReply, self.plan.timeout_seconds)
        except _LOST as error:
            return self._lost(planned, error)
        self.free_bytes = reply.free_bytes
        if reply.result.status is not Status.OK:
            return reply.result
        return Solo(planned=planned, result=reply.result, held_bytes=reply.held_bytes)

    def _lost(self, planned: Planned, error: WorkerError) -> Result:
        """The result of a case that took its worker with it; the next case gets a fresh one."""
        self.close()
        timed_out = isinstance(error, WorkerTimedOutError)
        reason = str(error).split("\n")[0]
        if timed_out:
            reason = f"It did not end within {self.plan.timeout_seconds:g} s and was stopped."
        return Result(
            case=planned.case.id,
            replicate=self.number,
            seed=self.seed,
            status=Status.TIMED_OUT if timed_out else Status.CRASHED,
            reason=reason,
        )

    def _hand_on(self, result: Result) -> None:
        before, self.handed_on = self.handed_on, time.monotonic()
        self.keep(result, self.handed_on - before)

    def _opened(self) -> Worker:
        if self.worker is None:
            begun = time.monotonic()
            self.worker = self.start()
            seconds = time.monotonic() - begun
            self.seconds["start"] += seconds
            self.handed_on += seconds
        return self.worker

    def _chunks(self, members: list[Solo], anchor: Solo | None) -> Iterator[list[Solo]]:
        """Even chunks of at most ``CHUNK`` members that fit in half of the free memory."""
        room = MEMORY_SHARE * self.free_bytes - (anchor.held_bytes if anchor else 0)
        total = sum(solo.held_bytes for solo in members)
        count = max(math.ceil(len(members) / CHUNK), math.ceil(total / max(room, 1.0)), 1)
        size = max(1, math.ceil(len(members) / count))
        for begin in range(0, len(members), size):
            yield members[begin : begin + size]

    def _time(
        self, chunk: list[Solo], anchor: Solo | None, pending: set[str], seconds: float | None
    ) -> None:
        """Time one chunk, or its members one at a time if it dies; keep the wanted results."""
        try:
            timed = self._rounds(chunk, anchor, seconds)
        except _LOST as error:
            self.close()
            if len(chunk) > 1:
                for solo in chunk:
                    self._time([solo], anchor, pending, None if seconds is None else 0.0)
                return
            lost = chunk[0] if chunk else anchor
            if lost is not None and lost.planned.case.id in pending:
                pending.discard(lost.planned.case.id)
                self._hand_on(self._lost(lost.planned, error))
            return
        for solo in [*chunk, *([anchor] if anchor else [])]:
            case = solo.planned.case.id
            if case in pending:
                pending.discard(case)
                timing = timed[case]
                self._hand_on(
                    replace(
                        solo.result,
                        measurements=[*solo.result.measurements, *timing.measurements],
                        flags=sorted({*solo.result.flags, *timing.flags}),
                    )
                )

    def _rounds(
        self, chunk: list[Solo], anchor: Solo | None, seconds: float | None
    ) -> dict[str, protocol.Timed]:
        plan = self.plan
        if seconds is not None:
            share = seconds / (len(chunk) + 1)
            plan = replace(plan, budget_seconds=max(1e-3, min(plan.budget_seconds, share)))
        request = protocol.ChunkRequest(
            members=[solo.planned for solo in chunk],
            anchor=anchor.planned if anchor else None,
            plan=plan,
            replicate=self.number,
            seed=self.seed,
            deadline_seconds=seconds,
        )
        limit = plan.timeout_seconds * (len(chunk) + 1)
        reply = self._opened().ask(request, protocol.ChunkReply, limit)
        self.seconds["sampled"] += reply.sampled_seconds
        self.seconds["warm"] += reply.warm_seconds
        self.seconds["chunk"] += reply.wall_seconds
        if reply.lost:
            self.close()
        return reply.timed
