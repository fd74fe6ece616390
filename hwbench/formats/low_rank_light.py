"""Low rank without the redundant square: W = A [I B] Πᵀ, some columns of x taken as they are.

Every matrix of rank r is a combination of r of its columns, so that r² of the r (out + in)
parameters of two factors say nothing. ``columns`` names which columns these are: ``pivoted`` picks
well-conditioned ones and stores where they are; ``first`` takes the first r, which saves the copy
of x in pivoted order but for some weights leaves a badly conditioned B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from hwbench.formats import _block_matmul, _init, _sizes
from hwbench.formats._base import Format, Linear
from hwbench.formats._derived import Derived
from hwbench.formats._kernel import Kernel

PIVOTED, FIRST = "pivoted", "first"


class _Map(Linear):
    """``pivots`` are ascending; the order of all columns that follows from them is not stored."""

    pivots: Tensor | None

    def __init__(self, left: Tensor, right: Tensor, pivots: Tensor | None, kernel: Kernel) -> None:
        rank, rest = right.shape
        super().__init__(left.shape[0], rank + rest)
        self.left = nn.Parameter(left)  # A (out, rank)
        self.right = nn.Parameter(right)  # B (rank, in - rank)
        self.register_buffer("pivots", pivots)  # (rank,)
        self.kernel = kernel
        self._order = Derived[Tensor]()

    def to_dense(self) -> Tensor:
        dense = torch.cat([self.left, self.left @ self.right], dim=1)
        order = self.order()
        return dense if order is None else dense.index_select(1, torch.argsort(order))

    def order(self) -> Tensor | None:
        """(in,), the pivots and then the other columns; None where these are the first."""
        pivots = self.pivots
        if pivots is None:
            return None
        build = lambda: _order(pivots.clone(), self.in_features)  # noqa: E731
        return self._order.get((pivots,), build, trusting=self.trusting)

    def forget(self) -> None:
        self._order.clear()


def _order(pivots: Tensor, size: int) -> Tensor:
    rest = torch.ones(size, dtype=torch.bool, device=pivots.device)
    rest[pivots.long()] = False
    return torch.cat([pivots.long(), rest.nonzero().squeeze(1)])


def _product(
    x: Tensor, left: Tensor, right: Tensor, bias: Tensor | None, order: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """y, what A is applied to, and x in the order of the columns."""
    if order is not None:
        x = x.gather(1, order.expand_as(x))
    rank = right.shape[0]
    hidden = torch.addmm(x[:, :rank], x[:, rank:], right.mT)
    return functional.linear(hidden, left, bias), hidden, x


class _Product(torch.autograd.Function):
    """Two products forward and four backward, which write the gradient of x in place."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        left: Tensor,
        right: Tensor,
        bias: Tensor | None,
        order: Tensor | None,
    ) -> Tensor:
        y, hidden, ordered = _product(x, left, right, bias, order)
        ctx.save_for_backward(left, right, hidden, ordered)
        ctx.order = order
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        left, right, hidden, ordered = ctx.saved_tensors
        x_needs, left_needs, right_needs, bias_needs, _ = ctx.needs_input_grad
        rank = right.shape[0]
        dleft = dy.mT @ hidden if left_needs else None
        dbias = dy.sum(0) if bias_needs else None
        if not (x_needs or right_needs):
            return None, dleft, None, dbias, None
        dordered = torch.empty_like(ordered)
        if dy.is_cpu and dy.dtype == torch.bfloat16:
            # With AMX, torch 2.13 reads one column past an odd rank, times zero: NaN stays NaN.
            dordered[:, rank : rank + 1] = 0
        dhidden = _block_matmul.multiply_into(dordered[:, :rank], dy, left)
        dright = dhidden.mT @ ordered[:, rank:] if right_needs else None
        if not x_needs:
            return None, dleft, dright, dbias, None
        _block_matmul.multiply_into(dordered[:, rank:], dhidden, right)
        if ctx.order is None:
            return dordered, dleft, dright, dbias, None
        dx = torch.empty_like(dordered).scatter_(1, ctx.order.expand_as(dordered), dordered)
        return dx, dleft, dright, dbias, None


