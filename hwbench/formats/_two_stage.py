"""Formats whose every block has low rank: two block products with a regrouping between them.

The input is split into k groups of p, the output into l groups of s. Block (l, k) of W has rank t:

    W[(l, s), (k, p)] = Σ_t second[l, s, k, t] · first[k, l, t, p]

so that z = einsum("bkp,kltp->bklt") and y = einsum("bklt,lskt->bls"). Parameters: t (l·in + k·out).
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hwbench.errors import UsageError
from hwbench.formats import _blocks
from hwbench.formats._base import Format, Linear, budget, round_down, unreachable
from hwbench.records import Knob


class Grid(NamedTuple):
    """How W is cut: the input into ``in_blocks`` groups of ``in_side``, the output likewise."""

    in_blocks: int
    in_side: int
    out_blocks: int
    out_side: int


FUSED = "triton_fused"
"""The kernel that makes y without an intermediate in memory."""

IN_TRITON = ("triton", FUSED)

WIDEST = 256
"""With more features in an output group than this, no program of ``triton_fused`` can hold one."""

TOGETHER = 4
"""At most so many output groups share the x that a program of ``triton_fused`` reads."""


def together(out_side: int) -> int:
    """How many output groups of so many features one program of ``triton_fused`` may form."""
    return max(1, min(TOGETHER, WIDEST // (1 << (out_side - 1).bit_length())))


def too_wide(out_side: int) -> str | None:
    """Why ``triton_fused`` cannot run with output groups of so many features, or None."""
    if out_side <= WIDEST:
        return None
    return (
        f"kernel={FUSED} holds a whole output group in one program, at most {WIDEST} features, and "
        f"here a group has {out_side}; kernel=triton takes any."
    )


class TwoStageMap(Linear):
    """The live map: ``first`` of shape (k, l·t, p), ``second`` of shape (l, s, k·t)."""

    def __init__(self, spec: TwoStage, first: Tensor, second: Tensor) -> None:
        super().__init__(spec.out_features, spec.in_features)
        self.kernel = spec.kernel
        self.strided = spec.order == "strided"
        self.padded_in = first.shape[0] * first.shape[2]
        self.first = nn.Parameter(first)
        self.second = nn.Parameter(second)

    def apply_weight(self, x: Tensor) -> Tensor:
        first, second = self.first, self.second
        if self.kernel in IN_TRITON:
            one = self.kernel == FUSED
            return _fused_map(x, first, second, self.out_features, self.strided, one)
        if x.shape[1] != self.padded_in:
            x = _blocks.pad(x, self.padded_in)
        if self.kernel == "einsum":
            y = self._einsum(x)
        elif _blocks.needs_grad(x, first, second):
            y = _Product.apply(x, first, second, self.strided)  # type: ignore[no-untyped-call]
        else:
            y = _product(x, first, second, self.strided)[0]
        return _blocks.crop(y, self.out_features)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Both factors by all their indices: (k, l, t, p) and (l, s, k, t), views."""
        in_blocks, out_blocks = self.first.shape[0], self.second.shape[0]
        first = self.first.unflatten(1, (out_blocks, -1))
        return first, self.second.unflatten(2, (in_blocks, -1))

    def _einsum(self, x: Tensor) -> Tensor:
        first, second = self.factors()
        z = torch.einsum("bkp,kltp->bklt", x.unflatten(1, (first.shape[0], -1)), first)
        y = torch.einsum("bklt,lskt->bsl" if self.strided else "bklt,lskt->bls", z, second)
        return y.reshape(x.shape[0], -1).contiguous()

    def to_dense(self) -> Tensor:
        first, second = self.factors()
        form = "lskt,kltp->slkp" if self.strided else "lskt,kltp->lskp"
        dense = torch.einsum(form, second, first).flatten(2).flatten(0, 1)
        return dense[: self.out_features, : self.in_features]


