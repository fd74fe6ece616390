"""What the gate must not let pass, and what it must not take for a regression."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from _check import CASES, Call, five, kept, made
from _synthetic import linear_case, projection_case
from msgspec.structs import replace

from hwbench.records import Measurement
from hwbench.store import Run

SCORED = [*CASES, projection_case("low_rank", 0.5), projection_case("csr", 0.5)]


def scaled(run: Run, factor: float, quantities: tuple[str, ...], part: str = "") -> Run:
    """The run with these quantities of the cases with this part in their id times a factor."""
    run.results = [
        replace(
            result,
            measurements=[
                replace(m, values=[factor * v for v in m.values]) if m.quantity in quantities else m
                for m in result.measurements
            ],
        )
        if part in result.case
        else result
        for result in run.results
    ]
    return run


def night(day: int, **how: object) -> Run:
    return made(day, SCORED, **how)  # type: ignore[arg-type]


def nights(count: int = 5, **how: object) -> str:
    for day in range(1, count + 1):
        kept(night(day, **how), "nights")
    return "nights"


# --- exact scores ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "code"), [(100.0, 1), (10.0, 1), (1.5, 1), (1.04, 1), (1.01, 0), (1.0, 0), (0.5, 0)]
)
@pytest.mark.parametrize("metric", ["auto", "score"])
def test_a_score_of_one_seed_is_compared_as_it_is(
    hwbench: Call, factor: float, code: int, metric: str
) -> None:
    same = nights(steady=True)
    tonight = scaled(night(9, steady=True), factor, ("score",))
    got, out, _ = hwbench("check", kept(tonight), "-b", same, "--metric", metric)
    assert got == code, out
    assert "One seed: its score is exact" in " ".join(out.split()) or factor == 1.0 or code == 0


# --- enormous changes ---------------------------------------------------------------------------


@pytest.mark.parametrize("baselines", [1, 2, 3])
@pytest.mark.parametrize("factor", [3.0, 100.0])
def test_a_change_beyond_a_factor_of_two_needs_no_spread(
    hwbench: Call, baselines: int, factor: float
) -> None:
    before = nights(baselines, replicates=1)
    tonight = scaled(
        night(9, replicates=1), factor, ("relative_time", "time_seconds"), "linear/forward/csr"
    )
    code, out, _ = hwbench("check", kept(tonight), "-b", before)
    assert code == 1, out
    if baselines == 1:
        assert "A change by a factor of two needs no" in " ".join(out.split())


@pytest.mark.parametrize("factor", [0.2, 0.45])
def test_one_that_is_faster_by_as_much_is_improved(hwbench: Call, factor: float) -> None:
    before = nights(1, replicates=1)
    tonight = scaled(
        night(9, replicates=1), factor, ("relative_time", "time_seconds"), "linear/forward/csr"
    )
    code, out, _ = hwbench("check", kept(tonight), "-b", before)
    assert code == 0
    assert "improved" in out


@pytest.mark.parametrize("seed", range(20))
def test_unchanged_nights_of_one_replicate_are_never_enormous(hwbench: Call, seed: int) -> None:
    day = 2 + random.Random(seed).randrange(20)
    code, out, _ = hwbench(
        "check", kept(made(30, replicates=1)), "-b", kept(made(day, replicates=1), "one")
    )
    assert code == 0, out


# --- dense that moved ---------------------------------------------------------------------------


def dense_by(run: Run, factor: float) -> Run:
    """The run with dense alone ``factor`` times as slow: each relative time moves against it."""
    run = scaled(run, factor, ("time_seconds",), "/dense/")
    return scaled(run, 1 / factor, ("relative_time",))


def test_a_relative_time_that_rose_because_dense_fell_is_no_regression(hwbench: Call) -> None:
    before = nights()
    code, out, _ = hwbench("check", kept(dense_by(night(9), 0.7)), "-b", before)
    words = " ".join(out.split())
    assert code == 0, out
    assert "dense moved, not the format" in words
    assert "Dense itself took" in words
    assert "less time than in the baseline" in words


def test_dense_that_became_slower_is_named(hwbench: Call) -> None:
    before = nights()
    code, out, _ = hwbench("check", kept(dense_by(night(9), 1.3)), "-b", before)
    assert code == 1  # dense is a case of its own, judged by its seconds
    assert "regressed dense: forward" in " ".join(out.split())
    assert "more time than in the baseline" in " ".join(out.split())


def test_a_format_that_is_slower_by_itself_regresses_whatever_dense_did(hwbench: Call) -> None:
    before = nights()
    tonight = dense_by(night(9), 0.7)
    tonight = scaled(tonight, 1.3, ("time_seconds", "relative_time"), "linear/forward/csr")
    code, out, _ = hwbench("check", kept(tonight), "-b", before, "--json")
    assert code == 1
    regressed = [each for each in json.loads(out)["changes"] if each["verdict"] == "regressed"]
    assert regressed
    assert all(each["case"].startswith("linear/forward/csr") for each in regressed)


def test_a_dense_that_stayed_is_not_spoken_of(hwbench: Call) -> None:
    _, out, _ = hwbench("check", kept(night(9)), "-b", nights())
    assert "Dense itself" not in out


# --- sight --------------------------------------------------------------------------------------


def test_the_check_says_how_small_a_slow_down_it_finds(hwbench: Call) -> None:
    before = five()
    code, out, _ = hwbench("check", kept(made(9)), "-b", before)
    assert code == 0
    assert "is found in 9 nights of 10 in the usual case" in " ".join(out.split())
    _, out, _ = hwbench("check", kept(made(10)), "-b", before, "--json")
    usual, worst = json.loads(out)["sight"]
    assert 0 < usual <= worst


@pytest.mark.parametrize(("asked", "code"), [("0.01%", 3), ("90%", 0)])
def test_blindness_can_be_made_a_failure(hwbench: Call, asked: str, code: int) -> None:
    got, _, err = hwbench("check", kept(made(9)), "-b", five(), "--require-sight", asked)
    assert got == code
    assert ("Too blind" in err) == (code == 3)


def test_a_check_that_knows_no_spread_is_blind(hwbench: Call) -> None:
    one = kept(made(1, replicates=1), "one")
    got, _, err = hwbench("check", kept(made(9, replicates=1)), "-b", one, "--require-sight", "50%")
    assert got == 3
    assert "Too blind" in err


def test_a_bad_share_is_a_mistake(hwbench: Call) -> None:
    code, _, err = hwbench("check", kept(made(9)), "-b", five(), "--require-sight", "much")
    assert code == 2
    assert "--require-sight is a share" in err


def test_one_saved_file_of_pytest_at_three_times_the_time_fails(hwbench: Call) -> None:
    run = made(1, [linear_case("dense", None), linear_case("csr", 0.5)], replicates=1)
    Path("saved").mkdir()
    assert hwbench("export", kept(run), "--to", "pytest-benchmark", "-o", "saved/1.json")[0] == 0
    slow = made(9, [linear_case("dense", None), linear_case("csr", 0.5)], replicates=1)
    slow = scaled(slow, 3.0, ("time_seconds", "relative_time"), "/csr")
    slow.results = [replace(r, measurements=[*r.measurements, _one()]) for r in slow.results]
    assert hwbench("export", kept(slow), "--to", "pytest-benchmark", "-o", "saved/2.json")[0] == 0
    code, out, _ = hwbench("check", "saved/2.json", "-b", "saved/1.json")
    assert code == 1, out


def _one() -> Measurement:
    return Measurement(quantity="first_call_seconds", unit="s", values=[1.0], contract="wall")
