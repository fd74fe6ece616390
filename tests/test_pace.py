"""The time left that a run tells: layers of any size in any order, and what is read only once."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from _synthetic import linear_case, projection_case, run_of
from msgspec.structs import replace
from scipy.optimize import nnls

from hwbench import protocol
from hwbench.measure import replicate as replicate_
from hwbench.measure import schedule
from hwbench.measure.pace import FIRST, LATER, TRUST, Line, Pace, _line
from hwbench.measure.replicate import Replicate
from hwbench.measure.schedule import Progress, State, Work
from hwbench.records import Case, Plan, Planned, Result, Status
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
    """A run whose results come at the times of a machine that is made up.

    ``exact`` is one that takes what a run that knows nothing yet guesses, without any noise.
    """

    def __init__(
        self, run: Run, slope: float, *, smallest_first: bool, seed: int, exact: bool = False
    ) -> None:
        self.run, self.smallest_first = run, smallest_first
        self.lines = [Line(0.3, slope), Line(0.2, 0.4 * slope)]
        if exact:
            self.lines = [FIRST, Line(LATER.fixed * FIRST.fixed, LATER.slope * FIRST.slope)]
        self.noise = 0.0 if exact else 0.1
        self.rng = random.Random(seed)
        self.pace = Pace.of(run.header, run.planned, ())
        self.groups: dict[Any, list[Planned]] = defaultdict(list)
        for planned in run.planned.values():
            self.groups[planned.case.group].append(planned)

    def work(self, group: Any) -> float:
        return self.pace.groups[group].work

    def results(self) -> Iterator[tuple[Planned, int, float]]:
        """Each result in order: its case, its replicate, and the seconds handed on with it."""
        for replicate in range(self.run.header.plan.replicates):
            order = self.rng.sample([*self.groups], len(self.groups))
            if self.smallest_first:
                order.sort(key=self.work)
            for group in order:
                each, members = self.lines[replicate > 0](self.work(group)), self.groups[group]
                # All members alone, then two bunches of rounds.
                share = {0: 0.8, len(members) // 2: 0.2} if self.noise else {0: 1.0}
                for place, planned in enumerate(members):
                    noise = 1 + self.rng.uniform(-self.noise, self.noise)
                    yield planned, replicate, share.get(place, 0.0) * each * len(members) * noise

    def told(self) -> tuple[list[Told], list[Told]]:
        """What the pace tells after each result, and what the mean of all results would tell."""
        now, before, told = 0.0, -1, []
        for planned, replicate, seconds in self.results():
            if replicate > before:
                now += START
                self.pace.starts += [START] if replicate else []
            now, before = now + seconds, replicate
            self.pace.add(planned, ok(planned, replicate), seconds)
            told.append((now, self.pace.seconds()))
        means = [(now, now / n * (len(told) - n)) for n, (now, _) in enumerate(told, 1)]
        return [
            [Told(then / now, now - then, left) for then, left in each if left is not None]
            for each in (told, means)
        ]


def ok(planned: Planned, replicate: int, status: Status = Status.OK) -> Result:
    return Result(case=planned.case.id, replicate=replicate, seed=0, status=status)


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
    assert worst(told) < 3.3
    assert worst(each for each in told if each.over > 0.5) < 1.8
    if smallest_first:
        assert worst(means) > 2.5


@pytest.mark.parametrize("replicates", [1, 2, 5, 10])
@pytest.mark.parametrize("smallest_first", [True, False])
def test_a_machine_that_is_as_guessed_is_told_exactly(
    smallest_first: bool, replicates: int
) -> None:
    run = run_of(cases(256, 1024, 4096, 8192), replicates=replicates, ceilings=CEILINGS)
    clock = Clock(run, 0.0, smallest_first=smallest_first, seed=1, exact=True)
    told, _ = clock.told()
    later = (replicates - 1) * len(run.planned)
    starts = START * (replicates - 1)  # of which nothing is known in the first replicate
    for number, each in enumerate(told):
        unknown = starts if number < len(told) - later else 0.0
        assert each.left == pytest.approx(each.true - unknown, abs=0.01)


def test_each_group_is_told_by_its_own_visits() -> None:
    """One takes ten times as long as its size lets guess, as a format without a kernel does."""
    run = run_of(cases(256, 512, 1024), replicates=3, ceilings=CEILINGS)
    clock = Clock(run, 20.0, smallest_first=False, seed=0)
    slow = next(iter(clock.groups))
    for replicate in range(2):
        if replicate:
            left = clock.pace.seconds()
            assert left is not None
            # Its later visits are taken to be as much slower than the others' as its first was.
            assert 3 * len(FORMATS) < left < 2 * 3.5 * len(FORMATS)
        for group, members in clock.groups.items():
            for planned in members:
                each = clock.lines[replicate](clock.work(group)) * (10 if group == slow else 1)
                clock.pace.add(planned, ok(planned, replicate), each)
    expected = sum(
        clock.lines[1](clock.work(group)) * len(members) * (10 if group == slow else 1)
        for group, members in clock.groups.items()
    )
    assert clock.pace.seconds() == pytest.approx(expected)


def test_without_peaks_a_run_of_one_size_is_told_by_its_visits() -> None:
    run = run_of([*cases(512), *(linear_case(*f, tokens=16) for f in FORMATS)], replicates=4)
    told, _ = Clock(run, 20.0, smallest_first=False, seed=0).told()
    assert worst(told) < 2.2


def test_a_timed_visit_tells_nothing_before_it_ended() -> None:
    run = run_of(cases(64), replicates=2)
    pace = Pace.of(run.header, run.planned, ())
    for number, planned in enumerate(run.planned.values()):
        assert pace.seconds() is None
        pace.add(planned, ok(planned, 0), 0.0 if number else 10.0)
    later = pace.seconds()
    assert later is not None
    assert 5.0 < later < 10.0  # without the readings that a first visit makes
    for planned in run.planned.values():
        pace.add(planned, ok(planned, 1), 1.0)
    assert (pace.seconds(), pace.over) == (0.0, True)
    for planned in run.planned.values():
        pace.expect(planned, 2)
    assert pace.seconds() == pytest.approx(len(FORMATS))
    assert not pace.over
    pace.give_up(2)
    assert (pace.seconds(), pace.over) == (0.0, True)


def scored(*, seeds: int) -> tuple[Pace, list[Planned]]:
    run = run_of([projection_case("low_rank", 0.5), projection_case("monarch", 0.5)])
    planned = [replace(each, seeds=seeds) for each in run.planned.values()]
    return Pace.of(run.header, {each.case.id: each for each in planned}, ()), planned


def test_scored_results_tell_one_by_one_and_each_worker_reads_the_model() -> None:
    pace, (first, second) = scored(seeds=3)
    assert pace.seconds() is None
    pace.add(first, ok(first, 0), 60.0)  # 55 of them to read the model
    assert pace.seconds() == pytest.approx(5 * 60.0)  # so far nothing else is known
    pace.add(second, ok(second, 0), 5.0)
    assert pace.seconds() == pytest.approx(2 * (60.0 + 5.0))
    pace.add(first, ok(first, 1), 62.0)
    assert pace.seconds() == pytest.approx(5.0 + 61.0 + 5.0)


def test_scored_and_timed_groups_do_not_tell_of_each_other() -> None:
    run = run_of([*cases(64), projection_case("low_rank", 0.5)], replicates=1)
    planned = {
        case: replace(each, seeds=4) if each.case.workload == "projection" else each
        for case, each in run.planned.items()
    }
    pace = Pace.of(run.header, planned, ())
    timed = [each for each in planned.values() if each.seeds is None]
    (score,) = (each for each in planned.values() if each.seeds)
    for each in timed:
        pace.add(each, ok(each, 0), 0.1)
    for replicate, seconds in enumerate((50.0, 50.0, 40.0)):
        pace.add(score, ok(score, replicate), seconds)
    assert pace.seconds() == pytest.approx((50 + 50 + 40) / 3)


def test_scores_say_nothing_of_a_layer_that_is_timed() -> None:
    scores = [projection_case(name, 0.5) for name in ("low_rank", "monarch")]
    run = run_of([*cases(64, 128), *scores], replicates=1)
    planned = {
        case: replace(each, seeds=2) if each.case.workload == "projection" else each
        for case, each in run.planned.items()
    }
    pace = Pace.of(run.header, planned, ())
    for each in planned.values():
        if each.case.out_features == 64:
            pace.add(each, ok(each, 0), 1.0)
        elif each.seeds:
            for replicate in range(2):
                pace.add(each, ok(each, replicate), 0.001)
    left = pace.seconds()
    assert left is not None
    assert 0.5 < left / len(FORMATS) < 1.5


def test_of_a_visit_that_takes_longer_than_foreseen_nothing_more_is_told() -> None:
    run = run_of(cases(64), replicates=3)
    pace = Pace.of(run.header, run.planned, ())
    for replicate in range(2):
        for planned in run.planned.values():
            pace.add(planned, ok(planned, replicate), 1.0)
    first = next(iter(run.planned.values()))
    pace.add(first, ok(first, 2), 100.0)
    assert (pace.seconds(), pace.over) == (0.0, False)


@pytest.mark.parametrize("status", [Status.TIMED_OUT, Status.CRASHED, Status.OUT_OF_MEMORY])
def test_a_case_that_failed_tells_nothing_and_is_answered_at_once_from_then_on(
    status: Status,
) -> None:
    run = run_of(cases(64), replicates=3)
    pace = Pace.of(run.header, run.planned, ())
    bad, *good = run.planned.values()
    pace.add(bad, ok(bad, 0, status), 60.0)
    for planned in good:
        pace.add(planned, ok(planned, 0), 1.0)
    assert {len(left) for r, left in pace.groups[bad.case.group].left.items() if r} == {len(good)}
    left = pace.seconds()
    assert left is not None
    assert left < 2 * len(good)
    for replicate in (1, 2):
        pace.add(bad, ok(bad, replicate, status), None)
        for planned in good:
            pace.add(planned, ok(planned, replicate), 1.0)
    assert (pace.seconds(), pace.over) == (0.0, True)


def test_the_line_is_that_of_the_least_relative_errors_without_negative_numbers() -> None:
    rng = random.Random(0)
    for _ in range(300):
        points = [(rng.choice((0.0, rng.lognormvariate(-4, 3))), rng.lognormvariate(0, 2))
                  for _ in range(rng.randint(0, 6))]  # fmt: skip
        prior = Line(rng.choice((0.0, 0.3)), rng.choice((0.0, 20.0)))
        if not points and not any(prior):
            continue
        rows = [(1 / each, work / each, 1.0) for work, each in points]
        rows += [(TRUST / prior.fixed, 0.0, TRUST)] if prior.fixed else []
        rows += [(0.0, TRUST / prior.slope, TRUST)] if prior.slope else []
        table = np.array(rows)

        def error(line: Sequence[float], table: Any = table) -> float:
            return float(np.linalg.norm(table[:, :2] @ np.array(line) - table[:, 2]))

        actual = _line(points, prior)
        expected, least = nnls(table[:, :2], table[:, 2])
        assert min(actual) >= 0
        assert error(actual) <= error(expected) + 1e-6
        assert error(expected) == pytest.approx(least, abs=1e-6)


class Scripted:
    """A worker that takes so many seconds of a clock for each request."""

    def __init__(self, now: list[float], seconds: Iterator[float]) -> None:
        self.now, self.seconds = now, seconds

    def ask(self, request: Any, *_: Any) -> Any:
        self.now[0] += next(self.seconds)
        case = request.planned.case.id
        result = Result(case=case, replicate=0, seed=0, status=Status.WRONG, reason="x")
        return protocol.SoloReply(result=result, held_bytes=0, free_bytes=1 << 30)

    def close(self) -> None: ...


def test_a_result_is_handed_on_with_the_seconds_since_the_one_before_it_without_a_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, handed_on = [100.0], []
    monkeypatch.setattr(replicate_.time, "monotonic", lambda: now[0])
    seconds = iter((5.0, 3.0, 2.0))

    def start() -> Any:
        now[0] += 7.0
        return Scripted(now, seconds)

    replicate = Replicate(
        number=0, seed=0, plan=Plan(), start=start,
        keep=lambda result, seconds: handed_on.append(seconds), handed_on=now[0],
    )  # fmt: skip
    members = [*run_of([linear_case(*each) for each in FORMATS[:3]]).planned.values()]
    replicate.score(members[0])
    for planned in members[1:]:
        assert replicate._alone(planned, {planned.case.id}, None) is None
    assert handed_on == [5.0, 3.0, 2.0]
    assert replicate.seconds["start"] == 7.0


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
    for planned in state.planned.values():
        if (planned.case.id, replicate) not in state.done:
            state.keep(ok(planned, replicate), seconds)


def waited(state: State) -> int:
    return sum(len(left) for each in state.pace.groups.values() for left in each.left.values())


def test_what_was_measured_before_a_run_went_on_is_not_waited_for(state: State) -> None:
    assert waited(state) == 2 * len(FORMATS) - 1
    for replicate in range(2):
        fed(state, replicate, 3.0)
    assert state.seconds_left() == 0.0


def test_a_run_that_goes_on_in_a_later_replicate_is_told_by_its_later_visits(
    begin: Callable[..., State],
) -> None:
    run = run_of(cases(64, 128), replicates=4)
    state = begin(run, [], *((case, 0) for case in run.planned))
    fed(state, 1, 2.0)
    assert state.seconds_left() == pytest.approx(2 * 2.0 * len(run.planned))


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
    before = state.total
    state.ask_for(list(state.planned)[:2], 2)
    assert state.seconds_left() == pytest.approx(6.0)
    assert state.total == before + 2
    state.seats = 3
    assert state.seconds_left() == pytest.approx(2.0)
    state.give_up(list(state.planned)[:2], 2)
    assert (state.seconds_left(), state.total) == (0.0, before)


def test_a_case_that_this_device_cannot_run_is_not_waited_for(begin: Callable[..., State]) -> None:
    run = run_of([*cases(64), linear_case("semi_structured", None, shape=(64, 64))])
    heard: list[Progress] = []
    state = begin(run, heard)
    assert waited(state) == 3 * len(FORMATS)
    for replicate in range(3):
        for planned in run.planned.values():
            status = Status.UNSUPPORTED if planned.unsupported else Status.OK
            state.keep(ok(planned, replicate, status), None if planned.unsupported else 1.0)
    assert [heard[-1].left, *{each.left is None for each in heard[: len(FORMATS) - 1]}] == [0, True]


def test_what_is_left_is_added_up_once_for_a_bunch(
    begin: Callable[..., State], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, sums = [100.0], []
    heard: list[Progress] = []
    state = begin(run_of(cases(64), replicates=2), heard)
    monkeypatch.setattr(schedule.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(state, "seconds_left", lambda: sums.append(now[0]) or 1.0)
    first, second, *others = state.planned.values()
    for planned, moment in ((first, 100.0), (second, 100.001), (others[0], 101.0)):
        now[0] = moment
        state.keep(ok(planned, 0), 1.0)
    assert sums == [100.0, 101.0]
    state.tell(note="a note")
    assert sums == [100.0, 101.0, 101.0]
