"""How far cases move from run to run when nothing changed; a change must be larger.

All on logs. A run's value of a case has two errors: that of its replicates, which more of them
average away, and that of its night, which they share and which no repetition in the same night
removes. The first is read from the spread inside all runs, the second from the spread of the
baseline runs' own values beyond the first.

Five runs alone would give five poor guesses of a spread, so all cases of a check inform each
other: a case's variance is drawn towards what is usual among them, the more the more alike they
are (the moderated variance of Smyth 2004, doi:10.2202/1544-6115.1027, with its prior by moments).
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from hwbench.analysis.power import FEW, student
from hwbench.analysis.stats import estimate, median, variance
from hwbench.records import Estimate

FEWEST_RUNS = 3  # baseline runs from which their spread is known well enough to use
FEWEST_OF_A_KIND = 4  # with so many cases a format has a usual noise of its own

# Of a difference of two normal values: two percentiles over their standard deviation, and the
# degrees of freedom that the squares of these quartiles keep, by simulation.
_LOWER, _UPPER = 0.31864 * math.sqrt(2), 1.15035 * math.sqrt(2)
_LOWER_INFORMATION, _UPPER_INFORMATION = 0.36, 0.8
_BIAS = 10.0  # the lower's square is too large by this over the number of differences
_ALIKE = 2.7 * 4  # over the root of that number: logs of their squares agree so well by chance
_SHIFT = 1.06  # variance of a Hodges–Lehmann shift over that of the means', under Gaussian noise
_MEDIAN = (1.0, 1.0, 1.0, 1.35, 1.19, 1.43, 1.29, 1.47, 1.34)  # the same of a median, by values
_TRUST = 0.5  # of the other cases' weight at most: few cases show badly how alike they are

Variance = tuple[float, float]  # with its degrees of freedom; (nan, 0) where unknown
Sample = Sequence[Sequence[float]]  # a case's values on logs, run by run


@dataclass(frozen=True)
class Noise:
    """A case's variances between the replicates of a run, and between runs beyond that."""

    within: Variance
    between: Variance
    runs: int  # of the baseline
    values: int  # of the baseline, in all its runs

    def error(self, count: int) -> Variance:
        """The variance of a change: ``count`` fresh replicates in one night over the baseline."""
        night, freedom_night = self.between
        inner, freedom_inner = self.within
        night *= 1 + 1 / self.runs
        inner *= _SHIFT * (1 / count + 1 / self.values)
        if math.isnan(night):
            return inner, freedom_inner
        if math.isnan(inner):
            return night, freedom_night
        return added((inner, freedom_inner), (night, freedom_night))

    def bound(self, count: int, chance: float) -> float:
        """The change that is exceeded with this chance, on one side, when nothing changed."""
        total, freedom = self.error(count)
        if math.isnan(total):
            return math.inf
        return student(freedom, 1 - 2 * chance) * math.sqrt(total)


def added(*parts: Variance) -> Variance:
    """The sum of independent variances, its degrees of freedom by Satterthwaite 1946.

    Where all are 0, the degrees of freedom are those of the first (doi:10.2307/3002019).
    """
    total = math.fsum(value for value, _ in parts)
    if total == 0:
        return 0.0, parts[0][1]
    return total, total**2 / math.fsum(value**2 / freedom for value, freedom in parts if value)


def noises(
    baselines: Sequence[Sample],
    new: Sequence[Sequence[float]],
    kinds: Sequence[Hashable] | None = None,
) -> list[Noise]:
    """The noise of each case, from its baseline runs' values and the new run's, on logs.

    Cases of one kind (of one format) differ from night to night by a similar amount.
    """
    inner = moderated([spread_within([*old, now]) for old, now in zip(baselines, new, strict=True)])
    spreads = _moderated_by([_between(old) for old in baselines], kinds or [None] * len(baselines))
    return [
        Noise(
            within=within,
            between=_beyond(spread, within, old),
            runs=len(old),
            values=sum(map(len, old)),
        )
        for old, within, spread in zip(baselines, inner, spreads, strict=True)
    ]


def estimates(
    samples: Sequence[Sequence[float]], nights: Sequence[Variance] = (), level: float = 0.95
) -> list[Estimate]:
    """Each case's value with an interval; all cases together estimate its variance.

    A spread from four replicates is mostly luck, and a table invites to pick the small ones: the
    narrowest of many intervals would hold the truth in half of the cases only.

    Args:
        samples: each case's values, replicate by replicate, in the unit of the quantity.
        nights: each case's variance between runs on logs, which is added; none where not known.
        level: of the intervals.

    One value, or one that is not above zero, is estimated by itself (``stats.estimate``).
    """
    repeated = [
        position
        for position, values in enumerate(samples)
        if len(values) > 1 and all(0 < value < math.inf for value in values)
    ]
    logs = {position: [math.log(value) for value in samples[position]] for position in repeated}
    inner = moderated([(variance(logs[each]), len(logs[each]) - 1.0) for each in repeated])
    results = [estimate(values, level) for values in samples]
    for position, within in zip(repeated, inner, strict=True):
        between = nights[position] if nights else (math.nan, 0.0)
        total, freedom = _of_value(within, between, len(logs[position]))
        half = student(freedom, level) * math.sqrt(total) if total else 0.0
        centre = results[position].value
        low, high = centre * math.exp(-half), centre * math.exp(min(half, 700.0))
        results[position] = replace(results[position], low=low, high=high)
    return results


