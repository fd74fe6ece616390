"""Work shared by seats: one that throttles leaves it to the others."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _synthetic import linear_case, run_of

from hwbench.measure import schedule as execution
from hwbench.measure.schedule import State, Unit, Work
from hwbench.records import Measurement, Result, Status
from hwbench.store import RunWriter


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
    state.keep(result)
    rest[-1].append("disturbed" in result.flags)
    return dict.fromkeys(execution.SPANS, 0.0)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    monkeypatch.setattr(execution, "measure", measured)
    run = run_of([linear_case("dense", None)], replicates=8)
    notes: list[str] = []
    state = State(
        header=run.header, planned=run.planned, writer=RunWriter.create(tmp_path, run.header, []),
        listener=lambda progress: notes.append(progress.note), done=set(),
    )  # fmt: skip
    found = Work(state, 1, None)
    found.units.extend(Unit(number, 0) for number in range(8))
    found.notes = notes  # type: ignore[attr-defined]
    yield found
    state.writer.close()


def serve(work: Work, *names: str) -> Counter[str]:
    work.busy = len(names)
    threads = [threading.Thread(target=work.serve_apart, args=(Seat(name),)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert work.error is None
    assert len(work.state.done) == 8
    return Counter(work.where.values())


def test_a_seat_that_is_disturbed_leaves_the_work_to_the_others(work: Work) -> None:
    served = serve(work, "hot", "cool")
    assert served["hot"] == 1
    assert served["cool"] == 7
    assert "hot was disturbed: the others take its work" in work.notes  # type: ignore[attr-defined]


def test_after_its_rest_it_serves_again(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "REST_SECONDS", 0.15)
    assert serve(work, "hot", "cool")["hot"] > 1


def test_the_only_seat_goes_on(work: Work) -> None:
    begun = time.monotonic()
    assert serve(work, "hot") == {"hot": 8}
    assert time.monotonic() - begun < execution.REST_SECONDS
