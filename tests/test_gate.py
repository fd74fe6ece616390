"""The gate under simulated nights: how often it fails without a reason, and what it finds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from hwbench.analysis.compare import Entry, Reading, Side, compare
from hwbench.analysis.noise import noises
from hwbench.analysis.outcome import Outcome, plain, worst_first
from hwbench.analysis.stats import Rule
from hwbench.records import Change, Ratio, Status, Verdict
from hwbench.studies import gate
from hwbench.studies.gate import judge_cases, raised

RULE = Rule(threshold=0.03, margin=0.03)
WALL = frozenset(["wall"])
REPLICATES, WINDOW, FRESH = 5, 5, gate.CONFIRMATIONS

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def gaussian(sd: float) -> Draw:
    return lambda rng, shape: rng.normal(0, sd, shape)


TWO_PERCENT = gaussian(0.02)


def spikes(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Spread 2 %, and every twentieth replicate lasts 1.3 times as long."""
    return rng.normal(0, 0.02, shape) + math.log(1.3) * (rng.random(shape) < 0.05)


def two_modes(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Spread 1 %, and every fifth process is in a mode that lasts 1.1 times as long."""
    return rng.normal(0, 0.01, shape) + math.log(1.1) * (rng.random(shape) < 0.2)


def unlike_cases(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Some cases are twenty times as noisy as others: 0.3 % to 6 %."""
    return rng.normal(0, 1, shape) * np.geomspace(0.003, 0.06, shape[0])[:, None]


@dataclass
class Nights:
    """What came of so many nights: counts of nights and of cases."""

    nights: int
    cases: int
    false_nights: int = 0
    regressed: int = 0
    equivalent: int = 0
    flagged: int = 0

    @property
    def found(self) -> float:
        return self.regressed / self.cases


def simulate(
    nights: int,
    *,
    cases: int = 200,
    noise: Draw = TWO_PERCENT,
    own_night: float = 0.0,  # sd of what a case has in common with itself that night
    same_night: float = 0.0,  # sd of what all cases have in common that night
    drift: float = 0.0,  # a night
    slower: float = 0.0,
    runs: int = WINDOW,
    confirm: bool = True,
    seed: int = 1,
) -> Nights:
    """Each night against the last ``runs``; a confirmation shares what its night has in common."""
    rng = np.random.default_rng(seed)

    def night(number: int) -> np.ndarray:
        return rng.normal(0, own_night, cases) + rng.normal(0, same_night) + drift * number

    def measured(effect: np.ndarray, replicates: int) -> Side:
        return side(np.exp(effect[:, None] + noise(rng, (cases, replicates))))

    effects = [night(number) for number in range(runs + nights)]
    history = [measured(effect, REPLICATES) for effect in effects]
    total = Nights(nights, nights * cases)
    for number in range(runs, runs + nights):
        effect = effects[number] + math.log1p(slower)
        new = measured(effect, REPLICATES) if slower else history[number]

        def again(wanted: list[str], effect: np.ndarray = effect) -> Side:
            total.flagged += len(wanted)
            fresh = measured(effect, FRESH)
            return Side({case: fresh.cases[case] for case in wanted})

        judged = judge_cases(
            history[number - runs : number], new, RULE, again=again if confirm else None
        )
        counts = Counter(change.verdict for change in judged.changes)
        total.false_nights += counts[Verdict.REGRESSED] > 0
        total.regressed += counts[Verdict.REGRESSED]
        total.equivalent += counts[Verdict.EQUIVALENT]
    return total


def side(values: np.ndarray) -> Side:
    return Side({f"case {index}": entry(row) for index, row in enumerate(values.tolist())})


def entry(values: Sequence[float], quantity: str = "relative_time", **fields: Any) -> Entry:
    reading = Reading(dict(enumerate(values)), WALL)
    return Entry(workload="linear", readings={quantity: reading} if values else {}, **fields)


# What the gate is held to


@pytest.mark.parametrize("nights", [25, pytest.param(200, marks=pytest.mark.heavy)])
def test_one_night_in_a_hundred_at_most_fails_without_a_reason(nights: int) -> None:
    result = simulate(nights)
    assert result.false_nights <= nights // 100  # of nights of 200 cases
    assert result.flagged > 0  # the confirmation had something to do


@pytest.mark.parametrize("nights", [5, pytest.param(25, marks=pytest.mark.heavy)])
def test_a_slow_down_is_found(nights: int) -> None:
    assert simulate(nights, slower=0.10).found >= 0.99
    five = simulate(nights, slower=0.05)
    assert five.found >= 0.90
    assert five.equivalent <= 0.005 * five.cases  # a margin of 3 % is not proven for it


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("what", "least_found"),
    [
        ({"noise": spikes}, 0.90),
        ({"noise": two_modes}, 0.40),
        ({"noise": unlike_cases}, 0.85),
        ({"drift": 0.001}, 0.99),
    ],
    ids=["spikes", "two modes", "unlike cases", "drift"],
)
def test_noise_of_other_shapes_costs_power_and_not_nights(
    what: dict[str, Any], least_found: float
) -> None:
    assert simulate(40, **what).false_nights <= 1
    assert simulate(10, slower=0.10, **what).found >= least_found


