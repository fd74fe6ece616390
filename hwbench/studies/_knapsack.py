"""The multiple-choice knapsack: one option of each group, least loss, within a budget.

It is solved as a mixed-integer program by HiGHS (``scipy.optimize.milp``) to optimality; the gap
that the solver proves is stated. Options that another of the same group beats are left out first.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from hwbench.errors import HwbenchError

_OVER = 1e-6  # of the budget: what the solver may exceed it by


@dataclass(frozen=True)
class Option:
    """One option of a group: what it costs, and what is lost by it."""

    cost: float
    loss: float


@dataclass(frozen=True)
class Solution:
    """The index of the option of each group, and the proven gap of the loss, relative."""

    chosen: tuple[int, ...]
    gap: float


def cheapest(groups: Sequence[Sequence[Option]]) -> float:
    """The least that any choice costs."""
    return sum(min(option.cost for option in options) for options in groups)


def solve(groups: Sequence[Sequence[Option]], budget: float) -> Solution | None:
    """The choice with the least total loss that costs at most the budget; None where none does.

    Of choices with the same loss the cheaper one is not sought. Costs and losses are finite and
    not negative.
    """
    if cheapest(groups) > budget * (1 + _OVER):
        return None
    useful = [undominated(options) for options in groups]
    costs = np.array([g[i].cost for g, own in zip(groups, useful, strict=True) for i in own])
    losses = np.array([g[i].loss for g, own in zip(groups, useful, strict=True) for i in own])
    picked, gap = _milp(costs, losses, [len(own) for own in useful], budget)
    indices = []
    start = 0
    for own in useful:
        indices.append(own[int(np.argmax(picked[start : start + len(own)]))])
        start += len(own)
    return Solution(tuple(indices), gap)


def _milp(
    costs: np.ndarray, losses: np.ndarray, sizes: Sequence[int], budget: float
) -> tuple[np.ndarray, float]:
    """Return the choice of options as zeros and ones, and the proven gap."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    owner = np.repeat(np.arange(len(sizes)), sizes)
    every = np.arange(len(owner))
    once = csr_array((np.ones(len(owner)), (owner, every)), shape=(len(sizes), len(owner)))
    scale = max(budget, float(costs.max()), np.finfo(float).tiny)
    most = max(float(losses.max()), np.finfo(float).tiny)
    with _silent():
        solution = milp(
            losses / most,
            integrality=np.ones(len(owner)),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(once, 1, 1),
                LinearConstraint(costs[None, :] / scale, -np.inf, budget / scale),
            ],
            options={"mip_rel_gap": 0.0},
        )
    if solution.x is None:
        raise HwbenchError(f"The solver gave up: {solution.message}")
    return np.asarray(solution.x), float(solution.mip_gap or 0.0)


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing of what a C library prints: HiGHS writes lines of its own among ``--json``'s."""
    sys.stdout.flush()
    libc = ctypes.CDLL(None)
    libc.fflush(None)
    saved, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        # What the library's own buffer holds still goes nowhere.
        libc.fflush(None)
        os.dup2(saved, 1)
        os.close(saved)
        os.close(nowhere)


def undominated(options: Sequence[Option]) -> list[int]:
    """The options of a group that no other beats in both, by rising cost and falling loss."""
    order = sorted(range(len(options)), key=lambda i: (options[i].cost, options[i].loss, i))
    indices: list[int] = []
    for index in order:
        if not indices or options[index].loss < options[indices[-1]].loss:
            indices.append(index)
    return indices
