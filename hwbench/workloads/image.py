"""A photograph as a matrix, compressed by a format: what is left of it to see."""

from __future__ import annotations

import torch

from hwbench.devices._base import Device
from hwbench.errors import UnknownNameError
from hwbench.formats._base import Format
from hwbench.quantities import PSNR
from hwbench.records import ITEM_BYTES, Case, Cost
from hwbench.workloads._base import DTYPES, Subject, Workload
from hwbench.workloads._pictures import PICTURES, SIDES, grey, missing, psnr


class Image(Workload):
    """Project a grey photograph onto a format; the score is the PSNR of what is left, in dB.

    Options: ``picture`` (china or flower, of scikit-learn). The shape is cut from its middle.
    """

    SCORE = PSNR
    OPTIONS = {"picture": "china"}  # noqa: RUF012 (declared in the base)
    AXES = ()

    def check(self, case: Case) -> None:
        name = str(self.options(case)["picture"])
        if name not in PICTURES:
            raise UnknownNameError("picture", name, PICTURES)

    def cost(self, case: Case, described: Format) -> Cost | None:
        return described.cost(0, ITEM_BYTES[case.dtype], "forward")  # at rest: no tokens, no FLOPs

    def unsupported(self, case: Case, described: Format, device: Device) -> str | None:
        del device
        name = str(self.options(case)["picture"])
        if reason := missing():
            return reason
        shape = (case.out_features, case.in_features)
        if shape[0] > SIDES[0] or shape[1] > SIDES[1]:
            return (
                f"The picture {name} has {SIDES[0]}×{SIDES[1]} pixels; a shape of "
                f"{shape[0]}×{shape[1]} cannot be cut from it."
            )
        if described.density() >= 1:
            return "It keeps as many values as the picture has pixels; nothing is compressed."
        return None

    def prepare(self, case: Case, described: Format, device: Device, seed: int) -> Subject:
        name = str(self.options(case)["picture"])
        picture = grey(name, case.out_features, case.in_features)
        picture = picture.to(device.torch_device, DTYPES[case.dtype])

        def score() -> float:
            with torch.no_grad():
                return psnr(picture, described.project(picture).to_dense())

        return Subject(
            step=lambda _: described.project(picture),
            score=score,
            score_name=self.SCORE.name,
            inputs=[picture],
        )
