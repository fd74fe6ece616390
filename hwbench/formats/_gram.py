"""Projections that see the data: the member whose outputs are nearest, ‖(W − Ŵ)X‖ over given rows.

With G = XᵀX / n the squared error is tr (W − Ŵ) G (W − Ŵ)ᵀ. A matrix of given rank has a closed
form: with G = L Lᵀ it is the truncated decomposition of W L, times L⁻¹ (Wang et al., SVD-LLM, ICLR
2025, arXiv:2403.07378). Where every block of W has low rank, each column of blocks takes that form
in turn, of what the others leave. A format whose last factor may be any matrix is projected for W L
by the plain error, and that factor turned back by L⁻¹. Single entries are chosen and made up for by
``_pruned``, and values at places that the plain projection chooses are settled there. In all other
formats the error is quadratic in one factor while the others are held: a few steps of conjugate
gradients on each in turn never raise it.

G and its factors, the closed form of a whole matrix and long runs of conjugate gradients are
computed in float64; all else in the precision of the weight, at least in float32. What lies beside
the diagonal of G is shrunk as far as the rows are too few to know it (Schäfer and Strimmer, 2005,
doi:10.2202/1544-6115.1175), and a little of the mean of the diagonal is added to it, so that what
the rows never show still counts.
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from hwbench.errors import UsageError
from hwbench.formats import _init, _pruned

RANK, BLOCKS, N_OF_M, KEPT = "rank", "blocks", "n_of_m", "kept"
PLACED, FACTORS, TURNED, EXACT = "placed", "factors", "turned", "exact"
"""How a format is projected by outputs, as its ``OUTPUTS`` says."""

DAMPING = 0.01
"""The share of the mean of G's diagonal that is added to the diagonal."""

SWEEPS, STEPS = 8, 4
"""Rounds over all factors at most, and steps of conjugate gradients on each."""

ROUNDS = 4
"""Rounds over all columns of blocks. docs/decisions/0011 tells how these numbers were chosen."""

ENOUGH = 1e-4
"""A sweep that lowers the error by less than this part is the last."""

_ROWS = 4096  # rows that are multiplied at once


class Member(Protocol):
    """A layer, as ``Linear`` is one."""

    def to_dense(self) -> Tensor:
        """W, differentiable."""

    def named_parameters(self) -> Any:
        """Its factors by name."""

    def to(self, dtype: torch.dtype, /) -> Any:
        """The layer in that dtype."""


class Described(Protocol):
    """A description of a layer, as ``Format`` is one."""

    OUTPUTS: ClassVar[str]

    def name(self) -> str:
        """The name of the format."""

    def knobs(self) -> dict[str, Any]:
        """Its settings."""

    def parameters(self) -> int:
        """The number of values."""

    def project(self, weight: Tensor, *, activations: Tensor | None = None) -> Any:
        """The nearest layer."""


def moments(rows: Tensor) -> Tensor:
    """G = XᵀX / n of rows (n, in), shrunk and damped, summed in float64: (in, in).

    Raises:
        UsageError: the rows are no matrix, there is none, or a number in them is not finite.
    """
    if rows.dim() != 2 or not rows.numel():
        raise UsageError(
            f"activations must have the shape (samples, inputs), not {tuple(rows.shape)}."
        )
    inputs = rows.shape[1]
    gram = torch.zeros(inputs, inputs, dtype=torch.float64, device=rows.device)
    fourth = torch.zeros((), dtype=torch.float64, device=rows.device)
    for some in rows.detach().split(_ROWS):
        wide = some.double()
        gram.addmm_(wide.T, wide)
        squares = wide.square()
        fourth += squares.sum(1).square().sum() - squares.square().sum()
    gram /= len(rows)
    if not bool(gram.isfinite().all()):
        raise UsageError("The activations hold numbers that are not finite.")
    diagonal = gram.diagonal().clone()
    gram *= 1 - _doubt(gram, float(fourth) / len(rows), len(rows))
    gram.diagonal().copy_(diagonal)
    mean = float(gram.diagonal().mean())
    gram.diagonal().add_(DAMPING * mean if mean > 0 else 1.0)
    return gram


