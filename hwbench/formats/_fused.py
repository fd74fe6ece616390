"""Products of the formats made of blocks as Triton kernels, for NVIDIA GPUs.

This file alone imports triton, which CUDA builds of torch bring and CPU builds do not; a format
imports it where one of its Triton kernels is asked for. Three kernels:

* ``two_stage``: both products of a layer of two stages. The rows of the intermediate that belong to
  a tile of tokens stay on the chip; nothing of it is written.
* ``enter_grouped``: the first product, whose result is written once, in the order in which the
  second reads it.
* ``leave_coupled``: the sum over the couplings of ``blast`` and the product behind it.

Sums are in float32, and an intermediate is rounded to the dtype of x before it is multiplied again,
as it is where it passes through memory. Float32 is multiplied as such, without TF32. Every size may
be ragged: what lies outside is masked, so that neither x nor y is padded in memory. Sizes are
arguments and tiles are constants, chosen by simple rules and never by trial. Compiled for compute
capability 8.0, 9.0, 10.0 and 12.0, the tiles of bfloat16 and float32 layers of 4096 × 4096 take at
most 97 KiB of shared memory, and of the registers at most 88 bytes a thread spill.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, wraps
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hwbench.errors import UsageError
from hwbench.formats._probe import tried

ON_CUDA = "A Triton kernel runs on CUDA devices, not on the CPU."

PROGRAMS = 256
"""As many programs as keep a large GPU busy: about two for each of its multiprocessors."""

_INTERPRETED = bool(triton.knobs.runtime.interpret)  # kernels run in numpy then, on any device

WIDENED = tl.constexpr(_INTERPRETED)


# --- kernels -----------------------------------------------------------------------------------
# rank is t of the papers; the letters of a tile's axes follow the words: rows are tokens.


@triton.jit
def _add_product(left, right, total):
    """total + left · right; without TF32, and exact in bfloat16, which numpy does not have."""
    if WIDENED:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, total, input_precision="ieee")


@triton.jit
def _zeros(COUNT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """COUNT sums that start at zero."""
    sums = ()
    for _ in tl.static_range(COUNT):
        sums = sums + (tl.full((ROWS, COLUMNS), 0.0, tl.float32),)
    return sums


@triton.jit
def _inputs(x, rows, block, p, tokens, in_features, in_side, row_step, column_step):
    """Load the tile (rows, p) of one input group of x (tokens, in_features)."""
    feature = block * in_side + p
    mask = (rows < tokens)[:, None] & ((p < in_side) & (feature < in_features))[None, :]
    return tl.load(x + rows[:, None] * row_step + feature[None, :] * column_step, mask, other=0.0)


@triton.jit
def _outputs(y, tile, rows, s, group, tokens, out_features, out_side, group_step, s_step):
    """Write a tile (rows, s): feature group · group_step + s · s_step of y, of out_features."""
    feature = group * group_step + s * s_step
    mask = (rows < tokens)[:, None] & ((s < out_side) & (feature < out_features))[None, :]
    where = y + rows[:, None] * out_features + feature[None, :]
    tl.store(where, tile.to(y.dtype.element_ty), mask)


@triton.jit
def _two_stage(
    x, first, second, y, tokens, in_features, out_features, in_blocks, in_side, out_blocks,
    out_side, rank, row_step, column_step, group_step, s_step,
    TOGETHER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, LANES: tl.constexpr,
    LANE_TILES: tl.constexpr, INNER: tl.constexpr, INNER_TILES: tl.constexpr,
):  # fmt: skip
    """One program: a tile of tokens and TOGETHER output groups; neighbours share their tokens."""
    packs = (out_blocks + TOGETHER - 1) // TOGETHER
    group = tl.program_id(0) % packs * TOGETHER
    rows = (tl.program_id(0) // packs).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    s = tl.arange(0, COLUMNS)
    sums = _zeros(TOGETHER, ROWS, COLUMNS)
    for step in range(in_blocks * LANE_TILES):
        block = step // LANE_TILES
        lane = step % LANE_TILES * LANES + tl.arange(0, LANES).to(tl.int64)
        z = _zeros(TOGETHER, ROWS, LANES)
        for tile in range(INNER_TILES):
            p = tile * INNER + tl.arange(0, INNER).to(tl.int64)
            part = _inputs(x, rows, block, p, tokens, in_features, in_side, row_step, column_step)
            more = ()
            for n in tl.static_range(TOGETHER):
                row = (block * out_blocks + group + n) * rank + lane
                mask = (p < in_side)[:, None] & ((lane < rank) & (group + n < out_blocks))[None, :]
                factor = tl.load(first + row[None, :] * in_side + p[:, None], mask, other=0.0)
                more = more + (_add_product(part, factor, z[n]),)
            z = more
        more = ()
        for n in tl.static_range(TOGETHER):
            row = (group + n).to(tl.int64) * out_side + s
            mask = ((lane < rank) & (group + n < out_blocks))[:, None] & (s < out_side)[None, :]
            column = (block * rank + lane)[:, None]
            factor = tl.load(second + row[None, :] * (in_blocks * rank) + column, mask, other=0.0)
            narrow = z[n].to(x.dtype.element_ty)
            more = more + (_add_product(narrow, factor, sums[n]),)
        sums = more
    for n in tl.static_range(TOGETHER):
        inside = tl.where(group + n < out_blocks, out_side, 0)
        _outputs(y, sums[n], rows, s, group + n, tokens, out_features, inside, group_step, s_step)


@triton.jit
def _enter_grouped(
    x, first, z, tokens, in_features, in_blocks, in_side, columns, rank, row_step, column_step,
    group_step, token_step, entry_step,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """One program: a tile of tokens, one input group, a tile of the (l, t) that it gives."""
    tiles = (columns + COLUMNS - 1) // COLUMNS
    block = tl.program_id(0) // tiles % in_blocks
    column = tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS)
    rows = (tl.program_id(0) // (tiles * in_blocks)).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    total = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    for start in range(0, in_side, INNER):
        p = start + tl.arange(0, INNER).to(tl.int64)
        part = _inputs(x, rows, block, p, tokens, in_features, in_side, row_step, column_step)
        row = (block * columns + column).to(tl.int64)
        mask = (p < in_side)[:, None] & (column < columns)[None, :]
        factor = tl.load(first + row[None, :] * in_side + p[:, None], mask, other=0.0)
        total = _add_product(part, factor, total)
    group, entry = column // rank, block * rank + column % rank
    where = group.to(tl.int64) * group_step + entry.to(tl.int64) * entry_step
    mask = (rows < tokens)[:, None] & (column < columns)[None, :]
    tl.store(z + rows[:, None] * token_step + where[None, :], total.to(z.dtype.element_ty), mask)


@triton.jit
def _leave_coupled(
    z, couplings, bases, y, tokens, out_features, out_blocks, out_side,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, BLOCKS: tl.constexpr,
    RANK: tl.constexpr, UNROLLED: tl.constexpr,
):  # fmt: skip
    """One program: a tile of tokens, and a tile of one output group; BLOCKS is in_blocks."""
    tiles = (out_side + COLUMNS - 1) // COLUMNS
    group = tl.program_id(0) // tiles % out_blocks
    s = tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS)
    rows = (tl.program_id(0) // (tiles * out_blocks)).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    total = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    for start in range(0, RANK, INNER):
        lane = start + tl.arange(0, INNER)
        w = tl.full((ROWS, INNER), 0.0, tl.float32)
        for first in range(0, BLOCKS, UNROLLED):
            for n in tl.static_range(UNROLLED):
                block = first + n
                there = (lane < RANK) & (block < BLOCKS)
                row = block * tokens + rows
                inside = (rows < tokens)[:, None] & there[None, :]
                part = tl.load(z + row[:, None] * RANK + lane[None, :], inside, other=0.0)
                where = couplings + (group * BLOCKS + block) * RANK + lane
                w += part.to(tl.float32) * tl.load(where, there, other=0.0).to(tl.float32)[None, :]
        row = group.to(tl.int64) * out_side + s
        mask = (lane < RANK)[:, None] & (s < out_side)[None, :]
        factor = tl.load(bases + row[None, :] * RANK + lane[:, None], mask, other=0.0)
        total = _add_product(w.to(z.dtype.element_ty), factor, total)
    _outputs(y, total, rows, s, group, tokens, out_features, out_side, out_side, 1)


# --- how they are called -----------------------------------------------------------------------


def _opaque(result: Callable[..., Tensor]) -> Callable[[Callable[..., Tensor]], Any]:
    """Let torch.compile call a launch without a look inside; ``result`` is empty memory for it."""

    def wrap(launch: Callable[..., Tensor]) -> Callable[..., Tensor]:
        operator = torch.library.custom_op(f"hwbench::{launch.__name__}", launch, mutates_args=())
        operator.register_fake(result)

        @wraps(launch)
        def call(*args: Any) -> Tensor:
            return operator(*args) if torch.compiler.is_compiling() else launch(*args)

        return call

    return wrap


@_opaque(lambda x, first, second, out_features, *_: x.new_empty(x.shape[0], out_features))
def two_stage(
    x: Tensor, first: Tensor, second: Tensor, out_features: int, strided: bool, pack: int
) -> Tensor:
    """x Wᵀ: (tokens, in_features), (k, l·t, p) and (l, s, k·t) → (tokens, out_features).

    Both sizes of x and y may be less than k · p and l · s. ``strided`` says that entry s of output
    group l is feature s · l_count + l. A program forms at most ``pack`` output groups, of which a
    tile of pack · s features is held: at most 256.
    """
    (in_blocks, columns, in_side), (out_blocks, out_side, _) = first.shape, second.shape
    tokens, rank = x.shape[0], columns // out_blocks
    y = x.new_empty(tokens, out_features)
    wide, width = x.element_size() > 2, _power(out_side)
    pack = max(1, pack // (2 if wide else 1))
    rows = min(_rows(tokens), (8192 if wide else 32768) // (pack * width))  # sums in registers
    while pack > 1 and -(-tokens // rows) * (out_blocks // pack) < PROGRAMS:
        pack //= 2
    inner = min(_power(in_side), 32 if wide else 64)
    lanes = min(_power(rank), 16 if wide or pack > 1 else 32)
    steps = (1, out_blocks) if strided else (out_side, 1)
    with _on(x):
        _two_stage[(-(-tokens // rows) * -(-out_blocks // pack),)](
            x, first.contiguous(), second.contiguous(), y, tokens, x.shape[1], out_features,
            in_blocks, in_side, out_blocks, out_side, rank, *x.stride(), *steps,
            TOGETHER=pack, ROWS=rows, COLUMNS=width, LANES=lanes,
            LANE_TILES=-(-rank // lanes), INNER=inner, INNER_TILES=-(-in_side // inner),
            num_warps=8 if rows * pack * width >= (8192 if wide else 16384) else 4,
            num_stages=4 if rows < 64 else 3,
        )  # fmt: skip
    return y


def _empty_grouped(x: Tensor, first: Tensor, groups: int, turn: bool) -> Tensor:
    tokens, width = x.shape[0], first.shape[0] * first.shape[1] // groups
    return x.new_empty(groups, width, tokens).mT if turn else x.new_empty(groups, tokens, width)


@_opaque(_empty_grouped)
def enter_grouped(x: Tensor, first: Tensor, groups: int, turn: bool) -> Tensor:
    """The first product alone: (tokens, in_features) and (k, groups·t, p) → (groups, tokens, k·t).

    It lies in memory as (groups, k·t, tokens) where ``turn``.
    """
    in_blocks, columns, in_side = first.shape
    tokens, z = x.shape[0], _empty_grouped(x, first, groups, turn)
    wide = x.element_size() > 2
    rows, tile = min(_rows(tokens), 64 if wide else 128), min(_power(columns), 64 if wide else 128)
    while tile > 32 and -(-tokens // rows) * in_blocks * -(-columns // tile) < PROGRAMS:
        tile //= 2
    with _on(x):
        _enter_grouped[(-(-tokens // rows) * in_blocks * -(-columns // tile),)](
            x, first.contiguous(), z, tokens, x.shape[1], in_blocks, in_side, columns,
            columns // groups, *x.stride(), *z.stride(), ROWS=rows, COLUMNS=tile,
            INNER=min(_power(in_side), 32 if wide else 64),
            num_warps=8 if rows * tile > 8192 else 4, num_stages=3,
        )  # fmt: skip
    return z


@_opaque(lambda z, couplings, bases, out_features: z.new_empty(z.shape[1], out_features))
def leave_coupled(z: Tensor, couplings: Tensor, bases: Tensor, out_features: int) -> Tensor:
    """Σ_j couplings[i, j] ∘ z[j], times basesᵀ[i], for every i: (tokens, out_features).

    Args:
        z: (j, tokens, rank).
        couplings: (i, j, rank).
        bases: (i, s, rank).
        out_features: at most i · s.
    """
    (in_blocks, tokens, rank), (out_blocks, out_side, _) = z.shape, bases.shape
    y = z.new_empty(tokens, out_features)
    wide = z.element_size() > 2
    rows, tile = min(_rows(tokens), 64), min(_power(out_side), 64 if wide else 256)
    while tile > 32 and -(-tokens // rows) * out_blocks * -(-out_side // tile) < PROGRAMS:
        tile //= 2
    with _on(z):
        _leave_coupled[(-(-tokens // rows) * out_blocks * -(-out_side // tile),)](
            z.contiguous(), couplings.contiguous(), bases.contiguous(), y, tokens,
            out_features, out_blocks, out_side,
            ROWS=rows, COLUMNS=tile, INNER=min(_power(rank), 32),
            BLOCKS=in_blocks, RANK=rank, UNROLLED=min(in_blocks, 4),
            num_warps=8 if rows * tile > 8192 else 4, num_stages=3,
        )  # fmt: skip
    return y


def _power(size: int) -> int:
    """The power of two that holds ``size``, and at least 16: tensor cores take no narrower tile."""
    return max(16, 1 << (size - 1).bit_length())


def _rows(tokens: int) -> int:
    """Tokens of a tile: all of them where they are few, 64 of some hundreds."""
    return 128 if tokens > 1024 else min(_power(tokens), 64)


def _on(x: Tensor) -> AbstractContextManager[Any]:
    """Launch on the device of x.

    Raises:
        UsageError: x is on the CPU, and kernels are not interpreted.
    """
    if x.is_cuda:
        return torch.accelerator.device_index(x.device.index)
    if not _INTERPRETED:
        raise UsageError(ON_CUDA)
    return nullcontext()


@cache
def refusal(dtype: torch.dtype) -> str | None:
    """Try three small products, and say why these kernels cannot run here; None if they can."""
    return tried("A Triton kernel", lambda: all(error < 0.02 for error in _errors(dtype)))


def _errors(dtype: torch.dtype) -> list[float]:
    """The relative error of each kernel on the current CUDA device, against plain products."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((20, 64), (2, 4 * 8, 32), (4, 16, 2 * 8), (2, 4, 8))
    x, first, second, couplings = (
        torch.randn(shape, generator=generator, device="cpu").to("cuda", dtype) for shape in shapes
    )
    z = torch.einsum("bkp,kltp->lbkt", x.unflatten(1, (2, 32)), first.unflatten(1, (4, 8)))
    y = torch.einsum("lbkt,lskt->bls", z, second.unflatten(2, (2, 8))).flatten(1)
    bases, parts = second[:2, :, :8].contiguous(), z[..., 0, :].contiguous()
    coupled = torch.einsum("jbr,ijr,isr->bis", parts, couplings, bases).flatten(1)
    pairs = (
        (two_stage(x, first, second, 64, False, 4), y),
        (enter_grouped(x, first, 4, False), z.flatten(2)),
        (leave_coupled(parts, couplings, bases, 32), coupled),
    )
    return [float((ours - right).float().norm() / right.float().norm()) for ours, right in pairs]
