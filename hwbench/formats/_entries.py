"""The shared part of the formats that keep single entries: their choice, maps and costs."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from hwbench.errors import KnobError, UsageError
from hwbench.formats import _gather
from hwbench.formats._base import BACKWARD_INPUT, FORWARD, Format, Linear, by_direction
from hwbench.formats._derived import Derived
from hwbench.formats._init import column_weights
from hwbench.formats._kernel import Kernel
from hwbench.formats._sizes import check_choice

GATHERS = r"aten::(_?(embedding_bag|index_select|index)|mv$)"
"""How a gather shows."""

INDEX_BYTES = {"int32": 4, "int64": 8}
"""Bytes of one index, by the ``index_dtype`` that a format may be given."""


class PatternMap(Linear):
    """A map with a pattern of what is kept, built when it is first asked for.

    It stays beside the parameters until the layer moves or its indices are others: it is working
    memory, with the order by columns that the gradient of x needs, and no part of the state.
    """

    def __init__(self, out_features: int, in_features: int) -> None:
        super().__init__(out_features, in_features)
        self._pattern = Derived[_gather.Pattern]()

    @abstractmethod
    def build_pattern(self) -> _gather.Pattern:
        """Where what is kept lies."""

    def pattern(self) -> _gather.Pattern:
        """Where what is kept lies, with the other orders derived from it so far."""
        indices = [buffer for buffer in self._buffers.values() if buffer is not None]
        return self._pattern.get(indices, self.build_pattern, trusting=self.trusting)

    def forget(self) -> None:
        self._pattern.clear()


class EntriesMap(PatternMap):
    """A map that keeps single entries of W; ``values`` is (nonzeros,), sorted by row, then column.

    A subclass gives ``starts`` and ``places``, and ``gradient`` where its format has that knob.
    """

    gradient: str = "auto"

    def __init__(self, out_features: int, in_features: int, values: Tensor) -> None:
        super().__init__(out_features, in_features)
        self.values = nn.Parameter(values)

    @abstractmethod
    def starts(self) -> Tensor:
        """(out_features + 1,), the first entry of each row, and the number of entries."""

    @abstractmethod
    def places(self) -> Tensor:
        """(nonzeros,), the column of each entry."""

    def build_pattern(self) -> _gather.Pattern:
        return _gather.Pattern(self.starts(), self.places(), self.in_features)

    def gather(self, x: Tensor, pattern: _gather.Pattern | None = None) -> Tensor:
        """x Wᵀ by gathers, along the layer's own pattern unless another is given."""
        values: Tensor = self.values
        if values.dim() > 1:
            values = values.reshape(-1)
        return _gather.product(x, values, pattern or self.pattern(), gradient=self.gradient)

    def dense_gradient(self, device: str) -> bool:
        """Whether the gradient of the values comes from a dense product on that kind of device."""
        sides = (self.out_features, self.in_features)
        return _gather.dense_gradient(self.gradient, device, self.values.numel(), *sides)

    def to_dense(self) -> Tensor:
        rows, columns = self.pattern().rows.long(), self.places().long()
        empty = self.values.new_zeros(self.out_features, self.in_features)
        return empty.index_put((rows, columns), self.values.reshape(-1))


class RowsMap(EntriesMap):
    """Entries at the ascending places ``flat`` of the flattened matrix, as compressed rows."""

    row_starts: Tensor  # (out + 1,)
    columns: Tensor  # (nonzeros,)

    def __init__(
        self, out_features: int, in_features: int, flat: Tensor, values: Tensor, index_dtype: str
    ) -> None:
        super().__init__(out_features, in_features, values)
        dtype = getattr(torch, index_dtype)
        ends = torch.arange(out_features + 1, device=flat.device) * in_features
        self.register_buffer("row_starts", torch.searchsorted(flat, ends).to(dtype))
        self.register_buffer("columns", (flat % in_features).to(dtype))

    def starts(self) -> Tensor:
        return self.row_starts

    def places(self) -> Tensor:
        return self.columns


