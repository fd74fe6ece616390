"""Formats of blocks of low rank: two block products with a regrouping between them.

The input is split into k groups of p, the output into l groups of s. Block (l, k) of W has rank t:

    W[(l, s), (k, p)] = Σ_t second[l, s, k, t] · first[k, l, t, p]

so that z = einsum("bkp,kltp->bklt") and y = einsum("bklt,lskt->bls"). Parameters: t (l·in + k·out).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hwbench.errors import UsageError
from hwbench.formats import _block_matmul, _init, _kernel, _native, _onednn, _sizes, _triton
from hwbench.formats._base import Linear
from hwbench.formats._by_device import ByDevice
from hwbench.formats._two_stage_product import (
    BmmProduct,
    NativeProduct,
    gradients,
    product_in_runs,
)


class Grid(NamedTuple):
    """How W is cut: the input into ``in_blocks`` groups of ``in_side``, the output likewise."""

    in_blocks: int
    in_side: int
    out_blocks: int
    out_side: int


BLOCKED, STRIDED = "blocked", "strided"

WIDEST = 256
"""With more features in an output group than this, no program of ``triton_fused`` can hold one."""

TOGETHER = 4
"""The most output groups that share the x that a program of ``triton_fused`` reads."""


def together(out_side: int) -> int:
    """How many output groups of ``out_side`` features one program of ``triton_fused`` may form."""
    return max(1, min(TOGETHER, WIDEST // (1 << (out_side - 1).bit_length())))


class TwoStageMap(Linear):
    """The live map: ``first`` of shape (k, l·t, p), ``second`` of shape (l, s, k·t)."""

    def __init__(self, spec: TwoStage, first: Tensor, second: Tensor) -> None:
        super().__init__(spec.out_features, spec.in_features)
        self.kernel = spec.implementation
        self.strided = spec.order == STRIDED
        self.padded_in = first.shape[0] * first.shape[2]
        self.first = nn.Parameter(first)
        self.second = nn.Parameter(second)

    def padded(self, x: Tensor) -> Tensor:
        """x, padded where the blocks need it: (tokens, k · p)."""
        return x if x.shape[1] == self.padded_in else _block_matmul.pad(x, self.padded_in)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Both factors by all their indices: (k, l, t, p) and (l, s, k, t), views."""
        in_blocks, out_blocks = self.first.shape[0], self.second.shape[0]
        first = self.first.unflatten(1, (out_blocks, -1))
        return first, self.second.unflatten(2, (in_blocks, -1))

    def to_dense(self) -> Tensor:
        first, second = self.factors()
        form = "lskt,kltp->slkp" if self.strided else "lskt,kltp->lskp"
        dense = torch.einsum(form, second, first).flatten(2).flatten(0, 1)
        return dense[: self.out_features, : self.in_features]


def _fused_product(
    kernel: Triton, x: Tensor, factors: tuple[Tensor, Tensor], width: int, strided: bool
) -> Tensor:
    """y (tokens, width) by a kernel in Triton; x is not padded."""
    if _block_matmul.needs_grad(x, *factors):
        y: Tensor = _Fused.apply(x, *factors, width, strided, kernel)  # type: ignore[no-untyped-call]
        return y
    return kernel.product(x, *factors, width, strided)[0]


