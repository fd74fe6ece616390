"""Which replicates count, and intervals that all cases draw together."""

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
from hwbench.analysis.noise import between_runs, estimates
from hwbench.analysis.quiet import counted, dense_seconds, of_machine, of_run, slowed
from hwbench.analysis.stats import estimate
from hwbench.records import Estimate, Measurement, Plan, Reference, Result, Status


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


def slow(results: list[Result], **kept: Reference) -> set[int]:
    """The replicates of the case that do not count; ``kept`` has what the machine keeps."""
    run = of_case(results)
    (case,) = run.planned
    if kept:
        run.header = replace(
            run.header, references={run.planned[case].case.among: kept["reference"]}
        )
    return set(counted(run.header, run.planned, run.results)[case].slow)


def test_replicates_in_which_dense_was_slower_are_slow() -> None:
    assert slow(run(1.0, 1.02, 1.3, 1.01, 1.12)) == {2, 4}
    assert slow(run(1.0, 1.02, 1.04, 1.01, 1.05)) == set()


def test_one_lucky_replicate_does_not_make_all_others_slow() -> None:
    assert slow(run(0.5, 1.0, 1.01, 1.02, 1.03)) == set()


@pytest.mark.parametrize("dense", [(1.0, 1.0, 2.0), (1.0, 1.0, 2.0, 2.0), (1, 1, 2, 2, 2, 2)])
def test_it_fails_closed_where_half_or_more_are_slow(dense: tuple[float, ...]) -> None:
    assert slow(run(*dense)) == {number for number, each in enumerate(dense) if each == 2}


def test_the_machine_remembers_what_it_can_in_a_run_that_is_slow_throughout() -> None:
    quiet = Reference(seconds=1.0, deviation=0.005, runs=3)
    assert slow(run(1.19, 1.2, 1.19, 1.2)) == set()
    assert slow(run(1.19, 1.2, 1.19, 1.2), reference=quiet) == {0, 1, 2, 3}
    assert slow(run(0.9, 0.9, 1.0, 0.9), reference=quiet) == {2}, "the run's own is lower"


def test_three_deviations_of_dense_itself_are_no_neighbour() -> None:
    restless = Reference(seconds=1.0, deviation=0.04, runs=3)
    assert slow(run(1.0, 1.1, 1.0, 1.12), reference=restless) == set()
    assert slow(run(1.0, 1.1, 1.0, 1.14), reference=restless) == {3}


def test_a_run_that_is_slow_throughout_is_not_taken_for_a_dense_that_scatters() -> None:
    """Dense's own noise lowers the ratio that it stands under; that says nothing of the machine."""
    quiet = Reference(seconds=1.0, deviation=0.005, runs=3)
    dense = (1.19, 1.2, 1.185, 1.195)
    noisy = [result(number, each, 0.6 / each) for number, each in enumerate(dense)]
    assert slow(noisy, reference=quiet) == {0, 1, 2, 3}


@pytest.mark.parametrize("seed", range(20))
def test_a_machine_that_is_busy_throughout_is_not_quiet_however_much_it_scatters(seed: int) -> None:
    """With a neighbour on the same cores dense takes 1.2 to 6 times as long, and never the same."""
    source = random.Random(seed)
    quiet = Reference(seconds=1.0, deviation=0.02, runs=15)
    dense = [source.uniform(1.2, 9) for _ in range(source.randint(2, 15))]
    alone = [result(number, each, 2.0 / each) for number, each in enumerate(dense)]
    assert slow(alone, reference=quiet) == set(range(len(dense)))
    once = [result(len(dense), 1.0, 2.0), *alone]
    assert slow(once, reference=quiet) == set(), "one replicate shows what they take beside dense"


def test_where_dense_alone_scatters_nothing_is_left_out() -> None:
    """The format's seconds stay, so that its ratio falls by what dense rises."""
    dense = (1.0, 1.01, 1.3, 1.0, 1.15)
    alone = [result(number, each, 0.5 / each) for number, each in enumerate(dense)]
    assert slow(alone) == set()
    together = [result(number, each, 0.5) for number, each in enumerate(dense)]
    assert slow(together) == {2, 4}
    more = [result(number, each, 0.5 * each**0.5) for number, each in enumerate(dense)]
    assert slow(more) == {2, 4}, "a format that slows more than dense"


