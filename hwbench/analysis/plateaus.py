"""Plateaus of a bandwidth sweep: one a memory level. Pure.

numpy and ruptures are imported when a sweep is first looked at.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from hwbench.protocol import MemoryLevel, Moved

_PENALTY = 0.02  # that one more piece must save, in squared logarithms
_FLAT = 0.15  # the rates of a plateau lie within this share of their mean
_FEWEST = 3  # working sets make a plateau
_STEP = 1.1  # a level is at least so much faster than the next


@dataclass(frozen=True)
class Plateau:
    """Consecutive working sets that move at one rate."""

    least_bytes: int
    most_bytes: int
    bytes_per_second: float  # the best of them

    @property
    def middle_bytes(self) -> float:
        """The working set in its middle, on a logarithmic axis."""
        return math.sqrt(self.least_bytes * self.most_bytes)


def plateaus(points: Sequence[tuple[int, float]]) -> list[Plateau]:
    """The plateaus of (working set in bytes, bytes per second), the fastest first.

    The logarithms of the rates are cut into pieces of one rate each, by the cut that saves the most
    squared error for its pieces. A piece that is short or slopes lies between two levels; one
    before the fastest is the cost of the call and not of the memory; two of about the same rate
    are one level.
    """
    ordered = sorted(points)
    kept: list[Plateau] = []
    for first, last in _pieces([math.log(rate) for _, rate in ordered]):
        piece = ordered[first:last]
        rates = [rate for _, rate in piece]
        mean = fmean(rates)
        if len(piece) < _FEWEST or max(abs(rate - mean) for rate in rates) > _FLAT * mean:
            continue
        new = Plateau(piece[0][0], piece[-1][0], max(rates))
        while kept and new.bytes_per_second * _STEP > kept[-1].bytes_per_second:
            before = kept.pop()
            if before.bytes_per_second * _STEP > new.bytes_per_second:
                best = max(before.bytes_per_second, new.bytes_per_second)
                new = Plateau(before.least_bytes, new.most_bytes, best)
        kept.append(new)
    return kept


def named(level: Plateau, capacities: Mapping[str, int]) -> str:
    """The cache that holds the middle of a plateau; ``cache`` where the system lists none."""
    holding = {name: size for name, size in capacities.items() if size >= level.middle_bytes}
    return min(holding, key=lambda name: holding[name]) if holding else "cache"


def levels(sweep: Sequence[Moved], capacities: Mapping[str, int]) -> list[MemoryLevel]:
    """The memory levels that a sweep shows, the fastest first; the last is beyond all caches."""
    points = [(at.working_set_bytes, at.bytes_per_second) for at in sweep]
    kept, largest = plateaus(points), max(points)
    if not kept or kept[-1].most_bytes < largest[0]:
        kept.append(Plateau(largest[0], largest[0], largest[1]))
    return [
        MemoryLevel(
            name="memory" if level is kept[-1] else named(level, capacities),
            bytes_per_second=level.bytes_per_second,
            working_set_bytes=[level.least_bytes, level.most_bytes],
        )
        for level in kept
    ]


def _pieces(values: Sequence[float]) -> list[tuple[int, int]]:
    """Where to cut: the least squared error within pieces, and a penalty for each of them.

    Optimal, by ruptures: Killick et al. 2012, doi:10.1080/01621459.2012.737745.
    """
    import numpy as np
    import ruptures

    if len(values) < 2:
        return [(0, len(values))] if values else []
    signal = np.asarray(values, dtype=float).reshape(-1, 1)
    ends = ruptures.KernelCPD(kernel="linear", min_size=1).fit(signal).predict(pen=_PENALTY)
    return list(itertools.pairwise([0, *map(int, ends)]))