class _Fused(torch.autograd.Function):
    """Forward in Triton; backward as ``bmm``, with z made again if it was not written."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        first: Tensor,
        second: Tensor,
        width: int,
        strided: bool,
        kernel: Triton,
    ) -> Tensor:
        y, z = kernel.product(x, first, second, width, strided)
        ctx.save_for_backward(x, first, second, z)
        ctx.strided = strided
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, first, second, z = ctx.saved_tensors
        in_features, (out_blocks, out_side, _) = x.shape[1], second.shape
        if z is None and ctx.needs_input_grad[2]:
            turn = _block_matmul.tokens_last(x, first.shape[1] // out_blocks)
            z = _triton.fused().enter_grouped(x, first, out_blocks, turn)
        x = _block_matmul.pad(x, first.shape[0] * first.shape[2])
        dy = _block_matmul.pad(dy, out_blocks * out_side)
        needed = ctx.needs_input_grad[:3]
        dx, dfirst, dsecond = gradients(needed, (x, first, second, z), dy, ctx.strided)
        dx = dx if dx is None else _block_matmul.crop(dx, in_features)
        return dx, dfirst, dsecond, None, None, None


@dataclass(frozen=True, kw_only=True)
class TwoStage(ByDevice):
    """The shared part of the formats of this family; a subclass says how W is cut.

    ``order`` says which output feature entry s of output group l is: ``blocked`` l · out_side + s,
    ``strided`` s · out_blocks + l. For a trained weight these are different classes of matrices.
    Sizes that the blocks do not divide are padded with zeros.
    """

    revision: ClassVar[int] = 3
    ORDERS: ClassVar[tuple[str, ...]] = (BLOCKED, STRIDED)

    rank: int
    order: str = BLOCKED

    @abstractmethod
    def grid(self) -> Grid:
        """How W is cut into blocks."""

    def check_grid(self) -> None:
        """Demand an order that exists and a rank that a block can have.

        Raises:
            KnobError: one of them is not.
        """
        _sizes.check_choice(self, "order", self.ORDERS)
        grid = self.grid()
        self.check_integer("rank", low=1, high=min(grid.in_side, grid.out_side))

    def largest_setting(self) -> int:
        grid = self.grid()
        return min(grid.in_side, grid.out_side)

    def parameters(self) -> int:
        return sum(self.stages())

    def stages(self) -> tuple[int, ...]:
        grid = self.grid()
        return (
            self.rank * grid.out_blocks * self.in_features,
            self.rank * grid.in_blocks * self.out_features,
        )

    def stored_bytes(self, item_bytes: int) -> int:
        return sum(self.products()) * item_bytes

    def products(self) -> tuple[int, ...]:
        grid = self.grid()
        pairs = grid.in_blocks * grid.out_blocks * self.rank
        return pairs * grid.in_side, pairs * grid.out_side

    def padded(self) -> tuple[int, int]:
        """Outputs and inputs as they are stored."""
        grid = self.grid()
        return grid.out_blocks * grid.out_side, grid.in_blocks * grid.in_side

    def build(self, first: Tensor, second: Tensor) -> Linear:
        """The layer with these factors, of shapes (k, l, t, p) and (l, s, k, t)."""
        return TwoStageMap(self, first.flatten(1, 2), second.flatten(2, 3))

    def empty(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Both factors, float32, not yet filled."""
        k, p, l, s = self.grid()  # noqa: E741 (the letters of the papers)
        first = torch.empty(k, l, self.rank, p, device=device)
        return first, torch.empty(l, s, k, self.rank, device=device)

    def rate_multipliers(self) -> dict[str, float]:
        """Inputs of the layer over those of the factor, shared by two factors."""
        grid = self.grid()
        inputs = {"first": grid.in_side, "second": grid.in_blocks * self.rank}
        return {name: self.in_features / width / 2 for name, width in inputs.items()}

    def project(self, weight: Tensor, *, activations: Tensor | None = None) -> Linear:
        """The nearest member: the blocks decouple, and each has its truncated decomposition."""
        work = _init.working(weight)
        worth = _init.column_weights(work, activations, least=_init.DIVISIBLE)
        left, right = _init.truncated(self.split(work * worth), self.rank)
        k, p, *_ = self.grid()
        right = right / _init.pad_ones(worth, k * p).view(k, 1, p)
        return self.of_blocks(*(factor.to(weight.dtype) for factor in (left, right)))

    def split(self, weight: Tensor) -> Tensor:
        """W as its blocks, padded: (out_blocks, in_blocks, out_side, in_side)."""
        k, p, l, s = self.grid()  # noqa: E741
        padded = _block_matmul.pad(weight, l * s, k * p)
        if self.order == STRIDED:
            return padded.view(s, l, k, p).permute(1, 2, 0, 3)
        return padded.view(l, s, k, p).transpose(1, 2)

    def of_blocks(self, left: Tensor, right: Tensor) -> Linear:
        """The layer of (l, k, s, rank) and (l, k, rank, p), the factors of the blocks."""
        return self.build(right.transpose(0, 1).contiguous(), left.transpose(1, 2).contiguous())


