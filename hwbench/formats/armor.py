"""Two of every four weights kept between two block-diagonal factors, W = A S B with S of 2:4.

A mixes the outputs of each block and B the inputs, which turns a weight to where dropping every
other entry costs least, for a few values more than 2:4 alone. Projections begin at the 2:4 matrix,
A and B being the identity, and no step raises the error: the result is never worse than that start.
By outputs the start is the 2:4 matrix of SparseGPT, whose columns make up for what is dropped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from hwbench.errors import KnobError
from hwbench.formats import _block_matmul, _gram, _init, _pruned
from hwbench.formats._base import Linear, budget, by_direction, unreachable
from hwbench.formats._entries import EntriesMap, Gather, GatheredFormat
from hwbench.formats._groups import (
    best_in_groups,
    check_groups,
    group_columns,
    pack_pairs,
    unpack_pairs,
)
from hwbench.records import Knob


class _Map(EntriesMap):
    codes: Tensor  # (ceil(out · in / 8),) uint8: each kept value's position among four, two bits

    def __init__(self, spec: Armor, left: Tensor, sparse: tuple[Tensor, Tensor], right: Tensor):
        values, positions = sparse
        super().__init__(spec.out_features, spec.in_features, values)  # (out, in / 2)
        self.kernel, self.gradient = spec.implementation, spec.gradient
        self.left = nn.Parameter(left)  # A: (out / block, block, block)
        self.right = nn.Parameter(right)  # B: (in / block, block, block)
        self.register_buffer("codes", pack_pairs(positions))

    def starts(self) -> Tensor:
        rows, kept = self.values.shape
        return torch.arange(0, rows * kept + 1, kept, dtype=torch.int32, device=self.codes.device)

    def places(self) -> Tensor:
        positions = unpack_pairs(self.codes, self.values.numel()).view(self.out_features, -1, 2)
        return group_columns(positions, 4).int().flatten()

    def to_dense(self) -> Tensor:
        mixed = _across(super().to_dense(), self.right)
        return (self.left @ mixed.unflatten(0, (len(self.left), -1))).flatten(0, 1)


def _across(matrix: Tensor, blocks: Tensor) -> Tensor:
    """(rows, in) times the block-diagonal matrix of (in / side, side, side)."""
    columns = matrix.unflatten(1, (len(blocks), -1)).transpose(0, 1)
    return (columns @ blocks).transpose(0, 1).flatten(1)


@dataclass(frozen=True, kw_only=True)
class Armor(GatheredFormat):
    """W = A S B: S keeps two of four, A and B have square blocks of ``block`` on the diagonal.

    Bytes: the values of all three, and two bits for each that S keeps. Where no block is asked
    for it is the largest common divisor of out and in up to 16; a density takes the largest.
    """

    PAPER = (
        "Liu et al., ARMOR: high-performance semi-structured pruning via adaptive matrix "
        "factorization, 2025, arXiv:2510.05528"
    )
    OUTPUTS = "n_of_m"
    PROJECTION_TOLERANCE: ClassVar[float] = 0.2  # what A and B were is not found again

    USUAL: ClassVar[int] = 16
    ROUNDS: ClassVar[int] = 16
    LEAST_GAIN: ClassVar[float] = 5e-3  # a round that lowers the squared error by less is the last

    block: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_groups(self, 4)
        possible = _blocks(self.out_features, self.in_features)
        if self.block is None:
            usual = max(d for d in possible if d <= max(self.USUAL, possible[0]))
            object.__setattr__(self, "block", usual)
        self.check_divides("block")
        if self.block not in possible:
            raise KnobError(
                f"block={self.block} of armor must be a multiple of 4, as S keeps two of four; "
                f"possible: {', '.join(map(str, possible))}."
            )

    @classmethod
    def for_budget(cls, out_features: int, in_features: int, density: float, **knobs: Knob) -> Self:
        if "multiple" in knobs:
            raise KnobError("armor has no rank that 'multiple' could round.")
        sides: dict[str, Any] = {"out_features": out_features, "in_features": in_features}
        with_knobs = cls(**sides, **knobs)  # type: ignore[arg-type]
        blocks = [knobs.pop("block")] if knobs.get("block") else _blocks(out_features, in_features)
        settings = [cls(**sides, block=block, **knobs) for block in blocks]  # type: ignore[arg-type]
        allowed = budget(out_features, in_features, density)
        within = [f for f in settings if f.parameters() <= allowed]
        if not within:
            least = min(f.density() for f in [*settings, with_knobs])
            raise unreachable(cls.name(), density, f"its smallest blocks have density {least:.4g}")
        return max(within, key=lambda f: f.parameters())

    @property
    def side(self) -> int:
        """Outputs and inputs of a block."""
        return self.block or 1

    def parameters(self) -> int:
        return sum(self.stages())

    def stages(self) -> tuple[int, ...]:
        kept = self.gathered_entries()
        return (self.side * self.in_features, kept, self.side * self.out_features)

    def gathered_entries(self) -> int:
        """The number of entries of S."""
        return self.out_features * self.in_features // 2

    def index_bytes(self) -> int:
        return -(-self.gathered_entries() // 4)

    def intermediate_width(self) -> int:
        return self.in_features + self.out_features

    def intermediate_bytes(self, tokens: int, item_bytes: int, direction: str) -> int:
        """With the columns of S, to which the bits are widened once, and which a call reads."""
        columns = 4 * self.gathered_entries()
        read = by_direction(direction, forward=columns, to_input=columns, to_weight=columns)
        return super().intermediate_bytes(tokens, item_bytes, direction) + read

    def random(self, *, dtype: torch.dtype, generator: torch.Generator) -> Linear:
        """A 2:4 layer: A and B begin as the identity."""
        shape, where = (self.out_features, self.in_features), generator.device
        order = torch.rand(shape, generator=generator, device=where)
        values = torch.empty(shape[0], shape[1] // 2, device=where)
        bound = (shape[1] / 2) ** -0.5
        values.uniform_(-bound, bound, generator=generator)
        sparse = values.to(dtype), best_in_groups(order, 2, 4)
        left, right = (_identity(size, self.side, values).to(dtype) for size in shape)
        return _Map(self, left, sparse, right)

    def project(self, weight: Tensor, *, activations: Tensor | None = None) -> Linear:
        """From the two largest of every four, in turns: the best A, the best B, a better S.

        ``activations`` weigh the columns.
        """
        worth = _init.column_weights(weight, activations, least=_init.DIVISIBLE).square()
        target = _init.working(weight)
        start = _begin(target, target.square() * worth, self.side)
        return self._build(self._fit(target, worth, start), weight.dtype)

    def project_outputs(self, weight: Tensor, activations: Tensor | _gram.Seen) -> Linear:
        """As ``project``, from the 2:4 matrix of SparseGPT, for all of XᵀX."""
        target = weight.detach().double()
        seen = _gram.Seen.of(activations, weight)
        pruned = _pruned.pruned(target, seen.inverse, seen.upper, n_of_m=(2, 4))
        starts = [_begin(pruned, pruned.square(), self.side)]
        gram = seen.gram
        for size in (None, seen.size):
            layer = self.project(target, activations=size)
            assert isinstance(layer, _Map)
            starts.append(_Factors.of(layer))
        fitted = self._fit(target, gram, min(starts, key=lambda each: each.loss(target, gram)))
        layer = self._build(fitted, weight.dtype)
        layer.described = self
        return layer

    def _build(self, factors: _Factors, dtype: torch.dtype) -> _Map:
        values = factors.sparse.gather(1, group_columns(factors.positions, 4))
        left, values, right = (
            part.to(dtype).contiguous() for part in (factors.left, values, factors.right)
        )
        return _Map(self, left, (values, factors.positions), right)

    def _fit(self, target: Tensor, gram: Tensor, start: _Factors) -> _Factors:
        """The best of the rounds from a start, by ‖(W − A S B) G^½‖, and no worse than that."""
        best = now = start
        least = before = start.loss(target, gram)
        for _ in range(self.ROUNDS):
            now = _best_left(target, gram, now)
            now = _best_right(target, gram, now)
            now = _better_sparse(target, gram, now)
            loss = now.loss(target, gram)
            if loss < least:
                best, least = now, loss
            if not loss < before * (1 - self.LEAST_GAIN):
                break
            before = loss
        return best


class Mixed(Gather, of=Armor):
    """A batched product with B, a gather for S, and a batched product with A.

    Not counted: on a CPU a batched product may copy what it gives.
    """

    def apply(self, layer: _Map, x: Tensor) -> Tensor:
        mixed = layer.gather(_block_matmul.block_diagonal(x, layer.right))
        return _block_matmul.block_diagonal(mixed, layer.left)


def _blocks(out_features: int, in_features: int) -> list[int]:
    """The sides that blocks may have: the common divisors that are multiples of 4.

    Raises:
        KnobError: there is none.
    """
    common = math.gcd(out_features, in_features)
    if common % 4:
        raise KnobError(
            f"armor needs square blocks of a multiple of 4, and {out_features} outputs and "
            f"{in_features} inputs have no common divisor that is one."
        )
    return [d for d in range(4, common + 1, 4) if common % d == 0]


# The projection. G is the Gram matrix of the inputs, (in, in), or its diagonal alone, (in,): the
# blocks of columns then fall apart, and all are worked on at once.


def _identity(size: int, side: int, like: Tensor) -> Tensor:
    return torch.eye(side, dtype=like.dtype, device=like.device).repeat(size // side, 1, 1)


class _Factors(NamedTuple):
    left: Tensor  # (out / side, side, side)
    sparse: Tensor  # (out, in), zero where nothing is kept
    positions: Tensor  # (out, in / 4, 2), int64
    right: Tensor  # (in / side, side, side)

    @classmethod
    def of(cls, layer: _Map) -> _Factors:
        """Those of a layer."""
        sparse = EntriesMap.to_dense(layer).detach()
        positions = unpack_pairs(layer.codes, layer.values.numel()).long()
        positions = positions.view(layer.out_features, -1, 2)
        return cls(layer.left.detach(), sparse, positions, layer.right.detach())

    def outer(self, inner: Tensor) -> Tensor:
        """A times a matrix of (out, …)."""
        return (self.left @ inner.unflatten(0, (len(self.left), -1))).flatten(0, 1)

    def missed(self, target: Tensor) -> Tensor:
        """W − A S B."""
        return target - self.outer(_across(self.sparse, self.right))

    def loss(self, target: Tensor, gram: Tensor) -> float:
        """The squared error, as G counts it."""
        missed = self.missed(target)
        return float((_seen(missed, gram) * missed).sum())


def _begin(matrix: Tensor, score: Tensor, side: int) -> _Factors:
    """The 2:4 matrix with the entries of the highest scores, between identities."""
    positions = best_in_groups(score, 2, 4)
    columns = group_columns(positions, 4)
    sparse = torch.zeros_like(matrix).scatter(1, columns, matrix.gather(1, columns))
    left, right = (_identity(size, side, matrix) for size in matrix.shape)
    return _Factors(left, sparse, positions, right)


def _seen(matrix: Tensor, gram: Tensor) -> Tensor:
    """A matrix of (rows, in) times G."""
    return matrix * gram if gram.dim() == 1 else matrix @ gram


def _solve(curvature: Tensor, slope: Tensor) -> Tensor:
    """The step that the slope asks for, for positive semi-definite curvature (…, side, side).

    It is shortened a little, as damping does, so that it exists, and still lowers the error.
    """
    mean = curvature.diagonal(dim1=-2, dim2=-1).mean(-1)
    ridge = 100 * torch.finfo(curvature.dtype).eps * mean
    eye = torch.eye(curvature.shape[-1], dtype=curvature.dtype, device=curvature.device)
    damped = curvature + torch.where(mean > 0, ridge, 1.0)[..., None, None] * eye
    lower, failed = torch.linalg.cholesky_ex(damped)
    step = torch.cholesky_solve(slope, lower)
    return torch.where((failed == 0)[..., None, None], step, 0)


def _best_left(target: Tensor, gram: Tensor, now: _Factors) -> _Factors:
    """The blocks of A, each the least squares solution for its outputs."""
    rows = (len(now.left), -1)
    mixed = _across(now.sparse, now.right)
    weighed = _seen(mixed, gram).unflatten(0, rows).mT
    slope = now.missed(target).unflatten(0, rows) @ weighed
    step = _solve(mixed.unflatten(0, rows) @ weighed, slope.mT)
    return now._replace(left=now.left + step.mT)


def _best_right(target: Tensor, gram: Tensor, now: _Factors) -> _Factors:
    """The blocks of B, each the least squares solution for its inputs, one after the other."""
    count, side, _ = now.right.shape
    mixed = now.outer(now.sparse).unflatten(1, (count, side)).transpose(0, 1)  # (count, out, side)
    curvature, missed = mixed.mT @ mixed, now.missed(target)
    if gram.dim() == 1:  # the weights of the columns cancel
        slope = mixed.mT @ missed.unflatten(1, (count, side)).transpose(0, 1)
        return now._replace(right=now.right + _solve(curvature, slope))
    right, weighed = now.right.clone(), missed @ gram
    for number, columns in enumerate(torch.arange(len(gram), device=gram.device).split(side)):
        own = torch.linalg.cholesky(gram[columns][:, columns])
        slope = torch.cholesky_solve((mixed[number].mT @ weighed[:, columns]).mT, own).mT
        step = _solve(curvature[number], slope)
        right[number] += step
        weighed -= mixed[number] @ (step @ gram[columns])
    return now._replace(right=right)


def _better_sparse(target: Tensor, gram: Tensor, now: _Factors) -> _Factors:
    """S, group by group: for each the two places and values that are best beside the others.

    One row of every block is worked on at a time. Where G is a diagonal, one group of every block
    of columns is.
    """
    (count, side, _), out = now.left.shape, len(target)
    blocks = now.right
    if gram.dim() == 1:
        curvature = (blocks * gram.view(len(blocks), 1, side)) @ blocks.mT
    else:
        whole = torch.block_diag(*blocks)
        curvature = (whole @ gram @ whole.mT).unsqueeze(0)
    parts, width, _ = curvature.shape  # columns that see one another: of a block, or all
    slope = _across(_seen(now.missed(target), gram), blocks.mT).unflatten(0, (count, side))
    order = (1, 2, 0, 3)  # slope, values and places lie as (side, parts, count, width) below
    slope = (now.left.mT @ slope).unflatten(2, (parts, width)).permute(order).contiguous()
    sparse = now.sparse.view(count, side, parts, width).permute(order).contiguous()
    places = sparse.new_empty(side, parts, count, width // 4, dtype=torch.int64)
    steepness = now.left.mT @ now.left  # (count, side, side)
    pairs = _pairs(curvature)
    for row in range(side):
        steep = steepness[:, row, row].clamp_min(torch.finfo(target.dtype).tiny)[:, None]
        before, inner = sparse[row].clone(), slope[row]
        for group in range(width // 4):
            of = slice(4 * group, 4 * group + 4)
            values = sparse[row, ..., of]
            target_values = inner[..., of] / steep + values @ curvature[:, of, of]
            best, values_best = pairs.best(group, target_values)
            inner -= steep * ((values_best - values) @ curvature[:, of])
            sparse[row, ..., of] = values_best
            places[row, ..., group] = best
        moved = (sparse[row] - before) @ curvature
        slope[row + 1 :] -= steepness[:, row + 1 :, row].mT[:, None, :, None] * moved
    back = sparse.permute(2, 0, 1, 3).reshape(out, -1)
    positions = pairs.places[places.permute(2, 0, 1, 3).reshape(out, -1)]
    return now._replace(sparse=back, positions=positions)


class _Pairs(NamedTuple):
    """The pairs of four values that may stay, and the matrices that give their best values."""

    places: Tensor  # (6, 2)
    inverse: Tensor  # (parts, groups, 4, 6 · 4): by a pair the inverse of its curvature, else zeros

    def best(self, group: int, target: Tensor) -> tuple[Tensor, Tensor]:
        """The pair that lowers the error most, (parts, rows), and its values, (parts, rows, 4).

        Args:
            group: which four columns of each part.
            target: (parts, rows, 4), the curvature times the best four values.
        """
        values = (target @ self.inverse[:, group]).unflatten(2, (6, 4))
        best = (values * target.unsqueeze(2)).sum(-1).argmax(-1)
        places = best[..., None, None].expand(*best.shape, 1, 4)
        return best, values.gather(2, places).squeeze(2)


def _pairs(curvature: Tensor) -> _Pairs:
    """The pairs of every group, for the curvature (parts, width, width)."""
    parts, width, _ = curvature.shape
    places = torch.combinations(torch.arange(4, device=curvature.device))
    fours = curvature.unflatten(1, (-1, 4)).unflatten(3, (-1, 4))
    fours = fours.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)  # (parts, groups, 4, 4)
    inverse = curvature.new_zeros(parts, width // 4, 4, 6, 4)
    for number, pair in enumerate(places):
        own = fours[:, :, pair[:, None], pair]
        eye = torch.eye(2, dtype=own.dtype, device=own.device)
        solved = _solve(own, eye.expand_as(own))
        inverse[:, :, pair[:, None], number, pair] = solved
    return _Pairs(places, inverse.flatten(3))
