"""The changes of a check as JUnit XML, one test case a case and metric, for CI systems."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from hwbench.analysis.outcome import FINE, Outcome, worst_first
from hwbench.records import Change, Verdict
from hwbench.report.changes import reason, size
from hwbench.report.rows import printable

_SKIPPED = (Verdict.UNDECIDED, Verdict.INCOMPARABLE, Verdict.GONE, Verdict.NEW)


def render(outcome: Outcome) -> str:
    """The document: a failure for a regression, an error for a failed case, the rest as it is.

    The last test case is the check itself, so that an outcome that no case shows (no baseline,
    another machine) is an error too.
    """
    suite = ET.Element("testsuite", name=printable(f"hwbench check {outcome.suite}"))
    counts = {"failure": 0, "error": 0, "skipped": 0}
    for change in worst_first(outcome.changes):
        case = ET.SubElement(
            suite,
            "testcase",
            classname=f"hwbench.{printable(outcome.suite)}.{change.metric}",
            name=printable(change.case),
        )
        _properties(case, change)
        kind = _kind(change, outcome)
        if kind is not None:
            counts[kind] += 1
            element = ET.SubElement(case, kind, message=f"{change.verdict.value} {size(change)}")
            element.text = reason(change)
    if outcome.exit != FINE and not counts["failure"] + counts["error"]:
        case = ET.SubElement(suite, "testcase", classname="hwbench.check", name="check")
        counts["error"] += 1
        ET.SubElement(case, "error", message=printable(outcome.sentence()))
    suite.set("tests", str(len(suite)))
    for kind, name in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(name, str(counts[kind]))
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _kind(change: Change, outcome: Outcome) -> str | None:
    if change.verdict is Verdict.INVALID:
        return "error"
    if change.verdict is Verdict.REGRESSED:
        return "failure"
    if change.verdict in _SKIPPED:
        return "failure" if outcome.fails(change) else "skipped"
    return None


def _properties(case: ET.Element, change: Change) -> None:
    values = {"verdict": change.verdict.value}
    if change.ratio is not None:
        values |= {name: repr(getattr(change.ratio, name)) for name in ("value", "low", "high")}
    element = ET.SubElement(case, "properties")
    for name, value in values.items():
        ET.SubElement(element, "property", name=name, value=value)
