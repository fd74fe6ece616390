"""A scaled sum of two arrays into a third: the other common measure of bandwidth."""

from __future__ import annotations

import torch

from hwbench.devices._base import Device
from hwbench.formats._base import Format
from hwbench.records import ITEM_BYTES, Case, Cost
from hwbench.workloads._base import DTYPES, Subject, Workload, generator

_SCALE = 0.5


class Triad(Workload):
    """a = b + s c over (out_features, in_features) elements, in one pass.

    Bytes count two reads and one write of each element, as STREAM does: what a cache reads of a
    line before it writes it is not counted.
    """

    AXES = ("regime",)

    def cost(self, case: Case, described: Format) -> Cost:
        del described
        elements = case.out_features * case.in_features
        flops = 2 * elements
        return Cost(
            parameters=0,
            stored_bytes=0,
            flops=flops,
            dense_flops=flops,
            compulsory_bytes=3 * elements * ITEM_BYTES[case.dtype],
        )

    def prepare(self, case: Case, described: Format, device: Device, seed: int) -> Subject:
        source = generator(device, seed, 7)
        shape = (case.out_features, case.in_features)
        left = torch.rand(shape, generator=source, device=source.device).to(DTYPES[case.dtype])
        right = torch.rand(shape, generator=source, device=source.device).to(DTYPES[case.dtype])
        target = torch.empty_like(left)
        return Subject(
            step=lambda _: torch.add(left, right, alpha=_SCALE, out=target),
            cost=self.cost(case, described),
            inputs=[left, right, target],
        )
