"""The changes of a check for GitHub Actions: annotations, and the summary of the step.

GitHub keeps ten annotations of a kind a step, and refuses a summary of more than one MiB whole;
both are kept here, and what is left out is counted.
"""

from __future__ import annotations

from hwbench.analysis.outcome import FINE, Outcome
from hwbench.channels import inert
from hwbench.records import Verdict
from hwbench.report import _words as words
from hwbench.report import markdown
from hwbench.report.changes import notable, reason, size
from hwbench.report.rows import printable

SUMMARY_BYTES = 900_000
MOST_ANNOTATIONS = 10
_LEVELS = {
    Verdict.INVALID: "error",
    Verdict.REGRESSED: "error",
    Verdict.GONE: "warning",
    Verdict.INCOMPARABLE: "warning",
}


def commands(outcome: Outcome) -> list[str]:
    """At most ten workflow commands: the outcome, then the worst cases."""
    level = "notice" if outcome.exit == FINE else "error"
    lines = [f"::{level} title=hwbench check::{data(outcome.sentence())}"]
    for change in notable(outcome):
        if len(lines) < MOST_ANNOTATIONS and change.verdict in _LEVELS:
            title = parameter(f"{change.verdict.value} {size(change)}")
            message = data(f"{words.case(change.case)}. {reason(change)}")
            lines.append(f"::{_LEVELS[change.verdict]} title={title}::{message}")
    return lines


def summary(outcome: Outcome) -> str:
    """The step's summary, as Markdown that GitHub accepts."""
    return markdown.render(outcome, SUMMARY_BYTES)


def data(text: object) -> str:
    """Text as the message of a workflow command."""
    line = inert(printable(text))
    return line.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def parameter(text: object) -> str:
    """Text as a parameter of a workflow command."""
    return data(text).replace(":", "%3A").replace(",", "%2C")
