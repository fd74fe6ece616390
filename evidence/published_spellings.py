"""What the published layers of ``published_layers.py`` compute, spelled from the maths.

No code of theirs is here. ``multiply`` of a spelling is our own, in the operations that the
publication uses; ``weights`` lays out the weights of our layer as the publication stores them; and
``as_published`` hands these weights to the published class or function, where a folder has it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from published_code import Spelling, Weights, as_function, as_module, held
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

# --- low rank -----------------------------------------------------------------------------------


def _two_factors(layer: Any) -> Weights:
    """(out, rank) and (rank, in), and the bias where there is one."""
    factors = (layer.left, layer.right)
    return factors if layer.bias is None else (*factors, layer.bias)


TWO_PRODUCTS = Spelling(
    _two_factors,
    lambda x, left, right: torch.mm(torch.mm(x, right.T), left.T),
    as_function(lambda call, x, left, right: call(x, right, left)),
)

TWO_PRODUCTS_AND_BIAS = Spelling(
    _two_factors,
    lambda x, left, right, bias: x @ right.T @ left.T + bias,
    as_module("A B bias"),
    bias=True,
)


def _first_columns(x: Tensor, left: Tensor, right: Tensor, bias: Tensor) -> Tensor:
    """The first ``rank`` inputs are added as they are to a combination of the others."""
    rank = len(right)
    hidden = torch.addmm(x[:, :rank], x[:, rank:], right.T)
    return torch.addmm(bias, hidden, left.T)


FIRST_COLUMNS = Spelling(
    _two_factors,
    _first_columns,
    as_module("A B bias", lambda weights: {"rank": len(weights[1])}),
    bias=True,
)


def _pivot_rows(layer: Any) -> Weights:
    """Our combination of pivot columns as one of pivot rows: (rank, in), (out - rank, rank).

    The rows are those that partial pivoting picks of A in A [I B] Πᵀ; their places and those of the
    other rows follow.
    """
    columns = layer.left.detach().double()  # (out, rank)
    wide = layer.to_dense().detach().double()
    places = list(range(len(columns)))
    for row, other in enumerate(torch.linalg.lu_factor(columns)[1].tolist()):
        places[row], places[other - 1] = places[other - 1], places[row]
    kept = torch.tensor(sorted(places[: columns.shape[1]]))
    rest = torch.tensor(sorted(places[columns.shape[1] :]))
    combined = torch.linalg.solve(columns[kept], columns[rest], left=False)
    dtype = layer.left.dtype
    return wide[kept].to(dtype), combined.to(dtype), kept, rest


def _rows_of_rows(x: Tensor, pivots: Tensor, others: Tensor, kept: Tensor, rest: Tensor) -> Tensor:
    """Some outputs, and the others as combinations of these, each written to its places."""
    y = x.new_empty(len(x), len(kept) + len(rest))
    hidden = functional.linear(x, pivots)
    y.index_copy_(1, kept, hidden)
    return y.index_copy_(1, rest, functional.linear(hidden, others))


def _as_pivot_rows(symbol: Any, weights: Weights, trains: bool) -> nn.Module:
    pivots, others, kept, rest = (weight.detach().clone() for weight in weights)
    module: nn.Module = symbol(pivots, others, kept.tolist(), len(kept) + len(rest))
    return module.requires_grad_(trains)


PIVOT_ROWS = Spelling(_pivot_rows, _rows_of_rows, _as_pivot_rows)


# --- two stages of blocks -----------------------------------------------------------------------


def _into_tokens(left: Tensor, right: Tensor) -> Tensor:
    """(blocks, tokens, q), a view of memory in which tokens are the outer axis."""
    blocks, tokens = left.shape[:2]
    y = left.new_empty(tokens, blocks, right.shape[2]).transpose(0, 1)
    return torch.bmm(left, right, out=y)


def _grouped(x: Tensor, blocks: int) -> Tensor:
    """(tokens, blocks · p) as (blocks, tokens, p)."""
    return x.reshape(len(x), blocks, -1).transpose(0, 1)


def _strided_factors(layer: Any) -> Weights:
    """(k, t·l, p) and (l, s, k·t): of the first product's outputs the group is the inner index."""
    first, second = layer.factors()  # (k, l, t, p) and (l, s, k, t)
    return first.transpose(1, 2).flatten(1, 2), second.flatten(2)


