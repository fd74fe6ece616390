"""Whether a kernel of torch's own runs on the GPU that is here: asked of it, once a process.

Which products of sparse tensors exist there, in which dtypes and with which gradients, changes
from one PyTorch to the next and with the libraries of NVIDIA beneath it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from hwbench.errors import first_line
from hwbench.formats._base import BACKWARD_INPUT, BACKWARD_WEIGHT, FORWARD, Format, Linear

SIDE, TOKENS, DENSITY = 128, 32, 0.5
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Largest relative errors that count as right; in float64 it is 1e-10."""


def tried(what: str, right: Callable[[], bool]) -> str | None:
    """Why ``what`` is of no use here; ``right`` takes a small product and says if it is right."""
    try:
        fine = right()
    except Exception as refused:  # noqa: BLE001  whatever it is, the reader is told
        return f"{what} does not run here: {first_line(refused)}."
    return None if fine else f"{what} computes a wrong product on this device."


def on_cuda() -> bool:
    """Whether there is a GPU that CUDA speaks to."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator is not None and accelerator.type == "cuda"


def refusal(format_: Format, dtype: torch.dtype, direction: str) -> str | None:
    """Why the format's kernel does not run on CUDA in that direction; None where nothing says so.

    Without a GPU nothing is known beyond what the format itself tells.
    """
    if not on_cuda():
        return None
    return _trial(type(format_), format_.kernel, dtype, direction, "cuda")


@cache
def _trial(
    kind: type[Format], kernel: str, dtype: torch.dtype, direction: str, device: str
) -> str | None:
    """Try a small product; return its error in a sentence, or None."""
    try:
        example = kind.from_knobs(SIDE, SIDE, kernel=kernel, density=DENSITY)
        source = torch.Generator(device).manual_seed(0)
        layer = example.random(dtype=dtype, generator=source)
        x, dy = (torch.randn(TOKENS, SIDE, generator=source, device=device) for _ in range(2))
        with warnings.catch_warnings():  # torch says that it has no tuned kernel for the size
            warnings.simplefilter("ignore")
            worst = _error(layer, x.to(dtype), dy.to(dtype), direction)
    except Exception as error:  # noqa: BLE001  whatever it is, the reader is told
        return f"kernel={kernel} of {kind.name()} does not run here: {first_line(error)}."
    if worst <= LIMITS.get(dtype, 1e-10):
        return None
    return f"kernel={kernel} of {kind.name()} is wrong here: its relative error is {worst:.3g}."


def _error(layer: Linear, x: Tensor, dy: Tensor, direction: str) -> float:
    """The largest relative error of the output, and of the gradients of that direction."""
    layer.requires_grad_(direction not in (FORWARD, BACKWARD_INPUT))
    x.requires_grad_(direction not in (FORWARD, BACKWARD_WEIGHT))
    exact, wide = copy.deepcopy(layer).double(), x.detach().double().requires_grad_(x.requires_grad)
    ours, theirs = [layer(x)], [wide @ exact.to_dense().mT]
    inputs = [t for t in (x, *layer.parameters()) if t.requires_grad]
    if inputs:
        parameters = [t for t in (wide, *exact.parameters()) if t.requires_grad]
        ours += torch.autograd.grad(ours[0], inputs, dy)
        theirs += torch.autograd.grad(theirs[0], parameters, dy.double())
    errors = [
        float((a.detach().double() - b.detach()).norm() / b.detach().norm())
        for a, b in zip(ours, theirs, strict=True)
    ]
    return max(errors, key=lambda error: (error != error, error))
