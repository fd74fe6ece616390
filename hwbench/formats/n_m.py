"""N of every M neighbours kept, for any N and M, stored compressed and applied by gathers.

It runs everywhere, which the 2:4 kernels of GPUs do not, and shows what the pattern costs without
them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from hwbench.errors import KnobError
from hwbench.formats._base import FORWARD, Linear, unreachable
from hwbench.formats._block_matmul import needs_grad
from hwbench.formats._entries import (
    EntriesMap,
    Gather,
    GatheredFormat,
    check_index_dtype,
    scores,
)
from hwbench.formats._gather import Pattern
from hwbench.formats._groups import best_in_groups, check_groups, group_columns
from hwbench.records import Knob


class _Map(EntriesMap):
    positions: Tensor  # (out, groups, n): uint8 within the group, or int32 within the row

    def __init__(self, spec: NM, values: Tensor, positions: Tensor) -> None:
        super().__init__(spec.out_features, spec.in_features, values)  # (out, groups · n)
        self.kernel, self.group = spec.implementation, spec.m
        self.gradient = spec.gradient
        if spec.index_dtype == "uint8":
            positions = positions.to(torch.uint8)
        else:
            positions = group_columns(positions, spec.m).view_as(positions).int()
        self.register_buffer("positions", positions)

    def starts(self) -> Tensor:
        rows, width = self.values.shape
        return torch.arange(
            0, rows * width + 1, width, dtype=torch.int32, device=self.values.device
        )

    def places(self) -> Tensor:
        if self.positions.dtype == torch.int32:
            return self.positions.flatten()
        where = self.positions.device  # what is copied there would make every call wait for it
        first = torch.arange(0, self.in_features, self.group, dtype=torch.int32, device=where)
        return (self.positions + first[:, None]).flatten()


@dataclass(frozen=True, kw_only=True)
class NM(GatheredFormat):
    """The ``n`` largest of every ``m`` neighbouring weights of a row.

    Bytes: the values, and one byte each for the position in its group (``index_dtype`` uint8; every
    call widens them to the columns that a gather takes), or four for the column itself (int32).
    Training also builds, at the first backward pass, the same entries sorted by column, as working
    memory that is not stored.
    """

    PAPER = "Zhou et al., Learning N:M fine-grained structured sparse neural networks, 2021"
    OUTPUTS = "n_of_m"

    INDEX_BYTES: ClassVar[dict[str, int]] = {"uint8": 1, "int32": 4}

    n: int
    m: int = 4
    index_dtype: str = "uint8"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_integer("m", low=1, high=256)
        self.check_integer("n", low=1, high=self.m)
        check_groups(self, self.m)
        if self.index_dtype not in self.INDEX_BYTES:
            raise KnobError(
                f"index_dtype of n_m must be uint8 (the position in the group) or int32 (the "
                f"column), not {self.index_dtype!r}."
            )
        check_index_dtype(self, "int32", self.parameters())  # what a gather takes

    @classmethod
    def for_budget(cls, out_features: int, in_features: int, density: float, **knobs: Knob) -> Self:
        if "multiple" in knobs:
            raise KnobError("n_m has no rank that 'multiple' could round.")
        whole = cls(out_features=out_features, in_features=in_features, n=1, **knobs)  # type: ignore[arg-type]
        n = math.floor(density * whole.m + 1e-9)
        if n < 1:
            raise unreachable("n_m", density, f"1 of {whole.m} has density {1 / whole.m:.4g}")
        return cls(out_features=out_features, in_features=in_features, n=n, **knobs)  # type: ignore[arg-type]

    def parameters(self) -> int:
        return self.out_features * self.in_features // self.m * self.n

    def index_bytes(self) -> int:
        return self.parameters() * self.INDEX_BYTES[self.index_dtype]

    def intermediate_bytes(self, tokens: int, item_bytes: int, direction: str) -> int:
        moved = super().intermediate_bytes(tokens, item_bytes, direction)
        if direction == FORWARD and self.index_dtype == "uint8":
            moved += 2 * 4 * self.parameters()  # widened columns, written and read
        return moved

    def random(self, *, dtype: torch.dtype, generator: torch.Generator) -> Linear:
        shape = (self.out_features, self.in_features)
        order = torch.rand(shape, generator=generator, device=generator.device)
        positions = best_in_groups(order, self.n, self.m)
        values = torch.empty(positions.flatten(1).shape, device=generator.device)
        bound = values.shape[1] ** -0.5
        values.uniform_(-bound, bound, generator=generator)
        return _Map(self, values.to(dtype), positions)

    def project(self, weight: Tensor, *, activations: Tensor | None = None) -> Linear:
        """The optimum: the ``n`` largest magnitudes of every group."""
        positions = best_in_groups(scores(weight, activations), self.n, self.m)
        values = weight.detach().gather(1, group_columns(positions, self.m))
        return _Map(self, values, positions)


class Widened(Gather, of=NM):
    """Sums of rows of xᵀ; inference widens the positions to columns in every call."""

    def apply(self, layer: _Map, x: Tensor) -> Tensor:
        if needs_grad(x, layer.values):
            return layer.gather(x)
        return layer.gather(x, Pattern(layer.starts(), layer.places(), layer.in_features))
