"""Which replicates tell the relative time."""

from __future__ import annotations

import math
import random
from statistics import stdev
from typing import Any

import pytest
from _synthetic import linear_case, run_of
from msgspec.structs import replace

from hwbench.analysis.compare import side
from hwbench.analysis.frames import summary_rows
from hwbench.analysis.quiet import dense_seconds, slowed
from hwbench.records import Measurement, Result, Status


def result(replicate: int, dense: float, ratio: float = 0.5) -> Result:
    """A case in one replicate, in which dense took so many seconds around its blocks."""
    shared: dict[str, Any] = {"contract": "wall", "calls": 1}
    return Result(
        case="a", replicate=replicate, seed=0, status=Status.OK,
        measurements=[
            Measurement(quantity="time_seconds", unit="s", values=3 * [dense * ratio], **shared),
            Measurement(quantity="relative_time", unit="×", values=3 * [ratio], **shared),
        ],
    )  # fmt: skip


def run(*dense: float) -> list[Result]:
    return [result(number, seconds) for number, seconds in enumerate(dense)]


def test_dense_is_told_by_the_blocks_of_the_case() -> None:
    assert dense_seconds(result(0, 3.0)) == pytest.approx(3.0)
    unanchored = Result(case="a", replicate=0, seed=0, status=Status.OK)
    assert dense_seconds(unanchored) is None


def test_replicates_in_which_dense_was_slower_are_left_out() -> None:
    assert slowed(run(1.0, 1.02, 1.3, 1.01, 1.12)) == {2, 4}
    assert slowed(run(1.0, 1.02, 1.09, 1.01, 1.05)) == set()


def test_one_lucky_replicate_does_not_make_all_others_slow() -> None:
    assert slowed(run(0.5, 1.0, 1.01, 1.02, 1.03)) == set()


@pytest.mark.parametrize("dense", [(1.0, 1.0, 2.0), (1.0, 1.0, 2.0, 2.0), (1, 1, 2, 2, 2, 2)])
def test_where_too_few_would_be_left_all_count(dense: tuple[float, ...]) -> None:
    assert slowed(run(*dense)) == set()


def test_what_failed_is_passed_over() -> None:
    failed = Result(case="a", replicate=9, seed=0, status=Status.CRASHED)
    assert slowed([*run(1.0, 1.0, 1.0, 2.0), failed]) == {3}


def test_a_slower_format_never_hides_itself() -> None:
    slower = [result(number, 1.0, ratio=0.5 * (1 + 0.2 * (number % 2))) for number in range(6)]
    assert slowed(slower) == set()


# --- in a run: two states of a machine, each lasting for some replicates -------------------------


def two_states(seed: int) -> list[Result]:
    """Ten replicates; when a neighbour runs, dense takes 1.25 times and the format 1.7 times."""
    rng, found, busy = random.Random(seed), [], False
    for number in range(10):
        busy = busy if rng.random() < 0.6 else not busy
        dense = (1.25 if busy else 1.0) * rng.lognormvariate(0, 0.01)
        ratio = (0.5 * 1.7 / 1.25 if busy else 0.5) * rng.lognormvariate(0, 0.005)
        found.append(result(number, dense, ratio))
    return found


def of_case(results: list[Result]) -> Any:
    run = run_of([linear_case("csr", 0.1)], replicates=1)
    (case,) = run.planned
    run.results = [replace(each, case=case) for each in results]
    return run


def relative(results: list[Result]) -> float:
    (row,) = summary_rows(of_case(results))
    return float(row["relative_time"])


def test_summary_and_comparison_leave_out_the_same_replicates() -> None:
    results = [result(0, 1.0, 0.5), result(1, 1.0, 0.52), result(2, 1.3, 0.7), result(3, 1.0, 0.51)]
    run = of_case(results)
    (row,) = summary_rows(run)
    assert (row["slowed"], row["replicates"]) == (1, 4)
    assert row["relative_time"] == pytest.approx(0.51, rel=0.001)
    (entry,) = side(run.header, run.planned, run.results).cases.values()
    assert sorted(entry.readings["relative_time"].values) == [0, 1, 3]
    assert sorted(entry.readings["time_seconds"].values) == [0, 1, 2, 3]


def test_runs_of_a_machine_with_a_neighbour_agree() -> None:
    runs = [two_states(seed) for seed in range(40)]
    mixed = [run for run in runs if 0 < len(slowed(run)) <= 7]
    assert len(mixed) > 20
    kept = [math.log(relative(run)) for run in mixed]
    every = [math.log(sum(values) / len(values)) for values in
             ([each.values("relative_time")[0] for each in run] for run in mixed)]  # fmt: skip
    assert stdev(kept) < stdev(every) / 5
