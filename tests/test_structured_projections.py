"""Projections of the structured formats: closed forms that are exact, and what BLAST promises."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from _formats import drawn, generator, relative
from _tiers import sampled
from torch import Tensor

from hwbench.formats import _alternating
from hwbench.formats._base import Format
from hwbench.formats.blast import Blast
from hwbench.formats.block_dense import BlockDense
from hwbench.formats.block_diagonal import BlockDiagonal
from hwbench.formats.btt import Btt
from hwbench.formats.kronecker import Kronecker
from hwbench.formats.low_rank import LowRank
from hwbench.formats.low_rank_light import LowRankLight
from hwbench.formats.monarch import Monarch


def error(f: Format, weight: Tensor, **more: Any) -> float:
    return relative(f.project(weight, **more).to_dense(), weight)


def tail(matrices: Tensor, rank: int) -> float:
    """The squared Frobenius error of the best matrices of that rank."""
    return float(torch.linalg.svdvals(matrices.double())[..., rank:].square().sum())


# --- projections that are exact ------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (45, 50), (37, 53)])
@pytest.mark.parametrize("cls", [Monarch, Btt])
@pytest.mark.parametrize("order", ["blocked", "strided"])
def test_block_projection_leaves_the_tails_of_the_blocks(
    cls: Any, order: str, shape: tuple[int, int]
) -> None:
    m, n = shape
    weight = drawn(m, n)
    f = cls.for_budget(m, n, 0.4, order=order)
    k, p, groups, s = f.grid()
    padded = torch.zeros(groups * s, k * p, dtype=torch.float64)
    padded[:m, :n] = weight
    rows = padded.view(groups, s, -1)
    if order == "strided":
        rows = padded.view(s, groups, -1).transpose(0, 1)
    blocks = torch.stack([group.reshape(s, k, p)[:, j] for group in rows for j in range(k)])
    expected = tail(blocks, f.rank)
    assert expected > 0
    assert error(f, weight) ** 2 * float(weight.square().sum()) == pytest.approx(expected)


def test_block_dense_projection_leaves_the_tails_of_the_columns() -> None:
    weight = drawn(40, 50)
    f = BlockDense(out_features=40, in_features=50, rank=6, blocks=4)
    expected = sum(tail(columns, 6) for columns in weight.split(13, dim=1))
    assert error(f, weight) ** 2 * float(weight.square().sum()) == pytest.approx(expected)


@pytest.mark.parametrize("knobs", [{}, {"out_blocks": 3, "in_blocks": 16}])
def test_kronecker_projection_leaves_the_tail_of_the_rearranged_weight(knobs: Any) -> None:
    weight = drawn(30, 32)
    f = Kronecker(out_features=30, in_features=32, rank=4, **knobs)
    blocks = [
        columns.flatten()
        for rows in weight.chunk(f.out_blocks)
        for columns in rows.chunk(f.in_blocks, dim=1)
    ]
    expected = tail(torch.stack(blocks), 4)
    assert error(f, weight) ** 2 * float(weight.square().sum()) == pytest.approx(expected)


def test_block_diagonal_projection_keeps_its_blocks() -> None:
    weight = drawn(10, 7)
    kept = torch.zeros_like(weight)
    for start in range(4):
        rows, columns = slice(3 * start, 3 * start + 3), slice(2 * start, 2 * start + 2)
        kept[rows, columns] = weight[rows, columns]
    f = BlockDiagonal(out_features=10, in_features=7, blocks=4)
    assert torch.equal(f.project(weight).to_dense(), kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("columns", ["pivoted", "first"])
@pytest.mark.parametrize("shape", [(64, 64), (40, 96), (96, 40)])
def test_light_is_as_near_as_low_rank(
    shape: tuple[int, int], columns: str, dtype: torch.dtype
) -> None:
    weight = drawn(*shape, dtype=dtype)
    rank = min(shape) // 2
    low = error(LowRank(out_features=shape[0], in_features=shape[1], rank=rank), weight)
    light = LowRankLight(out_features=shape[0], in_features=shape[1], rank=rank, columns=columns)
    assert light.parameters() == rank * (sum(shape) - rank)
    assert error(light, weight) == pytest.approx(low, rel=2e-3 if columns == "first" else 1e-5)


def test_pivots_avoid_small_columns() -> None:
    """The first columns of this weight say next to nothing: taking them needs a huge B."""
    weight = drawn(64, 64, dtype=torch.float32)
    weight[:, :16] *= 1e-4
    made = {
        columns: LowRankLight(out_features=64, in_features=64, rank=32, columns=columns)
        for columns in ("pivoted", "first")
    }
    sizes = {c: float(f.project(weight).right.detach().abs().max()) for c, f in made.items()}
    assert sizes["pivoted"] < 10 < 1000 < sizes["first"]
    low = error(LowRank(out_features=64, in_features=64, rank=32), weight.bfloat16())
    errors = {c: error(f, weight.bfloat16()) for c, f in made.items()}
    assert errors["pivoted"] < 1.01 * low < errors["first"]


@pytest.mark.parametrize(
    "f",
    [
        LowRank(out_features=37, in_features=53, rank=9),
        LowRankLight(out_features=37, in_features=53, rank=9),
        Monarch(out_features=37, in_features=53, rank=4),
        Btt(out_features=37, in_features=53, rank=2),
        BlockDense(out_features=37, in_features=53, rank=4),
        Blast(out_features=37, in_features=53, rank=12),
    ],
    ids=lambda f: f.name(),
)
def test_activations_weigh_the_columns(f: Format) -> None:
    """The error that independent inputs see is that of the projection of the weighed columns."""
    weight, size = drawn(37, 53), torch.logspace(-1, 1, 53, dtype=torch.float64)
    signs = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    result = f.project(weight, activations=signs * size).to_dense()
    seen = relative(result * size, weight * size)
    assert seen == pytest.approx(error(f, weight * size), rel=1e-6)
    assert seen < 0.98 * relative(f.project(weight).to_dense() * size, weight * size)


# --- BLAST: iterative, and what is promised of it ------------------------------------------------


def hostile() -> dict[str, Tensor]:
    """Weights on which a start, a step length or a scale can go wrong; 64 × 64, float32."""
    g = generator(7)
    random = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    u, _, v = torch.linalg.svd(random(64, 64))
    diagonal = torch.block_diag(*[random(16, 16) for _ in range(4)])
    return {
        "gaussian": random(64, 64),
        "zero": torch.zeros(64, 64),
        "ones": torch.ones(64, 64),
        "identity": torch.eye(64),
        "one entry": torch.zeros(64, 64).index_fill(0, torch.tensor(3), 1.0).tril(-1).triu(-1),
        "rank 5": random(64, 5) @ random(5, 64),
        "steep": (u * torch.logspace(0, -6, 64)) @ v,
        "slow": (u * torch.arange(1, 65).rsqrt()) @ v,
        "blocks on the diagonal": diagonal,
        "permuted blocks": diagonal[:, torch.randperm(64, generator=g)],
        "few entries": random(64, 64) * (torch.rand(64, 64, generator=g) < 0.05),
        "few blocks": random(64, 64) * torch.eye(4).roll(1, 0).kron(torch.ones(16, 16)),
        "rows of unlike size": random(64, 64) * torch.logspace(-3, 1, 64)[:, None],
        "tiny": random(64, 64) * 1e-12,
        "huge": random(64, 64) * 1e12,
    }


@pytest.mark.parametrize(
    "blocks", [4, *(pytest.param(blocks, marks=pytest.mark.heavy) for blocks in (2, 8))]
)
@pytest.mark.parametrize(("name", "weight"), sampled(hostile().items(), 3))
def test_blast_is_never_worse_than_low_rank(name: str, weight: Tensor, blocks: int) -> None:
    for rank in (4, 16, 28, 70):
        low = LowRank(out_features=64, in_features=64, rank=min(rank, 64)).project(weight)
        ours = Blast(out_features=64, in_features=64, rank=rank, blocks=blocks).project(weight)
        errors = [float((f.to_dense() - weight).detach().double().norm()) for f in (ours, low)]
        assert errors[0] <= errors[1] + 2e-6 * float(weight.double().norm()), rank


def test_blast_leaves_the_low_rank_saddle() -> None:
    """On block-diagonal weights the low-rank solution is stationary; BLAST holds them exactly."""
    weight = hostile()["blocks on the diagonal"]
    low = LowRank(out_features=64, in_features=64, rank=20)
    assert error(low, weight) > 0.5
    assert error(Blast(out_features=64, in_features=64, rank=20), weight) < 1e-3


def test_blast_finds_members_again() -> None:
    for blocks, shape in itertools.product([2, 4, 8], [(64, 64), (96, 64), (37, 53)]):
        f = Blast.for_budget(*shape, 0.5, blocks=blocks)
        weight = f.random(dtype=torch.float32, generator=generator()).to_dense()
        assert error(f, weight.detach()) < Blast.PROJECTION_TOLERANCE


@pytest.mark.heavy
def test_blast_on_gaussian_weights() -> None:
    """96 × 96 in 4 × 4 blocks of rank 24; low rank with as many parameters leaves 0.59."""
    f = Blast(out_features=96, in_features=96, rank=24, blocks=4)
    weights = [drawn(96, 96, seed=seed, dtype=torch.float32) for seed in range(10)]
    assert sum(error(f, weight) for weight in weights) / 10 <= 0.457


def test_blast_in_rectangles() -> None:
    weight = drawn(48, 90, dtype=torch.float32)
    f = Blast(out_features=48, in_features=90, rank=20, blocks=6, out_blocks=3)
    assert error(f, weight) < error(LowRank(out_features=48, in_features=90, rank=20), weight)


def test_larger_problems_get_fewer_sweeps() -> None:
    assert _alternating.sweeps(96, 96, 4, 4, 24) == 100
    assert _alternating.sweeps(8192, 8192, 16, 16, 2000) == 30
    assert 30 < _alternating.sweeps(1024, 1024, 16, 16, 227) < 100


@pytest.mark.heavy
def test_blast_at_full_size() -> None:
    weight = drawn(1024, 1024, dtype=torch.float32)
    assert error(Blast.for_budget(1024, 1024, 0.5, blocks=16), weight) <= 0.5


@pytest.mark.parametrize("blocks", [1, 4])
def test_components_beyond_the_rank_of_the_weight_can_learn(blocks: int) -> None:
    f = Blast(out_features=16, in_features=16, rank=20, blocks=blocks)
    layer = f.project(drawn(16, 16))
    y = layer(drawn(40, 16))
    grads = torch.autograd.grad(y, list(layer.parameters()), drawn(40, 16, seed=2))
    assert bool(grads[0].abs().sum((0, 1)).gt(0).all())  # bases_out, every component
