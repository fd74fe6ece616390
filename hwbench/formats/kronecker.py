"""A sum of Kronecker products, W = Σ A[r] ⊗ B[r]: a grid of blocks, each a mixture of a few.

W is read as ``out_blocks`` × ``in_blocks`` blocks. Block (i, j) is Σ_r A[r, i, j] B[r], so that the
``rank`` matrices B are shared by all blocks. Where they are not given, out = out_blocks × out_side
(the larger first) and in = in_side × in_blocks (the larger first) are the factors nearest to a
square. Nothing is padded: a prime size has one block, or blocks of one. With one term it is the
plain Kronecker product, with several the tensor train of two cores.

Kernels: ``cheapest`` is ``matmul``, or W formed in the call and one dense product, whichever costs
less: the chain uses each value once for every row of blocks and every token, and writes what lies
between its products, so that from some tokens on W is formed for less. ``matmul`` is one product
with all B and one batched product with A, in the cheaper order, with a backward pass of its own;
``einsum`` is the spelling that users write.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from hwbench.formats import _block_matmul, _init, _kernel, _sizes
from hwbench.formats._base import Format, Linear, by_direction

WRITTEN = 32
"""Multiply-adds in whose time a value is written and read; docs/method.md has what chose it."""


class _Map(Linear):
    """Both factors lie as the products read them, which depends on what is applied first."""

    def __init__(self, spec: Kronecker, outer: Tensor, inner: Tensor) -> None:
        super().__init__(spec.out_features, spec.in_features)
        self.kernel, self.inner_first = spec.implementation, spec.inner_first()
        self.forms = spec.forms
        order = ((1, 2, 0), (0, 1, 2)) if self.inner_first else ((1, 0, 2), (1, 0, 2))
        outer, inner = outer.permute(order[0]), inner.permute(order[1])
        self.outer = nn.Parameter(outer.contiguous())  # A: (i, j, r), or (i, r, j)
        self.inner = nn.Parameter(inner.contiguous())  # B: (r, u, v), or (u, r, v)

    def formed(self) -> Tensor:
        """W (out, in) as the product of all A and all B, and one copy; differentiable."""
        first = self.inner_first
        outer = self.outer if first else self.outer.transpose(1, 2)  # (i, j, r)
        inner = self.inner if first else self.inner.transpose(0, 1)  # (r, u, v)
        (rows, columns), (out_side, in_side) = outer.shape[:2], inner.shape[1:]
        blocks = outer.flatten(0, 1) @ inner.flatten(1)  # (i·j, u·v)
        grid = blocks.view(rows, columns, out_side, in_side).transpose(1, 2)
        return grid.reshape(self.out_features, self.in_features)

    def to_dense(self) -> Tensor:
        form = "ijr,ruv->iujv" if self.inner_first else "irj,urv->iujv"
        return torch.einsum(form, self.outer, self.inner).flatten(2).flatten(0, 1)


def _inner_first(x: Tensor, outer: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
    """y, and the intermediate (tokens, j·r, u)."""
    blocks, width = outer.shape[1], inner.shape[1]
    z = torch.mm(x.reshape(x.shape[0] * blocks, -1), inner.flatten(0, 1).mT)
    z = z.view(x.shape[0], -1, width)
    return torch.bmm(_shared(outer.flatten(1), z), z).flatten(1), z


class _InnerFirst(torch.autograd.Function):
    """z = B x in one product, y = A z token by token."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, outer: Tensor, inner: Tensor) -> Tensor:
        y, z = _inner_first(x, outer, inner)
        ctx.save_for_backward(x, outer, inner, z)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, outer, inner, z = ctx.saved_tensors
        x_needs, outer_needs, inner_needs = ctx.needs_input_grad
        dy = dy.reshape(dy.shape[0], outer.shape[0], -1)  # (tokens, i, u)
        dx = douter = dinner = None
        if outer_needs:
            douter = torch.mm(_turned(dy), _turned(z).mT).view_as(outer)
        if x_needs or inner_needs:
            dz = torch.bmm(_shared(outer.flatten(1).mT, dy), dy)
            dz = dz.view(dy.shape[0] * outer.shape[1], -1)  # (tokens·j, r·u)
            if inner_needs:
                dinner = torch.mm(dz.mT, x.reshape(dz.shape[0], -1)).view_as(inner)
            if x_needs:
                dx = torch.mm(dz, inner.flatten(0, 1)).view_as(x)
        return dx, douter, dinner


