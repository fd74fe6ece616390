"""Kept entries row by row, each with its column: compressed sparse rows.

Kernels: ``gather`` sums rows of xᵀ with embedding_bag and has a backward pass of its own, for every
dtype; ``spmm`` is torch's CSR product with xᵀ; ``linear`` is F.linear(x, csr), as users write it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from hwbench.formats._base import BACKWARD_INPUT, FORWARD, Linear
from hwbench.formats._entries import INDEX_BYTES, EntriesFormat, EntriesMap


class _Map(EntriesMap):
    row_starts: Tensor  # (out + 1,)
    columns: Tensor  # (nonzeros,)

    def __init__(self, spec: Csr, row_starts: Tensor, columns: Tensor, values: Tensor) -> None:
        super().__init__(spec.out_features, spec.in_features, values)
        self.kernel = spec.kernel
        self.register_buffer("row_starts", row_starts)
        self.register_buffer("columns", columns)

    def starts(self) -> Tensor:
        return self.row_starts

    def places(self) -> Tensor:
        return self.columns

    def apply_weight(self, x: Tensor) -> Tensor:
        if self.kernel == "gather":
            return self.gather(x)
        size = (self.out_features, self.in_features)
        weight = torch.sparse_csr_tensor(
            self.row_starts, self.columns, self.values, size, check_invariants=False
        )
        if self.kernel == "spmm":
            y: Tensor = torch.sparse.mm(weight, x.t()).t()
        else:
            y = functional.linear(x, weight)
        return y.contiguous()


@dataclass(frozen=True, kw_only=True)
class Csr(EntriesFormat):
    """The largest entries of W, stored row by row with their columns.

    Bytes: nonzeros · (item + index) + (out_features + 1) · index. Training with ``gather`` also
    builds, at the first backward pass, the same entries sorted by column: two more indices an entry
    and in_features + 1 starts, as working memory that is not stored.
    """

    KERNELS = ("gather", "spmm", "linear")
    PAPER = "Gale et al., Sparse GPU kernels for deep learning, 2020"

    def index_bytes(self) -> int:
        return (self.nonzeros + self.out_features + 1) * INDEX_BYTES[self.index_dtype]

    def gradient_entries(self) -> int:
        if self.kernel == "gather":
            return super().gradient_entries()
        if self.kernel == "spmm":  # torch samples: its gradient is a CSR tensor too
            return self.nonzeros
        return self.out_features * self.in_features  # F.linear's gradient comes back dense

    def copied_width(self) -> int:
        return 0 if self.kernel == "linear" else super().copied_width()

    def unsupported(self, device: str, dtype: torch.dtype, direction: str) -> str | None:
        if self.kernel == "gather" or dtype in (torch.float32, torch.float64):
            return None
        name = str(dtype).removeprefix("torch.")
        if device == "cpu":
            return (
                f"torch multiplies CSR tensors on the CPU with MKL, in float32 and float64 only, "
                f"not in {name}; kernel=gather can."
            )
        if self.kernel == "spmm" and direction not in (FORWARD, BACKWARD_INPUT):
            return (
                f"the gradient of torch's CSR product is a sampled product, which cuSPARSE offers "
                f"in float32 and float64 only, not in {name}; kernel=gather can."
            )
        return None

    def build(self, flat: Tensor, values: Tensor) -> Linear:
        dtype = getattr(torch, self.index_dtype)
        ends = torch.arange(self.out_features + 1, device=flat.device) * self.in_features
        row_starts = torch.searchsorted(flat, ends).to(dtype)
        return _Map(self, row_starts, (flat % self.in_features).to(dtype), values)
