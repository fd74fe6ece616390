"""Which nights tonight is compared with, what is the machine's, and how a change is confirmed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hwbench.analysis.compare import Entry, Reading, Side
from hwbench.analysis.judging import judge_cases, look
from hwbench.analysis.nights import (
    FEWEST_STORED,
    KNOWN,
    Question,
    formats_moved,
    judge_night,
    match,
)
from hwbench.analysis.noise import noises, spread_within
from hwbench.analysis.pairs import judge_pairs
from hwbench.analysis.stats import Rule
from hwbench.records import Change, Verdict

RULE = Rule(threshold=0.03, margin=0.03)
WALL = frozenset(["wall"])
FORMATS, GROUPS = ("low_rank", "monarch", "btt", "csr", "blast"), 4


class Machine:
    """Nights of a small suite in memory."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)

    def night(
        self,
        dense: float = 1.0,
        slower: dict[str, float] | None = None,
        *,
        own: dict[str, float] | None = None,
        replicates: int = 5,
        noise: Callable[[int], np.ndarray] | None = None,
        facts: dict[str, Any] | None = None,
        run: str = "",
    ) -> Side:
        """Dense takes ``dense`` times as long; formats relative to it, and by their own seconds."""
        cases = {}
        for group in range(GROUPS):
            seconds = 1e-3 * dense * np.exp(self.rng.normal(0, 0.01, replicates))
            cases[f"dense/{group}"] = entry("dense", group, time_seconds=seconds)
            for name in FORMATS:
                drawn = noise(replicates) if noise else self.rng.normal(0, 0.015, replicates)
                ratio = (slower or {}).get(name, 1.0) * np.exp(drawn)
                ratio = ratio * (own or {}).get(name, 1.0)
                cases[f"{name}/{group}"] = entry(
                    name, group, relative_time=ratio, time_seconds=ratio * seconds
                )
        return Side(cases, facts or {}, run)

    def nights(self, count: int, **how: Any) -> list[Side]:
        return [self.night(**how) for _ in range(count)]


def entry(name: str, group: int, **values: np.ndarray) -> Entry:
    readings = {key: Reading(dict(enumerate(each.tolist())), WALL) for key, each in values.items()}
    return Entry("linear", readings=readings, format=name, group=(group,))


def regressed(changes: Sequence[Change]) -> set[str]:
    return {each.case for each in changes if each.verdict is Verdict.REGRESSED}


def told_of(stored: Sequence[Side], new: Side, **how: Any) -> Any:
    return judge_night(stored, new, Question(rule=RULE, **how))


def cases_of(name: str) -> set[str]:
    return {f"{name}/{group}" for group in range(GROUPS)}


# --- nights that are like tonight ---------------------------------------------------------------


def test_the_five_nights_whose_dense_is_nearest_are_taken() -> None:
    machine = Machine()
    stored = [machine.night(1.2 if place % 2 else 1.0) for place in range(20)]
    slow, fast = machine.night(1.2), machine.night(1.0)
    assert list(match(stored, slow).nights) == [11, 13, 15, 17, 19]
    assert list(match(stored, fast).nights) == [10, 12, 14, 16, 18]
    assert list(match(stored, fast, 3).nights) == [14, 16, 18]


def test_a_kind_of_night_that_the_last_twenty_lack_is_looked_for_before_them() -> None:
    machine = Machine()
    rare = machine.nights(4, dense=1.3)
    stored = rare + machine.nights(20)
    assert list(match(stored, machine.night(1.3)).nights) == [0, 1, 2, 3]
    assert list(match(stored, machine.night()).nights) == [19, 20, 21, 22, 23]
    assert match(stored[2:], machine.night(1.3)).stranger  # two of its kind are too few
    assert match(rare + machine.nights(KNOWN), machine.night(1.3)).stranger  # too long ago


