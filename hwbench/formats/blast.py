"""Blocks that share their bases: W[i, j] = U[i] diag(s[i, j]) V[j].

Sizes that ``blocks`` does not divide are padded with zeros. Kernels:

* ``bmm``: a batched product for the bases, one for the couplings, one for the bases; each
  intermediate is regrouped by one copy of whole rows of tokens;
* ``views``: the same products without the copies, read and written with strides;
* ``triton`` (CUDA): a batched product for the first bases, then one Triton kernel that couples and
  multiplies by the other bases: the coupled values are in no memory, and nothing is regrouped.
  Backward it is ``bmm``, with these values made again. Its speed is not measured yet;
* ``addcmul``: the couplings added up block by block;
* ``multiply_sum``: the published spelling, which forms every product before it adds them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hwbench.formats import _alternating, _blocks
from hwbench.formats._base import Format, Linear, budget, round_down, unreachable
from hwbench.records import Knob

BATCHED = ("bmm", "views")  # kernels that read the couplings as (rank, out_blocks, in_blocks)


class _Map(Linear):
    def __init__(self, spec: Blast, factors: _alternating.Factors, dtype: torch.dtype) -> None:
        super().__init__(spec.out_features, spec.in_features)
        self.kernel = spec.kernel
        bases_out, couplings, bases_in = (factor.to(dtype).contiguous() for factor in factors)
        if self.kernel in BATCHED:
            couplings = couplings.permute(2, 0, 1).contiguous()
        self.bases_out = nn.Parameter(bases_out)  # (i, p, rank)
        self.couplings = nn.Parameter(couplings)  # (rank, i, j), or (i, j, rank)
        self.bases_in = nn.Parameter(bases_in)  # (j, rank, q)

    def apply_weight(self, x: Tensor) -> Tensor:
        factors = (self.bases_out, self.couplings, self.bases_in)
        x = _blocks.pad(x, self.bases_in.shape[0] * self.bases_in.shape[2])
        if self.kernel == "multiply_sum":
            y = _multiply_sum(x, *factors)
        elif self.kernel == "addcmul":
            y = _addcmul(x, *factors)
        elif self.kernel == "triton":
            return _fused_map(x, *factors, self.out_features)
        elif _blocks.needs_grad(x, *factors):
            y = _Product.apply(x, *factors, self.kernel == "bmm")  # type: ignore[no-untyped-call]
        else:
            y = _product(x, *factors, self.kernel == "bmm")[0]
        return _blocks.crop(y, self.out_features)

    def to_dense(self) -> Tensor:
        form = "ipr,rij,jrq->ipjq" if self.kernel in BATCHED else "ipr,ijr,jrq->ipjq"
        dense = torch.einsum(form, self.bases_out, self.couplings, self.bases_in)
        return dense.flatten(2).flatten(0, 1)[: self.out_features, : self.in_features]


def _multiply_sum(x: Tensor, bases_out: Tensor, couplings: Tensor, bases_in: Tensor) -> Tensor:
    z = torch.bmm(_blocks.groups(x, bases_in.shape[0]), bases_in.mT)  # (j, tokens, rank)
    w = (couplings.unsqueeze(2) * z).sum(1)  # (i, tokens, rank)
    return torch.bmm(w, bases_out.mT).transpose(0, 1).reshape(x.shape[0], -1).contiguous()


def _addcmul(x: Tensor, bases_out: Tensor, couplings: Tensor, bases_in: Tensor) -> Tensor:
    tokens, (in_blocks, rank, _) = x.shape[0], bases_in.shape
    z = _blocks.block_diagonal(x, bases_in).view(tokens, in_blocks, 1, rank)
    w = z[:, 0] * couplings[:, 0]  # (tokens, i, rank)
    for j in range(1, in_blocks):
        w = w.addcmul_(z[:, j], couplings[:, j])
    return _blocks.block_diagonal(w.flatten(1), bases_out)


def _to_components(z: Tensor, *, copy: bool) -> Tensor:
    """(blocks, tokens, rank) as (rank, blocks, tokens)."""
    moved = z.permute(2, 0, 1)
    return moved.contiguous() if copy else moved


def _to_blocks(w: Tensor, *, copy: bool, turn: bool) -> Tensor:
    """(rank, blocks, tokens) as (blocks, tokens, rank); a copy lies tokens last where ``turn``."""
    if not copy:
        return w.permute(1, 2, 0)
    return w.transpose(0, 1).contiguous().mT if turn else w.permute(1, 2, 0).contiguous()


def _product(
    x: Tensor, bases_out: Tensor, couplings: Tensor, bases_in: Tensor, copy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y, and both intermediates as they are read: (rank, j, tokens) and (i, tokens, rank)."""
    turn = not copy or _blocks.tokens_last(x, 1)
    z, w = _coupled(_blocks.enter(x, bases_in, turn=turn), couplings, copy=copy, turn=turn)
    return _blocks.leave(w, bases_out), z, w


