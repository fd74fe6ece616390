"""Runs compared: how a case ended, what is comparable, and whose values are the sample."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hwbench.analysis import fingerprint
from hwbench.analysis.compare import Entry, Reading, Side, compare, side
from hwbench.analysis.fingerprint import Severity, differences
from hwbench.analysis.stats import Rule, judge
from hwbench.errors import UnknownNameError
from hwbench.records import (
    SCHEMA,
    Case,
    Change,
    Environment,
    Header,
    Measurement,
    Plan,
    Planned,
    PlannedLine,
    Result,
    Status,
    Verdict,
)

CASE = Case(
    workload="linear",
    format="low_rank",
    out_features=64,
    in_features=64,
    dtype="float32",
    device="cpu",
    tokens=16,
    direction="forward",
)
STEADY = (1.0, 1.001, 0.999, 1.002, 0.998)
SLOWER = tuple(1.1 * value for value in STEADY)
FACTS = {
    "device": {"name": "Example", "memory_bytes": 8_000_000_000, "caches_bytes": {"L2": 1}},
    "host": {"kernel": "6.1", "python": "3.12.4", "machine": "x86_64"},
    "torch": "2.13.0",
    "threads": 2,
    "settings": {"mkldnn": True},
}


def entry(
    values: Sequence[float] = STEADY,
    quantity: str = "time_seconds",
    contract: str | None = "wall",
    **fields: Any,
) -> Entry:
    contracts = frozenset([contract]) if contract else frozenset()
    reading = Reading(dict(enumerate(values)), contracts)
    return Entry(workload="linear", readings={quantity: reading} if values else {}, **fields)


def failed(status: Status, reason: str | None = None) -> Entry:
    return entry((), status=status, reason=reason)


def run(one: Entry | None, **facts: Any) -> Side:
    return Side({} if one is None else {"case": one}, {**FACTS, **facts})


def only(changes: list[Change]) -> Change:
    assert len(changes) == 1
    return changes[0]


def change(old: Entry | None, new: Entry | None, **options: Any) -> Change:
    return only(compare([run(old)], [run(new)], **options))


def with_more(one: Entry, *others: Entry) -> Entry:
    readings = {name: actual for each in (one, *others) for name, actual in each.readings.items()}
    return replace(one, readings=readings)


# From records to sides


def header(**fingerprint: Any) -> Header:
    return Header(
        schema=SCHEMA,
        run="a-run",
        created="2026-01-02T03:04:05Z",
        version="0.1.0",
        suite="linear",
        about="",
        plan=Plan(),
        seed=0,
        device="cpu",
        environment=Environment(fingerprint=fingerprint, settings={"threads": 2}),
    )


def result(replicate: int, blocks: Iterable[float] = (), status: Status = Status.OK) -> Result:
    actual = [
        Measurement(quantity="time_seconds", unit="s", values=list(blocks), contract="wall"),
        Measurement(quantity="peak_bytes", unit="B", values=[100.0]),
    ]
    return Result(
        case=CASE.id,
        replicate=replicate,
        seed=40 + replicate,
        status=status,
        reason=None if status is Status.OK else "because",
        measurements=actual if status is Status.OK else [],
    )


def line(**fields: Any) -> PlannedLine:
    return PlannedLine(id=CASE.id, planned=Planned(case=CASE, **fields))


def test_a_side_holds_one_value_a_replicate() -> None:
    actual = side(
        header(name="Example"),
        [line(revision=3, kernel="torch", resolved={"rank": 8})],
        [result(0, [1.0, 2.0, 9.0]), result(1, [3.0, 4.0]), result(2, status=Status.TIMED_OUT)],
    )
    entry_ = actual.cases[CASE.id]
    assert entry_.readings["time_seconds"] == Reading({0: 2.0, 1: 3.5}, frozenset(["wall"]))
    assert entry_.readings["peak_bytes"].values == {0: 100.0, 1: 100.0}
    assert (entry_.status, entry_.reason) == (Status.TIMED_OUT, "because")
    assert entry_.seeds == {0: 40, 1: 41}
    assert (entry_.revision, entry_.kernel, entry_.resolved) == (3, "torch", {"rank": 8})
    assert actual.facts == {"name": "Example", "settings": {"threads": 2}}
    assert actual.run == "a-run"


def test_the_gravest_end_speaks_for_the_case() -> None:
    ends = [Status.OK, Status.CRASHED, Status.WRONG, Status.OUT_OF_MEMORY]
    results = [result(number, [1.0], status) for number, status in enumerate(ends)]
    assert side(header(), [line()], results).cases[CASE.id].status is Status.WRONG


def test_a_case_measured_again_counts_once() -> None:
    actual = side(header(), [line()], [result(0, status=Status.CRASHED), result(0, [2.0])])
    assert actual.cases[CASE.id].status is Status.OK
    assert actual.cases[CASE.id].readings["time_seconds"].values == {0: 2.0}


def test_a_planned_case_without_results_is_absent_unless_unsupported() -> None:
    assert side(header(), [line()], []).cases == {}
    refused = side(header(), {CASE.id: Planned(case=CASE, unsupported="no kernel")}, [])
    assert refused.cases[CASE.id].status is Status.UNSUPPORTED
    assert refused.cases[CASE.id].reason == "no kernel"


# How cases end


@pytest.mark.parametrize("status", [Status.WRONG, Status.CRASHED, Status.TIMED_OUT])
@pytest.mark.parametrize("old", [None, entry(), failed(Status.CRASHED)])
def test_a_failure_in_the_new_run_is_invalid(status: Status, old: Entry | None) -> None:
    change_ = change(old, entry(status=status, reason="row 3"))
    assert change_.verdict is Verdict.INVALID
    assert change_.ratio is None
    assert change_.reason == f"{status.value.replace('_', ' ')}: row 3"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (entry(), None, Verdict.GONE),
        (failed(Status.CRASHED), None, Verdict.GONE),
        (None, entry(), Verdict.NEW),
        (None, failed(Status.UNSUPPORTED), Verdict.NEW),
        (entry(), failed(Status.UNSUPPORTED), Verdict.GONE),
        (entry(), failed(Status.OUT_OF_MEMORY), Verdict.REGRESSED),
        (entry(), entry(status=Status.OUT_OF_MEMORY), Verdict.REGRESSED),
        (failed(Status.UNSUPPORTED), entry(), Verdict.NEW),
        (failed(Status.CRASHED), entry(), Verdict.NEW),
        (failed(Status.OUT_OF_MEMORY), failed(Status.UNSUPPORTED), Verdict.NEW),
        (entry(status=Status.WRONG), entry(), Verdict.NEW),
        (entry(status=Status.CRASHED), entry(), Verdict.EQUIVALENT),
        (entry(status=Status.OUT_OF_MEMORY), entry(), Verdict.EQUIVALENT),
        (
            entry(status=Status.OUT_OF_MEMORY),
            entry(status=Status.OUT_OF_MEMORY),
            Verdict.EQUIVALENT,
        ),
        (
            entry(status=Status.OUT_OF_MEMORY),
            failed(Status.OUT_OF_MEMORY),
            Verdict.REGRESSED,
        ),
        (entry(), entry(), Verdict.EQUIVALENT),
        (entry(), entry(SLOWER), Verdict.REGRESSED),
        (entry(SLOWER), entry(), Verdict.IMPROVED),
    ],
)
def test_every_pair_of_ends_has_a_verdict(
    old: Entry | None, new: Entry | None, expected: Verdict
) -> None:
    change_ = change(old, new)
    assert change_.verdict is expected
    timed = any(each is not None and each.readings for each in (old, new))
    assert (change_.case, change_.metric) == ("case", "time" if timed else "auto")


@pytest.mark.parametrize("status", [Status.UNSUPPORTED, Status.OUT_OF_MEMORY])
def test_the_same_answer_twice_is_no_change(status: Status) -> None:
    assert compare([run(failed(status))], [run(failed(status))]) == []


def test_what_the_baseline_said_is_told() -> None:
    change_ = change(failed(Status.UNSUPPORTED, "no kernel"), entry())
    assert change_.reason == "Before: unsupported: no kernel"


def test_cases_come_in_the_order_of_the_new_run() -> None:
    old = Side({name: entry() for name in "dcba"})
    new = Side({name: entry() for name in "bca"})
    assert [changes.case for changes in compare([old], [new])] == ["b", "c", "a", "d"]


# What is comparable


def test_two_contracts_are_never_compared() -> None:
    change_ = change(entry(contract="event"), entry(SLOWER, contract="graph"))
    assert change_.verdict is Verdict.INCOMPARABLE
    assert change_.ratio is None
    assert change_.reason == "The timing contracts event and graph are not comparable."


def test_a_contract_that_changed_inside_the_new_run_is_not_compared() -> None:
    mixed = replace(
        entry(),
        readings={"time_seconds": Reading({0: 1.0, 1: 1.0}, frozenset(["event", "graph"]))},
    )
    assert change(entry(contract="event"), mixed).verdict is Verdict.INCOMPARABLE


def test_two_revisions_are_never_compared() -> None:
    change_ = change(entry(revision=1), entry(revision=2))
    assert change_.verdict is Verdict.INCOMPARABLE
    assert change_.reason == "Revisions 1 and 2 of the format differ."


def test_baseline_runs_that_are_unlike_are_left_out_and_told() -> None:
    old = [run(entry(SLOWER, revision=1)), run(entry(revision=2)), run(entry(revision=2))]
    change_ = only(compare(old, [run(entry(revision=2))]))
    assert change_.verdict is Verdict.EQUIVALENT
    assert change_.ratio is not None
    assert change_.ratio.counts == (10, 5)
    assert change_.reason == (
        "1 of 3 baseline runs left out: Revisions 1 and 2 of the format differ."
    )


def test_another_kernel_or_setting_is_told_beside_the_verdict() -> None:
    change_ = change(
        entry(kernel="torch", resolved={"rank": 8}), entry(kernel="triton", resolved={"rank": 9})
    )
    assert change_.verdict is Verdict.EQUIVALENT
    assert change_.reason == "The kernel was torch and is triton. The rank was 8 and is 9."


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"device": {**FACTS["device"], "name": "Other"}}, Severity.FATAL),
        ({"device": {**FACTS["device"], "caches_bytes": {"L2": 2}}}, Severity.FATAL),
        ({"device": {**FACTS["device"], "memory_bytes": 16_000_000_000}}, Severity.FATAL),
        ({"threads": 4}, Severity.FATAL),
        ({"settings": {"mkldnn": False}}, Severity.FATAL),
        ({"settings": {**FACTS["settings"], "ONEDNN_MAX_CPU_ISA": "AVX2"}}, Severity.FATAL),
        ({"host": {**FACTS["host"], "machine": "aarch64"}}, Severity.FATAL),
        ({"torch": "2.14.0"}, Severity.WARN),
        ({"host": {**FACTS["host"], "kernel": "6.2"}}, Severity.WARN),
        ({"something": "else"}, Severity.WARN),
        ({"device": {**FACTS["device"], "new_fact": 3}}, Severity.WARN),  # one side has it
    ],
)
def test_what_a_difference_of_fingerprints_means(facts: dict[str, Any], expected: Severity) -> None:
    old, new = run(entry()), run(entry(), **facts)
    assert [each.severity for each in differences(old.facts, new.facts)] == [expected]
    blocked = only(compare([old], [new])).verdict is Verdict.INCOMPARABLE
    assert blocked == (expected is Severity.FATAL)
    assert only(compare([old], [new], across_machines=True)).verdict is Verdict.EQUIVALENT


@pytest.mark.parametrize(
    "facts",
    [
        {"device": {**FACTS["device"], "uuid": "GPU-1"}},
        {"device": {**FACTS["device"], "memory_bytes": 8_100_000_000}},
        {"hostname": "another"},
    ],
)
def test_what_is_no_difference_of_fingerprints(facts: dict[str, Any]) -> None:
    assert differences(run(entry()).facts, run(entry(), **facts).facts) == []


def test_the_fatal_differences_are_the_reason() -> None:
    old, new = run(entry()), run(entry(), threads=4, torch="2.14.0", a_new_fact=True)
    assert [str(each) for each in differences(old.facts, new.facts)] == [
        "threads was 2 and is 4",
        "a_new_fact was None and is True",
        "torch was '2.13.0' and is '2.14.0'",
    ]
    assert only(compare([old], [new])).reason == "threads was 2 and is 4"


def test_a_failure_is_told_even_where_machines_differ() -> None:
    changes = compare([run(entry())], [run(failed(Status.WRONG), threads=4)])
    assert only(changes).verdict is Verdict.INVALID


# Metrics


def test_auto_takes_the_relative_time_where_both_have_it() -> None:
    both = with_more(entry(), entry(STEADY, "relative_time"))
    slower_machine = with_more(entry(SLOWER), entry(STEADY, "relative_time"))
    change_ = change(both, slower_machine)
    assert (change_.metric, change_.verdict) == ("relative", Verdict.EQUIVALENT)
    change_ = change(both, slower_machine, metric="time")
    assert (change_.metric, change_.verdict) == ("time", Verdict.REGRESSED)
    assert change(both, entry(SLOWER)).metric == "time"  # dense, or a run without an anchor
    assert change(entry(STEADY, "score"), entry(STEADY, "score")).metric == "score"


def test_a_metric_that_one_run_lacks_is_incomparable_and_one_that_both_lack_is_left_out() -> None:
    change_ = change(entry(), entry(STEADY, "relative_time"))
    assert change_.verdict is Verdict.INCOMPARABLE
    assert change_.reason == "Only one of the runs has values of it."
    assert compare([run(entry())], [run(entry())], metric="score") == []


def test_an_unknown_metric_is_a_mistake() -> None:
    with pytest.raises(UnknownNameError, match="relative"):
        compare([], [], metric="relativ")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ([1000.0], [1000.0], Verdict.EQUIVALENT),
        ([1000.0], [1001.0], Verdict.REGRESSED),
        ([1000.0], [999.0], Verdict.IMPROVED),
        ([0.0], [0.0], Verdict.EQUIVALENT),
        ([0.0], [8.0], Verdict.REGRESSED),
        ([900.0, 1000.0], [950.0], Verdict.EQUIVALENT),  # nothing that was not seen before
    ],
)
def test_any_growth_of_memory_counts(old: list[float], new: list[float], expected: Verdict) -> None:
    change_ = change(
        entry(old, "peak_bytes", None), entry(new, "peak_bytes", None), metric="memory"
    )
    assert (change_.metric, change_.verdict) == ("memory", expected)


def test_growth_of_either_kind_of_memory_counts() -> None:
    old = with_more(entry([1000.0], "peak_bytes"), entry([400.0], "saved_bytes"))
    new = with_more(entry([900.0], "peak_bytes"), entry([500.0], "saved_bytes"))
    change_ = change(old, new, metric="memory")
    assert change_.verdict is Verdict.REGRESSED
    assert change_.ratio is not None
    assert change_.ratio.value == change_.ratio.low == change_.ratio.high == 1.25
    assert change_.reason == (
        "peak_bytes was 1.00 kB and is 900 B. saved_bytes was 400 B and is 500 B."
    )


def test_less_memory_is_told_against_the_least_there_was() -> None:
    old, new = entry([900.0, 1000.0], "peak_bytes"), entry([450.0], "peak_bytes")
    change_ = change(old, new, metric="memory")
    assert change_.ratio is not None
    assert (change_.verdict, change_.ratio.value) == (Verdict.IMPROVED, 0.5)


def scored(values: Sequence[float], first_seed: int = 0) -> Entry:
    seeds = {number: first_seed + number for number in range(len(values))}
    return entry(values, "score", None, seeds=seeds)


def test_scores_are_compared_seed_by_seed() -> None:
    before = (0.10, 0.15, 0.22, 0.30, 0.41)  # matrices differ far more than the change
    after = tuple(value * factor for value, factor in zip(before, STEADY, strict=True))
    assert change(scored(before), scored(after)).verdict is Verdict.EQUIVALENT
    worse = tuple(1.06 * value for value in after)
    assert change(scored(before), scored(worse)).verdict is Verdict.REGRESSED
    other_seeds = change(scored(before), scored(worse, first_seed=9))
    assert other_seeds.verdict is Verdict.UNDECIDED


def test_a_seed_counts_once_however_many_runs_repeated_it() -> None:
    before = (0.10, 0.15, 0.22, 0.30, 0.41)
    five = [run(scored(before))] * 5
    change_ = only(compare(five, [run(scored(before[::-1], first_seed=9))]))
    assert change_.ratio is not None
    assert change_.ratio.counts == (5, 5)


def test_a_score_may_be_better_when_it_is_higher() -> None:
    worse = [0.8 * value for value in STEADY]
    assert change(scored(STEADY), scored(worse)).verdict is Verdict.IMPROVED
    before, after = (replace(scored(values), better="higher") for values in (STEADY, worse))
    assert change(before, after).verdict is Verdict.REGRESSED
    assert change(entry(), entry(worse, better="higher")).verdict is Verdict.IMPROVED  # a time


def test_the_score_of_one_seed_is_exact() -> None:
    assert change(scored([0.2]), scored([0.2])).verdict is Verdict.EQUIVALENT
    assert change(scored([0.2]), scored([0.2001])).verdict is Verdict.EQUIVALENT
    change_ = change(scored([0.2]), scored([0.3]))
    assert change_.verdict is Verdict.REGRESSED
    assert change_.reason == "One seed: its score is exact, and compared as it is."
    assert change(scored([0.3]), scored([0.2])).verdict is Verdict.IMPROVED


def test_a_relative_time_is_worth_its_share_of_the_time() -> None:
    def case(relative: Sequence[float], seconds: float) -> Entry:
        return with_more(
            entry([seconds * value for value in STEADY]), entry(relative, "relative_time")
        )

    floor = Rule(floor=1e-6)
    assert change(case(STEADY, 5e-6), case(SLOWER, 5e-6), rule=floor).verdict is Verdict.EQUIVALENT
    assert change(case(STEADY, 5e-3), case(SLOWER, 5e-3), rule=floor).verdict is Verdict.REGRESSED


def test_undecided_says_what_is_missing() -> None:
    noisy = (0.95, 1.0, 1.05, 1.1, 0.9)
    change_ = change(entry(noisy), entry(tuple(reversed(noisy))))
    assert change_.verdict is Verdict.UNDECIDED
    assert change_.replicates_needed is not None
    assert change_.replicates_needed > 5
    single = change(entry([1.0]), entry([1.2]))
    assert single.verdict is Verdict.UNDECIDED
    assert single.reason == "One replicate on each side tells no spread."


# Whose values are the sample


def test_runs_of_a_baseline_are_one_sample_of_replicates() -> None:
    change_ = only(compare([run(entry())] * 5, [run(entry())]))
    assert change_.ratio is not None
    assert change_.ratio.counts == (25, 5)


def test_pairs_are_replicates_of_the_same_number() -> None:
    drifting = [1.0, 1.2, 1.4, 1.6, 1.8, 2.0]
    old = replace(entry(), readings={"time_seconds": Reading(dict(enumerate(drifting)))})
    slower = {number: 1.05 * value for number, value in reversed(list(enumerate(drifting)))}
    slower[9] = 100.0  # its partner crashed
    new = replace(entry(), readings={"time_seconds": Reading(slower)})
    assert change(old, new).verdict is Verdict.UNDECIDED
    change_ = change(old, new, paired=True)
    assert change_.verdict is Verdict.REGRESSED
    assert change_.ratio is not None
    assert change_.ratio.counts == (6, 6)


def simulated(rng: np.random.Generator, blocks: int) -> list[Result]:
    """Five processes: 5 % between them, 1 % between the blocks of each."""
    seconds = 1e-3 * np.exp(rng.normal(0, 0.05, (5, 1)) + rng.normal(0, 0.01, (5, blocks)))
    return [result(number, row) for number, row in enumerate(seconds.tolist())]


def test_calls_are_never_pooled() -> None:
    """Identical code: pooled calls cry wolf most of the time, replicates hardly ever."""
    rng, trials, rule = np.random.default_rng(6), 300, Rule(threshold=0.01)
    alarms, pooled = 0, 0
    for _ in range(trials):
        old, new = simulated(rng, 12), simulated(rng, 12)
        change_ = only(
            compare([side(header(), [line()], old)], [side(header(), [line()], new)], rule)
        )
        alarms += change_.verdict in (Verdict.REGRESSED, Verdict.IMPROVED)
        calls = [
            [v for one in results for v in one.values("time_seconds")] for results in (old, new)
        ]
        pooled += judge(*calls, rule).verdict in (Verdict.REGRESSED, Verdict.IMPROVED)
    assert pooled > 0.5 * trials
    assert alarms <= 0.07 * trials


def test_the_table_lists_no_fact_twice() -> None:
    listed = (*fingerprint._FATAL, *fingerprint._WARN, *fingerprint._IGNORED)
    assert len(listed) == len(set(listed)) == len(fingerprint.FINGERPRINT)


def test_a_growth_from_nothing_is_without_measure() -> None:
    change_ = change(entry([0.0], "saved_bytes"), entry([8.0], "saved_bytes"), metric="memory")
    assert change_.ratio is not None
    assert change_.ratio.value == math.inf


@pytest.mark.parametrize("better", ["lower", "higher"])
@pytest.mark.parametrize(
    ("before", "after"),
    [(-2.0, -2.2), (-2.2, -2.0), (-0.1, 0.1), (0.1, -0.1), (0.0, -0.05), (0.0, 0.05), (-0.05, 0.0),
     (30.0, 33.0), (33.0, 30.0)],
)  # fmt: skip
def test_a_score_below_zero_moves_the_way_that_it_moves(
    before: float, after: float, better: str
) -> None:
    """A signal-to-noise ratio, a cosine and a log-likelihood may lie below zero."""
    old, new = (replace(scored([value]), better=better) for value in (before, after))
    good = (after > before) == (better == "higher")
    assert change(old, new).verdict is (Verdict.IMPROVED if good else Verdict.REGRESSED)


@pytest.mark.parametrize("metric", ["energy_joules", "numerical_error"])
def test_the_floor_of_times_is_none_of_other_quantities(metric: str) -> None:
    """A fifth more energy of a call of two microseconds is a fifth more."""

    def both(factor: float) -> Entry:
        values = tuple(factor * value for value in STEADY)
        return with_more(entry(tuple(2e-6 * value for value in STEADY)), entry(values, metric))

    rule = Rule(threshold=0.03, margin=0.03, floor=0.5e-6)
    change_ = change(both(1.0), both(1.2), metric=metric, rule=rule)
    assert change_.verdict is Verdict.REGRESSED
