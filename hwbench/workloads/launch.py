"""The smallest call there is, one element added to: what any call costs before it does anything."""

from __future__ import annotations

import torch

from hwbench.devices._base import Device
from hwbench.formats._base import Format
from hwbench.records import ITEM_BYTES, Case, Cost
from hwbench.workloads._base import DTYPES, Subject, Workload


class Launch(Workload):
    """Add to one element; its time is the floor of every call of one kernel.

    It is no copy: on a GPU torch makes that a transfer of memory, which is not launched as kernels
    are.
    """

    AXES = ()

    def cost(self, case: Case, described: Format) -> Cost:
        del described
        size = 2 * ITEM_BYTES[case.dtype]
        return Cost(parameters=0, stored_bytes=0, flops=0, dense_flops=0, compulsory_bytes=size)

    def prepare(self, case: Case, described: Format, device: Device, seed: int) -> Subject:
        element = torch.zeros(1, dtype=DTYPES[case.dtype], device=device.torch_device)
        return Subject(
            step=lambda _: element.add_(1), cost=self.cost(case, described), inputs=[element]
        )