def _coupled(z: Tensor, couplings: Tensor, *, copy: bool, turn: bool) -> tuple[Tensor, Tensor]:
    """(j, tokens, rank) as (rank, j, tokens), and coupled: (i, tokens, rank)."""
    z = _to_components(z, copy=copy)
    return z, _to_blocks(torch.bmm(couplings, z), copy=copy, turn=turn)


class _Product(torch.autograd.Function):
    """Three batched products forward and six backward; both intermediates are kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bases_out: Tensor, couplings: Tensor, bases_in: Tensor, copy: bool
    ) -> Tensor:
        y, z, w = _product(x, bases_out, couplings, bases_in, copy)
        ctx.save_for_backward(x, bases_out, couplings, bases_in, z, w)
        ctx.copy = copy
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx.needs_input_grad[:4], ctx.saved_tensors, dy, ctx.copy), None


def _gradients(
    needed: tuple[bool, ...], saved: tuple[Tensor, ...], dy: Tensor, copy: bool
) -> tuple[Tensor | None, ...]:
    """Those of x and the factors, in the order of ``saved``, where ``needed`` says so."""
    x, bases_out, couplings, bases_in, z, w = saved
    x_needs, out_needs, couplings_need, in_needs = needed
    turn = not copy or _blocks.tokens_last(dy, 1)
    dx = dout = dcouplings = din = None
    if out_needs:
        dout = _blocks.gradient(dy, w)
    if not (x_needs or couplings_need or in_needs):
        return None, dout, None, None
    dw = _to_components(_blocks.enter(dy, bases_out.mT, turn=turn), copy=copy)
    if couplings_need:
        dcouplings = torch.bmm(dw, z.mT)
    if x_needs or in_needs:
        dz = _to_blocks(torch.bmm(couplings.mT, dw), copy=copy, turn=turn)
        if in_needs:
            din = torch.bmm(dz.mT, _blocks.groups(x, bases_in.shape[0]))
        if x_needs:
            dx = _blocks.leave(dz, bases_in.mT)
    return dx, dout, dcouplings, din


def _fused_map(
    x: Tensor, bases_out: Tensor, couplings: Tensor, bases_in: Tensor, out_features: int
) -> Tensor:
    factors = (bases_out, couplings, bases_in)
    if _blocks.needs_grad(x, *factors):
        y: Tensor = _Fused.apply(x, *factors, out_features)  # type: ignore[no-untyped-call]
        return y
    z = _blocks.enter(x, bases_in, turn=False)
    return _blocks.fused().leave_coupled(z, couplings, bases_out, out_features)


class _Fused(torch.autograd.Function):
    """Forward by ``triton``, which keeps the first intermediate; backward as ``bmm``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bases_out: Tensor, couplings: Tensor, bases_in: Tensor, width: int
    ) -> Tensor:
        z = _blocks.enter(x, bases_in, turn=False)
        ctx.save_for_backward(x, bases_out, couplings, bases_in, z)
        return _blocks.fused().leave_coupled(z, couplings, bases_out, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, bases_out, couplings, bases_in, z = ctx.saved_tensors
        needed = ctx.needs_input_grad[:4]
        dy = _blocks.pad(dy, bases_out.shape[0] * bases_out.shape[1])
        couplings, w = couplings.permute(2, 0, 1), z
        if needed[1] or needed[2]:
            turn = _blocks.tokens_last(dy, 1)
            z, w = _coupled(z, couplings, copy=True, turn=turn)
        saved = (x, bases_out, couplings, bases_in, z, w)
        dx, dout, dcouplings, din = _gradients(needed, saved, dy, copy=True)
        if dcouplings is not None:
            dcouplings = dcouplings.permute(1, 2, 0)
        return dx, dout, dcouplings, din, None


@dataclass(frozen=True, kw_only=True)
class Blast(Format):
    """W in ``out_blocks`` × ``blocks`` blocks over shared bases of ``rank`` columns.

    Raises:
        KnobError: a number of blocks does not fit the size, or the rank is none.
    """

    KERNELS = ("bmm", "views", "addcmul", "multiply_sum", "triton")
    PAPER = "Lee et al., BLAST: Block-Level Adaptive Structured Matrices, 2024, arXiv:2410.21262"
    PROJECTION_TOLERANCE = 0.05

    rank: int
    blocks: int = 4
    out_blocks: int = None  # type: ignore[assignment]  # filled in below: as many as ``blocks``

    def __post_init__(self) -> None:
        super().__post_init__()
        _blocks.fill(self, out_blocks=self.blocks)
        _blocks.check_blocks(self, "blocks", self.in_features)
        _blocks.check_blocks(self, "out_blocks", self.out_features)
        self.check_integer("rank", low=1)

    @classmethod
    def for_budget(cls, out_features: int, in_features: int, density: float, **knobs: Knob) -> Self:
        multiple = knobs.pop("multiple", 1)
        smallest = cls(out_features=out_features, in_features=in_features, rank=1, **knobs)  # type: ignore[arg-type]
        rank = budget(out_features, in_features, density) // smallest.parameters()
        if rank < 1:
            raise unreachable("blast", density, f"rank 1 has density {smallest.density():.4g}")
        return dataclasses.replace(smallest, rank=round_down(rank, multiple))

    def parameters(self) -> int:
        return sum(self.stages())

    def stages(self) -> tuple[int, ...]:
        couplings = self.rank * self.blocks * self.out_blocks
        return (self.rank * self.in_features, couplings, self.rank * self.out_features)

    def stored_bytes(self, item_bytes: int) -> int:
        return sum(self._padded_stages()) * item_bytes

    def flops(self, tokens: int, direction: str) -> int:
        """Those of the chain; ``triton`` couples once more for the gradients of the weight."""
        chain = self._padded_stages()
        again = chain[1] if self.kernel == "triton" else 0
        return _blocks.chain_flops(tokens, chain, direction, again=again)

    def unsupported(self, device: str, dtype: torch.dtype, direction: str) -> str | None:
        return _blocks.fused_refusal(device, dtype) if self.kernel == "triton" else None

    def _padded(self) -> tuple[int, int]:
        """Both sizes as they are stored."""
        return (
            self.out_blocks * _blocks.side(self.out_features, self.out_blocks),
            self.blocks * _blocks.side(self.in_features, self.blocks),
        )

    def _padded_stages(self) -> tuple[int, ...]:
        padded_out, padded_in = self._padded()
        return (self.rank * padded_in, self.stages()[1], self.rank * padded_out)

    def intermediate_width(self) -> int:
        """Both intermediates; where the couplings are not a product, each of their terms.

        ``triton`` writes the first alone.
        """
        if self.kernel == "triton":
            return self.rank * self.blocks
        if self.kernel in BATCHED:
            return self.rank * (self.blocks + self.out_blocks)
        terms = self.rank * self.blocks * self.out_blocks
        summed = self.rank * self.out_blocks if self.kernel == "multiply_sum" else 0
        return self.rank * self.blocks + terms + summed

    def copied_width(self) -> int:
        """Both intermediates for ``bmm``, y for ``multiply_sum``; x and y where they are padded.

        Not counted: on a CPU y may be copied, as a batched product cannot be written to a view.
        """
        padded_out, padded_in = self._padded()
        copied = {"bmm": self.rank * (self.blocks + self.out_blocks), "multiply_sum": padded_out}
        if self.kernel == "triton":  # which writes no padding of y
            padded_out = self.out_features
        return copied.get(self.kernel, 0) + _blocks.padding_copies(self, padded_out, padded_in)

    def _intermediate_bytes(self, tokens: int, item_bytes: int, direction: str) -> int:
        if self.kernel != "triton":
            return super()._intermediate_bytes(tokens, item_bytes, direction)
        plain = dataclasses.replace(self, kernel="bmm")
        # Backward, z is regrouped and coupled again: either is written, read, and copied or read.
        again = 3 * tokens * plain.intermediate_width() + self.stages()[1]
        return _blocks.fused_bytes((self, plain), tokens, item_bytes, direction, again)

    def random(self, *, dtype: torch.dtype, generator: torch.Generator) -> Linear:
        padded_out, padded_in = self._padded()
        device = generator.device
        bases_out = torch.empty(padded_out, self.rank, device=device)
        bases_in = torch.empty(self.rank, padded_in, device=device)
        for bases in (bases_out, bases_in):
            bases.normal_(std=0.02**0.5, generator=generator)
        couplings = torch.empty(self.out_blocks, self.blocks, self.rank, device=device)
        factors = _alternating.Factors(
            bases_out.unflatten(0, (self.out_blocks, -1)),
            couplings.uniform_(generator=generator),
            bases_in.unflatten(1, (self.blocks, -1)).transpose(0, 1),
        )
        return _Map(self, factors, dtype)

    def rate_multipliers(self) -> dict[str, float]:
        """Three times the dense rate, as Memory Better Spent trains it."""
        return dict.fromkeys(("bases_out", "couplings", "bases_in"), 3.0)

    def project(self, weight: Tensor, *, activations: Tensor | None = None) -> Linear:
        """A near member by alternating least squares; never worse than low rank of that rank."""
        work = _blocks.working(weight)
        worth = _blocks.importance(activations, work)
        padded_out, padded_in = self._padded()
        padded = _blocks.pad(work * worth, padded_out, padded_in)
        factors = _alternating.fit(padded, self.out_blocks, self.blocks, self.rank)
        worth = _blocks.pad_ones(worth, padded_in)
        bases_in = factors.bases_in / worth.view(self.blocks, 1, -1)
        return _Map(self, factors._replace(bases_in=bases_in), weight.dtype)
