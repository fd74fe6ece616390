"""A sum of Kronecker products of which only some blocks are kept, W = Σ (S ∘ A[r]) ⊗ B[r].

W is read as ``out_blocks`` × ``in_blocks`` blocks, as ``kronecker`` reads it. S keeps some of
them; each that stays is Σ_r A[r, i, j] B[r], a mixture of ``rank`` matrices that all blocks share.
The grid is that of ``kronecker`` where none is given, and half of its blocks are kept.

Kernels: ``gather`` is one product with all B, and a gather of its results by the kept entries of A;
``formed`` makes the kept blocks in each call and multiplies by them as ``bsr`` does, which takes
fewer FLOPs from some tokens on, the more so the higher the rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwbench.formats import _block_gather, _entries, _gather, _init, _sizes
from hwbench.formats._base import Format, Linear, by_direction
from hwbench.formats._derived import Derived
from hwbench.formats._directions import chain_flops
from hwbench.formats._entries import (
    INDEX_BYTES,
    GatheredFormat,
    PatternMap,
    check_index_dtype,
    picked_bytes,
    random_places,
)
from hwbench.formats._kernel import Kernel


class _Map(PatternMap):
    row_starts: Tensor  # (out_blocks + 1,)
    columns: Tensor  # (kept,)

    def __init__(self, spec: BlockSparseKronecker, flat: Tensor, outer: Tensor, inner: Tensor):
        super().__init__(spec.out_features, spec.in_features)
        self.kernel, self.gradient = spec.implementation, spec.gradient
        self.outer = nn.Parameter(outer)  # A at the kept blocks: (kept, rank)
        self.inner = nn.Parameter(inner)  # B: (rank, out_side, in_side)
        self.in_blocks, dtype = spec.in_blocks, getattr(torch, spec.index_dtype)
        ends = torch.arange(spec.out_blocks + 1, device=flat.device) * spec.in_blocks
        self.register_buffer("row_starts", torch.searchsorted(flat, ends).to(dtype))
        self.register_buffer("columns", (flat % spec.in_blocks).to(dtype))
        self._terms = Derived[_gather.Pattern]()

    def build_pattern(self) -> _gather.Pattern:
        return _gather.Pattern(self.row_starts, self.columns, self.in_blocks)

    def terms(self) -> _gather.Pattern:
        """Where the entries of all A[r] lie in (out_blocks, in_blocks · rank): working memory."""
        rank = self.outer.shape[1]

        def build() -> _gather.Pattern:
            each = torch.arange(rank, dtype=self.columns.dtype, device=self.columns.device)
            places = (self.columns[:, None] * rank + each).flatten()
            return _gather.Pattern(self.row_starts * rank, places, self.in_blocks * rank)

        sources = (self.row_starts, self.columns)
        return self._terms.get(sources, build, trusting=self.trusting)

    def blocks(self) -> Tensor:
        """The kept blocks, (kept, out_side, in_side); differentiable."""
        return (self.outer @ self.inner.flatten(1)).unflatten(1, self.inner.shape[1:])

    def to_dense(self) -> Tensor:
        _, height, width = self.inner.shape
        shape = (self.out_features // height, self.in_features // width, height, width)
        where = (self.pattern().rows.long(), self.columns.long())
        blocks = self.outer.new_zeros(shape).index_put(where, self.blocks())
        return blocks.transpose(1, 2).reshape(self.out_features, self.in_features)

    def forget(self) -> None:
        super().forget()
        self._terms.clear()


@dataclass(frozen=True, kw_only=True)
class BlockSparseKronecker(GatheredFormat):
    """``kept_blocks`` of the blocks of W, each a mixture of ``rank`` matrices that all share.

    Bytes: A at the kept blocks, all B, one index a block, and a start for each row of blocks.
    """

    PAPER = (
        "Zhu et al., An efficient training algorithm for models with block-wise sparsity, 2025, "
        "arXiv:2503.21928"
    )
    OUTPUTS = "factors"

    ROUNDS: ClassVar[int] = 30
    LEAST_GAIN: ClassVar[float] = 1e-3  # a round that lowers the squared error by less is the last

    rank: int
    out_blocks: int = None  # type: ignore[assignment]  # filled in below: the larger factor of out
    in_blocks: int = None  # type: ignore[assignment]  # and the smaller factor of in
    kept_blocks: int = None  # type: ignore[assignment]  # half of the blocks
    index_dtype: str = "int32"

    def __post_init__(self) -> None:
        super().__post_init__()
        _sizes.fill_outer_grid(self)
        blocks = self.out_blocks * self.in_blocks
        _sizes.fill(self, kept_blocks=-(-blocks // 2))
        self.check_integer("kept_blocks", low=1, high=blocks)
        self.check_integer("rank", low=1, high=self.largest_setting())
        check_index_dtype(self, self.index_dtype, self.gathered_entries())

    def largest_setting(self) -> int:
        return min(self.kept_blocks, self._size())

    def smallest_words(self) -> str:
        return f"one term has density {self.density():.4g}"

    def sides(self) -> tuple[int, int]:
        """Outputs and inputs of a block."""
        return self.out_features // self.out_blocks, self.in_features // self.in_blocks

    def _size(self) -> int:
        out_side, in_side = self.sides()
        return out_side * in_side

    def parameters(self) -> int:
        return sum(self.stages())

    def stages(self) -> tuple[int, ...]:
        return (self.rank * self._size(), self.gathered_entries())

    def chain(self) -> tuple[int, int]:
        """Multiply-adds a token with all B, then with what is kept of A."""
        shared, own = self.stages()
        return shared * self.in_blocks, own * self.sides()[0]

    def index_bytes(self) -> int:
        return (self.kept_blocks + self.out_blocks + 1) * INDEX_BYTES[self.index_dtype]

    def gathered_entries(self) -> int:
        """The number of entries of A at the kept blocks."""
        return self.kept_blocks * self.rank

    def sparse_sides(self) -> tuple[int, int]:
        """Rows and columns of all A, side by side."""
        return self.out_blocks, self.in_blocks * self.rank

    def forms(self, tokens: int) -> bool:
        """Whether the kernel forms the kept blocks for this number of tokens."""
        return tokens > 0 and isinstance(self.implementation, Formed)

    def flops(self, tokens: int, direction: str) -> int:
        """FLOPs of the chain; or of making the kept blocks once a call, and multiplying by them."""
        if self.forms(tokens):
            kept = self.kept_blocks * self._size()
            product, forming = 2 * tokens * kept, 2 * self.rank * kept
            return by_direction(
                direction,
                forward=product + forming,
                to_input=product,
                to_weight=product + 2 * forming,
            )
        more = 2 * tokens * self.sides()[0] * (self.gradient_entries() - self.gathered_entries())
        chain = chain_flops(tokens, self.chain(), direction)
        return chain + by_direction(direction, forward=0, to_input=0, to_weight=more)

    def needed_flops(self, tokens: int, direction: str) -> int:
        """Those of the chain, or fewer: a value is used many times a token."""
        return min(chain_flops(tokens, self.chain(), direction), self.flops(tokens, direction))

    def intermediate_bytes(self, tokens: int, item_bytes: int, direction: str) -> int:
        """With the kept blocks and their gradient, where the kernel forms them."""
        moved = Format.intermediate_bytes(self, tokens, item_bytes, direction)
        if not self.forms(tokens):
            kept, computed = self.gathered_entries(), self.gradient_entries()
            return moved + picked_bytes(kept, computed, item_bytes, direction)
        blocks = item_bytes * self.kept_blocks * self._size()
        return moved + by_direction(
            direction, forward=2 * blocks, to_input=blocks, to_weight=3 * blocks
        )

    def random(self, *, dtype: torch.dtype, generator: torch.Generator) -> Linear:
        """B as dense layers of a block, and A so that outputs vary as those of a dense layer."""
        (out_side, in_side), device = self.sides(), generator.device
        blocks = self.out_blocks * self.in_blocks
        flat = random_places(blocks, self.kept_blocks, generator)
        outer = torch.empty(self.kept_blocks, self.rank, device=device)
        outer.normal_(
            std=(self.rank * self.kept_blocks / self.out_blocks) ** -0.5, generator=generator
        )
        inner = torch.empty(self.rank, out_side, in_side, device=device)
        inner.normal_(std=in_side**-0.5, generator=generator)
        return _Map(self, flat, outer.to(dtype), inner.to(dtype))

    def project(self, weight: Tensor, *, activations: Tensor | None = None) -> Linear:
        """In turns: the best S and A for B, and the best B for these, while the error falls.

        It begins at the blocks of the largest norm, and their decomposition. ``activations`` weigh
        the columns.
        """
        (out_side, in_side), work = self.sides(), _init.working(weight)
        worth = _init.column_weights(work, activations, least=_init.DIVISIBLE).square()
        worth = worth.view(self.in_blocks, in_side)  # (j, v)
        grid = work.view(self.out_blocks, out_side, self.in_blocks, in_side).transpose(1, 2)
        energy = grid.square() * worth[:, None]
        flat = _entries.largest(energy.sum((2, 3)).flatten(), self.kept_blocks)
        left, right = _init.truncated(grid.flatten(0, 1)[flat].flatten(1), self.rank)
        best = flat, left, right.unflatten(1, (out_side, in_side))
        before, (flat, outer, inner) = float("inf"), best
        for _ in range(self.ROUNDS):
            flat, outer, gain = self._best_blocks(grid, worth, inner)
            missed = float(energy.sum() - gain)
            if not missed < before * (1 - self.LEAST_GAIN):
                break
            before, best = missed, (flat, outer, inner)
            inner = self._best_shared(grid, worth, flat, outer)
        flat, outer, inner = best
        return _Map(
            self, flat, outer.to(weight.dtype).contiguous(), inner.to(weight.dtype).contiguous()
        )

    def _best_blocks(
        self, grid: Tensor, worth: Tensor, inner: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The blocks that are kept, A at them, and what they take away of the squared error."""
        weighed = inner * worth[:, None, None]  # (j, r, u, v)
        target = torch.einsum("ijuv,jruv->jri", grid, weighed)
        curvature = weighed.flatten(2) @ inner.flatten(1).mT  # (j, r, r)
        every = _init.solved(curvature, target)
        gain = (every * target).sum(1).mT.flatten()  # (i · j)
        flat = _entries.largest(gain, self.kept_blocks)
        return flat, every.permute(2, 0, 1).flatten(0, 1)[flat], gain[flat].sum()

    def _best_shared(self, grid: Tensor, worth: Tensor, flat: Tensor, outer: Tensor) -> Tensor:
        """B for the kept blocks and A at them, column by column of a block."""
        weighted = worth[flat % self.in_blocks].mT[..., None] * outer  # (v, kept, r)
        blocks = grid.flatten(0, 1)[flat].permute(2, 0, 1)  # (v, kept, u)
        inner = _init.solved(weighted.mT @ outer, weighted.mT @ blocks)  # (v, r, u)
        return inner.permute(1, 2, 0)


