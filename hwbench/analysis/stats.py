"""Pure statistics: replicates → estimate with interval; two sides → ratio, interval, verdict.

The sample is always the *replicate*, a fresh process: calls inside one process agree with each
other and not with the next process, so an interval over calls says nothing about the next run.

Positive values are treated on logs, so that a ratio and its inverse are told alike; where one is
not positive (an error can be exactly 0), all are treated on the linear scale. Up to four values a
side: Student's and Welch's t. From five: Hodges–Lehmann with exact ranks, which one spiked
replicate cannot carry away. A *rank* k here is the largest at which the interval from the k-th
smallest to the k-th largest keeps its level; 0 where none does.

The sampling loop's part (``median``, ``median_interval``, ``relative_width``) needs the standard
library only; scipy is imported when a quantile of t or beta is first asked for.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hwbench.analysis.power import FEW, replicates_needed, student
from hwbench.analysis.ranks import median_rank, rank_sum, signed_rank
from hwbench.records import Estimate, Ratio, Verdict

Interval = tuple[float, float, float]  # centre, low, high


def median(values: Sequence[float]) -> float:
    """The median; the mean of the middle two when their number is even."""
    return float(values[0] if len(values) == 1 else statistics.median(values))


def variance(values: Sequence[float]) -> float:
    """The sample variance of two values or more; exactly 0 where all are the same."""
    if min(values) == max(values):
        return 0.0
    mean = statistics.fmean(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """The order-statistic interval of the median, by exact binomial ranks; it assumes no shape.

    None where no ranks reach the level, which at 95 % is below six values.
    """
    rank = median_rank(len(values), level)
    if rank == 0:
        return None
    ordered = sorted(values)
    return float(ordered[rank - 1]), float(ordered[-rank])


def relative_width(values: Sequence[float]) -> float:
    """The whole width of the median's 95 % interval over the median; infinite where it has none."""
    interval = median_interval(values)
    if interval is None or median(values) == 0:
        return math.inf
    return (interval[1] - interval[0]) / abs(median(values))


def estimate(replicate_values: Sequence[float], level: float = 0.95) -> Estimate:
    """One value for a case, with its interval over replicates.

    Up to four values: the mean with its t interval. From five: Hodges–Lehmann (the median of all
    pair averages) with exact signed-rank ranks; where these cannot reach the level (five values at
    95 %: they reach 93.75 %) the interval is t. One value, or one that is not finite, has no
    interval: ``low`` and ``high`` are nan.

    Raises:
        ValueError: there are no values.
    """
    values = [float(value) for value in replicate_values]
    if not values:
        raise ValueError("An estimate needs at least one value.")
    if len(values) == 1 or not all(map(math.isfinite, values)):
        centre, low, high = median(values), math.nan, math.nan
    elif min(values) == max(values):  # exact quantities stay exact
        centre = low = high = values[0]
    elif min(values) > 0:
        centre, low, high = map(_exp, _location([math.log(value) for value in values], level))
    else:
        centre, low, high = _location(values, level)
    return Estimate(value=centre, low=low, high=high, count=len(values), level=level)


def spread(*sides: Sequence[float]) -> float:
    """The replicates' standard deviation on logs, pooled over the sides; nan where unknown.

    A side of one value tells nothing; one with values that are not positive counts with its
    standard deviation over the size of its mean.
    """
    squares, freedom = 0.0, 0
    for values in sides:
        if len(values) < 2:
            continue
        if not all(map(math.isfinite, values)):
            return math.nan
        if min(values) > 0:
            deviation = math.sqrt(variance([math.log(value) for value in values]))
        elif (deviation := math.sqrt(variance(values))) > 0:
            deviation /= abs(statistics.fmean(values)) or math.nan
        squares += (len(values) - 1) * deviation**2
        freedom += len(values) - 1
    return math.sqrt(squares / freedom) if freedom else math.nan


