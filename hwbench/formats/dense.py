"""Every weight stored, one matrix product: the yardstick of all formats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwbench.errors import KnobError
from hwbench.formats._base import Format, Linear, unreachable
from hwbench.records import Knob


class _Map(Linear):
    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(weight.shape[0], weight.shape[1], bias)
        self.weight = nn.Parameter(weight)  # (out, in)

    def apply_weight(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight)

    def to_dense(self) -> Tensor:
        return self.weight


@dataclass(frozen=True, kw_only=True)
class Dense(Format):
    """The full matrix, applied by one matrix product."""

    @classmethod
    def for_budget(cls, out_features: int, in_features: int, density: float, **knobs: Knob) -> Self:
        if density < 1:
            raise unreachable("dense", density, "it always keeps every weight (density 1)")
        if "multiple" in knobs:
            raise KnobError("dense has no rank that 'multiple' could round.")
        return cls(out_features=out_features, in_features=in_features, **knobs)  # type: ignore[arg-type]

    def parameters(self) -> int:
        return self.out_features * self.in_features

    def random(self, *, dtype: torch.dtype, generator: torch.Generator) -> Linear:
        bound = self.in_features**-0.5
        weight = torch.empty(
            self.out_features, self.in_features, dtype=dtype, device=generator.device
        )
        return _Map(weight.uniform_(-bound, bound, generator=generator))

    def project(self, weight: Tensor, *, activations: Tensor | None = None) -> Linear:
        del activations  # exact already
        return _Map(weight.detach().clone())
