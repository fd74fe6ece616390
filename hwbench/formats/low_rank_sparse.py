"""Two thin factors and a few single entries, or whole columns, W = A B + S.

The low-rank part is applied by two products; W is never formed. ``sparse=entries`` keeps single
entries in S (SLTrain); ``sparse=columns`` keeps whole columns, applied by a product with the inputs
that they belong to (LOST).

Kernels: ``gather`` and ``native`` are for entries, ``dense_columns`` for columns, and either
decides the other where one alone is given. ``gather`` sums rows of xᵀ with embedding_bag, for every
dtype, and is the default, as it runs everywhere; ``native`` adds the entries to the low-rank part
in place, in C++ that is compiled for the CPU here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwbench.errors import KnobError
from hwbench.formats import _native, _native_entries, _stored
from hwbench.formats._base import Linear, budget, round_down, unreachable
from hwbench.formats._block_matmul import needs_grad
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
from hwbench.formats._kernel import Kernel, Torch
from hwbench.formats._sizes import check_choice
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


class _Columns(Linear):
    kept: Tensor  # (columns,), ascending

    def __init__(
        self, spec: LowRankSparse, left: Tensor, right: Tensor, columns: Tensor, values: Tensor
    ) -> None:
        super().__init__(spec.out_features, spec.in_features)
        self.kernel = spec.implementation
        self.values = nn.Parameter(values)  # (out, columns)
        self.left = nn.Parameter(left)  # (out, rank)
        self.right = nn.Parameter(right)  # (rank, in)
        self.register_buffer("kept", columns.to(getattr(torch, spec.index_dtype)))

    def to_dense(self) -> Tensor:
        empty = self.values.new_zeros(self.out_features, self.in_features)
        return empty.index_copy(1, self.kept.long(), self.values) + self.left @ self.right


@dataclass(frozen=True, kw_only=True)
class LowRankSparse(GatheredFormat):
    """W = A B + S with A of shape (out, rank), B of shape (rank, in) and ``nonzeros`` entries of S.

    A density gives S three entries in a hundred of W, as SLTrain does, and what the rank leaves
    over; or as many whole columns. Bytes: those of the factors, and those of S, as compressed rows
    or as columns with an index each.
    """

    PAPER = (
        "Han et al., SLTrain: a sparse plus low-rank approach for pretraining, 2024; Li et al., "
        "LOST: low-rank and sparse pre-training for large language models, 2025, arXiv:2508.02668"
    )
    OUTPUTS = "factors"

    SHARE: ClassVar[float] = 0.03
    ROUNDS: ClassVar[int] = 100
    LEAST_GAIN: ClassVar[float] = 3e-5  # a round that lowers the error by less is the last
    PROJECTION_TOLERANCE: ClassVar[float] = 0.25

    rank: int
    nonzeros: int
    index_dtype: str = "int32"
    sparse: str | None = None

    def __post_init__(self) -> None:
        if self.sparse is None:
            sparse = "columns" if self.kernel == Columns.name else "entries"
            object.__setattr__(self, "sparse", sparse)
        check_choice(self, "sparse", ("entries", "columns"))
        if self.kernel == "" and self.whole:
            object.__setattr__(self, "kernel", Columns.name)
        super().__post_init__()
        if self.whole != (self.kernel == Columns.name):
            raise KnobError(
                f"kernel={self.kernel} of {self.name()} does not multiply sparse={self.sparse}; "
                f"leave one of the two to the other."
            )
        self.check_integer("rank", low=1, high=min(self.out_features, self.in_features))
        self.check_integer("nonzeros", low=1, high=self.out_features * self.in_features)
        check_index_dtype(self, self.index_dtype, self.nonzeros)
        if self.nonzeros % self.unit:
            raise KnobError(
                f"nonzeros={self.nonzeros} of {self.name()} are no whole columns of "
                f"{self.out_features} outputs; {self.nonzeros // self.unit * self.unit} are."
            )

    @property
    def whole(self) -> bool:
        """Whether S keeps whole columns."""
        return self.sparse == "columns"

    @property
    def unit(self) -> int:
        """Entries that are kept or dropped together."""
        return self.out_features if self.whole else 1

    @classmethod
    def for_budget(cls, out_features: int, in_features: int, density: float, **knobs: Knob) -> Self:
        multiple = knobs.pop("multiple", 1)
        allowed, side = budget(out_features, in_features, density), out_features + in_features
        least = cls._least(out_features, in_features, **knobs)
        rank = min((allowed - least.nonzeros) // side, out_features, in_features)
        if rank < 1:
            reachable = f"rank 1 and {least.nonzeros} entries have density {least.density():.4g}"
            raise unreachable("low_rank_sparse", density, reachable)
        nonzeros = min(allowed - rank * side, out_features * in_features)
        nonzeros = nonzeros // least.unit * least.unit
        return replace(least, rank=round_down(rank, multiple), nonzeros=nonzeros)

    @classmethod
    def _least(cls, out_features: int, in_features: int, **knobs: Knob) -> Self:
        """Rank 1, and of S the share that it has at least."""
        first = cls(
            out_features=out_features,
            in_features=in_features,
            rank=1,
            nonzeros=out_features,  # one column, or as many entries
            **knobs,  # type: ignore[arg-type]
        )
        entries = budget(out_features, in_features, cls.SHARE)
        return replace(first, nonzeros=max(1, entries // first.unit) * first.unit)

    @classmethod
    def for_stored(
        cls, out_features: int, in_features: int, stored: float, item_bytes: int, **knobs: Knob
    ) -> Self:
        """As for a density: the share of S, then the rank, then entries for what is left over."""
        multiple = knobs.pop("multiple", 1)
        least = cls._least(out_features, in_features, **knobs)
        spare = _stored.allowed(out_features, in_features, stored, item_bytes)
        spare -= least.stored_bytes(item_bytes)
        if spare < 0:
            raise _stored.unreachable(cls, stored, item_bytes, [least])
        side = item_bytes * (out_features + in_features)
        rank = round_down(min(1 + spare // side, out_features, in_features), multiple)
        each = least.unit * item_bytes + INDEX_BYTES[least.index_dtype]
        more = (spare - (rank - 1) * side) // each * least.unit
        nonzeros = min(least.nonzeros + more, out_features * in_features)
        return replace(least, rank=rank, nonzeros=nonzeros)

    def parameters(self) -> int:
        return sum(self.stages()) + self.nonzeros

    def stages(self) -> tuple[int, ...]:
        """Those of the low-rank part; the entries stand beside it."""
        return (self.rank * self.in_features, self.rank * self.out_features)

    def index_bytes(self) -> int:
        if self.whole:
            return self.nonzeros // self.unit * INDEX_BYTES[self.index_dtype]
        return (self.nonzeros + self.out_features + 1) * INDEX_BYTES[self.index_dtype]

    def gathered_entries(self) -> int:
        """The number of entries of S."""
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
        bound = self.in_features**-0.5
        left = torch.zeros(self.out_features, self.rank, device=generator.device)
        right = torch.empty(self.rank, self.in_features, device=generator.device)
        right.uniform_(-bound, bound, generator=generator)
        total = self.out_features * self.in_features // self.unit
        places = random_places(total, self.nonzeros // self.unit, generator)
        values = torch.empty(self.nonzeros, device=generator.device)
        values.uniform_(-bound, bound, generator=generator)
        return self._build(left.to(dtype), right.to(dtype), places, values.to(dtype))

    def _build(self, left: Tensor, right: Tensor, places: Tensor, values: Tensor) -> Linear:
        if self.whole:
            return _Columns(self, left, right, places, values.view(self.out_features, -1))
        return _Map(self, left, right, places, values)

    def project(self, weight: Tensor, *, activations: Tensor | None = None) -> Linear:
        """A local optimum, reached in turns: A B for S, then S for A B, while the error falls.

        S for A B is the best there is; A B for S, after a first decomposition, takes one step of
        subspace iteration, which never raises the error. ``activations`` weigh the columns.
        """
        wide = torch.promote_types(weight.dtype, torch.float32)
        scale = column_weights(weight, activations, least=1e-6)
        target = weight.detach().to(wide) * scale
        left, right, places = self._alternate(target)
        u, s, vh = torch.linalg.svd(left, full_matrices=False)
        gap = (target - left @ right) / scale
        values = gap[:, places].flatten() if self.whole else gap.flatten()[places]
        left, right = u * s.sqrt(), s.sqrt()[:, None] * (vh @ right) / scale
        narrow = [tensor.to(weight.dtype).contiguous() for tensor in (left, right, values)]
        return self._build(narrow[0], narrow[1], places, narrow[2])

    def _alternate(self, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(out, rank), (rank, in) and the ascending places of the entries, or columns, of S."""
        starts = [target]
        if self.whole:  # columns that stand out would be the first directions of A B
            outstanding = largest(target.square().sum(0), self.nonzeros // self.unit)
            starts.append(target.index_fill(1, outstanding, 0))
        splits = [self._in_turns(target, rest) for rest in starts]
        left, right, places, _ = min(splits, key=lambda each: each[3])
        return left, right, places

    def _in_turns(self, target: Tensor, rest: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        """As ``_alternate``, from the best A B for ``rest``, and the error."""
        basis = torch.linalg.svd(rest, full_matrices=False).Vh[: self.rank].mT
        left, places, sparse, error = self._split(target, rest, basis)
        for _ in range(self.ROUNDS):
            rest = target - sparse
            moved = torch.linalg.qr(rest.mT @ (rest @ basis)).Q
            split = self._split(target, rest, moved)
            if split[3] >= error * (1 - self.LEAST_GAIN):
                break
            (left, places, sparse, error), basis = split, moved
        return left, basis.mT, places, error

    def _split(
        self, target: Tensor, rest: Tensor, basis: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        """A for this Bᵀ, the places of the best S for A B, what A B may leave to it, and the error.

        A column of S makes up for whatever A B has there, so that A B may leave all of it.
        """
        left = rest @ basis
        gap = target - left @ basis.mT
        if self.whole:
            places = largest(gap.square().sum(0), self.nonzeros // self.unit)
            sparse = torch.zeros_like(gap).index_copy(1, places, target[:, places])
            return left, places, sparse, float(gap.index_fill(1, places, 0).norm())
        flat = gap.flatten()
        places = largest(flat.abs(), self.nonzeros)
        entries = torch.zeros_like(flat).index_copy(0, places, flat[places])
        return left, places, entries.view(target.shape), float((flat - entries).norm())


class GatherBeside(Gather, of=LowRankSparse):
    """Two products for A B, and a gather for S, to which they are added."""

    def apply(self, layer: _Map, x: Tensor) -> Tensor:
        hidden = functional.linear(x, layer.right)
        return torch.addmm(layer.gather(x), hidden, layer.left.t())

    def copied_width(self, described: LowRankSparse) -> int:
        # The part of y that S gives, before the rest is added, is one copy more.
        return super().copied_width(described) + described.out_features


class Columns(Kernel, of=LowRankSparse):
    """Two products for A B, and one with the inputs whose columns S keeps."""

    name = "dense_columns"
    operators = Torch.operators

    def apply(self, layer: _Columns, x: Tensor) -> Tensor:
        beside = functional.linear(x.index_select(1, layer.kept), layer.values)
        return torch.addmm(beside, functional.linear(x, layer.right), layer.left.t())

    def copied_width(self, described: LowRankSparse) -> int:
        # The inputs of S, and the part of y that it gives, before the rest is added.
        return described.nonzeros // described.unit + described.out_features


class Native(_native_entries.Native, of=LowRankSparse):
    """Two products for A B, to which the entries are added in place, in C++.

    Where gradients are recorded the part of y that S gives is made first, and A B added to it.
    """

    def apply(self, layer: _Map, x: Tensor) -> Tensor:
        hidden = functional.linear(x, layer.right)
        if needs_grad(x, *layer.parameters()):
            return torch.addmm(_native_entries.product(layer, x), hidden, layer.left.t())
        y, pattern = functional.linear(hidden, layer.left), layer.pattern()
        _native.add_entries(y, x, layer.values, pattern.starts, pattern.columns)
        return y

    def copied_width(self, described: LowRankSparse) -> int:
        # y is read and written once more.
        return super().copied_width(described) + described.out_features
