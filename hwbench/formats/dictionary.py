"""Every output adds up a few atoms of a dense dictionary, W = S D with a sparse S and a dense D.

D x is one dense product, of as many rows as there are atoms; each output then gathers its own
``fan_in`` of them. Each row of W so lies in a small subspace of its own, where a matrix of low rank
has one subspace for all rows: at equal parameters it can come nearer to a weight without a few
strong directions, for an index of every kept value, or for a bit of every one that could be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwbench.formats import _gather, _init, _quantize
from hwbench.formats._base import Linear, by_direction
from hwbench.formats._entries import (
    INDEX_BYTES,
    EntriesMap,
    Gather,
    GatheredFormat,
    check_index_dtype,
)
from hwbench.formats._groups import best_in_groups

BITS = "bits"


class _Map(EntriesMap):
    # The atoms of each output, ascending, (out, fan_in); as bits: (out, ceil(atoms / 8)) uint8, the
    # first atom's bit the lowest of the first byte.
    columns: Tensor

    def __init__(self, spec: Dictionary, values: Tensor, columns: Tensor, atoms: Tensor) -> None:
        super().__init__(spec.out_features, spec.in_features, values)  # (out, fan_in)
        self.atoms = nn.Parameter(atoms)  # (atoms, in)
        self.kernel, self.gradient = spec.implementation, spec.gradient
        self.register_buffer("columns", columns)

    def starts(self) -> Tensor:
        (rows, fan_in), places = self.values.shape, self.places()
        return torch.arange(rows + 1, dtype=places.dtype, device=places.device) * fan_in

    def places(self) -> Tensor:
        if self.columns.dtype != torch.uint8:
            return self.columns.flatten()
        used = _quantize.unpack(self.columns, 1, len(self.atoms))
        order = used.argsort(dim=1, descending=True, stable=True)
        return order[:, : self.values.shape[1]].int().flatten()

    def build_pattern(self) -> _gather.Pattern:
        return _gather.Pattern(self.starts(), self.places(), len(self.atoms))

    def to_dense(self) -> Tensor:
        empty = self.values.new_zeros(self.out_features, len(self.atoms))
        columns = self.places().long().view_as(self.values)
        return empty.scatter(1, columns, self.values) @ self.atoms


@dataclass(frozen=True, kw_only=True)
class Dictionary(GatheredFormat):
    """W = S D with D of shape (atoms, in) and ``fan_in`` = ⌈atoms / ratio⌉ values in a row of S.

    Bytes: D, the values of S, (out, fan_in), and where they are: an index for each, or by
    ``index_dtype=bits`` a bit for each atom of an output, which a layer widens to indices once.
    """

    PAPER = (
        "Makhov et al., CoSpaDi: compressing LLMs via calibration-guided sparse dictionary "
        "learning, 2025, arXiv:2509.22075"
    )
    OUTPUTS = "turned"
    PROJECTION_TOLERANCE: ClassVar[float] = 0.3  # which atoms a row is made of is not found again

    ROUNDS: ClassVar[int] = 100
    LEAST_GAIN: ClassVar[float] = 1e-3  # a round that lowers the error by less is the last

    SOLVED: ClassVar[int] = 2**29  # multiply-adds up to which a round solves for the values of S

    atoms: int
    ratio: int = 2
    index_dtype: str = "int32"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_integer("atoms", low=1, high=self.out_features)
        self.check_integer("ratio", low=1, high=self.out_features)
        check_index_dtype(self, self.index_dtype, self.gathered_entries(), BITS)

    def largest_setting(self) -> int:
        return self.out_features

    @property
    def fan_in(self) -> int:
        """Atoms of an output."""
        return -(-self.atoms // self.ratio)

    def parameters(self) -> int:
        return sum(self.stages())

    def stages(self) -> tuple[int, ...]:
        return (self.atoms * self.in_features, self.gathered_entries())

    def index_bytes(self) -> int:
        if self.index_dtype == BITS:
            return self.out_features * -(-self.atoms // 8)
        return self.gathered_entries() * INDEX_BYTES[self.index_dtype]

    def intermediate_bytes(self, tokens: int, item_bytes: int, direction: str) -> int:
        """With the indices that bits were widened to, and which a call reads."""
        moved = super().intermediate_bytes(tokens, item_bytes, direction)
        if self.index_dtype != BITS:
            return moved
        read = INDEX_BYTES["int32"] * self.gathered_entries()
        return moved + by_direction(direction, forward=read, to_input=read, to_weight=read)

    def gathered_entries(self) -> int:
        """The number of entries of S that are kept."""
        return self.out_features * self.fan_in

    def sparse_sides(self) -> tuple[int, int]:
        """Rows and columns of S."""
        return self.out_features, self.atoms

    def intermediate_width(self) -> int:
        return self.atoms

    def random(self, *, dtype: torch.dtype, generator: torch.Generator) -> Linear:
        """Any atoms for each output, which varies as that of a dense layer does."""
        device, sides = generator.device, (self.out_features, self.atoms)
        columns = self._best(torch.rand(sides, generator=generator, device=device))
        values = torch.empty(columns.shape, device=device)
        values.uniform_(-(self.fan_in**-0.5), self.fan_in**-0.5, generator=generator)
        atoms = torch.empty(self.atoms, self.in_features, device=device)
        atoms.normal_(std=self.in_features**-0.5, generator=generator)
        return self._build(values, columns, atoms, dtype)

    def project(self, weight: Tensor, *, activations: Tensor | None = None) -> Linear:
        """A local optimum, reached in turns: the best D for S, and a better S for D.

        S takes a step down the gradient, of a length that never raises the error, after which each
        row keeps its largest values; in a small layer these are then solved for, the best for
        their places. ``activations`` weigh the columns.
        """
        scale = _init.column_weights(weight, activations, least=_init.DIVISIBLE)
        target = _init.working(weight) * scale
        values, columns, atoms = self._learn(target)
        return self._build(values, columns, atoms / scale, weight.dtype)

    def project_turned(self, weight: Tensor, lower: Tensor) -> Linear:
        """As ``project``, for the error ‖(W − Ŵ) L‖: W L is learnt, and D turned back by L⁻¹.

        Args:
            weight: W, (out, in).
            lower: L, (in, in), lower triangular and invertible.
        """
        values, columns, atoms = self._learn(weight @ lower)
        atoms = torch.linalg.solve_triangular(lower, atoms, upper=False, left=False)
        return self._build(values, columns, atoms, weight.dtype)

    def _build(self, values: Tensor, columns: Tensor, atoms: Tensor, dtype: torch.dtype) -> Linear:
        if self.index_dtype == BITS:
            used = torch.zeros(len(columns), self.atoms, dtype=torch.uint8, device=columns.device)
            places = _quantize.pack(used.scatter_(1, columns, 1), 1)
        else:
            places = columns.to(getattr(torch, self.index_dtype)).contiguous()
        return _Map(self, values.to(dtype).contiguous(), places, atoms.to(dtype).contiguous())

    def _best(self, score: Tensor) -> Tensor:
        return best_in_groups(score, self.fan_in, self.atoms).flatten(1)

    def _learn(self, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(out, fan_in) values, their atoms, and the dictionary (atoms, in) of unit rows."""
        atoms = _first(target, self.atoms)
        sparse = torch.zeros_like(target[:, :1]).expand(-1, self.atoms)
        columns, best, error = self._best(target @ atoms.mT), None, float("inf")
        for _ in range(self.ROUNDS):
            gram = atoms @ atoms.mT
            products = target @ atoms.mT
            step = 1 / torch.linalg.matrix_norm(gram, 2).clamp_min(torch.finfo(gram.dtype).tiny)
            moved = sparse + step * (products - sparse @ gram)
            columns = self._best(moved.abs())
            values = moved.gather(1, columns)
            if len(products) * self.fan_in**3 <= self.SOLVED:
                values = _solved(gram, products, columns)
            sparse = torch.zeros_like(moved).scatter(1, columns, values)
            atoms = _init.solved(sparse.mT @ sparse, sparse.mT @ target)
            loss = float(torch.linalg.matrix_norm(target - sparse @ atoms))
            if best is None or loss < error:
                best = values, columns, atoms
            if not loss < error * (1 - self.LEAST_GAIN):
                break
            error = loss
            size = torch.linalg.vector_norm(atoms, dim=1, keepdim=True)
            size = torch.where(size > 0, size, 1.0)
            atoms, sparse = atoms / size, sparse * size.mT
        assert best is not None
        return best


