"""Blocks that share their bases: W[i, j] = U[i] diag(s[i, j]) V[j].

Sizes that ``blocks`` does not divide are padded with zeros. Kernels:

* ``by_tokens``: the fastest of the others at the number of tokens, by measurements on CPUs with
  AVX-512: ``multiply_sum`` below 8 tokens, and as long as tokens times blocks of W are at most 256,
  else ``views``, for which it keeps a copy of the couplings until they change; on other devices
  ``bmm``, likewise;
* ``bmm``: a batched product for the bases, one for the couplings, one for the bases; each
  intermediate is regrouped by one copy of whole rows of tokens;
* ``onednn``: ``bmm`` by oneDNN, in float32 on a CPU, from 16 tokens on;
* ``views``: the same products without the copies, read and written with strides;
* ``triton`` (CUDA): a batched product for the first bases, then one Triton kernel that couples and
  multiplies by the other bases: the coupled values are in no memory, and nothing is regrouped.
  Backward it is ``bmm``, with these values made again. Its speed is not measured yet;
* ``addcmul``: the couplings added up block by block;
* ``multiply_sum``: the published spelling, which forms every product before it adds them.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.compiler import is_compiling

from hwbench.formats import _alternating, _block_matmul, _init, _kernel, _onednn, _sizes, _triton
from hwbench.formats._base import Linear
from hwbench.formats._by_device import ByDevice
from hwbench.formats._derived import Derived


class _Map(Linear):
    def __init__(self, spec: Blast, factors: _alternating.Factors, dtype: torch.dtype) -> None:
        super().__init__(spec.out_features, spec.in_features)
        self.kernel = spec.implementation
        bases_out, couplings, bases_in = (factor.to(dtype).contiguous() for factor in factors)
        self.by_component = spec.by_component()
        self.pairs = spec.pairs()
        self._turned = Derived[Tensor]()
        if self.by_component:
            couplings = couplings.permute(2, 0, 1).contiguous()
        self.bases_out = nn.Parameter(bases_out)  # (i, p, rank)
        self.couplings = nn.Parameter(couplings)  # (rank, i, j), or (i, j, rank)
        self.bases_in = nn.Parameter(bases_in)  # (j, rank, q)

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """The bases of the outputs, the couplings, and the bases of the inputs."""
        return self.bases_out, self.couplings, self.bases_in

    def pairwise(self) -> Tensor:
        """The couplings as (i, j, rank), as they are stored or as a view."""
        couplings: Tensor = self.couplings
        return couplings.permute(1, 2, 0) if self.by_component else couplings

    def components(self) -> Tensor:
        """The couplings as (rank, i, j): a copy where they are stored otherwise."""
        couplings: Tensor = self.couplings
        if self.by_component:
            return couplings
        if is_compiling() or _block_matmul.needs_grad(couplings):  # a trace would keep the copy
            return self._components()
        return self._turned.get((couplings,), self._components, trusting=self.trusting)

    def _components(self) -> Tensor:
        return self.couplings.permute(2, 0, 1).contiguous()

    def forget(self) -> None:
        self._turned.clear()

    def to_dense(self) -> Tensor:
        form = "ipr,rij,jrq->ipjq" if self.by_component else "ipr,ijr,jrq->ipjq"
        dense = torch.einsum(form, self.bases_out, self.couplings, self.bases_in)
        return dense.flatten(2).flatten(0, 1)[: self.out_features, : self.in_features]


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
    x: Tensor,
    bases_out: Tensor,
    couplings: Tensor,
    bases_in: Tensor,
    copy: bool,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, and both intermediates as they are read: (rank, j, tokens) and (i, tokens, rank).

    y lies in ``out`` where that is given.
    """
    turn = not copy or _block_matmul.tokens_last(x, 1)
    z, w = _coupled(_block_matmul.enter(x, bases_in, turn=turn), couplings, copy=copy, turn=turn)
    return _block_matmul.leave(w, bases_out, out=out), z, w


def _product_in_runs(x: Tensor, factors: tuple[Tensor, Tensor, Tensor], copy: bool) -> Tensor:
    """y alone, where both intermediates are large on a CPU in runs of tokens."""
    bases_out, _, bases_in = factors
    tokens, width = x.shape[0], bases_in.shape[1] * (len(bases_out) + len(bases_in))
    runs = _block_matmul.runs(tokens, width, x.device.type)
    if len(runs) <= 1:
        return _product(x, *factors, copy)[0]
    y = x.new_empty(tokens, bases_out.shape[0] * bases_out.shape[1])
    for run in runs:
        _product(x[run], *factors, copy, out=y[run])
    return y


