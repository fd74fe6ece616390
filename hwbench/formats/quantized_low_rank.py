"""Codes of few bits and two thin factors beside them, W = Q + A B.

The factors take up what the codes lose most of: the few directions in which rounding errs, or in
which weights are large. They have gradients and can be trained while the codes stay, as in QLoRA.
Kernels are those of ``quantized`` for Q; A and B are two plain products. ``stored`` decides the
rank, for the type and the group that are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwbench.errors import KnobError
from hwbench.formats import _gram, _init, _stored
from hwbench.formats._base import (
    FORWARD,
    Linear,
    by_direction,
    round_down,
    unreachable,
)
from hwbench.formats._coded import CodedFormat, CodedMap
from hwbench.records import Knob


class _Map(CodedMap):
    def __init__(
        self, spec: QuantizedLowRank, coded: tuple[Tensor, Tensor, Tensor], *factors: Tensor
    ) -> None:
        super().__init__(spec, *coded)
        self.left, self.right = map(nn.Parameter, factors)  # (out, rank), (rank, in)

    def apply_weight(self, x: Tensor) -> Tensor:
        z = functional.linear(x, self.right)
        return torch.addmm(super().apply_weight(x), z, self.left.t())

    def to_dense(self) -> Tensor:
        return self.coded_dense() + self.left @ self.right


@dataclass(frozen=True, kw_only=True)
class QuantizedLowRank(CodedFormat):
    """W = Q + A B with Q of codes, A of shape (out, rank) and B of shape (rank, in).

    Bytes: those of ``quantized``, and A and B in the layer's dtype. The rank is 32 where none is
    asked for, or less on a small layer.
    """

    PAPER = (
        "Li et al., SVDQuant: absorbing outliers by low-rank components for 4-bit diffusion "
        "models, 2024, arXiv:2411.05007"
    )
    PROJECTION_TOLERANCE: ClassVar[float] = 0.2  # rounding in turns may not find the codes again

    ROUNDS: ClassVar[int] = 10
    LEAST_GAIN: ClassVar[float] = 1e-3  # a round that lowers the error by less is the last
    USUAL_TYPE: ClassVar[str] = "int4"

    rank: int | None = None

    def __post_init__(self) -> None:
        smaller = min(self.out_features, self.in_features)
        if self.rank is None:
            object.__setattr__(self, "rank", max(1, min(32, smaller // 4)))
        super().__post_init__()
        self.check_integer("rank", low=1, high=smaller)

    @classmethod
    def for_budget(cls, out_features: int, in_features: int, density: float, **knobs: Knob) -> Self:
        round_down(1, knobs.pop("multiple", 1))
        least = cls(out_features=out_features, in_features=in_features, **{**knobs, "rank": 1})  # type: ignore[arg-type]
        raise unreachable(
            cls.name(), density, f"with a code for every weight its density is above 1; at rank 1 "
            f"it is {least.density():.4g}",
        )  # fmt: skip

    @classmethod
    def for_stored(
        cls, out_features: int, in_features: int, stored: float, item_bytes: int, **knobs: Knob
    ) -> Self:
        """The highest rank that fits, of the type and the group that are given or usual."""
        multiple = knobs.pop("multiple", 1)
        if "rank" in knobs:
            raise KnobError(f"Give {cls.name()} either stored bytes or rank, not both.")
        least = cls(out_features=out_features, in_features=in_features, rank=1, **knobs)  # type: ignore[arg-type]
        spare = _stored.allowed(out_features, in_features, stored, item_bytes)
        spare -= least.stored_bytes(item_bytes)
        if spare < 0:
            raise _stored.unreachable(cls, stored, item_bytes, [least])
        more = spare // (item_bytes * (out_features + in_features))
        rank = min(1 + more, out_features, in_features)
        return replace(least, rank=round_down(rank, multiple))

    def parameters(self) -> int:
        return super().parameters() + sum(self._factors())

    def _factors(self) -> tuple[int, int]:
        rank = self.rank or 0
        return rank * self.in_features, rank * self.out_features

    def stages(self) -> tuple[int, ...]:
        """Those of the factors; the codes stand beside them."""
        return self._factors()

    def stored_bytes(self, item_bytes: int) -> int:
        return super().stored_bytes(item_bytes) + item_bytes * sum(self._factors())

    def intermediate_width(self) -> int:
        return self.rank or 0

    def flops(self, tokens: int, direction: str) -> int:
        whole = 2 * tokens * self.out_features * self.in_features
        codes = by_direction(direction, forward=whole, to_input=whole, to_weight=0)
        return super().flops(tokens, direction) + codes

    def needed_flops(self, tokens: int, direction: str) -> int:
        return self.flops(tokens, direction)

    def intermediate_bytes(self, tokens: int, item_bytes: int, direction: str) -> int:
        between, y = 2 * tokens * (self.rank or 0), 2 * tokens * self.out_features
        moved = by_direction(
            direction,
            forward=between + y,
            to_input=between + y,
            to_weight=2 * between,
            backward=2 * between + y,
        )
        return super().intermediate_bytes(tokens, item_bytes, direction) + item_bytes * moved

    def unsupported(self, device: str, dtype: torch.dtype, direction: str) -> str | None:
        """As for codes alone, but with a step, which trains the factors."""
        del direction
        return super().unsupported(device, dtype, FORWARD)

    def random(self, *, dtype: torch.dtype, generator: torch.Generator) -> Linear:
        """Codes of U(±1/√in), A = 0 and B of the same numbers, as adapters begin."""
        bound, rank = self.in_features**-0.5, self.rank or 0
        shapes = (self.out_features, self.in_features), (rank, self.in_features)
        weight, right = (
            torch.empty(shape, device=generator.device).uniform_(-bound, bound, generator=generator)
            for shape in shapes
        )
        left = torch.zeros(self.out_features, rank, device=generator.device)
        coded = self.codes_of(weight.to(dtype), dtype, None)
        return _Map(self, coded, left.to(dtype), right.to(dtype))

    def project(self, weight: Tensor, *, activations: Tensor | None = None) -> Linear:
        """In turns: the codes of W − A B, and the best A B for W − Q, while the error falls.

        The first turn is that of ``quantized``, so that the error is never above its own.
        ``activations`` weigh the error by their Gram matrix, for which A B is the best there is.
        """
        dtype, target = weight.dtype, weight.detach().double()
        seen = None if activations is None else _gram.Seen.of(activations.detach(), weight)
        whitening = seen.lower if seen is not None and bool(seen.rows.any()) else None
        low, best, error = torch.zeros_like(target), None, float("inf")
        for _ in range(self.ROUNDS):
            coded = self.codes_of((target - low).to(_wide(dtype)), dtype, seen)
            kept = CodedMap(self, *coded).coded_dense().double()
            left, right = _best(target - kept, self.rank or 0, whitening)
            left, right = left.to(dtype), right.to(dtype)
            low = left.double() @ right.double()
            found = float(_weighed(target - kept - low, whitening).norm())
            if best is None or found < error:
                best = (coded, left.contiguous(), right.contiguous())
            if not found < error * (1 - self.LEAST_GAIN):
                break
            error = found
        assert best is not None
        return _Map(self, *best)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _weighed(gap: Tensor, whitening: Tensor | None) -> Tensor:
    return gap if whitening is None else gap @ whitening


def _best(gap: Tensor, rank: int, whitening: Tensor | None) -> tuple[Tensor, Tensor]:
    """A and B whose product is nearest to ``gap``, as the weighed error counts it."""
    if whitening is None:
        return _init.truncated(gap, rank)
    return _gram.even(*_gram.of_rank(gap @ whitening, whitening, rank))