@pytest.mark.heavy
@pytest.mark.parametrize("what", ["own_night", "same_night"])
@pytest.mark.parametrize("sd", [0.01, 0.02])
def test_nights_that_differ_do_not_fail(what: str, sd: float) -> None:
    result = simulate(60, noise=gaussian(0.01), **{what: sd})
    assert result.false_nights <= 2


def test_replicates_alone_would_take_a_night_for_a_change() -> None:
    rng = np.random.default_rng(3)
    cases = 400
    nights = rng.normal(0, 0.02, (WINDOW + 1, cases, 1))
    runs = [side(np.exp(night + rng.normal(0, 0.01, (cases, 5)))) for night in nights]
    pooled = compare(runs[:-1], [runs[-1]], RULE)
    alarms = sum(change.verdict is Verdict.REGRESSED for change in pooled) / cases
    assert alarms > 0.04  # what the gate is there to prevent
    judged = judge_cases(runs[:-1], runs[-1], RULE)
    assert all(change.verdict is not Verdict.REGRESSED for change in judged.changes)


@pytest.mark.heavy
def test_without_a_confirmation_the_bound_is_higher_and_holds() -> None:
    assert simulate(100, confirm=False).false_nights <= 2
    assert simulate(10, confirm=False, slower=0.10).found >= 0.99
    unconfirmed = simulate(10, confirm=False, slower=0.05).found
    assert 0.5 < unconfirmed < simulate(10, slower=0.05).found


@pytest.mark.heavy
@pytest.mark.parametrize("runs", [1, 2, 3])
def test_a_short_baseline_is_paid_for_with_power(runs: int) -> None:
    assert simulate(40, runs=runs).false_nights == 0
    assert simulate(40, runs=runs, confirm=False).false_nights <= 1
    assert simulate(5, runs=runs, slower=0.10).found >= 0.99


def test_the_threshold_rises_when_runs_are_missing() -> None:
    arguments = [raised(0.03, runs) for runs in range(1, 7)]
    assert arguments == sorted(arguments, reverse=True)
    assert arguments[0] == pytest.approx(0.03 * math.sqrt(2 / 1.2))
    assert arguments[4] == arguments[5] == 0.03
    assert raised(0.03, 1, window=1) == 0.03


@pytest.mark.heavy
@pytest.mark.parametrize("cases", [1, 5])
def test_few_cases_are_enough(cases: int) -> None:
    assert simulate(400, cases=cases, noise=gaussian(0.01), own_night=0.02).false_nights <= 8
    assert simulate(100, cases=cases, slower=0.05).found >= 0.85


@pytest.mark.heavy
def test_what_is_said_to_be_found_in_nine_nights_of_ten_is() -> None:
    rng = np.random.default_rng(8)
    runs = [side(np.exp(rng.normal(0, 0.02, (200, REPLICATES)))) for _ in range(WINDOW + 1)]
    sizes = gate.detectable(runs[:-1], runs[-1], RULE, metric="relative")
    assert len(sizes) == 200
    usual = float(np.median(list(sizes.values())))
    assert simulate(10, confirm=False, slower=usual).found == pytest.approx(0.9, abs=0.05)


# How a case is judged

STEADY = (1.0, 1.01, 0.99, 1.005, 0.995)


def steady(factor: float = 1.0) -> list[float]:
    return [factor * value for value in STEADY]


def runs_of(**cases: Entry) -> list[Side]:
    return [Side(cases) for _ in range(WINDOW)]


def verdicts(changes: Sequence[Change]) -> dict[str, Verdict]:
    return {change.case: change.verdict for change in changes}


def test_only_flagged_cases_are_measured_again_and_only_fresh_values_count() -> None:
    old = runs_of(same=entry(STEADY), slow=entry(STEADY), luck=entry(STEADY))
    new = Side({"same": entry(STEADY), "slow": entry(steady(1.2)), "luck": entry(steady(1.2))})
    arguments: list[list[str]] = []

    def again(wanted: list[str]) -> Side:
        arguments.append(wanted)
        return Side({"slow": entry(steady(1.1) * 2), "luck": entry(steady() * 2)})

    judged = judge_cases(old, new, RULE, again=again)
    assert arguments == [["slow", "luck"]]
    result = {change.case: change for change in judged.changes}
    assert verdicts(judged.changes) == {
        "same": Verdict.EQUIVALENT,
        "slow": Verdict.REGRESSED,
        "luck": Verdict.EQUIVALENT,
    }
    assert judged.confirmed == {"slow"}
    assert result["slow"].ratio is not None
    assert result["slow"].ratio.value == pytest.approx(1.1, rel=1e-3)
    assert result["slow"].ratio.counts == (25, 10)
    assert result["slow"].reason == "Confirmed in 10 fresh replicates (20.0 % at first)."
    assert result["luck"].reason == "Not confirmed in 10 fresh replicates (20.0 % at first)."