def _doubt(gram: Tensor, fourth: float, rows: int) -> float:
    """How far to shrink what is beside the diagonal: its variance over its size, from 0 to 1.

    Args:
        gram: XᵀX / n.
        fourth: the mean of x²ᵢ x²ⱼ, summed over all i and j that are not equal.
        rows: n.
    """
    size = float(gram.square().sum() - gram.diagonal().square().sum())
    if rows < 2 or size <= 0:
        return 1.0
    return min(1.0, max(0.0, (fourth - size) / (rows - 1) / size))


class Seen:
    """A layer's inputs and the matrices derived from them, each made once; layers may share it.

    Args:
        rows: what the layer sees, (samples, in_features), on the device of the weights.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    @classmethod
    def of(cls, rows: Tensor | Seen, weight: Tensor) -> Seen:
        """Return the ``Seen`` of these rows for a weight (out, in); one that is given is checked.

        Raises:
            UsageError: the rows do not fit.
        """
        rows_seen = rows if isinstance(rows, Seen) else cls(rows.to(weight.device))
        inputs, shape = weight.shape[1], tuple(rows_seen.rows.shape)
        if len(shape) != 2 or shape[1] != inputs:
            raise UsageError(f"activations must have the shape (samples, {inputs}), not {shape}.")
        return rows_seen

    @classmethod
    def of_gram(cls, gram: Tensor) -> Seen:
        """One that knows G (in, in) alone, as ``moments`` makes it: it has no rows."""
        seen = cls(gram.new_zeros(0, len(gram)))
        seen.gram = gram
        return seen

    @cached_property
    def gram(self) -> Tensor:
        """G, (in, in), as ``moments`` makes it."""
        return moments(self.rows)

    @cached_property
    def lower(self) -> Tensor:
        """L of G = L Lᵀ."""
        return torch.linalg.cholesky(self.gram)

    @property
    def square_rows(self) -> Tensor:
        """As many rows as inputs, (in, in), whose XᵀX is G: of its columns and its directions."""
        return self.lower.mT

    @cached_property
    def inverse(self) -> Tensor:
        """G⁻¹."""
        return torch.cholesky_inverse(self.lower)

    @cached_property
    def upper(self) -> Tensor:
        """U of G⁻¹ = Uᵀ U."""
        return torch.linalg.cholesky(self.inverse, upper=True)

    @cached_property
    def size(self) -> Tensor:
        """One row that weighs columns as the diagonal of G does, (1, in)."""
        return self.gram.diagonal().sqrt().unsqueeze(0)


def nearest(described: Described, weight: Tensor, rows: Tensor | Seen) -> Any:
    """The member of a format whose outputs on these rows are near to those of a weight.

    By ``moments`` its error is never above that of ``described.project`` with activations; but for
    ``FACTORS`` nor above that without.

    Args:
        described: the format, which says in ``OUTPUTS`` how.
        weight: (out_features, in_features); the layer has its dtype and device.
        rows: what the layer sees, (samples, in_features), or a ``Seen`` of it.

    Raises:
        UsageError: the format says nothing, or the rows do not fit.
    """
    if described.OUTPUTS == EXACT:
        return described.project(weight)
    if described.OUTPUTS not in _WAYS:
        raise UsageError(f"{described.name()} cannot be projected by outputs.")
    seen = Seen.of(rows, weight)
    layer = _WAYS[described.OUTPUTS](described, _init.working(weight), seen).to(weight.dtype)
    layer.described = described
    return layer


def _loss(lost: Tensor, gram: Tensor) -> float:
    """tr (W − Ŵ) G (W − Ŵ)ᵀ of what is lost, W − Ŵ."""
    return float((lost @ gram * lost).sum())


def _of_rank(described: Any, weight: Tensor, seen: Seen) -> Any:
    """The optimum among all matrices of a rank."""
    factors = of_rank(weight.double() @ seen.lower, seen.lower, int(described.knobs()["rank"]))
    return described.of_factors(*even(*factors))


def of_rank(turned: Tensor, lower: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The factors (…, out, rank) and (…, rank, in) with the least error against a matrix W.

    By the eigenvectors of the smaller of both squares, and without a division by a singular value:
    with the left ones U it is U Uᵀ W, with the right ones V of W L it is W L V Vᵀ L⁻¹.

    Args:
        turned: W L, (…, out, in).
        lower: L of G = L Lᵀ, (…, in, in).
        rank: at most out and in.
    """
    if turned.shape[-2] <= turned.shape[-1]:
        left = torch.linalg.eigh(turned @ turned.mT).eigenvectors[..., -rank:]
        back = left.mT @ turned
    else:
        back = torch.linalg.eigh(turned.mT @ turned).eigenvectors[..., -rank:].mT
        left = turned @ back.mT
    return left, torch.linalg.solve_triangular(lower, back, upper=False, left=False)