class Gather(_entries.Gather, of=BlockSparseKronecker):
    """One product with all B, and sums of its results by embedding_bag, as S and A have them."""

    def apply(self, layer: _Map, x: Tensor) -> Tensor:
        (rank, out_side, in_side), tokens = layer.inner.shape, x.shape[0]
        z = functional.linear(x.reshape(-1, in_side), layer.inner.flatten(0, 1))
        z = z.view(tokens, layer.in_blocks, rank, out_side).permute(0, 3, 1, 2)
        z = z.reshape(tokens * out_side, -1)  # (tokens · u, j · r)
        terms, values = layer.terms(), layer.outer.flatten()
        y = _gather.product(z, values, terms, gradient=layer.gradient)
        return y.view(tokens, out_side, -1).transpose(1, 2).reshape(tokens, -1)

    def products(self, described: BlockSparseKronecker) -> tuple[int, ...]:
        return described.chain()

    def intermediate_width(self, described: BlockSparseKronecker) -> int:
        return described.rank * described.in_blocks * described.sides()[0]

    def copied_width(self, described: BlockSparseKronecker) -> int:
        # What B gives is regrouped and turned over, and so is what is added up of it.
        return 2 * self.intermediate_width(described) + 2 * described.out_features


class Formed(Kernel, of=BlockSparseKronecker):
    """The kept blocks made in each call, and multiplied by as ``bsr`` does."""

    name = "formed"
    operators = _entries.GATHERS

    def apply(self, layer: _Map, x: Tensor) -> Tensor:
        return _block_gather.product(x, layer.blocks(), layer.pattern())

    def intermediate_width(self, described: BlockSparseKronecker) -> int:
        return described.kept_blocks * sum(described.sides())  # collected, and products

    def copied_width(self, described: BlockSparseKronecker) -> int:
        return described.in_features + described.out_features
