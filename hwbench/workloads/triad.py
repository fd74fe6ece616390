"""A scaled sum of two arrays into a third: the other common measure of bandwidth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hwbench.devices._base import Step
from hwbench.formats._base import Format
from hwbench.records import ITEM_BYTES, Case, Cost
from hwbench.workloads._arrays import Arrays, Shape

_SCALE = 0.5


class Triad(Arrays):
    """a = b + s c over (out_features, in_features) elements, in one pass.

    Bytes count two reads and one write of each element, as STREAM does: what a cache reads of a
    line before it writes it is not counted.
    """

    AXES = ("regime",)
    STREAM = 7

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

    def shapes(self, case: Case) -> list[Shape]:
        return 3 * [(case.out_features, case.in_features)]

    def step(self, arrays: Sequence[Tensor]) -> Step:
        left, right, target = arrays
        return lambda _: torch.add(left, right, alpha=_SCALE, out=target)