def even(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The same product, each component as large in one factor as in the other."""
    sizes = torch.linalg.norm(left, dim=-2), torch.linalg.norm(right, dim=-1)
    share = torch.where((sizes[0] > 0) & (sizes[1] > 0), (sizes[1] / sizes[0]).sqrt(), 1)
    return left * share.unsqueeze(-2), right / share.unsqueeze(-1)


def _of_blocks(described: Any, weight: Tensor, seen: Seen) -> Any:
    """Blocks of low rank: each column of blocks in turn is the best of what the others leave."""
    rank, blocks = int(described.knobs()["rank"]), described.split(weight)  # (l, k, s, p)
    groups, side = blocks.shape[1], blocks.shape[3]
    wide = _padded(seen.gram, groups * side)
    lower, wide = (t.to(weight.dtype) for t in (torch.linalg.cholesky(_own(wide, groups)), wide))
    left, right = _best_apart(blocks, wide, lower, rank)
    lost = _rows(blocks - left @ right)  # (l · s, k · p)
    for _ in range(ROUNDS):
        for place in range(groups):
            here, root = slice(place * side, (place + 1) * side), lower[place]
            pull = (lost @ wide[:, here]).unflatten(0, (blocks.shape[0], -1))  # (l, s, p)
            more = torch.linalg.solve_triangular(root.mT, pull, upper=True, left=False)
            turned = left[:, place] @ (right[:, place] @ root) + more
            left[:, place], right[:, place] = of_rank(turned, root, rank)
            product = left[:, place] @ right[:, place]
            lost[:, here] = (blocks[:, place] - product).flatten(0, 1)
    return described.of_blocks(*even(left, right))


def _best_apart(blocks: Tensor, wide: Tensor, lower: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors of every block for itself: by its own part of G, by the diagonal of it, or by none.

    Args:
        blocks: (l, k, s, p).
        wide: G, (k · p, k · p).
        lower: L of the blocks on its diagonal, (k, p, p).
        rank: of the blocks.
    """
    sizes = wide.diagonal().view(len(lower), -1).sqrt()
    weighed = (lower, torch.diag_embed(sizes), torch.diag_embed(torch.ones_like(sizes)))
    candidates = [of_rank(blocks @ each, each, rank) for each in weighed]
    left, right = min(candidates, key=lambda pair: _loss(_rows(blocks - pair[0] @ pair[1]), wide))
    return left.contiguous(), right.contiguous()


def _own(wide: Tensor, groups: int) -> Tensor:
    """The blocks of G on its diagonal: (k · p, k · p) → (k, p, p)."""
    cut = wide.unflatten(0, (groups, -1)).unflatten(2, (groups, -1))
    return cut.diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def _rows(blocks: Tensor) -> Tensor:
    """(l, k, s, p) as the matrix (l · s, k · p)."""
    return blocks.transpose(1, 2).flatten(2).flatten(0, 1)


def _padded(gram: Tensor, inputs: int) -> Tensor:
    """G with further inputs, which go with no other."""
    if inputs == len(gram):
        return gram
    wide = torch.eye(inputs, dtype=gram.dtype, device=gram.device)
    wide *= gram.diagonal().mean()
    wide[: len(gram), : len(gram)] = gram
    return wide


def _of_entries(described: Any, weight: Tensor, seen: Seen) -> Any:
    """Single entries: chosen and made up for, and then of the least error where they lie."""
    settings, narrow = described.knobs(), partial(torch.Tensor.to, dtype=weight.dtype)
    gram, inverse, upper, size = map(narrow, (seen.gram, seen.inverse, seen.upper, seen.size))
    if described.OUTPUTS == N_OF_M:
        groups = int(settings.get("n", 2)), int(settings.get("m", 4))
        pruned = _pruned.pruned(weight, inverse, upper, n_of_m=groups)
    else:
        pruned = _pruned.pruned(weight, inverse, upper, nonzeros=described.parameters())
    least = _loss(weight - pruned, gram)
    for other in _without_rows(described, weight, size):
        dense = other.to_dense().detach()
        if (loss := _loss(weight - dense, gram)) < least:
            pruned, least = dense, loss
    settled = _pruned.settled(pruned.double(), weight.double(), seen.gram)
    return described.project(settled.to(weight.dtype))


def _of_factors(described: Any, weight: Tensor, seen: Seen) -> Any:
    """Refined from the projection that weighs columns; from the plain one it ends higher."""
    gram, rows = (each.to(weight.dtype) for each in (seen.gram, seen.square_rows))
    best = described.project(weight, activations=rows)
    if len(_factors(best)) == 1:  # a long run of steps, which has to stay conjugate
        best, weight, gram = best.to(torch.float64), weight.double(), seen.gram
    refine(best, weight, gram)
    return best


def _of_turned(described: Any, weight: Tensor, seen: Seen) -> Any:
    """The best of what is learnt for W L and of the plain projections."""
    weight = weight.double()
    learnt = described.project_turned(weight, seen.lower)
    return _least_lost([learnt, *_without_rows(described, weight, seen.size)], weight, seen.gram)


def _of_places(described: Any, weight: Tensor, seen: Seen) -> Any:
    """Values at places that ``project`` decides: the better of two choices, and settled there."""
    gram, size = (each.to(weight.dtype) for each in (seen.gram, seen.size))
    best = _least_lost(_without_rows(described, weight, size), weight, gram)
    dense = best.to_dense().detach().double()
    (values,) = _factors(best)
    with torch.no_grad():
        values.fill_(1)
        places = best.to_dense() != 0
    settled = _pruned.settled(dense, weight.double(), seen.gram, places)
    return described.project(settled.to(weight.dtype))


def _without_rows(described: Any, weight: Tensor, size: Tensor) -> list[Any]:
    """The projections that see nothing of the inputs, and the size of each alone."""
    return [described.project(weight), described.project(weight, activations=size)]


def _least_lost(layers: list[Any], weight: Tensor, gram: Tensor) -> Any:
    """The layer that loses least."""
    return min(layers, key=lambda layer: _loss(weight - layer.to_dense().detach(), gram))


def _factors(layer: Member) -> list[Tensor]:
    return [value for name, value in layer.named_parameters() if name != "bias"]


_WAYS = {
    RANK: _of_rank,
    BLOCKS: _of_blocks,
    N_OF_M: _of_entries,
    KEPT: _of_entries,
    PLACED: _of_places,
    FACTORS: _of_factors,
    TURNED: _of_turned,
}


def refine(layer: Member, weight: Tensor, gram: Tensor) -> None:
    """Lower tr (W − Ŵ) G (W − Ŵ)ᵀ of a layer, a factor at a time, in place.

    Ŵ is linear in each parameter while the others are held, so every step goes to the least error
    along its direction.
    """
    factors = _factors(layer)
    steps = STEPS * (SWEEPS if len(factors) == 1 else 1)  # one factor: a single run of steps
    lost = layer.to_dense().detach() - weight
    pull = lost @ gram
    before = float((pull * lost).sum())
    for _ in range(1 if len(factors) == 1 else SWEEPS):
        for factor in factors:
            _descend(layer, factor, pull, gram, steps)
        after = float((pull * (layer.to_dense().detach() - weight)).sum())
        if after > (1 - ENOUGH) * before:
            break
        before = after


def _descend(layer: Member, factor: Tensor, pull: Tensor, gram: Tensor, steps: int) -> None:
    """Steps of conjugate gradients on one factor; ``pull``, (Ŵ − W) G, is brought up to date.

    Ŵ is linear in the factor, so its derivative is the same in every step: one graph serves all.
    """
    with torch.enable_grad():
        graph = layer.to_dense()
    # Of ``data`` autograd sees no change: the graph may hold values, which it never needs.
    values = factor.data
    dense, direction, size = graph.detach().clone(), torch.zeros_like(values), 0.0
    for _ in range(steps):
        (slope,) = torch.autograd.grad(graph, factor, pull, retain_graph=True)
        with torch.no_grad():
            before, size = size, float(slope.square().sum())
            direction = direction * (size / before if before else 0.0) - slope
            values.add_(direction)
            reach = layer.to_dense() - dense
            further = reach @ gram
            curvature = float((further * reach).sum())
            step = -float((slope * direction).sum()) / curvature if curvature > 0 else 0.0
            values.add_(direction, alpha=step - 1)
            if not step:
                return
            dense.add_(reach, alpha=step)
            pull.add_(further, alpha=step)
