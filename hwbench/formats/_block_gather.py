"""Products with whole blocks that are kept of W: collected inputs, one batched product, sums.

It serves every format whose pattern is one of blocks, with a backward pass of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from hwbench.formats._gather import Pattern, spans, turn


class _Product(torch.autograd.Function):
    """Runs of tokens at a time: what is collected for one stays in cache, and is not saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(x, values)
        ctx.pattern = pattern
        y = x.new_empty(x.shape[0], pattern.out_features * values.shape[1])
        for span in _spans(x, values):
            products = torch.bmm(values, _collect(x[span], pattern.columns, values.shape[2]))
            y[span] = _sum_rows(products, pattern.starts).t()
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, values = ctx.saved_tensors
        pattern: Pattern = ctx.pattern
        x_needs, values_need, _ = ctx.needs_input_grad
        _, height, width = values.shape
        dx = torch.empty_like(x, memory_format=torch.contiguous_format) if x_needs else None
        wide = torch.promote_types(values.dtype, torch.float32)
        total = torch.zeros_like(values, dtype=wide) if values_need else None
        for span in _spans(x, values):
            collected = _collect(dy[span], pattern.rows, height)
            if dx is not None:
                order = pattern.by_column
                products = torch.bmm(values.mT, collected)
                dx[span] = _sum_rows(products, order.starts, order.entries).t()
            if total is not None:
                total += torch.bmm(collected, _collect(x[span], pattern.columns, width).mT)
        return dx, None if total is None else total.to(values.dtype), None


def product(x: Tensor, values: Tensor, pattern: Pattern) -> Tensor:
    """x Wᵀ for the blocks ``values`` (blocks, height, width) of W, where the pattern has them."""
    y: Tensor = _Product.apply(x, values, pattern)  # type: ignore[no-untyped-call]
    return y


def _spans(x: Tensor, values: Tensor) -> list[slice]:
    blocks, height, width = values.shape
    return spans(x.shape[0], blocks * (height + width), x)


def _collect(x: Tensor, blocks: Tensor, width: int) -> Tensor:
    """(blocks, width, tokens): the ``width`` features that each block reads."""
    return turn(x).view(-1, width, x.shape[0]).index_select(0, blocks)


def _sum_rows(products: Tensor, starts: Tensor, order: Tensor | None = None) -> Tensor:
    """(features, tokens): the products (blocks, height, tokens) summed over each block row."""
    blocks, _, tokens = products.shape
    if order is None:
        order = torch.arange(blocks, dtype=starts.dtype, device=starts.device)
    rows = products.view(blocks, -1)
    summed = functional.embedding_bag(order, rows, starts, mode="sum", include_last_offset=True)
    return summed.view(-1, tokens)
