"""The figures of the page: which rows each shows, and one sentence that says what it shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hwbench import units
from hwbench.analysis.roofline import Line, Roof
from hwbench.report import _words as words
from hwbench.report.rows import Group, Row, groups, printable


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
    """One figure for each pass and number of tokens that has measured roofs and timed cases.

    Figures of one run and dtype have the same axes, so that passes can be compared by eye.
    """
    figures = []
    sets: dict[tuple[int, str], dict[Group, list[Row]]] = {}
    for row in rows:
        if row.placement and row.flops > 0:
            pooled = row.group.without("out_features", "in_features")
            sets.setdefault((row.run, row.dtype), {}).setdefault(pooled, []).append(row)
    for settings in sets.values():
        every = [row for members in settings.values() for row in members]
        ceiling = every[0].roof
        if ceiling is None:
            continue
        corners = _roof_lines(every, ceiling)
        for members in settings.values():
            drawn, note = _thinned(members, most)
            figures.append(
                Figure(
                    kind="roofline",
                    title=_but_shapes(members),
                    says=_under_the_roof(drawn, ceiling),
                    rows=[row.number for row in drawn],
                    note=note,
                    extra={"roofs": corners},
                )
            )
    return figures


def _but_shapes(members: list[Row]) -> str:
    """The title of a group; without the shape where there are several."""
    parts = words.group_parts(members[0])
    if len({words.shape(row) for row in members}) > 1:
        parts.remove(words.shape(members[0]))
    title = ", ".join(parts)
    return title[:1].upper() + title[1:]


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
    note = (
        f"{len(efficient)} of {len(members)} cases: the most efficient of each format and setting"
    )
    if len(efficient) > most:
        step = -(-len(efficient) // most)
        chosen = set(list(groups(efficient))[::step])
        efficient = [row for row in efficient if row.group in chosen]
        note = (
            f"{len(efficient)} of {len(members)} cases: the most efficient of each format, "
            f"in every {step}th setting"
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
    return f"{sentence}. {words.raised(ceiling)}".rstrip()


def _roof_lines(members: list[Row], ceiling: Roof) -> list[dict[str, Any]]:
    """Corners of every roof, and its words: beside slopes, and stacked over the highest top.

    ``lift`` is in pixels; ``room`` keeps the words and all members within the figure.
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
    return [*corners, *_roof_names(members, ceiling, high)]


def _roof_names(members: list[Row], ceiling: Roof, x: float) -> list[dict[str, Any]]:
    """The rates of the flat roofs, stacked at their right end, and what nobody sees."""
    tops = sorted(
        (each for each in members[0].roofs if each.source != "cache"),
        key=lambda each: each.flops_per_second,
    )
    highest = tops[-1].flops_per_second
    names: list[dict[str, Any]] = []
    for number, each in enumerate(tops):
        label = units.flops_per_second(each.flops_per_second)
        label += _product(ceiling) if each.source == "measured" else f" {each.label}"
        corner = _corner(x, highest, each)
        names.append({**corner, "text": label, "at": "compute", "lift": 12 * number})
    rates = [row.flops / row.time_seconds for row in members]
    ends = [min(rates), max(rates), *([highest * 3] if len(tops) > 1 else [])]
    return names + [{**_corner(x, rate, tops[-1]), "text": " ", "at": "room"} for rate in ends]


def _product(ceiling: Roof) -> str:
    """What reached the flat roof: the best library, where the run names it, or a case."""
    if ceiling.raised_by:
        return " by a case"
    return f" matmul by {printable(ceiling.library)}" if ceiling.library else " matmul"


def _corner(x: float, y: float, line: Line) -> dict[str, Any]:
    return {"intensity": x, "flops_per_second": y, "roof": line.label, "source": line.source}


def titled(title: str, row: Row) -> str:
    """A title with the machine, where there are several."""
    return ", ".join(part for part in (printable(title), words.machine(row)) if part)
