"""Weights packed for CPU libraries: when they are packed anew, and what is not packed."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from _formats import assert_near, assert_sentence, generator, normal
from torch import Tensor, nn

from hwbench import plugins
from hwbench.errors import UsageError
from hwbench.formats import _onednn, _packing
from hwbench.formats._base import BACKWARD, FORWARD, STEP, Format, Linear

LIBRARIES = _packing.Packable.kernels()
KERNELS = [
    name
    for name, kernel in LIBRARIES.items()
    if kernel.refuses(None, "cpu", torch.float32, FORWARD) is None
]
EVERY = [(name, kernel) for name in ("packed_dense", "low_rank") for kernel in KERNELS]
CASES = pytest.mark.parametrize(("name", "kernel"), EVERY)


def made(name: str, kernel: str) -> Linear:
    cls = plugins.load("formats", name, Format)
    density = {"density": 0.5} if name == "low_rank" else {}
    f = cls.from_knobs(48, 64, kernel=kernel, **density)
    return f.random(dtype=torch.float32, generator=generator()).requires_grad_(False)


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shape and tokens of every weight that is packed."""
    found: list[tuple[int, ...]] = []

    def noted(pack: Any) -> Any:
        def packs(kernel: Any, weight: Tensor, tokens: int) -> Tensor:
            found.append((*weight.shape, tokens))
            layout: Tensor = pack(kernel, weight, tokens)
            return layout

        return packs

    for kind in map(type, LIBRARIES.values()):
        monkeypatch.setattr(kind, "pack", noted(kind.pack))
    return found


def assert_is_its_dense(layer: Linear, tokens: int = 5) -> None:
    x = normal(tokens, layer.in_features, seed=tokens)
    assert_near(layer(x), x.double() @ layer.to_dense().double().mT, torch.float32)


@CASES
def test_each_weight_is_packed_once_for_a_number_of_tokens(
    name: str, kernel: str, packed: list[tuple[int, ...]]
) -> None:
    layer = made(name, kernel)
    weights = len(list(layer.parameters()))
    for _ in range(3):
        assert_is_its_dense(layer)
    assert len(packed) == weights
    assert_is_its_dense(layer, 6)
    assert_is_its_dense(layer)
    assert len(packed) == 2 * weights
    assert {tokens for *_, tokens in packed} == {5, 6}


@CASES
def test_few_layouts_are_kept(name: str, kernel: str, packed: list[tuple[int, ...]]) -> None:
    layer = made(name, kernel)
    weights = len(list(layer.parameters()))
    for tokens in range(1, 10):
        assert_is_its_dense(layer, tokens)
    packed.clear()
    assert_is_its_dense(layer, 9)
    assert not packed
    assert_is_its_dense(layer, 1)
    assert len(packed) == weights


@CASES
def test_a_weight_that_changes_is_packed_anew(
    name: str, kernel: str, packed: list[tuple[int, ...]]
) -> None:
    layer, other = made(name, kernel), made(name, kernel)
    weights = list(layer.parameters())
    assert_is_its_dense(layer)
    before = layer(normal(5, 64))
    with torch.no_grad():
        weights[0].mul_(2)
    assert_is_its_dense(layer)
    assert_near(layer(normal(5, 64)), 2 * before, torch.float32)
    weights[0].data = weights[0].data.clone().mul_(3)  # other memory, the version as it was
    assert_is_its_dense(layer)
    packed.clear()
    layer.load_state_dict(other.state_dict())
    assert_is_its_dense(layer)
    assert len(packed) == len(weights)


@CASES
def test_copies_and_pickles_hold_no_layout(
    name: str, kernel: str, packed: list[tuple[int, ...]]
) -> None:
    layer = made(name, kernel)
    assert_is_its_dense(layer)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        packed.clear()
        assert_is_its_dense(other)
        assert len(packed) == len(list(layer.parameters()))


@CASES
def test_gradients_are_those_of_the_plain_product(
    name: str, kernel: str, packed: list[tuple[int, ...]]
) -> None:
    layer = made(name, kernel)
    x = normal(5, 64).requires_grad_()
    for tensors in ((x,), tuple(p.requires_grad_() for p in layer.parameters())):
        ours = torch.autograd.grad(layer(x).square().sum(), tensors)
        reference = torch.autograd.grad((x @ layer.to_dense().mT).square().sum(), tensors)
        for gradient, right in zip(ours, reference, strict=True):
            assert_near(gradient, right, torch.float32)
    assert not packed
    with torch.no_grad():
        assert_is_its_dense(layer)
    assert packed


@pytest.mark.heavy
@pytest.mark.parametrize(("name", "kernel"), EVERY)
def test_compiled_layer_is_the_same_map(name: str, kernel: str) -> None:
    layer = made(name, kernel)
    call: Any = torch.compile(layer, dynamic=False, backend="eager")
    x = normal(5, 64)
    assert torch.equal(call(x), layer(x))


@CASES
def test_a_dtype_that_cannot_be_packed_is_refused_in_words(name: str, kernel: str) -> None:
    layer = made(name, kernel).double()
    with torch.no_grad(), pytest.raises(UsageError, match="float"):
        layer(normal(5, 64).double())


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_tokens_give_no_rows(kernel: str) -> None:
    layer = made("packed_dense", kernel)
    layer.bias = nn.Parameter(normal(48))
    assert layer(normal(0, 64)).shape == (0, 48)


def test_where_nothing_can_be_packed_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(kernel: str, device: str, dtype: torch.dtype, direction: str) -> str:
        said = LIBRARIES[kernel].refuses(None, device, dtype, direction)
        assert_sentence(said)
        return said or ""

    for kernel in LIBRARIES:
        assert "CPU" in reason(kernel, "cuda", torch.float32, FORWARD)
        for direction in (BACKWARD, STEP):
            assert "training step" in reason(kernel, "cpu", torch.bfloat16, direction)
        assert "float" in reason(kernel, "cpu", torch.float64, FORWARD)
    assert "training step" in reason("mkl", "cpu", torch.float32, STEP)
    assert LIBRARIES["onednn"].refuses(None, "cpu", torch.float32, STEP) == _onednn.refusal(
        "cpu", torch.float32
    )
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    for kernel in LIBRARIES:
        assert "built without" in reason(kernel, "cpu", torch.float32, FORWARD)
    if "onednn" not in KERNELS:
        return
    monkeypatch.undo()
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert "bfloat16" in reason("onednn", "cpu", torch.bfloat16, FORWARD)
