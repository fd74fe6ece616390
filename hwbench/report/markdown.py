"""The changes of a check as Markdown, for a comment on a pull request: the worst first, in bounds.

Names and reasons come from run files. They stand in code spans alone, where Markdown, HTML, links
and mentions mean nothing, and where only backticks and bars need care.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hwbench import units
from hwbench.analysis.outcome import FAILING, FINE, Outcome
from hwbench.records import Change
from hwbench.report import _words as words
from hwbench.report.changes import amounts, head, notable, reason, size, tally
from hwbench.report.rows import printable

COMMENT_BYTES = 60_000  # GitHub refuses a comment of more than 65,536 characters
MARKER = "<!-- hwbench check -->"
"""The first line, by which a comment is found again to be updated."""

_LONGEST = 300  # characters of a name or a reason
_COLUMNS = (
    "| verdict | case | metric | baseline | now | change | why |\n"
    "| --- | --- | --- | ---: | ---: | ---: | --- |\n"
)


def render(outcome: Outcome, most_bytes: int = COMMENT_BYTES) -> str:
    """The document in at most so many bytes; what is left out is counted."""
    mark = "✅" if outcome.exit == FINE else "❌"
    verdict = (
        ["hwbench check", code(outcome.sentence())] if outcome.quotes else [outcome.sentence()]
    )
    parts = [MARKER, f"### {mark} {verdict[0]}", *verdict[1:]]
    parts += [code(line) for line in head(outcome)]
    parts.append(tally(outcome) + ".")
    parts += [code(note) for note in outcome.notes]
    text = "\n\n".join(parts) + "\n"
    listed = notable(outcome)
    worst = [each for each in listed if each.verdict in FAILING]
    rest = [each for each in listed if each.verdict not in FAILING]
    if worst:
        text += "\n" + _table(worst, most_bytes - len(text.encode()) - 200)
    if rest:
        cases = units.count(len(rest), "case")
        opening = f"\n<details><summary>{cases} without a regression to tell</summary>\n\n"
        closing = "\n</details>\n"
        room = most_bytes - len((text + opening + closing).encode()) - 200
        text += opening + _table(rest, room) + closing
    return text


def code(text: object) -> str:
    """Text in a code span that nothing in it can end, also inside a table."""
    line = printable(text) or " "
    line = line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    inner = line.replace("\\|", "\\ |").replace("|", "\\|")
    return f"{fence} {inner} {fence}"


def _table(changes: Sequence[Change], room: int) -> str:
    """As many rows as there is room for, and how many were left out."""
    rows: list[str] = []
    left = room - len(_COLUMNS.encode())
    for change in changes:
        why = code(reason(change)) if reason(change) else ""
        case = (change.verdict.value, code(words.case(change.case)), change.metric)
        cells = (*case, *amounts(change), size(change), why)
        row = f"| {' | '.join(cells)} |\n"
        left -= len(row.encode())
        if left < 0:
            break
        rows.append(row)
    more = len(changes) - len(rows)
    left_out = f"\n{units.count(more, 'case')} more, left out for length.\n" if more else ""
    return (_COLUMNS + "".join(rows) if rows else "") + left_out
