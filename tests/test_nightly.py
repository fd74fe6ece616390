"""The nightly page and workflow say what the code does."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import _shell
import pytest
import yaml
from _check import Call
from _faulty import ROOT
from test_docs import _parsed

from hwbench.analysis import outcome
from hwbench.analysis.fingerprint import FINGERPRINT, Severity
from hwbench.errors import UsageError
from hwbench.measure import revision
from hwbench.studies.baseline import promote

PAGE = (ROOT / "docs/nightly.md").read_text(encoding="utf-8")
FLOW = ROOT / ".github/workflows/nightly-gpu.yml"
NIGHT = ("Measure", "Check against the baseline", "Report, whatever the verdict")


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


def test_the_workflow_confirms_in_pairs_and_has_both_revisions(steps: list[dict[str, Any]]) -> None:
    (check,) = [step["run"] for step in steps if step.get("name") == NIGHT[1]]
    assert "--confirm-by ab" in check
    (checkout,) = [step["with"] for step in steps if "checkout" in step.get("uses", "")]
    assert checkout["fetch-depth"] == 0


def test_the_workflow_is_pinned_and_takes_no_text_into_a_shell(steps: list[dict[str, Any]]) -> None:
    assert all(re.search(r"@[0-9a-f]{40}$", s["uses"]) for s in steps if "uses" in s)
    assert not [s for s in steps if "${{" in s.get("run", "")]
    kept = steps[-1]
    assert kept["if"] == "always()"
    assert kept["with"]["path"] == "out"


def test_the_steps_of_the_workflow_run(
    steps: list[dict[str, Any]], tmp_path: Path, hwbench: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nights: without a baseline the gate says so, with one it judges."""
    home, told, summary = tmp_path / "home", tmp_path / "told", tmp_path / "summary"
    for name in ("nights", "baselines"):
        (home / name).mkdir(parents=True)
    given = {
        **os.environ,
        "SUITE": "smoke", "THRESHOLD": "3%", "HWBENCH_HOME": str(home),
        "GITHUB_OUTPUT": str(told), "GITHUB_STEP_SUMMARY": str(summary),
    }  # fmt: skip
    monkeypatch.setattr(revision, "commit", lambda: {"commit": "a" * 40, "dirty": False})
    by_name = {step["name"]: step for step in steps if "name" in step}

    def run(name: str) -> int:
        script = by_name[name]["run"].replace("--device cuda", "--device fake")
        if told.exists():  # as GitHub passes on what a step wrote down
            given["RUN"] = told.read_text(encoding="utf-8").splitlines()[-1].removeprefix("run=")
        return _shell.run(script, tmp_path, given, hwbench)

    def night() -> list[int]:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)  # as a fresh checkout does
        (tmp_path / "out").mkdir()
        return [run(name) for name in NIGHT]

    assert night() == [outcome.FINE, outcome.NO_BASELINE, outcome.FINE]
    [first] = (tmp_path / "out").glob("*.jsonl")
    promote(first, home / "baselines")
    assert night() == [outcome.FINE] * 3  # of one replicate a side no regression is told
    assert first.stem in summary.read_text(encoding="utf-8")
    kept = {each.name for each in (tmp_path / "out").iterdir()}
    assert {"check.xml", "check.md", "check.json", "report.html", "history.html"} <= kept