def ratio(
    baseline_values: Sequence[float], new_values: Sequence[float], level: float = 0.95
) -> Ratio:
    """New over baseline, with its interval, from replicate values that form no pairs.

    Up to four values on a side: Welch's t. From five on both: the Hodges–Lehmann shift (the median
    of all differences) with exact Mann–Whitney ranks. Where a side has one value, the other side's
    spread is taken for both; with one on each there is no interval (nan). On the linear scale the
    shift is divided by the size of the baseline's centre, which is then taken as exact.

    Raises:
        ValueError: a side has no values.
    """
    return _quotient(baseline_values, new_values, lambda a, b: _shift(a, b, level), level)


def paired_ratio(
    baseline_values: Sequence[float], new_values: Sequence[float], level: float = 0.95
) -> Ratio:
    """New over baseline where the values belong together one by one: their quotients, estimated.

    Raises:
        ValueError: the sides differ in length, or have no values.
    """
    if len(baseline_values) != len(new_values):
        raise ValueError("A paired ratio needs as many values on each side.")

    def shift(first: list[float], second: list[float]) -> Interval:
        return _location([b - a for a, b in zip(first, second, strict=True)], level)

    return _quotient(baseline_values, new_values, shift, level)


def _quotient(
    baseline: Sequence[float],
    new: Sequence[float],
    shift: Callable[[list[float], list[float]], Interval],
    level: float,
) -> Ratio:
    if not baseline or not new:
        raise ValueError("A ratio needs at least one value on each side.")
    first, second = [float(value) for value in baseline], [float(value) for value in new]
    if not all(map(math.isfinite, first + second)):
        centre = low = high = math.nan
    elif min(first + second) > 0:
        logs = [math.log(value) for value in first], [math.log(value) for value in second]
        centre, low, high = map(_exp, shift(*logs))
    else:
        base = abs(_location(first, level)[0])
        centre, low, high = (as_quotient(change, base) for change in shift(first, second))
    counts = (len(first), len(second))
    return Ratio(value=centre, low=low, high=high, counts=counts, level=level)


def as_quotient(change: float, base: float) -> float:
    """One plus a change over the size of what changed, which may lie below zero."""
    if base > 0:
        return 1 + change / base
    return 1 + (math.copysign(math.inf, change) if change else 0)  # from 0: nothing, or anything


def _location(values: Sequence[float], level: float) -> Interval:
    """Centre and interval of one sample, on the scale that it is given in."""
    count = len(values)
    if count == 1:
        return values[0], math.nan, math.nan
    mean = statistics.fmean(values)
    half = student(count - 1, level) * math.sqrt(variance(values) / count)
    if count <= FEW:
        return mean, mean - half, mean + half
    averages = sorted((a + b) / 2 for i, a in enumerate(values) for b in values[i:])
    centre, rank = median(averages), signed_rank(count, level)
    if rank == 0:
        return centre, mean - half, mean + half
    return centre, averages[rank - 1], averages[-rank]


def _shift(first: list[float], second: list[float], level: float) -> Interval:
    """The second sample's centre minus the first's, with its interval."""
    few = min(len(first), len(second)) <= FEW
    rank = 0 if few else rank_sum(len(first), len(second), level)[0]
    if rank == 0:
        return _welch(first, second, level)
    differences = sorted(b - a for a in first for b in second)
    return median(differences), differences[rank - 1], differences[-rank]


