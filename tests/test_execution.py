"""Work shared by seats: one that throttles leaves it to the others, and one error ends it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from _synthetic import linear_case, run_of
from msgspec.structs import replace

from hwbench.errors import IncompleteRunError, RunFileError, WorkerError
from hwbench.measure import pool, schedule
from hwbench.measure.pool import Pool
from hwbench.measure.replicate import SPANS
from hwbench.measure.schedule import Ends, State, Unit, Work
from hwbench.measure.transports._base import SeatLostError, WorkerDiedError, WorkerTimedOutError
from hwbench.records import Measurement, PlannedLine, Result, Status
from hwbench.store import RunWriter, read_run


class Seat:
    """Named; what it measures is made up."""

    kind = ""

    def __init__(self, name: str) -> None:
        self.name = name
        self.start: Any = lambda: name

    def close(self) -> None: ...


def measured(state: State, number: int, start: Any, *rest: Any) -> dict[str, float]:
    """One result, disturbed on the seat that is called hot; the hot one is quick, the cool slow."""
    hot = start().startswith("hot")
    time.sleep(0.01 if hot else 0.1)
    result = Result(
        case=next(iter(state.planned)), replicate=number, seed=0, status=Status.OK,
        flags=["disturbed"] if hot else [],
        measurements=[Measurement(quantity="time_seconds", unit="s", values=[1.0])],
    )  # fmt: skip
    rest[-1](result, 1.0)
    return dict.fromkeys(SPANS, 0.0)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    monkeypatch.setattr(pool, "measure", measured)
    run = run_of([linear_case("dense", None)], replicates=8)
    notes: list[str] = []
    lines = [PlannedLine(id=case, planned=planned) for case, planned in run.planned.items()]
    state = State(
        header=run.header, planned=run.planned,
        writer=RunWriter.create(tmp_path, run.header, lines),
        listener=lambda progress: notes.append(progress.note), done=set(),
    )  # fmt: skip
    actual = Work.of(state, None)
    actual.notes = notes  # type: ignore[attr-defined]
    yield actual
    state.writer.close()


def serve(work: Work, *names: str) -> Counter[str]:
    seats: Any = [Seat(name) for name in names]
    several = Pool(work, seats)
    several.run()
    assert len(work.state.done) == 8
    return Counter(several.where.values())


def test_a_seat_that_is_disturbed_leaves_the_work_to_the_others(work: Work) -> None:
    served = serve(work, "hot", "cool")
    assert served["hot"] == 1
    assert served["cool"] == 7
    assert "hot was disturbed: the others take its work" in work.notes  # type: ignore[attr-defined]


def test_the_time_left_is_shared_by_the_seats_that_are_at_work(work: Work) -> None:
    shared = []
    work.state.listener = lambda progress: shared.append((progress.note, work.state.seats))
    assert serve(work, "hot", "cool")["cool"] == 7
    assert shared[0][1] == 2
    assert {seats for note, seats in shared if note} == {1}  # the hot one rests


def test_a_seat_that_has_ended_shares_no_more(work: Work) -> None:
    several = Pool(work, [], busy=3)
    several._serve(Seat("cool"))  # type: ignore[arg-type]
    assert (several.busy, work.state.seats) == (2, 2)


def test_after_its_rest_it_serves_again(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "REST_SECONDS", 0.15)
    assert serve(work, "hot", "cool")["hot"] > 1


def test_the_only_seat_goes_on(work: Work) -> None:
    begun = time.monotonic()
    assert serve(work, "hot") == {"hot": 8}
    assert time.monotonic() - begun < pool.REST_SECONDS


def test_seats_that_are_all_disturbed_do_not_all_rest(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "REST_SECONDS", 10.0)
    begun = time.monotonic()
    serve(work, "hot", "hot too")
    assert time.monotonic() - begun < pool.REST_SECONDS


def test_a_seat_rests_only_while_another_works(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    several = Pool(work, [], busy=3, resting=1)
    rested: list[int] = []

    def woken(seconds: float) -> None:
        rested.append(several.resting)
        several.busy -= 1  # another one is lost

    monkeypatch.setattr(pool, "time", SimpleNamespace(monotonic=time.monotonic, sleep=woken))
    several._rest(Seat("hot"))  # type: ignore[arg-type]
    assert rested == [2]
    assert (several.busy, several.resting) == (2, 1)
    several._rest(Seat("hot"))  # type: ignore[arg-type]
    assert rested == [2]
    assert len(work.notes) == 1  # type: ignore[attr-defined]


def test_a_rest_ends_with_the_time_budget(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]

    def sleep(seconds: float) -> None:
        now[0] += 1.0

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
    monkeypatch.setattr(pool, "time", clock)
    monkeypatch.setattr(schedule, "time", clock)
    work.state.end = 105.0
    several = Pool(work, [], busy=2)
    several._rest(Seat("hot"))  # type: ignore[arg-type]
    assert now == [105.0]
    several._rest(Seat("hot"))  # type: ignore[arg-type]
    assert now == [105.0]


def test_seats_that_rest_share_no_time_budget(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "time", SimpleNamespace(monotonic=lambda: 0.0))
    work.state.end = 80.0
    work.state.header = replace(
        work.state.header, plan=replace(work.state.header.plan, replicates=8)
    )
    taken = Pool(work, [], busy=3, resting=2)._take()
    assert taken == (Unit(0, 0), Ends(10.0, 80.0))


def test_a_lost_unit_of_the_first_replicate_is_not_left_out(work: Work) -> None:
    """Units that went away with their machines come back in any order."""
    work.state.end = time.monotonic() - 1.0
    work.units.rotate(-1)  # the second replicate stands before the first
    assert not work.ended()
    work.units.pop()
    assert work.ended()
    assert work.stopped == "The time budget ended after 1 replicates."


def waiting(
    work: Work, monkeypatch: pytest.MonkeyPatch, budget: float | None, after: int
) -> list[float]:
    """A run whose only seat goes away after so many units, and none comes back in an hour."""
    now, left = [0.0], [after]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    def going(state: State, number: int, start: Any, *rest: Any) -> dict[str, float]:
        if not left[0]:
            raise SeatLostError("It went away.")
        left[0] -= 1
        now[0] += 1.0
        return measured(state, number, start, *rest)

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
    monkeypatch.setattr(pool, "time", clock)
    monkeypatch.setattr(schedule, "time", clock)
    monkeypatch.setattr(pool, "measure", going)
    work.state.begun = 0.0
    seats: Any = [Seat("cool")]
    try:
        pool.execute(work.state, seats, budget, more=tuple, patience_seconds=3600.0)
    finally:
        assert [note for note in work.notes if note] == [  # type: ignore[attr-defined]
            "waiting: no machine with cpu is left"
        ]
    return now


def test_who_waits_for_a_machine_is_told_once(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(IncompleteRunError, match="It went away"):
        waiting(work, monkeypatch, None, 2)


def test_nobody_waits_beyond_the_time_budget(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    (ended,) = waiting(work, monkeypatch, 60.0, 2)
    assert 60.0 <= ended < 70.0
    footer = read_run(work.state.writer.path).footer
    assert footer is not None
    assert footer.state["stopped"] == "The time budget ended after 2 replicates."


def test_without_a_first_replicate_a_run_is_incomplete_when_its_time_is_over(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(IncompleteRunError):
        waiting(work, monkeypatch, 60.0, 0)


def until_failed(several: Pool) -> None:
    """Stay in the middle of a unit until another seat has failed."""
    deadline = time.monotonic() + 60
    while not several.failed:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_after_a_result_that_cannot_be_written_no_seat_writes_any(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the disk has space again: the other seat is in the middle of its unit."""
    seats: Any = [Seat("other"), Seat("first")]  # whose error comes first is raised, not whose seat
    several = Pool(work, seats)
    append, begun = work.state.writer.append, threading.Event()

    def failing(*lines: Any) -> None:
        monkeypatch.setattr(work.state.writer, "append", append)
        raise RunFileError("Cannot write: No space left on device.")

    def act(state: State, number: int, start: Any, *rest: Any) -> dict[str, float]:
        if start() == "first":
            assert begun.wait(60)
            monkeypatch.setattr(work.state.writer, "append", failing)
        else:
            begun.set()
            until_failed(several)
        return measured(state, number, start, *rest)

    monkeypatch.setattr(pool, "measure", act)
    with pytest.raises(RunFileError, match="No space left"):
        several.run()
    assert work.state.done == set()
    assert work.state.stopped


