"""Verdicts on pairs of replicates of which some are spiked."""

from __future__ import annotations

import numpy as np
import pytest

from hwbench.analysis.compare import Entry, Reading, Side
from hwbench.analysis.pairs import judge_pairs
from hwbench.analysis.stats import Rule
from hwbench.records import Verdict

MICROSECOND = 1e-6
WALL = frozenset(["wall"])


def side(seconds: np.ndarray) -> Side:
    times = dict(enumerate(seconds.tolist()))
    return Side({"case": Entry("linear", readings={"time_seconds": Reading(times, WALL)})})


@pytest.mark.parametrize("size", [1.0, 100.0])
@pytest.mark.parametrize("spikes", [0, 3])
def test_a_change_below_the_floor_is_none_where_replicates_are_spiked(
    size: float, spikes: int
) -> None:
    """Five percent of five microseconds are less than the floor; of half a millisecond more."""
    rng = np.random.default_rng(3)
    first = size * 5 * MICROSECOND * np.exp(rng.normal(0, 0.002, 20))
    second = 1.05 * size * 5 * MICROSECOND * np.exp(rng.normal(0, 0.002, 20))
    second[:spikes] *= 8
    (change,) = judge_pairs(side(first), side(second), Rule(floor=MICROSECOND))
    assert ("the median of the pairs decides" in str(change.reason)) == (spikes > 0)
    assert change.verdict is (Verdict.EQUIVALENT if size == 1.0 else Verdict.REGRESSED)
