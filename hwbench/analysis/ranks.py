"""Order statistics: the ranks at which an interval from sorted values keeps its level. Pure.

A *rank* k is the largest at which the interval from the k-th smallest to the k-th largest keeps
its level; 0 where none does.
"""

from __future__ import annotations

import math
import statistics
from fractions import Fraction
from functools import cache, lru_cache

_EXACT = 2500  # above so many values, pair averages or differences: normal ranks


@lru_cache(maxsize=4096)
def median_rank(count: int, level: float) -> int:
    """Among the values of one sample, for their median: exact binomial ranks."""
    if count > _EXACT:
        return math.floor((count - normal_quantile((1 + level) / 2) * math.sqrt(count)) / 2)
    allowed = math.floor(Fraction((1 - level) / 2) * 2**count)
    rank, term, below = 0, 1, 1  # below = 2^count · P(Binomial(count, ½) ≤ rank)
    while rank < count and below <= allowed:
        term = term * (count - rank) // (rank + 1)
        rank, below = rank + 1, below + term
    return rank


@lru_cache(maxsize=4096)
def signed_rank(count: int, level: float) -> int:
    """Among the pair averages of one sample: Wilcoxon's signed-rank statistic."""
    return _rank(tuple(2 * step for step in range(1, count + 1)), level)[0]


@lru_cache(maxsize=4096)
def rank_sum(first: int, second: int, level: float) -> tuple[int, float]:
    """Among the differences of two samples: Mann–Whitney's U; also the chance left on each side."""
    return _rank(tuple(second + step for step in range(1, first + 1)), level)


@cache
def _rank(bounds: tuple[int, ...], level: float) -> tuple[int, float]:
    """The rank of a statistic with a product form, and the probability outside of that rank.

    ``bounds`` are the u of its generating function Π (1 − q^u) / (1 − q^i), i = 1, 2, …
    """
    pairs = sum(bound - step for step, bound in enumerate(bounds, 1))
    if pairs > _EXACT:
        variance = sum(bound**2 - step**2 for step, bound in enumerate(bounds, 1)) / 12
        quantile = normal_quantile((1 + level) / 2)
        return math.floor(pairs / 2 - quantile * math.sqrt(variance)), (1 - level) / 2
    ways = [1] + [0] * (pairs // 2)  # orders in which the statistic is 0, 1, …
    for step, bound in enumerate(bounds, 1):
        for value in range(len(ways) - 1, bound - 1, -1):
            ways[value] -= ways[value - bound]
        for value in range(step, len(ways)):
            ways[value] += ways[value - step]
    orders = math.prod(bounds) // math.factorial(len(bounds))
    rank, below, allowed = 0, 0, math.floor(Fraction((1 - level) / 2) * orders)
    while below + ways[rank] <= allowed:  # half of all orders are in reach, allowed are fewer
        rank, below = rank + 1, below + ways[rank]
    return rank, below / orders


def normal_quantile(chance: float) -> float:
    """The value that a standard normal variable stays below with that chance."""
    return statistics.NormalDist().inv_cdf(chance)
