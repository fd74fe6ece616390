"""Whole blocks kept: block compressed sparse rows.

Kernels: ``gather`` collects the inputs of every kept block, multiplies all blocks in one batched
product and sums each block row, with a backward pass of its own, for every dtype; ``spmm`` is
torch's BSR product, forward only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hwbench.formats import _block_gather, _kernel
from hwbench.formats._base import FORWARD, Format, Linear
from hwbench.formats._entries import (
    GATHERS,
    INDEX_BYTES,
    PatternMap,
    check_index_dtype,
    largest,
    random_places,
)
from hwbench.formats._gather import Pattern
from hwbench.formats._init import column_weights
from hwbench.formats._probe import refusal


class _Map(PatternMap):
    row_starts: Tensor  # (block rows + 1,)
    columns: Tensor  # (blocks,)

    def __init__(self, spec: Bsr, flat: Tensor, values: Tensor) -> None:
        super().__init__(spec.out_features, spec.in_features)
        self.kernel = spec.implementation
        self.values = nn.Parameter(values)  # (blocks, block_rows, block_columns)
        rows, columns = spec.grid()
        dtype = getattr(torch, spec.index_dtype)
        ends = torch.arange(rows + 1, device=flat.device) * columns
        self.register_buffer("row_starts", torch.searchsorted(flat, ends).to(dtype))
        self.register_buffer("columns", (flat % columns).to(dtype))

    def build_pattern(self) -> Pattern:
        grid_columns = self.in_features // self.values.shape[2]
        return Pattern(self.row_starts, self.columns, grid_columns)

    def tensor(self) -> Tensor:
        """W as torch's BSR tensor."""
        size = (self.out_features, self.in_features)
        return torch.sparse_bsr_tensor(
            self.row_starts,
            self.columns,
            self.values,
            size,
            device=self.values.device,
            check_invariants=False,
        )

    def to_dense(self) -> Tensor:
        _, height, width = self.values.shape
        shape = (self.out_features // height, self.in_features // width, height, width)
        rows, columns = self.pattern().rows.long(), self.columns.long()
        blocks = self.values.new_zeros(shape).index_put((rows, columns), self.values)
        return blocks.transpose(1, 2).reshape(self.out_features, self.in_features)


@dataclass(frozen=True, kw_only=True)
class Bsr(Format):
    """The ``kept_blocks`` blocks of W of largest norm, each stored dense, row by row of blocks.

    Bytes: values, one index a block, and a start for each row of blocks. Training with ``gather``
    also builds, at the first backward pass, the same blocks sorted by column, as working memory
    that is not stored.
    """

    PAPER = "Gray et al., GPU kernels for block-sparse weights, 2017"
    OUTPUTS = "placed"

    kept_blocks: int
    block_rows: int = 32
    block_columns: int = 32
    index_dtype: str = "int32"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_divides("block_rows", self.out_features)
        self.check_divides("block_columns", self.in_features)
        rows, columns = self.grid()
        self.check_integer("kept_blocks", low=1, high=rows * columns)
        check_index_dtype(self, self.index_dtype, self.kept_blocks)

    def grid(self) -> tuple[int, int]:
        """How many blocks W has, down and across."""
        return self.out_features // self.block_rows, self.in_features // self.block_columns

    def largest_setting(self) -> int:
        rows, columns = self.grid()
        return rows * columns

    def smallest_words(self) -> str:
        size = f"{self.block_rows}x{self.block_columns}"
        return f"one block of {size} has density {self.density():.4g}"

    def parameters(self) -> int:
        return self.kept_blocks * self.block_rows * self.block_columns

    def index_bytes(self) -> int:
        return (self.kept_blocks + self.grid()[0] + 1) * INDEX_BYTES[self.index_dtype]

    def copied_width(self) -> int:
        return self.in_features + self.out_features

    def random(self, *, dtype: torch.dtype, generator: torch.Generator) -> Linear:
        rows, columns = self.grid()
        flat = random_places(rows * columns, self.kept_blocks, generator)
        in_row = torch.bincount(flat // columns, minlength=rows)[flat // columns]
        values = torch.empty(
            self.kept_blocks, self.block_rows, self.block_columns, device=generator.device
        )
        values.uniform_(-1, 1, generator=generator)
        values *= (self.block_columns * in_row[:, None, None]).to(values.dtype).rsqrt()
        return _Map(self, flat, values.to(dtype))

    def project(self, weight: Tensor, *, activations: Tensor | None = None) -> Linear:
        """The optimum: the blocks of the largest Frobenius norm."""
        weight = weight.detach()
        worth = column_weights(weight, activations)
        scaled = self._tiles(weight.to(worth.dtype) * worth)
        flat = largest(scaled.square().sum((1, 2)), self.kept_blocks)
        return _Map(self, flat, self._tiles(weight).index_select(0, flat))

    def _tiles(self, weight: Tensor) -> Tensor:
        """(rows · columns of blocks, block_rows, block_columns)."""
        rows, columns = self.grid()
        shape = (rows, self.block_rows, columns, self.block_columns)
        return weight.reshape(shape).transpose(1, 2).flatten(0, 1)


class Gather(_kernel.Kernel, of=Bsr):
    """The inputs of every kept block collected, all multiplied at once, and block rows summed."""

    name = "gather"
    operators = GATHERS

    def apply(self, layer: _Map, x: Tensor) -> Tensor:
        return _block_gather.product(x, layer.values, layer.pattern())

    def intermediate_width(self, described: Bsr) -> int:
        sides = described.block_rows + described.block_columns
        return described.kept_blocks * sides  # collected, and products


class Spmm(_kernel.Spmm, of=Bsr):
    """torch's BSR product, forward only."""

    def apply(self, layer: _Map, x: Tensor) -> Tensor:
        return torch.mm(layer.tensor(), x.t()).t().contiguous()

    def refuses(
        self, described: Bsr, device: str, dtype: torch.dtype, direction: str
    ) -> str | None:
        other = f"kernel={Gather.name}"
        size = f"{described.block_rows}x{described.block_columns}"
        square = described.block_rows == described.block_columns
        if direction != FORWARD:
            return f"torch differentiates no BSR product; {other} has a backward pass."
        if device != "cpu" and square:
            return refusal(described, dtype, direction)
        if device != "cpu":
            return f"torch's BSR product on CUDA takes square blocks only, not {size}; {other} can."
        if dtype not in (torch.float32, torch.float64):
            return (
                f"torch multiplies BSR tensors on the CPU with MKL, in float32 and float64 only, "
                f"not in {str(dtype).removeprefix('torch.')}; {other} can."
            )
        if square:
            return None
        return (
            f"MKL, with which torch multiplies BSR tensors on the CPU, takes square blocks only, "
            f"not {size}; {other} can."
        )
