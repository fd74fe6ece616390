"""The nightly page and workflow say what the code does."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from _faulty import ROOT

from hwbench.analysis import outcome
from hwbench.analysis.fingerprint import FINGERPRINT, Severity
from hwbench.errors import UsageError

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


def test_the_page_leaves_out_no_kind_of_machine_and_has_the_figures_of_the_method() -> None:
    """A kind that is left out is where the gate is worst: the table is read as all there is."""
    table = "method.md#what-was-measured-of-hwbench"
    method = (ROOT / "docs/method.md").read_text(encoding="utf-8").partition("false | exit 4")[2]

    def rows(text: str, figures: int) -> list[tuple[str, ...]]:
        cells = " [|] ".join([r"(\d+%?)"] * figures)
        return re.findall(rf"^\| ([^|]+) \| `(--[^`]+)` \| {cells} \|$", text, re.MULTILINE)

    own, whole = rows(PAGE, 4), rows(method, 6)
    told = PAGE.partition(table)[2].partition(";\n")[0]
    names = re.findall(r"`([^`]+)`", told.partition("called")[2])
    here = list(dict.fromkeys(name for name, *_ in own))
    assert names == list(dict.fromkeys(name for name, *_ in whole))
    assert len(here) == len(names)
    called = dict(zip(here, names, strict=True))
    expected = [(name, rule, false, four, ten, five)
                for name, rule, false, four, _, ten, _, five in whole]  # fmt: skip
    assert [(called[name], *rest) for name, *rest in own] == expected
    worst = max(int(false) for _, _, false, *_ in own)
    assert f"({worst} of 500)" in PAGE


def test_the_workflow_runs_commands_that_exist(steps: list[dict[str, Any]]) -> None:
    """A night is that of the action, whose commands test_action.py holds to the command line."""
    (night,) = [step for step in steps if step.get("uses", "").startswith("./")]
    action = yaml.safe_load((ROOT / night["uses"] / "action.yml").read_text(encoding="utf-8"))
    assert set(night["with"]) <= set(action["inputs"])
    assert (ROOT / night["with"]["wheel"].removeprefix("--constraint ")).is_file()
    assert night["with"]["device"] == "cuda"


def test_a_night_is_promoted_by_hand_as_in_the_example() -> None:
    own, example = (
        yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]["promote"]
        for path in (FLOW, ROOT / "docs/examples/nightly-gate.yml")
    )
    assert own == example


def test_the_workflow_confirms_in_pairs_and_has_both_revisions(steps: list[dict[str, Any]]) -> None:
    (night,) = [step["with"] for step in steps if step.get("uses", "").startswith("./")]
    assert night["confirm-by"] == "ab"
    (checkout,) = [step["with"] for step in steps if "checkout" in step.get("uses", "")]
    assert checkout["fetch-depth"] == 0


def test_the_workflow_is_pinned_and_takes_no_text_into_a_shell(steps: list[dict[str, Any]]) -> None:
    used = [step["uses"] for step in steps if "uses" in step]
    assert all(uses.startswith("./") or re.search(r"@[0-9a-f]{40}$", uses) for uses in used)
    assert not [s for s in steps if "${{" in s.get("run", "")]
