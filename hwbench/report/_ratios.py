"""What a comparison adds to the page: the ratio of every case as columns of its row, and figures.

A ratio belongs to the row of the compared run, so that every filter of rows is one of ratios too.
"""

from __future__ import annotations

import math
from statistics import median
from typing import Any

from msgspec.structs import replace

from hwbench import units
from hwbench.report import _words as words
from hwbench.report._versus import Matched, Versus
from hwbench.report._views import Figure
from hwbench.report.rows import Against, Row, groups, known, printable

_POINTS = 400  # of the figure of all cases


def columns(versus: Versus) -> dict[str, Against]:
    """The columns of each case of the compared run, by its name there."""
    return {case.other.case: _columns(case) for case in versus.matched}


def _columns(case: Matched) -> Against:
    ratio = case.ratio
    return Against(
        base_seconds=case.base.time_seconds,
        ratio=ratio.value if ratio else None,
        low=ratio.low if ratio else None,
        high=ratio.high if ratio else None,
        roofs=case.expected,
        explained=explained(case) or None,
    )


def explained(case: Matched) -> str:
    """The explanation of a ratio, in a word or two."""
    return case.explained.removeprefix("explained by ").replace("not explained", "nothing")


def figures(rows: list[Row], run: int, base: str) -> list[Figure]:
    """The ratios of one compared run: all of them by format, then one figure a group."""
    compared = [row for row in rows if row.run == run and known(row.against.ratio)]
    if not compared:
        return []
    return [_all(compared, base), *(_group(members, base) for members in groups(compared).values())]


def _all(rows: list[Row], base: str) -> Figure:
    step = -(-len(rows) // _POINTS)
    drawn = rows[::step]
    note = f"Every {step}th of {len(rows)} cases; the table has all." if step > 1 else ""
    values = [_ratio(row) for row in rows]
    by_format: dict[str, list[float]] = {}
    for row in rows:
        by_format.setdefault(printable(row.format), []).append(_ratio(row))
    middles = {name: median(own) for name, own in by_format.items()}
    least, most = (f(middles, key=middles.__getitem__) for f in (min, max))
    says = f"Times are {units.ratio(median(values))} those on {base} at the median of all cases"
    if len(middles) > 1:
        ends = [f"{name} ({units.ratio(middles[name])})" for name in (least, most)]
        says += f"; the format with the lowest median is {ends[0]}, with the highest {ends[1]}"
    says += f". Left of the dashed line {words.machine(rows[0])} is faster"
    return _figure(
        "versus_all", f"Every case by format, {words.machine(rows[0])}", says, drawn, note
    )


def _ratio(row: Row) -> float:
    return math.nan if row.against.ratio is None else row.against.ratio


def _group(members: list[Row], base: str) -> Figure:
    slower = sum(known(row.against.low) and row.against.low > 1 for row in members)
    faster = sum(known(row.against.high) and row.against.high < 1 for row in members)
    says = (
        f"Significantly slower than on {base}: {slower or 'none'} of {len(members)} cases; "
        f"significantly faster: {faster or 'none'}"
    )
    return _figure("versus", words.group_title(replace(members[0], machine="")), says, members)


def _figure(kind: str, title: str, says: str, rows: list[Row], note: str = "") -> Figure:
    extra: dict[str, Any] = {"value": "ratio"}
    return Figure(kind, title, f"{says}.", [r.number for r in rows], note, extra=extra)
