"""torchao's products on CUDA of a weight of codes: what its configurations multiply by.

torchao chooses codes by itself when it is given a weight. Here it is given the weight that our
codes stand for, which settles the class and the layout of what it makes, and then our own codes and
scales are written into that: ``rounding`` and ``group`` mean what they mean for every other kernel.
torchao is an extra, and is imported where it is used.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwbench.errors import UsageError
from hwbench.formats import _probe, _quantize
from hwbench.formats._kernel import uncompiled
from hwbench.formats._quantized_kernels import Coded, CodedWeight, InBFloat16

EXTRA = "pip install 'hwbench-torch[torchao]'"
FP8_ERROR = 5e-2
"""By how much activations that are rounded to float8_e4m3fn may change a product, relatively.

There are eight steps between two powers of two: a value is missed by 1/16 of itself at most, and
evenly spread ones by 2.4 % in the root mean square. What is measured is shown.
"""


class TorchAo(InBFloat16, of=CodedWeight):
    """What torchao's configuration of the type does: int8, int4, fp8, with weights alone or both.

    Its products are in bfloat16. What the classes below have in common; of a type and activations
    that none of them has, it says so.
    """

    name = "torchao"
    activations = ""
    devices = ("cuda",)

    multiples: ClassVar[tuple[int, int]] = (1, 1)
    """out_features and in_features must be multiples of these."""

    def for_knobs(self, described: Any) -> TorchAo:
        return _offered().get((described.type, described.activations), self)

    def apply(self, layer: Any, x: Tensor) -> Tensor:
        if x.device.type not in self.devices:
            raise UsageError(f"kernel={self.name} multiplies on CUDA, not on {x.device.type}.")
        return self.product(layer, x)

    def product(self, layer: Any, x: Tensor) -> Tensor:
        """x Ŵᵀ on whatever device torchao answers for."""
        build = lambda: self.packed(layer)  # noqa: E731
        weight = layer.derived.get(layer.operands(), build, trusting=layer.trusting)
        y = functional.linear(_quantize.in_rows(x, torch.bfloat16), weight)
        return _quantize.as_before(y, x).contiguous()

    @uncompiled
    def packed(self, layer: Any) -> Any:
        """torchao's tensor of the codes of a layer.

        Raises:
            UsageError: this torchao does not quantise such a layer, or lays it out in another way.
        """
        torchao = import_module(f"{self.name}.quantization")
        dense = layer.coded_dense().bfloat16()
        out, inputs = dense.shape
        linear = nn.Linear(inputs, out, bias=False, device="meta")
        linear.weight = nn.Parameter(dense, requires_grad=False)
        torchao.quantize_(nn.Sequential(linear), self.configuration(torchao, layer))
        made = linear.weight
        for part, values in self.parts(layer, made).items():
            _write(made, part, values)
        return made

    def configuration(self, torchao: Any, layer: Coded) -> Any:
        """torchao's own, without a change of settings of the whole process."""
        del torchao, layer
        raise UsageError(f"kernel={self.name} takes {_takes()}.")

    def parts(self, layer: Coded, made: Any) -> dict[str, Tensor]:
        """Our codes and scales, by the names that torchao's tensor has for them."""
        del made
        return {"qdata": layer.codes, "scale": layer.scale}

    def refuses(
        self, described: Any, device: str, dtype: torch.dtype, direction: str
    ) -> str | None:
        me = f"kernel={self.name} of {described.name()}"
        if device not in self.devices:
            return f"{me} multiplies on CUDA: torchao's wheel has no kernels for CPUs."
        if not self.type:
            asked = f"type={described.type} with activations={described.activations}"
            return f"{me} takes {_takes()}, not {asked}; use kernel=dequantise."
        return (
            super().refuses(described, device, dtype, direction)
            or self._misfit(me, described.out_features, described.in_features)
            or _absent(me)
            or _refused_here(type(described), self.type, self.activations)
        )

    def _misfit(self, me: str, *sides: int) -> str | None:
        if not any(side % multiple for side, multiple in zip(sides, self.multiples, strict=True)):
            return None
        out, inputs = self.multiples
        return (
            f"{me} wants out_features to be a multiple of {out} and in_features of {inputs} for "
            f"{self.type} with activations={self.activations}, not {sides[0]}x{sides[1]}; use "
            f"kernel=dequantise."
        )


