"""``docs/review.md``: what it names as shown by a test or a picture is there."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs/review.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("| "))]
    for line in TEXT.splitlines()
    if line.startswith("| ") and not line.startswith("| place")
]
STATES = ("done", "partly", "no")


def defined_in(name: str) -> set[str]:
    """Functions of ``tests/test_NAME.py`` that pytest collects, without their ``test_``."""
    path = ROOT / f"tests/test_{name}.py"
    if not path.exists():
        return set()
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    found = {each.name for each in tree if isinstance(each, ast.FunctionDef)}
    return {each.removeprefix("test_") for each in found if each.startswith("test_")}


def test_every_test_and_every_picture_that_it_names_is_there() -> None:
    named = re.findall(r"(?<![.\w/])([a-z_0-9]+)::([a-z_0-9]+)", TEXT.partition("## ")[2])
    assert len(named) > 200
    known = {name: defined_in(name) for name in {name for name, _ in named}}
    assert [f"{name}::{test}" for name, test in named if test not in known[name]] == []
    pictures = set(re.findall(r"[\w-]+\.png", TEXT))
    assert pictures
    assert [each for each in pictures if not (ROOT / "docs/screenshots" / each).exists()] == []


def test_every_point_has_a_state_and_something_that_shows_it() -> None:
    states = Counter(next((cell for cell in row if cell in STATES), "none") for row in ROWS)
    without = [row for row in ROWS if not set(STATES) & set(row)]
    assert not without
    assert states["done"] > 10 * states["partly"] > 0
    assert all(row[-1] not in ("", *STATES) for row in ROWS)
