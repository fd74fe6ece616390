"""One run on several seats at once: they share its units, and take over those of a lost seat.

Each seat is served on a thread of a pool from the standard library, and one lock guards what they
share. A seat that is disturbed rests while another works; where every machine went away, the pool
waits for one to come back. It does neither beyond the end of a time budget.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from hwbench.errors import IncompleteRunError, RunFileError, WorkerError, first_line
from hwbench.measure.schedule import Ends, State, Unit, Work, measure
from hwbench.measure.transports._base import Seat, SeatLostError, Worker
from hwbench.quantities import TIME
from hwbench.records import Result

REST_SECONDS = 30.0  # how long a machine that throttles leaves the work to the others
_LOOK_SECONDS = 2.0  # between two looks for a machine that came back
_GLANCE_SECONDS = 0.1  # between two looks whether there is work left for the one that rests

T = TypeVar("T")


def at_once(calls: Sequence[Callable[[], T]], stop: Callable[[], None]) -> list[Future[T]]:
    """Make all calls, each on a thread of its own; every future that comes back is done.

    Where the wait is interrupted, ``stop`` is called: it has to make the calls end.
    """
    if not calls:
        return []
    with ThreadPoolExecutor(len(calls)) as threads:
        futures = [threads.submit(call) for call in calls]
        try:
            wait(futures)
        except BaseException:
            stop()
            raise
    return futures


def execute(
    state: State,
    seats: Sequence[Seat],
    time_budget_seconds: float | None,
    *,
    shards: int = 1,
    more: Callable[[], Sequence[Seat]] | None = None,
    patience_seconds: float = 0.0,
) -> Path:
    """Measure the missing cases on all seats, write the footer and return the file.

    ``more`` finds seats of other machines that came back when none is left; it is asked for
    ``patience_seconds``. Without it the seats are of this machine.

    Raises:
        IncompleteRunError: every seat went away and none came back; the file can be resumed.
        RunFileError: a result could not be written; none was written after it.
    """
    work = Work.of(state, time_budget_seconds, shards)
    pool = Pool(work, list(seats), more or tuple, patience_seconds)
    try:
        state.tell()
        pool.run()
        if work.units and not work.ended():
            raise pool.incomplete()
        notes = {"seats": pool.where, "shards": shards, "lost": pool.lost}
        work.conclude(notes, here=more is None)
    finally:
        state.writer.close()
    return state.writer.path


@dataclass
class Pool:
    """The seats of a run, and their shared work."""

    work: Work
    seats: list[Seat]
    more: Callable[[], Sequence[Seat]] = tuple
    patience_seconds: float = 0.0
    busy: int = 0  # seats that are served
    resting: int = 0  # those of them that leave the work to the others
    failed: BaseException | None = None  # the first error that is no machine that went away
    where: dict[str, str] = field(default_factory=dict)  # the seat of each unit
    lost: list[str] = field(default_factory=list)
    gone: list[Seat] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> None:
        """Serve until every unit is measured, or no seat is left."""
        seats = list(self.seats)
        try:
            while seats and not self.work.state.stopped:
                self._serve_all(seats)
                seats = (self._left() or self._awaited()) if self.work.units else []
        except BaseException:
            self._stop()
            raise

    def incomplete(self) -> IncompleteRunError:
        """Says how much is missing, and how to go on."""
        state = self.work.state
        replicates = sorted({unit.replicate for unit in self.work.units})
        named = ", ".join(map(str, replicates[:8])) + (", …" if len(replicates) > 8 else "")
        why = f" ({self.lost[-1]})" if self.lost else ""
        return IncompleteRunError(
            f"{state.total - len(state.done)} of {state.total} results are missing, of replicate "
            f"{named}: no machine with {_device(state)} is left{why}. What was measured is in "
            f"{state.writer.path}; go on with --resume {state.writer.path}, and --cluster."
        )

    def _stop(self) -> None:
        """Close every seat; no further result is stored."""
        self.work.state.stopped = True
        for seat in self.seats:
            seat.close()

    def _serve_all(self, seats: Sequence[Seat]) -> None:
        """Serve all seats at once; raises the first error, for which the others were stopped."""
        self.busy = len(seats)
        at_once([self._serving(seat) for seat in seats], self._stop)
        if self.failed is not None:
            raise self.failed

    def _serving(self, seat: Seat) -> Callable[[], None]:
        return lambda: self._serve(seat)

    def _serve(self, seat: Seat) -> None:
        """Measure units on one seat until none is left, or its machine goes away."""
        try:
            while (taken := self._take()) is not None:
                if self._measured_disturbed(seat, *taken):
                    self._rest(seat)
        except SeatLostError:
            self.gone.append(seat)
            seat.close()
        except BaseException as error:
            with self.lock:
                self.failed = self.failed or error
            raise
        finally:
            with self.lock:
                self.busy -= 1
                self._share()

    def _take(self) -> tuple[Unit, Ends] | None:
        with self.lock:
            return None if self.failed else self.work.take(self._share())

    def _share(self) -> int:
        """How many seats share the work; the run tells the time left by it."""
        seats = self.busy - self.resting
        self.work.state.seats = max(1, seats)
        return seats

    def _measured_disturbed(self, seat: Seat, unit: Unit, ends: Ends) -> bool:
        """Measure a unit, and return whether most of its times were disturbed.

        Raises:
            SeatLostError: the machine went away; the unit was put back.
            RunFileError: a result could not be written.
        """
        begun = time.monotonic()
        flagged: list[bool] = []

        def keep(result: Result, seconds: float | None) -> None:
            with self.lock:
                self._store(result, seconds)
            if result.values(TIME.name):
                flagged.append("disturbed" in result.flags)

        share = (unit.shard, self.work.shards)
        try:
            spans = measure(self.work.state, unit.replicate, _starting(seat), ends, share, keep)
        except SeatLostError as error:
            with self.lock:
                self.work.units.appendleft(unit)
                self.lost.append(str(error))
            raise
        with self.lock:
            self.work.add(spans, time.monotonic() - begun)
            self.where[f"{unit.replicate}.{unit.shard}"] = seat.name
        return 2 * sum(flagged) > len(flagged)

    def _store(self, result: Result, seconds: float | None) -> None:
        """Store a result; after one that cannot be written no seat stores any."""
        try:
            self.work.state.keep(result, seconds)
        except RunFileError as error:
            self.failed, self.work.state.stopped = self.failed or error, True
            raise

    def _rest(self, seat: Seat) -> None:
        """Leave the work to others for a while, if another works: this one throttles."""
        with self.lock:
            if not self._left_to_others(self.busy - self.resting - 1):
                return
            self.resting += 1
            self._share()
            self.work.state.tell(note=f"{seat.name} was disturbed: the others take its work")
        try:
            until = time.monotonic() + REST_SECONDS
            while time.monotonic() < until and self._rests_on():
                time.sleep(_GLANCE_SECONDS)
        finally:
            with self.lock:
                self.resting -= 1
                self._share()

    def _rests_on(self) -> bool:
        with self.lock:
            return self._left_to_others(self.busy - self.resting)

    def _left_to_others(self, others: int) -> bool:
        """Whether so many other seats, which do not rest, have work and the time for it."""
        stopped = self.failed or self.work.state.stopped or self.work.over
        return not stopped and others > 0 and bool(self.work.units)

    def _left(self) -> list[Seat]:
        """Seats that had nothing to do any more when another one went away."""
        return [seat for seat in self.seats if seat not in self.gone]

    def _awaited(self) -> list[Seat]:
        """Seats that came back in time; a listener is told once that they are waited for."""
        state, until, told = self.work.state, time.monotonic() + self.patience_seconds, False
        while not state.stopped and not self.work.over:
            if seats := list(self.more()):
                self.seats += seats
                return seats
            if time.monotonic() > until:
                break
            if not told:  # no seat measures meanwhile
                state.tell(note=f"waiting: no machine with {_device(state)} is left")
            told = True
            time.sleep(_LOOK_SECONDS)
        return []


def _starting(seat: Seat) -> Callable[[], Worker]:
    """Start a worker on a seat; on a machine of a cluster, one that cannot start is a lost machine.

    No case is to blame: what could not be measured there is left to the others.
    """

    def start() -> Worker:
        try:
            return seat.start()
        except WorkerError as error:
            if isinstance(error, SeatLostError) or not seat.kind:
                raise
            raise SeatLostError(f"{seat.name} starts no worker: {first_line(error)}.") from error

    return start


def _device(state: State) -> str:
    return str(state.header.arguments.get("cluster") or state.header.device)
