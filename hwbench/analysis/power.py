"""How many replicates a change needs, and how small a change some replicates show. Pure.

It is the power of ``hwbench.analysis.stats.ratio``: of Welch's t up to four values a side, and of
Hodges–Lehmann with exact ranks from five.
"""

from __future__ import annotations

import math
from functools import lru_cache

from hwbench.analysis.ranks import normal_quantile, rank_sum

FEW = 4  # up to so many values on a side: t; from one more: Hodges–Lehmann
MOST_REPLICATES = 1000  # more than these are not worth asking for
_EFFICIENCY = 3 / math.pi  # of Hodges–Lehmann against the mean, under Gaussian noise
_SHARES = 12  # points at which the split of the variance between the sides is averaged over


def replicates_needed(
    noise: float, change: float, power: float = 0.9, level: float = 0.95
) -> int | None:
    """Replicates per side that show a change in ``power`` of all trials.

    ``noise`` is the replicates' standard deviation on logs (``spread``), ``change`` a fraction.
    None where the noise is unknown, there is no change, or more than ``MOST_REPLICATES`` would do.
    """
    distance = abs(math.log1p(change))
    if not math.isfinite(noise) or distance == 0:
        return None
    if noise == 0:
        return 2
    certain = (normal_quantile((1 + level) / 2) + normal_quantile(power)) * noise / distance
    fewest = 2 * certain * certain  # as if the spread were known
    for count in range(max(2, math.floor(min(fewest, MOST_REPLICATES))), MOST_REPLICATES + 1):
        if distance >= noise * _shift(count, power, level):
            return count
    return None


def smallest_detectable(
    noise: float, count: int, power: float = 0.9, level: float = 0.95, threshold: float = 0.0
) -> float:
    """The change that is found in ``power`` of all trials with ``count`` replicates a side.

    A fraction: 0.05 is 5 % slower. With a threshold the estimate has to pass that as well. Infinite
    where a side of one replicate gives no interval; nan where the noise is unknown.
    """
    if count < 2 or math.isnan(noise):
        return math.inf if count < 2 else math.nan
    scatter = math.sqrt(2 / (count if count <= FEW else count * _EFFICIENCY))
    passing = math.log1p(threshold) + normal_quantile(power) * scatter * noise if threshold else 0.0
    return math.expm1(max(_shift(count, power, level) * noise, passing))


@lru_cache(maxsize=4096)
def _shift(count: int, power: float, level: float) -> float:
    """The shift that is found with that power, in standard deviations of the replicates."""
    low, high = 0.0, 1.0
    while _power(count, high, level) < power:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if _power(count, middle, level) >= power else (middle, high)
    return high


def _power(count: int, distance: float, level: float) -> float:
    """Chance that ``ratio`` excludes "no change" at a shift of ``distance`` standard deviations.

    Under Gaussian noise. Up to four a side, Welch's degrees of freedom depend on how the variance
    happens to be split between the sides: a beta variable independent of the statistic, averaged
    over. From five, Hodges–Lehmann counts with its efficiency and the level its ranks really have.
    """
    from scipy import special

    if count > FEW:
        freedom, tail = 2 * (count - 1), rank_sum(count, count, level)[1]
        centrality = distance * math.sqrt(count * _EFFICIENCY / 2)
        return float(1 - special.nctdtr(freedom, centrality, special.stdtrit(freedom, 1 - tail)))
    missed, half = 0.0, (count - 1) / 2
    for step in range(_SHARES):
        share = special.betaincinv(half, half, (step + 0.5) / (2 * _SHARES))
        critical = student((count - 1) / (share**2 + (1 - share) ** 2), level)
        missed += special.nctdtr(2 * (count - 1), distance * math.sqrt(count / 2), critical)
    return float(1 - missed / _SHARES)


@lru_cache(maxsize=4096)
def student(freedom: float, level: float) -> float:
    """The quantile of Student's t that an interval of that level reaches out to."""
    from scipy import special

    return float(special.stdtrit(freedom, (1 + level) / 2))