@pytest.mark.parametrize("near", range(5))
def test_fewer_than_three_near_nights_make_another_machine(near: int) -> None:
    machine = Machine()
    stored = machine.nights(12) + machine.nights(near, dense=1.19)
    decision = told_of(stored, machine.night(1.19, {"btt": 1.3}))
    assert bool(decision.stranger) == (near < 3)
    if decision.stranger:
        assert "another machine tonight, and the first night of its kind" in decision.stranger
        assert not regressed(decision.judged.changes)
        words = f"as long as in {near} of the last {12 + near} nights only" if near else "more time"
        assert words in decision.stranger
    else:
        assert cases_of("btt") <= regressed(decision.judged.changes)


@pytest.mark.parametrize("stored", [1, 2, 3, 5, 9])
def test_few_stored_nights_are_taken_as_they_come(stored: int) -> None:
    machine = Machine()
    nights = machine.nights(stored)
    actual = match(nights, machine.night(1.3))
    assert not actual.stranger
    assert list(actual.nights) == list(range(stored))[-5:]
    assert stored < FEWEST_STORED


def test_what_dense_scatters_makes_no_night_nearer_than_another() -> None:
    """A baseline that was moved past a change keeps to the nights after it."""
    for seed in range(20):
        machine = Machine(seed)
        stored = machine.nights(10) + machine.nights(6, slower={"csr": 1.2})
        assert list(match(stored, machine.night()).nights) == [11, 12, 13, 14, 15]


def of_groups(night: Side, groups: Sequence[int]) -> Side:
    """The same cases as if they were of other shapes."""
    moved = {
        f"{case}/{groups[each.group[0]]}": replace(each, group=(groups[each.group[0]],))
        for case, each in night.cases.items()
    }
    return replace(night, cases=moved)


