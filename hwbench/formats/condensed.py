"""Every output sees the same number of inputs: constant fan-in, stored as two small matrices.

Kernels: ``gather`` sums rows of xᵀ with embedding_bag and has a backward pass of its own;
``naive`` gathers the inputs of every output, multiplies and sums, as the layer is usually written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from hwbench.formats._base import Linear, budget, round_down, unreachable
from hwbench.formats._entries import (
    INDEX_BYTES,
    EntriesMap,
    GatheredFormat,
    check_index_dtype,
    executed,
    picked_bytes,
    scores,
)
from hwbench.formats._groups import best_in_groups
from hwbench.records import Knob


class _Map(EntriesMap):
    columns: Tensor  # (out, fan_in)

    def __init__(self, spec: Condensed, values: Tensor, columns: Tensor) -> None:
        super().__init__(spec.out_features, spec.in_features, values)  # (out, fan_in)
        self.kernel, self.gradient = spec.kernel, spec.gradient
        self.register_buffer("columns", columns)

    def starts(self) -> Tensor:
        rows, fan_in = self.columns.shape
        every = torch.arange(rows + 1, dtype=self.columns.dtype, device=self.columns.device)
        return every * fan_in

    def places(self) -> Tensor:
        return self.columns.flatten()

    def apply_weight(self, x: Tensor) -> Tensor:
        if self.kernel == "gather":
            return self.gather(x)
        return (x[:, self.columns] * self.values).sum(-1)


@dataclass(frozen=True, kw_only=True)
class Condensed(GatheredFormat):
    """The ``fan_in`` largest weights of every output, with their columns.

    Bytes: out_features · fan_in · (item + index). Training with ``gather`` also builds, at the
    first backward pass, the same entries sorted by column, as working memory that is not stored.
    """

    KERNELS = ("gather", "naive")
    PAPER = "Lasby et al., Dynamic sparse training with structured sparsity, 2024"

    fan_in: int
    index_dtype: str = "int32"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_integer("fan_in", low=1, high=self.in_features)
        check_index_dtype(self, self.index_dtype, self.parameters())

    @classmethod
    def for_budget(cls, out_features: int, in_features: int, density: float, **knobs: Knob) -> Self:
        multiple = knobs.pop("multiple", 1)
        fan_in = budget(out_features, in_features, density) // out_features
        if fan_in < 1:
            raise unreachable("condensed", density, f"fan_in 1 has density {1 / in_features:.4g}")
        fan_in = round_down(fan_in, multiple)
        return cls(out_features=out_features, in_features=in_features, fan_in=fan_in, **knobs)  # type: ignore[arg-type]

    def parameters(self) -> int:
        return self.out_features * self.fan_in

    def index_bytes(self) -> int:
        return self.parameters() * INDEX_BYTES[self.index_dtype]

    def gradient_entries(self) -> int:
        return super().gradient_entries() if self.kernel == "gather" else self.parameters()

    def flops(self, tokens: int, direction: str) -> int:
        return executed(tokens, self.parameters(), self.gradient_entries(), direction)

    def intermediate_width(self) -> int:
        return 0 if self.kernel == "gather" else 2 * self.parameters()  # gathered, and multiplied

    def copied_width(self) -> int:
        return self.in_features + self.out_features if self.kernel == "gather" else 0

    def _intermediate_bytes(self, tokens: int, item_bytes: int, direction: str) -> int:
        moved = super()._intermediate_bytes(tokens, item_bytes, direction)
        kept, computed = self.parameters(), self.gradient_entries()
        return moved + picked_bytes(kept, computed, item_bytes, direction)

    def random(self, *, dtype: torch.dtype, generator: torch.Generator) -> Linear:
        shape = (self.out_features, self.in_features)
        columns = self._best(torch.rand(shape, generator=generator, device=generator.device))
        values = torch.empty(columns.shape, device=generator.device)
        values.uniform_(-(self.fan_in**-0.5), self.fan_in**-0.5, generator=generator)
        return _Map(self, values.to(dtype), columns.to(getattr(torch, self.index_dtype)))

    def project(self, weight: Tensor, *, activations: Tensor | None = None) -> Linear:
        """The optimum: the largest magnitudes of every row."""
        columns = self._best(scores(weight, activations))
        values = weight.detach().gather(1, columns)
        return _Map(self, values, columns.to(getattr(torch, self.index_dtype)))

    def _best(self, score: Tensor) -> Tensor:
        return best_in_groups(score, self.fan_in, self.in_features).flatten(1)
