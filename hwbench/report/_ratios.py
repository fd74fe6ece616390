"""What a comparison adds to the page: the ratio of every case as columns of its row, and figures.

A ratio belongs to the row of the compared run, so that every filter of rows is one of ratios too.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from hwbench import units
from hwbench.report import _words as words
from hwbench.report._rows import Row, groups, known, printable
from hwbench.report._versus import Matched, Versus
from hwbench.report._views import Figure

_POINTS = 400  # of the figure of all cases


def columns(found: Versus) -> dict[str, Row]:
    """The columns of each case of the compared run, by its name there."""
    return {each.other["case"]: _columns(each) for each in found.matched}


def _columns(each: Matched) -> Row:
    ratio = each.ratio
    return {
        "base_seconds": each.base["time_seconds"],
        "ratio": ratio.value if ratio else None,
        "ratio_low": ratio.low if ratio else None,
        "ratio_high": ratio.high if ratio else None,
        "ratio_roofs": each.expected,
        "explained": explained(each) or None,
    }


def explained(each: Matched) -> str:
    """What explains a ratio, in a word or two."""
    return each.explained.removeprefix("explained by ").replace("not explained", "not")


def figures(rows: list[Row], run: int, base: str) -> list[Figure]:
    """The ratios of one compared run: all of them by format, then one figure a group."""
    have = [row for row in rows if row["run"] == run and known(row.get("ratio"))]
    if not have:
        return []
    return [_all(have, base), *(_group(members, base) for members in groups(have).values())]


def _all(have: list[Row], base: str) -> Figure:
    every = -(-len(have) // _POINTS)
    shown = have[::every]
    note = f"Every {every}th of {len(have)} cases; the table has all." if every > 1 else ""
    values = [row["ratio"] for row in have]
    by_format: dict[str, list[float]] = {}
    for row in have:
        by_format.setdefault(printable(row["format"]), []).append(row["ratio"])
    middles = {name: median(own) for name, own in by_format.items()}
    least, most = (f(middles, key=middles.__getitem__) for f in (min, max))
    says = f"Times are {units.ratio(median(values))} those on {base} at the median of all cases"
    if len(middles) > 1:
        ends = [f"{name} ({units.ratio(middles[name])})" for name in (least, most)]
        says += f"; the format with the lowest median is {ends[0]}, with the highest {ends[1]}"
    return _figure(
        "versus_all", f"Every case by format, {words.machine(have[0])}", says, shown, note
    )


def _group(members: list[Row], base: str) -> Figure:
    slower = sum(known(row["ratio_low"]) and row["ratio_low"] > 1 for row in members)
    faster = sum(known(row["ratio_high"]) and row["ratio_high"] < 1 for row in members)
    says = (
        f"Slower than on {base} beyond the interval: {slower or 'none'} of {len(members)} cases; "
        f"faster: {faster or 'none'}"
    )
    return _figure("versus", words.group_title(members[0] | {"machine": ""}), says, members)


def _figure(kind: str, title: str, says: str, have: list[Row], note: str = "") -> Figure:
    extra: dict[str, Any] = {"value": "ratio"}
    return Figure(kind, title, f"{says}.", [r["number"] for r in have], note, extra=extra)
