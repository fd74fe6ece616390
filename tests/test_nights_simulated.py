"""The simulated machine of ``evidence/nights_simulated.py``, on few of its nights."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EVIDENCE = Path(__file__).parents[1] / "evidence"


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(EVIDENCE)
    import nights_simulated

    yield nights_simulated
    for name in ("nights_simulated", "rivals"):
        sys.modules.pop(name, None)


QUICK = ("plain", "a pool of three hosts", "one crazy replicate in five")
SLOWER = (
    "nights shift by format", "one night in ten is slow", "host moves, dense as before",
    "host moves, dense by 6 %", "neighbour, dense +4 %", "neighbour, dense +18 %",
    "two modes a process", "nights of heavy tails",
)  # fmt: skip


@pytest.mark.parametrize(
    "world", [*QUICK, *(pytest.param(w, marks=pytest.mark.heavy) for w in SLOWER)]
)
def test_pairs_fail_no_night_and_find_what_is_slower(simulated: Any, world: str) -> None:
    nights = 10 if world in QUICK else 40
    result = simulated.simulate(simulated.WORLDS[world], nights)["--confirm-by ab"]
    assert result.nights == nights
    assert result.false <= nights // 40
    key = (simulated.SIZES[0], simulated.WHERE[0])
    assert result.hits[key] >= (0.5 if result.others == 0 else 0.0) * result.chances[key]


def test_every_world_is_tried(simulated: Any) -> None:
    assert {*QUICK, *SLOWER} == set(simulated.WORLDS)


def test_the_crazy_world_has_one_wild_replicate_in_each_five(simulated: Any) -> None:
    world = simulated.Crazy(np.random.default_rng(1))
    wild = np.exp(world.noise(10)) > 1.12
    assert (wild[:5].sum(axis=0) == 1).all()
    assert (wild[5:].sum(axis=0) == 1).all()


def test_each_rule_of_another_tool_finds_a_doubling_and_passes_the_same(
    simulated: Any,
) -> None:
    import rivals

    rng = np.random.default_rng(2)
    before = [(1e-3 * np.exp(rng.normal(0, 0.001, 5))).tolist() for _ in range(20)]
    slow = [[2.5 * value for value in night] for night in before[:3]]
    for name, rule in rivals.RULES.items():
        assert rule([*before, *(slow if rule is rivals.otava else slow[:1])]), name
        assert not rule([*before, before[-1]]), name


def test_the_page_of_the_gate_has_the_rows_of_the_whole_table() -> None:
    """In the order in which it names them, whatever it calls the machines."""
    docs = EVIDENCE.parent / "docs"
    page, whole = (
        (docs / name).read_text(encoding="utf-8") for name in ("nightly.md", "method.md")
    )
    inside = re.search(r"where\s+the rows are called\s+(.*?)\);", page, re.DOTALL)
    assert inside
    names = re.findall(r"`([^`]+)`", " ".join(inside[1].split()))
    way = "`--confirm(?:-by ab)?`"
    short = re.findall(rf"^\| [^|]+ \| ({way}) \| (.*) \|$", page, re.MULTILINE)
    long = re.findall(rf"^\| ([^|]+) \| ({way}) \| (.*) \|$", whole, re.MULTILINE)
    told = {(name, how): cells.split(" | ") for name, how, cells in long}
    assert len(short) == 2 * len(names)
    for (how, cells), name in zip(short, (each for each in names for _ in "ab"), strict=True):
        false, other, _, ten, _, five = told[name, how]
        assert cells.split(" | ") == [false, other, ten, five]
