"""A sparse matrix product as gathers: y = x Wᵀ where W keeps single entries.

Row i of W and its kept entries e (columns c_e, values v_e) give yᵀ[i] = Σ_e v_e xᵀ[c_e]: a weighted
sum of rows of xᵀ, which is what ``embedding_bag`` computes, for every floating dtype and on every
device; of one token MKL makes it, where it is there. The gradient of x is the same gather with the
entries sorted by column. The gradient of the values is a sampled product: dv_e = ⟨dyᵀ[r_e],
xᵀ[c_e]⟩. The dense matrix is never formed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from hwbench.formats._versions import sampling_dtype

GRADIENTS = ("auto", "dense", "sampled")
"""How the gradient of the values may be computed; ``auto`` leaves it to the kind of device."""

DENSE_GRADIENT_DENSITY = 0.2
"""From this density on, ``auto`` on a CPU takes the gradient from a dense product, by blocks.

Sampling one entry costs about five times an entry of a dense product (measured with torch 2.13 on
a CPU with AVX-512, float32, one and two threads: it breaks even at a density of 0.13 for 16 tokens,
0.2 for 64, 0.27 for 256 and 0.3 for 1024). The rule does not know the dtype.

On other devices ``auto`` is dense at every density: there a warp reads a row of dyᵀ and one of xᵀ
for each entry that it samples, and the dense product runs on tensor cores. That is a count of
bytes, not a measurement; the suite ``llm`` times both on CUDA.
"""

T = TypeVar("T")

_SUM = 0  # what torch.embedding_bag calls mode "sum"

SPAN_BYTES = 2**19  # of xᵀ, gathered at a time; half of a common second-level cache
SPAN_ROW_BYTES = (2**8, 2**10)  # a gathered row: at least four cache lines, at most sixteen
BLOCK_ELEMENTS = 2**18  # of the dense gradient, formed at a time: on a CPU it stays in cache
WIDE_ELEMENTS = 2**24  # … elsewhere, where every block costs launches and small products are slow
FEWEST_SAMPLED = 8  # tokens; one vector of float32

with warnings.catch_warnings():  # torch says once in a process that its CSR tensors are beta
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 0], [], [], (1, 1))


class Order(NamedTuple):
    """The kept entries sorted by column: where each column starts, each entry's row and place."""

    starts: Tensor  # (in_features + 1,)
    rows: Tensor  # (nonzeros,)
    entries: Tensor  # (nonzeros,) places in the order by rows


class Block(NamedTuple):
    """A run of rows and its entries; the dense gradient is formed one run at a time."""

    rows: slice
    entries: slice


def _derived(build: Callable[[Pattern], T]) -> cached_property[T]:
    """A property built once, of ordinary tensors even where it is first asked for in inference."""

    def ordinary(self: Pattern) -> T:
        with torch.inference_mode(False), torch.no_grad():
            return build(self)

    ordinary.__doc__ = build.__doc__
    return cached_property(ordinary)


