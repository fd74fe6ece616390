"""The nearest member of a format to a given matrix, and how near it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from hwbench.devices._base import Device
from hwbench.errors import SuiteError, UnknownNameError
from hwbench.formats._base import Format
from hwbench.quantities import OUTPUT_ERROR, PROJECTION_ERROR, Quantity
from hwbench.records import Case, Cost
from hwbench.workloads import _own, _packaged, _trained
from hwbench.workloads._base import (
    DTYPES,
    MANY,
    NONE,
    WEIGHTINGS,
    Subject,
    Workload,
    blind,
    generator,
    project_seeing,
)

TRAINED, PACKAGED, FILE = "trained", "packaged", "file"
_STAND_IN = "power_law"  # where nothing is packaged
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


class Projection(Workload):
    """Project a matrix onto a format; the score is ‖W − Ŵ‖ / ‖W‖ in the Frobenius norm.

    Options: ``matrix`` (gaussian, power_law, trained: a linear layer of all-MiniLM-L6-v2 that has
    the shape, packaged: ``layers`` of them, or file: the tensor ``tensor`` of the safetensors file
    ``weights``) and ``seeds``, the number of matrices drawn.

    Of packaged layers, spread over depth and kinds, the score is the ``output_error``,
    ‖(W − Ŵ)X‖ / ‖WX‖ over the tokens of the held-out sentences, a value each; the projection errors
    stand beside it. They are measured once and kept. Where the package is not installed a power-law
    matrix stands in, and the score is its projection error.

    A tensor of a file may have ``activations``, a file of rows × in_features with
    ``activations_tensor``. The score is then ``output_error``, ‖(W − Ŵ)X‖ / ‖WX‖ over the second
    half of the rows, and the projection error stands beside it. With ``weighting`` (none,
    activations or gram) the projection sees the first half, as in ``compress``: activations weigh
    the columns, gram takes all of XᵀX.

    A kernel that rounds its inputs loses more than its matrix shows: the outputs of the layer
    itself are scored then, for the projection error at 256 inputs of normal entries.
    ``weights_hash`` and ``activations_hash`` say what the tensors held when the run was asked for.
    """

    SCORE = PROJECTION_ERROR
    QUANTITIES = (PROJECTION_ERROR,)
    OPTIONS = {"matrix": "power_law", "seeds": 1, "layers": 3, "weighting": "none", **_own.OPTIONS}  # noqa: RUF012 (declared in the base)
    LIMITS = {"layers": (1, MANY)}  # noqa: RUF012 (declared in the base)
    AXES = ()

    def check(self, case: Case) -> None:
        options = self.options(case)
        matrix, weighting = str(options["matrix"]), str(options["weighting"])
        allowed = [*MATRICES, TRAINED, PACKAGED, FILE]
        if matrix not in allowed:
            raise UnknownNameError("matrix", matrix, allowed)
        if weighting not in WEIGHTINGS:
            raise UnknownNameError("weighting", weighting, WEIGHTINGS)
        if matrix == FILE and not (options["weights"] and options["tensor"]):
            raise SuiteError("matrix = 'file' needs weights, a file, and tensor, a name in it.")
        if matrix != FILE and any(options[name] for name in _own.OPTIONS):
            raise SuiteError(f"{', '.join(_own.OPTIONS)} are options of matrix = 'file'.")
        if matrix in (FILE, PACKAGED) and options["seeds"] != 1:
            raise SuiteError(f"matrix = {matrix!r} draws nothing: seeds must be 1.")
        if weighting != NONE and matrix != PACKAGED and not options["activations"]:
            raise SuiteError(f"weighting = {weighting!r} needs activations, a file of them.")

    def quantity(self, case: Case) -> Quantity:
        options = self.options(case)
        packaged = options["matrix"] == PACKAGED and not _packaged.missing()
        return OUTPUT_ERROR if packaged or options["activations"] else PROJECTION_ERROR

    def cost(self, case: Case, described: Format) -> Cost | None:
        del case
        return described.cost(0, 4, "forward")  # parameters and bytes at rest; no tokens, no FLOPs

    def unsupported(self, case: Case, described: Format, device: Device) -> str | None:
        del device
        options = self.options(case)
        if reason := blind(described, str(options["weighting"])):
            return reason
        if options["matrix"] == FILE:
            return _own.unreadable(options, (case.out_features, case.in_features))
        packaged = options["matrix"] == PACKAGED and not _packaged.missing()
        if packaged or options["matrix"] == TRAINED:
            return _no_weights(case, int(options["layers"]) if packaged else 1)
        return None

    def prepare(self, case: Case, described: Format, device: Device, seed: int) -> Subject:
        options = self.options(case)
        if options["matrix"] == PACKAGED and not _packaged.missing():
            return self._packaged(case, described, device)
        weight = self._matrix(case, device, seed).to(DTYPES[case.dtype])
        rows = _own.activations(options)
        if rows is not None:
            rows = rows.to(device.torch_device)
        inputs = rows[: len(rows) // 2] if rows is not None else None
        weighting = str(options["weighting"])
        project = partial(project_seeing, described, weight, inputs, weighting)
        subject = Subject(
            step=lambda _: project(),
            score_name=self.quantity(case).name,
            inputs=[weight],
        )

        def score() -> float:
            with torch.no_grad():
                exact = weight.double()
                layer = project()
                error = _own.projection_error(layer, exact, weight.dtype)
                if rows is None:
                    return error
                subject.beside[PROJECTION_ERROR.name] = error
                return _own.output_error(layer, exact, rows[len(rows) // 2 :].to(weight.dtype))

        subject.score = score
        return subject

    def _packaged(self, case: Case, described: Format, device: Device) -> Subject:
        options = self.options(case)
        count, weighting = int(options["layers"]), str(options["weighting"])
        names = _packaged.chosen(case.out_features, case.in_features, count)
        subject = Subject(step=lambda _: None, score_name=OUTPUT_ERROR.name)

        def score() -> list[float]:
            with torch.no_grad():
                results = _packaged.scores(
                    described, names, weighting, device.torch_device, DTYPES[case.dtype]
                )
            subject.beside[PROJECTION_ERROR.name] = results[PROJECTION_ERROR.name]
            subject.score_seconds = sum(results["seconds"])
            return results[OUTPUT_ERROR.name]

        subject.score = score
        return subject

    def _matrix(self, case: Case, device: Device, seed: int) -> Tensor:
        options = self.options(case)
        matrix = str(options["matrix"])
        if matrix == PACKAGED:
            matrix = _STAND_IN
        if matrix == FILE:
            return _own.weight(options).to(device.torch_device)
        if matrix == TRAINED:
            weight = _trained.weight(case.out_features, case.in_features, seed)
            return weight.to(device.torch_device)
        return MATRICES[matrix](case.out_features, case.in_features, generator(device, seed, 4))


def _no_weights(case: Case, layers: int) -> str | None:
    """Why there are not so many trained weights of the case's shape, in words."""
    if reason := _trained.missing():
        return reason
    shapes = _trained.shapes()
    if count := len(_packaged.chosen(case.out_features, case.in_features, layers)):
        few = f"all-MiniLM-L6-v2 has {count} layers of {case.out_features}×{case.in_features}"
        return f"{few}; {layers} are asked for." if count < layers else None
    had = ", ".join(f"{rows}×{columns}" for rows, columns in shapes)
    return f"all-MiniLM-L6-v2 has no layer of {case.out_features}×{case.in_features}; it has {had}."
