"""A copy of one array to another: its best rate is the measured bandwidth ceiling."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hwbench.devices._base import Step
from hwbench.formats._base import Format
from hwbench.records import ITEM_BYTES, Case, Cost
from hwbench.workloads._arrays import Arrays, Shape


class Copy(Arrays):
    """Copy (out_features, in_features) elements; bytes count one read and one write of each."""

    AXES = ("regime",)
    STREAM = 6

    def cost(self, case: Case, described: Format) -> Cost:
        del described
        size = ITEM_BYTES[case.dtype] * case.out_features * case.in_features
        return Cost(parameters=0, stored_bytes=0, flops=0, dense_flops=0, compulsory_bytes=2 * size)

    def shapes(self, case: Case) -> list[Shape]:
        return 2 * [(case.out_features, case.in_features)]

    def step(self, arrays: Sequence[Tensor]) -> Step:
        origin, target = arrays
        return lambda _: target.copy_(origin)
