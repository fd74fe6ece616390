"""Blocks on the diagonal of W and nothing beside them: each group of inputs feeds its own outputs.

Sizes that ``blocks`` does not divide are padded with zeros. Kernels: ``bmm`` is one batched product
that writes its blocks where they belong; ``einsum`` is the spelling that users write.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from hwbench.errors import KnobError
from hwbench.formats import _blocks
from hwbench.formats._base import Format, Linear, budget, unreachable
from hwbench.records import Knob


class _Map(Linear):
    def __init__(self, spec: BlockDiagonal, weights: Tensor) -> None:
        super().__init__(spec.out_features, spec.in_features)
        self.kernel = spec.kernel
        self.weights = nn.Parameter(weights)  # (blocks, out_side, in_side)

    def apply_weight(self, x: Tensor) -> Tensor:
        blocks, _, in_side = self.weights.shape
        x = _blocks.pad(x, blocks * in_side)
        if self.kernel == "einsum":
            y = torch.einsum("bkp,ksp->bks", x.reshape(-1, blocks, in_side), self.weights)
            y = y.reshape(x.shape[0], -1).contiguous()
        else:
            y = _blocks.block_diagonal(x, self.weights)
        return _blocks.crop(y, self.out_features)

    def to_dense(self) -> Tensor:
        dense = torch.block_diag(*self.weights)
        return dense[: self.out_features, : self.in_features]


@dataclass(frozen=True, kw_only=True)
class BlockDiagonal(Format):
    """``blocks`` dense blocks on the diagonal; the density is about 1 / blocks.

    Raises:
        KnobError: the number of blocks does not fit a dimension.
    """

    KERNELS = ("bmm", "einsum")

    blocks: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _blocks.check_blocks(self, "blocks", self.in_features)
        _blocks.check_blocks(self, "blocks", self.out_features)

    @classmethod
    def for_budget(cls, out_features: int, in_features: int, density: float, **knobs: Knob) -> Self:
        if "multiple" in knobs:
            raise KnobError("block_diagonal has no rank that 'multiple' could round.")
        allowed = budget(out_features, in_features, density)
        best, most = 0, 0
        for blocks in range(1, min(out_features, in_features) + 1):
            if all(_blocks.fits(size, blocks) for size in (out_features, in_features)):
                parameters = _parameters(out_features, in_features, blocks)
                if most < parameters <= allowed:
                    best, most = blocks, parameters
        if not best:
            least = max(out_features, in_features) / (out_features * in_features)
            raise unreachable(cls.name(), density, f"its blocks hold at least density {least:.4g}")
        return cls(out_features=out_features, in_features=in_features, blocks=best, **knobs)  # type: ignore[arg-type]

    def parameters(self) -> int:
        return _parameters(self.out_features, self.in_features, self.blocks)

    def _sides(self) -> tuple[int, int]:
        return (
            _blocks.side(self.out_features, self.blocks),
            _blocks.side(self.in_features, self.blocks),
        )

    def _stored(self) -> int:
        out_side, in_side = self._sides()
        return self.blocks * out_side * in_side

    def stored_bytes(self, item_bytes: int) -> int:
        return self._stored() * item_bytes

    def flops(self, tokens: int, direction: str) -> int:
        return _blocks.chain_flops(tokens, (self._stored(),), direction)

    def copied_width(self) -> int:
        """x and y where they are padded, and y for ``einsum``.

        Not counted: on a CPU ``bmm`` may copy y, whose batched product cannot be written to a view.
        """
        padded_out, padded_in = (self.blocks * side for side in self._sides())
        copied = padded_out if self.kernel == "einsum" else 0
        return copied + _blocks.padding_copies(self, padded_out, padded_in)

    def random(self, *, dtype: torch.dtype, generator: torch.Generator) -> Linear:
        """A dense layer's usual initialisation, in each block."""
        out_side, in_side = self._sides()
        weights = torch.empty(self.blocks, out_side, in_side, device=generator.device)
        bound = in_side**-0.5
        return _Map(self, weights.uniform_(-bound, bound, generator=generator).to(dtype))

    def project(self, weight: Tensor, *, activations: Tensor | None = None) -> Linear:
        """The blocks of the weight that lie on the diagonal."""
        del activations
        out_side, in_side = self._sides()
        padded = _blocks.pad(weight.detach(), self.blocks * out_side, self.blocks * in_side)
        grid = padded.view(self.blocks, out_side, self.blocks, in_side)
        return _Map(self, grid.diagonal(dim1=0, dim2=2).permute(2, 0, 1).clone())


def _parameters(out_features: int, in_features: int, blocks: int) -> int:
    """Entries of all blocks; the last may be smaller than the others."""
    out_side, in_side = _blocks.side(out_features, blocks), _blocks.side(in_features, blocks)
    before = blocks - 1
    last = (out_features - before * out_side) * (in_features - before * in_side)
    return before * out_side * in_side + last
