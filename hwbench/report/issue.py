"""The answer of a run as Markdown, for a pull request or an issue: what to use, who ranks where.

Names come from run files. They stand in code spans, where Markdown, HTML, links and mentions mean
nothing (``markdown.code``); sentences that hold some are made ``inert``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from hwbench import units
from hwbench.report import _bytes, _facts, decision, html, text
from hwbench.report import _words as words
from hwbench.report.markdown import COMMENT_BYTES, code
from hwbench.report.rows import DENSE, Row, groups, known, numbered, printable, report_rows
from hwbench.store import Run

_SETTINGS = 12  # that have an answer …
_RIVALS = 3  # named beside the best
_MARGIN = 200  # bytes for the sentence on lines that were left out
_LINKED = re.compile(
    r"(?<=@)(?=\w)|(?<=#)(?=\w)|(?=://)|(?<=www)(?=\.)|(?<=GH)(?=-\d)", re.IGNORECASE
)
"""Where GitHub would begin a mention, a reference or a link in plain text."""
_HEADS = ("format", "of dense", "time", "error", "stored", "against dense")


def render(runs: Sequence[Run], most_bytes: int = COMMENT_BYTES) -> str:
    """The document in at most so many bytes; the rows that it has no room for are counted."""
    machines = _facts.machines(list(runs))
    sets = [numbered(report_rows(run)) for run in runs]
    cautions = html.cautions(runs, sets, machines)
    parts, tables = [], []
    for run, machine, rows in zip(runs, machines, sets, strict=True):
        settings = decision.settings(rows)
        parts += _answer(run, machine, rows, settings)
        tables += _tables(run, rows, settings)
    parts += [f"> {inert(caution)}" for caution in cautions]
    return _fitted(parts, tables, most_bytes)


def inert(sentence: object) -> str:
    """A sentence in which no character is Markdown or HTML, and nothing becomes a link."""
    apart = _LINKED.sub("\u200b", printable(sentence))
    return re.sub(r"([\\`*_{}\[\]<>#|~&$])", r"\\\1", apart)


def _answer(run: Run, machine: str, rows: list[Row], settings: list[decision.Setting]) -> list[str]:
    """The title of a run and what it answers, as paragraphs."""
    header = run.header
    summary = _facts.summary(run, machine, rows)
    health = f"; {summary.health}" if summary.health else ""
    about = inert(f"{summary.counts}, {summary.state}; {summary.created}{health}")
    parts = [
        f"### {code(header.suite)} on {code(machine)}",
        f"{about}; run {code(header.run)}, hwbench {code(header.version)}",
    ]
    if settings:
        return [*parts, *_settings(settings)]
    byte_answers = _bytes.answers(rows)
    for byte_answer in byte_answers[:_SETTINGS]:
        parts.append(f"**{code(byte_answer.title)}**: {inert(byte_answer.says)}")
        parts += [inert(byte_answer.note)] if byte_answer.note else []
    if not byte_answers:
        parts.append(_bytes.nothing(rows))
    return parts


def _settings(settings: Sequence[decision.Setting]) -> list[str]:
    """The format to use in each setting, a list each, and the source of the errors."""
    parts = []
    distinct = decision.without_compiled_twins(settings)
    for setting in distinct[:_SETTINGS]:
        lines = [f"**{code(setting.title)}**", ""]
        for level, best in decision.answers(setting):
            lines.append(f"- {inert(level.label)}: {_use(setting, best)}")
            lines += [
                f"  - {relation[0].lower()}{relation[1:]}: {_rivals(rivals)}"
                for relation, rivals in setting.rivals(best, level.limit)
            ]
            lines += [f"  - {inert(line)}" for line in setting.modes(best, level.limit)[:_RIVALS]]
        lines += [f"- {inert(setting.compiled)}"] if setting.compiled else []
        parts.append("\n".join(lines))
    if len(distinct) > _SETTINGS:
        parts.append(f"{len(distinct) - _SETTINGS} more settings are in the report.")
    return [*parts, *(inert(basis) for basis in dict.fromkeys(each.basis for each in settings))]


def _use(setting: decision.Setting, best: decision.Candidate) -> str:
    time = units.seconds(best.row.time_seconds)
    if best.row.format == DENSE:
        return f"**keep {code(best.name)}**, {time}; {decision.NOTHING_FASTER}"
    advice = best.advice[0].lower() + best.advice[1:]
    return f"**{advice} {code(best.name)}**, {time}{setting.instead(best)}, {inert(best.error)}"


def _rivals(rivals: Sequence[decision.Candidate]) -> str:
    more = f" and {len(rivals) - _RIVALS} more" if len(rivals) > _RIVALS else ""
    return ", ".join(code(each.name) for each in rivals[:_RIVALS]) + more


def _tables(
    run: Run, rows: list[Row], settings: list[decision.Setting]
) -> list[tuple[str, list[str]]]:
    """A title and the lines of each table: the rankings, else every row of each group."""
    if settings:
        return [(each.title, _ranking(each)) for each in settings]
    return [
        (words.group_title(members[0]), _lines(*text.cells(run, members)))
        for members in groups(rows).values()
    ]


def _ranking(setting: decision.Setting) -> list[str]:
    """Every candidate, the fastest first."""
    return _lines(
        _HEADS,
        (
            (
                each.name,
                units.ratio(each.relative),
                units.seconds(each.row.time_seconds),
                each.error.removeprefix("its error is "),
                units.nbytes(each.row.stored_bytes) if known(each.row.stored_bytes) else "–",
                each.verdict,
            )
            for each in setting.candidates
        ),
    )


def _lines(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; the first cell of a row is a name, and a code span."""
    lines = [f"| {' | '.join(map(inert, heads))} |", "|" + " --- |" * len(heads)]
    for name, *cells in rows:
        lines.append(f"| {' | '.join([code(name), *map(inert, cells)])} |")
    return lines


def _fitted(parts: Sequence[str], tables: Sequence[tuple[str, list[str]]], most: int) -> str:
    """Paragraphs, then as many tables and lines of them as there is room for."""
    document, left_out = "", 0
    heading = 2  # lines of a table before its first row
    for part in parts:
        if len(document.encode()) + len(part.encode()) + _MARGIN <= most:
            document += f"{part}\n\n"
        else:
            left_out += 1
    for number, (title, lines) in enumerate(tables):
        shut = number > 0  # the first stands open
        head = f"<details><summary>{_plain(title)}</summary>\n\n" if shut else f"{code(title)}\n\n"
        close = "\n</details>\n\n" if shut else "\n"
        room = most - len((document + head + close).encode()) - _MARGIN
        within = _within(lines, room)
        left_out += len(lines) - max(heading, len(within))
        if len(within) > heading:
            document += head + "".join(f"{line}\n" for line in within) + close
    if left_out:
        document += f"{units.count(left_out, 'line')} left out for length; the report has all.\n"
    return document.rstrip("\n") + "\n"


def _within(lines: Sequence[str], room: int) -> list[str]:
    within: list[str] = []
    for line in lines:
        room -= len(line.encode()) + 1
        if room < 0:
            break
        within.append(line)
    return within


def _plain(title: str) -> str:
    """A title inside HTML, where Markdown has no code span."""
    from html import escape

    return escape(_LINKED.sub("\u200b", printable(title)))
