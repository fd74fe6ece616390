"""Pruning by outputs: the entries that are kept, and how they make up for the others.

Entries are chosen one column after the other, and the columns that follow make up for what is
dropped: optimal brain surgeon in the order of the columns (Frantar and Alistarh, SparseGPT, ICML
2023, arXiv:2301.00774). The entries that are kept are then those of the least error at their
places: a row of W is a least-squares problem of its own, solved by conjugate gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 10
"""Steps of conjugate gradients at most: more lowers the error on the rows alone, not on others."""

ENOUGH = 1e-3
"""A step that lowers the error by less than this part is the last."""

_COLUMNS = 64  # columns whose entries are chosen before later columns are brought up to date


def pruned(
    weight: Tensor,
    inverse: Tensor,
    upper: Tensor,
    *,
    nonzeros: int = 0,
    n_of_m: tuple[int, int] | None = None,
) -> Tensor:
    """W with ``nonzeros`` entries, or n of every m in a row, the others made up for.

    An entry counts w² / [G⁻¹]: what the outputs lose where it is dropped and the rest of its row
    makes up for it. How many of the ``nonzeros`` lie in which columns is decided by that at first,
    and which these are when their turn comes.

    Args:
        weight: (out, in).
        inverse: G⁻¹, (in, in).
        upper: U of G⁻¹ = Uᵀ U.
        nonzeros: how many entries are kept, where ``n_of_m`` is None.
        n_of_m: n and m; m divides the inputs.
    """
    n, m = n_of_m or (0, 0)
    work, inputs = weight.T.contiguous(), weight.shape[1]  # a column of W is a row here
    own = upper.diagonal().unsqueeze(1)
    mask = torch.ones_like(work, dtype=torch.bool)
    if not m:
        mask = _largest(work.square() / inverse.diagonal().unsqueeze(1), nonzeros)
    width = m * max(1, _COLUMNS // m) if m else _COLUMNS
    for start in range(0, inputs, width):
        stop = min(start + width, inputs)
        if not m:
            score = (work[start:stop] / own[start:stop]).square()
            mask[start:stop] = _largest(score, int(mask[start:stop].sum()))
        dropped = torch.zeros_like(work[start:stop])
        for j in range(start, stop):
            if m and j % m == 0:
                score = (work[j : j + m] / own[j : j + m]).square()
                mask[j : j + m] = False
                mask[j : j + m].scatter_(0, score.topk(n, dim=0).indices, 1)
            lost = dropped[j - start]
            lost.copy_(work[j] / upper[j, j]).masked_fill_(mask[j], 0)
            work[j:stop].addr_(upper[j, j:stop], lost, alpha=-1)
        work[stop:].addmm_(upper[start:stop, stop:].T, dropped, alpha=-1)
    return torch.where(mask, work, 0).T.contiguous()


def _largest(score: Tensor, count: int) -> Tensor:
    """A mask of the ``count`` largest scores."""
    mask = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    mask[score.flatten().topk(count, sorted=False).indices] = True
    return mask.view(score.shape)


def settled(start: Tensor, weight: Tensor, gram: Tensor, places: Tensor | None = None) -> Tensor:
    """The matrix of the least tr (W − Ŵ) G (W − Ŵ)ᵀ with its entries where ``start`` has them.

    It is never worse than ``start``.

    Args:
        start: where it begins, (out, in), float64: in float32 the directions of ten steps are no
            longer conjugate where inputs are correlated, and the error ends 0.1 % higher.
        weight: W, likewise.
        gram: G, (in, in), positive definite.
        places: a mask of where entries may lie, where these are more than those of ``start``.
    """
    here, ease = start != 0 if places is None else places, gram.diagonal()
    best, lost = start.clone(), weight - start
    pull = lost @ gram
    loss = float((pull * lost).sum())
    slope = pull * here
    direction = slope / ease
    size = (slope * direction).sum(1, keepdim=True)
    for _ in range(STEPS):
        reach = (direction @ gram) * here
        curvature = (direction * reach).sum(1, keepdim=True)
        step = torch.where(curvature > 0, size / curvature, 0)
        best.addcmul_(step, direction)
        slope.addcmul_(step, reach, value=-1)
        gained = float((step * size).sum())
        if gained <= ENOUGH * loss:
            break
        loss -= gained
        eased = slope / ease
        before, size = size, (slope * eased).sum(1, keepdim=True)
        direction = eased + torch.where(before > 0, size / before, 0) * direction
    return best
