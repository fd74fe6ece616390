"""The BLAST matrix nearest to a weight: alternating least squares, damped and over-relaxed.

With two of the three factors fixed the error is quadratic in the third and falls apart into small
positive definite systems, one for each block row, block column or block. A sweep takes a step
towards the solution of each: for the bases by Cholesky factors, batched over the blocks; for the
couplings, of which there are many and all small, by a few steps of conjugate gradients.

Steps are up to twice as long as the solution asks for and shrink to it at the end, the damping
falls from a fifth of the mean curvature to rounding, and the components are rescaled after each
sweep so that their three factors carry equal weight. On Gaussian matrices of 96 × 96 in 4 × 4
blocks of rank 24 a hundred such sweeps reach a relative error of 0.44. The start is the low-rank
solution, a little perturbed because it can be a saddle; the result is never worse.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hwbench.formats import _block_matmul, _init

SWEEPS = (30, 100)
"""The fewest and the most sweeps; large problems get fewer."""

WORK = 2e11
"""FLOPs that a projection may take beyond the fewest sweeps."""

PERTURBATION = 0.1
"""Noise on the start, relative to the mean size of each factor."""

SHRINKAGE = 0.75
"""How much of the damping pulls the bases to zero; the rest pulls to where they were."""

GRADIENT_STEPS = 3
"""Steps of conjugate gradients on the couplings in each sweep."""


class Factors(NamedTuple):
    """W[i, j] = bases_out[i] diag(couplings[i, j]) bases_in[j]."""

    bases_out: Tensor  # (i, p, r)
    couplings: Tensor  # (i, j, r)
    bases_in: Tensor  # (j, r, q)

    def rows(self) -> Tensor:
        """The matrices that each block row of W combines: (i, r, j·q)."""
        mixed = self.couplings.transpose(1, 2).unsqueeze(-1) * self.bases_in.transpose(0, 1)
        return mixed.flatten(2)

    def columns(self) -> Tensor:
        """The matrices that each block column of W combines: (j, i·p, r)."""
        mixed = self.bases_out * self.couplings.transpose(0, 1).unsqueeze(2)
        return mixed.flatten(1, 2)

    def dense(self) -> Tensor:
        """The matrix, (i·p, j·q)."""
        return (self.bases_out @ self.rows()).flatten(0, 1)


def fit(weight: Tensor, out_blocks: int, in_blocks: int, rank: int) -> Factors:
    """Factors of the BLAST matrix near to ``weight`` (i·p, j·q), float32 or float64."""
    scale = weight.square().mean().sqrt()
    if not scale > 0:
        scale = torch.ones_like(scale)
    target = weight / scale
    start = _low_rank(target, out_blocks, in_blocks, rank)
    best = start
    if rank < min(target.shape):
        factors = _descend(target, start)
        if (factors.dense() - target).norm() < (start.dense() - target).norm():
            best = factors
    root = scale.sqrt()
    return Factors(best.bases_out * root, best.couplings, best.bases_in * root)


def sweeps(rows: int, columns: int, out_blocks: int, in_blocks: int, rank: int) -> int:
    """How many sweeps a problem of this size gets."""
    grams = 2 * rank**2 * (out_blocks * columns + in_blocks * rows)
    products = 6 * rows * columns * rank
    couplings = 8 * out_blocks * in_blocks * rank**2
    return int(min(max(WORK / (grams + products + couplings), SWEEPS[0]), SWEEPS[1]))


def _low_rank(target: Tensor, out_blocks: int, in_blocks: int, rank: int) -> Factors:
    """The low-rank solution; components beyond the rank of W get bases_in that may learn."""
    left, right = _init.truncated(target, rank)
    spare = rank - right.shape[0]
    if spare:
        more = _noise(target, (spare, target.shape[1]), _generator(target))
        left, right = (
            _block_matmul.pad(left, rank),
            torch.cat([right, more * right.square().mean().sqrt()]),
        )
    return Factors(
        left.unflatten(0, (out_blocks, -1)).contiguous(),
        target.new_ones(out_blocks, in_blocks, rank),
        right.unflatten(1, (in_blocks, -1)).transpose(0, 1).contiguous(),
    )


def _descend(target: Tensor, start: Factors) -> Factors:
    generator = _generator(target)
    bases_out, couplings, bases_in = (
        factor
        + PERTURBATION * factor.square().mean().sqrt() * _noise(target, factor.shape, generator)
        for factor in start
    )
    now = Factors(bases_out, couplings, bases_in)
    out_blocks, in_blocks, rank = couplings.shape
    by_row = target.unflatten(0, (out_blocks, -1))  # (i, p, n)
    by_column = target.unflatten(1, (in_blocks, -1)).transpose(0, 1).contiguous()  # (j, m, q)
    curvature = target.new_empty(out_blocks, in_blocks, rank, rank)
    rows, columns = target.shape
    count = sweeps(rows, columns, out_blocks, in_blocks, rank)
    for number in range(count):
        done = number / count
        damping = 0.2 * (1 - done) ** 4 + 10 * torch.finfo(target.dtype).eps
        length = 2 - done**3
        now = _sweep(now, by_row, by_column, curvature, damping, length)
    return now


def _sweep(
    now: Factors,
    by_row: Tensor,
    by_column: Tensor,
    curvature: Tensor,
    damping: float,
    length: float,
) -> Factors:
    """One step for each factor in turn, then the components balanced."""
    bases_out, couplings, bases_in = now
    mixed = now.rows()
    step = _solve(mixed @ mixed.mT, mixed @ by_row.mT, bases_out.mT, damping)
    bases_out = bases_out + length * step.mT
    mixed = Factors(bases_out, couplings, bases_in).columns()
    bases_in = bases_in + length * _solve(mixed.mT @ mixed, mixed.mT @ by_column, bases_in, damping)
    out_gram, in_gram = bases_out.mT @ bases_out, bases_in @ bases_in.mT
    torch.mul(out_gram.unsqueeze(1), in_gram, out=curvature)
    reduced = (bases_out.mT @ by_row).unflatten(2, (bases_in.shape[0], -1))  # (i, r, j, q)
    slope = (reduced * bases_in.transpose(0, 1)).sum(-1).transpose(1, 2)
    couplings = couplings + length * _gradient_steps(curvature, slope, couplings, damping)
    return _balanced(Factors(bases_out, couplings, bases_in))


def _solve(gram: Tensor, right: Tensor, now: Tensor, damping: float) -> Tensor:
    """The damped step from ``now`` to the solution of gram · x = right; zero where that fails."""
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    ridge = damping * diagonal.mean(-1, keepdim=True) + torch.finfo(gram.dtype).tiny
    residual = right - gram @ now - SHRINKAGE * ridge.unsqueeze(-1) * now
    diagonal += ridge
    lower, failed = torch.linalg.cholesky_ex(gram)
    return torch.where((failed == 0)[:, None, None], torch.cholesky_solve(residual, lower), 0)


def _gradient_steps(curvature: Tensor, right: Tensor, now: Tensor, damping: float) -> Tensor:
    """Conjugate gradients, scaled by the diagonal, for the step from ``now``: (i, j, r)."""
    residual = right - _apply(curvature, now)
    diagonal = curvature.diagonal(dim1=-2, dim2=-1)
    diagonal += damping * diagonal.mean(-1, keepdim=True) + torch.finfo(curvature.dtype).tiny
    step = torch.zeros_like(now)
    scaled = residual / diagonal
    direction, size = scaled, _inner(residual, scaled)
    for _ in range(GRADIENT_STEPS):
        bent = _apply(curvature, direction)
        along = _ratio(size, _inner(direction, bent))
        step, residual = step + along * direction, residual - along * bent
        scaled = residual / diagonal
        before, size = size, _inner(residual, scaled)
        direction = scaled + _ratio(size, before) * direction
    return step


def _apply(matrices: Tensor, vectors: Tensor) -> Tensor:
    return (matrices @ vectors.unsqueeze(-1)).squeeze(-1)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below > 0, above / below.clamp_min(torch.finfo(below.dtype).tiny), 0)


def _balanced(factors: Factors) -> Factors:
    """The same matrix with couplings of mean square one and bases of equal norm, by component."""
    tiny = torch.finfo(factors.couplings.dtype).tiny ** 0.5
    out_norm = factors.bases_out.square().sum((0, 1)).sqrt().clamp_min(tiny)
    in_norm = factors.bases_in.square().sum((0, 2)).sqrt().clamp_min(tiny)
    size = factors.couplings.square().mean((0, 1)).sqrt().clamp_min(tiny)
    each = (out_norm * in_norm * size).sqrt()
    return Factors(
        factors.bases_out * (each / out_norm),
        factors.couplings / size,
        factors.bases_in * (each / in_norm).unsqueeze(-1),
    )


def _generator(like: Tensor) -> torch.Generator:
    return torch.Generator(like.device).manual_seed(0)


def _noise(like: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
