"""Block-diagonal, regroup, block-diagonal: W in a grid of blocks, each of low rank.

The input is split into ``blocks`` groups and the output into ``out_blocks`` (as many, if not
given); every block of W has rank ``rank``. The forms of the literature are settings of it:

* the published one of b blocks (q = min(out, in) / b, b divides q): ``blocks=b, rank=q/b,
  order="strided"``;
* that with block rank one: ``blocks=b, out_blocks=out/b, rank=1, order="strided"``;
* that of total rank r: ``blocks=b, rank=r/b, order="strided"``.

Kernels: ``bmm`` is two batched products and one copy between them, with a backward pass of four;
``onednn`` is ``bmm`` by oneDNN, in float32 on a CPU, from 16 tokens on; ``native`` is both products
in C++, compiled for the CPU here, with nothing between them outside of the cache; ``einsum`` is the
spelling that users write. ``bmm`` is the default, as it runs everywhere. On a CPU ``bmm`` and
``onednn`` make an intermediate of over 2²⁰ values in runs of tokens that stay in cache; a step then
makes it once more instead of keeping it, as one with ``native`` does, which executes a sixth more
FLOPs where both factors are alike. Two more are of Triton, for CUDA. ``triton`` stores the first
product as the second reads it, without a copy; it takes every size and makes each product once.
``triton_fused`` is one kernel, in which nothing passes through memory: an output group has at most
256 features, x is read once for every few of them, and the first product is made again for the
backward pass. Backward these three are ``bmm``. Which is faster where is not measured yet on a GPU;
the suite ``llm`` times both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hwbench.formats import _sizes
from hwbench.formats._base import Linear
from hwbench.formats._two_stage import Grid, TwoStage


@dataclass(frozen=True, kw_only=True)
class Monarch(TwoStage):
    """W in a grid of ``out_blocks`` × ``blocks`` blocks, each of rank ``rank``.

    Block (l, k) is R[l, k] L[k, l] with R of shape (out / out_blocks, rank) and L of shape (rank,
    in / blocks): two block-diagonal matrices, and a regrouping of the values between them. That is
    rank · (out_blocks · in + blocks · out) parameters. ``order`` says where the outputs of a block
    lie: next to one another (``blocked``), or apart (``strided``), as in the paper.

    Raises:
        KnobError: a number of blocks does not fit the size, or no block can have that rank.
    """

    PAPER = "Dao et al., Monarch: Expressive Structured Matrices, 2022, arXiv:2204.00595"
    OUTPUTS = "blocks"

    blocks: int = 4
    out_blocks: int = None  # type: ignore[assignment]  # filled in below: as many as ``blocks``

    def __post_init__(self) -> None:
        super().__post_init__()
        _sizes.fill(self, out_blocks=self.blocks)
        _sizes.check_blocks(self, "blocks", self.in_features)
        _sizes.check_blocks(self, "out_blocks", self.out_features)
        self.check_grid()

    def grid(self) -> Grid:
        in_side = _sizes.side(self.in_features, self.blocks)
        out_side = _sizes.side(self.out_features, self.out_blocks)
        return Grid(self.blocks, in_side, self.out_blocks, out_side)

    def random(self, *, dtype: torch.dtype, generator: torch.Generator) -> Linear:
        first, second = self.empty(generator.device)
        for factor, fan_in in ((first, first.shape[3]), (second, self.blocks * self.rank)):
            factor.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
        return self.build(first.to(dtype), second.to(dtype))