@dataclass(frozen=True, kw_only=True)
class KeptFormat(Format):
    """A format that keeps ``nonzeros`` entries of W, wherever they lie."""

    OUTPUTS = "kept"

    nonzeros: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_integer("nonzeros", low=1, high=self.out_features * self.in_features)

    def smallest_words(self) -> str:
        return f"one entry has density {self.density():.4g}"

    @abstractmethod
    def build(self, flat: Tensor, weight: Tensor) -> Linear:
        """The layer that keeps ``weight`` (out, in) at the ascending places ``flat`` of it."""

    def parameters(self) -> int:
        return self.nonzeros

    def random(self, *, dtype: torch.dtype, generator: torch.Generator) -> Linear:
        shape = (self.out_features, self.in_features)
        flat = random_places(shape[0] * shape[1], self.nonzeros, generator)
        values = random_values(flat // shape[1], shape[0], generator).to(dtype)
        weight = torch.zeros(shape, dtype=dtype, device=generator.device)
        weight.view(-1)[flat] = values
        return self.build(flat, weight)

    def project(self, weight: Tensor, *, activations: Tensor | None = None) -> Linear:
        """The optimum: the entries of the largest magnitude."""
        weight = weight.detach()
        flat = largest(scores(weight, activations).flatten(), self.nonzeros)
        return self.build(flat, weight)


@dataclass(frozen=True, kw_only=True)
class GatheredFormat(Format):
    """A format that gathers its entries, and computes their ``gradient`` in one of two ways.

    ``dense`` forms the gradient of the whole matrix, a block of rows at a time, and picks the kept
    entries; ``sampled`` computes these alone; ``auto`` leaves it to the kind of device. Costs of
    ``auto`` are those on a CPU; ``on`` gives the format with the costs of another device. Not
    counted are the copies in float32 that CUDA samples bfloat16 from before torch 2.13.
    """

    revision: ClassVar[int] = 3

    gradient: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "gradient", _gather.GRADIENTS)
        if self.gradient != "auto" and not self.gathers():
            raise KnobError(
                f"gradient={self.gradient} of {self.name()} is for kernel={Gather.name}; the "
                f"kernel {self.kernel} computes the gradient in its own way."
            )

    def gathered_entries(self) -> int:
        """The number of entries that are gathered."""
        return self.parameters()

    def gathers(self) -> bool:
        """Whether the kernel is the gather, for which ``gradient`` is."""
        return isinstance(self.implementation, Gather)

    def gradient_entries(self) -> int:
        """The number of entries whose gradient the kernel computes: the kept ones, or all."""
        kernel = self.implementation
        if isinstance(kernel, EntriesKernel):
            return kernel.gradient_entries(self)
        return self.gathered_entries()

    def on(self, device: str) -> Self:
        if not self.gathers():
            return self
        return dataclasses.replace(self, gradient="dense" if self.dense_on(device) else "sampled")

    def sparse_sides(self) -> tuple[int, int]:
        """Rows and columns of the matrix whose entries are gathered: those of W, here."""
        return self.out_features, self.in_features

    def dense_on(self, device: str) -> bool:
        """Whether a gather takes the gradient from a dense product on that kind of device."""
        sides = self.sparse_sides()
        return _gather.dense_gradient(self.gradient, device, self.gathered_entries(), *sides)

    def all_entries(self) -> int:
        """The number of entries of that matrix, the zeros too."""
        return math.prod(self.sparse_sides())

    def flops(self, tokens: int, direction: str) -> int:
        """FLOPs of the chain; a kernel may compute the gradient of the other entries too."""
        more = 2 * tokens * (self.gradient_entries() - self.gathered_entries())
        chain = super().flops(tokens, direction)
        return chain + by_direction(direction, forward=0, to_input=0, to_weight=more)

    def intermediate_bytes(self, tokens: int, item_bytes: int, direction: str) -> int:
        moved = super().intermediate_bytes(tokens, item_bytes, direction)
        kept, computed = self.gathered_entries(), self.gradient_entries()
        return moved + picked_bytes(kept, computed, item_bytes, direction)


