"""Block tensor train of two cores: many small blocks, each of low rank.

The input is split into ``in_blocks`` groups and the output into ``out_blocks``; where they are not
given, in = in_blocks × in_side and out = out_side × out_blocks are the factors nearest to a
square, the larger first. A size without such factors (a prime, say) is padded with zeros to the
next that has them.

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

from hwbench.formats import _init, _sizes
from hwbench.formats._base import Linear
from hwbench.formats._two_stage import Grid, TwoStage


@dataclass(frozen=True, kw_only=True)
class Btt(TwoStage):
    """W in a grid of ``out_blocks`` × ``in_blocks`` blocks, each of rank ``rank``.

    It is Monarch's family with many small blocks: block (l, k) is R[l, k] L[k, l] with R of shape
    (out / out_blocks, rank) and L of shape (rank, in / in_blocks), the numbers of blocks being
    about √out and √in. That is rank · (out_blocks · in + in_blocks · out) parameters.

    Raises:
        KnobError: a number of blocks does not fit the size, or no block can have that rank.
    """

    PAPER = "Qiu et al., Compute Better Spent: Replacing Dense Layers, 2024, arXiv:2406.06248"
    OUTPUTS = "blocks"

    in_blocks: int = None  # type: ignore[assignment]  # filled in below: the larger factor of in
    out_blocks: int = None  # type: ignore[assignment]  # and the smaller factor of out

    def __post_init__(self) -> None:
        super().__post_init__()
        _sizes.fill(self, in_blocks=_sizes.near_square(self.in_features)[0])
        _sizes.fill(self, out_blocks=_sizes.near_square(self.out_features)[1])
        _sizes.check_blocks(self, "in_blocks", self.in_features)
        _sizes.check_blocks(self, "out_blocks", self.out_features)
        self.check_grid()

    def grid(self) -> Grid:
        in_side = _sizes.side(self.in_features, self.in_blocks)
        out_side = _sizes.side(self.out_features, self.out_blocks)
        return Grid(self.in_blocks, in_side, self.out_blocks, out_side)

    def random(self, *, dtype: torch.dtype, generator: torch.Generator) -> Linear:
        first, second = self.empty(generator.device)
        k, l, rank, p = first.shape  # noqa: E741
        fans = ((l * rank, p), (second.shape[1], k * rank))
        for factor, (fan_out, fan_in) in zip((first, second), fans, strict=True):
            factor.normal_(std=_init.spectral_std(fan_out, fan_in), generator=generator)
        return self.build(first.to(dtype), second.to(dtype))
