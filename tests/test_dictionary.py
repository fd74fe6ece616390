"""``dictionary``: what the maths promises of W = S D, beside what every format must keep."""

from __future__ import annotations

import pytest
import torch
from _formats import drawn, relative
from torch import Tensor

from hwbench.errors import KnobError
from hwbench.formats import _gram
from hwbench.formats._base import BACKWARD, BACKWARD_INPUT, BACKWARD_WEIGHT, FORWARD, STEP
from hwbench.formats.dictionary import Dictionary
from hwbench.formats.low_rank import LowRank

SHAPES = [(24, 32), (32, 24), (48, 16)]


def build(out: int = 24, inputs: int = 32, **knobs: object) -> Dictionary:
    return Dictionary.from_knobs(out, inputs, **knobs)  # type: ignore[arg-type]


def error(f: Dictionary | LowRank, weight: Tensor, **more: Tensor) -> float:
    return relative(f.project(weight, **more).to_dense(), weight)


def subspaces(out: int, inputs: int, count: int, rank: int) -> Tensor:
    """Rows of ``count`` subspaces, which together are as many directions as there are."""
    bases = drawn(count, rank, inputs, seed=3)
    return torch.cat([drawn(out // count, rank, seed=5 + n) @ bases[n] for n in range(count)])


@pytest.mark.parametrize("shape", SHAPES)
def test_with_every_atom_used_it_is_the_best_matrix_of_low_rank(shape: tuple[int, int]) -> None:
    weight = drawn(*shape)
    spectrum = torch.linalg.svdvals(weight)
    for atoms in (1, 5, 11):
        best = float(spectrum[atoms:].norm() / spectrum.norm())
        assert error(build(*shape, atoms=atoms, ratio=1), weight) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_both_factors_are_the_best_for_the_other(shape: tuple[int, int]) -> None:
    weight = drawn(*shape)
    layer = build(*shape, atoms=10).project(weight)
    atoms = layer.atoms.detach()
    sparse = torch.zeros(shape[0], 10, dtype=weight.dtype)
    sparse = sparse.scatter(1, layer.columns.long(), layer.values.detach())
    rest = weight - sparse @ atoms
    assert float((sparse.mT @ rest).norm()) < 1e-8 * float(sparse.norm() * weight.norm())
    own = torch.linalg.lstsq(sparse, weight).solution
    assert relative(sparse @ atoms, sparse @ own) < 1e-8


@pytest.mark.parametrize("solved", [0, 2**29])
def test_no_round_raises_the_error(monkeypatch: pytest.MonkeyPatch, solved: int) -> None:
    monkeypatch.setattr(Dictionary, "SOLVED", solved)
    weight, f, collected = drawn(40, 32), build(40, 32, atoms=16), []
    monkeypatch.setattr(Dictionary, "LEAST_GAIN", 0.0)
    for rounds in (1, 2, 4, 8, 32):
        monkeypatch.setattr(Dictionary, "ROUNDS", rounds)
        collected.append(error(f, weight))
    assert collected == sorted(collected, reverse=True)
    assert collected[-1] < 0.97 * collected[0]


def test_rows_of_several_subspaces_are_nearer_than_to_one_of_low_rank() -> None:
    weight = subspaces(64, 32, count=4, rank=4)
    f = build(64, 32, atoms=16, ratio=4)
    same = LowRank.from_knobs(64, 32, density=f.density())
    assert f.parameters() <= 1.05 * same.parameters()
    assert error(f, weight) < 0.75 * error(same, weight)


def test_more_atoms_than_inputs_are_learnt() -> None:
    weight = subspaces(96, 8, count=12, rank=1)  # each row a multiple of one of twelve
    assert error(build(96, 8, atoms=40, ratio=40), weight) < 1e-6


def test_activations_lower_the_error_that_the_layer_sees() -> None:
    weight, f = drawn(24, 32), build(atoms=8)
    inputs = drawn(200, 32, seed=4) * torch.linspace(0.01, 3, 32, dtype=torch.float64)
    plain, weighed = (
        f.project(weight, activations=given).to_dense().detach() for given in (None, inputs)
    )
    missed = [float(((weight - each) @ inputs.mT).norm()) for each in (plain, weighed)]
    assert missed[1] < 0.9 * missed[0]


def correlated(samples: int, inputs: int, seed: int) -> Tensor:
    mixed = drawn(inputs, inputs, seed=9) * torch.logspace(0, -2, inputs, dtype=torch.float64)
    return drawn(samples, inputs, seed=seed) @ mixed.mT


@pytest.mark.parametrize("density", [0.5, 0.8])
@pytest.mark.parametrize("shape", SHAPES)
def test_by_outputs_it_is_nearer_than_low_rank_at_equal_values(
    shape: tuple[int, int], density: float
) -> None:
    """On rows that no projection saw."""
    weight, result, held = drawn(*shape), *(correlated(600, shape[1], seed=s) for s in (2, 3))
    collected = []
    for kind in (Dictionary, LowRank):
        f = kind.from_knobs(*shape, density=density)
        layer = f.project_outputs(weight, result)
        assert f.density() <= density
        collected.append(float(((layer.to_dense().detach() - weight) @ held.mT).norm()))
    assert collected[0] < 0.95 * collected[1]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_turned_projection_is_that_of_the_turned_weight(shape: tuple[int, int]) -> None:
    """‖(W − Ŵ) L‖ is the plain error of what is learnt for W L, and every atom is at its best."""
    weight, f = drawn(*shape), build(*shape, atoms=10)
    gram = _gram.moments(correlated(300, shape[1], seed=2))
    lower = torch.linalg.cholesky(gram)
    layer = f.project_turned(weight, lower)
    plain = f.project(weight @ lower).to_dense()
    assert relative(layer.to_dense() @ lower, plain) < 1e-8
    slope = torch.autograd.grad(
        torch.linalg.matrix_norm((weight - layer.to_dense()) @ lower).square(), layer.atoms
    )[0]
    assert float(slope.norm()) < 1e-6 * float((weight @ gram).norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("atoms", "ratio"), [(1, 1), (7, 2), (8, 2), (9, 4), (24, 24), (24, 1)])
def test_bits_say_what_indices_say(atoms: int, ratio: int, dtype: torch.dtype) -> None:
    weight, x = drawn(24, 32).to(dtype), drawn(5, 32, seed=6).to(dtype)
    by = [
        build(atoms=atoms, ratio=ratio, index_dtype=kind).project(weight)
        for kind in ("int32", "bits")
    ]
    assert torch.equal(by[0].places(), by[1].places())
    assert torch.equal(by[0].to_dense(), by[1].to_dense())
    assert torch.equal(by[0](x), by[1](x))
    f = by[1].described
    assert f.index_bytes() == 24 * -(-atoms // 8)
    stored = sum(t.numel() * t.element_size() for t in by[1].stored_tensors())
    assert f.stored_bytes(dtype.itemsize) == stored


@pytest.mark.parametrize("gradient", ["dense", "sampled"])
def test_costs_are_counted_by_hand(gradient: str) -> None:
    f, tokens, item = build(24, 32, atoms=9, ratio=4, gradient=gradient), 7, 4
    assert f.fan_in == 3
    dictionary, entries = 9 * 32, 24 * 3
    assert f.parameters() == dictionary + entries
    assert f.stored_bytes(item) == item * f.parameters() + 4 * entries
    computed = 24 * 9 if gradient == "dense" else entries
    once = 2 * tokens * (dictionary + entries)
    to_weight = 2 * tokens * (dictionary + entries + computed)
    assert {d: f.flops(tokens, d) for d in (FORWARD, BACKWARD_INPUT, BACKWARD_WEIGHT)} == {
        FORWARD: once,
        BACKWARD_INPUT: once,
        BACKWARD_WEIGHT: to_weight,
    }
    both = once + 2 * tokens * (dictionary + computed)
    assert (f.flops(tokens, BACKWARD), f.flops(tokens, STEP)) == (both, once + both)
    assert f.needed_flops(tokens, STEP) == 3 * once
    moved = f.intermediate_bytes(tokens, item, FORWARD)
    assert moved == 2 * item * tokens * (9 + 9 + 24)  # D x, and it and y turned over
    bits = build(24, 32, atoms=9, ratio=4, gradient=gradient, index_dtype="bits")
    assert bits.stored_bytes(item) == item * f.parameters() + 24 * 2
    assert bits.intermediate_bytes(tokens, item, FORWARD) == moved + 4 * entries


def test_stored_bytes_are_used_up_to_one_atom() -> None:
    for item in (2, 4):
        f = Dictionary.from_knobs(48, 64, stored=0.5, item_bytes=item)
        more = build(48, 64, atoms=f.atoms + 1)
        assert f.stored_bytes(item) <= 0.5 * 48 * 64 * item < more.stored_bytes(item)


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"atoms": 25}, "atoms of dictionary must be between 1 and 24"),
        ({"atoms": 3, "ratio": 0}, "ratio of dictionary must be between 1 and 24"),
        (
            {"atoms": 3, "index_dtype": "int8"},
            "index_dtype of dictionary must be int32 or int64 or bits",
        ),
        ({"density": 0.01}, "dictionary cannot reach density 0.01; atoms 1 has density 0.07292"),
    ],
)
def test_what_cannot_be_is_said(knobs: dict[str, object], says: str) -> None:
    with pytest.raises(KnobError, match=says):
        build(**knobs)
