"""The answer of a run in Python: lines when it is printed, a table in a notebook."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import NamedTuple

from hwbench import files, units
from hwbench.channels import visible
from hwbench.errors import RunFileError
from hwbench.report import _bytes, _facts, decision, html
from hwbench.report import _words as words
from hwbench.report.rows import Row, numbered, report_rows
from hwbench.store import read_run


class _Line(NamedTuple):
    """One answer of a setting, cell by cell."""

    level: str
    use: str
    time: str
    relative: str
    error: str
    beside: list[str]  # its rivals, and what ran in two modes


class Answer:
    """What to use in each setting of a run, by the largest error that you accept.

    ``print`` writes it as ``hwbench run`` ends, of all settings; a notebook draws a table.
    """

    def __init__(self, path: str | Path) -> None:
        """Read a run.

        Raises:
            RunFileError: the file cannot be read or is not a run file.
        """
        run = read_run(files.named(path, RunFileError))
        rows = numbered(report_rows(run))
        (machine,) = _facts.machines([run])
        facts = _facts.summary(run, machine, rows)
        self._head = [
            *html.cautions([run], [rows], [machine]),
            f"{facts.suite} on {machine}: {facts.counts}, {facts.state}; {facts.created}",
            *([facts.health] if facts.health else []),
            *_unmeasured(rows),
        ]
        self._settings = decision.without_compiled_twins(decision.settings(rows))
        self._bytes = [] if self._settings else _bytes.answers(rows)
        self._foot = [
            *decision.explained(self._settings),
            *dict.fromkeys(each.basis for each in self._settings),
            *([] if self._settings or self._bytes else [_bytes.nothing(rows)]),
        ]
        self._page = visible(f"hwbench report {shlex.quote(str(run.path))}")

    def __str__(self) -> str:
        lines = [*decision.setting_lines(self._settings), *_bytes.lines(self._bytes)]
        return "\n".join([*self._head, *lines, *self._foot])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The same as HTML that needs no style and no script."""
        return html.fragment(
            "notebook.html.j2", head=self._head, bytes=self._bytes, foot=self._foot,
            page=self._page, settings=[(setting, _lines(setting)) for setting in self._settings],
        )  # fmt: skip


def _unmeasured(rows: list[Row]) -> list[str]:
    """How many cases have no result that counts, where there are any."""
    count = sum(row.status != "ok" for row in rows)
    if not count:
        return []
    have = "has" if count == 1 else "have"
    return [f"{units.count(count, 'case')} {have} no result that counts: the page says why."]


def _lines(setting: decision.Setting) -> list[_Line]:
    return [_line(setting, level, best) for level, best in decision.answers(setting)]


def _line(setting: decision.Setting, level: decision.Level, best: decision.Candidate) -> _Line:
    return _Line(
        level=level.label,
        use=f"{best.advice} {best.name}",
        time=units.seconds(best.row.time_seconds),
        relative=words.interval(best.relative, best.row.relative_low, best.row.relative_high),
        error=best.error,
        beside=[
            *(
                f"{relation}: {'; '.join(each.name for each in rivals)}."
                for relation, rivals in setting.rivals(best, level.limit)
            ),
            *setting.modes(best, level.limit),
        ],
    )


def answer(path: str | Path) -> Answer:
    """What to use in each setting of a run, by the largest error that you accept.

    Args:
        path: a run file.

    Returns:
        An object that ``print`` writes as ``hwbench run`` ends, of all settings, and a notebook
        draws as a table.

    Raises:
        RunFileError: the file cannot be read or is not a run file.
    """
    return Answer(path)
