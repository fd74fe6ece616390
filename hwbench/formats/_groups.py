"""The shared part of the formats with a pattern in every group of columns: choice and bits."""

from __future__ import annotations

import torch
from torch import Tensor

from hwbench.errors import KnobError
from hwbench.formats._base import Format


def check_groups(format_: Format, size: int) -> None:
    """Demand that groups of ``size`` columns fill the rows.

    Raises:
        KnobError: they do not; the message names the nearest widths that would fit.
    """
    below = format_.in_features // size * size
    if below != format_.in_features:
        fit = " or ".join(str(n) for n in (below, below + size) if n)
        raise KnobError(
            f"{format_.name()} works on groups of {size} columns, and {format_.in_features} "
            f"in_features are no multiple of {size}; {fit} would fit."
        )


def best_in_groups(score: Tensor, keep: int, size: int) -> Tensor:
    """The ascending positions of the ``keep`` largest scores of every group of ``size`` columns.

    Args:
        score: (rows, columns); of equal scores the first are kept.
        keep: how many of each group.
        size: columns of a group.

    Returns:
        (rows, columns / size, keep), positions within the group, int64.
    """
    grouped = score.unflatten(1, (-1, size))
    return grouped.argsort(dim=2, descending=True, stable=True)[..., :keep].sort(dim=2).values


def group_columns(positions: Tensor, size: int) -> Tensor:
    """(rows, groups · keep), the columns that positions within groups stand for, in int64."""
    first = torch.arange(positions.shape[1], device=positions.device) * size
    return (positions.long() + first[:, None]).flatten(1)


def pack_pairs(codes: Tensor) -> Tensor:
    """Codes of two bits, four to a byte, the first in the lowest bits: (ceil(count / 4),) uint8."""
    flat = torch.nn.functional.pad(codes.flatten().to(torch.uint8), (0, -codes.numel() % 4))
    a, b, c, d = flat.view(-1, 4).unbind(1)
    return a | b << 2 | c << 4 | d << 6


def unpack_pairs(packed: Tensor, count: int) -> Tensor:
    """The first ``count`` codes of ``pack_pairs``, as (count,) uint8."""
    codes = torch.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)], dim=1)
    return codes.flatten()[:count]