@pytest.mark.parametrize("others", [1, 2, 9, 11, 12])
@pytest.mark.parametrize("tonight", [1.0, 1.3])
def test_nights_of_other_shapes_are_none_to_compare_with(others: int, tonight: float) -> None:
    machine = Machine()
    stored = machine.nights(12)
    elsewhere = range(GROUPS, 2 * GROUPS)
    for place in range(others):
        stored[place] = of_groups(stored[place], elsewhere)
    alike = range(others, 12)
    actual = match(stored, machine.night(tonight))
    assert list(actual.nights) == (list(alike)[-5:] or list(range(7, 12)))
    far = tonight > 1 and len(alike) >= FEWEST_STORED
    assert bool(actual.stranger) == far
    if far:
        assert f"the nearest of {len(alike)} nights" in actual.stranger
    half = range(GROUPS // 2, GROUPS // 2 + GROUPS)  # half of its groups are tonight's
    stored = machine.nights(8) + [of_groups(each, half) for each in machine.nights(4)]
    assert bool(match(stored, machine.night(tonight)).stranger) == (tonight > 1)


def test_suites_without_dense_have_the_last_nights() -> None:
    scores = [Side({"a": Entry("image", readings={"score": Reading({0: 0.2})})}) for _ in range(15)]
    assert list(match(scores, scores[0]).nights) == [10, 11, 12, 13, 14]


def test_bytes_and_scores_are_compared_with_the_latest_nights_whatever_dense_did() -> None:
    machine = Machine()
    old, late = {"score": Reading({0: 0.3})}, {"score": Reading({0: 0.2})}

    def night(dense: float, score: dict[str, Reading]) -> Side:
        one = machine.night(dense)
        return Side({**one.cases, "s": Entry("image", readings=score, seeds={0: 0})})

    stored = [night(1.0, old) for _ in range(8)] + [night(1.1, late) for _ in range(5)]
    decision = told_of(stored, night(1.0, late))
    (score,) = [each for each in decision.judged.changes if each.case == "s"]
    assert score.verdict is Verdict.EQUIVALENT


# --- other software -----------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["torch", "hwbench", "driver"])
@pytest.mark.parametrize("stored", [5, 20])
@pytest.mark.parametrize("later", [0, 1, 2])
def test_dense_that_moved_with_the_software_is_no_other_machine(
    key: str, stored: int, later: int
) -> None:
    machine, old, new = Machine(), {key: "1"}, {key: "2"}
    # Dense became faster, and with it every relative time rose: the formats are as they were.
    same = {"dense": 0.8, "slower": dict.fromkeys(FORMATS, 1.25), "facts": new}
    nights = machine.nights(stored, facts=old) + machine.nights(later, **same)
    decision = told_of(nights, machine.night(**same))
    assert decision.stranger is None
    assert not regressed(decision.judged.changes)
    assert f"{key} was '1' and is '2'" in " ".join(decision.notes)


def test_the_same_software_with_such_a_dense_is_another_machine() -> None:
    machine, facts = Machine(), {"torch": "1"}
    assert told_of(machine.nights(20, facts=facts), machine.night(0.8, facts=facts)).stranger


def test_a_case_that_slowed_as_dense_did_is_told_by_its_own_seconds() -> None:
    """Dense and one format both take 30 % longer with a new torch: the ratio is as before."""
    machine = Machine()
    stored = machine.nights(5, facts={"torch": "1"})
    others = {name: 1 / 1.3 for name in FORMATS if name != "btt"}
    decision = told_of(stored, machine.night(1.3, others, facts={"torch": "2"}))
    actual = {each.case: each for each in decision.judged.changes}
    assert cases_of("btt") <= regressed(decision.judged.changes)
    assert "By its own seconds" in str(actual["btt/0"].reason)
    assert actual["btt/0"].metric == "time"
    assert not cases_of("csr") & regressed(decision.judged.changes)
    assert all(actual[case].verdict is Verdict.UNDECIDED for case in cases_of("csr"))
    assert "dense moved, not the format" in str(actual["csr/0"].reason)


def test_what_regressed_by_its_seconds_is_confirmed_by_them() -> None:
    machine = Machine()
    stored = machine.nights(5, facts={"torch": "1"})
    others = {name: 1 / 1.3 for name in FORMATS if name != "btt"}
    new = machine.night(1.3, others, facts={"torch": "2"})
    for dense, one in ((1.3, cases_of("btt")), (1.0, set())):

        def again(wanted: list[str], dense: float = dense) -> Side:
            fresh = machine.night(dense, others, facts={"torch": "2"}, replicates=10)
            return Side({case: fresh.cases[case] for case in wanted}, fresh.facts)

        decision = told_of(stored, new, way="fresh", again=again)
        assert {each for each in regressed(decision.judged.changes) if "dense" not in each} == one


# --- the machine, or a change -------------------------------------------------------------------


@pytest.mark.parametrize("count", range(1, 6))
def test_three_formats_at_once_look_like_the_machine(count: int) -> None:
    machine = Machine(3)
    stored = machine.nights(12)
    slower = dict.fromkeys(FORMATS[:count], 1.12)
    decision = told_of(stored, machine.night(slower=slower))
    assert bool(decision.stranger) == (count >= 3)
    assert bool(regressed(decision.judged.changes)) == (count < 3)
    if count >= 3:
        assert (
            "it looks like the machine, and the next night or --confirm-by ab" in decision.stranger
        )
        assert all(name in decision.stranger for name in slower)


def test_two_nights_that_say_the_same_are_a_regression() -> None:
    machine = Machine(4)
    stored = machine.nights(12)
    slower = dict.fromkeys(FORMATS[:4], 1.12)
    stored.append(machine.night(slower=slower))
    decision = told_of(stored, machine.night(slower=slower))
    assert decision.stranger is None
    assert set().union(*map(cases_of, slower)) <= regressed(decision.judged.changes)
    assert "the night before says the same" in " ".join(decision.notes)
    # Other formats, or the other way: it is another state of the machine.
    other = told_of(
        stored, machine.night(slower={FORMATS[4]: 1.12, **dict.fromkeys(FORMATS[:2], 1.12)})
    )
    assert other.stranger
    faster = dict.fromkeys(FORMATS[:3], 1 / 1.12)
    assert told_of(stored, machine.night(slower={**faster, FORMATS[4]: 1.12})).stranger
    # And a quiet night after it passes: the odd one is no part of what is usual.
    quiet = told_of(stored, machine.night())
    assert not quiet.stranger
    assert not regressed(quiet.judged.changes)


def test_half_of_the_cases_of_a_format_are_no_move_of_it() -> None:
    machine = Machine(5)
    stored, new = machine.nights(6), machine.night()
    cases = dict(new.cases)
    for case in ("btt/0", "btt/1"):
        slow = np.array(list(cases[case].readings["relative_time"].values.values())) * 1.3
        cases[case] = entry("btt", int(case[-1]), relative_time=slow, time_seconds=slow * 1e-3)
    first = look(stored, Side(cases), RULE)
    assert formats_moved(first, Side(cases)) == {}
    for case in ("btt/2",):
        slow = np.array(list(cases[case].readings["relative_time"].values.values())) * 1.3
        cases[case] = entry("btt", int(case[-1]), relative_time=slow, time_seconds=slow * 1e-3)
    assert formats_moved(look(stored, Side(cases), RULE), Side(cases)) == {"btt": 1}


def test_pairs_decide_even_where_all_formats_moved() -> None:
    machine = Machine(6)
    stored = machine.nights(12)
    slower = dict.fromkeys(FORMATS, 1.12)
    new = machine.night(slower=slower)
    for code, each in ((1.0, set()), (1.12, cases_of("btt"))):

        def pairs(wanted: list[str], count: int, code: float = code) -> tuple[Side, Side]:
            first = machine.night(slower=slower, replicates=count)
            second = machine.night(slower=slower, own={"btt": code}, replicates=count)
            return first, second

        decision = told_of(stored, new, way="ab", pairs=pairs)
        assert decision.stranger is None
        assert regressed(decision.judged.changes) == each
        assert decision.judged.confirmed == each


def test_twenty_pairs_are_made_where_ten_scatter() -> None:
    machine = Machine(7)
    arguments: list[tuple[list[str], int]] = []

    def pairs(wanted: list[str], count: int) -> tuple[Side, Side]:
        arguments.append((wanted, count))
        wide = machine.rng.normal
        first = machine.night(replicates=count, noise=lambda n: wide(0, 0.05, n))
        return first, machine.night(replicates=count, noise=lambda n: wide(0, 0.05, n))

    stored = machine.nights(12)
    decision = told_of(stored, machine.night(slower={"btt": 1.12}), way="ab", pairs=pairs)
    assert [count for _, count in arguments] == [10, 20]
    assert set(arguments[1][0]) <= set(arguments[0][0]) == cases_of("btt")
    assert not regressed(decision.judged.changes)


def test_the_night_before_confirms_or_does_not() -> None:
    machine = Machine(8)
    stored = machine.nights(12)
    slower = {"btt": 1.12}
    first = told_of(stored, machine.night(slower=slower), way="nights")
    assert not regressed(first.judged.changes)
    assert first.judged.confirmed == frozenset()
    (open_,) = [each for each in first.judged.changes if each.case == "btt/0"]
    assert "the next decides" in str(open_.reason)
    second = told_of(
        [*stored, machine.night(slower=slower)], machine.night(slower=slower), way="nights"
    )
    assert regressed(second.judged.changes) == second.judged.confirmed == cases_of("btt")


# --- spreads ------------------------------------------------------------------------------------


def crazy(rng: np.random.Generator, runs: int, count: int) -> np.ndarray:
    """Of every five replicates one takes up to 2.5 times as long."""
    values = rng.normal(0, 0.015, (runs, count))
    for row in values:
        for start in range(0, count, 5):
            row[start + rng.integers(min(5, count - start))] += rng.uniform(0.2, 0.9)
    return values


@pytest.mark.parametrize("runs", [2, 6])
def test_one_crazy_replicate_in_five_does_not_make_the_spread(runs: int) -> None:
    rng = np.random.default_rng(1)
    clean = [spread_within(rng.normal(0, 0.015, (runs, 5)).tolist())[0] for _ in range(400)]
    wild = [spread_within(crazy(rng, runs, 5).tolist())[0] for _ in range(400)]
    assert np.sqrt(np.mean(clean)) == pytest.approx(0.015, rel=0.1)
    assert np.sqrt(np.median(wild)) < 0.04


@pytest.mark.parametrize("size", [1.05, 1.10])
def test_one_crazy_replicate_in_five_hides_no_slow_down_and_makes_none(size: float) -> None:
    rng = np.random.default_rng(2)
    actual = false = 0
    nights = 6
    for _ in range(nights):
        runs = np.exp(np.stack([crazy(rng, 40, 5) for _ in range(7)]))
        stored = [plain(run) for run in runs[:5]]
        for factor, place in ((size, 5), (1.0, 6)):
            fresh = np.exp(crazy(rng, 40, 10)) * factor
            judged = judge_cases(
                stored, plain(runs[place] * factor), RULE,
                again=lambda wanted, fresh=fresh: plain(fresh),
            )  # fmt: skip
            hits = len(regressed(judged.changes))
            actual, false = (actual + hits, false) if factor > 1 else (actual, false + hits)
    assert false == 0
    assert actual >= (0.95 if size > 1.06 else 0.5) * nights * 40


def plain(values: np.ndarray) -> Side:
    return Side({
        f"case {index}": entry("", index, relative_time=row) for index, row in enumerate(values)
    })  # fmt: skip


def test_pairs_with_crazy_replicates_are_told_by_their_median() -> None:
    rng = np.random.default_rng(3)
    same = [np.exp(crazy(rng, 30, 20)) for _ in range(2)]
    changes = judge_pairs(plain(same[0]), plain(same[1]), RULE)
    assert not regressed(changes)
    slow = judge_pairs(plain(same[0]), plain(same[1] * 1.2), RULE)
    assert len(regressed(slow)) >= 27
    assert any("the median of the pairs decides" in str(each.reason) for each in slow)


def test_a_mode_of_some_processes_is_not_taken_for_a_change() -> None:
    """Nine of ten fresh replicates in the slower of two modes; the fastest is as fast as before."""
    rng = np.random.default_rng(4)
    fast = rng.normal(0, 0.005, (5, 40, 5))
    slow = rng.random((5, 40, 5)) < 0.3
    stored = [plain(np.exp(a + 0.08 * b)) for a, b in zip(fast, slow, strict=True)]
    new = rng.normal(0.08, 0.005, (40, 5))
    fresh = rng.normal(0.08, 0.005, (40, 10))
    fresh[:, :2] -= 0.08
    judged = judge_cases(
        stored, plain(np.exp(new)), RULE, again=lambda wanted: plain(np.exp(fresh))
    )
    assert not regressed(judged.changes)
    assert any("fastest replicates are as fast as before" in str(c.reason) for c in judged.changes)
    code = judge_cases(
        stored, plain(np.exp(new)), RULE,
        again=lambda wanted: plain(np.exp(rng.normal(0.08, 0.005, (40, 10)))),
    )  # fmt: skip
    assert regressed(code.changes)


def test_how_nights_differ_is_told_format_by_format() -> None:
    """Nights shift one format of three by 2 %: the quiet ones are not taken for as noisy."""
    rng = np.random.default_rng(5)
    kinds = ["quiet"] * 20 + ["still"] * 20 + ["moving"] * 20
    sds = np.array([0.001] * 40 + [0.02] * 20)
    runs = rng.normal(0, 1, (60, 5, 1)) * sds[:, None, None] + rng.normal(0, 0.005, (60, 5, 5))
    new = rng.normal(0, 0.005, (60, 5))

    def between(named: list[str] | None) -> np.ndarray:
        actual = noises(runs.tolist(), new.tolist(), named)
        return np.sqrt([each.between[0] for each in actual])

    assert np.max(between(kinds)[:40]) < 0.006
    assert np.median(between(kinds)[40:]) == pytest.approx(0.02, rel=0.35)
    assert np.median(between(None)[:40]) > 2 * np.median(between(kinds)[:40]) - 1e-3
