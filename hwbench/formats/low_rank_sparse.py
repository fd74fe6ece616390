"""Two thin factors and a few single entries, W = A B + S.

The low-rank part is applied by two products and the entries by a gather; W is never formed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwbench.formats import _stored
from hwbench.formats._base import Linear, budget, round_down, unreachable
from hwbench.formats._entries import (
    INDEX_BYTES,
    Gather,
    GatheredFormat,
    RowsMap,
    check_index_dtype,
    executed,
    largest,
    random_places,
)
from hwbench.formats._init import column_weights
from hwbench.records import Knob


class _Map(RowsMap):
    def __init__(
        self, spec: LowRankSparse, left: Tensor, right: Tensor, flat: Tensor, values: Tensor
    ) -> None:
        super().__init__(spec.out_features, spec.in_features, flat, values, spec.index_dtype)
        self.kernel, self.gradient = spec.implementation, spec.gradient
        self.left = nn.Parameter(left)  # (out, rank)
        self.right = nn.Parameter(right)  # (rank, in)

    def to_dense(self) -> Tensor:
        return super().to_dense() + self.left @ self.right


@dataclass(frozen=True, kw_only=True)
class LowRankSparse(GatheredFormat):
    """W = A B + S with A of shape (out, rank), B of shape (rank, in) and ``nonzeros`` entries of S.

    A density gives S three entries in a hundred of W, as the paper does, and what the rank leaves
    over. Bytes: those of the factors, and those of S as compressed rows.
    """

    PAPER = "Han et al., SLTrain: a sparse plus low-rank approach for pretraining, 2024"
    OUTPUTS = "factors"

    SHARE: ClassVar[float] = 0.03
    ROUNDS: ClassVar[int] = 100
    LEAST_GAIN: ClassVar[float] = 3e-5  # a round that lowers the error by less is the last
    PROJECTION_TOLERANCE: ClassVar[float] = 0.25

    rank: int
    nonzeros: int
    index_dtype: str = "int32"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_integer("rank", low=1, high=min(self.out_features, self.in_features))
        self.check_integer("nonzeros", low=1, high=self.out_features * self.in_features)
        check_index_dtype(self, self.index_dtype, self.nonzeros)

    @classmethod
    def for_budget(cls, out_features: int, in_features: int, density: float, **knobs: Knob) -> Self:
        multiple = knobs.pop("multiple", 1)
        allowed, side = budget(out_features, in_features, density), out_features + in_features
        entries = max(1, budget(out_features, in_features, cls.SHARE))
        rank = min((allowed - entries) // side, out_features, in_features)
        if rank < 1:
            least = (side + entries) / (out_features * in_features)
            reachable = f"rank 1 and {entries} entries have density {least:.4g}"
            raise unreachable("low_rank_sparse", density, reachable)
        nonzeros = min(allowed - rank * side, out_features * in_features)
        return cls(
            out_features=out_features,
            in_features=in_features,
            rank=round_down(rank, multiple),
            nonzeros=nonzeros,
            **knobs,  # type: ignore[arg-type]
        )

    @classmethod
    def for_stored(
        cls, out_features: int, in_features: int, stored: float, item_bytes: int, **knobs: Knob
    ) -> Self:
        """As for a density: the share of S, then the rank, then entries for what is left over."""
        multiple = knobs.pop("multiple", 1)
        sides = {"out_features": out_features, "in_features": in_features}
        entries = max(1, budget(out_features, in_features, cls.SHARE))
        least = cls(**sides, rank=1, nonzeros=entries, **knobs)  # type: ignore[arg-type]
        spare = _stored.allowed(**sides, stored=stored, item_bytes=item_bytes)
        spare -= least.stored_bytes(item_bytes)
        if spare < 0:
            raise _stored.unreachable(cls, stored, item_bytes, [least])
        side = item_bytes * (out_features + in_features)
        rank = round_down(min(1 + spare // side, *sides.values()), multiple)
        more = (spare - (rank - 1) * side) // (item_bytes + INDEX_BYTES[least.index_dtype])
        nonzeros = min(entries + more, out_features * in_features)
        return replace(least, rank=rank, nonzeros=nonzeros)

    def parameters(self) -> int:
        return sum(self.stages()) + self.nonzeros

    def stages(self) -> tuple[int, ...]:
        """Those of the low-rank part; the entries stand beside it."""
        return (self.rank * self.in_features, self.rank * self.out_features)

    def index_bytes(self) -> int:
        return (self.nonzeros + self.out_features + 1) * INDEX_BYTES[self.index_dtype]

    def gathered_entries(self) -> int:
        """Those of S."""
        return self.nonzeros

    def flops(self, tokens: int, direction: str) -> int:
        return super().flops(tokens, direction) + self._of_entries(tokens, direction)

    def needed_flops(self, tokens: int, direction: str) -> int:
        return super().needed_flops(tokens, direction) + self._of_entries(tokens, direction)

    def _of_entries(self, tokens: int, direction: str) -> int:
        return executed(tokens, self.nonzeros, self.nonzeros, direction)

    def intermediate_width(self) -> int:
        return self.rank

    def random(self, *, dtype: torch.dtype, generator: torch.Generator) -> Linear:
        """A = 0, as the paper starts; B and the entries are U(±1/√in_features)."""
        total, bound = self.out_features * self.in_features, self.in_features**-0.5
        left = torch.zeros(self.out_features, self.rank, device=generator.device)
        right = torch.empty(self.rank, self.in_features, device=generator.device)
        right.uniform_(-bound, bound, generator=generator)
        flat = random_places(total, self.nonzeros, generator)
        values = torch.empty(self.nonzeros, device=generator.device)
        values.uniform_(-bound, bound, generator=generator)
        return _Map(self, left.to(dtype), right.to(dtype), flat, values.to(dtype))

    def project(self, weight: Tensor, *, activations: Tensor | None = None) -> Linear:
        """A local optimum, reached in turns: A B for S, then S for A B, while the error falls.

        S for A B is the best there is; A B for S, after a first decomposition, takes one step of
        subspace iteration, which never raises the error. ``activations`` weigh the columns.
        """
        wide = torch.promote_types(weight.dtype, torch.float32)
        scale = column_weights(weight, activations, least=1e-6)
        target = weight.detach().to(wide) * scale
        left, right, flat = self._alternate(target)
        u, s, vh = torch.linalg.svd(left, full_matrices=False)
        values = (target - left @ right).flatten()[flat] / scale[flat % self.in_features]
        left, right = u * s.sqrt(), s.sqrt()[:, None] * (vh @ right) / scale
        narrow = [tensor.to(weight.dtype).contiguous() for tensor in (left, right, values)]
        return _Map(self, narrow[0], narrow[1], flat, narrow[2])

    def _alternate(self, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(out, rank), (rank, in) and the ascending places of the entries of S."""
        basis = torch.linalg.svd(target, full_matrices=False).Vh[: self.rank].mT
        left, flat, entries, error = self._split(target, target, basis)
        for _ in range(self.ROUNDS):
            rest = target - entries
            moved = torch.linalg.qr(rest.mT @ (rest @ basis)).Q
            split = self._split(target, rest, moved)
            if split[3] >= error * (1 - self.LEAST_GAIN):
                break
            (left, flat, entries, error), basis = split, moved
        return left, basis.mT, flat

    def _split(
        self, target: Tensor, rest: Tensor, basis: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        """A for this Bᵀ, the places and the values of the best S for A B, and what is missed."""
        left = rest @ basis
        gap = (target - left @ basis.mT).flatten()
        flat = largest(gap.abs(), self.nonzeros)
        entries = torch.zeros_like(gap).index_copy(0, flat, gap[flat])
        return left, flat, entries.view(target.shape), float((gap - entries).norm())


class GatherBeside(Gather, of=LowRankSparse):
    """Two products for A B, and a gather for S, to which they are added."""

    def apply(self, layer: _Map, x: Tensor) -> Tensor:
        hidden = functional.linear(x, layer.right)
        return torch.addmm(layer.gather(x), hidden, layer.left.t())

    def copied_width(self, described: LowRankSparse) -> int:
        # The part of y that S gives, before the rest is added, is one copy more.
        return super().copied_width(described) + described.out_features
