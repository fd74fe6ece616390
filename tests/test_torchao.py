"""The kernel ``torchao``: what it refuses in words, and that torchao multiplies by our codes.

A stand-in of torchao chooses its own codes, and so badly that a product shows whose codes it has.
What torchao itself computes is tried where it is installed: on a CPU by its reference, and by the
tests marked cuda on a GPU.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from _formats import assert_sentence, generator, normal, relative
from _tiers import sampled
from torch import Tensor, nn
from torch.nn import functional

from hwbench.devices._settings import settings
from hwbench.errors import KnobError, UsageError
from hwbench.formats import _probe, _quantize, _torchao
from hwbench.formats._base import BACKWARD_INPUT, FORWARD, STEP
from hwbench.formats.quantized import Quantized
from hwbench.formats.quantized_low_rank import QuantizedLowRank
from hwbench.meters._profile import claim

NAME = "torchao"
OFFERED = [("int8", "none"), ("int8", "dynamic"), ("int4", "none"), ("fp8", "dynamic")]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
every_way = pytest.mark.parametrize(("kind", "activations"), OFFERED)
installed = pytest.mark.skipif(find_spec(NAME) is None, reason="torchao is not installed")


def build(
    kind: str, activations: str, shape: tuple[int, int] = (64, 128), **knobs: Any
) -> Quantized:
    knobs = {"kernel": NAME, "type": kind, "activations": activations, **knobs}
    return Quantized.from_knobs(*shape, **knobs)


def on_a_gpu_machine(patch: pytest.MonkeyPatch, *, torchao: bool) -> None:
    """No GPU is asked, and torchao is or is not there."""
    patch.setattr(_probe, "on_cuda", lambda: False)
    patch.setattr(_torchao, "find_spec", lambda _: object() if torchao else None)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("activations", ["none", "dynamic"])
@pytest.mark.parametrize("kind", list(_quantize.TYPES))
def test_it_runs_or_says_in_a_sentence_what_is_missing(
    kind: str, activations: str, device: str, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_gpu_machine(monkeypatch, torchao=there)
    f = build(kind, activations)
    for dtype, direction in itertools.product(DTYPES, (FORWARD, BACKWARD_INPUT)):
        reason = f.unsupported(device, dtype, direction)
        if device == "cpu":
            assert "torchao's wheel has no kernels for CPUs" in str(reason)
        elif (kind, activations) not in OFFERED:
            said = f"not type={kind} with activations={activations}; use kernel=dequantise."
            assert said in str(reason)
        elif not there:
            assert "without torchao: pip install 'hwbench-torch[torchao]'." in str(reason)
        else:
            assert reason is None
        assert reason is None or reason.startswith("kernel=torchao of quantized ")
        if reason is not None:
            assert_sentence(reason)
    assert "no gradient" in str(f.unsupported(device, torch.float32, STEP))


def test_what_it_takes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu_machine(monkeypatch, torchao=True)
    reason = build("nf4", "none").unsupported("cuda", torch.bfloat16, FORWARD)
    ways = (
        "int8 with activations=none or dynamic, int4 with activations=none and fp8 with "
        "activations=dynamic"
    )
    assert f"takes {ways}, not" in str(reason)


@pytest.mark.parametrize(
    ("kind", "activations", "shape"),
    [
        ("int8", "dynamic", (60, 64)),
        ("int8", "dynamic", (64, 60)),
        ("fp8", "dynamic", (72, 64)),
        ("fp8", "dynamic", (64, 72)),
    ],
)
def test_sides_that_torchao_does_not_multiply_are_refused(
    kind: str, activations: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_gpu_machine(monkeypatch, torchao=True)
    reason = build(kind, activations, shape).unsupported("cuda", torch.bfloat16, FORWARD)
    assert f"not {shape[0]}x{shape[1]}" in str(reason)
    assert_sentence(reason)


def test_knobs_that_no_configuration_has_are_refused() -> None:
    for kind, group in (("int8", 32), ("int4", 16), ("fp8", 64)):
        activations = "dynamic" if kind == "fp8" else "none"
        with pytest.raises(KnobError, match=f"takes groups of .* columns, not {group}") as refusal:
            build(kind, activations, group=group)
        assert_sentence(refusal.value)
    assert "float64" in str(build("int8", "none").unsupported("cuda", torch.float64, FORWARD))


def test_it_is_never_taken_unasked() -> None:
    for kind, activations in itertools.product(_quantize.TYPES, ("none", "dynamic", None)):
        assert Quantized.from_knobs(64, 64, type=kind, activations=activations).kernel != NAME


def test_on_a_processor_a_call_is_refused_too() -> None:
    layer = build("int8", "none").project(normal(64, 128))
    with pytest.raises(UsageError, match="on CUDA, not on cpu") as refusal:
        layer(normal(3, 128))
    assert_sentence(refusal.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which may answer")
@every_way
def test_what_the_gpu_answers_is_told(
    kind: str, activations: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_gpu_machine(monkeypatch, torchao=True)
    monkeypatch.setattr(_probe, "on_cuda", lambda: True)
    _torchao._trial.cache_clear()
    try:
        reason = build(kind, activations).unsupported("cuda", torch.bfloat16, FORWARD)
        assert str(reason).startswith("kernel=torchao of quantized does not run here: ")
        assert_sentence(reason)
    finally:
        _torchao._trial.cache_clear()


def test_planning_imports_no_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    def imported(name: str) -> Any:
        raise AssertionError(name)

    on_a_gpu_machine(monkeypatch, torchao=True)
    monkeypatch.setattr(_torchao, "import_module", imported)
    for kind, activations in OFFERED:
        f = build(kind, activations)
        f.project(normal(64, 128)).to_dense()
        assert f.unsupported("cuda", torch.bfloat16, FORWARD) is None


# --- whose codes are multiplied -----------------------------------------------------------------


class Made:
    """A quantised weight of the stand-in; its own codes are all one."""

    def __init__(self, dense: Tensor, config: SimpleNamespace) -> None:
        out, inputs = self.shape = dense.shape
        self.config = config
        self.scale = torch.ones(out, 1, dtype=torch.bfloat16)
        code = torch.float8_e4m3fn if config.name.startswith("Float8") else torch.int8
        self.qdata = torch.ones(out, inputs).to(code)
        if config.name.startswith("Int4"):
            wide, high = -(-inputs // 1024) * 1024, -(-out // 8) * 8
            self.qdata = torch.ones(high // 8, wide // 128, 32, 4, dtype=torch.int32)
            groups = wide // config.group_size
            self.scale_and_zero = torch.ones(groups, high, 2, dtype=torch.bfloat16)

    def dense(self) -> Tensor:
        if self.qdata.dim() == 2:
            return self.qdata.float() * self.scale.float()
        rows = 8 * self.qdata.shape[0]
        pairs = self.qdata.reshape(rows, -1).view(torch.uint8)
        codes = torch.stack([pairs >> 4, pairs & 15], -1).flatten(1).float() - 8
        scale, zero = self.scale_and_zero.float().transpose(0, 1).unbind(-1)
        grouped = codes.unflatten(1, (scale.shape[1], -1))
        return (grouped * scale[..., None] + zero[..., None]).flatten(1)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Tensor:
        assert func is functional.linear
        x, weight = args
        assert x.dtype == torch.bfloat16
        wide = functional.pad(x, (0, weight.dense().shape[1] - x.shape[1]))
        y = (wide.float() @ weight.dense().mT).bfloat16()
        return y[:, : weight.shape[0]]  # a view of rows that are longer, as torchao's may be


@dataclass
class Library:
    """Takes the place of ``torchao.quantization``."""

    makes: Any = Made
    asked: SimpleNamespace | None = None

    def __getattr__(self, name: str) -> Any:
        return lambda **given: SimpleNamespace(name=name, **given)

    def quantize_(self, model: nn.Module, config: SimpleNamespace) -> None:
        self.asked = config
        for linear in model.children():
            dense = linear.weight
            assert dense.dtype == torch.bfloat16
            del linear.weight
            linear.weight = self.makes(dense, config)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    stand_in = Library()
    monkeypatch.setattr(_torchao, "import_module", lambda _: stand_in)

    def packed(pairs: Tensor, inner: int) -> Tensor:
        out, half = pairs.shape
        return pairs.view(torch.int32).view(out // 8, 2 * half // (16 * inner), 32, inner // 2)

    monkeypatch.setattr(_torchao, "_packed_tiles", packed)
    monkeypatch.setattr(_torchao.TorchAo, "devices", ("cpu", "cuda"))
    return stand_in


@every_way
@pytest.mark.parametrize("shape", sampled(map(pytest.param, [(44, 192), (64, 128), (48, 1152)]), 3))
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_torchao_multiplies_by_our_codes(
    kind: str, activations: str, shape: tuple[int, int], rounding: str, dtype: torch.dtype,
    library: Library,
) -> None:  # fmt: skip
    f = build(kind, activations, shape, rounding=rounding)
    layer = f.project(normal(*shape).to(dtype), activations=normal(256, shape[1], seed=3))
    x = normal(5, shape[1], seed=2).to(dtype)
    y = layer(x)
    exact = x.double() @ layer.to_dense().double().mT
    assert y.dtype == dtype
    assert y.is_contiguous()
    assert relative(y, exact) <= 1e-2
    assert library.asked is not None
    assert library.asked.set_inductor_config is False


@every_way
def test_what_torchao_made_follows_the_codes(kind: str, activations: str, library: Library) -> None:
    layer, x = build(kind, activations).project(normal(64, 128)), normal(5, 128, seed=2)
    before = layer(x)
    layer.codes.copy_(layer.codes.flip(0))
    exact = x.double() @ layer.to_dense().double().mT
    assert relative(layer(x), exact) <= 1e-2 < relative(before, exact)


def test_factors_stand_beside_its_product(library: Library) -> None:
    f = QuantizedLowRank.from_knobs(64, 128, kernel=NAME, type="int4", rank=4)
    layer, x = f.project(normal(64, 128)), normal(5, 128, seed=2)
    exact = x.double() @ layer.to_dense().detach().double().mT
    assert relative(layer(x).detach(), exact) <= 1e-2


@every_way
def test_another_layout_of_torchao_is_refused(
    kind: str, activations: str, library: Library
) -> None:
    class Bare(Made):
        def __init__(self, dense: Tensor, config: SimpleNamespace) -> None:
            super().__init__(dense, config)
            del self.qdata

    class Longer(Made):
        def __init__(self, dense: Tensor, config: SimpleNamespace) -> None:
            super().__init__(dense, config)
            self.qdata = torch.cat([self.qdata.float(), self.qdata.float()]).to(self.qdata.dtype)
            self.scale = torch.cat([self.scale, self.scale])

    class Wider(Made):
        def __init__(self, dense: Tensor, config: SimpleNamespace) -> None:
            super().__init__(dense, config)
            self.qdata = self.qdata.to(torch.int64)

    for makes in (lambda dense, _: dense, Longer, Wider, Bare):
        if kind == "int4" and makes in (Longer, Bare):
            continue  # the sides of its layout say what is written
        library.makes = makes
        layer = build(kind, activations).project(normal(64, 128))
        with pytest.raises(UsageError, match="This torchao") as refusal:
            layer(normal(3, 128))
        assert_sentence(refusal.value)


# --- what is told of it -------------------------------------------------------------------------


def test_each_configuration_claims_its_own_operator() -> None:
    claimed = {way: build(*way).implementation for way in OFFERED}
    shown = ["aten::mm", "aten::_int_mm", "aten::_weight_int4pack_mm", "aten::_scaled_mm"]
    for way, operator in zip(OFFERED, shown, strict=True):
        for ran in shown:
            verdict = "confirmed" if ran == operator else "contradicted"
            assert claim(claimed[way], {ran, "aten::linear"}, set())[0] == verdict, (way, ran)
    assert [build(*way).MATERIALISES for way in OFFERED] == [True, False, False, False]


def test_costs_count_what_each_configuration_moves() -> None:
    tokens, out, inputs = 3, 64, 128
    weights, both = out * inputs, 2 * 2 * (out + inputs)
    moved = {  # in bfloat16: the weight, and what is written and read for each token
        ("int8", "none"): (2 * 2 * weights, 2 * 2 * out),
        ("int8", "dynamic"): (0, 2 * inputs + 2 * (4 + 4 + 2 + 4) * out),
        ("int4", "none"): (0, 2 * 2 * 1024),
        ("fp8", "dynamic"): (0, 2 * inputs),
    }
    for way, (once, each) in moved.items():
        f = build(*way, (out, inputs))
        assert f.cost(tokens, 2, FORWARD).intermediate_bytes == once + tokens * each
        in_float32 = f.cost(tokens, 4, FORWARD).intermediate_bytes
        assert in_float32 == once + tokens * (each + both)
        assert f.cost(tokens, 2, FORWARD).flops == 2 * tokens * weights


def test_rounded_activations_are_allowed_for() -> None:
    """A value in float8_e4m3fn is missed by 2.4 % of itself, and a code of int8 by less."""
    x = normal(64, 512)
    largest = x.abs().amax(1, keepdim=True) / _quantize.FP8_LARGEST
    rounded = (x / largest).to(torch.float8_e4m3fn).float() * largest
    error = relative(rounded, x)
    assert 0.02 < error < _torchao.FP8_ERROR
    layers = {way: build(*way).project(normal(64, 128)) for way in OFFERED}
    allowed = {way: layer.tolerance(torch.bfloat16) for way, layer in layers.items()}
    assert allowed["fp8", "dynamic"] == _torchao.FP8_ERROR
    assert allowed["int8", "dynamic"] == _quantize.ROUNDING_ERROR
    assert allowed["int8", "none"] == allowed["int4", "none"] == 0


# --- torchao itself -----------------------------------------------------------------------------


def right(f: Quantized, device: str, dtype: torch.dtype, tokens: int) -> None:
    """One call is what the codes stand for."""
    shape = (f.out_features, f.in_features)
    weight = normal(*shape).to(device, dtype)
    layer = f.project(weight, activations=normal(300, shape[1], seed=3).to(device))
    x = normal(tokens, shape[1], seed=2).to(device, dtype)
    y = layer.kernel.product(layer, x)
    exact = x.double() @ layer.to_dense().double().mT
    beside = {torch.float32: 1e-5, torch.float16: 2.5e-3, torch.bfloat16: 2e-2}[dtype]
    assert relative(y.cpu(), exact.cpu()) <= layer.tolerance(dtype) + beside
    assert y.is_contiguous()


@installed
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize(("kind", "activations"), [way for way in OFFERED if way[0] != "int4"])
def test_the_reference_of_torchao_multiplies_by_our_codes(
    kind: str, activations: str, rounding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """int4 has none: its layout is made by an operator of CUDA."""
    if kind == "fp8":  # for which torchao asks the device alone
        made = import_module("torchao.quantization.quant_api")
        monkeypatch.setattr(made, "_check_hardware_support", lambda _: None)
    before = settings()
    for dtype, tokens in itertools.product(DTYPES, (1, 33)):
        right(build(kind, activations, (64, 128), rounding=rounding), "cpu", dtype, tokens)
    assert settings() == before


@pytest.mark.cuda
@installed
@every_way
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("shape", [(64, 128), (96, 1024), (1024, 1152)])
def test_torchao_multiplies_by_our_codes_on_cuda(
    kind: str, activations: str, rounding: str, shape: tuple[int, int]
) -> None:
    f = build(kind, activations, shape, rounding=rounding)
    for dtype, tokens in itertools.product(DTYPES, (1, 16, 33)):
        if reason := f.unsupported("cuda", dtype, FORWARD):
            pytest.skip(reason)
        right(f, "cuda", dtype, tokens)


@pytest.mark.cuda
@installed
@every_way
def test_the_operator_that_is_claimed_runs_on_cuda(kind: str, activations: str) -> None:
    f = build(kind, activations, (256, 1024))
    if reason := f.unsupported("cuda", torch.bfloat16, FORWARD):
        pytest.skip(reason)
    layer = f.random(dtype=torch.bfloat16, generator=generator(device="cuda"))
    x = normal(64, 1024).to("cuda", torch.bfloat16)
    layer(x)
    with torch.no_grad(), torch.profiler.profile() as profiler:
        layer(x)
    operators = {event.key for event in profiler.key_averages()}
    assert claim(f.implementation, operators, set())[0] == "confirmed", operators
