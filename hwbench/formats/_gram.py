"""Projections that see the data: the member whose outputs are nearest, ‖(W − Ŵ)X‖ over given rows.

With G = XᵀX / n the squared error is tr (W − Ŵ) G (W − Ŵ)ᵀ. A matrix of given rank has a closed
form: with G = L Lᵀ it is the truncated decomposition of W L, times L⁻¹ (Wang et al., SVD-LLM, ICLR
2025, arXiv:2403.07378). Single entries are chosen one column after the other, and the columns that
follow make up for what is dropped: optimal brain surgeon in the order of the columns (Frantar and
Alistarh, SparseGPT, ICML 2023, arXiv:2301.00774). Everything is then refined. The error is
quadratic in one factor while the others are held; a few steps of conjugate gradients on each in
turn never raise it.

All is computed in float64. What lies beside the diagonal of G is shrunk as far as the rows are too
few to know it (Schäfer and Strimmer, 2005, doi:10.2202/1544-6115.1175), and a little of the mean of
the diagonal is added to it, so that what the rows never show still counts.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from hwbench.errors import UsageError

RANK, GROUPS, N_OF_M, KEPT, FACTORS, EXACT = "rank", "groups", "n_of_m", "kept", "factors", "exact"
"""How a format is projected by outputs, as its ``OUTPUTS`` says."""

DAMPING = 0.01
"""What is added to the diagonal of G, of its mean."""

SWEEPS, STEPS = 8, 4
"""Rounds over all factors at most, and steps of conjugate gradients on each."""

ENOUGH = 1e-4
"""A sweep that lowers the error by less than this part is the last."""

_ROWS = 4096  # rows that are multiplied at once
_COLUMNS = 64  # columns whose entries are chosen before later columns are brought up to date


class Member(Protocol):
    """A layer, as ``Linear`` is one."""

    def to_dense(self) -> Tensor:
        """W, differentiable."""

    def named_parameters(self) -> Any:
        """Its factors by name."""

    def to(self, dtype: torch.dtype, /) -> Any:
        """The layer in that dtype."""


class Described(Protocol):
    """A description of a layer, as ``Format`` is one."""

    OUTPUTS: ClassVar[str]

    def name(self) -> str:
        """The name of the format."""

    def knobs(self) -> dict[str, Any]:
        """Its settings."""

    def parameters(self) -> int:
        """The number of values."""

    def project(self, weight: Tensor, *, activations: Tensor | None = None) -> Any:
        """The nearest layer."""


def moments(rows: Tensor) -> Tensor:
    """G = XᵀX / n of rows (n, in), shrunk and damped, summed in float64: (in, in).

    Raises:
        UsageError: the rows are no matrix, there is none, or a number in them is not finite.
    """
    if rows.dim() != 2 or not rows.numel():
        raise UsageError(
            f"activations must have the shape (samples, inputs), not {tuple(rows.shape)}."
        )
    inputs = rows.shape[1]
    found, fourth = torch.zeros(2, inputs, inputs, dtype=torch.float64, device=rows.device)
    for some in rows.detach().split(_ROWS):
        wide = some.double()
        found.addmm_(wide.T, wide)
        fourth.addmm_(wide.T.square(), wide.square())
    found, fourth = found / len(rows), fourth / len(rows)
    if not bool(found.isfinite().all()):
        raise UsageError("The activations hold numbers that are not finite.")
    known = found.diagonal().clone()
    found *= 1 - _doubt(found, fourth, len(rows))
    found.diagonal().copy_(known)
    mean = float(found.diagonal().mean())
    found.diagonal().add_(DAMPING * mean if mean > 0 else 1.0)
    return found


def _doubt(gram: Tensor, fourth: Tensor, rows: int) -> float:
    """How far to shrink what is beside the diagonal: its variance over its size, from 0 to 1."""
    beside = ~torch.eye(len(gram), dtype=torch.bool, device=gram.device)
    size = float(gram.square()[beside].sum())
    if rows < 2 or not size:
        return 1.0
    variance = float((fourth - gram.square())[beside].sum()) / (rows - 1)
    return min(1.0, max(0.0, variance / size))


def nearest(described: Described, weight: Tensor, rows: Tensor) -> Any:
    """The member of a format whose outputs on these rows are near to those of a weight.

    By ``moments`` its error is never above that of ``described.project``, with activations or
    without.

    Args:
        described: the format, which says in ``OUTPUTS`` how.
        weight: (out_features, in_features); the layer has its dtype and device.
        rows: what the layer sees, (samples, in_features).

    Raises:
        UsageError: the format says nothing, or the rows do not fit.
    """
    if described.OUTPUTS == EXACT:
        return described.project(weight)
    if not described.OUTPUTS:
        raise UsageError(f"{described.name()} cannot be projected by outputs.")
    if rows.dim() != 2 or rows.shape[1] != weight.shape[1]:
        raise UsageError(
            f"activations must have the shape (samples, {weight.shape[1]}), "
            f"not {tuple(rows.shape)}."
        )
    wide, gram = weight.detach().double(), moments(rows.to(weight.device))
    seen = gram.diagonal().sqrt().unsqueeze(0)  # one row that weighs columns as G does
    starts = [described.project(wide), described.project(wide, activations=seen)]
    if (member := _member(described, wide, gram)) is not None:
        starts.append(described.project(member))
    best = min(starts, key=lambda layer: _loss(layer, wide, gram))
    if described.OUTPUTS != RANK:
        refine(best, wide, gram)
    return best.to(weight.dtype)


def _loss(layer: Member, weight: Tensor, gram: Tensor) -> float:
    lost = layer.to_dense().detach() - weight
    return float((lost @ gram * lost).sum())


def _member(described: Described, weight: Tensor, gram: Tensor) -> Tensor | None:
    """A matrix that the format can hold exactly, by closed form or column by column."""
    kind, settings = described.OUTPUTS, described.knobs()
    if kind == RANK:
        return of_rank(weight, gram, int(settings["rank"]))
    if kind == GROUPS:
        side = math.ceil(weight.shape[1] / int(settings["blocks"]))
        places = torch.arange(weight.shape[1], device=weight.device).split(side)
        rank = int(settings["rank"])
        return torch.cat([of_rank(weight[:, p], gram[p][:, p], rank) for p in places], dim=1)
    if kind == N_OF_M:
        n, m = int(settings.get("n", 2)), int(settings.get("m", 4))
        return pruned(weight, gram, n_of_m=(n, m))
    if kind == KEPT:
        return pruned(weight, gram, nonzeros=described.parameters())
    return None


def of_rank(weight: Tensor, gram: Tensor, rank: int) -> Tensor:
    """The matrix of that rank with the least tr (W − Ŵ) G (W − Ŵ)ᵀ, float64."""
    lower = torch.linalg.cholesky(gram)
    u, s, vh = torch.linalg.svd(weight @ lower, full_matrices=False)
    back = torch.linalg.solve_triangular(lower, vh[:rank], upper=False, left=False)
    return (u[:, :rank] * s[:rank]) @ back


def pruned(
    weight: Tensor, gram: Tensor, *, nonzeros: int = 0, n_of_m: tuple[int, int] | None = None
) -> Tensor:
    """W with ``nonzeros`` entries, or n of every m in a row, the others made up for.

    An entry counts w² / [G⁻¹]: what the outputs lose where it is dropped and the rest of its row
    makes up for it. How many of the ``nonzeros`` lie in which columns is decided by that at first,
    and which these are when their turn comes.

    Args:
        weight: (out, in), float64.
        gram: (in, in), float64, positive definite.
        nonzeros: how many entries are kept, where ``n_of_m`` is None.
        n_of_m: n and m; m divides the inputs.
    """
    inverse = torch.linalg.inv(gram)
    upper = torch.linalg.cholesky(inverse, upper=True)
    n, m = n_of_m or (0, 0)
    kept = torch.ones_like(weight, dtype=torch.bool)
    if not m:
        kept = _largest(weight.square() / inverse.diagonal(), nonzeros)
    work, inputs = weight.clone(), weight.shape[1]
    width = m * max(1, _COLUMNS // m) if m else _COLUMNS
    for start in range(0, inputs, width):
        stop = min(start + width, inputs)
        if not m:
            score = (work[:, start:stop] / upper.diagonal()[start:stop]).square()
            kept[:, start:stop] = _largest(score, int(kept[:, start:stop].sum()))
        dropped = torch.zeros_like(work[:, start:stop])
        for j in range(start, stop):
            if m and j % m == 0:
                score = (work[:, j : j + m] / upper.diagonal()[j : j + m]).square()
                kept[:, j : j + m] = False
                kept[:, j : j + m].scatter_(1, score.topk(n, dim=1).indices, 1)
            lost = torch.where(kept[:, j], 0, work[:, j]) / upper[j, j]
            work[:, j:stop] -= lost.unsqueeze(1) * upper[j, j:stop]
            dropped[:, j - start] = lost
        work[:, stop:] -= dropped @ upper[start:stop, stop:]
    return torch.where(kept, work, 0)


def _largest(score: Tensor, count: int) -> Tensor:
    """A mask of the ``count`` largest scores."""
    mask = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    mask[score.flatten().topk(count).indices] = True
    return mask.view(score.shape)


def refine(layer: Member, weight: Tensor, gram: Tensor) -> None:
    """Lower tr (W − Ŵ) G (W − Ŵ)ᵀ of a float64 layer, a factor at a time, in place.

    Ŵ is linear in each parameter while the others are held, so every step goes to the least error
    along its direction.
    """
    factors = [value for name, value in layer.named_parameters() if name != "bias"]
    steps = STEPS * (SWEEPS if len(factors) == 1 else 1)  # one factor: a single run of steps
    before = _loss(layer, weight, gram)
    for _ in range(1 if len(factors) == 1 else SWEEPS):
        for factor in factors:
            _descend(layer, factor, weight, gram, steps)
        after = _loss(layer, weight, gram)
        if after > (1 - ENOUGH) * before:
            break
        before = after


def _descend(layer: Member, factor: Tensor, weight: Tensor, gram: Tensor, steps: int) -> None:
    """Steps of conjugate gradients on one factor."""
    direction, size = torch.zeros_like(factor), 0.0
    for _ in range(steps):
        with torch.enable_grad():
            dense = layer.to_dense()
            lost = dense.detach() - weight
            (slope,) = torch.autograd.grad(dense, factor, lost @ gram)
        with torch.no_grad():
            before, size = size, float(slope.square().sum())
            direction = direction * (size / before if before else 0.0) - slope
            factor.add_(direction)
            reach = layer.to_dense() - dense.detach()
            curvature = float((reach @ gram * reach).sum())
            step = -float((slope * direction).sum()) / curvature if curvature > 0 else 0.0
            factor.add_(direction, alpha=step - 1)
            if not step:
                return