class EntriesKernel(Kernel):
    """A kernel of a format that keeps single entries, which may compute more of their gradient."""

    def gradient_entries(self, described: Any) -> int:
        """The number of entries whose gradient it computes: the kept ones, unless overridden."""
        kept: int = described.gathered_entries()
        return kept


class Gather(EntriesKernel, of=GatheredFormat):
    """Sums of rows of xᵀ by embedding_bag, with a backward pass of its own, for every dtype."""

    name = "gather"
    operators = GATHERS

    def apply(self, layer: Any, x: Tensor) -> Tensor:
        product: Tensor = layer.gather(x)
        return product

    def copied_width(self, described: Any) -> int:
        copied: int = described.in_features + described.out_features  # x to xᵀ, and yᵀ to y
        return copied

    def gradient_entries(self, described: Any) -> int:
        """All, where the gradient comes from a dense product."""
        if described.dense_on("cpu"):
            every: int = described.all_entries()
            return every
        return super().gradient_entries(described)


@dataclass(frozen=True, kw_only=True)
class EntriesFormat(GatheredFormat, KeptFormat):
    """A format that stores its kept entries with their indices, and gathers."""

    index_dtype: str = "int32"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_index_dtype(self, self.index_dtype, self.nonzeros)


def picked_bytes(kept: int, computed: int, item_bytes: int, direction: str) -> int:
    """Bytes moved to write a dense gradient and to pick the kept entries from it."""
    if direction in (FORWARD, BACKWARD_INPUT) or computed == kept:
        return 0
    return item_bytes * (computed + kept)


def executed(tokens: int, parameters: int, gradient_entries: int, direction: str) -> int:
    """FLOPs of products that use ``parameters`` once a token, dW being ``gradient_entries``.

    Filling a vector register with idle lanes is not counted, as for any matrix product.
    """
    product, gradient = 2 * tokens * parameters, 2 * tokens * gradient_entries
    return by_direction(direction, forward=product, to_input=product, to_weight=gradient)


def check_index_dtype(format_: Format, index_dtype: str, entries: int, *others: str) -> None:
    """Demand an index dtype that exists, or one of the others, and can count the entries.

    Raises:
        KnobError: it does not, or cannot.
    """
    if index_dtype not in (*INDEX_BYTES, *others):
        raise KnobError(
            f"index_dtype of {format_.name()} must be {' or '.join([*INDEX_BYTES, *others])}, "
            f"not {index_dtype!r}."
        )
    if index_dtype != "int64" and max(entries, format_.in_features) >= 2**31:
        raise KnobError(f"{entries} entries cannot be counted in int32; use index_dtype='int64'.")


def random_places(total: int, count: int, generator: torch.Generator) -> Tensor:
    """``count`` of ``total`` places, uniform without repetition, ascending."""
    order = torch.randperm(total, generator=generator, device=generator.device)
    return order[:count].sort().values


def random_values(rows: Tensor, out_features: int, generator: torch.Generator) -> Tensor:
    """U(±1/√fan_in) in float32, where fan_in is the number of entries of the row."""
    fan_in = torch.bincount(rows, minlength=out_features).index_select(0, rows)
    values = torch.empty(rows.shape, device=generator.device).uniform_(-1, 1, generator=generator)
    return values * fan_in.to(values.dtype).rsqrt()


def scores(weight: Tensor, activations: Tensor | None) -> Tensor:
    """What keeping each entry is worth: its magnitude, times what its column sees.

    With ``activations`` of shape (samples, in_features) a column counts with the root mean square
    of its activations (Sun et al., A simple and effective pruning approach for large language
    models, 2023); without, all count alike.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    return weight.detach().abs().to(wide) * column_weights(weight, activations)


def largest(score: Tensor, count: int) -> Tensor:
    """The ascending places of the ``count`` largest scores; of equal ones, the first.

    Raises:
        UsageError: a score is not a number.
    """
    if bool(score.isnan().any()):
        raise UsageError("A weight that is not a number cannot be projected.")
    limit = score.kthvalue(score.numel() - count + 1).values
    above = (score > limit).nonzero().flatten()
    ties = (score == limit).nonzero().flatten()
    return torch.cat([above, ties[: count - above.numel()]]).sort().values