def _welch(first: list[float], second: list[float], level: float) -> Interval:
    centre = statistics.fmean(second) - statistics.fmean(first)
    if len(first) == len(second) == 1:
        return centre, math.nan, math.nan
    sides = [side if len(side) > 1 else other for side, other in ((first, second), (second, first))]
    a, b = (variance(k) / len(s) for k, s in zip(sides, (first, second), strict=True))
    if a + b == 0:
        return centre, centre, centre
    if 1 in (len(first), len(second)):  # one spread for both sides: Student
        freedom = len(sides[0]) - 1.0
    else:
        share = a / (a + b)
        freedom = 1 / (share**2 / (len(first) - 1) + (1 - share) ** 2 / (len(second) - 1))
    half = student(freedom, level) * math.sqrt(a + b)
    return centre, centre - half, centre + half


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The smallest changes that count, relative and absolute, and the largest that is none."""

    threshold: float = 0.03
    margin: float = 0.03
    floor: float = 0.0  # in the unit of the base that is given with the values
    level: float = 0.95


_DEFAULT = Rule()


@dataclass(frozen=True)
class Judgement:
    """The verdict on two samples, with the ratio that it rests on."""

    verdict: Verdict
    ratio: Ratio
    replicates_needed: int | None = None


def verdict(
    measured: Ratio,
    *,
    equivalence: Ratio | None = None,
    threshold: float = 0.03,
    margin: float = 0.03,
    better: str = "lower",
    base: float | None = None,
    floor: float = 0.0,
) -> Verdict:
    """Regressed, improved, equivalent, or undecided.

    A change counts when the interval excludes "no change", the estimate passes the threshold and,
    where ``base`` is given, a change of that size passes the absolute floor. A threshold of 3 % is
    1.03 upwards and 1/1.03 downwards, so that exchanged sides get the mirrored verdict. Equivalent
    needs proof as well: two one-sided tests, which is an interval inside the margin.

    Args:
        measured: new over baseline.
        equivalence: the same ratio with the interval of the equivalence test, 90 % where
            ``measured`` has 95 %; without it ``measured`` serves, which asks for more.
        threshold: the smallest relative change that counts.
        margin: the largest relative change that is none.
        better: ``lower`` or ``higher``.
        base: the size of the baseline, in the unit of ``floor``.
        floor: the smallest absolute change that counts; what is below it is inside the margin.
    """
    if better not in ("lower", "higher"):
        raise ValueError(f"better is lower or higher, not {better!r}.")

    def below_floor(value: float) -> bool:
        return base is not None and abs(value - 1) * abs(base) < floor

    def inside(value: float) -> bool:
        return 1 / (1 + margin) < value < 1 + margin or below_floor(value)

    counts = not below_floor(measured.value)
    if counts and measured.low > 1 and measured.value > 1 + threshold:
        return Verdict.REGRESSED if better == "lower" else Verdict.IMPROVED
    if counts and measured.high < 1 and measured.value < 1 / (1 + threshold):
        return Verdict.IMPROVED if better == "lower" else Verdict.REGRESSED
    tested = equivalence or measured
    same = inside(tested.low) and inside(tested.high)
    return Verdict.EQUIVALENT if same else Verdict.UNDECIDED


def judge(
    baseline_values: Sequence[float],
    new_values: Sequence[float],
    rule: Rule = _DEFAULT,
    *,
    better: str = "lower",
    paired: bool = False,
    base: float | None = None,
) -> Judgement:
    """The verdict on two sides' replicate values, with the ratio that it rests on.

    Where it is undecided, ``replicates_needed`` says how many a side would show a change of the
    threshold at the spread seen here. It is None where the spread is unknown, and where there are
    as many already: then the change is too near the threshold to be told from it.
    """
    compared = paired_ratio if paired else ratio
    measured = compared(baseline_values, new_values, rule.level)
    decision = verdict(
        measured,
        equivalence=compared(baseline_values, new_values, 2 * rule.level - 1),
        threshold=rule.threshold,
        margin=rule.margin,
        better=better,
        base=base,
        floor=rule.floor,
    )
    needed = None
    if decision is Verdict.UNDECIDED:
        noise = spread(baseline_values, new_values)
        if paired and min(*baseline_values, *new_values) > 0:  # a side's, if it alone made theirs
            quotients = [b / a for a, b in zip(baseline_values, new_values, strict=True)]
            noise = spread(quotients) / math.sqrt(2)
        needed = replicates_needed(noise, min(rule.threshold, rule.margin), level=rule.level)
        if needed is not None and needed <= min(measured.counts):
            needed = None
    return Judgement(decision, measured, needed)


def clopper_pearson(events: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """The exact two-sided interval of a rate; for a one-sided 95 % bound ask for a level of 0.9.

    Raises:
        ValueError: there are no trials, or not between 0 and ``trials`` events.
    """
    from scipy import special

    if trials < 1 or not 0 <= events <= trials:
        raise ValueError(f"{events} of {trials} is not a rate.")
    chance, misses = (1 + level) / 2, trials - events
    low = float(special.betaincinv(events, misses + 1, 1 - chance)) if events else 0.0
    high = float(special.betaincinv(events + 1, misses, chance)) if misses else 1.0
    return low, high


def _exp(value: float) -> float:
    return value if math.isnan(value) else math.exp(min(value, 709.0))
