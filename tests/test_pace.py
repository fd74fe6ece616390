"""The time left that a run tells: layers of any size in any order, and what is read only once."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from _synthetic import linear_case, projection_case, run_of
from msgspec.structs import replace

from hwbench.measure import schedule
from hwbench.measure.pace import Pace
from hwbench.measure.schedule import Progress, State, Work
from hwbench.records import Case, Planned, Result, Status
from hwbench.store import Run, RunWriter

FORMATS = [("dense", None), ("low_rank", 0.5), ("monarch", 0.5), ("blast", 0.5), ("btt", 0.5)]
CEILINGS = {
    "matmul": {"float32": {"flops_per_second": 1e11}},
    "copy": {"bytes_per_second": 1e10},
}
START = 2.0  # seconds of a worker


class Told(NamedTuple):
    """The share of a run that is over, the seconds that are left of it, and those told."""

    over: float
    true: float
    left: float


def cases(*widths: int) -> list[Case]:
    return [linear_case(*each, shape=(width, width)) for width in widths for each in FORMATS]


class Clock:
    """A run whose results come at the times of a machine that is made up."""

    def __init__(self, run: Run, slope: float, *, smallest_first: bool, seed: int) -> None:
        self.run, self.slope, self.smallest_first = run, slope, smallest_first
        self.rng = random.Random(seed)
        self.pace = Pace.of(run.header, run.planned, ())
        self.groups: dict[Any, list[Planned]] = defaultdict(list)
        for planned in run.planned.values():
            self.groups[planned.case.group].append(planned)

    def results(self) -> Iterator[tuple[Planned, int, float]]:
        """Each result in order: its case, its replicate, and the seconds handed on with it."""
        for replicate in range(self.run.header.plan.replicates):
            order = self.rng.sample([*self.groups], len(self.groups))
            if self.smallest_first:
                order.sort(key=lambda group: self.pace.work[group])
            for group in order:
                slope = self.slope * (0.4 if replicate else 1.0)
                each = (0.2 if replicate else 0.3) + slope * self.pace.work[group]
                members = self.groups[group]
                # All members alone, then two bunches of rounds.
                share = {0: 0.8, len(members) // 2: 0.2}
                for place, planned in enumerate(members):
                    noise = self.rng.uniform(0.9, 1.1)
                    yield planned, replicate, share.get(place, 0.0) * each * len(members) * noise

    def told(self) -> tuple[list[Told], list[Told]]:
        """What the pace tells after each result, and what the mean of all results would tell."""
        now, before, told = 0.0, 0, []
        for planned, replicate, seconds in self.results():
            if replicate > before:
                self.pace.starts.append(START)
            now += seconds + (START if replicate > before else 0.0)
            before = replicate
            self.pace.add(planned, replicate, seconds)
            told.append((now, self.pace.seconds()))
        means = [(now, now / n * (len(told) - n)) for n, (now, _) in enumerate(told, 1)]
        return [
            [Told(then / now, now - then, left) for then, left in each if left is not None]
            for each in (told, means)
        ]


def worst(told: Iterable[Told]) -> float:
    """By what factor, either way, the seconds told are off until nine tenths are over."""
    return max(max(left / true, true / left) for over, true, left in told if over < 0.9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("slope", [10.0, 20.0, 50.0])
@pytest.mark.parametrize("smallest_first", [True, False])
def test_what_is_left_is_told_within_a_factor_wherever_the_large_layers_come(
    smallest_first: bool, slope: float, seed: int
) -> None:
    run = run_of(cases(256, 1024, 4096, 8192), replicates=3, ceilings=CEILINGS)
    told, means = Clock(run, slope, smallest_first=smallest_first, seed=seed).told()
    assert len(told) > 0.9 * len(means)
    assert worst(told) < 3
    assert worst(each for each in told if each.over > 0.4) < 2
    if smallest_first:
        assert worst(means) > 3.5


def test_without_peaks_a_run_of_one_size_is_told_by_its_visits() -> None:
    run = run_of([*cases(512), *(linear_case(*f, tokens=16) for f in FORMATS)], replicates=4)
    told, _ = Clock(run, 20.0, smallest_first=False, seed=0).told()
    assert worst(told) < 2.2


def test_a_timed_visit_tells_nothing_before_it_ended() -> None:
    run = run_of(cases(64), replicates=2)
    pace = Pace.of(run.header, run.planned, ())
    for number, planned in enumerate(run.planned.values()):
        assert pace.seconds() is None
        pace.add(planned, 0, 0.0 if number else 10.0)
    later = pace.seconds()
    assert later is not None
    assert 5.0 < later < 10.0  # without the readings that a first visit makes
    for planned in run.planned.values():
        pace.add(planned, 1, 1.0)
    assert pace.seconds() == 0.0
    for planned in run.planned.values():
        pace.expect(planned, 2)
    assert pace.seconds() == pytest.approx(len(FORMATS))
    pace.give_up(2)
    assert pace.seconds() == 0.0


def test_scored_results_tell_one_by_one() -> None:
    run = run_of([projection_case("low_rank", 0.5), projection_case("monarch", 0.5)])
    planned = [replace(each, seeds=3) for each in run.planned.values()]
    pace = Pace.of(run.header, {each.case.id: each for each in planned}, ())
    pace.add(planned[0], 0, None)  # it read the model
    assert pace.seconds() is None
    pace.add(planned[1], 0, 5.0)
    assert pace.seconds() == pytest.approx(20.0)


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., State]]:
    """Begins a run; ``heard`` takes what its listener is told."""
    begun: list[State] = []

    def begin(run: Run, heard: list[Progress], *done: tuple[str, int]) -> State:
        writer = RunWriter.create(tmp_path, run.header, [])
        state = State(run.header, run.planned, writer, heard.append, {*done})
        begun.append(state)
        return state

    yield begin
    for each in begun:
        each.writer.close()


@pytest.fixture
def state(begin: Callable[..., State]) -> State:
    """A run of one group in two replicates that was cut off after its first result."""
    run = run_of(cases(64), replicates=2)
    return begin(run, [], (next(iter(run.planned)), 0))


def fed(state: State, replicate: int, seconds: float) -> None:
    for case in state.planned:
        if (case, replicate) not in state.done:
            ok = Result(case=case, replicate=replicate, seed=0, status=Status.OK)
            state.keep(ok, seconds)


def test_what_was_measured_before_a_run_went_on_is_not_waited_for(state: State) -> None:
    assert sum(state.pace.left.values()) == 2 * len(FORMATS) - 1
    for replicate in range(2):
        fed(state, replicate, 3.0)
    assert state.seconds_left() == 0.0


def test_nothing_is_left_behind_the_time_budget(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(schedule.time, "monotonic", lambda: now[0])
    state.begun = 100.0
    Work.of(state, 4.0)
    fed(state, 0, 3.0)
    assert state.seconds_left() == pytest.approx(4.0)
    now[0] = 110.0
    assert state.seconds_left() == 0.0


def test_further_replicates_are_waited_for_until_they_are_given_up(state: State) -> None:
    for replicate in range(2):
        fed(state, replicate, 3.0)
    state.ask_for(list(state.planned)[:2], 2)
    assert state.seconds_left() == pytest.approx(6.0)
    state.seats = 3
    assert state.seconds_left() == pytest.approx(2.0)
    state.give_up(list(state.planned)[:2], 2)
    assert (state.seconds_left(), state.total) == (0.0, 0)


def test_a_case_that_this_device_cannot_run_is_not_waited_for(begin: Callable[..., State]) -> None:
    run = run_of([*cases(64), linear_case("semi_structured", None, shape=(64, 64))])
    heard: list[Progress] = []
    state = begin(run, heard)
    for replicate in range(3):
        for case, planned in run.planned.items():
            status = Status.UNSUPPORTED if planned.unsupported else Status.OK
            result = Result(case=case, replicate=replicate, seed=0, status=status)
            state.keep(result, None if planned.unsupported else 1.0)
    assert [heard[-1].left, *{each.left is None for each in heard[: len(FORMATS) - 1]}] == [0, True]
