"""``gqsa``: which groups stay, what makes up for the others, and what all of it costs."""

from __future__ import annotations

import pytest
import torch
from _formats import DIRECTIONS, drawn, relative
from torch import Tensor

from hwbench.errors import KnobError
from hwbench.formats._base import BACKWARD_INPUT, FORWARD
from hwbench.formats.gqsa import Gqsa
from hwbench.formats.quantized import Quantized

OUT, IN = 48, 64


def build(out: int = OUT, inputs: int = IN, **knobs: object) -> Gqsa:
    return Gqsa.from_knobs(out, inputs, **knobs)  # type: ignore[arg-type]


def int4(weight: Tensor, group: int = 16, **more: object) -> Tensor:
    f = Quantized(out_features=len(weight), in_features=weight.shape[1], type="int4", group=group)
    if "activations" in more:
        f = Quantized(**{**vars(f), "rounding": "gptq"})
    return f.project(weight, **more).to_dense()  # type: ignore[arg-type]


def correlated(rows: int, seed: int) -> Tensor:
    mixed = drawn(IN, IN, seed=9) * torch.logspace(0, -2, IN, dtype=torch.float64)
    return drawn(rows, IN, seed=seed) @ mixed.mT


def missed(dense: Tensor, weight: Tensor, rows: Tensor) -> float:
    return float(((dense.detach().double() - weight) @ rows.mT).norm() / (weight @ rows.mT).norm())


@pytest.mark.parametrize("group", [8, 16, 32])
def test_with_every_group_kept_it_is_the_weight_in_int4(group: int) -> None:
    weight, rows = drawn(OUT, IN), correlated(300, seed=2)
    every = OUT * IN // group
    plain = build(kept_groups=every, group=group).project(weight)
    assert torch.equal(plain.to_dense(), int4(weight, group))
    seeing = build(kept_groups=every, group=group, rounding="gptq")
    found = seeing.project(weight, activations=rows).to_dense()
    assert relative(found, int4(weight, group, activations=rows)) < 1e-12


@pytest.mark.parametrize("kept", [1, 17, 96])
def test_no_other_groups_are_nearer(kept: int) -> None:
    """Each group's error is its own, so that the best are those whose codes take most away."""
    weight = drawn(OUT, IN)
    found = build(kept_groups=kept).project(weight).to_dense()
    near = int4(weight)
    gain = weight.square() - (weight - near).square()
    best = gain.unflatten(1, (-1, 16)).sum(2).flatten().topk(kept).values.sum()
    left = float((weight - found).square().sum())
    assert left == pytest.approx(float(weight.square().sum() - best), rel=1e-9)
    assert int((found.unflatten(1, (-1, 16)) != 0).any(2).sum()) == kept


def test_activations_decide_which_groups_stay() -> None:
    weight = drawn(OUT, IN)
    seen = drawn(200, IN, seed=4) * torch.where(torch.arange(IN) < 32, 0.01, 1.0)
    found = build(density=0.5).project(weight, activations=seen).to_dense()
    assert not found[:, :32].any()
    assert found[:, 32:].all()


@pytest.mark.parametrize("density", [0.25, 0.5, 0.75])
def test_what_is_dropped_and_rounded_is_made_up_for(density: float) -> None:
    weight, rows, held = drawn(OUT, IN), correlated(600, seed=2), correlated(600, seed=3)
    f = build(density=density, rounding="gptq")
    found = f.project(weight, activations=rows).to_dense()
    assert int((found.unflatten(1, (-1, 16)) != 0).any(2).sum()) <= f.kept_groups
    nearest = build(density=density).project(weight, activations=rows).to_dense()
    assert missed(found, weight, held) < 0.9 * missed(nearest, weight, held)
    without = f.project(weight).to_dense()
    assert torch.equal(without, build(density=density).project(weight).to_dense())


@pytest.mark.parametrize(("out", "inputs", "group"), [(48, 64, 16), (32, 96, 8), (1024, 512, 16)])
def test_bytes_are_those_of_the_closed_form(out: int, inputs: int, group: int) -> None:
    """The paper's, in 16 bits: group / 2 + 4 bytes for each group that stays, and its index."""
    f = build(out, inputs, density=0.5, group=group)
    kept = out * inputs // 2 // group
    assert f.kept_groups == kept
    assert f.parameters() == out * inputs // 2
    assert f.index_bytes() == 4 * kept + 4 * (out + 1)
    assert f.stored_bytes(2) == kept * (group // 2 + 4) + f.index_bytes()
    assert f.stored_bytes(4) == kept * (group // 2 + 8) + f.index_bytes()


def test_flops_are_of_the_dense_product_or_of_the_kept_weights() -> None:
    tokens = 7
    whole, kept = (build(density=0.5, kernel=kernel) for kernel in ("dequantise", "gather"))
    for direction in (FORWARD, BACKWARD_INPUT):
        assert whole.flops(tokens, direction) == 2 * tokens * OUT * IN
        assert kept.flops(tokens, direction) == tokens * OUT * IN
        assert whole.needed_flops(tokens, direction) == kept.flops(tokens, direction)
    made = 2 * 4 * (OUT * IN // 2)
    assert kept.intermediate_bytes(tokens, 4, FORWARD) == made + 2 * 4 * tokens * (OUT + IN)
    assert whole.intermediate_bytes(tokens, 4, FORWARD) == made + 2 * 4 * OUT * IN


def test_bytes_asked_for_are_used_up_to_one_group() -> None:
    for item in (2, 4):
        f = build(48, 64, stored=0.25, item_bytes=item)
        more = build(48, 64, kept_groups=f.kept_groups + 1)
        assert f.stored_bytes(item) <= 0.25 * 48 * 64 * item < more.stored_bytes(item)


def test_weights_are_not_trained() -> None:
    f = build(density=0.5)
    for direction in DIRECTIONS:
        said = f.unsupported("cpu", torch.float32, direction)
        if direction in (FORWARD, BACKWARD_INPUT):
            assert said is None
        else:
            assert said == (
                "Codes have no gradient: gqsa is for inference and gives that of its input only."
            )
    assert not list(f.project(drawn(OUT, IN)).parameters())


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"density": 0.5, "group": 24}, "group=24 of gqsa must divide 64"),
        ({"kept_groups": 193}, "kept_groups of gqsa must be between 1 and 192"),
        ({"density": 0.5, "rounding": "up"}, "rounding of gqsa must be nearest or gptq"),
        ({"density": 0.001}, "gqsa cannot reach density 0.001; one group of 16 has density"),
        ({"stored": 0.01}, "gqsa cannot be stored in 0.01 of dense's bytes"),
    ],
)
def test_what_cannot_be_is_said(knobs: dict[str, object], says: str) -> None:
    with pytest.raises(KnobError, match=says):
        build(**knobs)
