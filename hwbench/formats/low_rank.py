"""Two thin factors, W = A B: the truncated singular value decomposition.

Kernels: ``torch`` is two plain products; ``mkl`` and ``onednn`` keep both factors packed for the
products of a CPU library, forward only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from hwbench.formats import _blocks, _packing
from hwbench.formats._base import Format, Linear, budget, round_down, unreachable
from hwbench.records import Knob


class _Map(Linear):
    def __init__(self, left: Tensor, right: Tensor, kernel: str) -> None:
        super().__init__(left.shape[0], right.shape[1])
        self.left = nn.Parameter(left)  # (out, rank)
        self.right = nn.Parameter(right)  # (rank, in)
        self._packings = (_packing.Packing(kernel), _packing.Packing(kernel))

    def apply_weight(self, x: Tensor) -> Tensor:
        first, second = self._packings
        z = first.product(x, self.right, trusting=self.trusting)
        return second.product(z, self.left, trusting=self.trusting)

    def forget(self) -> None:
        for packing in self._packings:
            packing.clear()

    def to_dense(self) -> Tensor:
        return self.left @ self.right


@dataclass(frozen=True, kw_only=True)
class LowRank(Format):
    """W = A B with A of shape (out, rank) and B of shape (rank, in)."""

    KERNELS = ("torch", *_packing.KERNELS)
    PAPER = "Eckart and Young, The approximation of one matrix by another of lower rank, 1936"

    rank: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_integer("rank", low=1, high=min(self.out_features, self.in_features))

    @classmethod
    def for_budget(cls, out_features: int, in_features: int, density: float, **knobs: Knob) -> Self:
        multiple = knobs.pop("multiple", 1)
        side = out_features + in_features
        rank = min(budget(out_features, in_features, density) // side, out_features, in_features)
        if rank < 1:
            least = side / (out_features * in_features)
            raise unreachable("low_rank", density, f"rank 1 has density {least:.4g}")
        rank = round_down(rank, multiple)
        return cls(out_features=out_features, in_features=in_features, rank=rank, **knobs)  # type: ignore[arg-type]

    def parameters(self) -> int:
        return sum(self.stages())

    def stages(self) -> tuple[int, ...]:
        return (self.rank * self.in_features, self.rank * self.out_features)

    def intermediate_width(self) -> int:
        return self.rank

    def unsupported(self, device: str, dtype: torch.dtype, direction: str) -> str | None:
        return _packing.unsupported(self.kernel, device, dtype, direction)

    def random(self, *, dtype: torch.dtype, generator: torch.Generator) -> Linear:
        left = torch.empty(self.out_features, self.rank, device=generator.device)
        right = torch.empty(self.rank, self.in_features, device=generator.device)
        for factor in (left, right):
            factor.normal_(std=_blocks.spectral_std(*factor.shape), generator=generator)
        return _Map(left.to(dtype), right.to(dtype), self.kernel)

    def rate_multipliers(self) -> dict[str, float]:
        """Inputs of the layer over those of the factor, shared by two factors."""
        return {"right": 0.5, "left": self.in_features / self.rank / 2}

    def project(self, weight: Tensor, *, activations: Tensor | None = None) -> Linear:
        work = _blocks.working(weight)
        worth = _blocks.importance(activations, work)
        left, right = _blocks.truncated(work * worth, self.rank)
        right = right / worth
        return _Map(
            left.to(weight.dtype).contiguous(), right.to(weight.dtype).contiguous(), self.kernel
        )
