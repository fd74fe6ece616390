"""The smallest call there is, one element copied: what any call costs before it does anything."""

from __future__ import annotations

import torch

from hwbench.devices._base import Device
from hwbench.formats._base import Format
from hwbench.records import ITEM_BYTES, Case, Cost
from hwbench.workloads._base import DTYPES, Subject, Workload


class Launch(Workload):
    """Copy one element to another; its time is the floor of every call of one kernel."""

    AXES = ()

    def cost(self, case: Case, described: Format) -> Cost:
        del described
        size = 2 * ITEM_BYTES[case.dtype]
        return Cost(parameters=0, stored_bytes=0, flops=0, dense_flops=0, compulsory_bytes=size)

    def prepare(self, case: Case, described: Format, device: Device, seed: int) -> Subject:
        origin = torch.ones(1, dtype=DTYPES[case.dtype], device=device.torch_device)
        target = torch.zeros_like(origin)
        return Subject(
            step=lambda _: target.copy_(origin),
            cost=self.cost(case, described),
            inputs=[origin, target],
        )
