"""A dense weight times a mask, multiplied out in every call: the control that cannot be faster.

It says what sparsity costs when nothing exploits it: every byte and FLOP of the dense layer, and
the mask on top.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwbench.formats import _kernel
from hwbench.formats._base import Linear, by_direction
from hwbench.formats._entries import KeptFormat, executed
from hwbench.formats._linear import InnerWeight


class _Map(InnerWeight):
    mask: Tensor  # (out, in) bool

    def __init__(self, weight: Tensor, mask: Tensor, kernel: _kernel.Kernel) -> None:
        super().__init__(*weight.shape)
        self.kernel = kernel
        self.register_parameter("weight", nn.Parameter(weight))  # (out, in)
        self.register_buffer("mask", mask)

    def to_dense(self) -> Tensor:
        return self.inner * self.mask


@dataclass(frozen=True, kw_only=True)
class MaskedDense(KeptFormat):
    """All of W is stored with a mask, a byte an entry, and masked anew in every call."""

    def index_bytes(self) -> int:
        return self.out_features * self.in_features

    def stored_bytes(self, item_bytes: int) -> int:
        return self.out_features * self.in_features * item_bytes + self.index_bytes()

    def flops(self, tokens: int, direction: str) -> int:
        """FLOPs of the dense products; the products with the mask do not depend on the tokens."""
        dense = self.out_features * self.in_features
        return executed(tokens, dense, dense, direction)

    def compulsory_bytes(self, tokens: int, item_bytes: int, direction: str) -> int:
        unread = self.out_features * self.in_features - self.parameters()  # dense, not only kept
        passes = by_direction(direction, forward=1, to_input=1, to_weight=1)
        moved = super().compulsory_bytes(tokens, item_bytes, direction)
        return moved + passes * item_bytes * unread

    def intermediate_bytes(self, tokens: int, item_bytes: int, direction: str) -> int:
        """The masked weight, and the unmasked gradient, are written once and read once."""
        formed = by_direction(direction, forward=1, to_input=0, to_weight=1)
        moved = super().intermediate_bytes(tokens, item_bytes, direction)
        return moved + 2 * item_bytes * self.out_features * self.in_features * formed

    def build(self, flat: Tensor, weight: Tensor) -> Linear:
        mask = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
        mask[flat] = True
        copy = weight.clone(memory_format=torch.contiguous_format)
        return _Map(copy, mask.view(weight.shape), self.implementation)


class Torch(_kernel.Torch, of=MaskedDense):
    """The masked weight, and one matrix product with it."""

    materialises = True

    def apply(self, layer: _Map, x: Tensor) -> Tensor:
        return functional.linear(x, layer.to_dense())
