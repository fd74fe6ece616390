"""The nearest member of a format to a given matrix, and how near it is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hwbench.devices._base import Device
from hwbench.errors import UnknownNameError
from hwbench.formats._base import Format
from hwbench.quantities import PROJECTION_ERROR
from hwbench.records import Case, Cost
from hwbench.workloads import _trained
from hwbench.workloads._base import DTYPES, Subject, Workload, generator

TRAINED = "trained"
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

    Options: ``matrix`` (gaussian, power_law, or trained: a linear layer of all-MiniLM-L6-v2 that
    has the shape) and ``seeds``, the number of matrices drawn.
    """

    SCORE = PROJECTION_ERROR
    OPTIONS = {"matrix": "power_law", "seeds": 1}  # noqa: RUF012 (declared in the base)
    AXES = ()

    def check(self, case: Case) -> None:
        matrix = str(self.options(case)["matrix"])
        if matrix not in (*MATRICES, TRAINED):
            raise UnknownNameError("matrix", matrix, [*MATRICES, TRAINED])

    def cost(self, case: Case, described: Format) -> Cost | None:
        del case
        return described.cost(0, 4, "forward")  # parameters and bytes at rest; no tokens, no FLOPs

    def unsupported(self, case: Case, described: Format, device: Device) -> str | None:
        del described, device
        return _no_weights(case) if self.options(case)["matrix"] == TRAINED else None

    def prepare(self, case: Case, described: Format, device: Device, seed: int) -> Subject:
        weight = self._matrix(case, device, seed).to(DTYPES[case.dtype])

        def score() -> float:
            with torch.no_grad():
                nearest = described.project(weight).to_dense().double()
                exact = weight.double()
                return float(torch.linalg.norm(nearest - exact) / torch.linalg.norm(exact))

        return Subject(
            step=lambda _: described.project(weight),
            score=score,
            score_name=self.SCORE.name,
            inputs=[weight],
        )

    def _matrix(self, case: Case, device: Device, seed: int) -> Tensor:
        matrix = str(self.options(case)["matrix"])
        if matrix == TRAINED:
            found = _trained.weight(case.out_features, case.in_features, seed)
            return found.to(device.torch_device)
        return MATRICES[matrix](case.out_features, case.in_features, generator(device, seed, 4))


def _no_weights(case: Case) -> str | None:
    """Why there are no trained weights of the case's shape, in words."""
    if reason := _trained.missing():
        return reason
    shapes = _trained.shapes()
    if (case.out_features, case.in_features) in shapes:
        return None
    had = ", ".join(f"{rows}×{columns}" for rows, columns in shapes)
    return f"all-MiniLM-L6-v2 has no layer of {case.out_features}×{case.in_features}; it has {had}."