class Int8(TorchAo):
    """``Int8WeightOnlyConfig``: a dense product with codes that are widened in every call.

    There is no operator that reads codes; a compiler may widen them inside its own product.
    """

    operators = r"aten::mm$"
    type, activations = "int8", "none"
    materialises = True

    def configuration(self, torchao: Any, layer: Coded) -> Any:
        return torchao.Int8WeightOnlyConfig(version=2, set_inductor_config=False)

    def weight_bytes(self, weights: int, item_bytes: int) -> int:
        return 2 * weights * 2  # written in bfloat16, and read by the product

    def token_bytes(self, out_features: int, in_features: int, item_bytes: int) -> int:
        unscaled = 2 * 2 * out_features
        return super().token_bytes(out_features, in_features, item_bytes) + unscaled


class Int8Dynamic(TorchAo):
    """``Int8DynamicActivationInt8WeightConfig``: ``_int_mm``, with a scale for each token.

    torchao multiplies on the CPU where a side is no multiple of 8. Where ``_int_mm`` refuses a
    call, as it did of 16 tokens and fewer (pytorch#178469), torchao multiplies codes in float32.
    """

    operators = r"aten::_int_mm$"
    type, activations = "int8", "dynamic"
    multiples = (8, 8)

    def configuration(self, torchao: Any, layer: Coded) -> Any:
        return torchao.Int8DynamicActivationInt8WeightConfig(version=2, set_inductor_config=False)

    def token_bytes(self, out_features: int, in_features: int, item_bytes: int) -> int:
        scaled = 2 * (4 + 4 + 2 + 4) * out_features  # sums, in float32, in bfloat16, in float32
        moved = 2 * in_features + scaled
        return super().token_bytes(out_features, in_features, item_bytes) + moved

    def rounding(self, dtype: torch.dtype) -> float:
        return super().rounding(dtype) + _quantize.ROUNDING_ERROR


class Fp8Dynamic(TorchAo):
    """``Float8DynamicActivationFloat8WeightConfig``: ``_scaled_mm``, with a scale for each token.

    Activations are rounded to float8_e4m3fn, and not to int8. Where the library mslk is installed,
    torchao takes its operator.
    """

    operators = r"(aten::_scaled_mm|mslk::f8f8bf16_rowwise)$"
    type, activations = "fp8", "dynamic"
    multiples = (16, 16)

    def configuration(self, torchao: Any, layer: Coded) -> Any:
        return torchao.Float8DynamicActivationFloat8WeightConfig(
            granularity=torchao.PerRow(), set_inductor_config=False
        )

    def parts(self, layer: Coded, made: Any) -> dict[str, Tensor]:
        return {**super().parts(layer, made), "qdata": layer.codes.view(torch.float8_e4m3fn)}

    def token_bytes(self, out_features: int, in_features: int, item_bytes: int) -> int:
        return super().token_bytes(out_features, in_features, item_bytes) + 2 * in_features

    def rounding(self, dtype: torch.dtype) -> float:
        return super().rounding(dtype) + FP8_ERROR


