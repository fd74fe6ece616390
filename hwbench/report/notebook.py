"""The answer of a run in Python: lines when it is printed, a table in a notebook."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from hwbench import files, units
from hwbench.analysis.quiet import slowed
from hwbench.errors import RunFileError
from hwbench.report import _bytes, _facts, decision, html
from hwbench.report import _words as words
from hwbench.report.rows import numbered, printable, report_rows
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

    ``print`` writes the lines with which ``hwbench run`` ends; a notebook draws them as a table.
    """

    def __init__(self, path: str | Path) -> None:
        """Read a run.

        Raises:
            RunFileError: the file cannot be read or is not a run file.
        """
        run = read_run(files.named(path, RunFileError))
        rows = numbered(report_rows(run))
        slowdown = slowed(run.header, run.planned, run.results)
        self.path = run.path
        self._head = [*([str(slowdown)] if slowdown else []),
                      printable(f"{run.header.suite} on {run.header.machine}: "
                                f"{_facts.counts(run)}")]  # fmt: skip
        self._settings = decision.without_compiled_twins(decision.settings(rows))
        self._bytes = [] if self._settings else _bytes.answers(rows)

    def __str__(self) -> str:
        lines = decision.terminal_lines(self._settings, most=len(self._settings))
        for each in self._bytes:
            lines += [f"{printable(each.title)}: {each.says}", *([each.note] if each.note else [])]
        return "\n".join([*self._head, *(lines or [_bytes.NOTHING])])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The same as HTML that needs no style and no script."""
        return html.fragment(
            "notebook.html.j2", head=self._head, path=self.path, nothing=_bytes.NOTHING,
            bytes=self._bytes, settings=[(setting, _lines(setting)) for setting in self._settings],
            bases=dict.fromkeys(each.basis for each in self._settings),
        )  # fmt: skip


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
        An object that ``print`` writes as the lines with which ``hwbench run`` ends, and a notebook
        draws as a table.

    Raises:
        RunFileError: the file cannot be read or is not a run file.
    """
    return Answer(path)
