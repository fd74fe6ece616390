"""Every output sees the same number of inputs: constant fan-in, stored as two small matrices.

Kernels: ``gather`` sums rows of xᵀ with embedding_bag and has a backward pass of its own, and is
the default, as it runs everywhere; ``native`` sums them in C++ that is compiled for the CPU here,
which turns x and y in cache; ``naive`` gathers the inputs of every output, multiplies and sums, as
the layer is usually written.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hwbench.formats import _native_entries
from hwbench.formats._base import Linear
from hwbench.formats._entries import (
    INDEX_BYTES,
    EntriesKernel,
    EntriesMap,
    GatheredFormat,
    check_index_dtype,
    scores,
)
from hwbench.formats._groups import best_in_groups


class _Map(EntriesMap):
    columns: Tensor  # (out, fan_in)

    def __init__(self, spec: Condensed, values: Tensor, columns: Tensor) -> None:
        super().__init__(spec.out_features, spec.in_features, values)  # (out, fan_in)
        self.kernel, self.gradient = spec.implementation, spec.gradient
        self.register_buffer("columns", columns)

    def starts(self) -> Tensor:
        rows, fan_in = self.columns.shape
        every = torch.arange(rows + 1, dtype=self.columns.dtype, device=self.columns.device)
        return every * fan_in

    def places(self) -> Tensor:
        return self.columns.flatten()


@dataclass(frozen=True, kw_only=True)
class Condensed(GatheredFormat):
    """The ``fan_in`` largest weights of every output, with their columns.

    Bytes: out_features · fan_in · (item + index). Training with ``gather`` also builds, at the
    first backward pass, the same entries sorted by column, as working memory that is not stored.
    """

    PAPER = "Lasby et al., Dynamic sparse training with structured sparsity, 2024"
    OUTPUTS = "placed"

    fan_in: int
    index_dtype: str = "int32"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_integer("fan_in", low=1, high=self.in_features)
        check_index_dtype(self, self.index_dtype, self.parameters())

    def largest_setting(self) -> int:
        return self.in_features

    def parameters(self) -> int:
        return self.out_features * self.fan_in

    def index_bytes(self) -> int:
        return self.parameters() * INDEX_BYTES[self.index_dtype]

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


class Native(_native_entries.Native, of=Condensed):
    """Sums of turned rows of x in C++, block of tokens by block."""


class Naive(EntriesKernel, of=Condensed):
    """The inputs of every output gathered, multiplied and summed, as the layer is often written."""

    name = "naive"
    operators = r"aten::index$"

    def apply(self, layer: _Map, x: Tensor) -> Tensor:
        return (x[:, layer.columns] * layer.values).sum(-1)

    def intermediate_width(self, described: Condensed) -> int:
        return 2 * described.parameters()  # gathered, and multiplied