class Pattern:
    """Where the kept entries lie, row by row, and the other orders that a backward pass needs.

    The other orders are built when first needed and kept: working memory of training, which is not
    part of what a format stores.

    Args:
        starts: (out_features + 1,), the first entry of each row, and the number of entries.
        columns: (nonzeros,), in the same integer dtype.
        in_features: the number of columns.
    """

    def __init__(self, starts: Tensor, columns: Tensor, in_features: int) -> None:
        self.starts = starts
        self.columns = columns
        self.in_features = in_features
        self.out_features = starts.numel() - 1

    @_derived
    def rows(self) -> Tensor:
        """(nonzeros,), the row of each entry."""
        every = torch.arange(self.out_features, dtype=self.starts.dtype, device=self.starts.device)
        counts = self.starts.diff().long()
        return torch.repeat_interleave(every, counts, output_size=self.columns.numel())

    @_derived
    def by_column(self) -> Order:
        """The entries sorted by column, rows ascending within each."""
        dtype = self.starts.dtype
        entries = torch.argsort(self.columns, stable=True)
        starts = torch.zeros(self.in_features + 1, dtype=dtype, device=self.starts.device)
        starts[1:] = torch.bincount(self.columns, minlength=self.in_features).cumsum(0)
        return Order(starts, self.rows.index_select(0, entries), entries.to(dtype))

    @_derived
    def blocks(self) -> list[Block]:
        """Runs of rows; a run is at most a quarter of the matrix."""
        most = BLOCK_ELEMENTS if self.starts.is_cpu else WIDE_ELEMENTS
        height = max(1, min(most // self.in_features, -(-self.out_features // 4)))
        bounds = [*range(0, self.out_features, height), self.out_features]
        places = self.starts[bounds].tolist()
        return [
            Block(slice(bounds[i], bounds[i + 1]), slice(places[i], places[i + 1]))
            for i in range(len(bounds) - 1)
        ]

    @_derived
    def places(self) -> Tensor:
        """(nonzeros,), the place of each entry in the block that holds it."""
        first = torch.zeros_like(self.rows)
        for block in self.blocks:
            first[block.entries] = block.rows.start
        return (self.rows - first) * self.in_features + self.columns


def product(x: Tensor, values: Tensor, pattern: Pattern, *, gradient: str) -> Tensor:
    """x Wᵀ, contiguous (tokens, out_features), for x of shape (tokens, in_features).

    Args:
        x: the input, in the dtype of ``values``.
        values: (nonzeros,), in the order of ``pattern``.
        pattern: where the values lie.
        gradient: how the gradient of the values is computed, one of ``GRADIENTS``.
    """
    if torch.is_grad_enabled() and (x.requires_grad or values.requires_grad):
        sides = (pattern.out_features, pattern.in_features)
        dense = dense_gradient(gradient, x.device.type, values.numel(), *sides)
        y: Tensor = _Product.apply(x, values, pattern, dense)  # type: ignore[no-untyped-call]
        return y
    # One token of a sparse layer takes some 10 µs, so that what Python does around it counts.
    if x.shape[0] == 1 and _times_vectors(x, values):
        return _times_vector(x.reshape(-1), values, pattern.starts, pattern.columns).unsqueeze(0)
    return _forward(x, values, pattern)[0]


def dense_gradient(
    gradient: str, device: str, nonzeros: int, out_features: int, in_features: int
) -> bool:
    """Whether ``gradient``, one of ``GRADIENTS``, is a dense product on that kind of device."""
    if gradient != "auto":
        return gradient == "dense"
    return device != "cpu" or nonzeros >= DENSE_GRADIENT_DENSITY * out_features * in_features


def gradient_of_values(dy: Tensor, x: Tensor, pattern: Pattern, dense: bool) -> Tensor:
    """The gradient of the values, (nonzeros,), sampled or from a dense product, from x as it is."""
    if dense:
        return _blocked(dy, x, pattern)
    total = _Sampled(pattern, x.dtype)
    for run in spans(dy.shape[0], pattern.in_features, dy):
        total.add(turn(dy[run]), turn(x[run]))
    return total.result()


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, pattern: Pattern, dense: bool) -> Tensor:
        values_need = ctx.needs_input_grad[1]
        y, turned = _forward(x, values, pattern, keep=values_need and not dense)
        saved_inputs = [x] if values_need and dense else turned
        ctx.save_for_backward(values, *saved_inputs)
        ctx.pattern, ctx.dense = pattern, dense
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        values, *saved_inputs = ctx.saved_tensors
        x_needs, values_need = ctx.needs_input_grad[:2]
        sampled = values_need and not ctx.dense
        dx, dvalues = _backward(dy, values, ctx.pattern, x_needs, saved_inputs if sampled else None)
        if values_need and ctx.dense:
            dvalues = _blocked(dy, saved_inputs[0], ctx.pattern)
        return dx, dvalues, None, None


def _forward(
    x: Tensor, values: Tensor, pattern: Pattern, *, keep: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """The product, and xᵀ span by span where it is to be kept."""
    runs, turned = spans(x.shape[0], pattern.in_features, x), []
    y = None if len(runs) == 1 else x.new_empty(x.shape[0], pattern.out_features)
    for run in runs:
        x_t = turn(x if y is None else x[run])
        y = _put(y, run, bags(x_t, values, pattern.starts, pattern.columns))
        if keep:
            turned.append(x_t)
    assert y is not None
    return y, turned


def _backward(
    dy: Tensor, values: Tensor, pattern: Pattern, x_needs: bool, turned: list[Tensor] | None
) -> tuple[Tensor | None, Tensor | None]:
    """The gradient of x, and that of the values where xᵀ (``turned``) is given."""
    if not x_needs and turned is None:
        return None, None
    runs = spans(dy.shape[0], pattern.in_features, dy)
    dx = dy.new_empty(dy.shape[0], pattern.in_features) if x_needs and len(runs) != 1 else None
    moved = values.index_select(0, pattern.by_column.entries) if x_needs else None
    total = None if turned is None else _Sampled(pattern, values.dtype)
    for number, run in enumerate(runs):
        dy_t = turn(dy[run])
        if moved is not None:
            starts, rows, _ = pattern.by_column
            dx = _put(dx, run, bags(dy_t, moved, starts, rows))
        if total is not None and turned is not None:
            total.add(dy_t, turned[number])
    return dx, None if total is None else total.result()


def _blocked(dy: Tensor, x: Tensor, pattern: Pattern) -> Tensor:
    """The gradient of the values, (nonzeros,), from blocks of rows of the dense gradient."""
    values = x.new_empty(pattern.columns.numel())
    for rows, entries in pattern.blocks:
        block = dy[:, rows].t() @ x
        torch.index_select(block.view(-1), 0, pattern.places[entries], out=values[entries])
    return values


class _Sampled:
    """The sum, over spans of tokens, of sampled products dyᵀ x."""

    def __init__(self, pattern: Pattern, dtype: torch.dtype) -> None:
        self.pattern, self.dtype = pattern, dtype
        wide = torch.promote_types(dtype, torch.float32)
        self.total = torch.zeros(pattern.columns.shape, dtype=wide, device=pattern.columns.device)
        self.on_cpu = self.total.device.type == "cpu"
        if self.on_cpu:
            self.csr = csr(self.total, pattern.starts, pattern.columns, pattern.in_features)

    def add(self, dy_t: Tensor, x_t: Tensor) -> None:
        """Add ⟨dyᵀ[row], xᵀ[column]⟩ of every entry, for (rows, tokens) and (columns, tokens)."""
        pattern = self.pattern
        if not self.on_cpu:  # torch.sparse.sampled_addmm has no half precision there
            dtype = sampling_dtype(dy_t.dtype)
            dy_t, x_t = dy_t.to(dtype), x_t.to(dtype)
            self.total += torch.ops.aten._embedding_bag_per_sample_weights_backward(  # noqa: SLF001
                dy_t, x_t, pattern.columns, pattern.starts[:-1], pattern.rows, 0
            )
            return
        dy_t, x_t = dy_t.to(self.total.dtype), x_t.to(self.total.dtype)
        short = FEWEST_SAMPLED - dy_t.shape[1]
        if short > 0:  # less than a vector is summed one by one, many times slower than a full one
            dy_t, x_t = functional.pad(dy_t, (0, short)), functional.pad(x_t, (0, short))
        torch.sparse.sampled_addmm(self.csr, dy_t, x_t.t(), out=self.csr)

    def result(self) -> Tensor:
        return (self.csr.values() if self.on_cpu else self.total).to(self.dtype)


def bags(rows: Tensor, values: Tensor, starts: Tensor, columns: Tensor) -> Tensor:
    """Σ_e values_e rows[columns_e] over the entries of each bag: (bags, tokens).

    With one token a row is one value, which embedding_bag adds without vector instructions, and it
    is a sparse matrix times a vector, for which MKL has a product.
    """
    if rows.shape[1] == 1 and _times_vectors(rows, values):
        return _times_vector(rows[:, 0], values, starts, columns).unsqueeze(1)
    # without the checks of functional.embedding_bag, which cost as much as a transpose
    return torch.embedding_bag(rows, columns, starts, False, _SUM, False, values, True)[0]


def _times_vectors(x: Tensor, values: Tensor) -> bool:
    """Whether MKL multiplies by a vector of that kind; the compiler takes no such matrix."""
    return (
        x.is_cpu
        and x.dtype in (torch.float32, torch.float64)
        and values.numel() > 0
        and torch.backends.mkl.is_available()
        and not torch.compiler.is_compiling()
    )


def _times_vector(x: Tensor, values: Tensor, starts: Tensor, columns: Tensor) -> Tensor:
    """W x, (bags,), by MKL."""
    return torch.mv(csr(values, starts, columns, x.numel()), x)


def csr(values: Tensor, starts: Tensor, columns: Tensor, inputs: int) -> Tensor:
    """(rows, inputs) as torch's CSR tensor, a view of the three, whatever the default device is."""
    size, device = (starts.numel() - 1, inputs), values.device
    return torch.sparse_csr_tensor(
        starts, columns, values, size, device=device, check_invariants=False
    )


def turn(x: Tensor) -> Tensor:
    """xᵀ, a row with unit stride, which ``contiguous`` does not promise for a single row of x."""
    rows, columns = x.shape
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous()
    if plain and columns == 1:
        return x.view(1, rows)
    if plain and rows == 1:
        return x.view(columns, 1)
    if plain and rows > 1:
        # The same permutation, which torch does here with vector instructions: copying x.t() takes
        # three times as long in float32, and less than this in the other dtypes.
        every = (rows * columns, 1, rows * columns, rows * columns)
        pixel = x.as_strided((1, rows * columns, 1, 1), every)
        return torch.native_channel_shuffle(pixel, rows).view(columns, rows)
    return x.new_empty(columns, rows).copy_(x.t())


def _put(y: Tensor | None, run: slice, product: Tensor) -> Tensor:
    """Put (features, tokens of the run) where it belongs in y; without a y it is all there is."""
    if y is None:
        return turn(product)
    y[run] = turn(product)
    return y


def spans(tokens: int, width: int, x: Tensor) -> list[slice]:
    """Runs of tokens that are gathered together, for ``width`` elements a token that are in use.

    On a CPU the rows of a run should stay in cache: for 1024 tokens of 1024 inputs, runs of 128 are
    1.6 times faster than all at once. Elsewhere all tokens go in one call.
    """
    length = tokens
    if x.device.type == "cpu":
        size = x.element_size()
        least, most = SPAN_ROW_BYTES
        length = min(max(SPAN_BYTES // width, least), most) // size
    if 0 < tokens <= length:
        return [slice(0, tokens)]
    return [slice(first, min(first + length, tokens)) for first in range(0, tokens, max(1, length))]
