"""Kept entries, each with its row and its column: coordinates.

Kernels: ``gather`` sums rows of xᵀ with embedding_bag and has a backward pass of its own, for every
dtype; ``native`` sums them in C++ that is compiled for the CPU here, which turns x and y in cache;
``spmm`` is torch.sparse.mm with xᵀ and ``linear`` F.linear(x, coo), the two ways in which users
write it. In both of torch's the gradient of the weight is the whole dense product, of which the
kept entries are then picked.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from hwbench.errors import KnobError
from hwbench.formats import _kernel, _native_entries
from hwbench.formats._base import Linear
from hwbench.formats._entries import INDEX_BYTES, EntriesFormat, EntriesKernel, EntriesMap, Gather
from hwbench.formats._probe import refusal


class _Map(EntriesMap):
    indices: Tensor  # (2, nonzeros): rows, columns

    def __init__(self, spec: Coo, indices: Tensor, values: Tensor) -> None:
        super().__init__(spec.out_features, spec.in_features, values)
        self.kernel, self.gradient = spec.implementation, spec.gradient
        self.register_buffer("indices", indices)

    def starts(self) -> Tensor:
        rows = self.indices[0]
        every = torch.arange(self.out_features + 1, dtype=rows.dtype, device=rows.device)
        return torch.searchsorted(rows, every).to(rows.dtype)

    def places(self) -> Tensor:
        return self.indices[1]

    def tensor(self) -> Tensor:
        """W as torch's COO tensor."""
        size = (self.out_features, self.in_features)
        return torch.sparse_coo_tensor(
            self.indices,
            self.values,
            size,
            device=self.values.device,
            check_invariants=False,
            is_coalesced=True,
        )


@dataclass(frozen=True, kw_only=True)
class Coo(EntriesFormat):
    """The largest entries of W, stored with their rows and columns.

    Bytes: nonzeros · (item + 2 · index). Using ``gather`` or ``native`` also builds, at the first
    call, where each row starts, and at the first backward pass the same entries sorted by column:
    working memory that is not stored.
    """

    index_dtype: str = "int64"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gathers() and self.index_dtype != "int64":
            raise KnobError(
                f"torch keeps the indices of COO tensors in int64, so kernel={self.kernel} of coo "
                f"cannot have index_dtype={self.index_dtype!r}; kernel={Gather.name} can."
            )

    def index_bytes(self) -> int:
        return 2 * self.nonzeros * INDEX_BYTES[self.index_dtype]

    def build(self, flat: Tensor, weight: Tensor) -> Linear:
        indices = torch.stack([flat // self.in_features, flat % self.in_features])
        values = weight.flatten().index_select(0, flat)
        return _Map(self, indices.to(getattr(torch, self.index_dtype)), values)


class Native(_native_entries.Native, of=Coo):
    """Sums of turned rows of x in C++, block of tokens by block."""


class _Library(EntriesKernel):
    """The shared part of the kernels of torch's COO tensors: the gradient is the dense product."""

    materialises = True

    def gradient_entries(self, described: Coo) -> int:
        return described.all_entries()

    def copied_width(self, described: Coo) -> int:
        return described.out_features

    def refuses(
        self, described: Coo, device: str, dtype: torch.dtype, direction: str
    ) -> str | None:
        if device != "cuda":
            return None
        if dtype not in (torch.float32, torch.float64):
            name = str(dtype).removeprefix("torch.")
            return (
                f"torch multiplies COO tensors on CUDA in float32 and float64 only, not in {name}; "
                f"kernel={Gather.name} can."
            )
        return refusal(described, dtype, direction)


class Spmm(_Library, _kernel.Spmm, of=Coo):
    """torch.sparse.mm with xᵀ."""

    def apply(self, layer: _Map, x: Tensor) -> Tensor:
        y: Tensor = torch.sparse.mm(layer.tensor(), x.t()).t()
        return y.contiguous()


class SparseLinear(_Library, _kernel.SparseLinear, of=Coo):
    """F.linear(x, coo), as users write it."""

    def apply(self, layer: _Map, x: Tensor) -> Tensor:
        return functional.linear(x, layer.tensor()).contiguous()