def _outer_first(x: Tensor, outer: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
    """y, and the intermediate (tokens, i·r, v)."""
    grouped = x.reshape(x.shape[0], outer.shape[2], -1)  # (tokens, j, v)
    z = torch.bmm(_shared(outer.flatten(0, 1), grouped), grouped)
    y = torch.mm(z.view(-1, inner.shape[1] * inner.shape[2]), inner.flatten(1).mT)
    return y.view(x.shape[0], -1), z


class _OuterFirst(torch.autograd.Function):
    """z = A x token by token, y = B z in one product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, outer: Tensor, inner: Tensor) -> Tensor:
        y, z = _outer_first(x, outer, inner)
        ctx.save_for_backward(x, outer, inner, z)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, outer, inner, z = ctx.saved_tensors
        x_needs, outer_needs, inner_needs = ctx.needs_input_grad
        dy = dy.reshape(dy.shape[0] * outer.shape[0], -1)  # (tokens·i, u)
        dx = douter = dinner = None
        if inner_needs:
            dinner = torch.mm(dy.mT, z.view(dy.shape[0], -1)).view_as(inner)
        if x_needs or outer_needs:
            dz = torch.mm(dy, inner.flatten(1)).view_as(z)  # (tokens, i·r, v)
            if outer_needs:
                grouped = x.reshape(x.shape[0], outer.shape[2], -1)
                douter = torch.mm(_turned(dz), _turned(grouped).mT).view_as(outer)
            if x_needs:
                dx = torch.bmm(_shared(outer.flatten(0, 1).mT, dz), dz).view_as(x)
        return dx, douter, dinner


def _shared(matrix: Tensor, like: Tensor) -> Tensor:
    """The same matrix for every token, without a copy."""
    return matrix.expand(like.shape[0], *matrix.shape)


def _turned(z: Tensor) -> Tensor:
    """(tokens, a, b) as (a, tokens · b): a copy, so that a sum over tokens is one product."""
    return z.transpose(0, 1).reshape(z.shape[1], -1)


@dataclass(frozen=True, kw_only=True)
class Kronecker(Format):
    """The sum of ``rank`` Kronecker products of (out_blocks, in_blocks) and (out_side, in_side).

    Raises:
        KnobError: a number of blocks divides no size, or the rank exceeds that of any weight.
    """

    PAPER = "Van Loan and Pitsianis, Approximation with Kronecker Products, 1993"
    OUTPUTS = "factors"

    revision: ClassVar[int] = 3

    rank: int
    out_blocks: int = None  # type: ignore[assignment]  # filled in below: the larger factor of out
    in_blocks: int = None  # type: ignore[assignment]  # and the smaller factor of in

    def __post_init__(self) -> None:
        super().__post_init__()
        _sizes.fill_outer_grid(self)
        self.check_integer("rank", low=1, high=min(self._sizes()))

    def largest_setting(self) -> int:
        return min(self._sizes())

    def smallest_words(self) -> str:
        return f"one term has density {self.density():.4g}"

    def _sides(self) -> tuple[int, int]:
        return self.out_features // self.out_blocks, self.in_features // self.in_blocks

    def _sizes(self) -> tuple[int, int]:
        """Entries of one A and of one B."""
        out_side, in_side = self._sides()
        return self.out_blocks * self.in_blocks, out_side * in_side

    def inner_first(self) -> bool:
        """Whether B is applied before A: the order with fewer FLOPs."""
        return sum(self._products(inner_first=True)) <= sum(self._products(inner_first=False))

    def _products(self, *, inner_first: bool) -> tuple[int, int]:
        """Multiply-adds a token of both products, in order; each parameter is used many times."""
        outer, inner = (self.rank * size for size in self._sizes())
        out_side, in_side = self._sides()
        if inner_first:
            return inner * self.in_blocks, outer * out_side
        return outer * in_side, inner * self.out_blocks

    def parameters(self) -> int:
        return sum(self.stages())

    def stages(self) -> tuple[int, ...]:
        outer, inner = (self.rank * size for size in self._sizes())
        return (inner, outer) if self.inner_first() else (outer, inner)

    def products(self) -> tuple[int, ...]:
        return self._products(inner_first=self.inner_first())

    def forms(self, tokens: int) -> bool:
        """Whether the kernel forms W for this number of tokens."""
        kernel = self.implementation
        return isinstance(kernel, Cheapest) and kernel.forms(self, tokens)

    def flops(self, tokens: int, direction: str) -> int:
        """FLOPs of the chain; or of making W and its gradient once a call, and dense products."""
        if not self.forms(tokens):
            return super().flops(tokens, direction)
        weights = self.out_features * self.in_features
        product, forming = 2 * tokens * weights, 2 * self.rank * weights
        return by_direction(
            direction,
            forward=product + forming,
            to_input=product,
            to_weight=product + 2 * forming,
        )

    def intermediate_bytes(self, tokens: int, item_bytes: int, direction: str) -> int:
        """Bytes of the chain; or of W and its gradient, each written, copied and read."""
        if not self.forms(tokens):
            return super().intermediate_bytes(tokens, item_bytes, direction)
        weights = item_bytes * self.out_features * self.in_features
        return by_direction(direction, forward=4 * weights, to_input=weights, to_weight=5 * weights)

    def needed_flops(self, tokens: int, direction: str) -> int:
        """The executed FLOPs: a value is used many times a token."""
        return self.flops(tokens, direction)

    def intermediate_width(self) -> int:
        out_side, in_side = self._sides()
        if self.inner_first():
            return self.rank * self.in_blocks * out_side
        return self.rank * self.out_blocks * in_side

    def random(self, *, dtype: torch.dtype, generator: torch.Generator) -> Linear:
        (out_side, in_side), device = self._sides(), generator.device
        outer = torch.empty(self.rank, self.out_blocks, self.in_blocks, device=device)
        inner = torch.empty(self.rank, out_side, in_side, device=device)
        fans = ((self.out_blocks, self.rank * self.in_blocks), (self.rank * out_side, in_side))
        for factor, (fan_out, fan_in) in zip((outer, inner), fans, strict=True):
            factor.normal_(std=_init.spectral_std(fan_out, fan_in), generator=generator)
        return _Map(self, outer.to(dtype), inner.to(dtype))

    def project(self, weight: Tensor, *, activations: Tensor | None = None) -> Linear:
        """The nearest member: with one row for each block, W becomes a matrix of low rank."""
        del activations
        out_side, in_side = self._sides()
        grid = _init.working(weight).reshape(self.out_blocks, out_side, self.in_blocks, in_side)
        left, right = _init.truncated(grid.transpose(1, 2).reshape(self._sizes()), self.rank)
        outer = left.mT.unflatten(1, (self.out_blocks, self.in_blocks)).to(weight.dtype)
        return _Map(self, outer, right.unflatten(1, (out_side, in_side)).to(weight.dtype))


class Matmul(_kernel.Kernel, of=Kronecker):
    """One product with all B and one batched product with A, in the cheaper order.

    Not counted: the gradient of A copies the intermediate, and x or dy.
    """

    name = "matmul"
    operators = r"aten::(mm|bmm|matmul)$"

    def apply(self, layer: _Map, x: Tensor) -> Tensor:
        factors = (layer.outer, layer.inner)
        if _block_matmul.needs_grad(x, *factors):
            product = _InnerFirst if layer.inner_first else _OuterFirst
            y: Tensor = product.apply(x, *factors)  # type: ignore[no-untyped-call]
            return y
        return (_inner_first if layer.inner_first else _outer_first)(x, *factors)[0]


class Cheapest(Matmul, of=Kronecker, default=True):
    """The chain of ``matmul``, or W formed in the call and one dense product: the cheaper one.

    The choice is the same in every direction: either way a step executes three times the FLOPs of
    its forward pass.
    """

    name = "cheapest"
    materialises = True

    def apply(self, layer: _Map, x: Tensor) -> Tensor:
        if layer.forms(x.shape[0]):
            return functional.linear(x, layer.formed())
        return super().apply(layer, x)

    def forms(self, described: Kronecker, tokens: int) -> bool:
        """Whether W and a dense product cost less than the chain.

        The products of either count, and the values that they write: W twice, as it is copied.
        """
        weights = described.out_features * described.in_features
        chain = sum(described.products()) + WRITTEN * described.intermediate_width()
        return tokens * chain > (tokens + described.rank + 2 * WRITTEN) * weights


class Einsum(_kernel.Einsum, of=Kronecker):
    """The spelling that users write."""

    def apply(self, layer: _Map, x: Tensor) -> Tensor:
        x = x.reshape(x.shape[0], layer.outer.shape[1 if layer.inner_first else 2], -1)
        if layer.inner_first:
            z = torch.einsum("bjv,ruv->bjru", x, layer.inner)
            y = torch.einsum("bjru,ijr->biu", z, layer.outer)
        else:
            z = torch.einsum("bjv,irj->birv", x, layer.outer)
            y = torch.einsum("birv,urv->biu", z, layer.inner)
        return y.reshape(x.shape[0], -1).contiguous()

    def copied_width(self, described: Kronecker) -> int:
        return described.intermediate_width() + described.out_features
