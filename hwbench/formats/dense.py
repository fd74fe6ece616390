"""Every weight stored, one matrix product: the yardstick of all formats."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from hwbench.formats import _kernel
from hwbench.formats._full import FullFormat, FullMap


@dataclass(frozen=True, kw_only=True)
class Dense(FullFormat):
    """The full matrix, applied by one matrix product."""


class Torch(_kernel.Torch, of=Dense):
    """The layer as PyTorch has it."""

    adds_bias = True
    autocasts = True

    def apply(self, layer: FullMap, x: Tensor) -> Tensor:
        return functional.linear(x, layer.weight, layer.bias)
