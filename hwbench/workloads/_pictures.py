"""Photographs as matrices: the two that scikit-learn ships, in grey. Nothing is downloaded."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hwbench.checkpoints import no_package

PICTURES = ("china", "flower")
SIDES = (427, 640)
"""Rows and columns of both photographs."""

_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601


def missing() -> str | None:
    """Why the photographs cannot be read, in words; None where they can."""
    return no_package("sklearn") or no_package("PIL")


def grey(name: str, rows: int, columns: int) -> Tensor:
    """The middle (rows, columns) of one of PICTURES, float32: −½ is black, ½ white.

    Zero is the grey between them, so that what a format leaves out is neither dark nor bright.

    Raises:
        ValueError: the photograph is smaller than that.
    """
    from sklearn.datasets import load_sample_image

    if rows > SIDES[0] or columns > SIDES[1]:
        raise ValueError(f"{rows}×{columns} does not fit into {SIDES[0]}×{SIDES[1]} pixels.")
    colours = torch.tensor(load_sample_image(f"{name}.jpg"), dtype=torch.float32) / 255
    picture = colours @ torch.tensor(_LUMA) - 0.5
    top, left = (SIDES[0] - rows) // 2, (SIDES[1] - columns) // 2
    return picture[top : top + rows, left : left + columns].contiguous()


def psnr(exact: Tensor, near: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(1 / mean squared error), for a peak of 1.

    Nothing is clipped: what is darker than black counts as it is. It is infinite where nothing is
    lost.
    """
    error = float((near.double() - exact.double()).square().mean())
    return math.inf if error == 0 else -10 * math.log10(error)
