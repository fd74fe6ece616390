"""How factors begin a training, and what projections share: column weights, SVD, solutions."""

from __future__ import annotations

import torch
from torch import Tensor

from hwbench.errors import UsageError

DIVISIBLE = 1e-3
"""The share of the most that each column is worth at least, where results are divided by it."""


def spectral_std(fan_out: int, fan_in: int) -> float:
    """The standard deviation of a factor: fan_in^-1/2 · min(1, sqrt(fan_out / fan_in))."""
    return min(fan_out, fan_in) ** 0.5 / fan_in


def column_weights(weight: Tensor, activations: Tensor | None, *, least: float = 0.0) -> Tensor:
    """Return the weight of each column: the root mean square of its input, or one.

    One is every column worth, too, where all inputs are zero.

    Args:
        weight: (out_features, in_features).
        activations: (samples, in_features), or None.
        least: no column is worth less than this share of the most; above 0 one may divide by it.

    Returns:
        (in_features,), on the device of the weight, in its dtype, or in float32 if that is wider.

    Raises:
        UsageError: the activations do not have the shape (samples, in_features).
    """
    wide, inputs = torch.promote_types(weight.dtype, torch.float32), weight.shape[1]
    if activations is None:
        return torch.ones(inputs, dtype=wide, device=weight.device)
    if activations.dim() != 2 or activations.shape[1] != inputs:
        raise UsageError(
            f"activations must have the shape (samples, {inputs}), not {tuple(activations.shape)}."
        )
    size = activations.detach().to(weight.device, wide).square().mean(0).sqrt()
    return torch.where(size.max() > 0, size.clamp_min(least * size.max()), 1)


def pad_ones(values: Tensor, size: int) -> Tensor:
    """(n,) with ones behind, so that there are ``size``."""
    return torch.cat([values, values.new_ones(size - values.shape[0])])


def working(weight: Tensor) -> Tensor:
    """The weight in the precision that projections work in: its own, or float32."""
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32))


def truncated(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(…, m, rank) and (…, rank, n), the best factors of (…, m, n), the weight shared evenly."""
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    root = s[..., :rank].sqrt()
    return u[..., :rank] * root.unsqueeze(-2), root.unsqueeze(-1) * vh[..., :rank, :]


def solved(gram: Tensor, target: Tensor) -> Tensor:
    """X with (G + ε I) X = the wanted, for positive semi-definite G."""
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    damping = torch.where(mean > 0, mean * torch.finfo(gram.dtype).eps * 100, 1.0)
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor = torch.linalg.cholesky(gram + damping[..., None, None] * eye)
    return torch.cholesky_solve(target, factor)
