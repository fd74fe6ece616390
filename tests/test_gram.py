"""Projections by outputs: closed forms, entries that are made up for, and errors that fall."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import pytest
import torch
from _formats import CLASSES, describe
from _scored import unsupported
from _synthetic import scored_case
from torch import Tensor

from hwbench.errors import UsageError
from hwbench.formats import _gram, _pruned
from hwbench.formats._base import Format

OUT, IN, ROWS = 96, 64, 600


def numbers(*shape: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=source, dtype=torch.float64)


def seen(seed: int, rows: int = ROWS, inputs: int = IN) -> Tensor:
    """Rows whose entries are correlated, and some far larger than others."""
    mixed = numbers(inputs, inputs, seed=9) * torch.logspace(0, -2, inputs, dtype=torch.float64)
    return numbers(rows, inputs, seed=seed) @ mixed.T


def weight(inputs: int = IN) -> Tensor:
    """A weight whose singular values fall slowly, as trained ones do."""
    u, _, vh = torch.linalg.svd(numbers(OUT, inputs, seed=5), full_matrices=False)
    size = torch.arange(1, min(OUT, inputs) + 1, dtype=torch.float64) ** -0.7
    return (u * size) @ vh


def formats() -> list[Format]:
    return [describe(cls, cls.KERNELS[0], (OUT, IN)) for cls in CLASSES.values()]


def able(found: Iterable[Format]) -> list[Format]:
    return [each for each in found if each.OUTPUTS not in ("", _gram.EXACT)]


def error(dense: Tensor, exact: Tensor, rows: Tensor) -> float:
    lost = (dense.detach().double() - exact) @ rows.T
    return float(torch.linalg.norm(lost) / torch.linalg.norm(exact @ rows.T))


def loss(dense: Tensor, exact: Tensor, gram: Tensor) -> float:
    lost = dense.detach() - exact
    return float((lost @ gram * lost).sum())


def test_every_format_says_how_it_is_projected_by_outputs() -> None:
    for described in formats():
        by_rounding = "rounding" in described.knobs()  # gptq looks at the outputs as it rounds
        assert bool(described.OUTPUTS) != by_rounding, described.name()


@pytest.mark.parametrize("described", able(formats()), ids=lambda f: f.name())
def test_outputs_of_held_out_rows_are_nearer(described: Format) -> None:
    exact, rows, held = weight(), seen(1), seen(2)
    plain = described.project(exact)
    weighed = described.project(exact, activations=rows)
    nearest = described.project_outputs(exact, rows)
    by = {
        name: error(layer.to_dense(), exact, held)
        for name, layer in (("none", plain), ("activations", weighed), ("gram", nearest))
    }
    assert by["gram"] < 0.9 * by["none"], by
    assert by["gram"] < by["activations"], by


@pytest.mark.parametrize("described", able(formats()), ids=lambda f: f.name())
def test_refining_never_raises_the_error(described: Format) -> None:
    exact, gram = weight(), _gram.moments(seen(1))
    layer = described.project(exact)
    before = loss(layer.to_dense(), exact, gram)
    for _ in range(3):
        _gram.refine(layer, exact, gram)
        after = loss(layer.to_dense(), exact, gram)
        assert after <= before * (1 + 1e-12)
        before = after


@pytest.mark.heavy
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layer_has_the_dtype_of_the_weight(dtype: torch.dtype) -> None:
    exact = weight().to(dtype)
    for described in able(formats()):
        layer = described.project_outputs(exact, seen(1).to(dtype))
        assert {p.dtype for p in layer.parameters()} == {dtype}
        plain = described.project(exact)
        assert type(layer) is type(plain)
        for actual, expected in zip(layer.stored_tensors(), plain.stored_tensors(), strict=True):
            assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)


def test_a_weight_of_full_rank_rows_that_say_nothing_is_projected_as_it_is() -> None:
    described, exact = describe(CLASSES["low_rank"], "torch", (OUT, IN)), weight()
    dense = described.project_outputs(exact, torch.zeros(3, IN)).to_dense()
    assert torch.allclose(dense, described.project(exact).to_dense())


@pytest.mark.parametrize("turned", [False, True])
def test_low_rank_is_the_optimum(turned: bool) -> None:
    exact, gram = weight(), _gram.moments(seen(1))
    if turned:  # fewer outputs than inputs
        exact = exact[:40]
    lower = torch.linalg.cholesky(gram)
    left, right = _gram.of_rank(exact @ lower, lower, 10)
    actual = left @ right
    assert int(torch.linalg.matrix_rank(actual, atol=1e-8)) == 10
    values, vectors = torch.linalg.eigh(gram)
    root = (vectors * values.sqrt()) @ vectors.T
    left = torch.linalg.svdvals(exact @ root)[10:]
    lost = actual - exact
    assert float((lost @ gram * lost).sum()) == pytest.approx(float(left.square().sum()))
    # Nothing near it is better: the gradient has no part that keeps the rank.
    u, _, vh = torch.linalg.svd(actual)
    slope = lost @ gram
    outside = u[:, 10:].T @ slope @ vh[10:].T
    assert float(torch.linalg.norm(slope)) == pytest.approx(float(torch.linalg.norm(outside)))


def masks() -> list[tuple[str, dict[str, object]]]:
    return [("nonzeros", {"nonzeros": OUT * IN // 2}), ("2 of 4", {"n_of_m": (2, 4)})]


@pytest.mark.parametrize(("name", "asked"), masks(), ids=[name for name, _ in masks()])
def test_what_is_dropped_is_made_up_for(name: str, asked: dict[str, object]) -> None:
    exact, rows, held = weight(), seen(1), seen(2)
    inputs = _gram.Seen(rows)
    actual = _pruned.pruned(exact, inputs.inverse, inputs.upper, **asked)  # type: ignore[arg-type]
    kept = actual != 0
    assert int(kept.sum()) == OUT * IN // 2
    if name == "2 of 4":
        assert bool((kept.view(OUT, -1, 4).sum(-1) == 2).all())
    described = describe(CLASSES["csr" if name == "nonzeros" else "n_m"], "gather", (OUT, IN))
    if name == "2 of 4":
        described = dataclasses.replace(described, n=2, m=4)  # type: ignore[call-arg]
    wanda = described.project(exact, activations=rows).to_dense()
    same = torch.where(kept, exact, 0)
    assert error(actual, exact, held) < 0.7 * error(same, exact, held)
    assert error(actual, exact, held) < 0.9 * error(wanda, exact, held)


def test_one_dropped_entry_is_made_up_for_exactly() -> None:
    exact, inputs = numbers(1, 6), _gram.Seen(seen(1, inputs=6))
    gram, actual = inputs.gram, _pruned.pruned(exact, inputs.inverse, inputs.upper, nonzeros=5)
    (dropped,) = (actual == 0).nonzero()[:, 1].tolist()
    others = [j for j in range(6) if j > dropped]  # the columns that follow
    a, b = gram[others][:, others], gram[others][:, [dropped]]
    expected = exact[0, others] + torch.linalg.solve(a, b)[:, 0] * exact[0, dropped]
    assert torch.allclose(actual[0, others], expected)
    assert torch.equal(actual[0, :dropped], exact[0, :dropped])


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_kept_entries_settle_where_their_rows_lose_least(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_pruned, "STEPS", 400)
    monkeypatch.setattr(_pruned, "ENOUGH", 0.0)
    exact, gram = weight(), _gram.moments(seen(1))
    mask = torch.rand(OUT, IN, generator=torch.Generator().manual_seed(0)) < share
    mask[3] = False  # a row may keep nothing
    actual = _pruned.settled(torch.where(mask, exact, 0), exact, gram)
    assert torch.equal(actual != 0, mask)
    slope = ((actual - exact) @ gram)[mask]
    assert float(slope.abs().max()) < 1e-6 * float((exact @ gram).abs().max())


def test_settling_never_raises_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    exact, gram = weight(), _gram.moments(seen(1))
    begin = torch.where(exact.abs() > exact.abs().median(), exact, 0)
    before = loss(begin, exact, gram)
    for steps in (1, 2, 5, 10):
        monkeypatch.setattr(_pruned, "STEPS", steps)
        after = loss(_pruned.settled(begin, exact, gram), exact, gram)
        assert after < before
        before = after


def blocked() -> list[Format]:
    """Formats of blocks of low rank, of sizes that the blocks divide and do not."""
    request = {"out_blocks": 3, "blocks": 5, "rank": 3, "order": "strided"}
    return [
        *(each for each in formats() if each.OUTPUTS == _gram.BLOCKS),
        CLASSES["monarch"](out_features=OUT, in_features=IN, **request),
        CLASSES["block_dense"](out_features=OUT, in_features=IN, blocks=5, rank=4),
    ]


@pytest.mark.parametrize("described", blocked(), ids=str)
def test_blocks_that_know_of_each_other_lose_less_at_each_round(
    described: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, inputs, before = weight(), _gram.Seen(seen(1)), float("inf")
    plain = loss(described.project(exact).to_dense(), exact, inputs.gram)
    for rounds in (0, 1, 2, 8):
        monkeypatch.setattr(_gram, "ROUNDS", rounds)
        layer = _gram.nearest(described, exact, inputs)
        after = loss(layer.to_dense(), exact, inputs.gram)
        assert after < before
        assert after <= plain
        before = after
    assert layer.described is described
    again = described.project(layer.to_dense().detach()).to_dense()
    assert torch.allclose(again, layer.to_dense(), atol=1e-9)  # it is a member


def test_layers_that_see_the_same_share_what_follows_from_it() -> None:
    inputs = _gram.Seen(seen(1))
    for name in ("low_rank", "csr", "monarch", "kronecker"):
        described = describe(CLASSES[name], CLASSES[name].KERNELS[0], (OUT, IN))
        shared = described.project_outputs(weight(), inputs).to_dense()
        assert torch.equal(shared, described.project_outputs(weight(), seen(1)).to_dense())
    assert inputs.upper is inputs.upper


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_moments_are_summed_in_float64(dtype: torch.dtype) -> None:
    rows = (seen(3, rows=9000, inputs=5) + 30).to(dtype)
    wide = rows.double()
    expected = wide.T @ wide / len(rows)
    expected.diagonal().add_(_gram.DAMPING * expected.diagonal().mean())
    actual = _gram.moments(rows)
    assert actual.dtype == torch.float64
    assert torch.allclose(actual.diagonal(), expected.diagonal(), rtol=1e-12)
    beside = ~torch.eye(5, dtype=torch.bool)
    share = actual[beside] / expected[beside]  # shrunk, by one factor
    assert torch.allclose(share, share[0].expand_as(share), rtol=1e-12)
    assert 0.999 < float(share[0]) < 1


def test_what_few_rows_cannot_know_is_shrunk() -> None:
    # Independent inputs: whatever stands beside the diagonal is chance.
    few = _gram.moments(numbers(20, IN, seed=3))
    beside = few[~torch.eye(IN, dtype=torch.bool)]
    assert float(beside.abs().max()) < 0.2
    exact, rows = weight(), numbers(20, IN, seed=3)
    for described in able(formats()):
        plain = error(described.project(exact).to_dense(), exact, numbers(400, IN, seed=4))
        nearest = described.project_outputs(exact, rows).to_dense()
        assert error(nearest, exact, numbers(400, IN, seed=4)) < 1.15 * plain, described.name()


def wrong() -> Iterable[tuple[Tensor, str]]:
    yield torch.zeros(3), "must have the shape"
    yield torch.zeros(3, IN + 1), "must have the shape"
    yield torch.zeros(0, IN), "must have the shape"
    yield torch.full((3, IN), float("nan")), "not finite"
    yield torch.full((3, IN), float("inf")), "not finite"


def test_rows_that_do_not_fit_are_refused() -> None:
    described = describe(CLASSES["low_rank"], "torch", (OUT, IN))
    for rows, words in wrong():
        with pytest.raises(UsageError, match=words):
            described.project_outputs(weight(), rows)


@pytest.mark.parametrize("name", ["projection", "compress"])
def test_a_format_that_says_nothing_is_unsupported(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = scored_case(name, "csr", 384, weighting="gram")
    monkeypatch.setattr(CLASSES["csr"], "OUTPUTS", "")
    assert unsupported(one) == "csr cannot be projected by outputs (weighting = 'gram')."
    described = describe(CLASSES["csr"], "gather", (OUT, IN))
    with pytest.raises(UsageError, match="csr cannot be projected by outputs"):
        described.project_outputs(weight(), seen(1))
