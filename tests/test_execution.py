"""Work shared by seats: one that throttles leaves it to the others."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _synthetic import linear_case, run_of

from hwbench.measure import pool, schedule
from hwbench.measure.pool import Pool
from hwbench.measure.replicate import SPANS
from hwbench.measure.schedule import State, Work
from hwbench.records import Measurement, Result, Status
from hwbench.store import RunWriter, read_run


class Seat:
    """Named; what it measures is made up."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.start = lambda: name

    def close(self) -> None: ...


def measured(state: State, number: int, start: Any, *rest: Any) -> dict[str, float]:
    """One result, disturbed on the seat that is called hot; the hot one is quick, the cool slow."""
    hot = start() == "hot"
    time.sleep(0.01 if hot else 0.1)
    result = Result(
        case=next(iter(state.planned)), replicate=number, seed=0, status=Status.OK,
        flags=["disturbed"] if hot else [],
        measurements=[Measurement(quantity="time_seconds", unit="s", values=[1.0])],
    )  # fmt: skip
    rest[-1](result)
    return dict.fromkeys(SPANS, 0.0)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    monkeypatch.setattr(pool, "measure", measured)
    run = run_of([linear_case("dense", None)], replicates=8)
    notes: list[str] = []
    state = State(
        header=run.header, planned=run.planned, writer=RunWriter.create(tmp_path, run.header, []),
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


def test_after_its_rest_it_serves_again(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "REST_SECONDS", 0.15)
    assert serve(work, "hot", "cool")["hot"] > 1


def test_the_only_seat_goes_on(work: Work) -> None:
    begun = time.monotonic()
    assert serve(work, "hot") == {"hot": 8}
    assert time.monotonic() - begun < pool.REST_SECONDS


def test_what_goes_wrong_on_one_seat_ends_the_others(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pool.measure

    def failing(state: State, number: int, start: Any, *rest: Any) -> dict[str, float]:
        if start() == "bad":
            raise ValueError("a mistake of ours")
        return made(state, number, start, *rest)

    monkeypatch.setattr(pool, "measure", failing)
    seats: Any = [Seat("cool"), Seat("bad")]
    with pytest.raises(ValueError, match="a mistake of ours"):
        Pool(work, seats).run()
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
