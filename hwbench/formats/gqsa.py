"""Groups of a row's neighbours as codes of four bits, and the other groups dropped: for inference.

A group that stays has a scale and a centre of its own, as in ``quantized``, and groups are stored
row by row, as the blocks of ``bsr`` are. Every group is kept or dropped whole, by how much of the
error its codes take away. ``rounding=gptq`` chooses groups and codes column by column for the
activations that ``project`` is given: the columns that follow make up for what is dropped and
rounded; without activations it is ``nearest``.

Kernels: ``dequantise`` makes the dense weight in each call and has one dense product; ``gather``
makes the kept values alone and adds up inputs by them. The paper's kernel for GPUs is not here, and
its two stages of training are not either: codes have no gradient, and that of x is the one of the
dequantised weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from hwbench.formats import _gather, _quantize
from hwbench.formats._base import BACKWARD_INPUT, FORWARD, Linear, by_direction
from hwbench.formats._derived import Derived
from hwbench.formats._entries import (
    GATHERS,
    INDEX_BYTES,
    PatternMap,
    check_index_dtype,
    largest,
)
from hwbench.formats._gram import Seen
from hwbench.formats._init import column_weights, working
from hwbench.formats._kernel import Kernel, Torch
from hwbench.formats._quantized_kernels import Codes
from hwbench.formats._sizes import check_choice

_TYPE = _quantize.TYPES["int4"]


class _Map(PatternMap):
    codes: Tensor  # (groups, ceil(group / 2)) uint8, two to a byte
    scale: Tensor  # (groups,)
    centre: Tensor  # (groups,)
    row_starts: Tensor  # (out + 1,)
    columns: Tensor  # (groups,), which group of its row each is

    def __init__(self, spec: Gqsa, flat: Tensor, codes: Tensor, *scales: Tensor) -> None:
        """Codes (groups, group), scales and centres of the groups at the ascending places."""
        super().__init__(spec.out_features, spec.in_features)
        self.kernel, self.group = spec.implementation, spec.group
        across, dtype = spec.grid()[1], getattr(torch, spec.index_dtype)
        ends = torch.arange(spec.out_features + 1, device=flat.device) * across
        self.register_buffer("codes", _quantize.pack(codes, _TYPE.bits))
        self.register_buffer("scale", scales[0].contiguous())
        self.register_buffer("centre", scales[1].contiguous())
        self.register_buffer("row_starts", torch.searchsorted(flat, ends).to(dtype))
        self.register_buffer("columns", (flat % across).to(dtype))
        self._entries = Derived[_gather.Pattern]()

    def build_pattern(self) -> _gather.Pattern:
        return _gather.Pattern(self.row_starts, self.columns, self.in_features // self.group)

    def entries(self) -> _gather.Pattern:
        """Where single values lie: working memory, and no part of the state."""

        def build() -> _gather.Pattern:
            within = torch.arange(self.group, dtype=self.columns.dtype, device=self.columns.device)
            places = (self.columns[:, None] * self.group + within).flatten()
            return _gather.Pattern(self.row_starts * self.group, places, self.in_features)

        sources = (self.row_starts, self.columns)
        return self._entries.get(sources, build, trusting=self.trusting)

    def values(self) -> Tensor:
        """The values that the codes stand for, (groups, group)."""
        codes = _quantize.unpack(self.codes, _TYPE.bits, self.group)
        found = _quantize.values(_TYPE, codes, None, self.scale.dtype)
        return found * self.scale[:, None] + self.centre[:, None]

    def to_dense(self) -> Tensor:
        across = self.in_features // self.group
        places = self.pattern().rows.long() * across + self.columns.long()
        empty = self.scale.new_zeros(self.out_features * across, self.group)
        return empty.index_copy(0, places, self.values()).view(self.out_features, -1)

    def coded_weights(self) -> int:
        return self.columns.numel() * self.group

    def scalable_tensors(self) -> list[Tensor]:
        return [self.scale, self.centre]

    def forget(self) -> None:
        super().forget()
        self._entries.clear()


class _Remade(torch.autograd.Function):
    """The dense product; its gradient makes the weight once more instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _Map) -> Tensor:
        ctx.layer = layer
        return functional.linear(x, layer.to_dense())

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> tuple[Tensor, None]:
        return dy[0] @ ctx.layer.to_dense(), None


