"""Blocks on the diagonal of W and nothing beside them: each group of inputs feeds its own outputs.

Sizes that ``blocks`` does not divide are padded with zeros. Kernels: ``bmm`` is one batched product
that writes its blocks where they belong; ``onednn`` is the same by oneDNN, in float32 on a CPU,
from 16 tokens on; ``einsum`` is the spelling that users write.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from hwbench.errors import KnobError
from hwbench.formats import _block_matmul, _kernel, _onednn, _sizes
from hwbench.formats._base import Format, Linear, budget, unreachable
from hwbench.records import Knob


class _Map(Linear):
    def __init__(self, spec: BlockDiagonal, weights: Tensor) -> None:
        super().__init__(spec.out_features, spec.in_features)
        self.kernel = spec.implementation
        self.weights = nn.Parameter(weights)  # (blocks, out_side, in_side)

    def padded(self, x: Tensor) -> Tensor:
        """x, padded where the blocks need it: (tokens, blocks · in_side)."""
        blocks, _, in_side = self.weights.shape
        return _block_matmul.pad(x, blocks * in_side)

    def to_dense(self) -> Tensor:
        dense = torch.block_diag(*self.weights)
        return dense[: self.out_features, : self.in_features]


@dataclass(frozen=True, kw_only=True)
class BlockDiagonal(Format):
    """``blocks`` dense blocks on the diagonal; the density is about 1 / blocks.

    Raises:
        KnobError: the number of blocks does not fit a dimension.
    """

    OUTPUTS = "placed"

    blocks: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _sizes.check_blocks(self, "blocks", self.in_features)
        _sizes.check_blocks(self, "blocks", self.out_features)

    @classmethod
    def for_budget(cls, out_features: int, in_features: int, density: float, **knobs: Knob) -> Self:
        if "multiple" in knobs:
            raise KnobError("block_diagonal has no rank that 'multiple' could round.")
        allowed = budget(out_features, in_features, density)
        best, most = 0, 0
        for blocks in range(1, min(out_features, in_features) + 1):
            if all(_sizes.fits(size, blocks) for size in (out_features, in_features)):
                parameters = _parameters(out_features, in_features, blocks)
                if most < parameters <= allowed:
                    best, most = blocks, parameters
        if not best:
            least = max(out_features, in_features) / (out_features * in_features)
            raise unreachable(cls.name(), density, f"its blocks hold at least density {least:.4g}")
        return cls(out_features=out_features, in_features=in_features, blocks=best, **knobs)  # type: ignore[arg-type]

    def parameters(self) -> int:
        return _parameters(self.out_features, self.in_features, self.blocks)

    def sides(self) -> tuple[int, int]:
        """Outputs and inputs of a block, with padding."""
        return (
            _sizes.side(self.out_features, self.blocks),
            _sizes.side(self.in_features, self.blocks),
        )

    def products(self) -> tuple[int, ...]:
        out_side, in_side = self.sides()
        return (self.blocks * out_side * in_side,)

    def stored_bytes(self, item_bytes: int) -> int:
        return sum(self.products()) * item_bytes

    def copied_width(self) -> int:
        """The copies of the kernel, and x and y where they are padded."""
        padded_out, padded_in = (self.blocks * side for side in self.sides())
        return super().copied_width() + _sizes.padding_copies(self, padded_out, padded_in)

    def random(self, *, dtype: torch.dtype, generator: torch.Generator) -> Linear:
        """A dense layer's usual initialisation, in each block."""
        out_side, in_side = self.sides()
        weights = torch.empty(self.blocks, out_side, in_side, device=generator.device)
        bound = in_side**-0.5
        return _Map(self, weights.uniform_(-bound, bound, generator=generator).to(dtype))

    def project(self, weight: Tensor, *, activations: Tensor | None = None) -> Linear:
        """The blocks of the weight that lie on the diagonal."""
        del activations
        out_side, in_side = self.sides()
        padded = _block_matmul.pad(weight.detach(), self.blocks * out_side, self.blocks * in_side)
        grid = padded.view(self.blocks, out_side, self.blocks, in_side)
        return _Map(self, grid.diagonal(dim1=0, dim2=2).permute(2, 0, 1).clone())


def _parameters(out_features: int, in_features: int, blocks: int) -> int:
    """Entries of all blocks; the last may be smaller than the others."""
    out_side, in_side = _sizes.side(out_features, blocks), _sizes.side(in_features, blocks)
    before = blocks - 1
    last = (out_features - before * out_side) * (in_features - before * in_side)
    return before * out_side * in_side + last


class Bmm(_kernel.Bmm, of=BlockDiagonal):
    """One batched product, which writes the blocks where they belong.

    Not counted: on a CPU it may copy y, as a batched product cannot be written to a view.
    """

    def apply(self, layer: _Map, x: Tensor) -> Tensor:
        y = _block_matmul.block_diagonal(layer.padded(x), layer.weights)
        return _block_matmul.crop(y, layer.out_features)


class OneDnn(_onednn.OneDnn, Bmm, of=BlockDiagonal):
    """The same batched product by oneDNN in float32 on a CPU, forward and in a step."""


class Einsum(_kernel.Einsum, of=BlockDiagonal):
    """The spelling that users write."""

    def apply(self, layer: _Map, x: Tensor) -> Tensor:
        grouped = layer.padded(x).reshape(x.shape[0], layer.weights.shape[0], -1)
        y = torch.einsum("bkp,ksp->bks", grouped, layer.weights).reshape(x.shape[0], -1)
        return _block_matmul.crop(y.contiguous(), layer.out_features)

    def copied_width(self, described: BlockDiagonal) -> int:
        return described.blocks * described.sides()[0]