class _Chain(_kernel.Kernel):
    """The shared part of the kernels that write the intermediate to memory."""

    def intermediate_width(self, described: TwoStage) -> int:
        grid = described.grid()
        return grid.in_blocks * grid.out_blocks * described.rank


class Bmm(_Chain, _kernel.Bmm, of=TwoStage):
    """Two batched products and one copy between them, with a backward pass of four.

    On a CPU a large intermediate is made in runs of tokens, which stay in cache, and in a step made
    again for the backward pass instead of kept.

    Not counted: on a CPU it may copy y, as a batched product cannot be written to a view.
    """

    def apply(self, layer: TwoStageMap, x: Tensor) -> Tensor:
        x, factors = layer.padded(x), (layer.first, layer.second)
        if _block_matmul.needs_grad(x, *factors):
            y: Tensor = BmmProduct.apply(x, *factors, layer.strided)  # type: ignore[no-untyped-call]
        else:
            y = product_in_runs(x, *factors, layer.strided)[0]
        return _block_matmul.crop(y, layer.out_features)

    def copied_width(self, described: TwoStage) -> int:
        """The regrouped intermediate; y where it is strided; x and y where they are padded."""
        padded_out, padded_in = described.padded()
        gathered = padded_out if described.order == STRIDED else 0
        padding = _sizes.padding_copies(described, padded_out, padded_in)
        return self.intermediate_width(described) + gathered + padding

    def makes_again(self, described: TwoStage, tokens: int) -> bool:
        """Whether the backward pass makes the intermediate again, in runs of tokens."""
        return _block_matmul.in_runs(tokens, self.intermediate_width(described), described.device)

    def recomputed(self, described: TwoStage, tokens: int) -> int:
        return described.products()[0] if self.makes_again(described, tokens) else 0

    def recomputed_values(self, described: TwoStage, tokens: int) -> int:
        """x and a factor are read again, and the intermediate is written and copied again."""
        if not self.makes_again(described, tokens):
            return 0
        width = described.in_features + 3 * self.intermediate_width(described)
        return tokens * width + described.stages()[0]


class OneDnn(_onednn.OneDnn, Bmm, of=TwoStage):
    """The same batched products by oneDNN in float32 on a CPU, forward and in a step."""


class Native(_native.Native, of=TwoStage):
    """Both products in C++, block of tokens by block; what lies between them stays in cache."""

    operators = r"hwbench::native_two_stage(_kept)?$"
    backward_as = Bmm

    def apply(self, layer: TwoStageMap, x: Tensor) -> Tensor:
        x, factors = layer.padded(x), (layer.first, layer.second)
        if _block_matmul.needs_grad(x, *factors):
            y: Tensor = NativeProduct.apply(x, *factors, layer.strided)  # type: ignore[no-untyped-call]
        else:
            y = _native.two_stage(x, *factors, layer.strided)
        return _block_matmul.crop(y, layer.out_features)

    def copied_width(self, described: TwoStage) -> int:
        """x and y where they are padded; it regroups and turns what is in cache."""
        return _sizes.padding_copies(described, *described.padded())

    def recomputed(self, described: TwoStage, tokens: int) -> int:
        return Bmm().recomputed(described, tokens)

    def recomputed_values(self, described: TwoStage, tokens: int) -> int:
        """What ``bmm`` moves to make it again; one that is kept is written, and laid out anew."""
        moved = 3 * tokens * Bmm().intermediate_width(described)
        return Bmm().recomputed_values(described, tokens) or moved


