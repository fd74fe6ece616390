"""Situations in which a gate passes or fails for another reason than code: each is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from _check import FACTS, Call, five, kept, made, one_sentence
from msgspec.structs import replace
from test_gate_sight import SCORED, dense_by, night, nights, scaled

from hwbench.environment import usable_cores
from hwbench.records import Status
from hwbench.store import Run

TIMES = ("relative_time", "time_seconds")


def words_of(out: str) -> str:
    return " ".join(out.split())


# --- dense, and everything with it --------------------------------------------------------------


def test_dense_that_fell_is_named_and_no_format_regresses(hwbench: Call) -> None:
    code, out, _ = hwbench("check", kept(dense_by(night(9), 0.7)), "-b", nights())
    assert code == 0
    assert "dense moved, not the format" in words_of(out)


def test_dense_that_rose_with_a_format_makes_no_improvement_of_the_others(hwbench: Call) -> None:
    """Dense and csr take 30 % longer: the others' relative time fell, and csr's did not rise."""
    before = nights()
    tonight = scaled(dense_by(night(9), 1.3), 1.3, TIMES, "linear/forward/csr")
    code, out, _ = hwbench("check", kept(tonight), "-b", before, "--json")
    document = json.loads(out)
    assert code == 1  # dense itself, by its seconds
    assert "improved" not in {change["verdict"] for change in document["changes"]}
    assert any("Dense itself took" in note for note in document["notes"])


@pytest.mark.parametrize("stored", [5, 12])
def test_everything_slower_dense_too_is_named(hwbench: Call, stored: int) -> None:
    before = nights(stored)
    code, out, err = hwbench("check", kept(scaled(night(20), 1.3, ("time_seconds",))), "-b", before)
    assert "Dense itself took" in words_of(out)
    assert code == (4 if stored == 12 else 1)
    if stored == 12:
        assert "another machine tonight" in one_sentence(err)


# --- confirmations that are none ----------------------------------------------------------------


def flagged(facts: dict[str, object]) -> tuple[str, Run]:
    """A baseline, and a run in which low_rank is twice as slow."""
    five(facts=facts)
    return "nights", made(9, slower=1.5, facts=facts)


def beside(run: Run, **fields: object) -> Path:
    """The run's confirmation as it could be found there, of fresh values without a slow-down."""
    there = made(10, facts=FACTS)
    header = replace(there.header, run=f"{run.header.run}-confirm", **fields)
    there.header = replace(header, suite=run.header.suite)
    return Path(kept(there))


@pytest.mark.parametrize("arguments", [{}, {"confirms": "20260101-000000-linear-cpu-0001"}])
def test_a_file_that_does_not_confirm_the_run_is_refused(
    hwbench: Call, arguments: dict[str, str]
) -> None:
    before, run = flagged(FACTS)
    there = beside(run, arguments=arguments)
    code, _, err = hwbench("check", kept(run), "-b", before, "--confirm")
    assert code == 2
    assert f"{there} does not confirm {run.header.run}" in one_sentence(err)


def test_a_confirmation_from_another_machine_is_4(hwbench: Call) -> None:
    facts = {**FACTS, "threads": usable_cores()}
    before, run = flagged(facts)
    path = beside(run, arguments={"confirms": run.header.run})
    data = path.read_text().replace('"threads":2', '"threads":64')
    path.write_text(data)
    code, _, err = hwbench("check", kept(run), "-b", before, "--confirm")
    assert code == 4
    assert "was made on another machine or version" in one_sentence(err)


def test_a_confirmation_that_confirms_counts(hwbench: Call) -> None:
    before, run = flagged(FACTS)
    beside(run, arguments={"confirms": run.header.run})
    code, out, _ = hwbench("check", kept(run), "-b", before, "--confirm", "--json")
    assert code == 0
    assert "Not confirmed in 5 fresh replicates" in out


