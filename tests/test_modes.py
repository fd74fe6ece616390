"""Two modes of one case are found where they are far apart, and not in noise."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwbench.analysis.modes import FAR, FEWEST, modes


@given(
    fast=st.integers(1, 8),
    slow=st.integers(1, 8),
    scale=st.floats(1e-6, 1e3),
    apart=st.floats(FAR + 0.02, 20),
    scatter=st.floats(0, 0.01),
    seed=st.integers(0, 1000),
)
def test_two_groups_far_apart_are_two_modes_in_any_order(
    fast: int, slow: int, scale: float, apart: float, scatter: float, seed: int
) -> None:
    rng = random.Random(seed)
    values = [scale * math.exp(rng.uniform(0, scatter)) for _ in range(fast)]
    values += [scale * apart * math.exp(rng.uniform(0, scatter)) for _ in range(slow)]
    rng.shuffle(values)
    found = modes(values)
    if fast + slow < FEWEST:
        assert found is None
        return
    assert found is not None
    assert found.counts == (fast, slow)
    assert found.fast == pytest.approx(scale, rel=0.011)
    assert found.slow == pytest.approx(scale * apart, rel=0.011)


@pytest.mark.parametrize("count", [4, 6, 12])
@pytest.mark.parametrize("deviation", [0.01, 0.05, 0.2])
def test_noise_rarely_makes_two_modes(count: int, deviation: float) -> None:
    rng = random.Random(count)
    draws = 2000
    found = sum(
        modes([math.exp(rng.gauss(0, deviation)) for _ in range(count)]) is not None
        for _ in range(draws)
    )
    assert found <= (0.05 if count == FEWEST else 0.005) * draws


@pytest.mark.parametrize(
    "values", [[], [1.0] * 12, [0.0, 1.0, 1.0, 1.0], [1.0, 1.09, 1.0, 1.09], [1.0, 1.2, 1.4, 1.6]]
)
def test_what_is_close_even_or_no_time_has_no_modes(values: list[float]) -> None:
    assert modes(values) is None
