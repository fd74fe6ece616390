"""``block_sparse_kronecker``: what the maths promises of W = Σ (S ∘ A[r]) ⊗ B[r], and its costs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from _formats import drawn, relative
from torch import Tensor

from hwbench.errors import KnobError
from hwbench.formats._base import BACKWARD, BACKWARD_INPUT, BACKWARD_WEIGHT, FORWARD, STEP
from hwbench.formats.block_sparse_kronecker import BlockSparseKronecker
from hwbench.formats.kronecker import Kronecker

GRIDS = [(6, 8), (12, 4), (3, 16)]  # blocks down and across of 24 × 32


def build(out: int = 24, inputs: int = 32, **knobs: object) -> BlockSparseKronecker:
    return BlockSparseKronecker.from_knobs(out, inputs, **knobs)  # type: ignore[arg-type]


def error(f: BlockSparseKronecker | Kronecker, weight: Tensor, **more: Tensor) -> float:
    return relative(f.project(weight, **more).to_dense(), weight)


@pytest.mark.parametrize(("down", "across"), GRIDS)
def test_with_every_block_kept_it_is_the_best_sum_of_kronecker_products(
    down: int, across: int
) -> None:
    weight = drawn(24, 32)
    for rank in (1, 3):
        grid = {"rank": rank, "out_blocks": down, "in_blocks": across}
        every = build(**grid, kept_blocks=down * across)
        best = Kronecker.from_knobs(24, 32, **grid)  # type: ignore[arg-type]
        assert error(every, weight) == pytest.approx(error(best, weight), rel=1e-9)


@pytest.mark.parametrize(("down", "across"), GRIDS)
def test_blocks_that_are_zero_are_dropped_and_the_rest_is_found(down: int, across: int) -> None:
    f = build(rank=2, out_blocks=down, in_blocks=across, kept_blocks=down * across // 3)
    member = f.random(dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    weight = member.to_dense().detach()
    projected = f.project(weight)
    assert relative(projected.to_dense(), weight) < 1e-6
    assert torch.equal(projected.row_starts, member.row_starts)
    assert torch.equal(projected.columns, member.columns)


def test_no_round_raises_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where S follows B, and B what S keeps; with columns of unlike worth too."""
    monkeypatch.setattr(BlockSparseKronecker, "LEAST_GAIN", 0.0)
    inputs = drawn(200, 32, seed=4) * torch.linspace(0.01, 3, 32, dtype=torch.float64)
    size = inputs.square().mean(0).sqrt()
    weight, f = drawn(24, 32), build(rank=3, out_blocks=6, in_blocks=8)
    plain, weighed = [], []
    for rounds in (1, 2, 4, 16):
        monkeypatch.setattr(BlockSparseKronecker, "ROUNDS", rounds)
        plain.append(error(f, weight))
        lost = f.project(weight, activations=inputs).to_dense().detach() - weight
        weighed.append(float((lost * size).norm()))
    for each in (plain, weighed):
        assert each == sorted(each, reverse=True)
        assert each[-1] < 0.995 * each[0]


def test_activations_lower_the_error_that_the_layer_sees() -> None:
    weight, f = drawn(24, 32), build(rank=3, out_blocks=6, in_blocks=8)
    inputs = drawn(200, 32, seed=4) * torch.linspace(0.01, 3, 32, dtype=torch.float64)
    plain, weighed = (
        f.project(weight, activations=given).to_dense().detach() for given in (None, inputs)
    )
    missed = [float(((weight - each) @ inputs.mT).norm()) for each in (plain, weighed)]
    assert missed[1] < 0.9 * missed[0]


@pytest.mark.parametrize("gradient", ["dense", "sampled"])
@pytest.mark.parametrize(("down", "across"), GRIDS)
def test_costs_are_those_of_the_closed_form(down: int, across: int, gradient: str) -> None:
    """The paper's: rank · (kept + the entries of a block), and a sparse A in the chain."""
    high, wide, kept, rank, tokens, item = 24 // down, 32 // across, 11, 3, 7, 4
    grid = {"out_blocks": down, "in_blocks": across, "kept_blocks": kept}
    f = build(rank=rank, gradient=gradient, **grid)
    assert f.parameters() == rank * (kept + high * wide)
    assert f.stored_bytes(item) == item * f.parameters() + 4 * (kept + down + 1)
    shared, own = rank * high * 32, rank * kept * high  # multiply-adds a token
    computed = rank * down * across * high if gradient == "dense" else own
    once = 2 * tokens * (shared + own)
    assert {d: f.flops(tokens, d) for d in (FORWARD, BACKWARD_INPUT, BACKWARD_WEIGHT)} == {
        FORWARD: once,
        BACKWARD_INPUT: once,
        BACKWARD_WEIGHT: 2 * tokens * (shared + own + computed),
    }
    assert f.flops(tokens, BACKWARD) == once + 2 * tokens * (shared + computed)
    assert f.needed_flops(tokens, STEP) == 3 * once
    between = rank * across * high
    assert f.intermediate_bytes(tokens, item, FORWARD) == 2 * item * tokens * (3 * between + 2 * 24)


def test_formed_blocks_cost_their_making_and_their_products() -> None:
    f, tokens, item = build(rank=3, out_blocks=6, in_blocks=8, kept_blocks=11), 7, 4
    f = dataclasses.replace(f, kernel="formed")
    blocks, making = 11 * 4 * 4, 2 * 3 * 11 * 4 * 4
    product = 2 * tokens * blocks
    assert {d: f.flops(tokens, d) for d in (FORWARD, BACKWARD_INPUT, BACKWARD_WEIGHT)} == {
        FORWARD: product + making,
        BACKWARD_INPUT: product,
        BACKWARD_WEIGHT: product + 2 * making,
    }
    moved = 2 * item * (blocks + tokens * (11 * 8 + 24 + 32))
    assert f.intermediate_bytes(tokens, item, FORWARD) == moved


def test_bytes_asked_for_are_used_up_to_one_term() -> None:
    for item in (2, 4):
        f = build(48, 64, stored=0.5, item_bytes=item)
        more = build(48, 64, rank=f.rank + 1)
        assert f.stored_bytes(item) <= 0.5 * 48 * 64 * item < more.stored_bytes(item)


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"rank": 1, "out_blocks": 5}, "out_blocks=5 of block_sparse_kronecker must divide 24"),
        ({"rank": 1, "kept_blocks": 25}, "kept_blocks of block_sparse_kronecker must be between"),
        ({"rank": 13}, "rank of block_sparse_kronecker must be between 1 and 12"),
        ({"density": 0.01}, "block_sparse_kronecker cannot reach density 0.01; one term has"),
    ],
)
def test_what_cannot_be_is_said(knobs: dict[str, object], says: str) -> None:
    with pytest.raises(KnobError, match=says):
        build(**knobs)