def test_what_failed_is_passed_over() -> None:
    failed = Result(case="a", replicate=9, seed=0, status=Status.CRASHED)
    assert slow([*run(1.0, 1.0, 1.0, 2.0), failed]) == {3}


def test_a_slower_format_never_hides_itself() -> None:
    slower = [result(number, 1.0, ratio=0.5 * (1 + 0.2 * (number % 2))) for number in range(6)]
    assert slow(slower) == set()


def test_the_reference_is_the_least_second_fastest_of_the_last_runs() -> None:
    runs = [of_run([1.0, 0.2, 1.01, 1.02]), of_run([0.99, 0.98, 1.3]), of_run([0.5])]
    assert runs[2] is None
    known = [each for each in runs if each]
    assert [each.seconds for each in known] == [1.0, 0.99]
    actual = of_machine(known)
    assert actual is not None
    assert (actual.seconds, actual.runs) == (0.99, 2)
    later = of_machine([Reference(seconds=0.1, runs=1), *20 * known[:1]])
    assert later is not None
    assert later.seconds == 1.0, "what 20 runs never reached again is forgotten"
    assert of_machine([]) is None


def test_a_slowed_half_does_not_widen_what_counts_as_quiet() -> None:
    rng = random.Random(0)
    spreads = []
    for _ in range(400):
        own = of_run([rng.lognormvariate(0, 0.01) for _ in range(6)])
        assert own is not None
        spreads.append(own.deviation)
    assert 0.006 < sorted(spreads)[200] < 0.014
    halved = of_run([1.0, 1.001, 1.3, 1.35])
    assert halved is not None
    assert halved.deviation < 0.01


# --- in a run: two states of a machine, each lasting for some replicates -------------------------


def two_states(seed: int) -> list[Result]:
    """Ten replicates; when a neighbour runs, dense takes 1.25 times and the format 1.7 times."""
    rng, collected, busy = random.Random(seed), [], False
    for number in range(10):
        busy = busy if rng.random() < 0.6 else not busy
        dense = (1.25 if busy else 1.0) * rng.lognormvariate(0, 0.01)
        ratio = (0.5 * 1.7 / 1.25 if busy else 0.5) * rng.lognormvariate(0, 0.005)
        collected.append(result(number, dense, ratio))
    return collected


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
    assert row["time_seconds"] == pytest.approx(0.51, rel=0.001), "of the same replicates"
    run.header = replace(run.header, plan=Plan(replicates=3))
    (entry,) = side(run.header, run.planned, run.results).cases.values()
    assert sorted(entry.readings["relative_time"].values) == [0, 1, 3]
    assert sorted(entry.readings["time_seconds"].values) == [0, 1, 2, 3]


@pytest.mark.parametrize("asked", [1, 3, 4, 5, 10])
@pytest.mark.parametrize("quiet", range(2, 8))
def test_runs_are_compared_by_all_replicates_where_too_few_were_quiet(
    asked: int, quiet: int
) -> None:
    slow = {0, 3}
    dense = iter([1.0, 1.004, 0.998, 1.002, 0.996, 1.0, 1.003, 0.999])
    every = range(quiet + len(slow))
    run = of_case([result(n, 1.3 if n in slow else next(dense), 0.5) for n in every])
    run.header = replace(run.header, plan=Plan(replicates=asked))
    (entry,) = side(run.header, run.planned, run.results).cases.values()
    counting = set(every) - slow if quiet >= min(asked, 5) else set(every)
    assert set(entry.readings["relative_time"].values) == counting
    assert set(entry.readings["time_seconds"].values) == set(every)


def test_where_the_machine_was_never_quiet_there_is_a_time_and_no_interval() -> None:
    run_ = of_case(run(1.2, 1.21, 1.19, 1.0))
    (case,) = run_.planned
    quiet = Reference(seconds=1.0, runs=5)
    run_.header = replace(run_.header, references={run_.planned[case].case.among: quiet})
    (row,) = summary_rows(run_)
    assert row["flags"] == "never_quiet"
    assert row["slowed"] == 3
    assert row["relative_time"] == pytest.approx(0.5)
    assert row["time_seconds"] > 0
    for name in ("time", "relative"):
        assert math.isnan(row[f"{name}_low"])
        assert math.isnan(row[f"{name}_high"])


