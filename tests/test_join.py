"""Timed rows and scored rows by hand: who is joined to whom, and who is the fastest."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from _synthetic import linear_case, projection_case, questions, run_of

from hwbench.analysis import accuracy
from hwbench.analysis.accuracy import Joined, best_within, join, table
from hwbench.analysis.frames import summary_rows

NAN = math.nan


def row(name: str, knobs: dict[str, Any], **columns: Any) -> dict[str, Any]:
    words = [name, *(f"{key}={value}" for key, value in sorted(knobs.items()))]
    usual = {
        "format": name,
        "knobs": json.dumps(knobs, sort_keys=True),
        "label": " ".join(words),
        "out_features": 64,
        "in_features": 32,
        "dtype": "float32",
        "options": "{}",
        "status": "ok",
        "reason": None,
        "score": NAN,
        "time_seconds": NAN,
        "relative_time": NAN,
        "direction": None,
        "stored_bytes": 100,
    }
    return {**usual, **columns}


def timed(name: str, relative: float, spread: float = 0.0, **columns: Any) -> dict[str, Any]:
    knobs = columns.pop("knobs", {} if name == "dense" else {"density": 0.5})
    usual = {
        "workload": "linear",
        "direction": "forward",
        "time_seconds": 2.0 * relative,
        "relative_time": NAN if name == "dense" else relative,
        "relative_low": relative - spread,
        "relative_high": relative + spread,
    }
    return row(name, knobs, **{**usual, **columns})


def scored(name: str, score: float, **columns: Any) -> dict[str, Any]:
    knobs = columns.pop("knobs", {"density": 0.5})
    usual = {"workload": "projection", "score": score, "score_name": "projection_error"}
    return row(name, knobs, **{**usual, **columns})


def only(timing: list[dict[str, Any]], accuracy: list[dict[str, Any]]) -> Joined:
    (actual,) = join(timing, accuracy)
    return actual


def names(joined: Joined) -> list[str]:
    return [pair.name for pair in joined.pairs]


FOUR = [timed("dense", 1.0), timed("btt", 0.8), timed("low_rank", 0.5), timed("coo", 3.0)]
ERRORS = [scored("btt", 0.1), scored("low_rank", 0.3), scored("coo", 0.2)]


def test_pairs_have_format_knobs_and_density_in_common() -> None:
    timing = [*FOUR, timed("btt", 0.4, knobs={"density": 0.25})]
    accuracy = [*ERRORS, scored("btt", 0.6, knobs={"density": 0.1})]
    actual = only(timing, accuracy)
    assert names(actual) == ["low_rank density=0.5", "btt density=0.5", "coo density=0.5"]
    assert {(each.row["label"], each.reason) for each in actual.alone} == {
        ("btt density=0.25", "timed, but not scored with these knobs"),
        ("btt density=0.1", "scored, but not among these timed cases"),
    }


def test_what_did_not_run_is_listed_with_its_reason() -> None:
    slow = timed("low_rank", NAN, status="out_of_memory", reason="48 GB")
    unscored = scored("btt", NAN, status="unsupported", reason="no weights here")
    actual = only(
        [timed("dense", 1.0), timed("btt", 0.5), slow], [unscored, scored("low_rank", 0.1)]
    )
    assert actual.pairs == []
    assert [each.reason for each in actual.alone] == [
        "not scored: unsupported (no weights here)",
        "not timed: out of memory (48 GB)",
    ]


def test_nothing_is_lost_of_a_whole_run() -> None:
    rows = summary_rows(run_of(questions()))
    joined = join(rows, rows)
    groups = {(row["direction"], row["tokens"]) for row in rows if row["direction"]}
    assert {(one.timed["direction"], one.timed["tokens"]) for one in joined} == groups
    assert len(joined) == len(groups) > 1
    for one in joined:
        result = [*(pair.timed for pair in one.pairs), *(each.row for each in one.alone)]
        group = [r for r in rows if all(r[k] == one.timed[k] for k in ("direction", "tokens"))]
        others = [r["label"] for r in group if r["format"] != "dense"]
        assert sorted({r["label"] for r in result}) == sorted(set(others))


def test_a_knob_that_only_times_is_set_aside_and_named() -> None:
    fast = timed("btt", 0.4, knobs={"density": 0.5, "kernel": "einsum", "multiple": 8})
    slow = timed("btt", 0.6, knobs={"density": 0.5, "kernel": "bmm"})
    named = scored("btt", 0.2, knobs={"density": 0.5, "kernel": "bmm"})
    actual = only([fast, slow], [scored("btt", 0.1), named])
    assert [(pair.score, pair.aside) for pair in actual.pairs] == [(0.1, ("kernel", "multiple")),
                                                                  (0.2, ())]  # fmt: skip


@pytest.mark.parametrize(
    ("sides", "taken"), [((512, 512), "512×512"), ((4096, 1024), "1024×1024"), ((8, 8), "64×64")]
)
def test_of_several_scored_shapes_the_same_is_taken_else_the_nearest(
    sides: tuple[int, int], taken: str
) -> None:
    cases = [linear_case(name, density, shape=sides) for name, density in
             (("dense", None), ("btt", 0.5))]  # fmt: skip
    cases += [projection_case("btt", 0.5, shape=(s, s)) for s in (64, 512, 1024)]
    rows = summary_rows(run_of(cases))
    actual = only(rows, rows)
    assert actual.shapes == (f"{sides[0]}×{sides[1]} float32", f"{taken} float32")


def test_each_experiment_and_each_timed_group_is_joined() -> None:
    timing = [timed("btt", 0.5, direction=way) for way in ("forward", "step")]
    accuracy = [scored("btt", 0.1, options=options) for options in ('{"a": 1}', '{"a": 2}')]
    assert len(join(timing, accuracy)) == 4
    assert join(timing, []) == []
    assert join([], accuracy) == []


def test_machines_are_not_mixed() -> None:
    timing = [timed("btt", 0.5, run=name) for name in ("a", "b")]
    assert [len(each.pairs) for each in join(timing, [scored("btt", 0.1)])] == [1, 1]


def test_the_front_goes_from_the_best_score_to_the_fastest() -> None:
    actual = only(FOUR, ERRORS)
    assert [pair.name.split()[0] for pair in actual.front] == ["btt", "low_rank"]
    higher = [{**each, "better": "higher"} for each in ERRORS]
    actual = only(FOUR, higher)
    assert [pair.name.split()[0] for pair in actual.front] == ["low_rank"]


def test_the_table_names_the_fastest_that_keeps_the_bound() -> None:
    actual = table(only(FOUR, ERRORS), [0.5, 0.25, 0.1, 0.05])
    assert [(each["bound"], each["format"], each["time_seconds"]) for each in actual] == [
        (0.05, "dense", 2.0),
        (0.1, "btt density=0.5", 1.6),
        (0.25, "btt density=0.5", 1.6),
        (0.5, "low_rank density=0.5", 1.0),
    ]
    assert {each["dense_seconds"] for each in actual} == {2.0}
    assert [each["verdict"] for each in actual] == ["dense", "faster", "faster", "faster"]


def test_without_bounds_the_table_has_a_line_where_the_answer_changes() -> None:
    actual = best_within(only(FOUR, ERRORS))
    assert [choice.bound for choice in actual] == [0.0, 0.1, 0.3]


def test_a_score_to_reach_is_a_bound_from_below() -> None:
    kept = [{**each, "better": "higher", "score_name": "cosine"} for each in ERRORS]
    actual = table(only(FOUR, kept), [0.2, 0.9])
    assert [(each["bound"], each["format"]) for each in actual] == [
        (0.9, None),  # dense was not scored: nothing is said of it
        (0.2, "low_rank density=0.5"),
    ]


def test_the_photograph_itself_loses_nothing_and_bounds_nothing() -> None:
    kept = [
        {**each, "score": 20 + each["score"], "better": "higher", "score_name": "psnr_db"}
        for each in ERRORS
    ]
    (choice,) = best_within(only(FOUR, kept), [60.0])
    assert choice.fastest is not None
    assert (choice.fastest.name, choice.verdict) == ("dense", "dense")
    assert all(math.isfinite(each.bound) for each in best_within(only(FOUR, kept)))


def test_a_dense_that_was_scored_is_a_candidate_like_any_other() -> None:
    accuracy = [{**scored("dense", 0.95, knobs={}), "better": "higher", "score_name": "accuracy"}]
    (choice,) = best_within(only(FOUR, accuracy), [0.9])
    assert choice.fastest is not None
    assert (choice.fastest.name, choice.verdict) == ("dense", "dense")


def test_what_cannot_be_told_from_the_fastest_stands_beside_it() -> None:
    timing = [timed("dense", 1.0), timed("btt", 0.8, 0.15), timed("low_rank", 0.9, 0.12),
              timed("coo", 1.5, 0.1)]  # fmt: skip
    (choice,) = best_within(only(timing, ERRORS), [0.5])
    assert choice.fastest is not None
    assert choice.fastest.name == "btt density=0.5"
    assert [pair.name for pair in choice.level] == ["low_rank density=0.5"]
    assert choice.verdict == "faster"
    (choice,) = best_within(only([timing[0], timed("coo", 0.9, 0.12)], ERRORS), [0.5])
    assert choice.verdict == "undecided"


def test_a_denser_format_can_be_left_out() -> None:
    timing = [timed("btt", 0.5, density=0.9), timed("low_rank", 0.6, density=0.4)]
    (choice,) = best_within(only(timing, ERRORS), [0.5], densest=0.5)
    assert choice.fastest is not None
    assert choice.fastest.name == "low_rank density=0.5"


@pytest.mark.parametrize(
    ("best", "other", "level"),
    [
        ((0.4, 0.41), (0.5, 0.52), False),
        ((0.4, 0.51), (0.5, 0.52), True),
        ((math.nan, math.nan), (0.5, 0.52), True),
        ((0.4, 0.41), (math.nan, math.nan), True),
    ],
)
def test_what_has_no_interval_can_be_told_from_nothing(
    best: tuple[float, float], other: tuple[float, float], level: bool
) -> None:
    def pair(low: float, high: float) -> accuracy.Pair:
        timed = {"format": "csr", "relative_time": 0.4, "relative_low": low, "relative_high": high}
        return accuracy.Pair(timed, {})

    assert accuracy._overlap(pair(*best), pair(*other)) is level
