"""How a layer of codes multiplies: torch's operators on integers, and the dense product.

Everything here comes with PyTorch for CPUs. Activations are rounded with a scale for each token;
an operator that takes a single scale is given tokens that were divided by their own first. A format
tries the kernels in the order in which they stand here.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from hwbench.formats import _quantize
from hwbench.formats._base import Format, by_direction
from hwbench.formats._derived import Derived
from hwbench.formats._kernel import Kernel, Torch

BITS16 = (torch.bfloat16, torch.float16)
FLOATS = (torch.float32, *BITS16)
NOTICE = "torch.quantize_per_tensor, torch.quantize_per_channel"
"""How torch's notice begins that its quantised tensors will be removed."""


class Coded:
    """What a kernel needs of a layer."""

    kind: _quantize.Type
    dynamic: bool
    group: int
    trusting: bool
    derived: Derived[Any]
    codes: Tensor
    scale: Tensor
    centre: Tensor

    def operands(self) -> tuple[Tensor, ...]:
        """Codes, scales and, where the type has them, centres: all that a product depends on."""
        raise NotImplementedError

    def coded_dense(self) -> Tensor:
        """The weight that the codes stand for."""
        raise NotImplementedError

    def integers(self) -> Tensor:
        """The codes one by one, (out, in)."""
        raise NotImplementedError


class Codes(Format):
    """A format that stores codes, which have no gradient: a call reads them, and writes none."""

    def compulsory_bytes(self, tokens: int, item_bytes: int, direction: str) -> int:
        x, y = tokens * self.in_features, tokens * self.out_features
        one_way = item_bytes * (x + y) + self.stored_bytes(item_bytes)
        both = item_bytes * (2 * x + y) + 2 * self.stored_bytes(item_bytes)
        return by_direction(
            direction, forward=one_way, to_input=one_way, to_weight=one_way, backward=both
        )


class CodedWeight(Codes):
    """A format whose weight is codes."""


class Product(Kernel, ABC):
    """One way to multiply by a layer of codes."""

    type: ClassVar[str] = ""  # the type that it takes; empty: any
    activations: ClassVar[str] = ""  # the one way to treat them; empty: any
    groups: ClassVar[tuple[int, ...]] = ()  # sizes of a group; empty: the row where type is given
    dtypes: ClassVar[tuple[torch.dtype, ...]] = FLOATS
    devices: ClassVar[tuple[str, ...]] = ("cpu",)

    @abstractmethod
    def apply(self, layer: Any, x: Tensor) -> Tensor:
        """x Ŵᵀ for x of (tokens, in), contiguous."""

    def refuses(
        self, described: Any, device: str, dtype: torch.dtype, direction: str
    ) -> str | None:
        del direction
        me = f"kernel={self.name} of {described.name()}"
        if device not in self.devices:
            return f"{me} is an operator for CPUs."
        if dtype not in self.dtypes:
            return f"{me} has no product in float64."
        return self.lacks(described.out_features, described.in_features, dtype)

    def lacks(self, out_features: int, in_features: int, dtype: torch.dtype) -> str | None:
        """Why it cannot multiply such a layer here, in words; None where it can."""
        del out_features, in_features, dtype
        return None

    def weight_bytes(self, weights: int, item_bytes: int) -> int:
        """Bytes that a call moves for the weight beside reading the codes."""
        del weights, item_bytes
        return 0

    def token_bytes(self, out_features: int, in_features: int, item_bytes: int) -> int:
        """Bytes a token that a call moves between its operators."""
        del out_features, in_features, item_bytes
        return 0

    def rounding(self, dtype: torch.dtype) -> float:
        """The relative error that it may add to that of the dtype."""
        del dtype
        return _quantize.ROUNDING_ERROR if self.activations == "dynamic" else 0.0


class Largest(Coded):
    """A layer whose codes are the largest: a sum of its products overflows where any does."""

    trusting = False

    def __init__(self) -> None:
        self.derived = Derived()
        self.codes = torch.full((16, 64), 127, dtype=torch.int8, device="cpu")
        self.scale = torch.ones(16, 1, device="cpu")

    def operands(self) -> tuple[Tensor, ...]:
        return self.codes, self.scale


class Integers(Product, ABC):
    """A library's product of integers, which is tried before it is trusted.

    Instructions that add two products in 16 bits overflow; processors with VNNI do not use them.
    """

    type, activations = "int8", "dynamic"

    def lacks(self, out_features: int, in_features: int, dtype: torch.dtype) -> str | None:
        return _lacks_integers(type(self))


@cache
def _lacks_integers(kind: type[Integers]) -> str | None:
    """None where the operator is there and its sums of the largest products are right."""
    layer, kernel = Largest(), kind()
    exact = float(layer.codes[0].sum())
    try:
        y = kernel.apply(layer, torch.ones(16, 64, device="cpu"))
    except (RuntimeError, AttributeError) as refused:
        said = str(refused).partition("\n")[0].rstrip(".")
        return f"{kernel.name} does not run here, use kernel=int_mm: {said}."
    if float((y - exact).abs().max()) > 0.01 * exact:
        return f"{kernel.name} overflows on this processor: use kernel=linear_dynamic_7bit."
    return None


