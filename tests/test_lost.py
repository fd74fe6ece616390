"""``low_rank_sparse`` with whole columns: what it finds, and what its costs are by hand."""

from __future__ import annotations

import pytest
import torch
from _formats import drawn, relative

from hwbench.errors import KnobError
from hwbench.formats._base import BACKWARD_INPUT, BACKWARD_WEIGHT, FORWARD, STEP
from hwbench.formats.low_rank import LowRank
from hwbench.formats.low_rank_sparse import LowRankSparse
from hwbench.formats.narrow import Narrow

OUT, IN = 24, 32


def build(**knobs: object) -> LowRankSparse:
    return LowRankSparse.from_knobs(OUT, IN, **{"sparse": "columns", **knobs})  # type: ignore[arg-type]


@pytest.mark.parametrize("columns", [1, 5])
def test_columns_that_stand_out_are_found_beside_a_matrix_of_low_rank(columns: int) -> None:
    weight = drawn(OUT, 3, seed=3) @ drawn(3, IN, seed=4)
    places = torch.randperm(IN, generator=torch.Generator().manual_seed(5))[:columns]
    weight[:, places] += 9 * drawn(OUT, columns, seed=6)
    layer = build(rank=3, nonzeros=OUT * columns).project(weight)
    assert torch.equal(layer.kept.long(), places.sort().values)
    assert relative(layer.to_dense(), weight) < 1e-3


def test_it_is_never_worse_than_either_part() -> None:
    """Than the same rank alone, and than the same columns alone."""
    for seed in range(5):
        weight = drawn(OUT, IN, seed=seed)
        both = relative(build(rank=4, nonzeros=OUT * 6).project(weight).to_dense(), weight)
        for alone in (
            LowRank(out_features=OUT, in_features=IN, rank=4),
            Narrow(out_features=OUT, in_features=IN, inputs=6),
        ):
            assert both < relative(alone.project(weight).to_dense(), weight)


def test_no_round_raises_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, f, collected = drawn(OUT, IN), build(rank=4, nonzeros=OUT * 6), []
    for rounds in (0, 1, 2, 4, 16):
        monkeypatch.setattr(LowRankSparse, "ROUNDS", rounds)
        collected.append(relative(f.project(weight).to_dense(), weight))
    assert collected == sorted(collected, reverse=True)
    assert collected[-1] < 0.99 * collected[0]


def test_activations_decide_which_columns_stay() -> None:
    inputs = drawn(200, IN, seed=4) * torch.where(torch.arange(IN) < 4, 100.0, 1.0)
    layer = build(rank=1, nonzeros=OUT * 4).project(drawn(OUT, IN), activations=inputs)
    assert layer.kept.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("rank", "columns", "index", "dtype"), [(4, 6, 4, "int32"), (1, 2, 8, "int64")]
)
def test_costs_are_those_of_the_closed_form(
    rank: int, columns: int, index: int, dtype: str
) -> None:
    """The paper's: rank · (out + in) + out · columns; all of it plain products."""
    f, tokens, item = build(rank=rank, nonzeros=OUT * columns, index_dtype=dtype), 7, 4
    factors, beside = rank * (OUT + IN), OUT * columns
    assert f.parameters() == factors + beside
    assert f.stored_bytes(item) == item * (factors + beside) + index * columns
    once = 2 * tokens * (factors + beside)
    assert f.flops(tokens, FORWARD) == f.flops(tokens, BACKWARD_INPUT) == once
    assert f.flops(tokens, BACKWARD_WEIGHT) == once + 2 * tokens * rank * OUT
    assert f.flops(tokens, STEP) == 3 * once
    moved = 2 * item * tokens * (rank + columns + OUT)  # between A and B, kept inputs, a part of y
    assert f.intermediate_bytes(tokens, item, FORWARD) == moved


@pytest.mark.parametrize("density", [0.2, 0.5, 0.8])
def test_a_density_and_bytes_are_used_up_to_one_column(density: float) -> None:
    f, sides, most = build(density=density), OUT + IN, density * OUT * IN
    assert f.nonzeros % OUT == 0
    assert f.parameters() <= most < f.parameters() + OUT < f.parameters() + sides
    f = build(stored=density, item_bytes=4)
    assert f.stored_bytes(4) <= 4 * most < f.stored_bytes(4) + 4 * OUT + 4


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"rank": 1, "nonzeros": 30}, "nonzeros=30 of low_rank_sparse are no whole columns of 24"),
        (
            {"density": 0.5, "sparse": "rows"},
            "sparse of low_rank_sparse must be entries or columns",
        ),
        (
            {"density": 0.5, "kernel": "gather"},
            "kernel=gather of low_rank_sparse does not multiply",
        ),
        ({"density": 0.5, "gradient": "dense"}, "gradient=dense of low_rank_sparse is for kernel="),
        ({"density": 0.05}, "rank 1 and 24 entries have density 0.1042"),
    ],
)
def test_what_cannot_be_is_said(knobs: dict[str, object], says: str) -> None:
    with pytest.raises(KnobError, match=says):
        build(**knobs)


def test_kernel_and_what_is_kept_follow_from_each_other() -> None:
    shares = {"density": 0.5}
    assert LowRankSparse.from_knobs(OUT, IN, **shares).sparse == "entries"
    assert LowRankSparse.from_knobs(OUT, IN, kernel="dense_columns", **shares).sparse == "columns"
    assert build(**shares).kernel == "dense_columns"
