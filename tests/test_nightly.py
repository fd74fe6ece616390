"""The nightly page and workflow say what the code does."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import yaml
from _faulty import ROOT
from test_docs import _parsed

from hwbench import outcome
from hwbench.errors import UsageError
from hwbench.fingerprint import FINGERPRINT, Severity

PAGE = (ROOT / "docs/nightly.md").read_text(encoding="utf-8")
FLOW = ROOT / ".github/workflows/nightly-gpu.yml"


@pytest.fixture
def steps() -> list[dict[str, Any]]:
    return list(yaml.safe_load(FLOW.read_text(encoding="utf-8"))["jobs"]["gate"]["steps"])


@pytest.mark.parametrize("severity", Severity)
def test_the_table_of_differences_is_that_of_the_code(severity: Severity) -> None:
    word = "warning" if severity is Severity.WARN else severity.value
    row = re.search(rf"^\| \*\*{word}\*\* \| (.*) \|$", PAGE, re.MULTILINE)
    assert row, word
    assert re.findall(r"`([^`]+)`", row[1]) == [k for k, v in FINGERPRINT.items() if v is severity]


def test_every_exit_code_has_its_row() -> None:
    rows = [int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)]
    codes = {
        outcome.FINE, outcome.REGRESSION, outcome.UNDECIDED, outcome.NOT_COMPARABLE,
        outcome.FAILED, outcome.NO_BASELINE, UsageError.exit_code, 70,
    }  # fmt: skip
    assert set(rows) == codes


def test_the_workflow_runs_commands_that_exist(steps: list[dict[str, Any]]) -> None:
    text = "\n".join(step.get("run", "") for step in steps).replace("\\\n", " ")
    lines = [line.strip().partition(" ||")[0] for line in text.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("hwbench ")]
    assert [words[0] for words in commands] == ["doctor", "run", "check", "report", "history"]
    for words in commands:
        assert _parsed(words) == words[0]


def test_the_workflow_is_pinned_and_takes_no_text_into_a_shell(steps: list[dict[str, Any]]) -> None:
    assert all(re.search(r"@[0-9a-f]{40}$", s["uses"]) for s in steps if "uses" in s)
    assert not [s for s in steps if "${{" in s.get("run", "")]
    kept = steps[-1]
    assert kept["if"] == "always()"
    assert kept["with"]["path"] == "out"
