"""The shared part of the formats that keep every weight: one matrix of parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hwbench.formats._base import Format, Linear


class FullMap(Linear):
    """The layer as PyTorch has it."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight.shape[0], weight.shape[1])
        self.weight = nn.Parameter(weight)  # (out, in)

    def to_dense(self) -> Tensor:
        return self.weight


@dataclass(frozen=True, kw_only=True)
class FullFormat(Format):
    """All out · in weights; a subclass says how they are applied."""

    OUTPUTS = "exact"

    def smallest_words(self) -> str:
        return "it always keeps every weight (density 1)"

    def parameters(self) -> int:
        return self.out_features * self.in_features

    def build(self, weight: Tensor) -> Linear:
        """The layer with this weight (out, in)."""
        layer = FullMap(weight)
        layer.kernel = self.implementation
        return layer

    def random(self, *, dtype: torch.dtype, generator: torch.Generator) -> Linear:
        bound = self.in_features**-0.5
        weight = torch.empty(
            self.out_features, self.in_features, dtype=dtype, device=generator.device
        )
        return self.build(weight.uniform_(-bound, bound, generator=generator))

    def project(self, weight: Tensor, *, activations: Tensor | None = None) -> Linear:
        del activations  # exact already
        return self.build(weight.detach().clone())
