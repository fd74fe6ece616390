"""What the formats share whose weight is codes: knobs, kernels, bytes, and the layer itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from hwbench.errors import KnobError, UnreachableError
from hwbench.formats import (
    _quantize,
    _torchao,  # noqa: F401  which offers itself after the kernels of torch
)
from hwbench.formats._base import (
    BACKWARD_INPUT,
    FORWARD,
    Linear,
    by_direction,
)
from hwbench.formats._derived import Derived
from hwbench.formats._gram import Seen
from hwbench.formats._groups import check_groups
from hwbench.formats._quantized_kernels import Coded, CodedWeight, Product
from hwbench.records import Knob


class _StraightThrough(torch.autograd.Function):
    """The kernel's product, with the gradient of x that the dequantised weight has."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: CodedMap) -> Tensor:
        ctx.layer = layer
        return layer.kernel.apply(layer, x)

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> tuple[Tensor, None]:
        return dy[0] @ ctx.layer.coded_dense(), None


class CodedMap(Linear, Coded):
    """A layer of codes; a subclass may add to the product."""

    kernel: Product
    codes: Tensor
    scale: Tensor  # (out, groups); empty for bfloat16
    centre: Tensor  # as the scale; empty for types without
    table: Tensor  # (16,) for nf4; else empty

    def __init__(self, spec: CodedFormat, codes: Tensor, scale: Tensor, centre: Tensor) -> None:
        super().__init__(spec.out_features, spec.in_features)
        self.kind, self.kernel, self.group = spec.kind, spec.product, spec.columns
        self.dynamic = spec.activations == "dynamic"
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("centre", centre)
        table = _quantize.nf4_table().to(scale) if self.kind.name == "nf4" else scale.new_empty(0)
        self.register_buffer("table", table)
        self.derived = Derived[Any]()

    def apply_weight(self, x: Tensor) -> Tensor:
        """x Ŵᵀ for what the codes stand for."""
        if x.requires_grad and torch.is_grad_enabled():
            y: Tensor = _StraightThrough.apply(x, self)  # type: ignore[no-untyped-call]
            return y
        return self.kernel.apply(self, x)

    def integers(self) -> Tensor:
        if self.kind.bits < 8:
            return _quantize.unpack(self.codes, self.kind.bits, self.in_features)
        return self.codes

    def to_dense(self) -> Tensor:
        return self.coded_dense()

    def scalable_tensors(self) -> list[Tensor]:
        if not self.kind.scaled:  # the values themselves, in the same memory
            return [*super().scalable_tensors(), self.codes.view(torch.bfloat16)]
        centre = [self.centre] if self.kind.centred else []
        return [*super().scalable_tensors(), self.scale, *centre]

    def coded_weights(self) -> int:
        return self.out_features * self.in_features

    def coded_dense(self) -> Tensor:
        """What the codes stand for, (out, in)."""
        dtype = self.scale.dtype
        if not self.kind.scaled:
            return self.codes.view(torch.bfloat16).to(dtype)
        found = _quantize.values(self.kind, self.integers(), self.table, dtype)
        found = found.unflatten(1, (-1, self.group)) * self.scale[..., None]
        if self.kind.centred:
            found = found + self.centre[..., None]
        return found.flatten(1)

    def tolerance(self, dtype: torch.dtype) -> float:
        rounded = _quantize.ROUNDING_ERROR if self.dynamic else 0.0
        return max(rounded, self.kernel.rounding(dtype))

    def operands(self) -> tuple[Tensor, ...]:
        # The look-up by attribute would come here last of all.
        held: Any = self._buffers
        if self.kind.centred:
            return held["codes"], held["scale"], held["centre"]
        return held["codes"], held["scale"]

    def forget(self) -> None:
        self.derived.clear()