class Int4(TorchAo):
    """``Int4WeightOnlyConfig``, tile-packed: ``_weight_int4pack_mm``, which widens codes inside.

    torchao pads in_features to a multiple of 1024, with codes whose scale is zero. The bytes of a
    call count that for activations; FLOPs do not count it.
    """

    operators = r"aten::_weight_int4pack_mm$"
    type, activations = "int4", "none"
    groups = (128, 64, 32, 256)

    PADDED = 1024

    def configuration(self, torchao: Any, layer: Coded) -> Any:
        return torchao.Int4WeightOnlyConfig(
            group_size=layer.group,
            int4_packing_format="tile_packed_to_4d",
            set_inductor_config=False,
        )

    def parts(self, layer: Coded, made: Any) -> dict[str, Tensor]:
        eighths, tiles, _, half = _part(
            made, "qdata"
        ).shape  # of out; of in, with 16 columns · inner tiles
        inner = 2 * half
        codes = layer.integers()
        out, inputs = codes.shape
        missing = (0, 16 * inner * tiles - inputs, 0, 8 * eighths - out)
        wide = functional.pad(codes, missing)
        pairs = (wide[:, ::2] << 4 | wide[:, 1::2]).contiguous()
        both = torch.stack([layer.scale.t(), layer.centre.t()], -1).bfloat16()  # (groups, out, 2)
        scales = torch.zeros_like(_part(made, "scale_and_zero"))
        scales[: both.shape[0], :out] = both
        return {"qdata": _packed_tiles(pairs, inner), "scale_and_zero": scales}

    def token_bytes(self, out_features: int, in_features: int, item_bytes: int) -> int:
        padded = -(-in_features // self.PADDED) * self.PADDED
        return super().token_bytes(out_features, in_features, item_bytes) + 2 * 2 * padded


@cache
def _offered() -> dict[tuple[str, str], TorchAo]:
    """The configurations, by type and activations."""
    made: list[TorchAo] = [Int8(), Int8Dynamic(), Int4(), Fp8Dynamic()]
    return {(each.type, each.activations): each for each in made}


def _takes() -> str:
    """The types with the activations of each, in words."""
    by: dict[str, list[str]] = {}
    for kind, activations in _offered():
        by.setdefault(kind, []).append(activations)
    ways = [f"{kind} with activations={' or '.join(some)}" for kind, some in by.items()]
    return f"{', '.join(ways[:-1])} and {ways[-1]}"


def _packed_tiles(pairs: Tensor, inner: int) -> Tensor:
    """Pairs of codes to a byte, the first in its upper half, as CUDA's tensor cores read them."""
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack(pairs, inner)  # noqa: SLF001
    return packed


def _part(made: Any, name: str) -> Tensor:
    """A part of torchao's tensor.

    Raises:
        UsageError: it has no such part: torchao passes over layers that it does not quantise.
    """
    part = getattr(made, name, None)
    if not isinstance(part, Tensor):
        raise UsageError(
            f"This torchao leaves a weight of {_sides(made)} as it is, or keeps no {name} of it."
        )
    return part


def _write(made: Any, part: str, values: Tensor) -> None:
    """Put values into a part of torchao's tensor.

    Raises:
        UsageError: there is no such part, or it has another shape or, for codes, another dtype.
    """
    there = _part(made, part)
    if there.numel() != values.numel() or (part == "qdata" and there.dtype != values.dtype):
        raise UsageError(
            f"This torchao lays {part} out as {_sides(there)} in {there.dtype}, and hwbench writes "
            f"{_sides(values)} in {values.dtype}."
        )
    there.copy_(values.reshape(there.shape))


def _sides(values: Tensor) -> str:
    return "x".join(map(str, values.shape))


def _absent(me: str) -> str | None:
    """Why torchao cannot be imported; None where it can, which is found without importing it."""
    if find_spec(TorchAo.name) is None:
        return f"{me} does not run here without torchao: {EXTRA}."
    return None


def _refused_here(kind: Any, type_: str, activations: str) -> str | None:
    """Why a small product does not run or is wrong on the GPU here; None without one."""
    return _trial(kind, type_, activations) if _probe.on_cuda() else None


@cache
def _trial(kind: Any, type_: str, activations: str) -> str | None:
    """Try a small product on the GPU; say why it does not run or is wrong, or None."""
    example = kind.from_knobs(
        _probe.SIDE, _probe.SIDE, kernel=TorchAo.name, type=type_, activations=activations
    )

    def right() -> bool:
        source = torch.Generator("cuda").manual_seed(0)
        layer = example.random(dtype=torch.bfloat16, generator=source)
        x = torch.randn(_probe.TOKENS, _probe.SIDE, generator=source, device="cuda")
        x = x.bfloat16()
        exact = x.double() @ layer.to_dense().double().mT
        error = float((layer(x).double() - exact).norm() / exact.norm())
        return error <= layer.tolerance(x.dtype) + _probe.LIMITS[x.dtype]

    return _probe.tried(f"kernel={example.kernel} of {example.name()}", right)
