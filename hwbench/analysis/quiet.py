"""Which replicates tell the relative time: those that the machine did not slow. Pure.

A neighbour on the same core, or a clock that falls, slows a machine for seconds or minutes, and no
counter tells of it. It slows what computes and what moves bytes by different factors, so that even
the relative time is another one. The dense layer shows it, which is timed around every block: where
it takes clearly longer than in the fastest replicates of the run, so did all else. Only dense
decides, never the format that is judged, so that no regression of a format can hide itself.
"""

from __future__ import annotations

from collections.abc import Iterable

from hwbench.analysis.stats import median
from hwbench.records import Result, Status

SLOWED = 1.10
"""A replicate was slowed when dense took so many times what it took in the fastest fifth."""

FEWEST = 3
"""Where fewer replicates would be left, all of them count."""

_FASTEST = 5  # of so many replicates the fastest are the measure


def slowed(results: Iterable[Result]) -> set[int]:
    """The replicates of one case that its relative time leaves out.

    Args:
        results: those of one case in one run; what has no relative time is passed over.
    """
    dense = {
        result.replicate: seconds
        for result in results
        if result.status is Status.OK and (seconds := dense_seconds(result)) is not None
    }
    ordered = sorted(dense.values())
    if len(ordered) <= FEWEST:
        return set()
    limit = SLOWED * ordered[len(ordered) // _FASTEST]
    found = {replicate for replicate, seconds in dense.items() if seconds > limit}
    return found if len(dense) - len(found) >= FEWEST else set()


def dense_seconds(result: Result) -> float | None:
    """Seconds of the dense layer around the blocks of a case, the median; None without any."""
    times, ratios = result.values("time_seconds"), result.values("relative_time")
    if not ratios or len(times) != len(ratios) or min(ratios) <= 0:
        return None
    return median([seconds / ratio for seconds, ratio in zip(times, ratios, strict=True)])