class LinearDynamic(Integers, of=CodedWeight):
    """``quantized::linear_dynamic`` with tokens that were divided by their largest value first.

    The operator rounds activations with one scale a call. PyTorch gives a notice that the tensors
    that it takes, and so the operator, will be removed.
    """

    name = "linear_dynamic"
    operators = r"quantized::linear_dynamic$"
    seven_bits = False
    """Whether activations take the codes 0 to 127, as ``reduce_range`` of the operator has it."""

    def apply(self, layer: Coded, x: Tensor) -> Tensor:
        build = lambda: self.packed(layer.codes, layer.scale)  # noqa: E731
        multiply, packed = layer.derived.get(layer.operands(), build, trusting=layer.trusting)
        wide = x if x.dtype == torch.float32 else x.float()
        if x.shape[0] == 1:
            y: Tensor = multiply(wide, packed, self.seven_bits)
        else:
            largest = _quantize.largest_of_rows(wide).clamp_min_(_quantize.TINY)
            y = multiply(wide / largest, packed, self.seven_bits).mul_(largest)
        return y if wide is x else y.to(x.dtype)

    def packed(self, codes: Tensor, scale: Tensor) -> tuple[Any, Any]:
        """The operator, and what it takes beside x."""
        zeros = torch.zeros(len(codes), dtype=torch.int64, device=codes.device)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=NOTICE)
            weight = torch._make_per_channel_quantized_tensor(  # noqa: SLF001
                codes, scale[:, 0].double(), zeros, 0
            )
            packed = _quantized().linear_prepack(weight, None)
        return _plain(_quantized().linear_dynamic), packed

    def token_bytes(self, out_features: int, in_features: int, item_bytes: int) -> int:
        return 2 * (4 + 1) * in_features + 2 * 4 * out_features


class LinearDynamic7Bit(LinearDynamic, of=CodedWeight):
    """``linear_dynamic`` with activations of 7 bits, whose sums overflow on no processor.

    Two products of 7 and 8 bits fit into 16; the activations' error is twice as large.
    """

    name = "linear_dynamic_7bit"
    seven_bits = True

    def rounding(self, dtype: torch.dtype) -> float:
        return 2 * super().rounding(dtype)


class IntMm(Product, of=CodedWeight):
    """``_int_mm`` of codes of both, each token with its own scale."""

    name = "int_mm"
    operators = r"aten::_int_mm$"
    type, activations = "int8", "dynamic"

    def apply(self, layer: Coded, x: Tensor) -> Tensor:
        codes, scale = layer.operands()
        tokens, each = _quantize.quantised_tokens(x)
        y = torch._int_mm(tokens, codes.t())  # noqa: SLF001
        return _quantize.as_before(torch.mul(y, each).mul_(scale.t()), x)

    def lacks(self, out_features: int, in_features: int, dtype: torch.dtype) -> str | None:
        if in_features == 1:
            return "int_mm needs two inputs: it takes a column for a row."
        return None if hasattr(torch, "_int_mm") else "int_mm does not run here: torch lacks it."

    def token_bytes(self, out_features: int, in_features: int, item_bytes: int) -> int:
        return 2 * in_features + 2 * (4 + 4) * out_features


