"""A plain square matrix product: its best rate is the measured compute ceiling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hwbench.devices._base import Step
from hwbench.formats._base import Format
from hwbench.records import ITEM_BYTES, Case, Cost
from hwbench.workloads._arrays import Arrays, Shape


class Matmul(Arrays):
    """C = A B, A of (tokens, in_features), B of (in_features, out_features), C preallocated."""

    AXES = ("tokens", "regime")
    STREAM = 5
    DRAW = staticmethod(torch.randn)

    def cost(self, case: Case, described: Format) -> Cost:
        del described
        rows, inner, columns = case.tokens or 1, case.in_features, case.out_features
        flops = 2 * rows * inner * columns
        moved = ITEM_BYTES[case.dtype] * (rows * inner + inner * columns + rows * columns)
        return Cost(
            parameters=inner * columns,
            stored_bytes=ITEM_BYTES[case.dtype] * inner * columns,
            flops=flops,
            dense_flops=flops,
            compulsory_bytes=moved,
        )

    def shapes(self, case: Case) -> list[Shape]:
        rows, inner, columns = case.tokens or 1, case.in_features, case.out_features
        return [(rows, inner), (inner, columns), (rows, columns)]

    def step(self, arrays: Sequence[Tensor]) -> Step:
        left, right, out = arrays
        return lambda _: torch.mm(left, right, out=out)
