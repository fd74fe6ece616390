"""A copy of one array to another: its best rate is the measured bandwidth ceiling."""

from __future__ import annotations

import torch

from hwbench.devices._base import Device
from hwbench.formats._base import Format
from hwbench.records import ITEM_BYTES, Case, Cost
from hwbench.workloads._base import DTYPES, Subject, Workload, generator


class Copy(Workload):
    """Copy (out_features, in_features) elements; bytes count one read and one write of each."""

    AXES = ("regime",)

    def cost(self, case: Case, described: Format) -> Cost:
        del described
        size = ITEM_BYTES[case.dtype] * case.out_features * case.in_features
        return Cost(parameters=0, stored_bytes=0, flops=0, dense_flops=0, compulsory_bytes=2 * size)

    def prepare(self, case: Case, described: Format, device: Device, seed: int) -> Subject:
        source = generator(device, seed, 6)
        shape = (case.out_features, case.in_features)
        origin = torch.rand(shape, generator=source, device=source.device).to(DTYPES[case.dtype])
        target = torch.empty_like(origin)
        return Subject(
            step=lambda _: target.copy_(origin),
            cost=self.cost(case, described),
            inputs=[origin, target],
        )
