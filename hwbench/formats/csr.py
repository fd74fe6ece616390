"""Kept entries row by row, each with its column: compressed sparse rows.

Kernels: ``gather`` sums rows of xᵀ with embedding_bag and has a backward pass of its own, for every
dtype; ``spmm`` is torch's CSR product with xᵀ; ``linear`` is F.linear(x, csr), as users write it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from hwbench.formats._base import BACKWARD_INPUT, FORWARD, Linear
from hwbench.formats._entries import INDEX_BYTES, EntriesFormat, RowsMap
from hwbench.formats._probe import refusal


class _Map(RowsMap):
    def __init__(self, spec: Csr, flat: Tensor, values: Tensor) -> None:
        super().__init__(spec.out_features, spec.in_features, flat, values, spec.index_dtype)
        self.kernel, self.gradient = spec.kernel, spec.gradient

    def apply_weight(self, x: Tensor) -> Tensor:
        if self.kernel == "gather":
            return self.gather(x)
        where = (self.row_starts, self.columns, self.in_features)
        if self.kernel == "spmm":
            y: Tensor = _Spmm.apply(x, self.values, *where)  # type: ignore[no-untyped-call]
            return y
        return functional.linear(x, _csr(self.values, *where)).contiguous()


class _Spmm(torch.autograd.Function):
    """torch's CSR products; its own autograd would pass the gradient of the values through dense.

    dX = (Wᵀ dyᵀ)ᵀ with the transpose of W as compressed sparse columns, and the values get the
    product dyᵀ x sampled at the kept entries.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, row_starts: Tensor, columns: Tensor, inputs: int
    ) -> Tensor:
        ctx.save_for_backward(x, values)
        ctx.where = (row_starts, columns, inputs)
        return torch.mm(_csr(values, *ctx.where), x.t()).t().contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, values = ctx.saved_tensors
        weight = _csr(values, *ctx.where)
        dx = dvalues = None
        if ctx.needs_input_grad[0]:
            dx = torch.mm(weight.t(), dy.t()).t().contiguous()
        if ctx.needs_input_grad[1]:
            dvalues = torch.sparse.sampled_addmm(weight, dy.t(), x, beta=0.0).values()
        return dx, dvalues, None, None, None


def _csr(values: Tensor, row_starts: Tensor, columns: Tensor, inputs: int) -> Tensor:
    size = (row_starts.numel() - 1, inputs)
    return torch.sparse_csr_tensor(row_starts, columns, values, size, check_invariants=False)


@dataclass(frozen=True, kw_only=True)
class Csr(EntriesFormat):
    """The largest entries of W, stored row by row with their columns.

    Bytes: nonzeros · (item + index) + (out_features + 1) · index. Training with ``gather`` also
    builds, at the first backward pass, the same entries sorted by column: two more indices an entry
    and in_features + 1 starts, as working memory that is not stored.
    """

    KERNELS = ("gather", "spmm", "linear")
    PAPER = "Gale et al., Sparse GPU kernels for deep learning, 2020"

    @property
    def MATERIALISES(self) -> bool:  # noqa: N802
        """Whether the kernel forms a dense tensor of the weight's size: F.linear's gradient."""
        return self.kernel == "linear"

    def index_bytes(self) -> int:
        return (self.nonzeros + self.out_features + 1) * INDEX_BYTES[self.index_dtype]

    def gradient_entries(self) -> int:
        if self.kernel == "gather":
            return super().gradient_entries()
        if self.kernel == "spmm":  # torch samples: its gradient is a CSR tensor too
            return self.nonzeros
        return self._all_entries()  # F.linear's gradient comes back dense

    def copied_width(self) -> int:
        return 0 if self.kernel == "linear" else super().copied_width()

    def unsupported(self, device: str, dtype: torch.dtype, direction: str) -> str | None:
        if self.kernel == "gather":
            return None
        name = str(dtype).removeprefix("torch.")
        if device == "cpu":
            if dtype in (torch.float32, torch.float64):
                return None
            return (
                f"torch multiplies CSR tensors on the CPU with MKL, in float32 and float64 only, "
                f"not in {name}; kernel=gather can."
            )
        wide = dtype in (torch.float32, torch.float64)
        if self.kernel == "spmm" and direction not in (FORWARD, BACKWARD_INPUT) and not wide:
            return (
                f"the gradient of torch's CSR product is a sampled product, which cuSPARSE offers "
                f"in float32 and float64 only, not in {name}; kernel=gather can."
            )
        return refusal(self, dtype, direction)

    def build(self, flat: Tensor, weight: Tensor) -> Linear:
        return _Map(self, flat, weight.flatten().index_select(0, flat))
