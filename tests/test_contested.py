"""Pairs that the answer leaves undecided are measured again, and nothing else is."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from _inline import ten_seconds_a_replicate

from hwbench.analysis.contested import contested
from hwbench.measure import rerun, schedule
from hwbench.measure import run as runner
from hwbench.measure.schedule import Listener, Progress
from hwbench.records import Status
from hwbench.report import decision
from hwbench.report.rows import numbered, report_rows
from hwbench.store import Run, read_run

REAL = schedule.contested_cases
"""As it is before a fixture has every other test make the replicates of its plan alone."""

CLOSE = {"seed": 3, "case_noise": 0.015, "slow": {"rank=2": 1.03, "rank=3": 2.0}}
"""Every process times every case a little off; rank 2 is 3 % slower than rank 1, rank 3 far off."""


def document(**plan: Any) -> dict[str, Any]:
    ranks = {"name": "low_rank", "rank": [1, 2, 3]}
    timed = {"workload": "linear", "direction": "forward", "format": [{"name": "dense"}, ranks]}
    return {
        "schema": 1,
        "name": "close",
        "plan": {"replicates": 4, "budget_seconds": 0.005, **plan},
        "cases": [
            {**timed, "shape": [16, 16], "tokens": [4]},
            {**timed, "shape": [32, 16], "tokens": [4],
             "format": [{"name": "dense"}, {"name": "low_rank", "rank": 3}]},
            {"workload": "projection", "shape": [16, 16], "format": [ranks]},
        ],
    }  # fmt: skip


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Each replicate takes ten seconds of a clock that nothing else moves."""
    monkeypatch.setattr(schedule, "contested_cases", REAL)
    return ten_seconds_a_replicate(monkeypatch)


def simulate(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    budget: float | None = 1e6,
    listener: Listener | None = None,
    **plan: Any,
) -> Run:
    monkeypatch.setenv("HWBENCH_FAKE", json.dumps(CLOSE))
    begun, now = schedule.State.__init__, schedule.time.monotonic
    monkeypatch.setattr(
        schedule.State, "__init__", lambda self, **given: begun(self, **{**given, "begun": now()})
    )
    return read_run(
        runner.run(
            document(**plan),
            device="fake",
            out=folder,
            threads=1,
            time_budget_seconds=budget,
            listener=listener,
        )
    )


def made(run: Run) -> dict[str, int]:
    """Replicates of each timed case, by the part of its id that tells it."""
    count = Counter(result.case for result in run.results)
    return {
        f"{planned.case.label} {planned.case.out_features}": count[case]
        for case, planned in run.planned.items()
        if planned.seeds is None
    }


def undecided(run: Run) -> list[str]:
    actual = decision.settings(numbered(report_rows(run)))
    return [
        rival.name
        for setting in actual
        for level in setting.levels
        if (best := setting.best(level.limit))
        for rival in setting.close(best, level.limit)
        if "dense" not in (best.row.format, rival.row.format)
    ]


def first(run: Run, replicates: int) -> Run:
    """The same run as it stood after so many replicates."""
    early = [result for result in run.results if result.replicate < replicates]
    return Run(
        path=run.path, header=run.header, planned=run.planned, results=early, footer=run.footer
    )


def test_a_contested_pair_becomes_decided_and_the_others_are_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    heard: list[Progress] = []
    run = simulate(tmp_path, monkeypatch, listener=heard.append)
    told = [each.left for each in heard if "too close to call" in each.note]
    assert len(told) == 4
    assert all(told)
    assert heard[-1].left == 0.0
    assert made(run) == {
        "dense 16": 8,
        "low_rank rank=1 16": 8,
        "low_rank rank=2 16": 8,
        "low_rank rank=3 16": 4,
        "dense 32": 4,
        "low_rank rank=3 32": 4,
    }
    assert undecided(first(run, 4))
    assert not undecided(run)
    assert run.complete
    assert run.footer is not None
    assert run.footer.state["contested"] == {"cases": 3, "replicates": 4}
    assert "stopped" not in run.footer.state
    assert {result.status for result in run.results} == {Status.OK}
    assert read_run(runner.resume(run.path)).results == run.results


@pytest.mark.parametrize(
    ("budget", "plan", "further"),
    [
        (None, {}, 0),  # a tenth of forty seconds holds none
        (65.0, {}, 2),
        (1e6, {"replicates_most": 6}, 2),
        (1e6, {"replicates_most": 4}, 0),
        (1e6, {}, 4),  # no longer than those of the plan
    ],
)
def test_they_take_the_seconds_that_are_left(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    clock: list[float],
    budget: float | None,
    plan: dict[str, Any],
    further: int,
) -> None:
    run = simulate(tmp_path, monkeypatch, budget, **plan)
    assert made(run)["low_rank rank=1 16"] == 4 + further
    assert made(run)["low_rank rank=3 32"] == 4
    assert run.complete


def test_a_run_that_was_cut_off_among_them_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    run = simulate(tmp_path, monkeypatch)
    lines = run.path.read_bytes().splitlines(keepends=True)
    cut = next(number for number, line in enumerate(lines) if b'"replicate":5' in line) + 1
    run.path.write_bytes(b"".join(lines[:cut]))
    run_ = read_run(runner.resume(run.path))
    assert run_.complete
    assert set(Counter((r.case, r.replicate) for r in run_.results).values()) == {1}
    before = read_run(run.path).results
    assert run_.results[: len(before)] == before


def test_a_confirmation_has_no_answer_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    run = simulate(tmp_path, monkeypatch, replicates_most=4)
    looked: list[Any] = []
    monkeypatch.setattr(schedule, "contested_cases", lambda state: looked.append(1) or set())
    confirming = read_run(rerun.again(run, list(run.planned)[:2], 3))
    assert confirming.complete
    assert not looked


@pytest.mark.parametrize("apart", [1.0, 1.02, 1.05, 1.2, 1.6])
def test_who_is_contested_is_who_the_answer_calls_undecided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: float
) -> None:
    script = {**CLOSE, "slow": {"rank=2": apart, "rank=3": 1.3 * apart}}
    monkeypatch.setenv("HWBENCH_FAKE", json.dumps(script))
    run = read_run(runner.run(document(), device="fake", out=tmp_path, threads=1))
    words: set[str] = set()
    for setting in decision.settings(numbered(report_rows(run))):
        for level in setting.levels:
            if (best := setting.best(level.limit)) is None:
                continue
            own = {best.row.case} if best.row.format != "dense" else set()
            rivals = [each for each in setting.close(best, level.limit)
                      if each.row.format != "dense"]  # fmt: skip
            if rivals or best.verdict == decision.UNDECIDED:
                words |= {each.row.case for each in rivals} | own
    assert contested(run) == words


@pytest.mark.parametrize("factor", [0.5, 0.97, 0.98, 0.99, 1.5])
def test_the_fastest_is_contested_where_dense_may_be_as_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    script = {"seed": 5, "case_noise": 0.015, "slow": {"packed_dense": factor}}
    monkeypatch.setenv("HWBENCH_FAKE", json.dumps(script))
    asked = document()
    asked["cases"] = [
        {**asked["cases"][0], "format": [{"name": "dense"}, {"name": "packed_dense"}]}
    ]
    run = read_run(runner.run(asked, device="fake", out=tmp_path, threads=1))
    (setting,) = decision.settings(numbered(report_rows(run)))
    best = setting.best(0.0)
    assert best is not None
    undecided_ = best.verdict == decision.UNDECIDED
    assert contested(run) == ({best.row.case} if undecided_ else set())
    assert undecided_ == (factor in (0.97, 0.98, 0.99))
