"""Who wins where: relative time to dense of every format in every group, as a table."""

from __future__ import annotations

from dataclasses import dataclass, field

from hwbench import units
from hwbench.report import _words as words
from hwbench.report._answers import beats
from hwbench.report._join import PROJECTION
from hwbench.report._rows import DENSE, Row, groups, known, printable, relative

STEPS = (0.25, 0.5, 0.8, 1.0, 1.25, 2.0, 4.0)
"""Edges between the shades; below one is faster than dense."""

SHADES = [
    ("f4", "up to 0.25×"),
    ("f3", "0.25–0.5×"),
    ("f2", "0.5–0.8×"),
    ("f1", "0.8–1×"),
    ("even", "not told from dense"),
    ("s1", "1–1.25×"),
    ("s2", "1.25–2×"),
    ("s3", "2–4×"),
    ("s4", "above 4×"),
]
"""The shades and what they stand for."""

_NAMES = ("f4", "f3", "f2", "f1", "s1", "s2", "s3", "s4")
_FAILED = {
    "unsupported": ("n/s", "unsupported"),
    "out_of_memory": ("oom", "out of memory"),
    "timed_out": ("t/o", "timed out"),
    "crashed": ("crash", "crashed"),
    "wrong": ("wrong", "wrong result"),
    "missing": ("…", "not measured"),
}


@dataclass(frozen=True)
class Cell:
    """One format in one group."""

    text: str = ""
    shade: str = ""
    best: bool = False
    says: str = ""  # where a word is short


@dataclass
class Heat:
    """The table: formats with their densities across, groups down."""

    heads: list[tuple[str, str, int]] = field(default_factory=list)  # format, series, columns
    densities: list[str] = field(default_factory=list)
    lines: list[tuple[list[str], list[Cell]]] = field(default_factory=list)


def heat(rows: list[Row]) -> Heat:
    """The table of all groups that have a relative time or a failure."""
    timed = [row for row in rows if row["workload"] != PROJECTION and row["format"] != DENSE]
    columns: dict[str, dict[str, str]] = {}
    for row in timed:
        columns.setdefault(row["series"], {})[_column(row)] = row["format"]
    table = Heat()
    order: list[tuple[str, str]] = []
    for series, densities in columns.items():
        names = sorted(densities, key=lambda text: (text == "", -float(text or 0)))
        order += [(series, name) for name in names]
        table.heads.append((next(iter(densities.values())), printable(series), len(names)))
        table.densities += [name or "–" for name in names]
    for members in groups(timed).values():
        found = {(row["series"], _column(row)): row for row in members}
        best = _best(members)
        cells = [_cell(found.get(place), best) for place in order]
        table.lines.append((words.group_parts(members[0]), cells))
    return table


def _column(row: Row) -> str:
    """The asked density, or the density that a format has by itself."""
    asked = row["asked_density"] if known(row["asked_density"]) else row["density"]
    return f"{asked:.3g}" if known(asked) else ""


def _best(members: list[Row]) -> Row | None:
    """The fastest of those that beat dense beyond their interval."""
    return min(filter(beats, members), key=lambda row: row["relative_time"], default=None)


def _cell(row: Row | None, best: Row | None) -> Cell:
    if row is None:
        return Cell()
    value = relative(row)
    if value is None:
        text, says = _FAILED.get(row["status"], ("–", "no relative time"))
        return Cell(text=text, shade="none", says=says)
    low, high = row["relative_low"], row["relative_high"]
    undecided = not (known(low) and known(high)) or low <= 1 <= high
    shade = "even" if undecided else _NAMES[sum(value > step for step in STEPS)]
    return Cell(
        text=units.significant(value, 3 if 0.9 < value < 1.1 else 2), shade=shade, best=row is best
    )
