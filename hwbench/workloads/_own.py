"""A layer of the user's own: a tensor of a safetensors file, and what the layer sees.

Everything is read as float32, whatever the file stores. Nothing in a file is executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from hwbench.checkpoints import tensors
from hwbench.checkpoints.tensors import Stored
from hwbench.errors import UsageError
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
    """‖lost‖ / ‖exact‖ in the Frobenius norm."""
    return float(torch.linalg.norm(lost) / torch.linalg.norm(exact))


def output_error(lost: Tensor, exact: Tensor, rows: Tensor) -> float:
    """‖(W − Ŵ)X‖ / ‖WX‖ in the Frobenius norm.

    Args:
        lost: W − Ŵ, float64, (out_features, in_features).
        exact: W, likewise.
        rows: Xᵀ, (rows, in_features); it is multiplied in float64.
    """
    sums = torch.zeros(2, dtype=torch.float64)
    for some in rows.split(_ROWS):
        wide = some.double()
        for place, matrix in enumerate((lost, exact)):
            sums[place] += float((wide @ matrix.T).square().sum())
    return float((sums[0] / sums[1]).sqrt())


def _weight(options: Mapping[str, Knob]) -> Stored:
    return _named(str(options["weights"]), str(options["tensor"]))


def _activations(options: Mapping[str, Knob], weight: Stored) -> Stored:
    if name := str(options["activations_tensor"]):
        return _named(str(options["activations"]), name)
    return tensors.activations(Path(str(options["activations"])), weight)


def _named(path: str, name: str) -> Stored:
    """The tensor of exactly that name."""
    return tensors.matrix(Path(path), name)
