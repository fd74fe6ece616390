"""Estimates, ratios and verdicts: against scipy, under simulated noise, and by their properties."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import scipy.stats
from _tiers import sampled
from hypothesis import assume, given
from hypothesis import strategies as st

from hwbench.analysis import power, ranks, stats
from hwbench.analysis.stats import Rule
from hwbench.records import Ratio, Verdict

BARE = Rule(threshold=0.0, margin=0.03)  # a change counts as soon as the interval excludes none
MIRROR = {Verdict.REGRESSED: Verdict.IMPROVED, Verdict.IMPROVED: Verdict.REGRESSED}

values = st.lists(st.floats(0.5, 2.0), min_size=1, max_size=8)
several = st.lists(st.floats(0.5, 2.0), min_size=2, max_size=8)


def lognormal(rng: np.random.Generator, sd: float, count: int, centre: float = 1.0) -> list[float]:
    return (centre * np.exp(rng.normal(0, sd, count))).tolist()


def between(value: float, low: float, high: float) -> bool:
    return low <= value <= high


# The sampling loop's part


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_ranks_of_the_median_are_the_largest_that_keep_the_level(level: float) -> None:
    for count in (*range(1, 80), 500, 2500):
        interval = stats.median_interval(list(range(1, count + 1)), level)
        rank = 0 if interval is None else round(interval[0])
        tail = (1 - level) / 2
        assert scipy.stats.binom.cdf(rank - 1, count, 0.5) <= tail
        assert scipy.stats.binom.cdf(rank, count, 0.5) > tail
        assert interval is None or interval[1] == count + 1 - rank


def test_the_median_has_no_interval_below_six_values() -> None:
    assert stats.median_interval([5.0, 1.0, 4.0, 2.0, 3.0]) is None
    assert stats.median_interval([5.0, 1.0, 4.0, 2.0, 3.0, 6.0]) == (1.0, 6.0)
    assert stats.median_interval([]) is None


def test_ranks_of_very_many_values_are_normal_ones() -> None:
    interval = stats.median_interval(list(range(1, 10_001)))
    exact = scipy.stats.binom.ppf(0.025, 10_000, 0.5)
    assert interval is not None
    assert abs(interval[0] - exact) <= 1


def test_relative_width_is_of_the_whole_interval() -> None:
    assert stats.relative_width([9.0, 10.0, 10.0, 10.0, 10.0, 12.0]) == pytest.approx(0.3)
    assert stats.relative_width([1.0] * 5) == math.inf
    assert stats.relative_width([0.0] * 9) == math.inf
    assert stats.relative_width([]) == math.inf


# Against scipy


@pytest.mark.parametrize("count", [2, 3, 4])
def test_few_values_get_the_t_interval_on_logs(count: int) -> None:
    data = lognormal(np.random.default_rng(count), 0.1, count)
    logs = np.log(data)
    oracle = scipy.stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    estimate = stats.estimate(data)
    assert (estimate.low, estimate.high) == pytest.approx((np.exp(oracle.low), np.exp(oracle.high)))
    assert estimate.value == pytest.approx(np.exp(logs.mean()))


@pytest.mark.parametrize(("count", "level"), [(6, 0.95), (7, 0.9), (8, 0.99), (15, 0.95)])
def test_the_signed_rank_interval_is_what_wilcoxon_does_not_reject(
    count: int, level: float
) -> None:
    data = lognormal(np.random.default_rng(count), 0.1, count)
    estimate = stats.estimate(data, level)

    def p_value(value: float) -> float:
        return float(scipy.stats.wilcoxon(np.log(data) - math.log(value), method="exact").pvalue)

    for end, inward in ((estimate.low, 1 + 1e-9), (estimate.high, 1 - 1e-9)):
        assert p_value(end * inward) > 1 - level
        assert p_value(end / inward) <= 1 - level
    assert p_value(estimate.value * (1 + 1e-9)) > 0.9


def test_five_values_get_hodges_lehmann_with_a_t_interval() -> None:
    data = [1.0, 1.1, 1.2, 1.5, 1.9]
    logs = np.log(data)
    averages = [(a + b) / 2 for i, a in enumerate(logs) for b in logs[i:]]
    oracle = scipy.stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    estimate = stats.estimate(data)
    assert estimate.value == pytest.approx(np.exp(np.median(averages)))
    assert (estimate.low, estimate.high) == pytest.approx((np.exp(oracle.low), np.exp(oracle.high)))
    ranked = stats.estimate(data, level=0.9375)  # what the ranks of five values can do
    assert (ranked.low, ranked.high) == pytest.approx((1.0, 1.9))


@pytest.mark.parametrize("counts", [(2, 2), (3, 3), (4, 9), (2, 4)])
def test_few_on_a_side_get_welchs_interval_on_logs(counts: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(counts))
    a, b = lognormal(rng, 0.05, counts[0]), lognormal(rng, 0.02, counts[1], 1.1)
    oracle = scipy.stats.ttest_ind(np.log(b), np.log(a), equal_var=False).confidence_interval(0.95)
    ratio = stats.ratio(a, b)
    assert (ratio.low, ratio.high) == pytest.approx((np.exp(oracle.low), np.exp(oracle.high)))
    assert ratio.counts == counts


@pytest.mark.parametrize(
    ("counts", "level"), [((5, 5), 0.95), ((5, 5), 0.9), ((7, 5), 0.95), ((5, 25), 0.95)]
)
def test_the_shift_interval_is_what_mann_whitney_does_not_reject(
    counts: tuple[int, int], level: float
) -> None:
    rng = np.random.default_rng(sum(counts))
    a, b = lognormal(rng, 0.05, counts[0]), lognormal(rng, 0.05, counts[1], 1.1)
    ratio = stats.ratio(a, b, level)

    def p_value(factor: float) -> float:
        return float(scipy.stats.mannwhitneyu(b, np.array(a) * factor, method="exact").pvalue)

    for end, inward in ((ratio.low, 1 + 1e-9), (ratio.high, 1 - 1e-9)):
        assert p_value(end * inward) > 1 - level
        assert p_value(end / inward) <= 1 - level
    assert ratio.value == pytest.approx(np.exp(np.median(np.subtract.outer(np.log(b), np.log(a)))))


def test_large_samples_use_normal_ranks_close_to_the_exact_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = ranks.rank_sum(40, 40, 0.95)[0], ranks.signed_rank(60, 0.95)
    monkeypatch.setattr(ranks, "_EXACT", 10)
    for cached in (ranks._rank, ranks.rank_sum, ranks.signed_rank):
        cached.cache_clear()
    normal = ranks.rank_sum(40, 40, 0.95)[0], ranks.signed_rank(60, 0.95)
    for cached in (ranks._rank, ranks.rank_sum, ranks.signed_rank):
        cached.cache_clear()
    assert normal == pytest.approx(exact, abs=2)


@pytest.mark.parametrize(("events", "trials"), [(0, 20), (1, 20), (7, 60), (20, 20)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_clopper_pearson(events: int, trials: int, level: float) -> None:
    oracle = scipy.stats.binomtest(events, trials).proportion_ci(level, method="exact")
    assert stats.clopper_pearson(events, trials, level) == pytest.approx((oracle.low, oracle.high))


@pytest.mark.parametrize(("events", "trials"), [(0, 0), (3, 2), (-1, 5)])
def test_a_rate_needs_trials(events: int, trials: int) -> None:
    with pytest.raises(ValueError, match="is not a rate"):
        stats.clopper_pearson(events, trials)


# Odd inputs


def test_one_value_has_no_interval() -> None:
    one = stats.estimate([0.3])
    assert one.value == 0.3
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    both = stats.ratio([2.0], [3.0])
    assert both.value == pytest.approx(1.5)
    assert math.isnan(both.low)
    assert stats.judge([2.0], [3.0]).verdict is Verdict.UNDECIDED


def test_nothing_is_not_a_value() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        stats.estimate([])
    with pytest.raises(ValueError, match="at least one value"):
        stats.ratio([], [1.0])
    with pytest.raises(ValueError, match="as many values"):
        stats.paired_ratio([1.0, 2.0], [1.0])


def test_exact_values_stay_exact() -> None:
    estimate = stats.estimate([4097.0] * 3)
    assert (estimate.value, estimate.low, estimate.high) == (4097.0, 4097.0, 4097.0)
    same = stats.judge([4097.0] * 3, [4097.0] * 3)
    assert (same.ratio.value, same.verdict) == (1.0, Verdict.EQUIVALENT)


def test_an_error_of_zero_is_estimated_on_the_linear_scale() -> None:
    data = [0.0, 0.2, 0.1]
    oracle = scipy.stats.ttest_1samp(data, 0).confidence_interval(0.95)
    estimate = stats.estimate(data)
    assert estimate.value == pytest.approx(0.1)
    assert (estimate.low, estimate.high) == pytest.approx((oracle.low, oracle.high))


def test_a_ratio_with_zeros_is_the_shift_over_the_baselines_size() -> None:
    ratio = stats.ratio([-2.0, -2.1, -1.9], [-2.5, -2.6, -2.4])
    assert ratio.value == pytest.approx(0.75)  # 0.5 lower than −2
    assert ratio.high < 1
    assert stats.ratio([0.0, 0.0], [0.0, 0.0]).value == 1.0
    grown = stats.judge([0.0, 0.0, 0.0], [0.1, 0.11, 0.12])
    assert (grown.ratio.value, grown.verdict) == (math.inf, Verdict.REGRESSED)


def test_a_value_that_is_not_finite_decides_nothing() -> None:
    assert math.isnan(stats.estimate([1.0, 2.0, math.inf]).high)
    assert stats.judge([1.0, 1.0, math.nan], [2.0, 2.0, 2.0]).verdict is Verdict.UNDECIDED


def test_better_is_lower_or_higher() -> None:
    with pytest.raises(ValueError, match="lower or higher"):
        stats.judge([1.0, 1.0], [1.0, 1.0], better="faster")


# Coverage: fixed seeds, and bounds of three standard errors below the stated level

TRIALS = 1500
ALLOWED = 3 * math.sqrt(0.05 * 0.95 / TRIALS)


@pytest.mark.parametrize("count", [2, 4, 5, 6, 9])
def test_an_estimates_interval_covers(count: int) -> None:
    rng = np.random.default_rng(count)
    outcomes = [stats.estimate(lognormal(rng, 0.05, count)) for _ in range(TRIALS)]
    covered = sum(between(1.0, each.low, each.high) for each in outcomes) / TRIALS
    assert covered >= 0.95 - ALLOWED
    assert covered <= 0.985  # and is not wide for nothing


@pytest.mark.parametrize("counts", [(1, 5), (2, 2), (3, 3), (4, 4), (5, 5), (5, 25), (8, 8)])
def test_a_ratios_interval_covers(counts: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(counts))
    covered = 0
    for _ in range(TRIALS):
        ratio = stats.ratio(lognormal(rng, 0.05, counts[0]), lognormal(rng, 0.05, counts[1], 1.2))
        covered += between(1.2, ratio.low, ratio.high)
    assert covered / TRIALS >= 0.95 - ALLOWED
    assert covered / TRIALS <= 0.99


def test_a_paired_ratio_is_blind_to_what_a_pair_has_in_common() -> None:
    rng = np.random.default_rng(4)
    covered = narrower = 0
    for _ in range(400):
        shared = np.exp(rng.normal(0, 0.1, 6))
        a = list(shared * lognormal(rng, 0.01, 6))
        b = list(shared * lognormal(rng, 0.01, 6, 1.05))
        paired, unpaired = stats.paired_ratio(a, b), stats.ratio(a, b)
        covered += between(1.05, paired.low, paired.high)
        narrower += paired.high - paired.low < unpaired.high - unpaired.low
    assert covered >= 0.917 * 400  # 95 % less three standard errors
    assert narrower == 400


# Replicates under noise: each value is the median over the calls of one process

Noise = Callable[[np.random.Generator, int], "np.ndarray"]
CALLS = 40


def gaussian(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.normal(0, 0.02, (count, 1)) + rng.normal(0, 0.01, (count, CALLS))


def spikes(rng: np.random.Generator, count: int) -> np.ndarray:
    whole = 0.2 * (rng.random((count, 1)) < 0.1)  # a tenth of all processes is 20 % slower
    calls = 0.5 * (rng.random((count, CALLS)) < 0.05)
    return gaussian(rng, count) + whole + calls


def two_modes(rng: np.random.Generator, count: int) -> np.ndarray:
    return gaussian(rng, count) * 0.2 + 0.1 * rng.integers(0, 2, (count, 1))


def autoregressive(rng: np.random.Generator, count: int) -> np.ndarray:
    calls = rng.normal(0, 0.02, (count, CALLS))
    for call in range(1, CALLS):
        calls[:, call] = 0.8 * calls[:, call - 1] + 0.6 * calls[:, call]
    return rng.normal(0, 0.01, (count, 1)) + calls


def drift(rng: np.random.Generator, count: int) -> np.ndarray:
    return gaussian(rng, count) * 0.25 + np.linspace(0, 0.03, count)[:, None]


NOISES = {noise.__name__: noise for noise in (gaussian, spikes, two_modes, autoregressive, drift)}


def campaign(
    noise: Noise, rng: np.random.Generator, count: int, change: float = 0.0
) -> tuple[list[float], list[float]]:
    """Processes of both sides alternate, in a random order inside each pair."""
    run_values = np.exp(np.median(noise(rng, 2 * count), axis=1)).reshape(count, 2)
    swapped = rng.random(count) < 0.5
    first = np.where(swapped, run_values[:, 1], run_values[:, 0])
    second = np.where(swapped, run_values[:, 0], run_values[:, 1])
    return first.tolist(), (second * (1 + change)).tolist()


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("count", sampled([5, 3, 7], 3))
@pytest.mark.parametrize("paired", [False, True])
def test_identical_code_is_rarely_told_apart(name: str, count: int, paired: bool) -> None:
    rng, trials = np.random.default_rng(1), 400
    outcomes = [
        stats.judge(*campaign(NOISES[name], rng, count), BARE, paired=paired).verdict
        for _ in range(trials)
    ]
    alarms = sum(verdict in MIRROR for verdict in outcomes) / trials
    assert alarms <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


@pytest.mark.parametrize("name", NOISES)
def test_a_slow_down_well_above_the_noise_is_found(name: str) -> None:
    rng, trials = np.random.default_rng(2), 200
    outcomes = [stats.judge(*campaign(NOISES[name], rng, 7, 0.25)).verdict for _ in range(trials)]
    assert outcomes.count(Verdict.REGRESSED) >= 0.95 * trials
    assert Verdict.IMPROVED not in outcomes
    assert Verdict.EQUIVALENT not in outcomes


# Verdicts


def test_the_five_ways_a_ratio_can_lie() -> None:
    def told(value: float, low: float, high: float, **options: float) -> Verdict:
        return stats.verdict(Ratio(value=value, low=low, high=high, counts=(5, 5)), **options)

    assert told(1.05, 1.01, 1.09) is Verdict.REGRESSED
    assert told(0.95, 0.91, 0.99) is Verdict.IMPROVED
    assert told(0.9705, 0.96, 0.98) is Verdict.IMPROVED  # below 1/1.03, though not below 0.97
    assert told(1.01, 0.99, 1.02) is Verdict.EQUIVALENT
    assert told(1.05, 0.99, 1.11) is Verdict.UNDECIDED
    assert told(1.02, 1.01, 1.04) is Verdict.UNDECIDED  # certain, and below the threshold
    assert told(1.05, 1.01, 1.09, threshold=0.06) is Verdict.UNDECIDED
    assert told(1.05, 1.01, 1.09, threshold=0.06, margin=0.1) is Verdict.EQUIVALENT


def test_higher_may_be_better() -> None:
    accuracy = [0.90, 0.91, 0.92], [0.70, 0.71, 0.72]
    assert stats.judge(*accuracy, better="higher").verdict is Verdict.REGRESSED
    assert stats.judge(*accuracy, better="lower").verdict is Verdict.IMPROVED


def test_a_change_below_the_floor_is_none() -> None:
    a, b = [5.0e-6, 5.01e-6, 5.02e-6], [5.5e-6, 5.51e-6, 5.52e-6]
    assert stats.judge(a, b, base=5e-6).verdict is Verdict.REGRESSED
    floor = Rule(floor=1e-6)
    assert stats.judge(a, b, floor, base=5e-6).verdict is Verdict.EQUIVALENT
    assert stats.judge(b, a, floor, base=5.5e-6).verdict is Verdict.EQUIVALENT
    assert stats.judge(a, b, floor, base=5e-5).verdict is Verdict.REGRESSED


def test_equivalence_is_tested_at_the_lower_level() -> None:
    rng = np.random.default_rng(8)
    wider = 0
    for _ in range(50):
        a, b = lognormal(rng, 0.018, 6), lognormal(rng, 0.018, 6)
        whole = stats.ratio(a, b)
        judgement = stats.judge(a, b)
        if judgement.verdict is Verdict.EQUIVALENT:
            tested = stats.ratio(a, b, 0.9)
            assert 1 / 1.03 < tested.low <= tested.high < 1.03
            wider += not (whole.low > 1 / 1.03 and whole.high < 1.03)
    assert wider > 0  # the 95 % interval alone would have left these undecided


def test_a_true_change_at_the_margin_is_rarely_called_equivalent() -> None:
    rng, trials = np.random.default_rng(9), 1000
    outcomes = [
        stats.judge(lognormal(rng, 0.01, 5), lognormal(rng, 0.01, 5, 1.03)).verdict
        for _ in range(trials)
    ]
    assert (
        outcomes.count(Verdict.EQUIVALENT) <= (0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)) * trials
    )


# Planning


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7, 10])
def test_the_smallest_detectable_change_is_found_in_nine_of_ten_trials(count: int) -> None:
    rng, trials, noise = np.random.default_rng(count), 800, 0.02
    change = power.smallest_detectable(noise, count)
    actual = 0
    for _ in range(trials):
        a, b = lognormal(rng, noise, count), lognormal(rng, noise, count, 1 + change)
        actual += stats.ratio(a, b).low > 1
    assert actual / trials == pytest.approx(0.9, abs=3 * math.sqrt(0.09 / trials) + 0.01)


def test_with_a_threshold_the_estimate_has_to_pass_it_too() -> None:
    rng, trials, noise = np.random.default_rng(5), 800, 0.01
    change = power.smallest_detectable(noise, 8, threshold=0.03)
    outcomes = [
        stats.judge(lognormal(rng, noise, 8), lognormal(rng, noise, 8, 1 + change)).verdict
        for _ in range(trials)
    ]
    assert outcomes.count(Verdict.REGRESSED) / trials == pytest.approx(0.9, abs=0.04)
    assert change > power.smallest_detectable(noise, 8)


@pytest.mark.parametrize("noise", [0.005, 0.01, 0.02, 0.05])
@pytest.mark.parametrize("change", [0.02, 0.05, 0.1])
def test_replicates_needed_are_the_fewest_that_detect_the_change(
    noise: float, change: float
) -> None:
    count = power.replicates_needed(noise, change)
    assert count is not None
    assert power.smallest_detectable(noise, count) <= change + 1e-9
    if count > 2:
        assert power.smallest_detectable(noise, count - 1) > change


def test_what_cannot_be_planned() -> None:
    assert power.replicates_needed(math.nan, 0.03) is None
    assert power.replicates_needed(0.02, 0.0) is None
    assert power.replicates_needed(1.0, 0.001) is None  # millions
    assert power.replicates_needed(0.0, 0.03) == 2
    assert power.smallest_detectable(0.02, 1) == math.inf
    assert math.isnan(power.smallest_detectable(math.nan, 5))
    assert power.smallest_detectable(0.0, 5) == 0.0


def test_undecided_says_how_many_replicates_are_needed() -> None:
    a, b = [1.00, 1.03, 0.98, 1.01, 0.97], [1.02, 0.99, 1.05, 1.00, 1.04]
    judgement = stats.judge(a, b)
    assert judgement.verdict is Verdict.UNDECIDED
    assert judgement.replicates_needed == power.replicates_needed(stats.spread(a, b), 0.03)
    assert judgement.replicates_needed is not None
    assert judgement.replicates_needed > 5
    paired = stats.judge(a, b, paired=True)
    noise = stats.spread([y / x for x, y in zip(a, b, strict=True)]) / math.sqrt(2)
    assert paired.replicates_needed == power.replicates_needed(noise, 0.03)
    assert paired.replicates_needed is not None
    a = [1.0, 1.01, 1.02] * 3
    settled = stats.judge(a, [1.0299 * value for value in a])
    assert settled.verdict is Verdict.UNDECIDED
    assert settled.replicates_needed is None  # more of the same would not help


def test_the_spread_is_pooled_over_the_sides() -> None:
    a, b = [1.0, 1.1, 1.3], [5.0, 5.2]
    squares = 2 * np.var(np.log(a), ddof=1) + np.var(np.log(b), ddof=1)
    assert stats.spread(a, b) == pytest.approx(math.sqrt(squares / 3))
    assert stats.spread(a, [7.0]) == pytest.approx(np.std(np.log(a), ddof=1))
    assert stats.spread([-1.0, -3.0]) == pytest.approx(math.sqrt(2) / 2)
    assert math.isnan(stats.spread([1.0], [2.0]))


# Properties


@given(values)
def test_an_estimate_lies_in_its_interval(data: list[float]) -> None:
    estimate = stats.estimate(data)
    assert min(data) * (1 - 1e-12) <= estimate.value <= max(data) * (1 + 1e-12)
    if len(data) > 1:
        assert estimate.low <= estimate.value <= estimate.high


@given(several, several, st.floats(1e-9, 1e9), st.randoms())
def test_unit_and_order_do_not_matter(
    a: list[float], b: list[float], factor: float, random: st.DataObject
) -> None:
    before = stats.ratio(a, b)
    scaled = stats.ratio([factor * x for x in a], [factor * x for x in b])
    ends = before.value, before.low, before.high
    assert (scaled.value, scaled.low, scaled.high) == pytest.approx(ends)
    random.shuffle(a)
    random.shuffle(b)
    assert stats.ratio(a, b) == before


@given(several, several)
def test_exchanged_sides_give_the_inverse_ratio(a: list[float], b: list[float]) -> None:
    there, back = stats.ratio(a, b), stats.ratio(b, a)
    assert back.value == pytest.approx(1 / there.value)
    assert back.low == pytest.approx(1 / there.high)
    assert back.high == pytest.approx(1 / there.low)


@given(several, several, st.sampled_from(["lower", "higher"]))
def test_exchanged_sides_get_the_mirrored_verdict(
    a: list[float], b: list[float], better: str
) -> None:
    result = partial(stats.judge, better=better)
    equivalence = stats.ratio(a, b, 0.9)
    edges = (1 / 1.03, 1.0, 1.03)
    for end in (*_ends(stats.ratio(a, b)), *_ends(equivalence)):
        assume(all(abs(end / edge - 1) > 1e-9 for edge in edges) or a == b)
    there, back = result(a, b), result(b, a)
    assert back.verdict is MIRROR.get(there.verdict, there.verdict)
    assert back.replicates_needed == there.replicates_needed


def _ends(ratio: Ratio) -> tuple[float, float, float]:
    return ratio.value, ratio.low, ratio.high


@given(several, st.floats(0.9, 1.1), st.floats(0.001, 0.3), st.floats(0.001, 0.3))
def test_a_wider_margin_only_ever_settles_doubt(
    a: list[float], change: float, one: float, other: float
) -> None:
    b = [change * x for x in a]
    narrow = stats.judge(a, b, Rule(margin=min(one, other))).verdict
    wide = stats.judge(a, b, Rule(margin=max(one, other))).verdict
    assert narrow is wide or (narrow, wide) == (Verdict.UNDECIDED, Verdict.EQUIVALENT)


@given(several, several, st.floats(0.0, 0.3), st.floats(0.0, 0.3))
def test_a_higher_threshold_never_finds_more(
    a: list[float], b: list[float], one: float, other: float
) -> None:
    low = stats.judge(a, b, Rule(threshold=min(one, other))).verdict
    high = stats.judge(a, b, Rule(threshold=max(one, other))).verdict
    assert high is low or high not in MIRROR


@given(several, st.floats(0.5, 2.0), st.data())
def test_a_factor_common_to_a_pair_cancels(
    a: list[float], change: float, data: st.DataObject
) -> None:
    b = [x * change * data.draw(st.floats(0.9, 1.1)) for x in a]
    factors = [data.draw(st.floats(0.1, 10)) for _ in a]
    moved = [x * f for x, f in zip(a, factors, strict=True)]
    also = [x * f for x, f in zip(b, factors, strict=True)]
    before, after = stats.paired_ratio(a, b), stats.paired_ratio(moved, also)
    assert _ends(after) == pytest.approx(_ends(before))


@given(several, several)
def test_a_higher_level_is_a_wider_interval(a: list[float], b: list[float]) -> None:
    narrow, wide = stats.ratio(a, b, 0.8), stats.ratio(a, b, 0.99)
    assert wide.low <= narrow.low * (1 + 1e-12)
    assert wide.high >= narrow.high * (1 - 1e-12)
