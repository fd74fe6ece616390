"""2:4 sparsity without a GPU: its packed bits, its best tiles, and what it says it needs."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from _formats import generator, normal, unsaved
from _two_four import VERSIONS, OnGpu, pretend
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.sparse import SparseSemiStructuredTensor
from torch.utils._python_dispatch import TorchDispatchMode

from hwbench import plugins
from hwbench.errors import UsageError
from hwbench.formats import _groups, semi_structured, two_four_training
from hwbench.formats._base import FORWARD, STEP, Format, Linear
from hwbench.meters.memory import saved_bytes
from hwbench.workloads._base import Subject


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
    packs: list[tuple[bool, bool]] = []

    def pack(dense: Tensor) -> Tensor:
        switches = SparseSemiStructuredTensor
        packs.append((switches._FORCE_CUTLASS, switches._FUSE_TRANSPOSE))
        return dense.clone()

    monkeypatch.setattr(semi_structured, "to_sparse_semi_structured", pack)
    for kernel in ("cusparselt", "cusparselt_searched", "cutlass"):
        packs.clear()
        layer = made(build("semi_structured", 8, 16, kernel=kernel))
        first = layer.packed()
        assert layer.packed() is first
        torch.optim.SGD(layer.parameters(), lr=1.0).step()  # no gradient, no step
        assert layer.packed() is first
        with torch.no_grad():
            layer.values.mul_(2)
        assert torch.equal(layer.packed(), 2 * first)
        assert packs == [(kernel == "cutlass", True)] * 2
        copied = copy.deepcopy(layer)
        assert torch.equal(copied.packed(), layer.packed())
        assert packs == [(kernel == "cutlass", True)] * 3
        assert torch.equal(copied.to_dense(), layer.to_dense())
        assert SparseSemiStructuredTensor._FORCE_CUTLASS is False
        assert SparseSemiStructuredTensor._FUSE_TRANSPOSE is False


class _Copies(TorchDispatchMode):
    """The shapes of what is copied because it lies another way than is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.clone, torch.ops.aten.copy_):
            self.shapes.append(tuple(result.shape))
        return result


SPARSE = [("semi_structured", "cusparselt"), ("semi_structured", "cusparselt_searched")]
SPARSE += [("two_four_training", "compress"), ("two_four_training", "static_sort")]


def _on_gpu(f: Format, tokens: int) -> tuple[Linear, Tensor, Tensor]:
    layer = made(f)
    x = normal(tokens, f.in_features).as_subclass(OnGpu)
    trains = f.name() == "two_four_training"
    layer.requires_grad_(trains)
    return layer, x.requires_grad_(trains), normal(tokens, f.out_features, seed=2)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("name", "kernel"), SPARSE)
def test_no_product_is_copied(
    name: str, kernel: str, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither y nor the gradient of x, whichever way torch lets cuSPARSELt write them."""
    pretend(monkeypatch, version)
    f = build(name, 32, 64, kernel=kernel)
    for tokens in (1, 5, 16):
        layer, x, dy = _on_gpu(f, tokens)
        with _Copies() as copies:
            y = layer(x)
            given = torch.autograd.grad(y, [x, *layer.parameters()], dy) if x.requires_grad else ()
        assert not {(tokens, 32), (tokens, 64)} & set(copies.shapes)
        dense, plain = layer.to_dense().detach(), x.detach().as_subclass(Tensor)
        assert y.is_contiguous()
        assert torch.allclose(y, plain @ dense.mT, atol=1e-5)
        if given:
            assert given[0].is_contiguous()
            assert torch.allclose(given[0], dy @ dense, atol=1e-5)
            assert torch.allclose(given[1], (dy.mT @ plain) * (dense != 0), atol=1e-5)
    assert SparseSemiStructuredTensor._FUSE_TRANSPOSE is False


@pytest.mark.parametrize(("name", "kernel"), SPARSE)
def test_tokens_that_are_padded_are_counted(name: str, kernel: str) -> None:
    f = build(name, 32, 64, kernel=kernel)
    ready, ragged = (f.cost(tokens, 2, FORWARD).intermediate_bytes for tokens in (16, 13))
    assert ragged - ready == 2 * 2 * 16 * 64
    assert f.copied_width() == f.intermediate_width() == 0
    if name == "two_four_training":
        ready, ragged = (f.cost(tokens, 2, STEP).intermediate_bytes for tokens in (16, 13))
        assert ragged - ready == 2 * 2 * 16 * (64 + 32)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_best_algorithm_is_searched_once(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = pretend(monkeypatch, version)
    plain, x, _ = _on_gpu(build("semi_structured", 32, 64), 5)
    plain(x)
    assert (library.searched, library.algorithms) == ([], [0])
    layer, x, _ = _on_gpu(build("semi_structured", 32, 64, kernel="cusparselt_searched"), 5)
    library.algorithms.clear()
    for _ in range(3):
        layer(x)
    layer(x[:3])
    assert (library.searched, library.algorithms) == ([8], [library.BEST] * 4)
    layer(torch.cat([x, x]))  # more tokens, for which another one may be the best
    assert library.searched == [8, 16]
    with torch.no_grad():
        layer.values.mul_(2)  # packed anew, and the algorithms stay
    layer(x)
    assert library.searched == [8, 16]
    assert library.algorithms[-1] == library.BEST
    layer.forget()
    layer(x)
    assert library.searched == [8, 16, 8]
    copied = copy.deepcopy(layer)
    assert torch.equal(copied.to_dense(), layer.to_dense())


@pytest.mark.parametrize("kernel", ["compress", "static_sort"])
def test_what_training_packs_is_counted_as_saved(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """x, the mask, and what is packed for the way back; static_sort packs both ways at once."""
    pretend(monkeypatch, "2.11")
    layer, x, dy = _on_gpu(build("two_four_training", 32, 64, kernel=kernel), 16)
    subject = Subject(step=lambda _: torch.autograd.grad(layer(x), x, dy), grad=True, module=layer)
    packed = 4 * 32 * 64 * (1 if kernel == "compress" else 2)
    assert saved_bytes(subject) == 4 * 16 * 64 + 32 * 64 + packed
    assert not unsaved(layer, layer(x))


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