def _coupled(z: Tensor, couplings: Tensor, *, copy: bool, turn: bool) -> tuple[Tensor, Tensor]:
    """(j, tokens, rank) as (rank, j, tokens), and coupled: (i, tokens, rank)."""
    z = _to_components(z, copy=copy)
    return z, _to_blocks(torch.bmm(couplings, z), copy=copy, turn=turn)


@_onednn.remembered
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
    """Gradients of x and the factors, in the order of ``saved``, where ``needed`` says so."""
    x, bases_out, couplings, bases_in, z, w = saved
    x_needs, out_needs, couplings_need, in_needs = needed
    turn = not copy or _block_matmul.tokens_last(dy, 1)
    dx = dout = dcouplings = din = None
    if out_needs:
        dout = _block_matmul.gradient(dy, w)
    if not (x_needs or couplings_need or in_needs):
        return None, dout, None, None
    dw = _to_components(_block_matmul.enter(dy, bases_out.mT, turn=turn), copy=copy)
    if couplings_need:
        dcouplings = torch.bmm(dw, z.mT)
    if x_needs or in_needs:
        dz = _to_blocks(torch.bmm(couplings.mT, dw), copy=copy, turn=turn)
        if in_needs:
            din = torch.bmm(dz.mT, _block_matmul.groups(x, bases_in.shape[0]))
        if x_needs:
            dx = _block_matmul.leave(dz, bases_in.mT)
    return dx, dout, dcouplings, din