@dataclass(frozen=True, kw_only=True)
class Gqsa(Codes):
    """``kept_groups`` groups of ``group`` neighbours of W, in four bits a weight.

    Bytes: a half for each code, a scale and a centre in the layer's dtype and an index for each
    group, and a start for each row. Parameters are the weights that have a code.
    """

    PAPER = (
        "Zeng et al., GQSA: group quantization and sparsity for accelerating large language model "
        "inference, 2024, arXiv:2412.17560"
    )
    PROJECTION_TOLERANCE: ClassVar[float] = 1e-2  # scales of 16 bits are rounded twice

    kept_groups: int
    group: int = 16
    rounding: str = "nearest"
    index_dtype: str = "int32"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_divides("group", self.in_features)
        self.check_integer("kept_groups", low=1, high=self.largest_setting())
        check_choice(self, "rounding", ("nearest", "gptq"))
        check_index_dtype(self, self.index_dtype, self.parameters())

    def grid(self) -> tuple[int, int]:
        """Rows of W, and how many groups each has."""
        return self.out_features, self.in_features // self.group

    def largest_setting(self) -> int:
        rows, across = self.grid()
        return rows * across

    def smallest_words(self) -> str:
        return f"one group of {self.group} has density {self.density():.4g}"

    def parameters(self) -> int:
        return self.kept_groups * self.group

    def index_bytes(self) -> int:
        return (self.kept_groups + self.out_features + 1) * INDEX_BYTES[self.index_dtype]

    def stored_bytes(self, item_bytes: int) -> int:
        each = _TYPE.code_bytes(self.group) + 2 * item_bytes
        return self.kept_groups * each + self.index_bytes()

    def unsupported(self, device: str, dtype: torch.dtype, direction: str) -> str | None:
        if direction not in (FORWARD, BACKWARD_INPUT):
            return "Codes have no gradient: gqsa is for inference and gives that of its input only."
        return super().unsupported(device, dtype, direction)

    def intermediate_bytes(self, tokens: int, item_bytes: int, direction: str) -> int:
        """With the values that a call makes of the codes, or orders anew, written and read."""
        kernel = self.implementation
        assert isinstance(kernel, _Product)
        moved = 2 * item_bytes * (kernel.made(self) + tokens * self.copied_width())
        return by_direction(direction, forward=moved, to_input=moved, to_weight=0)

    def random(self, *, dtype: torch.dtype, generator: torch.Generator) -> Linear:
        """Codes of U(±1/√fan_in) in groups drawn at random."""
        rows, across = self.grid()
        order = torch.randperm(rows * across, generator=generator, device=generator.device)
        flat = order[: self.kept_groups].sort().values
        bound = (self.parameters() / rows) ** -0.5
        values = torch.empty(self.kept_groups, self.group, device=generator.device)
        values.uniform_(-bound, bound, generator=generator)
        codes, scale, centre = _quantize.nearest(_TYPE, values, self.group, dtype)
        return _Map(self, flat, codes, scale[:, 0].to(dtype), centre[:, 0].to(dtype))

    def project(self, weight: Tensor, *, activations: Tensor | None = None) -> Linear:
        """The groups with the codes that lower the error most; ``activations`` weigh the columns.

        With ``gptq`` they are chosen for the outputs, and later columns make up for earlier ones.
        """
        dtype = weight.dtype
        if self.rounding == "gptq" and activations is not None:
            wide = weight.detach().double()
            kept, codes, scale, centre = self._made_up_for(wide, dtype, activations)
        else:
            work = working(weight)
            worth = column_weights(work, activations).square()
            codes, scale, centre = _quantize.nearest(_TYPE, work, self.group, dtype)
            near = _dequantised(codes, scale, centre, self.group)
            gain = (work.square() - (work - near).square()) * worth
            kept = self._best(gain.unflatten(1, (-1, self.group)).sum(2))
        codes = codes.unflatten(1, (-1, self.group)).flatten(0, 1)[kept]
        scale, centre = (part.flatten()[kept].to(dtype) for part in (scale, centre))
        return _Map(self, kept, codes, scale, centre)

    def _best(self, score: Tensor) -> Tensor:
        """The ascending places of the groups with the highest scores, of (out, groups)."""
        return largest(score.flatten(), self.kept_groups)

    def _made_up_for(
        self, weight: Tensor, dtype: torch.dtype, activations: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Kept places, codes (out, in), scales and centres (out, groups), as ``_quantize.gptq``.

        A group counts what the outputs lose where it is dropped and the columns behind it make up
        for it. How many stay in which columns is decided at first, and which when their turn comes.
        """
        seen = Seen.of(activations.detach(), weight)
        spread, inverse, left = seen.upper, seen.inverse, weight.clone()
        parts = list(torch.arange(self.in_features, device=weight.device).split(self.group))
        first = [_lost(left[:, p], torch.linalg.cholesky(inverse[p][:, p]).mT) for p in parts]
        mask = torch.zeros(self.largest_setting(), dtype=torch.bool, device=weight.device)
        mask[self._best(torch.stack(first, 1))] = True
        mask = mask.view(self.grid())
        codes = torch.zeros(weight.shape, dtype=torch.uint8, device=weight.device)
        scale, centre = torch.zeros(2, *mask.shape, dtype=weight.dtype, device=weight.device)
        for number, part in enumerate(parts):
            own = spread[part][:, part]
            places = _lost(left[:, part], own).topk(int(mask[:, number].sum())).indices
            stays = torch.zeros_like(mask[:, number]).index_fill(0, places, 1)
            mask[:, number] = stays
            s, c = _quantize.scales(_TYPE, left[:, part], dtype)
            scale[:, number], centre[:, number] = s, c
            errors = torch.zeros_like(left[:, part])
            for place, j in enumerate(part.tolist()):
                codes[:, j] = _quantize.encode(_TYPE, left[:, j], s, c)
                near = s * _quantize.values(_TYPE, codes[:, j], None, weight.dtype) + c
                errors[:, place] = (left[:, j] - torch.where(stays, near, 0)) / spread[j, j]
                left[:, part[place + 1 :]] -= errors[:, place, None] * own[place, place + 1 :]
            rest = int(part[-1]) + 1
            left[:, rest:] -= errors @ spread[part, rest:]
        return mask.flatten().nonzero().flatten(), codes, scale, centre


def _dequantised(codes: Tensor, scale: Tensor, centre: Tensor, group: int) -> Tensor:
    values = _quantize.values(_TYPE, codes, None, scale.dtype).unflatten(1, (-1, group))
    return (values * scale[..., None] + centre[..., None]).flatten(1)


def _lost(weights: Tensor, factor: Tensor) -> Tensor:
    """What the outputs lose without the weights of each row, (rows, group), made up for.

    It is w C⁻¹ wᵀ, with C = Fᵀ F their part of the inverse Gram matrix and F upper triangular.
    """
    solved = torch.linalg.solve_triangular(factor, weights, upper=True, left=False)
    return solved.square().sum(1)


class _Product(Kernel):
    """The shared part of the kernels."""

    def made(self, described: Gqsa) -> int:
        """Values that a call makes of the codes, writes and reads."""
        return described.parameters()


class Dequantise(_Product, of=Gqsa):
    """The dense product with the weight made anew in every call: bytes are saved, no time."""

    name = "dequantise"
    operators = Torch.operators
    materialises = True

    def apply(self, layer: _Map, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            y: Tensor = _Remade.apply(x, layer)  # type: ignore[no-untyped-call]
            return y
        return functional.linear(x, layer.to_dense())

    def products(self, described: Gqsa) -> tuple[int, ...]:
        return (described.out_features * described.in_features,)

    def made(self, described: Gqsa) -> int:
        """The kept values, and the dense weight in which they are put where they lie."""
        return super().made(described) + described.out_features * described.in_features


class Gather(_Product, of=Gqsa):
    """Sums of rows of xᵀ by embedding_bag, by the values that a call makes of the codes.

    Not counted: where single values lie, which it keeps as working memory and reads.
    """

    name = "gather"
    operators = GATHERS

    def apply(self, layer: _Map, x: Tensor) -> Tensor:
        values = layer.values().flatten()
        return _gather.product(x, values, layer.entries(), gradient="sampled")

    def copied_width(self, described: Gqsa) -> int:
        return described.in_features + described.out_features
