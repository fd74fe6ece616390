"""Chains of blocks whose intermediates are made in runs of tokens, so that they stay in cache."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from _formats import DIRECTIONS, Watch, assert_right, drawn, generator, observe, trains
from torch.utils.flop_counter import FlopCounterMode

from hwbench.formats import _block_matmul, _onednn
from hwbench.formats._base import BACKWARD, FORWARD, STEP, Format, Linear
from hwbench.formats._two_stage import BLOCKED, STRIDED
from hwbench.formats.blast import Blast
from hwbench.formats.btt import Btt
from hwbench.formats.monarch import Monarch

RUN, TOKENS = 32, 150  # of tokens: four whole runs, and 22 left over


def made(f: Format, dtype: torch.dtype = torch.float32) -> Linear:
    return f.random(dtype=dtype, generator=generator())


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small intermediates count as large ones."""
    monkeypatch.setattr(_block_matmul, "WHOLE_VALUES", 2000)
    monkeypatch.setattr(_block_matmul, "RUN_VALUES", 2000)
    monkeypatch.setattr(_block_matmul, "SHORTEST_RUN", RUN)


CHAINS = [
    cls.from_knobs(*shape, density=0.5, order=order, kernel=kernel)
    for cls in (Monarch, Btt)
    for shape in ((48, 64), (37, 53))
    for order in (BLOCKED, STRIDED)
    for kernel in ("bmm", _onednn.OneDnn.name)
]
CASES = pytest.mark.parametrize(
    "f",
    [f for f in CHAINS if trains(f)],
    ids=lambda f: f"{f.name()}-{f.kernel}-{f.out_features}x{f.in_features}-{f.order}",
)


def makes_again(f: Format, tokens: int) -> bool:
    """Whether a step makes the intermediate again, by what its kernel says of its work."""
    kernel = f.implementation
    work, moved = kernel.recomputed(f, tokens), kernel.recomputed_values(f, tokens)
    assert (work > 0) == (moved > 0)
    return work > 0


def test_runs_cover_every_token_once_and_bound_what_is_made_at_a_time() -> None:
    for tokens in (0, 1, 31, 64, 1000, 5000):
        for width in (1, 100, 8192, 10**6):
            runs = _block_matmul.runs(tokens, width)
            covered = [token for run in runs for token in range(tokens)[run]]
            assert covered == list(range(tokens))
            longest = max((len(range(tokens)[run]) for run in runs), default=0)
            if tokens * width <= _block_matmul.WHOLE_VALUES:
                assert longest == tokens
            else:
                shortest = _block_matmul.SHORTEST_RUN
                assert longest * width <= max(_block_matmul.RUN_VALUES, shortest * width)


def test_a_layer_of_1024_by_1024_takes_runs_of_64_tokens_and_a_gpu_takes_all() -> None:
    f = Btt.for_budget(1024, 1024, 0.5)
    assert [r.stop - r.start for r in _block_matmul.runs(256, f.intermediate_width())] == [64] * 4
    assert makes_again(f, 256)
    assert not makes_again(f, 64)
    assert not makes_again(f.on("cuda"), 256)
    assert f.on("cuda") == f


@CASES
@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_every_direction_is_right_in_runs(f: Format, dtype: torch.dtype) -> None:
    layer = made(f, dtype)
    x, dy = drawn(TOKENS, f.in_features, dtype=dtype), drawn(TOKENS, f.out_features, dtype=dtype)
    for direction in DIRECTIONS:
        assert_right(layer, x, dy, direction)
    turned = [tensor.mT.contiguous().mT for tensor in (x, dy)]
    assert_right(layer, *turned, STEP)
    assert_right(layer, x, dy[:1, :1].expand_as(dy), STEP)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("order", [BLOCKED, STRIDED])