@pytest.mark.parametrize("status", [each for each in Status if each is not Status.OK])
def test_a_case_that_only_its_confirmation_could_measure_breaks_nothing(
    hwbench: Call, status: Status
) -> None:
    """Tonight has no time of csr, and the fresh replicates have: the sight rests on tonight."""
    before, run = flagged(FACTS)
    run.results = [
        replace(each, status=status, reason="nothing was left", measurements=[])
        if "csr" in each.case
        else each
        for each in run.results
    ]
    beside(run, arguments={"confirms": run.header.run})
    code, out, _ = hwbench("check", kept(run), "-b", before, "--confirm", "--json")
    assert code in (0, 1, 3, 5)
    assert json.loads(out)["sight"]


# --- what was not measured alike ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("replicates", 1, "replicates was 5 and is 1"),
        ("budget_seconds", 9.0, "budget_seconds was"),
        ("relative_width", 0.5, "relative_width was"),
    ],
)
def test_another_plan_is_named(hwbench: Call, field: str, value: float, words: str) -> None:
    before = five()
    run = made(9)
    run.header = replace(run.header, plan=replace(run.header.plan, **{field: value}))
    run.results = [each for each in run.results if each.replicate < run.header.plan.replicates]
    _, out, _ = hwbench("check", kept(run), "-b", before)
    assert f"Not measured as before: {words}" in words_of(out)


def test_another_seed_is_named_and_the_same_plan_is_not(hwbench: Call) -> None:
    before = five()
    run = made(9)
    assert "Not measured as before" not in hwbench("check", kept(run), "-b", before)[1]
    run = made(10)
    run.header = replace(run.header, seed=run.header.seed + 7)
    _, out, _ = hwbench("check", kept(run), "-b", before)
    assert "Not measured as before: seed was" in words_of(out)


def test_one_night_copied_five_times_is_one_night(hwbench: Call) -> None:
    path = Path(kept(made(1), "nights"))
    for number in range(4):
        shutil.copy(path, path.with_name(f"2026010{number + 2}-000000-linear-cpu-copy.jsonl"))
    _, out, _ = hwbench("check", kept(made(9)), "-b", "nights", "--json")
    document = json.loads(out)
    assert document["baseline"] == [made(1).header.run]
    assert "4 the same run again" in " ".join(document["notes"])
    assert "Against 1 baseline run instead of 5" in " ".join(document["notes"])


@pytest.mark.parametrize(("share", "said"), [(0.2, False), (0.4, False), (0.6, True), (1.0, True)])
def test_cases_that_were_disturbed_are_counted(hwbench: Call, share: float, said: bool) -> None:
    before = five()
    run = made(9)
    run.results = [
        replace(each, flags=["disturbed"])
        if "csr" in each.case and each.replicate < share * 5
        else each
        for each in run.results
    ]
    _, out, _ = hwbench("check", kept(run), "-b", before)
    assert ("Disturbed while they were measured: 1 case." in words_of(out)) == said


# --- scores -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factors", "code"), [((3.0, 1.0), 1), ((1.04, 1.04), 1), ((1.0, 1.0), 0)])
def test_scores_of_two_seeds_are_exact(
    hwbench: Call, factors: tuple[float, float], code: int
) -> None:
    def seeded(day: int, by: tuple[float, float]) -> Run:
        run = made(day, SCORED, steady=True)
        (score,) = [each for each in run.results if "low_rank" in each.case and _scored(each)]
        both = [
            replace(
                score, replicate=seed, seed=seed,
                measurements=[
                    replace(m, values=[by[seed] * (1 + seed / 10) * v for v in m.values])
                    for m in score.measurements
                ],
            )
            for seed in (0, 1)
        ]  # fmt: skip
        run.results = [each for each in run.results if each.case != score.case] + both
        return run

    def _scored(result: object) -> bool:
        return bool(result.values("score"))  # type: ignore[attr-defined]

    for day in range(1, 6):
        kept(seeded(day, (1.0, 1.0)), "nights")
    got, out, _ = hwbench("check", kept(seeded(9, factors)), "-b", "nights")
    assert got == code, out
    assert code == 0 or "Few seeds: their scores are exact" in words_of(out)
