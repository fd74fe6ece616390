"""The nearest member of a format to a given matrix, and how near it is."""

from __future__ import annotations

import torch

from hwbench.devices._base import Device
from hwbench.errors import UnknownNameError
from hwbench.formats._base import Format
from hwbench.records import Case, Cost, Quantity
from hwbench.workloads._base import DTYPES, Subject, Workload, generator
from hwbench.workloads._data import MATRICES


class Projection(Workload):
    """Project a matrix onto a format; the score is ‖W − Ŵ‖ / ‖W‖ in the Frobenius norm.

    Options: ``matrix`` (power_law or gaussian) and ``seeds``, the number of matrices drawn.
    """

    TIMED = False
    SCORE = Quantity(name="projection_error", unit="")
    OPTIONS = {"matrix": "power_law", "seeds": 1}  # noqa: RUF012 (declared in the base)
    AXES = ()

    def cost(self, case: Case, described: Format) -> Cost | None:
        del case
        return described.cost(0, 4, "forward")  # parameters and bytes at rest; no tokens, no FLOPs

    def unsupported(self, case: Case, described: Format, device: Device) -> str | None:
        del described, device
        if str(self.options(case)["matrix"]) not in MATRICES:
            raise UnknownNameError("matrix", str(self.options(case)["matrix"]), MATRICES)
        return None

    def prepare(self, case: Case, described: Format, device: Device, seed: int) -> Subject:
        make = MATRICES[str(self.options(case)["matrix"])]
        weight = make(case.out_features, case.in_features, generator(device, seed, 4))
        weight = weight.to(DTYPES[case.dtype])

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
