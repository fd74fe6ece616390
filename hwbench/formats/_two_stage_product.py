"""The product of both stages and its gradients, whole or in runs of tokens.

Shapes: x (tokens, k·p), ``first`` (k, l·t, p), ``second`` (l, s, k·t), y (tokens, l·s), and the
intermediate z (l, tokens, k·t). ``strided`` is the order of y, see ``TwoStage``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hwbench.formats import _block_matmul, _native, _onednn


def _product(
    x: Tensor, first: Tensor, second: Tensor, strided: bool, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y (tokens, l·s), in ``out`` where that is given, and the intermediate (l, tokens, k·t)."""
    z = _regrouped(x, first, second)
    return _block_matmul.leave(z, second, strided=strided, out=out), z


def _regrouped(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The intermediate (l, tokens, k·t)."""
    out_blocks = second.shape[0]
    turn = _block_matmul.tokens_last(x, first.shape[1] // out_blocks)
    return _block_matmul.regroup(_block_matmul.enter(x, first, turn=turn), out_blocks, turn=turn)


def _runs(x: Tensor, first: Tensor) -> list[slice]:
    """The runs of tokens in which the chain is computed: one, where the intermediate is small."""
    return _block_matmul.runs(x.shape[0], first.shape[0] * first.shape[1], x.device.type)


def product_in_runs(
    x: Tensor, first: Tensor, second: Tensor, strided: bool
) -> tuple[Tensor, Tensor | None]:
    """y, and the intermediate where it was made whole."""
    runs = _runs(x, first)
    if len(runs) <= 1:
        return _product(x, first, second, strided)
    y = x.new_empty(x.shape[0], second.shape[0] * second.shape[1])
    for run in runs:
        _product(x[run], first, second, strided, out=y[run])
    return y, None


@_onednn.remembered
class BmmProduct(torch.autograd.Function):
    """The chain, with four block products and one regrouping backward.

    An intermediate that was made in runs of tokens is not kept: backward each run makes its own
    once more.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, first: Tensor, second: Tensor, strided: bool) -> Tensor:
        y, z = product_in_runs(x, first, second, strided)
        ctx.save_for_backward(x, first, second, z)
        ctx.strided = strided
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        return *_gradients_of(ctx.needs_input_grad[:3], ctx.saved_tensors, dy, ctx.strided), None


def _gradients_of(
    needed: tuple[bool, ...], saved: tuple[Any, ...], dy: Tensor, strided: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x and both factors, from the intermediate where it was kept."""
    if saved[3] is None:
        return _gradients_in_runs(needed, saved[:3], dy, strided)
    return gradients(needed, saved, dy, strided)


def _gradients_in_runs(
    needed: tuple[bool, ...], saved: tuple[Tensor, ...], dy: Tensor, strided: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The same, run of tokens by run; those of the factors are summed in float32 or wider."""
    x, first, second = saved
    dx = x.new_empty(x.shape) if needed[0] else None
    totals: list[Tensor | None] = [None, None]
    for run in _runs(x, first):
        z = _regrouped(x[run], first, second) if needed[2] else x
        into = None if dx is None else dx[run]
        parts = gradients(needed, (x[run], first, second, z), dy[run], strided, into)[1:]
        totals = [_added(total, part) for total, part in zip(totals, parts, strict=True)]
    dfirst, dsecond = (None if total is None else total.to(x.dtype) for total in totals)
    return dx, dfirst, dsecond


def _added(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    """The sum so far and one part more; None where nothing is summed."""
    if total is None or part is None:
        return None if part is None else part.to(torch.promote_types(part.dtype, torch.float32))
    return total.add_(part)


def gradients(
    needed: tuple[bool, ...],
    saved: tuple[Tensor, ...],
    dy: Tensor,
    strided: bool,
    out: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x and both factors, where ``needed`` says so; only the last reads z.

    That of x lies in ``out`` where that is given.
    """
    x, first, second, z = saved
    in_blocks, out_blocks = first.shape[0], second.shape[0]
    if strided:
        dy = dy.reshape(dy.shape[0], -1, out_blocks).mT.reshape(dy.shape)
    dx = dfirst = dsecond = None
    if needed[2]:
        dsecond = _block_matmul.gradient(dy, z)
    if needed[0] or needed[1]:
        turn = _block_matmul.tokens_last(dy, first.shape[1] // out_blocks)
        dz = _block_matmul.regroup(
            _block_matmul.enter(dy, second.mT, turn=turn), in_blocks, turn=turn
        )
        if needed[1]:
            dfirst = torch.bmm(dz.mT, _block_matmul.groups(x, in_blocks))
        if needed[0]:
            dx = _block_matmul.leave(dz, first.mT, out=out)
    return dx, dfirst, dsecond


class NativeProduct(torch.autograd.Function):
    """Forward in C++; backward as ``bmm``, with a large z made again in runs of tokens."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, first: Tensor, second: Tensor, strided: bool) -> Tensor:
        ctx.strided, z = strided, None
        if ctx.needs_input_grad[2] and len(_runs(x, first)) <= 1:
            y, z = _native.two_stage_kept(x, first, second, strided)
        else:
            y = _native.two_stage(x, first, second, strided)
        ctx.save_for_backward(x, first, second, z)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        return *_gradients_of(ctx.needs_input_grad[:3], ctx.saved_tensors, dy, ctx.strided), None