@pytest.mark.parametrize("cls", [Monarch, Btt])
def test_no_run_of_an_intermediate_is_larger_than_asked_for(cls: type[Format], order: str) -> None:
    blocks = {"blocks": 8} if cls is Monarch else {}
    f = cls.from_knobs(48, 64, rank=4, order=order, **blocks)
    layer, narrow = made(f), f.intermediate_width()
    x, dy = (drawn(TOKENS, n, dtype=torch.float32) for n in (f.in_features, f.out_features))
    whole = TOKENS * max(f.padded())  # type: ignore[attr-defined]
    for direction in (FORWARD, STEP):
        observe(watch := Watch(), layer, x, dy, direction)
        bound = max(whole, RUN * max(1, 2000 // narrow // RUN) * narrow)
        assert watch.largest[0] <= bound < TOKENS * narrow, watch.largest


@CASES
@pytest.mark.usefixtures("few")
def test_what_is_made_again_is_counted_and_not_saved(f: Any) -> None:
    layer = made(f)
    x, dy = (drawn(TOKENS, n, dtype=torch.float32) for n in (f.in_features, f.out_features))
    for direction in DIRECTIONS:
        observe(counter := FlopCounterMode(display=False), layer, x, dy, direction)
        assert counter.get_total_flops() == f.flops(TOKENS, direction), direction
    saved: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel())
        return tensor

    layer.requires_grad_(True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(x.requires_grad_())
    factors = sum(parameter.numel() for parameter in layer.parameters())
    assert sum(saved) == factors + TOKENS * f.padded()[1]
    whole = f.on("cuda")
    again = 2 * TOKENS * f.products()[0]
    assert f.flops(TOKENS, BACKWARD) == whole.flops(TOKENS, BACKWARD) + again
    assert f.flops(TOKENS, FORWARD) == whole.flops(TOKENS, FORWARD)
    moved = [g.cost(TOKENS, 4, STEP).intermediate_bytes for g in (f, whole)]
    assert moved[0] > moved[1]
    assert f.cost(TOKENS, 4, STEP).useful_flops == whole.cost(TOKENS, 4, STEP).useful_flops


def test_other_kernels_make_nothing_again_for_many_tokens() -> None:
    f = Btt.for_budget(1024, 1024, 0.5)
    for kernel in ("einsum", "triton"):
        assert not makes_again(dataclasses.replace(f, kernel=kernel), 4096)
    fused = dataclasses.replace(f, kernel="triton_fused")  # it never writes the intermediate
    assert makes_again(fused, 64)
    assert makes_again(fused, 4096)


# --- blast --------------------------------------------------------------------------------------

BLASTS = [
    Blast.from_knobs(*shape, density=0.5, blocks=blocks, kernel=kernel)
    for shape in ((48, 64), (37, 53))
    for blocks in (4, 8)
    for kernel in ("by_tokens", "bmm", "views")
]


def name_of(f: Blast) -> str:
    return f"{f.kernel}-{f.blocks}-{f.out_features}x{f.in_features}"


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("f", BLASTS, ids=name_of)
def test_blast_is_right_in_runs_and_writes_no_large_intermediate(f: Blast) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        layer = made(f, dtype)
        x, dy = (drawn(TOKENS, n, dtype=dtype) for n in (f.in_features, f.out_features))
        for direction in (FORWARD, STEP):
            assert_right(layer, x, dy, direction)
    layer = made(f)
    x, dy = (drawn(TOKENS, n, dtype=torch.float32) for n in (f.in_features, f.out_features))
    observe(watch := Watch(), layer, x, dy, FORWARD)
    assert watch.flops == f.flops(TOKENS, FORWARD)
    assert watch.largest[0] <= max(TOKENS * max(f.padded()), RUN * f.intermediate_width())


@pytest.mark.parametrize("f", BLASTS[::3], ids=name_of)
def test_blast_takes_the_kernel_of_the_number_of_tokens(f: Blast) -> None:
    """On a CPU; its products and its moved bytes are those of that kernel."""
    source = made(f)
    last = {4: 16, 8: 7}[f.blocks]  # 256 pairs of a token and a block, or 7 tokens
    kernels = {1: "multiply_sum", last: "multiply_sum", last + 1: "views", 40: "views"}
    for tokens, kernel in kernels.items():
        there = dataclasses.replace(f, kernel=kernel)
        layer = made(there)
        assert torch.equal(source.to_dense(), layer.to_dense())
        x = drawn(tokens, f.in_features, dtype=torch.float32)
        with torch.no_grad():
            assert torch.equal(source(x), layer(x))
        for direction in DIRECTIONS:
            assert f.cost(tokens, 4, direction) == there.cost(tokens, 4, direction)
    elsewhere = dataclasses.replace(f, kernel="bmm").on("cuda")
    assert f.on("cuda").cost(1, 2, STEP) == elsewhere.cost(1, 2, STEP)


def test_couplings_that_change_are_turned_anew() -> None:
    layer, x = made(BLASTS[0]), drawn(128, 64, dtype=torch.float32)
    assert layer.components().data_ptr() != layer.couplings.data_ptr()
    with torch.no_grad():
        before = layer(x)
        layer.couplings.mul_(2)
        assert torch.allclose(layer(x), 2 * before)
        layer.couplings.data = layer.couplings.data.clone().mul_(2)  # the version stays
        assert torch.allclose(layer(x), 4 * before)