def test_nothing_is_measured_again_when_nothing_is_flagged() -> None:
    def never(wanted: list[str]) -> Side:
        raise AssertionError(wanted)

    judged = judge_cases(runs_of(a=entry(STEADY)), Side({"a": entry(STEADY)}), RULE, again=never)
    assert judged.confirmed == frozenset()


def test_without_a_confirmation_the_verdict_says_so() -> None:
    judged = judge_cases(runs_of(a=entry(STEADY)), Side({"a": entry(steady(1.3))}), RULE)
    assert judged.confirmed is None
    assert verdicts(judged.changes) == {"a": Verdict.REGRESSED}
    assert judged.changes[0].reason == "Unconfirmed."


@pytest.mark.parametrize(
    ("fresh", "expected"),
    [
        (entry((), status=Status.CRASHED), Verdict.INVALID),
        (entry((), status=Status.OUT_OF_MEMORY), Verdict.REGRESSED),
        (None, Verdict.GONE),
    ],
)
def test_a_confirmation_may_end_in_other_ways(fresh: Entry | None, expected: Verdict) -> None:
    actual = Side({} if fresh is None else {"a": fresh})
    judged = judge_cases(
        runs_of(a=entry(STEADY)), Side({"a": entry(steady(1.3))}), RULE, again=lambda _: actual
    )
    assert verdicts(judged.changes) == {"a": expected}


def test_running_out_of_memory_is_confirmed_too() -> None:
    old, new = runs_of(a=entry(STEADY)), Side({"a": entry((), status=Status.OUT_OF_MEMORY)})
    again = judge_cases(old, new, RULE, again=lambda _: new)
    assert verdicts(again.changes) == {"a": Verdict.REGRESSED}
    assert again.confirmed == {"a"}
    fits = judge_cases(old, new, RULE, again=lambda _: Side({"a": entry(steady() * 2)}))
    assert verdicts(fits.changes) == {"a": Verdict.UNDECIDED}
    assert "had room in 10 fresh replicates" in str(fits.changes[0].reason)


def test_a_confirmation_by_another_metric_is_none() -> None:
    both = {"relative_time": Reading(dict(enumerate(STEADY)), WALL)}
    both |= {"time_seconds": both["relative_time"]}
    old = runs_of(a=Entry(workload="linear", readings=both))
    new = Side({"a": entry(steady(1.3))})
    judged = judge_cases(
        old, new, RULE, again=lambda _: Side({"a": entry(steady(1.3), "time_seconds")})
    )
    assert verdicts(judged.changes) == {"a": Verdict.UNDECIDED}
    assert "compared by time and not by relative" in str(judged.changes[0].reason)


def test_bytes_and_scores_are_not_measured_again() -> None:
    for quantity, metric in (("peak_bytes", "memory"), ("score", "score")):
        old = runs_of(a=entry(STEADY, quantity))
        new = Side({"a": entry(steady(1.3), quantity)})
        judged = judge_cases(old, new, RULE, metric=metric, again=lambda _: Side({}))
        assert verdicts(judged.changes) == {"a": Verdict.REGRESSED}
        assert judged.confirmed == frozenset()


def test_a_case_that_moves_from_run_to_run_is_not_proven_equal() -> None:
    moved = [Side({"a": entry(steady(factor))}) for factor in (0.95, 1.05, 1.0, 0.94, 1.06)]
    change_ = judge_cases(moved, Side({"a": entry(steady())}), RULE).changes[0]
    assert compare(moved, [Side({"a": entry(steady())})], RULE)[0].verdict is not Verdict.REGRESSED
    assert change_.verdict is Verdict.UNDECIDED
    slower = judge_cases(moved, Side({"a": entry(steady(1.1))}), RULE).changes[0]
    assert slower.verdict is Verdict.UNDECIDED
    assert "to tell a change from what runs of this case differ by" in str(slower.reason)


def test_one_value_on_each_side_decides_nothing() -> None:
    judged = judge_cases([Side({"a": entry([1.0])})], Side({"a": entry([2.0])}), RULE)
    assert verdicts(judged.changes) == {"a": Verdict.UNDECIDED}


