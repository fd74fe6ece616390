"""A plain square matrix product: its best rate is the measured compute ceiling."""

from __future__ import annotations

import torch

from hwbench.devices._base import Device
from hwbench.formats._base import Format
from hwbench.records import ITEM_BYTES, Case, Cost
from hwbench.workloads._base import DTYPES, Subject, Workload, generator


class Matmul(Workload):
    """C = A B, A of (tokens, in_features), B of (in_features, out_features), C preallocated."""

    AXES = ("tokens", "regime")

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

    def prepare(self, case: Case, described: Format, device: Device, seed: int) -> Subject:
        source, dtype = generator(device, seed, 5), DTYPES[case.dtype]
        rows, inner, columns = case.tokens or 1, case.in_features, case.out_features
        left = torch.randn(rows, inner, generator=source, device=source.device).to(dtype)
        right = torch.randn(inner, columns, generator=source, device=source.device).to(dtype)
        out = torch.empty(rows, columns, dtype=dtype, device=source.device)
        return Subject(
            step=lambda _: torch.mm(left, right, out=out),
            cost=self.cost(case, described),
            inputs=[left, right, out],
        )
