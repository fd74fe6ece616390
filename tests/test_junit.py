"""JUnit XML as CI systems take it: valid against a schema, and the same when a parser reads it."""

from __future__ import annotations

from pathlib import Path

import junitparser
import pytest
import xmlschema
from _check import hostile

from hwbench.analysis.outcome import Outcome
from hwbench.records import Change, Ratio, Verdict
from hwbench.report import junit

SCHEMA = xmlschema.XMLSchema(Path(__file__).with_name("junit.xsd"))


def outcome(*verdicts: Verdict, **fields: object) -> Outcome:
    ratio = Ratio(value=1.2, low=1.1, high=1.3, counts=(5, 5))
    changes = [
        Change(case=f"case-{verdict}", metric="time", verdict=verdict, ratio=ratio, reason="why")
        for verdict in verdicts
    ]
    return Outcome(run="r", suite="s", machine="m", changes=changes, measured=1, **fields)  # type: ignore[arg-type]


OUTCOMES = {
    "every verdict": outcome(*Verdict),
    "all well": outcome(Verdict.EQUIVALENT),
    "no case": outcome(),
    "no baseline": outcome(Verdict.NEW, problem="There is no baseline."),
    "another machine": outcome(Verdict.INCOMPARABLE, mismatch=["threads was 1 and is 2"]),
    "undecided fails": outcome(Verdict.UNDECIDED, Verdict.GONE, fail_on_undecided=True),
    "hostile": hostile(),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_the_document_is_valid(name: str) -> None:
    assert list(SCHEMA.iter_errors(junit.render(OUTCOMES[name]))) == []


def test_the_schema_refuses_what_is_not_junit() -> None:
    text = junit.render(OUTCOMES["every verdict"])
    for old, new in (("failure", "failed"), ("classname=", "class="), ('tests="', 'tests="x')):
        assert old in text
        with pytest.raises(xmlschema.XMLSchemaValidationError):
            SCHEMA.validate(text.replace(old, new))


def test_a_parser_reads_what_the_outcome_says(tmp_path: Path) -> None:
    path = tmp_path / "check.xml"
    path.write_text(junit.render(OUTCOMES["every verdict"]), encoding="utf-8")
    (suite,) = junitparser.JUnitXml.fromfile(str(path))
    told = {case.name: [type(r).__name__ for r in case.result] for case in suite}
    assert told == {
        "case-invalid": ["Error"],
        "case-regressed": ["Failure"],
        "case-gone": ["Skipped"],
        "case-incomparable": ["Skipped"],
        "case-undecided": ["Skipped"],
        "case-new": ["Skipped"],
        "case-improved": [],
        "case-equivalent": [],
    }
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (8, 1, 1, 4)
    worst = next(case for case in suite if case.name == "case-regressed")
    assert worst.result[0].message == "regressed +20.0 % (10.0 to 30.0)"
    assert {p.name: p.value for p in worst.child(junitparser.Properties)} == {
        "verdict": "regressed",
        "value": "1.2",
        "low": "1.1",
        "high": "1.3",
    }


@pytest.mark.parametrize("name", [n for n, told in OUTCOMES.items() if told.exit])
def test_what_does_not_pass_is_seen_by_a_parser(name: str) -> None:
    suites = junitparser.JUnitXml.fromstring(junit.render(OUTCOMES[name]).encode())
    assert sum(suite.failures + suite.errors for suite in suites) > 0