def test_what_goes_wrong_on_one_seat_ends_the_others(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, begun = pool.measure, threading.Event()
    seats: Any = [Seat("cool"), Seat("bad")]
    several = Pool(work, seats)

    def failing(state: State, number: int, start: Any, *rest: Any) -> dict[str, float]:
        if start() == "bad":
            assert begun.wait(60)
            raise ValueError("a mistake of ours")
        begun.set()
        until_failed(several)
        return made(state, number, start, *rest)

    monkeypatch.setattr(pool, "measure", failing)
    with pytest.raises(ValueError, match="a mistake of ours"):
        several.run()
    assert len(work.state.done) == 1  # the unit that was begun; no other was taken
    assert work.state.stopped


def test_an_interrupt_stops_every_seat(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(futures: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pool, "wait", interrupted)
    seats: Any = [Seat("hot"), Seat("cool")]
    with pytest.raises(KeyboardInterrupt):
        Pool(work, seats).run()
    assert work.state.stopped
    assert work.units  # they are there for the one who resumes


def test_one_device_takes_no_thread_and_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hwbench.measure import run as runner

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a thread was started")

    monkeypatch.setattr("threading.Thread.start", refuse)
    monkeypatch.setattr("concurrent.futures.ThreadPoolExecutor.submit", refuse)
    document = {
        "schema": 1,
        "name": "one",
        "plan": {"replicates": 1, "budget_seconds": 0.005},
        "cases": [
            {"workload": "linear", "shape": [32, 16], "tokens": 1, "format": [{"name": "dense"}]}
        ],
    }
    path = runner.run(document, device="fake", out=tmp_path, threads=1)
    assert read_run(path).complete
    assert not {"threading", "Lock"} & set(vars(schedule))


@pytest.mark.parametrize("more", [tuple, lambda: [Seat("late")]], ids=["none", "one came back"])
def test_a_run_that_is_stopped_from_outside_ends(work: Work, more: Any) -> None:
    """As a fleet stops all its runs: what is left of this one is not begun again."""
    asked = []

    def found() -> Any:
        asked.append(1)
        return more()

    class Stopped(Seat):
        """Goes away because the run is stopped while it is asked."""

        def __init__(self) -> None:
            super().__init__("stopped")
            self.start = self.stop

        def stop(self) -> Any:
            work.state.stopped = True
            raise SeatLostError("stopped was let go.")

    seats: Any = [Stopped(), Seat("cool")]
    several = Pool(work, seats, found, patience_seconds=60.0)
    thread = threading.Thread(target=several.run, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert not asked
    assert work.units


@pytest.mark.parametrize("end", [WorkerDiedError, WorkerTimedOutError, WorkerError])
def test_a_machine_of_a_cluster_that_starts_no_worker_is_lost_and_no_case_is_to_blame(
    work: Work, end: type[WorkerError]
) -> None:
    class Sick(Seat):
        """A node whose worker could be started once, and never again."""

        kind = "A100"

        def __init__(self) -> None:
            super().__init__("sick")
            self.begun = 0
            self.start = self.again

        def again(self) -> str:
            self.begun += 1
            if self.begun > 1:
                raise end("No module named torch.\nAnd more.")
            return self.name

    seats: Any = [Sick(), Seat("cool")]
    several = Pool(work, seats)
    several.run()
    assert len(work.state.done) == 8
    assert set(several.where.values()) <= {"sick", "cool"}
    assert several.lost == ["sick starts no worker: No module named torch."]
    assert not work.state.failed