@dataclass(frozen=True, kw_only=True)
class LowRankLight(Format):
    """W = A [I B] with A of shape (out, rank), B of shape (rank, in - rank), columns permuted.

    Raises:
        KnobError: the rank exceeds a dimension, or ``columns`` is not one of the two words.
    """

    PAPER = "Zhao et al., Pivoting Factorization, ICML 2025, arXiv:2501.19090"
    OUTPUTS = "rank"

    rank: int
    columns: str = PIVOTED

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_integer("rank", low=1, high=min(self.out_features, self.in_features))
        _sizes.check_choice(self, "columns", (PIVOTED, FIRST))

    def largest_setting(self) -> int:
        return min(self.out_features, self.in_features)

    def parameters(self) -> int:
        return sum(self.stages())

    def stages(self) -> tuple[int, ...]:
        return (self.rank * (self.in_features - self.rank), self.rank * self.out_features)

    def index_bytes(self) -> int:
        return 4 * self.rank if self.columns == PIVOTED else 0

    def intermediate_width(self) -> int:
        return self.rank

    def copied_width(self) -> int:
        return self.in_features if self.columns == PIVOTED else 0

    def random(self, *, dtype: torch.dtype, generator: torch.Generator) -> Linear:
        """Random columns, and an output as large as a dense layer's usual initialisation gives."""
        device, rest = generator.device, self.in_features - self.rank
        left = torch.empty(self.out_features, self.rank, device=device)
        left.normal_(std=(3 * self.in_features) ** -0.5, generator=generator)
        right = torch.empty(self.rank, rest, device=device)
        right.normal_(std=self.rank**-0.5, generator=generator)
        pivots = None
        if self.columns == PIVOTED:
            permutation = torch.randperm(self.in_features, generator=generator, device=device)
            pivots = _pivots(permutation[: self.rank])
        return _Map(left.to(dtype), right.to(dtype), pivots, self.implementation)

    def project(self, weight: Tensor, *, activations: Tensor | None = None) -> Linear:
        """The truncated decomposition, written as a combination of ``rank`` columns."""
        work = _init.working(weight)
        worth = _init.column_weights(work, activations, least=_init.DIVISIBLE)
        work = work * worth
        basis = torch.linalg.svd(work, full_matrices=False).Vh[: self.rank]  # (rank, in)
        return self._combined(work, basis, worth, weight.dtype)

    def of_factors(self, left: Tensor, right: Tensor) -> Linear:
        """The layer near to W = ``left`` (out, rank) · ``right`` (rank, in), float64."""
        basis = torch.linalg.qr(right.mT).Q.mT
        return self._combined(left @ right, basis, torch.ones_like(right[0]), left.dtype)

    def _combined(self, work: Tensor, basis: Tensor, worth: Tensor, dtype: torch.dtype) -> Linear:
        """The layer with rows that combine ``basis`` (rank, in), near to ``work`` / worth."""
        pivots = None
        if self.columns == PIVOTED:
            pivots = _well_conditioned(basis)
            order = _order(pivots, self.in_features)
            work, basis, worth = (t.index_select(-1, order) for t in (work, basis, worth))
        right = _coefficients(basis, torch.finfo(dtype).eps)
        left = _combine(work, right) / worth[: self.rank]
        right = worth[: self.rank, None] * right / worth[self.rank :]
        return _Map(left.to(dtype), right.to(dtype), pivots, self.implementation)


def _pivots(places: Tensor) -> Tensor:
    return places.sort().values.to(torch.int32)


def _well_conditioned(basis: Tensor) -> Tensor:
    """The places of ``rank`` well-conditioned columns of (rank, in), by partial pivoting."""
    _, swaps = torch.linalg.lu_factor(basis.mT.contiguous())
    places = list(range(basis.shape[1]))
    for i, j in enumerate((swaps - 1).tolist()):
        places[i], places[j] = places[j], places[i]
    return _pivots(torch.tensor(places[: basis.shape[0]], device=basis.device))


def _coefficients(basis: Tensor, epsilon: float) -> Tensor:
    """B for which basis[:, :rank] · [I B] is near to the basis (rank, in), with damping epsilon."""
    wide = basis.double()
    rank = wide.shape[0]
    square, rest = wide[:, :rank], wide[:, rank:]
    gram = square.mT @ square
    gram.diagonal().add_(epsilon * epsilon)
    lower = torch.linalg.cholesky(gram)
    return torch.cholesky_solve(square.mT @ rest, lower).to(basis.dtype)


def _combine(weight: Tensor, right: Tensor) -> Tensor:
    """The A for which A [I B] is nearest to the weight; [I B] [I B]ᵀ is never below I."""
    rank = right.shape[0]
    products = weight[:, :rank] + weight[:, rank:] @ right.mT
    gram = right @ right.mT
    gram.diagonal().add_(1)
    return torch.cholesky_solve(products.mT, torch.linalg.cholesky(gram)).mT.contiguous()


class Addmm(Kernel, of=LowRankLight):
    """A product that adds the columns taken as they are, and one more."""

    name = "addmm"
    operators = r"aten::addmm$"
    adds_bias = True

    def apply(self, layer: _Map, x: Tensor) -> Tensor:
        operands = (x, layer.left, layer.right)
        tensors = operands if layer.bias is None else (*operands, layer.bias)
        if _block_matmul.needs_grad(*tensors):
            y: Tensor = _Product.apply(*operands, layer.bias, layer.order())  # type: ignore[no-untyped-call]
            return y
        return _product(*operands, layer.bias, layer.order())[0]
