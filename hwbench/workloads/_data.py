"""Matrices of known spectrum: made, not downloaded."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

POWER = 1.0
"""Exponent of the power-law spectrum: singular value i is i^-POWER."""


def gaussian(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Independent standard normal entries, float32, of shape (rows, columns)."""
    return torch.randn(rows, columns, generator=generator, device=generator.device)


def power_law(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """A matrix U diag(i^-1) Vᵀ with U and V random orthonormal; float32, (rows, columns)."""
    side = min(rows, columns)
    left, right = (torch.linalg.qr(gaussian(long, side, generator)).Q for long in (rows, columns))
    steps = torch.arange(1, side + 1, device=generator.device, dtype=torch.float32)
    return (left * steps**-POWER) @ right.T


MATRICES: dict[str, Callable[[int, int, torch.Generator], Tensor]] = {
    "gaussian": gaussian,
    "power_law": power_law,
}