def test_a_time_of_zero_decides_nothing() -> None:
    zero = entry([0.0] * 5)
    assert verdicts(judge_cases(runs_of(a=entry(STEADY)), Side({"a": zero}), RULE).changes) == {
        "a": Verdict.UNDECIDED
    }


# The noise of a case


def test_the_noise_between_and_inside_runs_is_told_apart() -> None:
    rng = np.random.default_rng(5)
    runs, inner, nights = 5, 0.01, 0.02
    samples = [
        [(rng.normal(0, nights) + rng.normal(0, inner, 5)).tolist() for _ in range(runs + 1)]
        for _ in range(500)
    ]
    actual = noises([each[:-1] for each in samples], [each[-1] for each in samples])
    within = np.sqrt(np.mean([noise.within[0] for noise in actual]))
    between = np.sqrt(np.mean([noise.between[0] for noise in actual]))
    assert within == pytest.approx(inner, rel=0.05)
    assert between == pytest.approx(nights, rel=0.05)


@pytest.mark.parametrize("chance", [0.05, 0.01])
def test_the_bound_is_passed_as_often_as_it_says(chance: float) -> None:
    rng = np.random.default_rng(6)
    shape = (3000, 6, 5)
    values = rng.normal(0, 0.02, (*shape[:2], 1)) + rng.normal(0, 0.01, shape)
    actual = noises(values[:, :-1].tolist(), values[:, -1].tolist())
    changes = values[:, -1].mean(axis=1) - values[:, :-1].mean(axis=(1, 2))
    bounds = np.array([noise.bound(5, chance) for noise in actual])
    assert np.mean(changes > bounds) == pytest.approx(chance, rel=0.3)


def test_noise_that_cannot_be_known_is_without_bound() -> None:
    (one,) = noises([[[0.0]]], [[0.1]])
    assert one.bound(1, 0.05) == math.inf
    (still,) = noises([[[0.0, 0.0]] * 5], [[0.0, 0.0]])
    assert still.bound(2, 0.05) == 0.0


# The exit code


def change(verdict: Verdict, ratio: float | None = None, case: str = "a", **fields: Any) -> Change:
    result = None if ratio is None else Ratio(value=ratio, low=ratio, high=ratio, counts=(5, 5))
    return Change(case=case, metric="time", verdict=verdict, ratio=result, **fields)


def outcome(*found: Verdict, **fields: Any) -> Outcome:
    changes = [change(verdict, case=str(number)) for number, verdict in enumerate(found)]
    defaults: dict[str, Any] = {"run": "r", "suite": "s", "machine": "m", "measured": 1}
    return Outcome(changes=changes, **{**defaults, **fields})


BAD, SLOW, SAME, OPEN = Verdict.INVALID, Verdict.REGRESSED, Verdict.EQUIVALENT, Verdict.UNDECIDED


@pytest.mark.parametrize(
    ("told", "code"),
    [
        (outcome(SAME), 0),
        (outcome(SAME, OPEN), 0),
        (outcome(SAME, Verdict.IMPROVED, Verdict.NEW), 0),
        (outcome(SAME, OPEN, fail_on_undecided=True), 3),
        (outcome(SAME, Verdict.GONE, fail_on_undecided=True), 3),
        (outcome(SAME, Verdict.INCOMPARABLE, fail_on_undecided=True), 3),
        (outcome(SAME, fail_on_undecided=True), 0),
        (outcome(SLOW, OPEN, fail_on_undecided=True), 1),
        (outcome(SLOW, problem="None."), 6),
        (outcome(Verdict.NEW), 6),
        (outcome(Verdict.GONE), 6),
        (outcome(Verdict.INCOMPARABLE), 6),
        (outcome(), 6),
        (outcome(SLOW, mismatch=["threads was 2 and is 4"], problem="None."), 4),
        (outcome(SLOW, BAD, mismatch=["x"], problem="None."), 5),
        (outcome(SAME, measured=0), 5),
    ],
)
def test_the_first_of_5_4_6_1_3_that_applies(told: Outcome, code: int) -> None:
    assert told.exit == code
    assert plain(told)["exit"] == code
    assert told.sentence().endswith(".")
    assert ("No regression" in told.sentence()) == (code == 0)


def test_the_worst_come_first() -> None:
    result = [
        change(SAME, 1.0), change(SLOW, 1.1), change(OPEN, 1.02), change(SLOW, 1.3), change(BAD),
        change(SLOW, None), change(Verdict.IMPROVED, 0.5),
    ]  # fmt: skip
    ordered = [(each.verdict, each.ratio and each.ratio.value) for each in worst_first(result)]
    assert ordered == [
        (BAD, None), (SLOW, None), (SLOW, 1.3), (SLOW, 1.1), (OPEN, 1.02),
        (Verdict.IMPROVED, 0.5), (SAME, 1.0),
    ]  # fmt: skip
