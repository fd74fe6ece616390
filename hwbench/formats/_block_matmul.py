"""Products of many blocks at once, for the formats that are made of blocks.

A vector of ``blocks · side`` entries is read as ``blocks`` groups of ``side``. An intermediate
``z`` of a chain of block products has the shape (blocks, tokens, width). Where that makes
regrouping move longer runs (see ``tokens_last``) it lies in memory as (blocks, width, tokens), and
``z`` is a transposed view; the products read either.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from hwbench.formats import _onednn

FEW_TOKENS = 32
"""Below this many tokens products are faster on rows of entries."""

WHOLE_VALUES = 2**20
"""An intermediate of more values than this (4 MiB in float32) is made in runs of tokens on a CPU.

Written whole it leaves the caches, and its memory may be taken anew from the system in every call:
a BTT layer of 1024 × 1024 and 1024 tokens then took 16,386 page faults a call. Counted in values,
so that costs do not depend on the dtype.
"""

RUN_VALUES = 2**19
"""The most values of an intermediate that are made at a time then, …"""

SHORTEST_RUN = 32
"""… for at least this many tokens, and a multiple of it."""

SHORT_RUN = 32
"""Runs of fewer entries than this are slow to copy."""


def runs(tokens: int, width: int, device: str = "cpu") -> list[slice]:
    """Runs of tokens in which an intermediate of ``width`` values a token is made: on a CPU.

    Another kind of device makes all of it at once.
    """
    length = tokens
    if device == "cpu" and tokens * width > WHOLE_VALUES:
        length = max(1, RUN_VALUES // width // SHORTEST_RUN) * SHORTEST_RUN
    return [slice(first, first + length) for first in range(0, tokens, max(1, length))]


def in_runs(tokens: int, width: int, device: str) -> bool:
    """Whether such an intermediate is made in several runs on that kind of device."""
    return len(runs(tokens, width, device)) > 1


def pad(x: Tensor, *sizes: int) -> Tensor:
    """``x`` with zeros behind its last axes, so that these have the sizes given."""
    if x.shape[-len(sizes) :] == sizes:
        return x
    missing = [size - have for size, have in zip(sizes, x.shape[-len(sizes) :], strict=True)]
    return functional.pad(x, [n for more in reversed(missing) for n in (0, more)])


def crop(y: Tensor, width: int) -> Tensor:
    """The first ``width`` columns of y, contiguous."""
    return y if y.shape[1] == width else y[:, :width].contiguous()


def groups(x: Tensor, blocks: int) -> Tensor:
    """(tokens, blocks · side) as (blocks, tokens, side), a view."""
    return x.reshape(x.shape[0], blocks, -1).transpose(0, 1)


def tokens_last(x: Tensor, run: int) -> bool:
    """Whether an intermediate that is regrouped in runs of ``run`` entries lies tokens last.

    Copies then move rows of tokens. On a CPU with AVX-512, 1024 × 1024 and 256 tokens, a BTT layer
    (runs of 8) takes 0.65 times as long so in float32 and 0.75 times in bfloat16; a Monarch layer
    (runs of 64) as long in float32, a little less at other shapes, and 1.3 times in bfloat16.
    """
    return x.shape[0] >= FEW_TOKENS and (run < SHORT_RUN or (x.is_cpu and x.dtype.itemsize > 2))


def enter(x: Tensor, weights: Tensor, *, turn: bool) -> Tensor:
    """Multiply each group of x: (tokens, b · p) by (b, q, p) → z, tokens last where ``turn``."""
    grouped = groups(x, weights.shape[0])
    return torch.bmm(weights, grouped.mT).mT if turn else torch.bmm(grouped, weights.mT)


def regroup(z: Tensor, fine: int, *, turn: bool) -> Tensor:
    """(b, tokens, fine · w) → (fine, tokens, b · w): one copy, in the layout that z has."""
    blocks, tokens, width = z.shape
    if turn:
        parts = z.mT.view(blocks, fine, width // fine, tokens).transpose(0, 1)
        return parts.reshape(fine, -1, tokens).mT
    parts = z.view(blocks, tokens, fine, width // fine).permute(2, 1, 0, 3)
    return parts.reshape(fine, tokens, -1)


def leave(
    z: Tensor, weights: Tensor, *, strided: bool = False, out: Tensor | None = None
) -> Tensor:
    """Multiply each block of z: (b, tokens, p) by (b, q, p) → (tokens, b · q), contiguous.

    Entry s of block b is feature b · q + s, and is written there if the library can; or where
    ``strided`` feature s · blocks + b, which takes a copy. It lies in ``out``, contiguous rows of a
    larger tensor, where that is given.
    """
    tokens = z.shape[1]
    if not strided and _writes_views(z):
        y = z.new_empty(tokens, *weights.shape[:2]) if out is None else out
        y = y.view(tokens, *weights.shape[:2])
        multiply_into(y.transpose(0, 1), z, weights.mT)
        return y.view(tokens, -1)
    y = torch.bmm(z, weights.mT)  # (b, tokens, q)
    y = y.permute(1, 2, 0) if strided else y.transpose(0, 1)
    if out is not None:
        out.view(y.shape).copy_(y)
        return out
    return y.reshape(tokens, -1).contiguous()


def _writes_views(z: Tensor) -> bool:
    """Whether a batched product into a view costs no more than one into new memory.

    On a CPU it falls apart into single products: more than a copy where a batched product exists
    (not for half precision) or the products are small.
    """
    return not z.is_cpu or (z.dtype.itemsize < 4 and z.shape[1] >= FEW_TOKENS)


def multiply_into(out: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Write left · right, batched or not, into a view; torch.compile takes no such view."""
    if torch.compiler.is_compiling():
        return out.copy_(left @ right)
    return (torch.bmm if out.dim() == 3 else torch.mm)(left, right, out=out)


def gradient(dy: Tensor, z: Tensor) -> Tensor:
    """The gradient of the weights of ``leave``: (tokens, b · q) and (b, tokens, p) → (b, q, p)."""
    grouped = groups(dy, z.shape[0])
    if dy.is_cpu and dy.dtype.itemsize < 4:
        grouped = grouped.contiguous()  # of a view, products in half precision take twice as long
    return torch.bmm(grouped.mT, z)


def block_diagonal(x: Tensor, weights: Tensor) -> Tensor:
    """x diag(W_1 … W_b)ᵀ for x of shape (tokens, b · p) and blocks (b, q, p): (tokens, b · q)."""
    if needs_grad(x, weights):
        y: Tensor = _BlockDiagonal.apply(x, weights)  # type: ignore[no-untyped-call]
        return y
    return leave(groups(x, weights.shape[0]), weights)


@_onednn.remembered
class _BlockDiagonal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(x, weights)
        return leave(groups(x, weights.shape[0]), weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weights = ctx.saved_tensors
        x_needs, weights_need = ctx.needs_input_grad
        blocks = weights.shape[0]
        dx = leave(groups(dy, blocks), weights.mT) if x_needs else None
        return dx, gradient(dy, groups(x, blocks)) if weights_need else None


def needs_grad(*tensors: Tensor) -> bool:
    """Whether a product of these has to be recorded for a backward pass."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor.requires_grad:
                return True
    return False
