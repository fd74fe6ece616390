"""The structured formats: golden values, index formulas, exact projections, every kernel."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from _formats import DIRECTIONS, Watch, assert_right, drawn, generator, observe, relative
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hwbench.errors import KnobError
from hwbench.formats import _native, _onednn, _packing, _sizes
from hwbench.formats._base import BACKWARD, BACKWARD_WEIGHT, FORWARD, STEP, Format, Linear
from hwbench.formats.blast import Blast
from hwbench.formats.block_dense import BlockDense
from hwbench.formats.block_diagonal import BlockDiagonal
from hwbench.formats.btt import Btt
from hwbench.formats.kronecker import Kronecker
from hwbench.formats.low_rank import LowRank
from hwbench.formats.low_rank_light import LowRankLight
from hwbench.formats.monarch import Monarch

FAMILY = (Monarch, Btt, Blast, LowRank, LowRankLight, Kronecker, BlockDiagonal, BlockDense)
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 2.5e-2,
    torch.float16: 3e-3,
}


# --- golden values -------------------------------------------------------------------------------

GOLDEN_RANKS = [  # out, in, density: low rank, light, BTT, BLAST of 4 and of 16 blocks
    (768, 768, 0.5, 192, 224, 6, 190, 164),
    (768, 768, 0.25, 96, 102, 3, 95, 82),
    (768, 3072, 0.5, 307, 336, 9, 305, 288),
    (1024, 1024, 0.5, 256, 299, 8, 254, 227),
    (1024, 1024, 0.1, 51, 52, 1, 50, 45),
    (4096, 4096, 0.5, 1024, 1199, 16, 1022, 992),
    (4096, 4096, 0.25, 512, 548, 8, 511, 496),
]


@pytest.mark.parametrize(("m", "n", "density", "low", "light", "btt", "few", "many"), GOLDEN_RANKS)
def test_golden_ranks(
    m: int, n: int, density: float, low: int, light: int, btt: int, few: int, many: int
) -> None:
    assert LowRank.for_budget(m, n, density).rank == low
    assert LowRankLight.for_budget(m, n, density).rank == light
    assert Btt.for_budget(m, n, density).rank == btt
    assert Blast.for_budget(m, n, density).rank == few
    assert Blast.for_budget(m, n, density, blocks=16).rank == many


def test_golden_btt_parameters() -> None:
    actual = [Btt.for_budget(*row[:3]).parameters() for row in GOLDEN_RANKS]
    assert actual == [258048, 129024, 1105920, 524288, 65536, 8388608, 4194304]


GOLDEN_COSTS = [  # P, GFLOP, and megabytes: fused, with intermediates, fused backward
    (LowRank, {}, 8388608, 17.18, 33.6, 37.7, 58.7),
    (LowRankLight, {"columns": "first"}, 8384607, 17.17, 33.5, 38.5, 58.7),
    (Monarch, {}, 8388608, 17.18, 33.6, 67.1, 58.7),
    (Btt, {}, 8388608, 17.18, 33.6, 570.4, 58.7),
    (Blast, {"blocks": 16, "kernel": "bmm"}, 8380416, 17.16, 33.5, 293.6, 58.7),
]


@pytest.mark.parametrize(("cls", "knobs", "p", "gflop", "fused", "chain", "back"), GOLDEN_COSTS)
def test_golden_costs(
    cls: type[Format], knobs: Any, p: int, gflop: float, fused: float, chain: float, back: float
) -> None:
    """The published table: 4096 × 4096, half density, 1024 tokens, 16 bits, the default kernel."""
    f = cls.for_budget(4096, 4096, 0.5, **knobs)
    cost = f.cost(1024, 2, FORWARD)
    assert cost.parameters == p
    assert cost.flops / 1e9 == pytest.approx(gflop, abs=0.006)
    assert cost.compulsory_bytes / 1e6 == pytest.approx(fused, abs=0.06)
    moved = cost.compulsory_bytes + cost.intermediate_bytes
    assert moved / 1e6 == pytest.approx(chain, abs=0.06)
    assert f.cost(1024, 2, BACKWARD).compulsory_bytes / 1e6 == pytest.approx(back, abs=0.06)


def test_pivoted_columns_cost_indices_and_a_copy_of_x() -> None:
    pivoted, first = (
        LowRankLight.for_budget(4096, 4096, 0.5, columns=columns)
        for columns in ("pivoted", "first")
    )
    assert pivoted.stored_bytes(2) - first.stored_bytes(2) == 4 * pivoted.rank
    moved = [f.cost(1024, 2, FORWARD).intermediate_bytes for f in (pivoted, first)]
    assert moved[0] - moved[1] == 2 * 2 * 1024 * 4096


@pytest.mark.parametrize(
    ("f", "chain"),
    [
        (Kronecker(out_features=6, in_features=20, rank=3), (3 * 4 * 5 * 2, 3 * 4 * 2 * 3)),
        (
            Kronecker(out_features=6, in_features=20, rank=3, out_blocks=2, in_blocks=10),
            (3 * 2 * 2 * 10, 3 * 2 * 2 * 3),
        ),
    ],
    ids=["inner first", "outer first"],
)
def test_kronecker_takes_the_cheaper_order(f: Kronecker, chain: tuple[int, int]) -> None:
    """Each parameter is used many times, so FLOPs are those of the two products, not of P."""
    f = dataclasses.replace(f, kernel="matmul")
    assert f.inner_first() == (f.in_blocks == 4)
    assert f.flops(7, FORWARD) == 2 * 7 * sum(chain)
    assert f.flops(7, BACKWARD_WEIGHT) == 2 * 7 * (sum(chain) + chain[1])
    assert f.intermediate_width() == (3 * 4 * 2 if f.inner_first() else 3 * 2 * 2)


def test_padding_is_stored_and_multiplied_but_says_nothing() -> None:
    f = Monarch(out_features=10, in_features=7, rank=1, blocks=4)  # blocks of 3 × 2
    assert f.parameters() == 4 * 7 + 4 * 10
    assert f.stored_bytes(4) == 4 * (4 * 8 + 4 * 12)
    assert f.flops(1, FORWARD) == 2 * (4 * 8 + 4 * 12)
    assert f.copied_width() == f.intermediate_width() + 8 + 10


# --- sizes and knobs -----------------------------------------------------------------------------


def test_near_square_factors() -> None:
    known = {1: (1, 1), 37: (8, 5), 768: (32, 24), 1024: (32, 32), 3072: (64, 48), 11008: (128, 86)}
    assert {size: _sizes.near_square(size) for size in known} == known
    for size in range(1, 3000):
        larger, smaller = _sizes.near_square(size)
        assert smaller <= larger <= 2 * smaller
        assert size <= larger * smaller
        assert _sizes.fits(size, larger)
        assert _sizes.fits(size, smaller)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Monarch(out_features=8, in_features=10, rank=1, blocks=7), "5 fits"),
        (lambda: Monarch(out_features=3, in_features=8, rank=1), "between 1 and 3"),
        (lambda: Monarch(out_features=8, in_features=8, rank=3), "between 1 and 2"),
        (lambda: Kronecker(out_features=9, in_features=8, rank=1, out_blocks=2), "1, 3, 9"),
        (lambda: Btt(out_features=8, in_features=8, rank=1, order="random"), "blocked or strided"),
        (lambda: LowRankLight(out_features=4, in_features=8, rank=5), "between 1 and 4"),
        (lambda: BlockDiagonal.for_budget(64, 64, 0.5, multiple=8), "no rank"),
        (lambda: Blast.from_knobs(64, 64, density=0.5, rank=3), "not both"),
        (lambda: Btt.for_budget(64, 64, 0.01), "rank 1 has density 0.25"),
    ],
)
def test_refusals_say_what_would_fit(build: Callable[[], Format], words: str) -> None:
    with pytest.raises(KnobError, match=words):
        build()


def test_block_diagonal_takes_the_fullest_number_of_blocks() -> None:
    for out_features, in_features in ((64, 64), (63, 45), (37, 53), (12, 100)):
        for density in (0.05, 0.1, 0.3, 0.5, 1.0):
            allowed = math.floor(density * out_features * in_features)
            fullest = 0
            for blocks in range(1, min(out_features, in_features) + 1):
                try:
                    f = BlockDiagonal.from_knobs(out_features, in_features, blocks=blocks)
                except KnobError:
                    continue
                kept = f.project(torch.ones(out_features, in_features)).to_dense()
                assert f.parameters() == int(kept.sum())
                fullest = max(fullest, f.parameters() if f.parameters() <= allowed else 0)
            if fullest:
                chosen = BlockDiagonal.for_budget(out_features, in_features, density)
                assert chosen.parameters() == fullest


# --- one family: the index formulas of the literature --------------------------------------------


def member(f: Format, seed: int = 0) -> Linear:
    return f.random(dtype=torch.float64, generator=generator(seed))


def test_published_monarch_of_b_blocks() -> None:
    """h[k, q] = Σ_p W1[k, q, p] x[k, p]; read again with the block fastest; o = s · b + l."""
    b, m, n = 2, 12, 16
    q = min(m, n) // b
    layer = member(Monarch(out_features=m, in_features=n, blocks=b, rank=q // b, order="strided"))
    p, s = n // b, m // b
    first, second = layer.factors()
    w1 = torch.empty(b, q, p, dtype=torch.float64)
    w2 = torch.empty(b, s, q, dtype=torch.float64)
    for i, j, t in itertools.product(range(b), range(b), range(q // b)):
        w1[j, t * b + i] = first[j, i, t]
        w2[i, :, j * (q // b) + t] = second[i, :, j, t]
    x = drawn(5, n)
    h = torch.einsum("kqp,bkp->bkq", w1, x.view(5, b, p)).reshape(5, q, b)
    y = torch.einsum("lsr,brl->bsl", w2, h).reshape(5, m)
    assert relative(layer(x), y) < 1e-12


def test_monarch_with_blocks_of_rank_one() -> None:
    """R[j] maps group j to out/b numbers, L[i] the i-th of each to b outputs; o = s · out/b + i."""
    b, m, n = 4, 12, 20
    f = Monarch(out_features=m, in_features=n, blocks=b, out_blocks=m // b, rank=1, order="strided")
    assert f.parameters() == m * n // b + m * b
    layer, x = member(f), drawn(5, n)
    first, second = layer.factors()
    dense = torch.zeros(m, n, dtype=torch.float64)
    for i, s, j, p in itertools.product(range(m // b), range(b), range(b), range(n // b)):
        entry = second[i, s, j, 0] * first[j, i, 0, p]
        dense[s * (m // b) + i, j * (n // b) + p] = entry
    assert relative(layer.to_dense(), dense) < 1e-12
    assert relative(layer(x), x @ dense.mT) < 1e-12


@pytest.mark.parametrize("order", ["blocked", "strided"])
def test_btt_by_its_cores(order: str) -> None:
    m, n, r = 12, 20, 2
    f = Btt(out_features=m, in_features=n, rank=r, order=order)
    k, p, groups, s = f.grid()
    assert (k, p, groups, s) == (5, 4, 3, 4)
    layer, dense = member(f), torch.zeros(m, n, dtype=torch.float64)
    first, second = layer.factors()
    for i, j, row, column in itertools.product(range(groups), range(k), range(s), range(p)):
        out = i * s + row if order == "blocked" else row * groups + i
        for t in range(r):
            dense[out, j * p + column] += second[i, row, j, t] * first[j, i, t, column]
    assert relative(layer.to_dense(), dense) < 1e-12
    assert relative(layer(drawn(3, n)), drawn(3, n) @ dense.mT) < 1e-12


def test_one_block_is_low_rank() -> None:
    weight = drawn(24, 36)
    one = Monarch(out_features=24, in_features=36, blocks=1, rank=5)
    low = LowRank(out_features=24, in_features=36, rank=5)
    assert one.parameters() == low.parameters()
    assert relative(one.project(weight).to_dense(), low.project(weight).to_dense()) < 1e-10


@pytest.mark.parametrize("blocks", [(8, 16), (2, 4)], ids=["matrix first", "blocks first"])
def test_kronecker_forms_its_weight_from_where_that_costs_less(blocks: tuple[int, int]) -> None:
    """Counted operator by operator, before and after; and the gradients are right in both ways."""
    out_blocks, in_blocks = blocks
    f = Kronecker(
        out_features=48, in_features=64, rank=6, out_blocks=out_blocks, in_blocks=in_blocks
    )
    layer = member(f)
    written, weights = 32, 48 * 64  # multiply-adds in the time of a value that is written
    chain = sum(f.products()) + written * f.intermediate_width()
    first = (f.rank + 2 * written) * weights // (chain - weights) + 1  # tokens
    assert [f.forms(tokens) for tokens in (first - 1, first)] == [False, True]
    for tokens in (first - 1, first, 5 * first):
        x, dy = drawn(tokens, 64), drawn(tokens, 48, seed=2)
        for direction in DIRECTIONS:
            observe(counter := FlopCounterMode(display=False), layer, x, dy, direction)
            assert counter.get_total_flops() == f.flops(tokens, direction), (tokens, direction)
            assert_right(layer, x, dy, direction)
        observe(watch := Watch(), layer, x, dy, FORWARD)
        chained = dataclasses.replace(f, kernel="matmul").flops(tokens, FORWARD)
        formed = 2 * (tokens + f.rank) * weights
        assert watch.flops == (formed if f.forms(tokens) else chained)


def test_kronecker_by_its_factors() -> None:
    for knobs in ({}, {"out_blocks": 2, "in_blocks": 10}):
        f = Kronecker(out_features=6, in_features=20, rank=2, **knobs)
        layer = member(f)
        outer = layer.outer.permute((2, 0, 1) if f.inner_first() else (1, 0, 2))
        inner = layer.inner.permute((0, 1, 2) if f.inner_first() else (1, 0, 2))
        dense = sum(torch.kron(a, b) for a, b in zip(outer, inner, strict=True))
        assert relative(layer.to_dense(), dense) < 1e-12
        assert relative(layer(drawn(3, 20)), drawn(3, 20) @ dense.mT) < 1e-12


def test_blast_by_its_blocks() -> None:
    layer = member(Blast(out_features=6, in_features=8, rank=3, blocks=2, out_blocks=3))
    for i, j in itertools.product(range(3), range(2)):
        block = layer.bases_out[i] @ torch.diag(layer.components()[:, i, j]) @ layer.bases_in[j]
        assert relative(layer.to_dense()[2 * i : 2 * i + 2, 4 * j : 4 * j + 4], block) < 1e-12


def test_light_columns_are_taken_as_they_are() -> None:
    weight = drawn(10, 3) @ drawn(3, 14, seed=2)
    layer = LowRankLight(out_features=10, in_features=14, rank=3).project(weight)
    pivots = layer.pivots.long()
    assert pivots.tolist() == sorted(set(pivots.tolist()))
    assert relative(layer.left, weight[:, pivots]) < 1e-10
    assert relative(layer.to_dense(), weight) < 1e-10


# --- every kernel, both layouts of memory --------------------------------------------------------


def trained(cls: type[Format]) -> list[str]:
    """The kernels that train here; tests/test_fused.py and test_packing.py have the others."""
    named = [(kernel, cls.for_budget(48, 64, 0.5, kernel=kernel)) for kernel in cls.KERNELS]
    return [
        name
        for name, f in named
        if f.unsupported("cpu", torch.float32, STEP) is None
        and not isinstance(f.implementation, _packing.Library)
    ]


def variants() -> Iterator[Format]:
    shapes = ((48, 64), (37, 53))
    for cls, (m, n) in itertools.product(FAMILY, shapes):
        for kernel in trained(cls):
            yield cls.for_budget(m, n, 0.5, kernel=kernel)
    for kernel in trained(Monarch):
        yield Monarch(out_features=37, in_features=53, rank=3, order="strided", kernel=kernel)
        yield Btt(out_features=48, in_features=64, rank=2, order="strided", kernel=kernel)
    yield Monarch(out_features=160, in_features=136, blocks=2, rank=40)  # long runs
    yield Monarch(out_features=48, in_features=64, rank=2, blocks=8, out_blocks=3)
    for kernel in trained(Blast):
        yield Blast(out_features=48, in_features=64, rank=5, blocks=2, out_blocks=3, kernel=kernel)
    for kernel in Kronecker.KERNELS:
        knobs = {"out_blocks": 2, "in_blocks": 32, "kernel": kernel}
        yield Kronecker(out_features=48, in_features=64, rank=3, **knobs)
    yield LowRankLight(out_features=48, in_features=64, rank=7, columns="first")
    yield LowRankLight(out_features=48, in_features=30, rank=30)  # nothing but pivots


def in_float64() -> list[Format]:
    """Those that a difference of 1e-10 can be asked of; ``test_native.py`` tries the others."""
    return [f for f in variants() if multiplies(f, torch.float64)]


def multiplies(f: Format, dtype: torch.dtype) -> bool:
    """Whether it computes anything in that dtype: a compiled product refuses what it is not for."""
    compiled = isinstance(f.implementation, _native.Native)
    return not (compiled and f.unsupported("cpu", dtype, FORWARD))


def name_of(value: object) -> str | None:
    if isinstance(value, Format):
        knobs = ",".join(f"{k}={v}" for k, v in value.knobs().items() if k != "kernel")
        return f"{value.name()}-{value.kernel}-{value.out_features}x{value.in_features}-{knobs}"
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


def gradients(layer: Linear, x: Tensor, dy: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = layer(x)
    assert y.is_contiguous()
    return [y, *torch.autograd.grad(y, [x, *layer.parameters()], dy)]


@pytest.mark.usefixtures("unwritten_is_nan")
@pytest.mark.parametrize(
    ("f", "dtype"),
    [(f, dtype) for f in variants() for dtype in TOLERANCE if multiplies(f, dtype)],
    ids=name_of,
)
def test_kernels_agree_with_the_dense_matrix(f: Format, dtype: torch.dtype) -> None:
    """Few tokens and many: from 32 on intermediates may lie the other way round."""
    layer = f.random(dtype=dtype, generator=generator())
    exact = f.random(dtype=dtype, generator=generator()).double()
    for tokens in (1, 3, 31, 32, 50):
        x = drawn(tokens, f.in_features, dtype=dtype)
        dy = drawn(tokens, f.out_features, seed=2, dtype=dtype)
        x64 = x.double().requires_grad_()
        y64 = x64 @ exact.to_dense().mT
        expected = [y64, *torch.autograd.grad(y64, [x64, *exact.parameters()], dy.double())]
        for ours, reference in zip(gradients(layer, x, dy), expected, strict=True):
            assert ours.dtype == dtype
            if reference.numel():
                assert relative(ours, reference) <= TOLERANCE[dtype], tokens
        with torch.no_grad():
            assert relative(layer(x), y64) <= TOLERANCE[dtype]


@pytest.mark.parametrize("tokens", [2, 33])
@pytest.mark.parametrize("f", [f for f in in_float64() if f.out_features <= 48], ids=name_of)
def test_gradients_by_differences(f: Format, tokens: int) -> None:
    layer, x = member(f), drawn(tokens, f.in_features).requires_grad_()
    names = dict(layer.named_parameters())

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *layer.parameters()), fast_mode=True)


@pytest.mark.parametrize("f", in_float64(), ids=name_of)
def test_inputs_and_gradients_of_any_strides(f: Format) -> None:
    layer = member(f)
    for tokens in (3, 40):
        x, dy = drawn(tokens, f.in_features), drawn(tokens, f.out_features, seed=2)
        plain = gradients(layer, x, dy)
        turned = gradients(layer, x.mT.contiguous().mT, dy.mT.contiguous().mT)
        for a, b in zip(plain, turned, strict=True):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)
        spread = gradients(layer, x[:, :1].expand_as(x), dy[:1, :1].expand_as(dy))
        same = gradients(layer, x[:, :1].repeat(1, x.shape[1]), dy[:1, :1].repeat(*dy.shape))
        for a, b in zip(spread, same, strict=True):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("f", in_float64(), ids=name_of)
def test_only_what_is_asked_for_is_differentiated(f: Format) -> None:
    """Every subset of wanted gradients gives those of the full set."""
    layer = member(f)
    x, dy = drawn(35, f.in_features), drawn(35, f.out_features, seed=2)
    everything = gradients(layer, x, dy)[1:]
    leaves = [x, *layer.parameters()]
    for expected_ in list(itertools.product([False, True], repeat=len(leaves)))[1:]:
        for leaf, need in zip(leaves, expected_, strict=True):
            leaf.requires_grad_(need)
        by = [leaf for leaf, need in zip(leaves, expected_, strict=True) if need]
        expected = [g for g, need in zip(everything, expected_, strict=True) if need]
        for ours, reference in zip(torch.autograd.grad(layer(x), by, dy), expected, strict=True):
            assert torch.equal(ours, reference)


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by dynamo
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # by dynamo
@pytest.mark.parametrize("cls", FAMILY)
def test_compiled_layers_are_one_graph(cls: type[Format]) -> None:
    for kernel in trained(cls):
        f = cls.for_budget(48, 64, 0.5, kernel=kernel)
        layer = f.random(dtype=torch.float32, generator=generator())
        for tokens in (4, 40):
            torch.compiler.reset()
            x = drawn(tokens, 64, dtype=torch.float32)
            dy = drawn(tokens, 48, dtype=torch.float32)
            eager = gradients(layer, x, dy)
            # oneDNN is chosen by a setting, which is in force beside what is compiled
            whole = not isinstance(f.implementation, _onednn.OneDnn)
            compiled = torch.compile(layer, backend="aot_eager", fullgraph=whole)
            for ours, reference in zip(gradients(compiled, x, dy), eager, strict=True):  # type: ignore[arg-type]
                assert relative(ours, reference) < 1e-5