def _of_value(within: Variance, between: Variance, count: int) -> Variance:
    """The variance of a case's value in one run, that between runs added where it is known."""
    inner = (within[0] * (_SHIFT if count > FEW else 1.0) / count, within[1])
    return inner if math.isnan(between[0]) or between[0] == 0 else added(inner, between)


def between_runs(samples: Sequence[Sample]) -> list[Variance]:
    """Each case's variance from run to run beyond that of its replicates, on logs.

    Args:
        samples: each case's values on logs, run by run; fewer than three runs tell nothing.
    """
    inner = moderated([spread_within(runs) for runs in samples])
    spreads = moderated([_between(runs) for runs in samples])
    return [
        _beyond(spread, within, runs) if len(runs) >= FEWEST_RUNS else (math.nan, 0.0)
        for spread, within, runs in zip(spreads, inner, samples, strict=True)
    ]


def _moderated_by(variances: Sequence[Variance], kinds: Sequence[Hashable]) -> list[Variance]:
    """Each variance drawn towards the usual one of its kind; small kinds are pooled."""
    counts = Counter(kinds)
    homes = [kind if counts[kind] >= FEWEST_OF_A_KIND else None for kind in kinds]
    settled = dict[int, Variance]()
    for home in dict.fromkeys(homes):
        where = [index for index, each in enumerate(homes) if each == home]
        settled |= zip(where, moderated([variances[index] for index in where]), strict=True)
    return [settled[index] for index in range(len(variances))]


def spread_within(runs: Sample) -> Variance:
    """The variance between replicates, from a quartile of all differences inside runs.

    The upper quartile tells the most. Where one replicate in five is spiked, four differences in
    ten hold it, and the upper quartile is that of spikes; the lower is still one of two clean
    values, until half of the values are wild (the idea of Qn, Rousseeuw and Croux 1993,
    doi:10.1080/01621459.1993.10476408). So where the two differ by more than chance makes them,
    the lower one is taken.
    """
    differences = sorted(
        abs(first - second)
        for values in runs
        for index, first in enumerate(values)
        for second in values[:index]
    )
    if not differences:
        return math.nan, 0.0
    count, freedom = len(differences), float(sum(len(values) - 1 for values in runs if values))
    upper = (quantile(differences, 0.75) / _UPPER) ** 2
    lower = (quantile(differences, 0.25) / _LOWER) ** 2 / (1 + _BIAS / count)
    if upper > lower * math.exp(_ALIKE / math.sqrt(count)):
        return lower, max(_LOWER_INFORMATION * freedom, 1.0)
    return upper, max(_UPPER_INFORMATION * freedom, 1.0)


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which that share of sorted values lies, between two of them in proportion."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return (1 - (place - below)) * ordered[below] + (place - below) * ordered[above]


def _between(runs: Sample) -> Variance:
    """Between runs: of their own values, replicates' part included."""
    if len(runs) < FEWEST_RUNS:
        return math.nan, 0.0
    return variance([median(values) for values in runs]), len(runs) - 1.0


def _beyond(spread: Variance, within: Variance, runs: Sample) -> Variance:
    """The variance between runs that the replicates' does not explain."""
    total, freedom = spread
    if math.isnan(total) or math.isnan(within[0]):
        return spread
    counts = [len(values) for values in runs]
    parts = [_MEDIAN[min(count, len(_MEDIAN) - 1)] / count for count in counts]
    return max(0.0, total - within[0] * statistics.fmean(parts)), freedom


def moderated(variances: Sequence[Variance]) -> list[Variance]:
    """Each variance drawn towards the usual one, more so the more alike they are.

    An unknown variance gets the usual value.
    """
    usable = [(value, freedom) for value, freedom in variances if freedom > 0]
    if not usable:
        return list(variances)
    usual, weight = _prior(usable)
    return [
        ((weight * usual + freedom * value) / (weight + freedom), weight + freedom)
        if freedom > 0
        else (usual if weight else math.nan, weight)
        for value, freedom in variances
    ]


def _prior(variances: Sequence[Variance]) -> Variance:
    """The usual variance, and how many degrees of freedom it is worth."""
    middle = statistics.median(value for value, _ in variances)
    if len(variances) == 1 or middle == 0:
        return middle, 0.0
    import numpy as np
    from scipy import special

    values, freedoms = (np.array(column) for column in zip(*variances, strict=True))
    half = freedoms / 2
    logs = np.log(np.maximum(values, 1e-5 * middle)) - special.digamma(half) + np.log(half)
    # The zeta function of Hurwitz at 2 is the trigamma function.
    excess = float(np.var(logs, ddof=1) - np.mean(special.zeta(2, half)))
    most = _TRUST * float(np.sum(freedoms) - np.mean(freedoms))
    weight = min(2 * _inverse_trigamma(excess), most) if excess > 0 else most
    centre = float(np.mean(logs) + special.digamma(weight / 2) - math.log(weight / 2))
    return math.exp(centre), weight


def _inverse_trigamma(value: float) -> float:
    """The x at which the trigamma function is ``value``, by Newton's method."""
    from scipy import special

    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(special.zeta(2, x))
        step = trigamma * (1 - trigamma / value) / float(-2 * special.zeta(3, x))
        x += step
        if abs(step) < 1e-8 * x:
            break
    return x
