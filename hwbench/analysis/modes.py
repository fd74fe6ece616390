"""Two modes of one case: replicates that fall into two groups far apart. Pure.

A process may get another memory layout, another clock or another code path than the next one, and
keeps it for all of its calls. The median of such replicates is a time that none of them has.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from hwbench.analysis.stats import median

FEWEST = 4
"""Replicates below which two modes cannot be told from scatter."""

FAR = 1.1
"""The slowest of the fast mode times this is the least that the slow mode takes."""

_CLEAR = 7.0
"""The gap over the scatter of either mode, on logs. Of sets of four normal values four in a hundred
have such a gap, of five less than one."""


@dataclass(frozen=True)
class Modes:
    """The median of each mode, and how many replicates ran in it."""

    fast: float
    slow: float
    counts: tuple[int, int]


def modes(values: Iterable[float]) -> Modes | None:
    """The two modes of positive values; None where there are not two, or too few values.

    The cut is at the widest gap between neighbours, as quotients.
    """
    ordered = sorted(values)
    if len(ordered) < FEWEST or ordered[0] <= 0:
        return None
    gaps = [math.log(after / before) for before, after in pairwise(ordered)]
    widest = max(gaps)
    cut = gaps.index(widest) + 1
    parts = ordered[:cut], ordered[cut:]
    scatter = max(math.log(part[-1] / part[0]) for part in parts)
    if widest < math.log(FAR) or widest < _CLEAR * scatter:
        return None
    return Modes(median(parts[0]), median(parts[1]), (len(parts[0]), len(parts[1])))
