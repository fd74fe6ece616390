"""Corrections of a plan whose pass exceeds its budget of time, on passes of known times."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from hwbench.errors import UsageError
from hwbench.studies import _choosing, _corrections, choose
from hwbench.studies.choose import Budget, Choice, Costs, Layer, Passed

BUDGET = Budget("time", 0.7)
REST = 3.0
PLANS = 1 + _corrections.MOST


def layers_in(rng: random.Random) -> list[Layer]:
    """Forty layers, of which less time loses more."""
    layers = []
    for n in range(40):
        shares = sorted(rng.uniform(0.05, 0.95) for _ in range(8))
        losses = sorted((rng.random() for _ in shares), reverse=True)
        options = {"dense": Costs(0.1, 100, 25, 0)} | {
            f"f{i}": Costs(0.1 * share, 100, 25, lost)
            for i, (share, lost) in enumerate(zip(shares, losses, strict=True))
        }
        layers.append(Layer(str(n), (8, 8), options))
    return layers


def tried_with(layers: list[Layer], share_of: Callable[[Choice], float]) -> list[Choice]:
    """The plans that are tried where a pass takes that share of the dense one."""
    tried: list[Choice] = []
    missed: float | None = 0.0
    while missed is not None:
        try:
            choice = choose.choose(layers, BUDGET, REST, missed)
        except UsageError:
            break
        tried.append(replace(choice, passed=Passed(1.0, share_of(choice))))
        missed = _corrections.correction(tried)
    return tried


def added_up(choice: Choice) -> float:
    """The share of the dense pass that the plan takes as its layers and the rest add up."""
    return (choice.planned.time_seconds + REST) / choice.dense_pass_seconds


@pytest.mark.parametrize("seed", range(12))
def test_no_time_of_the_budget_is_left_unused(seed: int) -> None:
    """A pass may be off by any factor, and by another one for the plan that saves more."""
    rng = random.Random(seed)
    layers, loose, tight = layers_in(rng), rng.uniform(1.03, 1.15), rng.uniform(0.95, 1.03)

    def share(choice: Choice) -> float:
        # The plan of the whole budget is off by the first factor, half of it by the second.
        at = min(max((0.7 - added_up(choice)) / 0.1, 0.0), 1.0)
        return added_up(choice) * (loose + at * (tight - loose))

    tried = tried_with(layers, share)
    kept = _corrections.kept(tried)
    assert 1 < len(tried) <= PLANS
    assert kept.passed is not None
    assert 0.7 * (1 + _choosing.TOLERANCE) >= kept.passed.share >= 0.7 - _corrections.SPARE - 0.01
    assert all(kept.lost <= other.lost for other in tried if not other.excess_seconds), (
        "a plan within the budget loses less"
    )


def test_a_pass_within_the_budget_is_kept_as_it_is() -> None:
    for factor in (0.8, 1.0, 1 + 0.9 * _choosing.TOLERANCE):
        tried = tried_with(layers_in(random.Random(1)), lambda c, f=factor: f * added_up(c))
        assert len(tried) == 1
        assert _corrections.kept(tried) is tried[0]


def test_an_overshoot_is_halved_and_the_first_within_the_budget_is_kept_where_that_fails() -> None:
    shares = iter((0.788, 0.614, 0.76))
    tried = tried_with(layers_in(random.Random(2)), lambda choice: next(shares))
    first, second, third = tried
    assert first.missed_seconds < third.missed_seconds < second.missed_seconds
    assert third.missed_seconds == pytest.approx(0.088 / 0.174 * second.missed_seconds)
    assert third.limit > second.limit
    assert _corrections.kept(tried) is second


def test_where_no_plan_is_within_the_budget_the_nearest_is_kept() -> None:
    shares = iter((0.76, 0.73, 0.74))
    tried = tried_with(layers_in(random.Random(3)), lambda choice: next(shares))
    assert len(tried) == PLANS
    assert _corrections.kept(tried) is tried[1]
    assert [c.missed_seconds for c in tried] == sorted(c.missed_seconds for c in tried)


def test_known_losses_are_those_of_single_formats() -> None:
    choice = choose.choose(layers_in(random.Random(4)), BUDGET, REST)
    losses = {name: float(n) for n, name in enumerate(_choosing.candidates(choice))}
    decided = _choosing.decided(choice, losses)
    single = {name for name in losses if name not in ("plan", *_choosing.VARIANTS)}
    assert single
    assert _corrections.known([decided]) == {name: losses[name] for name in single}
    assert _corrections.known([choice]) == {}
