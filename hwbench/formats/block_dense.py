"""Block-diagonal, then dense: every group of inputs has its own low-rank map to all outputs.

The input is split into ``blocks`` groups, each reduced to ``rank`` features by a block of its own;
one dense product follows. Nothing is regrouped in between. A size that ``blocks`` does not divide
is padded with zeros. Kernels: ``bmm`` writes the products of the blocks where the dense product
reads them; ``einsum`` is the spelling that users write.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwbench.formats import _blocks
from hwbench.formats._base import Format, Linear, budget, round_down, unreachable
from hwbench.records import Knob


class _Map(Linear):
    def __init__(self, spec: BlockDense, blocks: Tensor, dense: Tensor) -> None:
        super().__init__(spec.out_features, spec.in_features)
        self.kernel = spec.kernel
        self.blocks = nn.Parameter(blocks)  # (blocks, rank, in_side)
        self.dense = nn.Parameter(dense)  # (out, blocks · rank)

    def apply_weight(self, x: Tensor) -> Tensor:
        blocks, _, in_side = self.blocks.shape
        x = _blocks.pad(x, blocks * in_side)
        if self.kernel == "einsum":
            grouped = x.reshape(-1, blocks, in_side)
            hidden = torch.einsum("bkp,ktp->bkt", grouped, self.blocks).flatten(1)
        else:
            hidden = _blocks.block_diagonal(x, self.blocks)
        return functional.linear(hidden, self.dense)

    def to_dense(self) -> Tensor:
        wide = self.dense.unflatten(1, (self.blocks.shape[0], -1))  # (out, blocks, rank)
        return torch.einsum("okt,ktp->okp", wide, self.blocks).flatten(1)[:, : self.in_features]


@dataclass(frozen=True, kw_only=True)
class BlockDense(Format):
    """``blocks`` blocks of (rank, in / blocks), then a dense matrix of (out, blocks · rank).

    Raises:
        KnobError: the blocks do not fit the input, or no block can have that rank.
    """

    KERNELS = ("bmm", "einsum")
    PAPER = "Wei et al., Building on Efficient Foundations, 2024, arXiv:2406.16450"

    rank: int
    blocks: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        _blocks.check_blocks(self, "blocks", self.in_features)
        self.check_integer("rank", low=1, high=min(self._side(), self.out_features))

    @classmethod
    def for_budget(cls, out_features: int, in_features: int, density: float, **knobs: Knob) -> Self:
        multiple = knobs.pop("multiple", 1)
        smallest = cls(out_features=out_features, in_features=in_features, rank=1, **knobs)  # type: ignore[arg-type]
        affordable = budget(out_features, in_features, density) // smallest.parameters()
        rank = min(affordable, smallest._side(), out_features)
        if rank < 1:
            raise unreachable(cls.name(), density, f"rank 1 has density {smallest.density():.4g}")
        return dataclasses.replace(smallest, rank=round_down(rank, multiple))

    def _side(self) -> int:
        return _blocks.side(self.in_features, self.blocks)

    def parameters(self) -> int:
        return sum(self.stages())

    def stages(self) -> tuple[int, ...]:
        return (self.rank * self.in_features, self.rank * self.blocks * self.out_features)

    def _padded_stages(self) -> tuple[int, int]:
        return (self.rank * self.blocks * self._side(), self.stages()[1])

    def stored_bytes(self, item_bytes: int) -> int:
        return sum(self._padded_stages()) * item_bytes

    def flops(self, tokens: int, direction: str) -> int:
        return _blocks.chain_flops(tokens, self._padded_stages(), direction)

    def intermediate_width(self) -> int:
        return self.rank * self.blocks

    def copied_width(self) -> int:
        """The intermediate for ``einsum``, and x where it is padded.

        Not counted: on a CPU ``bmm`` may copy the intermediate too.
        """
        copied = self.intermediate_width() if self.kernel == "einsum" else 0
        return copied + _blocks.padding_copies(self, self.out_features, self.blocks * self._side())

    def random(self, *, dtype: torch.dtype, generator: torch.Generator) -> Linear:
        blocks = torch.empty(self.blocks, self.rank, self._side(), device=generator.device)
        dense = torch.empty(self.out_features, self.blocks * self.rank, device=generator.device)
        for factor in (blocks, dense):
            factor.normal_(std=_blocks.spectral_std(*factor.shape[-2:]), generator=generator)
        return _Map(self, blocks.to(dtype), dense.to(dtype))

    def project(self, weight: Tensor, *, activations: Tensor | None = None) -> Linear:
        """The nearest member: a truncated decomposition of each group of columns."""
        work = _blocks.working(weight)
        worth = _blocks.importance(activations, work)
        padded = _blocks.pad(work * worth, self.out_features, self.blocks * self._side())
        groups = padded.unflatten(1, (self.blocks, -1)).transpose(0, 1)  # (blocks, out, side)
        left, right = _blocks.truncated(groups, self.rank)
        right = right / _blocks.pad_ones(worth, self.blocks * self._side()).view(self.blocks, 1, -1)
        dense = left.transpose(0, 1).flatten(1)
        return _Map(self, *(factor.to(weight.dtype).contiguous() for factor in (right, dense)))