def _first(target: Tensor, count: int) -> Tensor:
    """(count, in): the strongest directions of the rows, and where there are more, rows."""
    directions = torch.linalg.svd(target, full_matrices=False).Vh[:count]
    more = count - len(directions)
    rows = target[torch.linalg.vector_norm(target, dim=1).argsort(descending=True, stable=True)]
    return torch.cat([directions, functional.normalize(rows[:more], dim=1)])


def _solved(gram: Tensor, products: Tensor, columns: Tensor) -> Tensor:
    """The best values at given places: for each row, the atoms' Gram matrix there is solved."""
    values = torch.empty_like(products.gather(1, columns))
    height = max(1, 2**24 // columns.shape[1] ** 2)  # rows whose matrices are formed at a time
    for rows in torch.arange(len(columns), device=columns.device).split(height):
        places = columns[rows]
        own = gram[places[:, :, None], places[:, None, :]]
        targets = products[rows].gather(1, places)
        values[rows] = _init.solved(own, targets[:, :, None]).squeeze(2)
    return values


class GatherAtoms(Gather, of=Dictionary):
    """A product with the dictionary, and a gather of each output's atoms."""

    def apply(self, layer: _Map, x: Tensor) -> Tensor:
        return layer.gather(functional.linear(x, layer.atoms))

    def copied_width(self, described: Dictionary) -> int:
        return described.atoms + described.out_features  # D x turned over, and yᵀ to y