def test_a_run_that_was_slow_throughout_says_so_and_one_that_was_not_does_not() -> None:
    run_ = of_case(run(1.19, 1.2, 1.19, 1.21))
    (case,) = run_.planned
    assert slowed(run_.header, run_.planned, run_.results) is None, "nothing is known of it"
    quiet = Reference(seconds=1.0, runs=5)
    run_.header = replace(run_.header, references={run_.planned[case].case.among: quiet})
    actual = slowed(run_.header, run_.planned, run_.results)
    assert actual is not None
    assert (actual.groups, actual.of, actual.cases) == (1, 1, 1)
    assert "dense took 1.20 times" in str(actual) or "dense took 1.19 times" in str(actual)
    run_.results = [replace(each, case=case) for each in run(1.19, 1.0, 1.01, 1.2)]
    assert slowed(run_.header, run_.planned, run_.results) is None


def test_runs_of_a_machine_with_a_neighbour_agree() -> None:
    runs = [two_states(seed) for seed in range(40)]
    mixed = [run for run in runs if 2 <= len(slow(run)) <= 8]
    assert len(mixed) > 20
    kept = [math.log(relative(run)) for run in mixed]
    every = [math.log(sum(values) / len(values)) for values in
             ([each.values("relative_time")[0] for each in run] for run in mixed)]  # fmt: skip
    assert stdev(kept) < stdev(every) / 5


# --- how often a printed interval holds the truth ------------------------------------------------


def simulated(
    seed: int, spread: float, night: float = 0.0
) -> tuple[list[list[float]], list[float]]:
    """Forty cases in four replicates, and each one's truth; ``night`` is what the run shares."""
    rng = random.Random(f"{seed}/{spread}/{night}")
    truths = [math.exp(rng.uniform(-2, 0)) for _ in range(40)]
    samples = []
    for truth in truths:
        shift = rng.gauss(0, night)
        samples.append([truth * math.exp(shift + rng.gauss(0, spread)) for _ in range(4)])
    return samples, truths


def held(found: list[Estimate], truths: list[float], narrowest: bool) -> tuple[int, int]:
    pairs = sorted(zip(found, truths, strict=True), key=lambda e: e[0].high / e[0].low)
    pairs = pairs[: len(pairs) // 5] if narrowest else pairs
    return sum(e.low <= truth <= e.high for e, truth in pairs), len(pairs)


def coverage(make: Any, *, narrowest: bool = False, night: float = 0.0) -> float:
    counts = []
    for seed in range(30):
        samples, truths = simulated(seed, 0.015, night)
        counts.append(held(make(samples), truths, narrowest))
    hits, of = (sum(each) for each in zip(*counts, strict=True))
    return hits / of


def test_the_narrowest_intervals_hold_the_truth_as_often_as_all() -> None:
    """By itself a spread of four values is luck, and the narrowest fifth holds it too seldom."""
    assert coverage(estimates) > 0.93
    assert coverage(estimates, narrowest=True) > 0.88
    alone = coverage(lambda samples: [estimate(each) for each in samples], narrowest=True)
    assert alone < 0.85


def test_the_spread_between_runs_is_added_where_it_is_known() -> None:
    assert coverage(estimates, night=0.02) < 0.75
    nights = [(0.02**2, 30.0)] * 40
    assert coverage(lambda samples: estimates(samples, nights), night=0.02) > 0.92


def test_the_spread_between_runs_is_that_beyond_the_replicates() -> None:
    rng = random.Random(3)
    runs = []
    for _ in range(60):
        nights = [rng.gauss(0, 0.02) for _ in range(6)]
        runs.append([[night + rng.gauss(0, 0.01) for _ in range(4)] for night in nights])
    usual = sorted(variance for variance, _ in between_runs(runs))[30]
    assert 0.013 < math.sqrt(usual) < 0.026
    (unknown, freedom), *_ = between_runs([case[:2] for case in runs])
    assert math.isnan(unknown)
    assert freedom == 0
