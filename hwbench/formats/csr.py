"""Kept entries row by row, each with its column: compressed sparse rows.

Kernels: ``gather`` sums rows of xᵀ with embedding_bag and has a backward pass of its own, for every
dtype, and is the default, as it runs everywhere; ``native`` sums them in C++ that is compiled for
the CPU here, which turns x and y in cache; ``spmm`` is torch's CSR product with xᵀ; ``linear`` is
F.linear(x, csr), as users write it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from hwbench.formats import _gather, _kernel, _native_entries
from hwbench.formats._base import BACKWARD_INPUT, FORWARD, Linear
from hwbench.formats._entries import INDEX_BYTES, EntriesFormat, EntriesKernel, Gather, RowsMap
from hwbench.formats._probe import refusal


class _Map(RowsMap):
    def __init__(self, spec: Csr, flat: Tensor, values: Tensor) -> None:
        super().__init__(spec.out_features, spec.in_features, flat, values, spec.index_dtype)
        self.kernel, self.gradient = spec.implementation, spec.gradient

    def tensor(self) -> Tensor:
        """W as torch's CSR tensor."""
        return _gather.csr(self.values, self.row_starts, self.columns, self.in_features)


class _Product(torch.autograd.Function):
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
        return torch.mm(_gather.csr(values, *ctx.where), x.t()).t().contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, values = ctx.saved_tensors
        weight = _gather.csr(values, *ctx.where)
        dx = dvalues = None
        if ctx.needs_input_grad[0]:
            dx = torch.mm(weight.t(), dy.t()).t().contiguous()
        if ctx.needs_input_grad[1]:
            dvalues = torch.sparse.sampled_addmm(weight, dy.t(), x, beta=0.0).values()
        return dx, dvalues, None, None, None


@dataclass(frozen=True, kw_only=True)
class Csr(EntriesFormat):
    """The largest entries of W, stored row by row with their columns.

    Bytes: nonzeros · (item + index) + (out_features + 1) · index. Training with ``gather`` also
    builds, at the first backward pass, the same entries sorted by column: two more indices an entry
    and in_features + 1 starts, as working memory that is not stored.
    """

    PAPER = "Gale et al., Sparse GPU kernels for deep learning, 2020"

    def index_bytes(self) -> int:
        return (self.nonzeros + self.out_features + 1) * INDEX_BYTES[self.index_dtype]

    def build(self, flat: Tensor, weight: Tensor) -> Linear:
        return _Map(self, flat, weight.flatten().index_select(0, flat))


class Native(_native_entries.Native, of=Csr):
    """Sums of turned rows of x in C++, block of tokens by block."""


class _Library(EntriesKernel):
    """The shared refusals of the kernels of torch's CSR tensors."""

    def refuses(
        self, described: Csr, device: str, dtype: torch.dtype, direction: str
    ) -> str | None:
        if device != "cpu":
            return refusal(described, dtype, direction)
        if dtype in (torch.float32, torch.float64):
            return None
        name = str(dtype).removeprefix("torch.")
        return (
            f"torch multiplies CSR tensors on the CPU with MKL, in float32 and float64 only, not "
            f"in {name}; kernel={Gather.name} can."
        )


class Spmm(_Library, _kernel.Spmm, of=Csr):
    """torch's CSR product with xᵀ; torch samples its gradient, which is a CSR tensor too."""

    def apply(self, layer: _Map, x: Tensor) -> Tensor:
        where = (layer.row_starts, layer.columns, layer.in_features)
        y: Tensor = _Product.apply(x, layer.values, *where)  # type: ignore[no-untyped-call]
        return y

    def refuses(
        self, described: Csr, device: str, dtype: torch.dtype, direction: str
    ) -> str | None:
        narrow = device != "cpu" and dtype not in (torch.float32, torch.float64)
        if narrow and direction not in (FORWARD, BACKWARD_INPUT):
            name = str(dtype).removeprefix("torch.")
            return (
                f"the gradient of torch's CSR product is a sampled product, which cuSPARSE offers "
                f"in float32 and float64 only, not in {name}; kernel={Gather.name} can."
            )
        return super().refuses(described, device, dtype, direction)

    def copied_width(self, described: Csr) -> int:
        return described.in_features + described.out_features  # x to xᵀ, and yᵀ to y


class SparseLinear(_Library, _kernel.SparseLinear, of=Csr):
    """F.linear(x, csr), as users write it; its gradient comes back dense."""

    def apply(self, layer: _Map, x: Tensor) -> Tensor:
        return functional.linear(x, layer.tensor()).contiguous()

    def gradient_entries(self, described: Csr) -> int:
        return described.all_entries()
