"""Two thin factors, W = A B: the truncated singular value decomposition.

Kernels: ``torch`` is two plain products; ``mkl`` and ``onednn`` keep both factors packed for the
forward products of a CPU library. In a step, for which nothing is packed, ``onednn`` is two plain
products by oneDNN, in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hwbench.formats import _init, _packing
from hwbench.formats._base import Linear
from hwbench.formats._kernel import Kernel


class _Map(_packing.PackableMap):
    def __init__(self, left: Tensor, right: Tensor, kernel: Kernel) -> None:
        super().__init__(left.shape[0], right.shape[1])
        self.left = nn.Parameter(left)  # (out, rank)
        self.right = nn.Parameter(right)  # (rank, in)
        self.kernel = kernel
        self._packings = (_packing.Packing(), _packing.Packing())

    def chain(self) -> tuple[tuple[Tensor, _packing.Packing], ...]:
        return tuple(zip((self.right, self.left), self._packings, strict=True))

    def to_dense(self) -> Tensor:
        return self.left @ self.right


@dataclass(frozen=True, kw_only=True)
class LowRank(_packing.Packable):
    """W = A B with A of shape (out, rank) and B of shape (rank, in)."""

    PAPER = "Eckart and Young, The approximation of one matrix by another of lower rank, 1936"
    OUTPUTS = "rank"

    rank: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_integer("rank", low=1, high=min(self.out_features, self.in_features))

    def largest_setting(self) -> int:
        return min(self.out_features, self.in_features)

    def parameters(self) -> int:
        return sum(self.stages())

    def stages(self) -> tuple[int, ...]:
        return (self.rank * self.in_features, self.rank * self.out_features)

    def intermediate_width(self) -> int:
        return self.rank

    def random(self, *, dtype: torch.dtype, generator: torch.Generator) -> Linear:
        left = torch.empty(self.out_features, self.rank, device=generator.device)
        right = torch.empty(self.rank, self.in_features, device=generator.device)
        for factor in (left, right):
            factor.normal_(std=_init.spectral_std(*factor.shape), generator=generator)
        return _Map(left.to(dtype), right.to(dtype), self.implementation)

    def rate_multipliers(self) -> dict[str, float]:
        """Inputs of the layer over those of the factor, shared by two factors."""
        return {"right": 0.5, "left": self.in_features / self.rank / 2}

    def project(self, weight: Tensor, *, activations: Tensor | None = None) -> Linear:
        work = _init.working(weight)
        worth = _init.column_weights(work, activations, least=_init.DIVISIBLE)
        left, right = _init.truncated(work * worth, self.rank)
        right = right / worth
        return self.of_factors(*(factor.to(weight.dtype) for factor in (left, right)))

    def of_factors(self, left: Tensor, right: Tensor) -> Linear:
        """The layer W = ``left`` (out, rank) · ``right`` (rank, in)."""
        return _Map(left.contiguous(), right.contiguous(), self.implementation)


class Torch(_packing.Plain, of=LowRank, default=True):
    """Two plain products."""