class Butterfly(torch.autograd.Function):
    """Blocks, a regrouping in which groups are the inner index, and blocks; y is strided."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        tokens, groups = len(x), len(second)
        hidden = _into_tokens(_grouped(x, len(first)), first.mT).transpose(0, 1)
        turned = hidden.reshape(tokens, -1, groups).mT.contiguous().transpose(0, 1)
        y = _into_tokens(turned, second.mT)
        ctx.save_for_backward(x, first, second, turned)
        return y.permute(1, 2, 0).reshape(tokens, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Weights:
        x, first, second, turned = ctx.saved_tensors
        tokens, groups, blocks = len(x), len(second), len(first)
        dy = dy.reshape(tokens, -1, groups).mT.contiguous().transpose(0, 1)
        dhidden = _into_tokens(dy, second).transpose(0, 1).mT.reshape(tokens, -1)
        dhidden = _grouped(dhidden, blocks)
        dx = _into_tokens(dhidden, first).transpose(0, 1).reshape(tokens, -1)
        dfirst = torch.bmm(dhidden.mT, _grouped(x, blocks))
        return dx, dfirst, torch.bmm(dy.mT, turned)


def _as_monarch(symbol: Any, weights: Weights, trains: bool) -> nn.Module:
    (blocks, _, in_side), (groups, out_side, _) = weights[0].shape, weights[1].shape
    sizes: dict[str, Any] = {"in_features": blocks * in_side, "out_features": groups * out_side}
    sizes |= {f"{name}_extended": size for name, size in sizes.items()}
    return as_module("blkdiag1 blkdiag2", bias=None, **sizes)(symbol, weights, trains)


def _strided_outputs(layer: Any) -> Tensor:
    """Where the outputs of a blocked layer lie in those of a strided one."""
    groups, side = layer.second.shape[:2]
    return torch.arange(groups * side).view(side, groups).T.flatten()


def _patterns(weights: Weights) -> dict[str, Any]:
    """Each factor as I_a ⊗ (b × c) ⊗ I_d: blocks on the diagonal, then blocks that are strided."""
    (blocks, wide, in_side), (groups, out_side, inner) = weights[0].shape, weights[1].shape
    patterns = [(blocks, wide, in_side, 1), (1, out_side, inner, groups)]
    return {"patterns": patterns, "out_size": groups * out_side}


BUTTERFLY_AS_MODULE = Spelling(_strided_factors, Butterfly.apply, _as_monarch)

BUTTERFLY_REORDERED = BUTTERFLY_AS_MODULE._replace(order=_strided_outputs)

BUTTERFLY = BUTTERFLY_AS_MODULE._replace(as_published=as_function())

BUTTERFLY_OF_PATTERNS = BUTTERFLY._replace(
    as_published=as_module("factors factors", _patterns, algo="bmm", bs_last=False, bias=None),
    trains=False,
)


def _butterfly_in_copies(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The same products into new memory, regrouped by two copies."""
    tokens, groups = len(x), len(second)
    hidden = torch.bmm(_grouped(x, len(first)), first.mT).transpose(0, 1)
    turned = hidden.reshape(tokens, -1, groups).mT.contiguous().transpose(0, 1)
    return torch.bmm(turned, second.mT).permute(1, 2, 0).reshape(tokens, -1)


BUTTERFLY_IN_COPIES = Spelling(
    _strided_factors,
    _butterfly_in_copies,
    as_function(lambda call, x, *tensors: call(x[None], *tensors)[0][0]),
    trains=False,
)


