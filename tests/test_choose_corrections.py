"""Corrections of a plan whose pass exceeds its budget of time, on passes of known times."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import _compress
import pytest
from _check import Call

from hwbench.errors import CasesFailedError, RunFileError, UsageError
from hwbench.measure import run as runner
from hwbench.store import Run
from hwbench.studies import _choosing, _corrections, _groups, choose
from hwbench.studies.choose import Budget, Choice, Costs, Layer, Passed

BUDGET = Budget("time", 0.7)
REST = 3.0
PLANS = 1 + _corrections.MOST


def layers_in(rng: random.Random) -> list[Layer]:
    """Forty layers, of which less time loses more."""
    layers = []
    for n in range(40):
        shares = sorted(rng.uniform(0.05, 0.95) for _ in range(8))
        losses = sorted((rng.random() for _ in shares), reverse=True)
        options = {"dense": Costs(0.1, 100, 25, 0)} | {
            f"f{i}": Costs(0.1 * share, 100, 25, lost)
            for i, (share, lost) in enumerate(zip(shares, losses, strict=True))
        }
        layers.append(Layer(str(n), (8, 8), options))
    return layers


def tried_with(layers: list[Layer], share_of: Callable[[Choice], float]) -> list[Choice]:
    """The plans that are tried where a pass takes that share of the dense one."""
    tried: list[Choice] = []
    missed: float | None = 0.0
    while missed is not None:
        try:
            choice = choose.choose(layers, BUDGET, REST, missed)
        except UsageError:
            break
        tried.append(replace(choice, passed=Passed(1.0, share_of(choice))))
        missed = _corrections.correction(tried)
    return tried


def added_up(choice: Choice) -> float:
    """The share of the dense pass that the plan takes as its layers and the rest add up."""
    return (choice.planned.time_seconds + REST) / choice.dense_pass_seconds


@pytest.mark.parametrize("seed", range(12))
def test_no_time_of_the_budget_is_left_unused(seed: int) -> None:
    """A pass may be off by any factor, and by another one for the plan that saves more."""
    rng = random.Random(seed)
    layers, loose, tight = layers_in(rng), rng.uniform(1.03, 1.15), rng.uniform(0.95, 1.03)

    def share(choice: Choice) -> float:
        # A plan of the whole budget is off by the first factor, one that saves 0.1 by the second.
        at = min(max((0.7 - added_up(choice)) / 0.1, 0.0), 1.0)
        return added_up(choice) * (loose + at * (tight - loose))

    tried = tried_with(layers, share)
    kept = _corrections.kept(tried)
    assert 1 < len(tried) <= PLANS
    assert kept.passed is not None
    assert 0.7 * (1 + _choosing.TOLERANCE) >= kept.passed.share >= 0.7 - _corrections.SPARE - 0.01
    assert all(kept.lost <= other.lost for other in tried if not other.excess_seconds), (
        "a plan within the budget loses less"
    )


def test_a_pass_within_the_budget_is_kept_as_it_is() -> None:
    for factor in (0.8, 1.0, 1 + 0.9 * _choosing.TOLERANCE):
        tried = tried_with(layers_in(random.Random(1)), lambda c, f=factor: f * added_up(c))
        assert len(tried) == 1
        assert _corrections.kept(tried) is tried[0]


def test_after_a_plan_that_goes_too_far_comes_one_between() -> None:
    shares = iter((0.788, 0.614, 0.76))
    tried = tried_with(layers_in(random.Random(2)), lambda choice: next(shares))
    first, second, third = tried
    assert second.limit == pytest.approx(first.planned.time_seconds - 0.088 * 7)
    gap = first.planned.time_seconds - second.planned.time_seconds
    assert third.limit == pytest.approx(first.planned.time_seconds - 0.088 / 0.174 * gap)
    assert _corrections.kept(tried) is second


def test_where_no_plan_is_within_the_budget_the_nearest_is_kept() -> None:
    shares = iter((0.76, 0.73, 0.74))
    tried = tried_with(layers_in(random.Random(3)), lambda choice: next(shares))
    assert len(tried) == PLANS
    assert _corrections.kept(tried) is tried[1]
    assert [c.missed_seconds for c in tried] == sorted(c.missed_seconds for c in tried)


@pytest.mark.parametrize("spare", [0.9 * _corrections.SPARE, 1.1 * _corrections.SPARE])
def test_a_little_that_is_left_unused_is_left(spare: float) -> None:
    shares = iter((0.76, 0.7 - spare, 0.7))
    tried = tried_with(layers_in(random.Random(2)), lambda choice: next(shares))
    assert len(tried) == (2 if spare < _corrections.SPARE else 3)


@pytest.mark.parametrize("measured", [False, True])
def test_of_plans_within_the_budget_the_one_that_loses_least_is_kept(measured: bool) -> None:
    layers, choices = layers_in(random.Random(5)), []
    for missed, lost in ((0.0, 0.2), (0.3, 0.1), (0.6, 0.4)):
        choice = choose.choose(layers, BUDGET, REST, missed)
        if measured:
            choice = replace(choice, measured={"half": lost, "plan": 1.0}, kept="half")
        choices.append(replace(choice, passed=Passed(1.0, 0.69)))
    # As they add up, a plan that may take longer loses less; as measured, the second does.
    assert _corrections.kept(choices) is choices[1 if measured else 0]
    assert _corrections.kept(choices[::-1]) is choices[1 if measured else 0]


def test_known_losses_are_those_of_single_formats() -> None:
    choice = choose.choose(layers_in(random.Random(4)), BUDGET, REST)
    losses = {name: float(n) for n, name in enumerate(_choosing.candidates(choice))}
    decided = _choosing.decided(choice, losses)
    single = {name for name in losses if name not in ("plan", *_choosing.VARIANTS)}
    assert single
    assert _corrections.known([decided]) == {name: losses[name] for name in single}
    assert _corrections.known([choice]) == {}


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return _compress.decoder(tmp_path_factory.mktemp("decoder"))


class Scripted:
    """``hwbench choose`` with passes of these shares of a dense one; an error is raised."""

    def __init__(self, call: Call, folder: Path, model: Path, patch: pytest.MonkeyPatch) -> None:
        self.call, self.path, self.model, self.patch = call, folder / "plan.json", model, patch
        self.runs, self.timed = str(folder / "runs"), list[dict[str, Any]]()
        self.asked: list[list[str]] = []  # the candidates of each run of them

    def __call__(self, *shares: float | BaseException, densities: str) -> tuple[int, str, str]:
        left, run = iter(shares), runner.run

        def passed(path: Path, tokens: int, **where: Any) -> Passed:
            share = next(left)
            if isinstance(share, BaseException):
                raise share
            self.timed.append(self.plan())
            return Passed(1.0, share)

        def noted(document: dict[str, Any], **where: Any) -> Path:
            if document["name"] == "candidates":
                self.asked.append([Path(each).stem for each in document["cases"][0]["plan"]])
            return run(document, **where)

        self.patch.setattr(_groups, "grouped", functools.partial(_groups.grouped, depths=2))
        self.patch.setattr(choose, "passed", passed)
        self.patch.setattr(runner, "run", noted)
        return self.call(
            "choose", "--model", str(self.model), "--format", "low_rank", "--density", densities,
            "--tokens", "2048", "--device", "fake", "--replicates", "1", "--runs", self.runs,
            "--out", str(self.path), "--budget", "time=-10%",
        )  # fmt: skip

    def plan(self) -> dict[str, Any]:
        """The plan that is written now."""
        document: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        return document


@pytest.fixture
def scripted(
    hwbench: Call, tmp_path: Path, decoder: Path, monkeypatch: pytest.MonkeyPatch
) -> Scripted:
    return Scripted(hwbench, tmp_path, decoder, monkeypatch)


MANY = "0.1,0.2,0.3,0.4,0.5,0.6"


@pytest.mark.parametrize(
    ("shares", "kept"),
    [((0.97, 0.8, 0.89), 2), ((0.97, 0.8, 0.97), 1), ((0.97, 0.93, 0.95), 1), ((0.97, 0.89), 1)],
)
def test_the_plan_that_is_kept_is_the_one_that_is_written_and_told(
    scripted: Scripted, hwbench: Call, shares: tuple[float, ...], kept: int
) -> None:
    code, outcome, error = scripted(*shares, densities=MANY)
    assert code == 0, error
    assert len(scripted.timed) == len(shares)
    passed = {"dense_seconds": 1.0, "planned_seconds": shares[kept]}
    assert scripted.plan() == {**scripted.timed[kept], "passed": passed}
    assert f"{shares[kept]:.1%} of it; the budget is 90.0%" in outcome
    single = choose.single_path(scripted.path)
    assert json.loads(single.read_text())["missed_seconds"] == scripted.plan()["missed_seconds"]
    code, again, error = hwbench("choose", "--plan", str(scripted.path), "--json")
    assert code == 0, error
    assert json.loads(again) == {**scripted.plan(), "plan": str(scripted.path)}


@pytest.mark.parametrize("error", [CasesFailedError("It failed."), KeyboardInterrupt()])
def test_what_ends_a_correction_leaves_the_best_plan(
    scripted: Scripted, error: BaseException
) -> None:
    code, _, _ = scripted(0.97, 0.8, error, densities=MANY)
    assert code == (5 if isinstance(error, CasesFailedError) else 130)
    passed = {"dense_seconds": 1.0, "planned_seconds": 0.8}
    assert scripted.plan() == {**scripted.timed[1], "passed": passed}


def test_single_formats_are_measured_once_for_all_plans(scripted: Scripted) -> None:
    code, _, error = scripted(0.97, 0.8, 0.89, densities=MANY)
    assert code == 0, error
    names = [name for asked in scripted.asked for name in asked if name.startswith("low-rank")]
    assert names
    assert len(names) == len(set(names))
    assert len(scripted.asked) == 3
    for plan in scripted.timed:
        assert any(name.startswith("low_rank") for name in plan["measured"])


def test_candidates_that_all_fail_are_no_success_where_others_are_known(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = choose.summary_rows

    def failed(run: Run) -> list[dict[str, Any]]:
        first = len(scripted.asked) < 2
        return [r if first else {**r, "status": "crashed", "reason": "It died."} for r in rows(run)]

    monkeypatch.setattr(choose, "summary_rows", failed)
    code, _, error = scripted(0.97, 0.8, densities=MANY)
    assert code == 5
    assert "No candidate could be measured: It died." in error
    assert scripted.plan()["passed"]["planned_seconds"] == 0.97


def test_a_plan_that_was_tried_is_not_timed_again(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "correction", lambda tried: 0.0)
    code, _, error = scripted(0.97, 0.8, densities="0.4")
    assert code == 0, error
    assert len(scripted.timed) == 1


def test_no_single_format_is_left_of_an_earlier_plan(scripted: Scripted) -> None:
    code, _, error = scripted(0.9, densities="0.4")
    assert code == 0, error
    choice, run = choose.again(scripted.path)
    single = choose.single_path(scripted.path)
    assert single.is_file()
    alone = replace(choice, single=None, alone=None)
    for _ in range(2):
        choose.write(alone, run, scripted.path)
        assert not single.exists()
    single.write_bytes(run.path.read_bytes())
    with pytest.raises(RunFileError):
        choose.write(alone, run, scripted.path)
    assert single.is_file()