class OneDnn(Integers, of=CodedWeight):
    """``onednn::qlinear_pointwise`` of tokens in uint8 and a weight that is packed in advance."""

    name = "onednn"
    operators = r"onednn::qlinear_pointwise$"

    def apply(self, layer: Coded, x: Tensor) -> Tensor:
        build = lambda: self.packed(layer.codes, layer.scale)  # noqa: E731
        packed = layer.derived.get(layer.operands(), build, trusting=layer.trusting)
        codes, scale = _quantize.unsigned_tokens(x)
        y: Tensor = _onednn().qlinear_pointwise(
            codes, 1.0, 128, *packed, None,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return _quantize.as_before(y.mul_(scale), x)

    def packed(self, codes: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The weight as the operator wants it, the scale of each row, and its zero points."""
        scales = scale[:, 0].float().contiguous()
        packed = _onednn().qlinear_prepack(codes, None)
        return packed, scales, torch.zeros(len(scales), dtype=torch.int64, device=codes.device)

    def lacks(self, out_features: int, in_features: int, dtype: torch.dtype) -> str | None:
        if not torch.backends.mkldnn.is_available():
            return "onednn does not run here: PyTorch was built without it."
        return super().lacks(out_features, in_features, dtype)

    def token_bytes(self, out_features: int, in_features: int, item_bytes: int) -> int:
        return 2 * (1 + 1) * in_features + 2 * 4 * out_features


class InBFloat16(Product, ABC):
    """A product in bfloat16, as whose values x comes and goes."""

    activations = "none"

    def token_bytes(self, out_features: int, in_features: int, item_bytes: int) -> int:
        return 0 if item_bytes == 2 else 2 * 2 * (in_features + out_features)

    def rounding(self, dtype: torch.dtype) -> float:
        return 0.0 if dtype == torch.bfloat16 else 1e-2


class Widening(InBFloat16, ABC):
    """A product that widens codes inside itself, to bfloat16, as whose values x comes and goes.

    The operators take other dtypes too, a hundred times slower than a dense product.
    """

    def apply(self, layer: Coded, x: Tensor) -> Tensor:
        build = lambda: self.packed(layer)  # noqa: E731
        packed = layer.derived.get(layer.operands(), build, trusting=layer.trusting)
        if x.dtype == torch.bfloat16 and x.is_contiguous():
            return self.multiply(x, packed)
        return self.multiply(x.bfloat16().contiguous(), packed).to(x.dtype)

    @abstractmethod
    def packed(self, layer: Coded) -> tuple[Any, ...]:
        """What the operator takes beside x, in its order."""

    @abstractmethod
    def multiply(self, x: Tensor, packed: tuple[Any, ...]) -> Tensor:
        """x Ŵᵀ in bfloat16."""


class Int8Pack(Widening, of=CodedWeight):
    """``_weight_int8pack_mm``: codes of the weight alone, widened inside the product."""

    name = "int8pack"
    operators = r"aten::_weight_int8pack_mm$"
    type = "int8"

    def packed(self, layer: Coded) -> tuple[Any, ...]:
        return layer.codes, layer.scale[:, 0].bfloat16().contiguous()

    def multiply(self, x: Tensor, packed: tuple[Any, ...]) -> Tensor:
        return torch._weight_int8pack_mm(x, *packed)  # noqa: SLF001

    def lacks(self, out_features: int, in_features: int, dtype: torch.dtype) -> str | None:
        if in_features % 16:
            return (
                f"int8pack reads sixteen inputs at a time and would read beyond {in_features}; use "
                f"kernel=dequantise."
            )
        there = hasattr(_aten(), "_weight_int8pack_mm")
        return None if there else "int8pack does not run here: torch lacks it."


class Int4Pack(Widening, of=CodedWeight):
    """``_weight_int4pack_mm_for_cpu``: pairs of codes to a byte, widened inside the product."""

    name = "int4pack"
    operators = r"aten::_weight_int4pack_mm_for_cpu$"
    type = "int4"
    groups = (128, 64, 32, 256)

    def packed(self, layer: Coded) -> tuple[Any, ...]:
        codes = _aten()._convert_weight_to_int4pack_for_cpu(layer.integers().int(), 1)  # noqa: SLF001
        scales = torch.stack([layer.scale.t(), layer.centre.t()], -1).bfloat16().contiguous()
        return codes, layer.group, scales

    def multiply(self, x: Tensor, packed: tuple[Any, ...]) -> Tensor:
        return torch._weight_int4pack_mm_for_cpu(x, *packed)  # noqa: SLF001

    def lacks(self, out_features: int, in_features: int, dtype: torch.dtype) -> str | None:
        if out_features % 16:
            return (
                f"int4pack makes sixteen outputs at a time, and {out_features} out_features are no "
                f"multiple of 16; use kernel=dequantise."
            )
        there = hasattr(_aten(), "_weight_int4pack_mm_for_cpu")
        return None if there else "int4pack does not run here: torch lacks it."


class BFloat16(InBFloat16, of=CodedWeight):
    """A dense product in bfloat16, for activations that come and go in another dtype."""

    name = "bfloat16_mm"
    operators = Torch.operators
    type = "bfloat16"
    devices = ("cpu", "cuda")

    def apply(self, layer: Coded, x: Tensor) -> Tensor:
        weight = layer.codes.view(torch.bfloat16)
        return _quantize.as_before(functional.linear(x.bfloat16(), weight), x)


class Dequantise(Product, of=CodedWeight):
    """The dense product with the weight made anew in every call: bytes are saved, no time."""

    name = "dequantise"
    operators = Torch.operators
    materialises = True
    dtypes = (*FLOATS, torch.float64)
    devices = ("cpu", "cuda")

    def apply(self, layer: Coded, x: Tensor) -> Tensor:
        if layer.dynamic:
            codes, scale = _quantize.quantised_tokens(x)
            x = (codes * scale).to(x.dtype)
        return functional.linear(x, layer.coded_dense())

    def weight_bytes(self, weights: int, item_bytes: int) -> int:
        return 2 * weights * item_bytes  # written, and read by the product


def _plain(operator: Any) -> Any:
    """An operator of ``torch.ops`` without the Python around it.

    That looks through the arguments of each call for what only PyTorch's compiler makes.
    """
    return operator.op


def _aten() -> Any:
    return torch.ops.aten


def _quantized() -> Any:
    return torch.ops.quantized


def _onednn() -> Any:
    return torch.ops.onednn
