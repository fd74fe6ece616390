"""One suite on many devices: equal ones share a run, unequal ones have a run file each.

Where the devices are is a matter of the transport: several of this machine, or those of a Ray
cluster. A group of cases stays whole on one device within a replicate; replicates, or shards of
them, are what equal devices share.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from hwbench.analysis.fingerprint import differences
from hwbench.errors import DeviceError, UsageError, WorkerError, first_line
from hwbench.measure import pool, schedule
from hwbench.measure import run as runner
from hwbench.measure.run import Question
from hwbench.measure.schedule import Listener, Progress, State
from hwbench.measure.transports._base import Seat, SeatLostError
from hwbench.measure.transports.local import LocalSeat
from hwbench.protocol import PlanReply
from hwbench.records import Header
from hwbench.store import read_run

Find = Callable[[], Sequence[Seat]]
"""Looks for the seats that can be had now."""


@dataclass
class Squad:
    """Seats with equal devices and software, and the facts of their machines."""

    name: str
    seats: list[Seat]
    reply: PlanReply

    def takes(self, seat: Seat, reply: PlanReply) -> bool:
        """Whether a seat belongs to the squad."""
        mine, first = reply.machine(seat.threads), self.reply.machine(self.seats[0].threads)
        return (seat.kind, seat.device.partition(":")[0]) == (
            self.seats[0].kind,
            self.seats[0].device.partition(":")[0],
        ) and not differences(first, mine)

    def close(self) -> None:
        """Let its devices go."""
        for seat in self.seats:
            seat.close()


@dataclass
class Fleet:
    """A suite to measure, and the seats to measure it on."""

    find: Find
    on: Sequence[str] = ()
    shards: int | None = None
    time_budget_seconds: float | None = None
    patience_seconds: float = 0.0
    listener: Listener = lambda progress: None
    states: list[State] = field(default_factory=list)
    held: list[Seat] = field(default_factory=list)
    missed: dict[str, WorkerError] = field(default_factory=dict)  # by the sentence on its seat
    lock: threading.Lock = field(default_factory=threading.Lock)
    progress_of: dict[Path, Progress] = field(default_factory=dict)

    def run(self, question: Question) -> list[Path]:
        """Run the suite on every kind of device that was found; one run file for each.

        Raises:
            DeviceError: there is no such device.
            IncompleteRunError: machines went away and nobody was left to take their work.
            UsageError: the suite, a knob or the folder is not usable as asked.
            WorkerError: the worker of a device of this machine died, hung or failed while it was
                asked for its facts. Such a device of a cluster is left out.
        """
        question = replace(question, listener=self._hear)
        begun: list[tuple[Squad, State]] = []
        try:
            for squad in self._squads():
                if (state := self._begun(question, squad)) is not None:
                    begun.append((squad, state))  # noqa: PERF401 (kept where one fails)
            self._demand([squad for squad, _ in begun])
        except BaseException:
            for _, state in begun:
                state.writer.discard()
            self._let_go()
            raise
        return self._measure(begun)

    def resume(self, path: Path) -> list[Path]:
        """Go on with a run on the devices that it was made on; all others are let go before.

        Raises:
            DeviceError: none of the devices is one that the run was made on.
            IncompleteRunError: machines went away and nobody was left to take their work.
            RunFileError: the run cannot be read or written, or another process writes it.
        """
        run = read_run(path)
        if run.complete:
            return [path]
        try:
            squads = self._squads()
            mine = next((squad for squad in squads if _made_on(run.header, squad)), None)
            if mine is None:
                raise DeviceError(  # noqa: TRY301 (what was found is let go)
                    f"{path} was made on {run.header.machine}, which is not there now, or not "
                    "with the same software; start a new run instead."
                )
            for squad in squads:
                if squad is not mine:
                    squad.close()
            begun = [(mine, runner.reopened(run, self._hear))]
        except BaseException:
            self._let_go()
            raise
        return self._measure(begun)

    def _begun(self, question: Question, squad: Squad) -> State | None:
        """The run of a squad, planned on the first of its seats that answers.

        A seat of a cluster that does not is left out; None where that is all of them.
        """
        while squad.seats:
            seat = squad.seats[0]
            try:
                return runner.begin(question, seat, cluster=seat.kind or None)
            except WorkerError as error:
                if not seat.kind:
                    raise
                self._miss(seat, error)
            squad.seats.remove(seat)
        return None

    def _miss(self, seat: Seat, error: WorkerError) -> None:
        """Leave a seat out whose worker died, hung or failed before anything was measured."""
        sentence = f"{first_line(error)}."
        named = sentence if isinstance(error, SeatLostError) else f"{seat.name}: {sentence}"
        self.missed[named] = error
        seat.close()

    def _demand(self, squads: Sequence[Squad]) -> None:
        """Hold what was found to what was asked for.

        Raises:
            DeviceError: there is no such device; it says why those that were found are left out.
        """
        absent = [t for t in self.on if not any(_matches(s.seats[0], s.reply, [t]) for s in squads)]
        if absent or not squads:
            device = " or ".join(absent) if absent else "such a device"
            why = "".join(f" {sentence}" for sentence in self.missed)
            raise DeviceError(
                f"There is no machine with {device} that can be had now.{why}"
            ) from next(reversed(self.missed.values()), None)

    def _squads(self) -> list[Squad]:
        """Ask every seat for its facts, and put equal seats together."""
        squads: list[Squad] = []
        for seat, reply in self._wanted(self.find(), self._miss):
            joined = next((squad for squad in squads if squad.takes(seat, reply)), None)
            if joined:
                joined.seats.append(seat)
            else:
                squads.append(Squad(_name(seat, reply, self.on), [seat], reply))
        self._demand(squads)
        return squads

    def _wanted(
        self, seats: Sequence[Seat], miss: Callable[[Seat, WorkerError], None]
    ) -> list[tuple[Seat, PlanReply]]:
        """Ask all seats for their facts at once; keep the wanted seats, and close the others.

        ``miss`` receives those of a cluster whose worker died, hung or failed. A device of this
        machine was asked for by its name, so that none of them is left out.
        """
        self.held += seats
        calls = [partial(runner.facts, seat) for seat in seats]
        answered = []
        for seat, answer in zip(seats, pool.at_once(calls, self._let_go), strict=True):
            try:
                known = answer.result()
            except WorkerError as error:
                if not seat.kind:
                    raise
                miss(seat, error)
                continue
            if _matches(seat, known, self.on):
                answered.append((seat, known))
            else:
                seat.close()
        return answered

    def _let_go(self) -> None:
        for seat in self.held:
            seat.close()

    def _stop(self) -> None:
        for state in self.states:
            state.stopped = True
        self._let_go()

    def _measure(self, begun: list[tuple[Squad, State]]) -> list[Path]:
        """Make all runs at once; a CPU that shares its machine with them waits for its turn."""
        self.states = [state for _, state in begun]
        hosts = [each for each in begun if not each[0].seats[0].kind and _is_cpu(each[0])]
        others = [each for each in begun if each not in hosts]
        turns = [turn for turn in (others, *([host] for host in hosts)) if turn]
        first = min(state.begun for _, state in begun)
        for sentence in self.missed:
            self.states[0].tell(note=f"left out: {sentence}")
        futures: list[Future[Path]] = []
        try:
            for place, turn in enumerate(turns):
                share = self._share(first, len(turns) - place)
                calls = [partial(self._execute, squad, state, share) for squad, state in turn]
                futures += pool.at_once(calls, self._stop)
        finally:
            self._let_go()
        for future in futures:
            future.result()
        return [state.writer.path for state in self.states]

    def _share(self, first: float, turns: int) -> float | None:
        """The host time at which a turn has to end, where so many share the rest of the budget."""
        if self.time_budget_seconds is None:
            return None
        now = time.monotonic()
        return now + (first + self.time_budget_seconds - now) / turns

    def _execute(self, squad: Squad, state: State, end: float | None) -> Path:
        """Make one run; its devices are let go while other kinds are still measured."""
        try:
            return self._executed(squad, state, end)
        finally:
            squad.close()

    def _executed(self, squad: Squad, state: State, end: float | None) -> Path:
        remote = bool(squad.seats[0].kind)
        budget = None if end is None else end - state.begun
        if len(squad.seats) == 1 and not remote:
            return runner.with_references(schedule.execute(state, squad.seats[0], budget))
        shards = self.shards or -(-len(squad.seats) // state.header.plan.replicates)
        path = pool.execute(
            state, squad.seats, budget, shards=shards,
            more=(lambda: self._returned(squad)) if remote else None,
            patience_seconds=self.patience_seconds,
        )  # fmt: skip
        return path if remote else runner.with_references(path)

    def _returned(self, squad: Squad) -> list[Seat]:
        """Seats of the same kind that can be had again; they belong to the squad then."""
        fresh = [seat for seat in self.find() if seat.kind == squad.seats[0].kind]
        back = []
        # One that does not answer is looked for again, which the pool says.
        for seat, reply in self._wanted(fresh, lambda seat, error: seat.close()):
            if squad.takes(seat, reply):
                back.append(seat)
            else:
                seat.close()
        squad.seats += back
        return back

    def _hear(self, progress: Progress) -> None:
        """Tell the listener of all runs as one."""
        with self.lock:
            self.progress_of[progress.path] = progress
            totals = {state.writer.path: state.total for state in self.states}
            done = sum(each.done for each in self.progress_of.values())
            total = sum(totals.values()) or progress.total
            self.listener(replace(progress, done=done, total=total, left=self._left()))

    def _left(self) -> float | None:
        """Seconds until the last of the runs that have begun ends: a CPU may wait for its turn.

        None where nothing tells of one of them yet.
        """
        left = [each.left for each in self.progress_of.values() if each.begun]
        known = [each for each in left if each is not None]
        return max(known) if known and len(known) == len(left) else None


def local_seats(devices: Iterable[str], threads: int | None) -> list[Seat]:
    """The devices of this machine that a list names.

    Raises:
        UsageError: one is named twice, if by two names, or there is no such kind.
    """
    named = [runner.resolve_device(device) for device in devices]
    known: set[tuple[str, int | str]] = set()
    for device in named:
        if (place := _place(device)) in known:
            raise UsageError(f"--device names {device} twice; a device measures alone.")
        known.add(place)
    return [LocalSeat(device, runner.usable_threads(threads)) for device in named]


def _place(device: str) -> tuple[str, int | str]:
    """What a name stands for: cuda is cuda:0, and so is cuda:00; a worker refuses what is none."""
    kind, _, index = device.partition(":")
    return kind, int(index or 0) if index.isdecimal() or not index else index


def _made_on(header: Header, squad: Squad) -> bool:
    seat = squad.seats[0]
    same = (header.arguments.get("cluster") or "") == seat.kind
    return same and not differences(
        header.environment.fingerprint, squad.reply.machine(seat.threads)
    )


def _device_name(seat: Seat, reply: PlanReply) -> str:
    device = reply.fingerprint.get("device")
    return str(device.get("name") if isinstance(device, dict) else seat.device)


def _name(seat: Seat, reply: PlanReply, on: Sequence[str]) -> str:
    label = next((term for term in on if _matches(seat, reply, [term])), None)
    return label or seat.kind or _device_name(seat, reply)


def _matches(seat: Seat, reply: PlanReply, on: Sequence[str]) -> bool:
    """Whether a seat is of a requested kind: RTX4090 is NVIDIA GeForce RTX 4090 too."""
    names: set[str] = set()
    for name in (seat.kind, _device_name(seat, reply)):
        words = re.findall(r"[a-z0-9]+", name.lower())
        names |= {
            "".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, 1 + len(words))
        }
    return not on or any(re.sub(r"[^a-z0-9]", "", term.lower()) in names for term in on)


def _is_cpu(squad: Squad) -> bool:
    return squad.seats[0].device.partition(":")[0] == "cpu"