def _rank_one_factors(layer: Any) -> Weights:
    first, second = layer.factors()
    return first.squeeze(2), second.squeeze(3), layer.bias


def _blocks(x: Tensor, weights: Tensor) -> Tensor:
    """One batched product of block-diagonal weights."""
    y = torch.bmm(_grouped(x, len(weights)), weights.mT)
    return y.transpose(0, 1).reshape(len(x), -1)


def _turned(x: Tensor, blocks: int) -> Tensor:
    """The permutation that puts the features of all blocks with one place side by side."""
    return x.reshape(len(x), blocks, -1).mT.reshape(len(x), -1)


def _two_block_diagonals(x: Tensor, first: Tensor, second: Tensor, bias: Tensor) -> Tensor:
    hidden = _turned(_blocks(x, first), len(first))
    return _turned(_blocks(hidden, second), len(second)) + bias


def _as_two_block_diagonals(symbol: Any, weights: Weights, trains: bool) -> nn.Module:
    first, second, bias = (held(weight, trains) for weight in weights)
    module: Any = symbol(first.shape[0] * first.shape[2], len(bias), len(first))
    module.fn[0].weights, module.fn[2].weights, module.bias = first, second, bias
    module.properly_initialized = True
    return cast("nn.Module", module)


TWO_BLOCK_DIAGONALS = Spelling(
    _rank_one_factors, _two_block_diagonals, _as_two_block_diagonals, bias=True
)


def _cores(layer: Any) -> Weights:
    """(k, p, l·t) and (l, k·t, s), by which rows are multiplied from the right."""
    first, second = layer.factors()
    return first.permute(0, 3, 1, 2).flatten(2), second.permute(0, 2, 3, 1).flatten(1, 2)


def _regrouped(z: Tensor, fine: int) -> Tensor:
    """(blocks, tokens, fine · w) as (fine, tokens, blocks · w), by one copy."""
    return z.unflatten(2, (fine, -1)).transpose(0, 2).contiguous().flatten(2)


