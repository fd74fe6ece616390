"""2:4 sparsity without a GPU: its packed bits, its best tiles, and what it says it needs."""

from __future__ import annotations

import copy
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from _formats import generator, normal
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.sparse import SparseSemiStructuredTensor

from hwbench import plugins
from hwbench.errors import UsageError
from hwbench.formats import _groups, semi_structured, two_four_training
from hwbench.formats._base import FORWARD, STEP, Format, Linear


def build(name: str, out: int, inputs: int, **knobs: Any) -> Format:
    return plugins.load("formats", name, Format).from_knobs(out, inputs, **knobs)


def made(f: Format) -> Linear:
    return f.random(dtype=torch.float32, generator=generator())


def test_two_of_four_says_what_it_wants() -> None:
    f = build("semi_structured", 64, 64)
    assert "8.0" in (f.unsupported("cpu", torch.bfloat16, FORWARD) or "")
    assert "gradients" in (f.unsupported("cuda", torch.bfloat16, STEP) or "")
    assert "float32" in (f.unsupported("cuda", torch.float32, FORWARD) or "")
    narrow = build("semi_structured", 8, 64).unsupported("cuda", torch.float16, FORWARD)
    assert "16" in (narrow or "")
    cutlass = build("semi_structured", 64, 96, kernel="cutlass")
    assert "64" in (cutlass.unsupported("cuda", torch.float16, FORWARD) or "")
    with pytest.raises(UsageError, match="CUDA"):
        made(f)(normal(2, 64))
    training = build("two_four_training", 64, 64)
    assert "CUDA" in (training.unsupported("cpu", torch.bfloat16, STEP) or "")
    with pytest.raises(UsageError, match="CUDA"):
        made(training)(normal(2, 64))


def test_pairs_are_packed() -> None:
    for count in (1, 3, 4, 5, 4096):
        codes = torch.randint(4, (count,), generator=generator(count))
        packed = _groups.pack_pairs(codes)
        assert packed.dtype == torch.uint8
        assert packed.numel() == -(-count // 4)
        assert torch.equal(_groups.unpack_pairs(packed, count), codes.to(torch.uint8))


def test_packing_follows_the_values_and_leaves_the_switch_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packs: list[bool] = []

    def pack(dense: Tensor) -> Tensor:
        packs.append(SparseSemiStructuredTensor._FORCE_CUTLASS)
        return dense.clone()

    monkeypatch.setattr(semi_structured, "to_sparse_semi_structured", pack)
    for kernel in ("cusparselt", "cutlass"):
        packs.clear()
        layer = made(build("semi_structured", 8, 16, kernel=kernel))
        first = layer.packed()
        assert layer.packed() is first
        torch.optim.SGD(layer.parameters(), lr=1.0).step()  # no gradient, no step
        assert layer.packed() is first
        with torch.no_grad():
            layer.values.mul_(2)
        assert torch.equal(layer.packed(), 2 * first)
        assert packs == [kernel == "cutlass"] * 2
        copied = copy.deepcopy(layer)
        assert copied._packed is None
        assert torch.equal(copied.to_dense(), layer.to_dense())
        assert SparseSemiStructuredTensor._FORCE_CUTLASS is False


class _OnGpu(Tensor):
    """A tensor of the processor that says it lies on a GPU."""

    @property
    def device(self) -> Any:
        return SimpleNamespace(type="cuda")


def _as_cusparselt(x: Tensor, weight: Tensor) -> Tensor:
    """The product in the layout in which torch returns it: a view of yᵀ."""
    y = x.as_subclass(Tensor) @ weight.mT
    return y.mT.contiguous().mT


@pytest.mark.parametrize("name", ["semi_structured", "two_four_training"])
def test_products_that_are_written_transposed_are_turned(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(semi_structured, "to_sparse_semi_structured", lambda dense: dense)
    monkeypatch.setattr(two_four_training, "_compress", lambda pruned: pruned)
    monkeypatch.setattr(functional, "linear", _as_cusparselt)
    layer, x = made(build(name, 32, 64)), normal(5, 64).as_subclass(_OnGpu)
    x.requires_grad_(name == "two_four_training")
    y = layer(x)
    assert y.is_contiguous()
    assert torch.allclose(y, x.as_subclass(Tensor) @ layer.to_dense().mT)
    if x.requires_grad:
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
        assert dx.is_contiguous()


def test_tiles_are_compared_without_a_copy_from_the_host() -> None:
    score = normal(8, 16).abs()
    two_four_training.best_tiles(score)
    first = two_four_training._patterns_on(score.device)
    assert two_four_training._patterns_on(score.device) is first
    meta = score.to("meta")
    two_four_training.best_tiles(meta)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        two_four_training.best_tiles(meta)
    assert "aten::_to_copy" not in {event.key for event in profiler.key_averages()}


def test_best_tiles_are_the_best() -> None:
    patterns = two_four_training.tile_patterns().view(-1, 4, 4)
    assert patterns.shape[0] == 90
    assert (patterns.sum(1) == 2).all()
    assert (patterns.sum(2) == 2).all()
    score = normal(12, 8).abs()
    mask = two_four_training.best_tiles(score)
    for i, j in itertools.product(range(0, 12, 4), range(0, 8, 4)):
        tile, kept = score[i : i + 4, j : j + 4] ** 2, mask[i : i + 4, j : j + 4]
        assert float((tile * kept).sum()) == pytest.approx(
            max(float((tile * p).sum()) for p in patterns)
        )
    weight = normal(12, 8)
    layer = build("two_four_training", 12, 8).project(weight)
    assert torch.equal(layer.to_dense(), weight * two_four_training.best_tiles(weight.abs()))
