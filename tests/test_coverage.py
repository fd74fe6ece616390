"""``evidence/coverage.py`` on simulated machines: what it counts, and what it calls wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from _check import FACTS, kept, made
from _evidence import script as evidence_script
from msgspec.structs import replace

from hwbench.measure import run as runner
from hwbench.records import CONFIRMS
from hwbench.report._answers import Winner
from hwbench.store import Run, read_run


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    """The script; the folder is no package."""
    return evidence_script("coverage")


def small(coverage: ModuleType) -> dict[str, Any]:
    """The script's suite with small layers, which the simulated device runs once for real."""
    document = json.loads(json.dumps(coverage.SUITE))
    document["cases"][0] |= {"shape": [256, 256], "tokens": [16, 32]}
    document["plan"]["budget_seconds"] = 0.002
    return dict(document)


def simulate(
    coverage: ModuleType, folder: Path, patch: pytest.MonkeyPatch, effects: list[dict[str, Any]]
) -> list[Run]:
    runs = []
    for each in effects:
        patch.setenv("HWBENCH_FAKE", json.dumps(each))
        path = runner.run(small(coverage), device="fake", out=folder, threads=1)
        runs.append(read_run(path))
    return runs


@pytest.mark.heavy
def test_on_a_machine_with_plain_noise_the_intervals_hold_and_winners_stay(
    coverage: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    effects = [{"seed": seed, "case_noise": 0.006, "noise": 0.002} for seed in range(8)]
    runs = simulate(coverage, tmp_path, monkeypatch, effects)
    measured = coverage.evaluate(runs, [True] * 8)
    assert (measured.runs, measured.slowed, measured.rows) == (8, 0, 8 * 16)
    figures = measured.figures()
    assert figures["coverage"] >= 0.88
    assert figures["narrowest fifth"] >= 0.85
    assert figures["half width"] <= 0.025
    assert figures["sd between runs"] <= 0.015
    assert figures["verdicts, quiet runs"] >= 0.95
    assert math.isnan(figures["verdicts, other runs"])
    assert measured.contradictory == 0
    assert len(measured.alarms) == 8 * 7 * 16
    assert "MISSED" not in "\n".join(coverage.report(measured))


def test_a_run_that_was_slow_throughout_is_told_and_not_counted(
    coverage: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = [{"seed": seed, "noise": 0.001} for seed in range(3)]
    slow = {"seed": 9, "noise": 0.001, "slow": {"dense": 1.19, "low_rank": 1.4, "csr": 1.2}}
    runs = simulate(coverage, tmp_path, monkeypatch, [*quiet, slow])
    figures = coverage.evaluate(runs, [True] * 4)
    assert (figures.runs, figures.slowed, figures.rows) == (4, 1, 3 * 16)
    assert "4 runs, 1 of them slower throughout" in coverage.report(figures)[0]


def test_what_moves_from_run_to_run_is_found(
    coverage: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A format that is in another mode in each run, each run steady: the first are misled."""
    effects = [
        {"seed": seed, "noise": 0.001, "slow": {"low_rank": 1 + 0.04 * seed}} for seed in range(3)
    ]
    runs = simulate(coverage, tmp_path, monkeypatch, effects)
    figures = coverage.evaluate(runs, [False] * 3).figures()
    assert figures["coverage"] < 0.88
    measured = coverage.evaluate(runs, [False] * 3)
    assert max(measured.spreads) > 0.03
    # Slower in the second run than in the first, and so on: half of the pairs of four cases.
    assert sum(measured.alarms) == 3 * 4


def test_a_winner_that_another_run_does_not_know_is_a_contradiction(coverage: ModuleType) -> None:
    key = ("group", 0.5)

    def counted(*winners: Winner) -> tuple[int, int, int]:
        figures = coverage.Figures(runs=len(winners), slowed=0, rows=0)
        coverage._winners([{key: winner} for winner in winners], figures)
        return figures.looks, figures.contradictory, figures.decided

    open_one = Winner(None, 0.5, "btt")
    assert counted(Winner("btt"), Winner("btt"), open_one) == (4, 0, 2)
    assert counted(Winner("btt"), Winner("monarch")) == (2, 2, 2)
    assert counted(Winner("btt", tied=("monarch",)), Winner("monarch")) == (2, 0, 2)


def test_what_is_read_is_of_one_suite_and_one_machine(
    coverage: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for day in (1, 2):
        kept(made(day), tmp_path)
    confirming = made(3)
    confirming.header = replace(confirming.header, arguments={CONFIRMS: "another"})
    cut = made(4)
    cut.footer = None
    for run in (confirming, cut):
        kept(run, tmp_path)
    assert [run.header.run for run in coverage.comparable(tmp_path)] == [
        made(day).header.run for day in (1, 2)
    ]
    told = capsys.readouterr().out
    assert f"1 runs of {tmp_path} are left out: measured cases of another run again" in told
    assert f"1 runs of {tmp_path} are left out: cut off" in told
    kept(made(5, facts={**FACTS, "threads": 4}), tmp_path)
    with pytest.raises(SystemExit, match="of two machines or versions: threads was 2 and is 4"):
        coverage.comparable(tmp_path)
    kept(made(5, suite="other"), other := tmp_path / "other")
    kept(made(4), other)
    with pytest.raises(SystemExit, match="holds runs of two suites, linear and other"):
        coverage.comparable(other)


def test_without_anything_to_tell_a_figure_says_so(coverage: ModuleType) -> None:
    lines = coverage.report(coverage.evaluate([], []))
    assert sum("nothing tells it" in line for line in lines) == 8
