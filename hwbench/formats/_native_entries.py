"""Gathers of single entries in C++: a product along a pattern, and its gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hwbench.formats import _gather, _native
from hwbench.formats._block_matmul import needs_grad
from hwbench.formats._entries import EntriesMap, Gather


class Native(_native.Native, Gather):
    """Sums of turned rows of x in C++, block of tokens by block, for a kernel to be made of."""

    operators = r"hwbench::native_entries_?$"

    def apply(self, layer: Any, x: Tensor) -> Tensor:
        return product(layer, x)

    def copied_width(self, described: Any) -> int:
        return 0  # x and y are turned in cache


def product(layer: EntriesMap, x: Tensor) -> Tensor:
    """x Wᵀ for the entries of a layer, contiguous, with the gradients that its format asks for."""
    pattern, values = layer.pattern(), layer.values.reshape(-1)
    if not needs_grad(x, values):
        return _native.entries(x, values, pattern.starts, pattern.columns)
    dense = layer.dense_gradient(x.device.type)
    y: Tensor = _Product.apply(x, values, pattern, dense)  # type: ignore[no-untyped-call]
    return y


class _Product(torch.autograd.Function):
    """The gradient of x is the same product along the columns; that of the values is torch's."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, pattern: _gather.Pattern, dense: bool
    ) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, values)
        ctx.pattern, ctx.dense = pattern, dense
        return _native.entries(x, values, pattern.starts, pattern.columns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (x, values), dx, dvalues = ctx.saved_tensors, None, None
        if ctx.needs_input_grad[0]:
            starts, rows, entries = ctx.pattern.by_column
            dx = _native.entries(dy, values.index_select(0, entries), starts, rows)
        if ctx.needs_input_grad[1]:
            dvalues = _gather.gradient_of_values(dy, x, ctx.pattern, ctx.dense)
        return dx, dvalues, None, None
