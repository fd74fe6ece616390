"""Who wins where: relative time to dense of every format in every group, as a table."""

from __future__ import annotations

from dataclasses import dataclass, field

from msgspec.structs import replace

from hwbench import units
from hwbench.analysis.contest import Outcome
from hwbench.report import _words as words
from hwbench.report._answers import against, beats, quicker
from hwbench.report.rows import DENSE, STORED, Row, groups, known, relative

STEPS = (0.25, 0.5, 0.8, 1.0, 1.25, 2.0, 4.0)
"""Edges between the shades; below one is faster than dense."""

SHADES = [
    ("f4", "up to 0.25×"),
    ("f3", "0.25–0.5×"),
    ("f2", "0.5–0.8×"),
    ("f1", "0.8–1×"),
    ("even", "not significant"),
    ("s1", "1–1.25×"),
    ("s2", "1.25–2×"),
    ("s3", "2–4×"),
    ("s4", "above 4×"),
]
"""The shades and what they stand for."""

_NAMES = ("f4", "f3", "f2", "f1", "s1", "s2", "s3", "s4")
FAILED = {
    "unsupported": ("n/s", "unsupported"),
    "out_of_memory": ("oom", "out of memory"),
    "timed_out": ("t/o", "timed out"),
    "crashed": ("crash", "crashed"),
    "wrong": ("wrong", "wrong result"),
    "missing": ("…", "not measured"),
}
"""The short word in a cell without a number, and its meaning."""

LEVEL = {
    "tied": "tied with the fastest within 3 %",
    "undecided": "not significantly slower than the fastest",
}
"""The words on a cell that is level with the fastest of its line."""

FAR = "†"
"""The sign on a cell whose density is a tenth off the one of its column, or more."""


@dataclass(frozen=True)
class Cell:
    """One format in one group."""

    text: str = ""
    shade: str = ""
    best: bool = False
    level: str = ""  # tied with the best, or undecided
    says: str = ""  # where a word is short


@dataclass
class Heat:
    """The table: formats with their densities across, groups down."""

    heads: list[tuple[str, str, int]] = field(default_factory=list)  # format, series, columns
    densities: list[str] = field(default_factory=list)
    lines: list[tuple[list[str], list[Cell]]] = field(default_factory=list)
    groups: int = 0  # of which so many lines are written
    far: bool = False  # whether any of their cells has the sign FAR


def marked(rows: list[Row]) -> list[Row]:
    """The rows, with the winner of each group marked as the ``best``, and who is level with it."""
    winners: set[int] = set()
    level: dict[int, str] = {}
    for members in groups(row for row in rows if row.format != DENSE).values():
        best = min(filter(beats, members), key=lambda row: row.relative_time, default=None)
        if best is None:
            continue
        winners.add(best.number)
        contest = against(best, [row for row in members if relative(row) is not None])
        for outcome in (Outcome.TIED, Outcome.UNDECIDED):
            level |= {row.number: str(outcome.value) for row in contest[outcome]}
        level |= {row.number: str(Outcome.UNDECIDED.value) for row in quicker(best, contest)}
    return [
        replace(row, best=row.number in winners, level=level.get(row.number, ""))
        if row.number in winners or row.number in level
        else row
        for row in rows
    ]


def heat(rows: list[Row], most: int = 40) -> Heat:
    """The table of the groups that have a relative time or a failure, the first ``most`` of them.

    The rows are marked; the page's script draws the same table from what passes its filters.
    """
    sets = list(groups([row for row in rows if row.against_dense]).values())
    rows_shown = [row for members in sets[:most] for row in members]
    columns: dict[str, dict[str, str]] = {}
    for row in rows_shown:
        columns.setdefault(row.series, {})[row.density_word] = row.format
    far = any(words.far_from_asked(row) for members in sets for row in members)
    table = Heat(groups=len(sets), far=far)
    order: list[tuple[str, str]] = []
    for series, densities in columns.items():
        names = sorted(densities, key=_place)
        order += [(series, name) for name in names]
        table.heads.append((next(iter(densities.values())), series, len(names)))
        table.densities += [name or "–" for name in names]
    for members in sets[:most]:
        row_at = {(row.series, row.density_word): row for row in members}
        cells = [_cell(row_at.get(place)) for place in order]
        table.lines.append((words.group_parts(members[0]), cells))
    return table


def _place(word: str) -> tuple[bool, bool, float]:
    """Densities first, then shares of dense's bytes, then what has neither; the largest first."""
    return word == "", word.endswith(STORED), -float(word.removesuffix(STORED) or 0)


def shade(row: Row) -> str:
    """The shade of a row in the table: how its time stands to that of dense."""
    value = relative(row)
    if value is None:
        return "none"
    low, high = row.relative_low, row.relative_high
    undecided = not (known(low) and known(high)) or low <= 1 <= high
    return "even" if undecided else _NAMES[sum(value > step for step in STEPS)]


def _cell(row: Row | None) -> Cell:
    if row is None:
        return Cell()
    value = relative(row)
    if value is None:
        text, says = FAILED.get(row.status, ("–", "no relative time"))
        return Cell(text=text, shade="none", says=says)
    text = units.significant(value, 3 if 0.9 < value < 1.1 else 2)
    says = LEVEL.get(row.level, "")
    if words.far_from_asked(row):
        text += FAR
        says = "; ".join(filter(None, [f"density {units.significant(row.density)}", says]))
    return Cell(text=text, shade=shade(row), best=row.best, level=row.level, says=says)
