"""A layer of the user's own: a tensor of a safetensors file, and what the layer sees.

Everything is read as float32, whatever the file stores. Nothing in a file is executed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from hwbench.checkpoints import tensors
from hwbench.checkpoints.tensors import Stored
from hwbench.errors import UsageError
from hwbench.formats._base import Linear
from hwbench.records import Knob

OPTIONS: dict[str, Knob] = {
    "weights": "",
    "tensor": "",
    "weights_hash": "",
    "stored": "",
    "activations": "",
    "activations_tensor": "",
    "activations_hash": "",
}
"""Options of a case that name a tensor, in the order in which they are documented."""
_ROWS = 4096  # rows that are multiplied at once
_DRAWN = 256  # rows of normal entries at which the rounding of inputs is measured


def unreadable(options: Mapping[str, Knob], shape: tuple[int, int]) -> str | None:
    """Why the tensors of a case cannot be read, in words; None where they can."""
    try:
        weight = _weight(options)
        if weight.shape != shape:
            sides = "×".join(map(str, weight.shape))
            return f"{weight} is {sides}, and the case {shape[0]}×{shape[1]}."
        _unchanged(weight, str(options["weights_hash"]))
        if options["activations"]:
            _unchanged(_activations(options, weight), str(options["activations_hash"]))
    except UsageError as error:
        return str(error)
    return None


def _unchanged(stored: Stored, recorded: str) -> None:
    """Raise where a tensor's content differs from the recorded one, or has a NaN or infinity."""
    if (now := tensors.content(stored)) != recorded and recorded:
        raise UsageError(
            f"{stored} has changed: its content was {recorded} when the run was asked for and is "
            f"{now}."
        )


def weight(options: Mapping[str, Knob]) -> Tensor:
    """The matrix of a case, float32, (out_features, in_features), on the CPU."""
    return torch.from_numpy(tensors.array(_weight(options)))


def activations(options: Mapping[str, Knob]) -> Tensor | None:
    """The layer's inputs, float32, (rows, in_features), on the CPU; None where not given."""
    if not options["activations"]:
        return None
    return torch.from_numpy(tensors.array(_activations(options, _weight(options))))


def apart(lost: Tensor, exact: Tensor) -> float:
    """‖lost‖ / ‖exact‖ in the Frobenius norm, as ``relative`` has it."""
    return relative(float(torch.linalg.norm(lost)), float(torch.linalg.norm(exact)))


def relative(lost: float, exact: float) -> float:
    """What is lost of what there was: 0 where nothing is lost, infinite where there was nothing."""
    if lost == 0:
        return 0.0
    return lost / exact if exact != 0 else math.inf


def projection_error(layer: Linear, exact: Tensor, dtype: torch.dtype) -> float:
    """‖W − Ŵ‖ / ‖W‖ in the Frobenius norm.

    Of a kernel that rounds its inputs it is the ``output_error`` at inputs of independent standard
    normal entries: where nothing is rounded, the two are the same in the mean.

    Args:
        layer: the stand-in for W, without a bias.
        exact: W, float64, (out_features, in_features).
        dtype: of the layer and of its inputs.
    """
    if layer.tolerance(dtype) > 0:
        x = torch.randn(_DRAWN, exact.shape[1], generator=torch.Generator().manual_seed(0))
        return output_error(layer, exact, x.to(exact.device, dtype))
    return apart(layer.to_dense().double() - exact, exact)


def output_error(layer: Linear, exact: Tensor, rows: Tensor) -> float:
    """‖WX − Y‖ / ‖WX‖ in the Frobenius norm, where Y is what the layer makes of X.

    Args:
        layer: the stand-in for W, without a bias.
        exact: W, float64, (out_features, in_features).
        rows: Xᵀ, (rows, in_features), in the dtype of the layer.
    """
    sums = torch.zeros(2, dtype=torch.float64)
    for x in rows.split(_ROWS):
        sums[0] += float(missed(layer, exact, x).square().sum())
        sums[1] += float((x.double() @ exact.mT).square().sum())
    return relative(*(float(each.sqrt()) for each in sums))


def missed(layer: Linear, exact: Tensor, x: Tensor) -> Tensor:
    """What the outputs of a layer miss, float64, (rows, out_features).

    They are the products with its dense matrix in float64; but those of its kernel where that
    rounds its inputs, which no matrix shows.

    Args:
        layer: the stand-in for W, without a bias.
        exact: W, float64, (out_features, in_features).
        x: Xᵀ, (rows, in_features), in the dtype of the layer.
    """
    if layer.tolerance(x.dtype) > 0:
        return layer(x).double() - x.double() @ exact.mT
    return x.double() @ (layer.to_dense().double() - exact).mT


def _weight(options: Mapping[str, Knob]) -> Stored:
    return _named(str(options["weights"]), str(options["tensor"]))


def _activations(options: Mapping[str, Knob], weight: Stored) -> Stored:
    if name := str(options["activations_tensor"]):
        return _named(str(options["activations"]), name)
    return tensors.activations(Path(str(options["activations"])), weight)


def _named(path: str, name: str) -> Stored:
    """The tensor of exactly that name."""
    return tensors.matrix(Path(path), name)
