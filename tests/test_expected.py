"""The closed forms: against published figures, against each other, and against projections."""

from __future__ import annotations

import math

import pytest
import torch

from hwbench import plugins
from hwbench.analysis import closed_forms as expected
from hwbench.formats._base import Format
from hwbench.workloads.projection import POWER, gaussian, power_law

SIDE = 1296
SPREAD = 6e-4
"""Four times the scatter of one matrix of that side: about 1.5e-4 where single entries are kept."""


@pytest.mark.parametrize(
    ("density", "error"), [(0.5, 0.2671), (0.3, 0.4655), (0.25, 0.5257), (0.1, 0.7488)]
)
def test_unstructured_to_four_digits(density: float, error: float) -> None:
    assert expected.unstructured(density) == pytest.approx(error, abs=5e-5)


@pytest.mark.parametrize(("kept", "of", "error"), [(2, 4, 0.3636), (1, 2, 0.4263)])
def test_n_of_m_to_three_digits_of_a_simulation(kept: int, of: int, error: float) -> None:
    assert expected.n_of_m(kept, of) == pytest.approx(error, abs=5e-4)
    source = torch.Generator().manual_seed(1)
    squares = torch.randn(1_000_000, of, generator=source).square().sort(-1).values
    simulated = math.sqrt(float(squares[:, : of - kept].sum() / squares.sum()))
    assert expected.n_of_m(kept, of) == pytest.approx(simulated, abs=1.5e-3)


def test_one_of_two_is_known_exactly() -> None:
    # the smaller of two half-normal values has the mean square 1 − 2 / π
    assert expected.n_of_m(1, 2) == pytest.approx(math.sqrt((1 - 2 / math.pi) / 2), abs=1e-9)


@pytest.mark.parametrize("call", [
    lambda: expected.unstructured(1.1), lambda: expected.n_of_m(5, 4),
    lambda: expected.low_rank(8, 9, 9),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(call: object) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match="between"):
        call()


def test_the_ends_are_exact() -> None:
    assert [expected.unstructured(d) for d in (0, 1)] == [1, 0]
    assert [expected.low_rank(8, 9, r) for r in (0, 8)] == [1, 0]
    assert expected.n_of_m(4, 4) == 0


@pytest.mark.parametrize(
    ("name", "knobs", "error"),
    [
        ("coo", {"density": 0.3}, expected.unstructured(0.3)),
        ("csr", {"density": 0.5}, expected.unstructured(0.5)),
        ("n_m", {"n": 2, "m": 4}, expected.n_of_m(2, 4)),
        ("low_rank", {"rank": 256}, expected.low_rank(SIDE, SIDE, 256)),
    ],
)
def test_projections_of_a_gaussian_matrix_agree_to_four_digits(
    name: str, knobs: dict[str, float], error: float
) -> None:
    weight = gaussian(SIDE, SIDE, torch.Generator().manual_seed(0))
    described = plugins.load("formats", name, Format).from_knobs(SIDE, SIDE, **knobs)
    nearest = described.project(weight).to_dense().detach()
    assert float((nearest - weight).norm() / weight.norm()) == pytest.approx(error, abs=SPREAD)


def test_a_wide_gaussian_matrix_follows_the_law_too() -> None:
    weight = gaussian(300, 1200, torch.Generator().manual_seed(0))
    exact = expected.eckart_young(torch.linalg.svdvals(weight).tolist(), 100)
    assert expected.low_rank(300, 1200, 100) == pytest.approx(exact, abs=1e-3)
    assert expected.low_rank(1200, 300, 100) == expected.low_rank(300, 1200, 100)


def test_eckart_young_holds_on_a_known_spectrum() -> None:
    weight = power_law(128, 96, torch.Generator().manual_seed(0))
    described = plugins.load("formats", "low_rank", Format).from_knobs(128, 96, rank=12)
    nearest = described.project(weight).to_dense().detach()
    error = expected.eckart_young([i**-POWER for i in range(1, 97)], 12)
    assert float((nearest - weight).norm() / weight.norm()) == pytest.approx(error, rel=1e-4)
