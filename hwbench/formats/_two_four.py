"""The shared part of the formats of 2:4 sparsity: how torch packs a weight, and what it copies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.sparse import SparseSemiStructuredTensor

from hwbench.formats._kernel import Kernel

ROWS = 8
"""Tokens: torch pads x with zeros to a multiple of it before a 2:4 product at 16 bits."""


class SparseCores(Kernel):
    """A kernel that multiplies a packed weight on the sparse tensor cores."""

    device_kernels = r"sparse.*gemm|gemm.*sparse|spmma|cusparselt|sptensorop|spgemm"
    hardware = "the sparse tensor cores"


_PARTS = ("packed", "meta", "packed_t", "meta_t", "compressed_swizzled_bitmask")


@contextmanager
def packing(*, cutlass: bool = False) -> Iterator[None]:
    """Make torch pack for cuSPARSELt, or for CUTLASS, and for products that write y.

    torch has a switch of either kind for the whole process. A product of cuSPARSELt is yᵀ, which
    torch 2.11 returns as a view of it that a caller has to copy, unless ``_FUSE_TRANSPOSE`` was set
    when the weight was packed; torch 2.13 asks cuSPARSELt for y in any case.
    """
    switches = {"_FORCE_CUTLASS": cutlass, "_FUSE_TRANSPOSE": True}
    before = {name: getattr(SparseSemiStructuredTensor, name) for name in switches}
    try:
        for name, value in switches.items():
            setattr(SparseSemiStructuredTensor, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(SparseSemiStructuredTensor, name, value)


def parts(packed: Any) -> list[Tensor]:
    """The plain tensors of a packed weight."""
    tensors = (getattr(packed, name) for name in _PARTS)
    return [part for part in tensors if part is not None]


def padded(tokens: int) -> int:
    """The tokens of a product, with those that torch adds."""
    return -(-tokens // ROWS) * ROWS


def padding_values(tokens: int, width: int) -> int:
    """Values that are written and read because (tokens, width) is padded; none where it is not."""
    return 0 if tokens % ROWS == 0 else 2 * padded(tokens) * width


def fastest_algorithm(packed: Any, x: Tensor) -> int:
    """cuSPARSELt's fastest algorithm for x of (tokens, in_features), found by trying them all."""
    rows = functional.pad(x, (0, 0, 0, padded(x.shape[0]) - x.shape[0]))
    algorithm: int = torch._cslt_sparse_mm_search(  # noqa: SLF001
        packed.packed, rows.t(), transpose_result=True
    )
    return algorithm