class _Fused(torch.autograd.Function):
    """Forward by ``triton``, which keeps the first intermediate; backward as ``bmm``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bases_out: Tensor, couplings: Tensor, bases_in: Tensor, width: int
    ) -> Tensor:
        z = _block_matmul.enter(x, bases_in, turn=False)
        ctx.save_for_backward(x, bases_out, couplings, bases_in, z)
        return _triton.fused().leave_coupled(z, couplings, bases_out, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, bases_out, couplings, bases_in, z = ctx.saved_tensors
        needed = ctx.needs_input_grad[:4]
        dy = _block_matmul.pad(dy, bases_out.shape[0] * bases_out.shape[1])
        couplings, w = couplings.permute(2, 0, 1), z
        if needed[1] or needed[2]:
            turn = _block_matmul.tokens_last(dy, 1)
            z, w = _coupled(z, couplings, copy=True, turn=turn)
        saved = (x, bases_out, couplings, bases_in, z, w)
        dx, dout, dcouplings, din = _gradients(needed, saved, dy, copy=True)
        if dcouplings is not None:
            dcouplings = dcouplings.permute(1, 2, 0)
        return dx, dout, dcouplings, din, None


@dataclass(frozen=True, kw_only=True)
class Blast(ByDevice):
    """W in a grid of ``out_blocks`` × ``blocks`` blocks over shared bases of ``rank`` columns.

    Block (i, j) is U[i] diag(s[i, j]) V[j] with U of shape (out / out_blocks, rank) and V of shape
    (rank, in / blocks): all blocks of a row share U[i], all of a column V[j], and a block has
    ``rank`` couplings s[i, j] of its own. That is rank · (out + in + blocks · out_blocks)
    parameters.

    Raises:
        KnobError: a number of blocks does not fit the size, or the rank is none.
    """

    PAPER = "Lee et al., BLAST: Block-Level Adaptive Structured Matrices, 2024, arXiv:2410.21262"
    OUTPUTS = "factors"
    PROJECTION_TOLERANCE = 0.05
    revision: ClassVar[int] = 4

    rank: int
    blocks: int = 4
    out_blocks: int = None  # type: ignore[assignment]  # filled in below: as many as ``blocks``

    def __post_init__(self) -> None:
        super().__post_init__()
        _sizes.fill(self, out_blocks=self.blocks)
        _sizes.check_blocks(self, "blocks", self.in_features)
        _sizes.check_blocks(self, "out_blocks", self.out_features)
        self.check_integer("rank", low=1)

    def parameters(self) -> int:
        return sum(self.stages())

    def stages(self) -> tuple[int, ...]:
        couplings = self.rank * self.pairs()
        return (self.rank * self.in_features, couplings, self.rank * self.out_features)

    def stored_bytes(self, item_bytes: int) -> int:
        return sum(self.products()) * item_bytes

    def pairs(self) -> int:
        """Blocks of W: each pairs a base of the outputs with one of the inputs."""
        return self.out_blocks * self.blocks

    def by_component(self) -> bool:
        """Whether the couplings lie as (rank, out_blocks, in_blocks), which the kernel asks for."""
        kernel = self.implementation
        return isinstance(kernel, Batched) and not isinstance(kernel, ByTokens)

    def intermediate_bytes(self, tokens: int, item_bytes: int, direction: str) -> int:
        """Intermediate bytes of the kernel that multiplies this number of tokens."""
        kernel = self.implementation
        if not isinstance(kernel, ByTokens):
            return super().intermediate_bytes(tokens, item_bytes, direction)
        name = kernel.chosen(tokens, self.pairs(), self.device).name
        chosen = dataclasses.replace(self, kernel=name)
        return chosen.intermediate_bytes(tokens, item_bytes, direction)

    def padded(self) -> tuple[int, int]:
        """Both sizes as they are stored."""
        return (
            self.out_blocks * _sizes.side(self.out_features, self.out_blocks),
            self.blocks * _sizes.side(self.in_features, self.blocks),
        )

    def products(self) -> tuple[int, ...]:
        padded_out, padded_in = self.padded()
        return (self.rank * padded_in, self.stages()[1], self.rank * padded_out)

    def random(self, *, dtype: torch.dtype, generator: torch.Generator) -> Linear:
        padded_out, padded_in = self.padded()
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
        work = _init.working(weight)
        worth = _init.column_weights(work, activations, least=_init.DIVISIBLE)
        padded_out, padded_in = self.padded()
        padded = _block_matmul.pad(work * worth, padded_out, padded_in)
        factors = _alternating.fit(padded, self.out_blocks, self.blocks, self.rank)
        worth = _init.pad_ones(worth, padded_in)
        bases_in = factors.bases_in / worth.view(self.blocks, 1, -1)
        return _Map(self, factors._replace(bases_in=bases_in), weight.dtype)


class _Blocks(_kernel.Kernel, ABC):
    """The shared part of the kernels: x is padded and y cut where the blocks need it."""

    def apply(self, layer: _Map, x: Tensor) -> Tensor:
        bases_in = layer.bases_in
        x = _block_matmul.pad(x, bases_in.shape[0] * bases_in.shape[2])
        return _block_matmul.crop(self.product(layer, x), layer.out_features)

    @abstractmethod
    def product(self, layer: _Map, x: Tensor) -> Tensor:
        """y for padded x; it may be padded, too."""

    def copied_width(self, described: Blast) -> int:
        return _sizes.padding_copies(described, *described.padded())


class Batched(_Blocks):
    """Three batched products, with a backward pass of six.

    Where no gradient is wanted, a CPU makes large intermediates in runs of tokens, which stay in
    cache.

    Not counted: on a CPU y may be copied, as a batched product cannot be written to a view.
    """

    operators = _kernel.BATCHED

    copies: ClassVar[bool]
    """Whether each intermediate is regrouped by a copy of whole rows of tokens."""

    def product(self, layer: _Map, x: Tensor) -> Tensor:
        factors = layer.bases_out, layer.components(), layer.bases_in
        if _block_matmul.needs_grad(x, *factors):
            y: Tensor = _Product.apply(x, *factors, self.copies)  # type: ignore[no-untyped-call]
            return y
        return _product_in_runs(x, factors, self.copies)

    def intermediate_width(self, described: Blast) -> int:
        return described.rank * (described.blocks + described.out_blocks)


class Bmm(Batched, _kernel.Bmm, of=Blast):
    """Three batched products; each intermediate is regrouped by one copy of rows of tokens."""

    copies = True

    def copied_width(self, described: Blast) -> int:
        return super().copied_width(described) + self.intermediate_width(described)


class Views(Batched, of=Blast):
    """The same products without the copies, read and written with strides."""

    name = "views"
    copies = False


class OneDnn(_onednn.OneDnn, Bmm, of=Blast):
    """The products of ``bmm`` by oneDNN in float32 on a CPU, forward and in a step."""


class Addcmul(_Blocks, of=Blast):
    """The couplings added up block by block."""

    name = "addcmul"
    operators = r"aten::addcmul_?$"

    def product(self, layer: _Map, x: Tensor) -> Tensor:
        bases_out, couplings, bases_in = layer.factors()
        tokens, (in_blocks, rank, _) = x.shape[0], bases_in.shape
        z = _block_matmul.block_diagonal(x, bases_in).view(tokens, in_blocks, 1, rank)
        w = z[:, 0] * couplings[:, 0]  # (tokens, i, rank)
        for j in range(1, in_blocks):
            w = w.addcmul_(z[:, j], couplings[:, j])
        return _block_matmul.block_diagonal(w.flatten(1), bases_out)

    def intermediate_width(self, described: Blast) -> int:
        """The first intermediate, and each of the terms."""
        return described.rank * described.blocks * (1 + described.out_blocks)


class MultiplySum(_Blocks, of=Blast):
    """The published spelling, which forms every product before it adds them."""

    name = "multiply_sum"
    operators = r"aten::sum$"

    def product(self, layer: _Map, x: Tensor) -> Tensor:
        bases_out, _, bases_in = layer.factors()
        z = torch.bmm(_block_matmul.groups(x, bases_in.shape[0]), bases_in.mT)  # (j, tokens, rank)
        w = (layer.pairwise().unsqueeze(2) * z).sum(1)  # (i, tokens, rank)
        y = torch.bmm(w, bases_out.mT).transpose(0, 1)
        return y.reshape(x.shape[0], -1).contiguous()

    def intermediate_width(self, described: Blast) -> int:
        """Both intermediates, and each of the terms."""
        widths = described.blocks + described.pairs() + described.out_blocks
        return described.rank * widths

    def copied_width(self, described: Blast) -> int:
        return super().copied_width(described) + described.padded()[0]


class Triton(_Blocks, _triton.Triton, of=Blast):
    """A batched product, then one kernel in Triton that couples and multiplies by the other bases.

    Backward, the first intermediate is regrouped and coupled again.
    """

    backward_as = Bmm

    def product(self, layer: _Map, x: Tensor) -> Tensor:
        bases_out, couplings, bases_in = layer.factors()
        if _block_matmul.needs_grad(x, *layer.factors()):
            y: Tensor = _Fused.apply(x, *layer.factors(), layer.out_features)  # type: ignore[no-untyped-call]
            return y
        z = _block_matmul.enter(x, bases_in, turn=False)
        coupled: Tensor = _triton.fused().leave_coupled(z, couplings, bases_out, layer.out_features)
        return coupled

    def intermediate_width(self, described: Blast) -> int:
        return described.rank * described.blocks

    def copied_width(self, described: Blast) -> int:
        """x where it is padded; no padding of y is written."""
        return _sizes.padding_copies(described, described.out_features, described.padded()[1])

    def recomputed(self, described: Blast, tokens: int) -> int:
        return described.stages()[1]

    def recomputed_values(self, described: Blast, tokens: int) -> int:
        """Both intermediates, each written, read, and copied or read; and the couplings."""
        both = described.rank * (described.blocks + described.out_blocks)
        return 3 * tokens * both + described.stages()[1]


class ByTokens(Views, of=Blast, default=True):
    """The fastest of the others at the number of tokens, by measurements on CPUs with AVX-512.

    Not counted: with many tokens the couplings are copied in a step, or where they changed.
    """

    name = "by_tokens"
    operators = rf"{MultiplySum.operators}|{Views.operators}"

    def chosen(self, tokens: int, pairs: int, device: str) -> _Blocks:
        """The kernel for a number of tokens and of blocks of W on a kind of device."""
        if device != "cpu":
            return _ELSEWHERE
        return _FEW if tokens < MANY_TOKENS or tokens * pairs <= FEW_PAIRS else _MANY

    def product(self, layer: _Map, x: Tensor) -> Tensor:
        return self.chosen(x.shape[0], layer.pairs, x.device.type).product(layer, x)


MANY_TOKENS = 8
"""The rows of x from which on batched products are faster than sums of products."""

FEW_PAIRS = 256
"""Up to this number of pairs of a row of x and a block of W, sums are faster all the same."""

_FEW, _MANY, _ELSEWHERE = MultiplySum(), Views(), Bmm()