class Cores(torch.autograd.Function):
    """Two cores of a tensor train, one copy between their products; y is blocked."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        hidden = _regrouped(_into_tokens(_grouped(x, len(first)), first), len(second))
        ctx.save_for_backward(x, first, second, hidden)
        return _into_tokens(hidden, second).transpose(0, 1).reshape(len(x), -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Weights:
        x, first, second, hidden = ctx.saved_tensors
        dy = _grouped(dy, len(second))
        dhidden = _regrouped(_into_tokens(dy, second.mT), len(first))
        dx = _into_tokens(dhidden, first.mT).transpose(0, 1).reshape(len(x), -1)
        dfirst = torch.bmm(dhidden.mT, _grouped(x, len(first))).mT
        return dx, dfirst, torch.bmm(dy.mT, hidden).mT


def _with_shapes(function: Any, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The published function asks for ranks, and for the sizes of inputs and outputs."""
    (blocks, in_side, _), (groups, inner, out_side) = first.shape, second.shape
    shapes = ((1, inner // blocks, 1), (in_side, blocks), (groups, out_side))
    y: Tensor = function(x, first, second, shapes)
    return y


CORES = Spelling(_cores, Cores.apply, as_function(_with_shapes))


def _train_factors(layer: Any) -> Weights:
    """(s, l, k, t) and (t, l, k, p), and the bias."""
    first, second = layer.factors()
    return second.transpose(0, 1), first.permute(2, 1, 0, 3), layer.bias


def _train_formed(x: Tensor, left: Tensor, right: Tensor, bias: Tensor) -> Tensor:
    """W by one sum over the ranks, and one dense product."""
    weight = torch.einsum("slkt,tlkp->slkp", left, right).reshape(len(bias), -1)
    return torch.addmm(bias, x, weight.T)


TRAIN_FORMED = Spelling(
    _train_factors,
    _train_formed,
    as_module(
        "L R bias",
        lambda weights: {
            "out_dim": len(weights[2]),
            "in_dim": weights[1].shape[2] * weights[1].shape[3],
        },
    ),
    bias=True,
)


# --- shared bases -------------------------------------------------------------------------------


def _bases_by_pairs(layer: Any) -> Weights:
    """(i, p, rank), (j, rank, q) and couplings (i, j, rank)."""
    return layer.bases_out, layer.bases_in, layer.pairwise().contiguous()


def _coupled_by_sums(x: Tensor, bases_out: Tensor, bases_in: Tensor, couplings: Tensor) -> Tensor:
    """Every product of a coupling is formed, and then they are added."""
    z = torch.bmm(_grouped(x, len(bases_in)), bases_in.mT)
    z = (z.unsqueeze(0) * couplings.unsqueeze(2)).sum(1)
    return torch.bmm(z, bases_out.mT).transpose(0, 1).reshape(len(x), -1)


def _grid(weights: Weights) -> dict[str, Any]:
    (groups, out_side, _), blocks = weights[0].shape, len(weights[1])
    return {"num_blocks": (groups, blocks), "out_features": groups * out_side}


COUPLED_BY_SUMS = Spelling(
    _bases_by_pairs,
    _coupled_by_sums,
    as_module("B C D", _grid, bias=None, precompute_matrix=False),
)


def _bases_by_component(layer: Any) -> Weights:
    bases_out, bases_in, couplings = _bases_by_pairs(layer)
    return bases_out, bases_in, couplings.permute(2, 0, 1).contiguous()


def _coupled_by_bmm(x: Tensor, bases_out: Tensor, bases_in: Tensor, couplings: Tensor) -> Tensor:
    """Three batched products; ranks are the batch of the middle one, and copies turn to them."""
    z = torch.bmm(_grouped(x, len(bases_in)), bases_in.mT)
    z = torch.bmm(z.transpose(0, 2).contiguous(), couplings.mT)
    y = torch.bmm(z.transpose(0, 2).contiguous(), bases_out.mT)
    return y.transpose(0, 1).reshape(len(x), -1)


COUPLED_BY_BMM = Spelling(
    _bases_by_component,
    _coupled_by_bmm,
    as_function(lambda call, x, *tensors: call(x, *tensors)[0]),
)


# --- single entries -----------------------------------------------------------------------------

GATHERED = Spelling(
    lambda layer: (layer.values, layer.columns.to(torch.int32), layer.bias),
    lambda x, values, columns, bias: (values * x[..., columns]).sum(-1) + bias,
    as_module("condensed_weight input_mask bias"),
    bias=True,
    trains=False,
)

COMPRESSED_ROWS = Spelling(
    # With the indices of 64 bits that ``to_sparse_csr`` gives.
    lambda layer: (layer.to_dense().detach().to_sparse_csr(), layer.bias),
    functional.linear,
    as_module("sparse_weight bias"),
    bias=True,
    trains=False,
)

MASKED = Spelling(
    lambda layer: (layer.weight, layer.mask, layer.bias),
    lambda x, weight, mask, bias: x @ (mask * weight).T + bias,
    as_module("weight mask bias"),
    bias=True,
)


def _factors_and_entries(layer: Any) -> Weights:
    """(out, rank), (rank, in), the entries, and their ascending places in the flattened W."""
    starts, columns = layer.row_starts.long(), layer.columns.long()
    rows = torch.repeat_interleave(torch.arange(len(starts) - 1), starts.diff())
    return layer.left, layer.right, layer.values, rows * layer.in_features + columns


def _summed(left: Tensor, right: Tensor, values: Tensor, places: Tensor) -> Tensor:
    weight = left @ right
    weight.view(-1).scatter_add_(0, places, values)
    return weight


class FormedSum(torch.autograd.Function):
    """A dense product with W, which is formed forward and once more backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, left: Tensor, right: Tensor, values: Tensor, places: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, left, right, values, places)
        return functional.linear(x, _summed(left, right, values, places))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, left, right, values, places = ctx.saved_tensors
        dx = dy @ _summed(left, right, values, places)
        dweight = dy.T @ x
        dleft, dright = dweight @ right.T, left.T @ dweight
        return dx, dleft, dright, dweight.view(-1).gather(0, places), None


FORMED_SUM = Spelling(
    _factors_and_entries,
    # The second factor is scaled in every call; here by one.
    lambda x, left, right, *entries: FormedSum.apply(x, left, right * 1.0, *entries),
    as_module(
        "lora_B lora_A sparse_value sparse_index", bias=None, scaling=1.0, trainable_scaling=False
    ),
)


# --- other structures ---------------------------------------------------------------------------


class BlocksThenDense(torch.autograd.Function):
    """A batched product, written where the dense product reads it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Tensor, dense: Tensor) -> Tensor:
        hidden = _into_tokens(_grouped(x, len(blocks)), blocks.mT)
        hidden = hidden.transpose(0, 1).reshape(len(x), -1)
        ctx.save_for_backward(x, blocks, dense, hidden)
        return torch.mm(hidden, dense.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Weights:
        x, blocks, dense, hidden = ctx.saved_tensors
        dhidden = _grouped(torch.mm(dy, dense), len(blocks))
        dx = _into_tokens(dhidden, blocks).transpose(0, 1).reshape(len(x), -1)
        dblocks = torch.bmm(dhidden.mT, _grouped(x, len(blocks)))
        return dx, dblocks, torch.mm(dy.T, hidden)


BLOCKS_THEN_DENSE = Spelling(
    lambda layer: (layer.blocks, layer.dense), BlocksThenDense.apply, as_function()
)


def _sides(weights: Weights) -> dict[str, Any]:
    blocks, out_side, in_side = weights[0].shape
    sides = {"nr_blocks": blocks, "block_size_in": in_side, "block_size_out": out_side}
    return {**sides, "in_dim": blocks * in_side, "out_dim": blocks * out_side}


DIAGONAL_BLOCKS = Spelling(
    lambda layer: (layer.weights, layer.bias),
    lambda x, weights, bias: _blocks(x, weights) + bias,
    as_module("weights bias", _sides),
    bias=True,
)


def _kronecker_factors(layer: Any) -> Weights:
    """A (i, j, rank), B (rank, u, v) and the bias, whichever way the layer stores them."""
    if layer.inner_first:
        return layer.outer, layer.inner, layer.bias
    return layer.outer.transpose(1, 2), layer.inner.transpose(0, 1), layer.bias


def _one_term(layer: Any) -> Weights:
    outer, inner, bias = _kronecker_factors(layer)
    return outer.squeeze(2), inner.squeeze(0), bias


KRON_FORMED = Spelling(
    _one_term,
    lambda x, outer, inner, bias: torch.addmm(bias, x, torch.kron(outer, inner).T),
    as_module("f1 f2 bias"),
    bias=True,
)


def _two_cores(layer: Any) -> Weights:
    outer, inner, bias = _kronecker_factors(layer)
    return outer.unsqueeze(0), inner.unsqueeze(3), bias


def _cores_formed(x: Tensor, outer: Tensor, inner: Tensor, bias: Tensor) -> Tensor:
    """W by one sum over the ranks, its axes put in order, and one dense product."""
    weight = torch.einsum("aijr,ruvb->aiujvb", outer, inner).reshape(len(bias), -1)
    return torch.addmm(bias, x, weight.T)


def _formed_sizes(weights: Weights) -> dict[str, Any]:
    (_, i, j, _), (_, u, v, _) = weights[0].shape, weights[1].shape
    return {"nr_cores": 2, "out_dim": i * u, "in_dim": j * v}


CORES_FORMED = Spelling(
    _two_cores, _cores_formed, as_module("cores cores bias", _formed_sizes), bias=True
)