def _product(x: Tensor, first: Tensor, second: Tensor, strided: bool) -> tuple[Tensor, Tensor]:
    """y (tokens, l·s), and the regrouped intermediate (l, tokens, k·t)."""
    out_blocks = second.shape[0]
    turn = _blocks.tokens_last(x, first.shape[1] // out_blocks)
    z = _blocks.regroup(_blocks.enter(x, first, turn=turn), out_blocks, turn=turn)
    return _blocks.leave(z, second, strided=strided), z


class _Product(torch.autograd.Function):
    """The chain, with four block products and one regrouping backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, first: Tensor, second: Tensor, strided: bool) -> Tensor:
        y, z = _product(x, first, second, strided)
        ctx.save_for_backward(x, first, second, z)
        ctx.strided = strided
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        needed, saved = ctx.needs_input_grad[:3], ctx.saved_tensors
        return *_gradients(needed, saved, dy, ctx.strided), None


def _gradients(
    needed: tuple[bool, ...], saved: tuple[Tensor, ...], dy: Tensor, strided: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Those of x and both factors, where ``needed`` says so; z is read for the last alone."""
    x, first, second, z = saved
    in_blocks, out_blocks = first.shape[0], second.shape[0]
    if strided:
        dy = dy.reshape(dy.shape[0], -1, out_blocks).mT.reshape(dy.shape)
    dx = dfirst = dsecond = None
    if needed[2]:
        dsecond = _blocks.gradient(dy, z)
    if needed[0] or needed[1]:
        turn = _blocks.tokens_last(dy, first.shape[1] // out_blocks)
        dz = _blocks.regroup(_blocks.enter(dy, second.mT, turn=turn), in_blocks, turn=turn)
        if needed[1]:
            dfirst = torch.bmm(dz.mT, _blocks.groups(x, in_blocks))
        if needed[0]:
            dx = _blocks.leave(dz, first.mT)
    return dx, dfirst, dsecond


def _fused_map(
    x: Tensor, first: Tensor, second: Tensor, out_features: int, strided: bool, one: bool
) -> Tensor:
    if _blocks.needs_grad(x, first, second):
        y: Tensor = _Fused.apply(x, first, second, out_features, strided, one)  # type: ignore[no-untyped-call]
        return y
    return _fused_product(x, first, second, out_features, strided, one)[0]


def _fused_product(
    x: Tensor, first: Tensor, second: Tensor, out_features: int, strided: bool, one: bool
) -> tuple[Tensor, Tensor | None]:
    """y (tokens, out_features), and the regrouped intermediate unless in ``one`` kernel.

    x is not padded.

    Raises:
        UsageError: an output group is too wide for one kernel.
    """
    out_blocks, out_side, _ = second.shape
    if one and (refused := too_wide(out_side)):
        raise UsageError(refused)
    rank, fused = first.shape[1] // out_blocks, _blocks.fused()
    if one:
        return fused.two_stage(x, first, second, out_features, strided, together(out_side)), None
    z = fused.enter_grouped(x, first, out_blocks, _blocks.tokens_last(x, rank))
    return _blocks.crop(_blocks.leave(z, second, strided=strided), out_features), z


class _Fused(torch.autograd.Function):
    """Forward in Triton; backward as ``bmm``, with z made again if it was not written."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        first: Tensor,
        second: Tensor,
        out_features: int,
        strided: bool,
        one: bool,
    ) -> Tensor:
        y, z = _fused_product(x, first, second, out_features, strided, one)
        ctx.save_for_backward(x, first, second, z)
        ctx.strided = strided
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, first, second, z = ctx.saved_tensors
        in_features, (out_blocks, out_side, _) = x.shape[1], second.shape
        if z is None and ctx.needs_input_grad[2]:
            turn = _blocks.tokens_last(x, first.shape[1] // out_blocks)
            z = _blocks.fused().enter_grouped(x, first, out_blocks, turn)
        x = _blocks.pad(x, first.shape[0] * first.shape[2])
        dy = _blocks.pad(dy, out_blocks * out_side)
        needed = ctx.needs_input_grad[:3]
        dx, dfirst, dsecond = _gradients(needed, (x, first, second, z), dy, ctx.strided)
        dx = dx if dx is None else _blocks.crop(dx, in_features)
        return dx, dfirst, dsecond, None, None, None


@dataclass(frozen=True, kw_only=True)
class TwoStage(Format):
    """What a format of this family shares; a subclass says how W is cut.

    ``order`` says which output feature entry s of output group l is: ``blocked`` l · out_side + s,
    ``strided`` s · out_blocks + l. For a trained weight these are different classes of matrices.
    Sizes that the blocks do not divide are padded with zeros.
    """

    KERNELS = ("bmm", "einsum", *IN_TRITON)
    revision: ClassVar[int] = 2
    ORDERS: ClassVar[tuple[str, ...]] = ("blocked", "strided")

    rank: int
    order: str = "blocked"

    @abstractmethod
    def grid(self) -> Grid:
        """How W is cut into blocks."""

    def check_grid(self) -> None:
        """Demand an order that exists and a rank that a block can have.

        Raises:
            KnobError: one of them is not.
        """
        _blocks.check_choice(self, "order", self.ORDERS)
        grid = self.grid()
        self.check_integer("rank", low=1, high=min(grid.in_side, grid.out_side))

    @classmethod
    def for_budget(cls, out_features: int, in_features: int, density: float, **knobs: Knob) -> Self:
        multiple = knobs.pop("multiple", 1)
        smallest = cls(out_features=out_features, in_features=in_features, rank=1, **knobs)  # type: ignore[arg-type]
        grid = smallest.grid()
        affordable = budget(out_features, in_features, density) // smallest.parameters()
        rank = min(affordable, grid.in_side, grid.out_side)
        if rank < 1:
            raise unreachable(cls.name(), density, f"rank 1 has density {smallest.density():.4g}")
        return dataclasses.replace(smallest, rank=round_down(rank, multiple))

    def parameters(self) -> int:
        return sum(self.stages())

    def stages(self) -> tuple[int, ...]:
        grid = self.grid()
        return (
            self.rank * grid.out_blocks * self.in_features,
            self.rank * grid.in_blocks * self.out_features,
        )

    def stored_bytes(self, item_bytes: int) -> int:
        return sum(self._padded_stages()) * item_bytes

    def flops(self, tokens: int, direction: str) -> int:
        """Those of the chain; where no intermediate was kept, the first product once more."""
        chain = self._padded_stages()
        again = chain[0] if self.kernel == FUSED else 0
        return _blocks.chain_flops(tokens, chain, direction, again=again)

    def unsupported(self, device: str, dtype: torch.dtype, direction: str) -> str | None:
        if self.kernel not in IN_TRITON:
            return None
        refused = too_wide(self.grid().out_side) if self.kernel == FUSED else None
        return refused or _blocks.fused_refusal(device, dtype)

    def _padded_stages(self) -> tuple[int, int]:
        grid = self.grid()
        pairs = grid.in_blocks * grid.out_blocks * self.rank
        return pairs * grid.in_side, pairs * grid.out_side

    def intermediate_width(self) -> int:
        grid = self.grid()
        return 0 if self.kernel == FUSED else grid.in_blocks * grid.out_blocks * self.rank

    def copied_width(self) -> int:
        """The regrouped intermediate; y where it is gathered; x and y where they are padded.

        ``triton`` regroups as it writes and pads nothing; ``triton_fused`` copies nothing at all.
        Not counted: on a CPU ``bmm`` may copy y, whose batched product cannot be written to a view.
        """
        grid = self.grid()
        padded_in, padded_out = grid.in_blocks * grid.in_side, grid.out_blocks * grid.out_side
        if self.kernel == FUSED:
            return 0
        copied = 0 if self.kernel == "triton" else self.intermediate_width()
        if self.kernel == "einsum" or self.order == "strided":
            copied += padded_out
        padded_in = self.in_features if self.kernel == "triton" else padded_in
        return copied + _blocks.padding_copies(self, padded_out, padded_in)

    def _intermediate_bytes(self, tokens: int, item_bytes: int, direction: str) -> int:
        if self.kernel not in IN_TRITON:
            return super()._intermediate_bytes(tokens, item_bytes, direction)
        plain, again = dataclasses.replace(self, kernel="bmm"), 0
        if self.kernel == FUSED:  # backward, z is first made again: x and a factor read, z written
            again = tokens * (self.in_features + plain.intermediate_width()) + self.stages()[0]
        return _blocks.fused_bytes((self, plain), tokens, item_bytes, direction, again)

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
        return {name: self.in_features / seen / 2 for name, seen in inputs.items()}

    def project(self, weight: Tensor, *, activations: Tensor | None = None) -> Linear:
        """The nearest member: the blocks decouple, and each has its truncated decomposition."""
        k, p, l, s = self.grid()  # noqa: E741
        work = _blocks.working(weight)
        worth = _blocks.importance(activations, work)
        work = _blocks.pad(work * worth, l * s, k * p)
        if self.order == "strided":
            blocks = work.view(s, l, k, p).permute(1, 2, 0, 3)
        else:
            blocks = work.view(l, s, k, p).transpose(1, 2)
        left, right = _blocks.truncated(blocks, self.rank)  # (l, k, s, t), (l, k, t, p)
        first = right.transpose(0, 1) / _blocks.pad_ones(worth, k * p).view(k, 1, 1, p)
        second = left.transpose(1, 2)
        return self.build(*(factor.to(weight.dtype).contiguous() for factor in (first, second)))