@dataclass(frozen=True, kw_only=True)
class CodedFormat(CodedWeight):
    """The knobs of a weight of codes, what they come to, and what its layers store and move."""

    USUAL_TYPE: ClassVar[str] = "int8"

    type: str | None = None
    group: int | None = None
    activations: str | None = None
    rounding: str = "nearest"

    def __post_init__(self) -> None:
        self._decide()
        super().__post_init__()
        self.check_integer("group", low=1, high=self.in_features)
        check_groups(self, self.columns)
        self._check_kernel()

    def _decide(self) -> None:
        """Type, activations, kernel and group, as far as they were left to one another."""
        if self.kernel not in ("", *self.KERNELS):
            return
        product = self._products().get(self.kernel)
        kind = (
            self.type
            if self.type is not None
            else (product.type if product else "") or self.USUAL_TYPE
        )
        _check_type(self, kind)
        if self.rounding not in ("nearest", "gptq"):
            raise KnobError(
                f"rounding of {self.name()} must be nearest or gptq, not {self.rounding!r}."
            )
        activations = self.activations
        if activations is None and product is not None:
            activations = product.activations or "none"
        elif activations is None:
            activations = "dynamic" if (self.type, kind) == (None, "int8") else "none"
        if activations not in ("none", "dynamic"):
            raise KnobError(
                f"activations of {self.name()} must be none or dynamic, not {activations!r}."
            )
        _set(self, type=kind, activations=activations)
        if product is None:
            product = next(p for p in self._products().values() if self._suits(p))
        if self.group is None:
            _set(self, group=self._usual(product))
        _set(self, kernel=product.name)

    def _suits(self, product: Product) -> bool:
        """Whether the kernel takes the type, the activations, the group and the shape."""
        if product.type not in ("", self.type) or product.activations not in ("", self.activations):
            return False
        group = self._usual(product) if self.group is None else self.group
        sizes = product.groups or ((self.in_features,) if product.type else (group,))
        dtype = torch.float32
        return group in sizes and not product.lacks(self.out_features, self.in_features, dtype)

    def _usual(self, product: Product) -> int:
        """The group where none is asked for: one that the kernel takes, if there is one."""
        fit = (g for g in product.groups if self.in_features % g == 0)
        return next(fit, self.kind.group(self.in_features))

    def _check_kernel(self) -> None:
        product, me = self.product, self.name()
        if product.type not in ("", self.type):
            raise KnobError(
                f"kernel={product.name} of {me} multiplies {product.type}, not {self.type}."
            )
        if product.activations not in ("", self.activations):
            raise KnobError(
                f"kernel={product.name} of {me} has activations={product.activations} only."
            )
        sizes = product.groups or (self.in_features,)
        if product.type and self.group not in sizes:
            raise KnobError(
                f"kernel={product.name} of {me} takes groups of "
                f"{' or '.join(map(str, sorted(sizes)))} columns, not {self.group}; use "
                f"kernel=dequantise."
            )

    @property
    def kind(self) -> _quantize.Type:
        """What a weight is stored as."""
        return _quantize.TYPES[str(self.type)]

    @property
    def columns(self) -> int:
        """Neighbouring weights that share a scale."""
        return self.group or self.in_features

    @property
    def product(self) -> Product:
        """The kernel, for these knobs."""
        return cast(Product, self.implementation)

    @classmethod
    def _products(cls) -> dict[str, Product]:
        """The kernels on offer by their names: all of them multiply by codes."""
        return cast(dict[str, Product], cls.kernels())

    def parameters(self) -> int:
        return self.out_features * self.in_features

    def scale_count(self) -> int:
        """Scales and centres, and the table of nf4."""
        if not self.kind.scaled:
            return 0
        groups = self.out_features * (self.in_features // self.columns)
        return groups * (2 if self.kind.centred else 1) + (16 if self.kind.name == "nf4" else 0)

    def stored_bytes(self, item_bytes: int) -> int:
        codes = self.out_features * self.kind.code_bytes(self.in_features)
        return codes + self.scale_count() * item_bytes

    def unsupported(self, device: str, dtype: torch.dtype, direction: str) -> str | None:
        if direction not in (FORWARD, BACKWARD_INPUT):
            return f"Codes have no gradient: {self.name()} gives that of its input only."
        return super().unsupported(device, dtype, direction)

    def intermediate_bytes(self, tokens: int, item_bytes: int, direction: str) -> int:
        out, inputs, product = self.out_features, self.in_features, self.product
        forward = product.weight_bytes(out * inputs, item_bytes)
        forward += tokens * product.token_bytes(out, inputs, item_bytes)
        backward = 2 * out * inputs * item_bytes  # the weight is made, and read
        return by_direction(direction, forward=forward, to_input=backward, to_weight=0)

    def codes_of(
        self, weight: Tensor, dtype: torch.dtype, seen: Seen | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, scales and centres of a weight, for a layer of that dtype.

        What the layer has ``seen`` is used where ``rounding`` is gptq.
        """
        if not self.kind.scaled:  # an empty scale has the dtype of the layer
            codes = weight.bfloat16().contiguous().clone().view(torch.int16)
            return codes, weight.new_empty(0, dtype=dtype), weight.new_empty(0, dtype=dtype)
        if seen is None or self.rounding == "nearest":
            wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
            codes, scale, centre = _quantize.nearest(self.kind, wide, self.columns, dtype)
        else:
            wide = weight.double()
            codes, scale, centre = _quantize.gptq(self.kind, wide, self.columns, dtype, seen)
        if self.kind.bits < 8:
            codes = _quantize.pack(codes, self.kind.bits)
        centre = centre.to(dtype) if self.kind.centred else weight.new_empty(0, dtype=dtype)
        return codes.contiguous(), scale.to(dtype).contiguous(), centre.contiguous()


def _check_type(described: CodedFormat, name: object) -> None:
    """Refuse what is no type, and, as out of reach, what no kernel here multiplies."""
    if name in _quantize.ELSEWHERE:
        raise UnreachableError(
            f"type={name} of {described.name()} needs a GPU of compute capability "
            f"{_quantize.ELSEWHERE[str(name)]}, for which hwbench has no kernel yet; "
            f"{'fp8' if name == 'mxfp8' else 'nf4'} has as many bits a code."
        )
    if name not in _quantize.TYPES:
        known = ", ".join([*_quantize.TYPES, *_quantize.ELSEWHERE])
        raise KnobError(f"type of {described.name()} must be one of {known}, not {name!r}.")


def _set(described: CodedFormat, **values: Knob) -> None:
    for name, value in values.items():
        object.__setattr__(described, name, value)
