"""The smaller dense layer: which columns or directions it keeps, and what that can reach."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from _formats import DIRECTIONS, assert_right, assert_sentence, generator, normal
from torch import Tensor

from hwbench.errors import KnobError
from hwbench.formats import _gram
from hwbench.formats._base import Linear
from hwbench.formats.low_rank import LowRank
from hwbench.formats.narrow import Narrow


def build(out: int = 24, width: int = 32, **knobs: Any) -> Narrow:
    return Narrow.from_knobs(out, width, **knobs)


def weight(out: int = 24, inputs: int = 32) -> Tensor:
    return normal(out, inputs) * torch.linspace(0.1, 2, inputs)


def seen(inputs: int = 32, samples: int = 500) -> Tensor:
    mixing = normal(inputs, inputs, seed=4) * torch.logspace(0, -1, inputs)[:, None]
    return normal(samples, inputs, seed=3) @ mixing


@pytest.mark.parametrize("rotate", [False, True])
def test_every_direction_is_right(rotate: bool) -> None:
    for shape, dtype in itertools.product(((24, 32), (32, 24), (5, 7)), (torch.float32,)):
        layer = build(*shape, inputs=4, rotate=rotate).random(dtype=dtype, generator=generator())
        for tokens, direction in itertools.product((1, 6), DIRECTIONS):
            x, dy = normal(tokens, shape[1]), normal(tokens, shape[0], seed=2)
            assert_right(layer, x, dy, direction)


@pytest.mark.parametrize(("rotate", "expected"), [(False, 6 * 24), (True, 6 * (24 + 32))])
def test_what_is_stored_is_counted(rotate: bool, expected: int) -> None:
    f = build(inputs=6, rotate=rotate)
    layer = f.project(weight())
    assert f.parameters() == expected == sum(p.numel() for p in layer.parameters())
    stored = sum(t.numel() * t.element_size() for t in layer.stored_tensors())
    assert f.stored_bytes(4) == stored == 4 * expected + (0 if rotate else 4 * 6)
    assert f.flops(3, "forward") == 2 * 3 * expected


def test_the_columns_that_matter_most_are_kept() -> None:
    w, x = weight(), seen()
    for activations, score in ((None, w.norm(dim=0)), (x, w.norm(dim=0) * x.norm(dim=0))):
        dense = build(inputs=5).project(w, activations=activations).to_dense()
        kept = dense.abs().sum(0).nonzero().flatten()
        assert kept.tolist() == sorted(score.topk(5).indices.tolist())
        assert torch.equal(dense[:, kept], w[:, kept])


def test_directions_are_those_in_which_the_activations_vary() -> None:
    x = seen()
    layer = build(inputs=5, rotate=True).project(weight(), activations=x)
    projector = layer.basis.mT @ layer.basis
    principal = torch.linalg.svd(x.double()).Vh[:5]
    assert torch.allclose(projector.double(), principal.mT @ principal, atol=1e-4)
    assert torch.allclose(layer.to_dense(), weight() @ projector, atol=1e-5)


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("kept", [1, 4, 12, 20])
def test_it_never_beats_the_best_matrix_of_its_rank(rotate: bool, kept: int) -> None:
    """Low rank fitted to the Gram matrix is the least there is at that rank (Eckart and Young)."""
    w, x = weight().double(), seen().double()
    layer = build(inputs=kept, rotate=rotate).project(w.float(), activations=x.float())
    ours = float((x @ (layer.to_dense().double().detach() - w).mT).norm())
    least = float(torch.linalg.svdvals(x @ w.mT)[kept:].norm())
    assert ours >= least * (1 - 1e-6)
    untold = build(inputs=kept, rotate=rotate).project(w.float()).to_dense().double().detach()
    assert float((untold - w).norm()) >= float(torch.linalg.svdvals(w)[kept:].norm()) * (1 - 1e-5)


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("shape", [(24, 32), (32, 24), (40, 16)])
def test_with_q_counted_it_is_never_better_than_low_rank_by_outputs(
    shape: tuple[int, int], rotate: bool
) -> None:
    """At equal ranks, which with Q are equal values, whatever its projection has seen."""
    w, x = weight(*shape).double(), seen(shape[1]).double()
    gram = _gram.moments(x)

    def lost(layer: Linear) -> float:
        gap = layer.to_dense().detach() - w
        return float((gap @ gram * gap).sum())

    for inputs in (1, 4, 9, 15):
        f = build(*shape, inputs=inputs, rotate=rotate)
        best = LowRank.from_knobs(*shape, rank=inputs)
        assert not rotate or f.parameters() == best.parameters()
        least = lost(best.project_outputs(w, x))
        assert least > 0
        for layer in (f.project(w), f.project(w, activations=x), f.project_outputs(w, x)):
            assert lost(layer) >= least * (1 - 1e-9)


@pytest.mark.parametrize(("shape", "inputs"), [((96, 96), 48), ((128, 64), 32)])
def test_by_outputs_it_starts_from_the_directions_of_its_inputs(
    shape: tuple[int, int], inputs: int
) -> None:
    """So that it comes near to the best matrix of its rank; from any directions it does not."""
    w, x = weight(*shape).double(), seen(shape[1]).double()
    gram = _gram.moments(x)
    layers = (
        build(*shape, inputs=inputs, rotate=True).project_outputs(w, x),
        LowRank.from_knobs(*shape, rank=inputs).project_outputs(w, x),
    )
    gaps = [layer.to_dense().detach() - w for layer in layers]
    ours, least = (float((gap @ gram * gap).sum()) for gap in gaps)
    assert ours <= 1.3 * least


def test_bytes_and_densities_decide_how_many_are_kept() -> None:
    assert build(density=0.5).inputs == 16
    assert build(density=0.5, rotate=True).inputs == 384 // 56
    assert build(density=1.0, rotate=True).inputs == 13
    f = build(stored=0.5)
    assert f.inputs == 15  # an index of four bytes for 24 values of a column
    assert build(density=0.5, multiple=8, rotate=True).inputs == 6


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"inputs": 33}, "inputs of narrow must be between 1 and 32"),
        ({"inputs": 25, "rotate": True}, "inputs of narrow must be between 1 and 24"),
        ({"inputs": 3, "rotate": 1}, "rotate of narrow must be true or false"),
        ({"density": 0.01}, "narrow cannot reach density 0.01; one input has density 0.03125"),
    ],
)
def test_what_it_cannot_be_is_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(KnobError, match=message) as refusal:
        build(**knobs)
    assert_sentence(refusal.value)