class Einsum(_Chain, _kernel.Einsum, of=TwoStage):
    """The spelling that users write."""

    def apply(self, layer: TwoStageMap, x: Tensor) -> Tensor:
        first, second = layer.factors()
        z = torch.einsum(
            "bkp,kltp->bklt", layer.padded(x).unflatten(1, (first.shape[0], -1)), first
        )
        y = torch.einsum("bklt,lskt->bsl" if layer.strided else "bklt,lskt->bls", z, second)
        return _block_matmul.crop(y.reshape(x.shape[0], -1).contiguous(), layer.out_features)

    def copied_width(self, described: TwoStage) -> int:
        """The intermediate, and y; x and y where they are padded."""
        padded_out, padded_in = described.padded()
        padding = _sizes.padding_copies(described, padded_out, padded_in)
        return self.intermediate_width(described) + padded_out + padding


class Triton(_Chain, _triton.Triton, of=TwoStage):
    """The first product in Triton, stored as the second reads it; it takes every size."""

    backward_as = Bmm

    def apply(self, layer: TwoStageMap, x: Tensor) -> Tensor:
        factors = (layer.first, layer.second)
        return _fused_product(self, x, factors, layer.out_features, layer.strided)

    def product(
        self, x: Tensor, first: Tensor, second: Tensor, width: int, strided: bool
    ) -> tuple[Tensor, Tensor | None]:
        """y (tokens, width), and the regrouped intermediate where it was written."""
        out_blocks = second.shape[0]
        turn = _block_matmul.tokens_last(x, first.shape[1] // out_blocks)
        z = _triton.fused().enter_grouped(x, first, out_blocks, turn)
        return _block_matmul.crop(_block_matmul.leave(z, second, strided=strided), width), z

    def copied_width(self, described: TwoStage) -> int:
        """y where it is strided, or cut; it regroups as it writes and does not pad x."""
        padded_out, _ = described.padded()
        gathered = padded_out if described.order == STRIDED else 0
        return gathered + _sizes.padding_copies(described, padded_out, described.in_features)


class TritonFused(Triton, of=TwoStage):
    """One kernel in Triton, which makes y without an intermediate in memory, and copies nothing."""

    name = "triton_fused"

    def refuses(
        self, described: TwoStage, device: str, dtype: torch.dtype, direction: str
    ) -> str | None:
        refused = self.too_wide(described.grid().out_side)
        return refused or super().refuses(described, device, dtype, direction)

    def too_wide(self, out_side: int) -> str | None:
        """Why it cannot run with output groups of ``out_side`` features, or None."""
        if out_side <= WIDEST:
            return None
        return (
            f"kernel={self.name} holds a whole output group in one program, at most {WIDEST} "
            f"features, and here a group has {out_side}; kernel={Triton.name} takes any."
        )

    def product(
        self, x: Tensor, first: Tensor, second: Tensor, width: int, strided: bool
    ) -> tuple[Tensor, Tensor | None]:
        """y (tokens, width) alone.

        Raises:
            UsageError: an output group is too wide for one kernel.
        """
        out_side = second.shape[1]
        if refused := self.too_wide(out_side):
            raise UsageError(refused)
        at_once = together(out_side)
        return _triton.fused().two_stage(x, first, second, width, strided, at_once), None

    def intermediate_width(self, described: TwoStage) -> int:
        return 0

    def copied_width(self, described: TwoStage) -> int:
        return 0

    def recomputed(self, described: TwoStage, tokens: int) -> int:
        return described.products()[0]

    def recomputed_values(self, described: TwoStage, tokens: int) -> int:
        """x and a factor are read, and the intermediate is written."""
        width = described.in_features + super().intermediate_width(described)
        return tokens * width + described.stages()[0]
