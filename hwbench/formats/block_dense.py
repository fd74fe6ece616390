"""Block-diagonal, then dense: every group of inputs has its own low-rank map to all outputs.

The input is split into ``blocks`` groups, each reduced to ``rank`` features by a block of its own;
one dense product follows. Nothing is regrouped in between. A size that ``blocks`` does not divide
is padded with zeros. Kernels: ``bmm`` writes the products of the blocks where the dense product
reads them; ``onednn`` is ``bmm`` by oneDNN, in float32 on a CPU, from 16 tokens on; ``einsum`` is
the spelling that users write.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwbench.formats import _block_matmul, _init, _kernel, _onednn, _sizes
from hwbench.formats._base import Format, Linear


class _Map(Linear):
    def __init__(self, spec: BlockDense, blocks: Tensor, dense: Tensor) -> None:
        super().__init__(spec.out_features, spec.in_features)
        self.kernel = spec.implementation
        self.blocks = nn.Parameter(blocks)  # (blocks, rank, in_side)
        self.dense = nn.Parameter(dense)  # (out, blocks · rank)

    def grouped(self, x: Tensor) -> Tensor:
        """x, padded where the blocks need it: (tokens, blocks · in_side)."""
        blocks, _, in_side = self.blocks.shape
        return _block_matmul.pad(x, blocks * in_side)

    def to_dense(self) -> Tensor:
        wide = self.dense.unflatten(1, (self.blocks.shape[0], -1))  # (out, blocks, rank)
        return torch.einsum("okt,ktp->okp", wide, self.blocks).flatten(1)[:, : self.in_features]


@dataclass(frozen=True, kw_only=True)
class BlockDense(Format):
    """``blocks`` blocks of (rank, in / blocks), then a dense matrix of (out, blocks · rank).

    Raises:
        KnobError: the blocks do not fit the input, or no block can have that rank.
    """

    PAPER = "Wei et al., Building on Efficient Foundations, 2024, arXiv:2406.16450"
    OUTPUTS = "blocks"

    rank: int
    blocks: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        _sizes.check_blocks(self, "blocks", self.in_features)
        self.check_integer("rank", low=1, high=min(self._side(), self.out_features))

    def largest_setting(self) -> int:
        return min(self._side(), self.out_features)

    def _side(self) -> int:
        return _sizes.side(self.in_features, self.blocks)

    def parameters(self) -> int:
        return sum(self.stages())

    def stages(self) -> tuple[int, ...]:
        return (self.rank * self.in_features, self.rank * self.blocks * self.out_features)

    def products(self) -> tuple[int, ...]:
        return (self.rank * self.blocks * self._side(), self.stages()[1])

    def stored_bytes(self, item_bytes: int) -> int:
        return sum(self.products()) * item_bytes

    def intermediate_width(self) -> int:
        return self.rank * self.blocks

    def copied_width(self) -> int:
        """The copies of the kernel, and x where it is padded."""
        padding = _sizes.padding_copies(self, self.out_features, self.blocks * self._side())
        return super().copied_width() + padding

    def random(self, *, dtype: torch.dtype, generator: torch.Generator) -> Linear:
        blocks = torch.empty(self.blocks, self.rank, self._side(), device=generator.device)
        dense = torch.empty(self.out_features, self.blocks * self.rank, device=generator.device)
        for factor in (blocks, dense):
            factor.normal_(std=_init.spectral_std(*factor.shape[-2:]), generator=generator)
        return _Map(self, blocks.to(dtype), dense.to(dtype))

    def project(self, weight: Tensor, *, activations: Tensor | None = None) -> Linear:
        """The nearest member: a truncated decomposition of each group of columns."""
        work = _init.working(weight)
        worth = _init.column_weights(work, activations, least=_init.DIVISIBLE)
        left, right = _init.truncated(self.split(work * worth)[0], self.rank)
        right = right / _init.pad_ones(worth, self.blocks * self._side()).view(self.blocks, 1, -1)
        return self.of_blocks(*(factor.to(weight.dtype)[None] for factor in (left, right)))

    def split(self, weight: Tensor) -> Tensor:
        """W as the groups of columns that have low rank, padded: (1, blocks, out, in_side)."""
        padded = _block_matmul.pad(weight, self.out_features, self.blocks * self._side())
        return padded.unflatten(1, (self.blocks, -1)).transpose(0, 1).unsqueeze(0)

    def of_blocks(self, left: Tensor, right: Tensor) -> Linear:
        """The layer of (1, blocks, out, rank) and (1, blocks, rank, in_side), as ``split`` has."""
        dense = left[0].transpose(0, 1).flatten(1)
        return _Map(self, right[0].contiguous(), dense.contiguous())


class Bmm(_kernel.Bmm, of=BlockDense):
    """The products of the blocks, written where the dense product reads them.

    Not counted: on a CPU it may copy the intermediate.
    """

    def apply(self, layer: _Map, x: Tensor) -> Tensor:
        hidden = _block_matmul.block_diagonal(layer.grouped(x), layer.blocks)
        return self.last(hidden, layer.dense)

    def last(self, hidden: Tensor, dense: Tensor) -> Tensor:
        """The dense product."""
        return functional.linear(hidden, dense)


class OneDnn(_onednn.OneDnn, Bmm, of=BlockDense):
    """The same products by oneDNN in float32 on a CPU, forward and in a step."""

    def last(self, hidden: Tensor, dense: Tensor) -> Tensor:
        """The dense product, whose backward pass is by oneDNN, too."""
        return _onednn.linear(hidden, dense)


class Einsum(_kernel.Einsum, of=BlockDense):
    """The spelling that users write."""

    def apply(self, layer: _Map, x: Tensor) -> Tensor:
        x = layer.grouped(x).reshape(x.shape[0], layer.blocks.shape[0], -1)
        hidden = torch.einsum("bkp,ktp->bkt", x, layer.blocks).flatten(1)
        return functional.linear(hidden, layer.dense)

    def copied_width(self, described: BlockDense) -> int:
        return described.intermediate_width()
