"""The figures of the page: which rows each shows, and one sentence that says what it shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hwbench import units
from hwbench.analysis.roofline import Line, Roof
from hwbench.report import _words as words
from hwbench.report.rows import Row, groups, printable


@dataclass
class Figure:
    """One chart with its rows; ``rows`` are numbers into the table of all rows."""

    kind: str
    title: str
    says: str
    rows: list[int]
    note: str = ""
    alone: list[tuple[str, str]] = field(default_factory=list)  # what could not be drawn, and why
    aside: list[tuple[str, str]] = field(default_factory=list)  # what is drawn without some knobs
    own: dict[str, list[Any]] = field(default_factory=dict)  # columns beside those of the table
    extra: dict[str, Any] = field(default_factory=dict)  # what is not one value a row

    @property
    def label(self) -> str:
        """The words of a screen reader on the chart."""
        return f"{self.title}. {self.says}"

    @property
    def heading(self) -> str:
        """Of the list of what is not drawn, or not as it was measured; empty without one."""
        counted = (
            (len(self.alone), "not drawn: no matching score or time"),
            (len(self.aside), "matched without one of the knobs"),
        )
        return ", ".join(f"{number} {what}" for number, what in counted if number)

    def packed(self) -> dict[str, Any]:
        """The data from which the page's script draws it."""
        return {
            "kind": self.kind,
            "title": self.title,
            "says": self.says,
            "note": self.note,
            "alone": [*self.alone, *self.aside],
            "heading": self.heading,
            "rows": spans(self.rows),
            "own": self.own,
            **self.extra,
        }


def spans(numbers: Iterable[int]) -> list[list[int]]:
    """Whole numbers as half-open spans: ``[4, 5, 6, 9]`` is ``[[4, 7], [9, 10]]``."""
    half_open: list[list[int]] = []
    for number in numbers:
        if half_open and half_open[-1][1] == number:
            half_open[-1][1] = number + 1
        else:
            half_open.append([number, number + 1])
    return half_open


def rooflines(rows: list[Row], most: int = 600) -> list[Figure]:
    """One figure a run and dtype that has measured roofs and timed cases."""
    figures = []
    sets: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        if row.placement and row.flops > 0:
            sets.setdefault((row.run, row.dtype), []).append(row)
    for (_, dtype), members in sets.items():
        ceiling = members[0].roof
        if ceiling is None:
            continue
        drawn, note = _thinned(members, most)
        figures.append(
            Figure(
                kind="roofline",
                title=titled(dtype, members[0]),
                says=_under_the_roof(drawn, ceiling),
                rows=[row.number for row in drawn],
                note=note,
                extra={"roofs": _roof_lines(drawn, ceiling)},
            )
        )
    return figures


def _thinned(members: list[Row], most: int) -> tuple[list[Row], str]:
    """All points, or the fastest knobs of each format in each group, or evenly spaced groups."""
    if len(members) <= most:
        return members, ""
    best: dict[tuple[Any, ...], Row] = {}
    for row in members:
        key = (row.group, row.format)
        if key not in best or row.efficiency > best[key].efficiency:
            best[key] = row
    efficient = list(best.values())
    note = f"{len(efficient)} of {len(members)} cases: the most efficient of each format and group"
    if len(efficient) > most:
        step = -(-len(efficient) // most)
        chosen = set(list(groups(efficient))[::step])
        efficient = [row for row in efficient if row.group in chosen]
        note = (
            f"{len(efficient)} of {len(members)} cases: the most efficient of each format, "
            f"in every {step}th group"
        )
    return sorted(efficient, key=lambda row: row.number), f"{note}; the table has all."


def _under_the_roof(members: list[Row], ceiling: Roof) -> str:
    best = max(members, key=lambda row: row.efficiency)
    above = sum(row.efficiency > 1 for row in members)
    cached = sum(bool(row.placement and row.placement.in_cache) for row in members)
    sentence = (
        f"The measured peaks, {units.flops_per_second(ceiling.flops_per_second)} and "
        f"{units.si(ceiling.bytes_per_second, 'B/s')}, meet at "
        f"{units.significant(ceiling.ridge)} FLOP per byte; the most efficient case is "
        f"{printable(best.label)}, at {units.percent(best.efficiency, 0)} of its roof"
    )
    if above:
        sentence += f"; {above} of {len(members)} points lie above a roof"
        sentence += f", {cached} of them because their operands stayed in cache" if cached else ""
    note = f" {printable(ceiling.note)}" if ceiling.note else ""
    return f"{sentence}.{note}"


def _roof_lines(members: list[Row], ceiling: Roof) -> list[dict[str, Any]]:
    """Corners of every roof, and its words: beside slopes, and stacked over the highest top.

    ``lift`` is in pixels; ``room`` keeps the words within the figure.
    """
    roofs = members[0].roofs
    ridges = [each.ridge for each in roofs]
    low = min([ceiling.ridge / 8, *(row.unfused_intensity / 2 for row in members)])
    high = max([*ridges, *(row.intensity for row in members)]) * 2
    corners: list[dict[str, Any]] = []
    for each in roofs:
        foot = min(low, each.ridge / 2)
        for x in (foot, each.ridge, *([] if each.source == "cache" else [high])):
            y = min(each.flops_per_second, x * each.bytes_per_second)
            corners.append(_corner(x, y, each) | {"text": ""})
        if each.source in ("measured", "cache"):
            label = f"{units.si(each.bytes_per_second, 'B/s')} "
            label += "copy" if each.source == "measured" else each.label
            x = foot if each.source == "cache" else foot**0.25 * each.ridge**0.75
            corner = _corner(x, x * each.bytes_per_second, each)
            corners.append(corner | {"text": label, "at": each.source})
    ridge = {"intensity": ceiling.ridge, "flops_per_second": ceiling.flops_per_second}
    label = f"ridge, {units.significant(ceiling.ridge)} FLOP/B"
    corners.append({**ridge, "roof": "ridge", "source": "measured", "text": label, "at": "ridge"})
    tops = sorted(
        (each for each in roofs if each.source != "cache"), key=lambda e: e.flops_per_second
    )
    highest = tops[-1].flops_per_second
    for number, each in enumerate(tops):
        label = units.flops_per_second(each.flops_per_second)
        label += " matmul" if each.source == "measured" else f" {each.label}"
        lift = 12 * number
        corners.append(
            _corner(high, highest, each) | {"text": label, "at": "compute", "lift": lift}
        )
    if len(tops) > 1:
        corners.append(_corner(high, highest * 3, tops[-1]) | {"text": " ", "at": "room"})
    return corners


def _corner(x: float, y: float, line: Line) -> dict[str, Any]:
    return {"intensity": x, "flops_per_second": y, "roof": line.label, "source": line.source}


def titled(title: str, row: Row) -> str:
    """A title with the machine, where there are several."""
    return ", ".join(part for part in (printable(title), words.machine(row)) if part)
