"""What the formats made of blocks share: how sizes are split, and products of many blocks at once.

A vector of ``blocks · side`` entries is read as ``blocks`` groups of ``side``. An intermediate
``z`` of a chain of block products has the shape (blocks, tokens, width). Where that makes
regrouping move longer runs (see ``tokens_last``) it lies in memory as (blocks, width, tokens), and
``z`` is a transposed view; the products read either.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from hwbench.errors import KnobError, UsageError
from hwbench.formats._base import BACKWARD, BACKWARD_INPUT, BACKWARD_WEIGHT, FORWARD, STEP, Format
from hwbench.records import Knob

FEW_TOKENS = 32
"""Below this many tokens products are faster on rows of entries."""

SHORT_RUN = 32
"""Runs of fewer entries than this are slow to copy."""

NO_TRITON = "A Triton kernel does not run here: there is no triton, which torch for CUDA brings."


# --- how sizes are split -----------------------------------------------------------------------


def side(size: int, blocks: int) -> int:
    """The side of each of ``blocks`` equal blocks that together hold ``size`` entries."""
    return -(-size // blocks)


def factors(size: int) -> tuple[int, int]:
    """(larger, smaller): the two factors of the size that are nearest to a square."""
    smaller = next(d for d in range(math.isqrt(size), 0, -1) if size % d == 0)
    return size // smaller, smaller


def near_square(size: int) -> tuple[int, int]:
    """(larger, smaller): the factors of the next number that has two within a ratio of two.

    Of several pairs the nearest to a square is taken: 768 gives (32, 24), the prime 37 (8, 5).
    """
    while True:
        larger, smaller = factors(size)
        if larger <= 2 * smaller:
            return larger, smaller
        size += 1


def fits(size: int, blocks: int) -> bool:
    """Whether no block of so many equal ones would hold nothing but padding."""
    return side(size, side(size, blocks)) == blocks


def check_blocks(described: Format, knob: str, size: int) -> None:
    """Demand that the knob's value splits ``size`` into equal blocks, the last perhaps padded.

    Raises:
        KnobError: it is no whole number in [1, size], or a block would hold nothing but padding.
    """
    blocks = described.check_integer(knob, low=1, high=size)
    if not fits(size, blocks):
        filled = side(size, side(size, blocks))
        raise KnobError(
            f"{knob}={blocks} of {described.name()} would leave {blocks - filled} of the blocks of "
            f"{size} features empty; {filled} fits."
        )


def fill(described: Format, **values: Knob) -> None:
    """Give each knob that was left at None its value."""
    for knob, value in values.items():
        if getattr(described, knob) is None:
            object.__setattr__(described, knob, value)


def check_choice(described: Format, knob: str, choices: tuple[str, ...]) -> None:
    """Demand that the knob is one of the words.

    Raises:
        KnobError: it is not.
    """
    value = getattr(described, knob)
    if value not in choices:
        raise KnobError(
            f"{knob} of {described.name()} must be {' or '.join(choices)}, not {value!r}."
        )


def chain_flops(tokens: int, chain: tuple[int, ...], direction: str, *, again: int = 0) -> int:
    """FLOPs of one call of a chain of factors with so many multiply-adds a token each.

    ``again`` are those of an intermediate that the gradients of the weight need and nothing kept.
    """
    each = 2 * tokens * sum(chain)
    later = 2 * tokens * sum(chain[1:])
    once_more = 2 * tokens * again
    return {
        FORWARD: each,
        BACKWARD_INPUT: each,
        BACKWARD_WEIGHT: each + later + once_more,
        BACKWARD: 2 * each + once_more,
        STEP: 3 * each + once_more,
    }[direction]


def pad(x: Tensor, *sizes: int) -> Tensor:
    """``x`` with zeros behind its last axes, so that these have the sizes given."""
    if x.shape[-len(sizes) :] == sizes:
        return x
    missing = [size - have for size, have in zip(sizes, x.shape[-len(sizes) :], strict=True)]
    return functional.pad(x, [n for more in reversed(missing) for n in (0, more)])


def pad_ones(values: Tensor, size: int) -> Tensor:
    """(n,) with ones behind, so that there are ``size``."""
    return torch.cat([values, values.new_ones(size - values.shape[0])])


def padding_copies(described: Format, padded_out: int, padded_in: int) -> int:
    """Elements a token that are copied because x is padded and y cut, where they are."""
    copied = padded_in if padded_in != described.in_features else 0
    return copied + (described.out_features if padded_out != described.out_features else 0)


def crop(y: Tensor, width: int) -> Tensor:
    """The first ``width`` columns of y, contiguous."""
    return y if y.shape[1] == width else y[:, :width].contiguous()


# --- products ----------------------------------------------------------------------------------


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


def leave(z: Tensor, weights: Tensor, *, strided: bool = False) -> Tensor:
    """Multiply each block of z: (b, tokens, p) by (b, q, p) → (tokens, b · q), contiguous.

    Entry s of block b is feature b · q + s, and is written there if the library can; or where
    ``strided`` feature s · blocks + b, which takes a copy.
    """
    tokens = z.shape[1]
    if not strided and _writes_views(z):
        y = z.new_empty(tokens, *weights.shape[:2])
        multiply_into(y.transpose(0, 1), z, weights.mT)
        return y.view(tokens, -1)
    y = torch.bmm(z, weights.mT)  # (b, tokens, q)
    y = y.permute(1, 2, 0) if strided else y.transpose(0, 1)
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


# --- the kernels of _fused.py -------------------------------------------------------------------


def fused() -> Any:
    """The module of the Triton kernels.

    Raises:
        UsageError: there is no triton.
    """
    try:
        from hwbench.formats import _fused
    except ModuleNotFoundError as absent:
        raise UsageError(NO_TRITON) from absent
    return _fused


def fused_refusal(device: str, dtype: torch.dtype) -> str | None:
    """Why no Triton kernel can run on that kind of device in that dtype, or None where one can."""
    if device != "cuda":
        return "A Triton kernel is compiled for CUDA devices, and there is none for the CPU."
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return "A Triton kernel multiplies float32, bfloat16 and float16 only."
    if find_spec("triton") is None:
        return NO_TRITON
    return fused().refusal(dtype)


def fused_bytes(
    pair: tuple[Format, Format], tokens: int, item_bytes: int, direction: str, again: int
) -> int:
    """Intermediate bytes of a Triton kernel, whose backward pass is that of another kernel.

    Args:
        pair: the format with that kernel, and with the kernel whose backward pass it takes.
        tokens: rows of x.
        item_bytes: bytes of a value.
        direction: the part of a step that is asked for.
        again: values that are moved to make intermediates again, for the gradients of the weight.
    """
    fused, plain = pair
    ahead = Format._intermediate_bytes(fused, tokens, item_bytes, FORWARD)  # noqa: SLF001
    if direction == FORWARD:
        return ahead
    part = BACKWARD if direction == STEP else direction
    back = Format._intermediate_bytes(plain, tokens, item_bytes, part)  # noqa: SLF001
    back += 0 if direction == BACKWARD_INPUT else item_bytes * again
    return back + (ahead if direction == STEP else 0)


# --- initialisations and projections -----------------------------------------------------------


def spectral_std(fan_out: int, fan_in: int) -> float:
    """The standard deviation of a factor: fan_in^-1/2 · min(1, sqrt(fan_out / fan_in))."""
    return min(fan_out, fan_in) ** 0.5 / fan_in


def importance(activations: Tensor | None, weight: Tensor) -> Tensor:
    """What each column of the weight is worth: the root mean square of its input, or one.

    Args:
        activations: (samples, in_features), or None.
        weight: (out_features, in_features), in the precision to work in.
    """
    if activations is None:
        return weight.new_ones(weight.shape[1])
    size = activations.detach().to(weight).square().mean(0).sqrt()
    return torch.where(size.max() > 0, size.clamp_min(1e-3 * size.max()), 1)


def working(weight: Tensor) -> Tensor:
    """The weight in the precision that projections work in: its own, or float32."""
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32))


def truncated(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(…, m, rank) and (…, rank, n), the best factors of (…, m, n), the weight shared evenly."""
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    root = s[..., :rank].sqrt()
    return u[..., :rank] * root.unsqueeze(-2), root.unsqueeze(-1) * vh[..., :rank, :]
