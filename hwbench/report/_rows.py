"""The rows that every output shows: summary rows, with the options, the group and the roofline."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from hwbench import channels, quantities
from hwbench.analysis.frames import measured, placement, summary_rows
from hwbench.analysis.roofline import lines, roof
from hwbench.quantities import SCORE, Quantity
from hwbench.store import Run

Row = dict[str, Any]
Seen = Mapping[str, Any]
"""A row that is only read."""

DENSE = "dense"
_GROUP = (
    "workload",
    "options",
    "out_features",
    "in_features",
    "tokens",
    "dtype",
    "direction",
    "regime",
    "mode",
)


def report_rows(run: Run) -> list[Row]:
    """One row a case, in the order of the suite: the summary, and what outputs need beside it.

    ``series`` is the format with all knobs but the density; ``group`` is what cases must share to
    be shown side by side; ``roof`` is that of its dtype, None where none was measured; ``roofs``
    are all that are drawn; ``placement`` is where the case stands, None where it was not timed;
    ``score_quantity`` declares the score.
    """
    rows = summary_rows(run)
    header = run.header
    roofs = {
        dtype: (roof(header.ceilings, dtype), lines(header.ceilings, header.environment, dtype)[0])
        for dtype in {row["dtype"] for row in rows}
    }
    scores = {
        name: quantities.find(name or SCORE.name, header.quantities)
        for name in {row["score_name"] for row in rows}
    }
    for row, planned in zip(rows, run.planned.values(), strict=True):
        knobs = {k: v for k, v in planned.case.knobs.items() if k != "density"}
        row["series"] = " ".join([row["format"], *(f"{k}={word(knobs[k])}" for k in sorted(knobs))])
        row["group"] = tuple(row[name] for name in _GROUP)
        row["score_quantity"] = scores[row["score_name"]]
        row["roof"], row["roofs"] = roofs[row["dtype"]]
        row["placement"] = placement(row, row["roof"])
    return rows


def shown(runs: Iterable[Run], place: str) -> list[Quantity]:
    """The quantities of these runs that are shown in a place, each once, in declared order."""
    found = {each.name: each for run in runs for each in measured(run).values()}
    return [each for each in found.values() if place in each.shown]


def groups(rows: list[Row]) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by group, groups and rows in the order in which they come."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(row["group"], []).append(row)
    return found


def known(value: object) -> bool:
    """Whether a value is a number that can be shown."""
    return isinstance(value, int | float) and math.isfinite(value)


def timed(row: Seen) -> bool:
    """Whether a row has a time."""
    return known(row["time_seconds"])


def relative(row: Seen) -> float | None:
    """A row's time over that of dense: one for dense itself, None where it was not measured."""
    if row["format"] == DENSE and timed(row):
        return 1.0
    value = row["relative_time"]
    return float(value) if known(value) else None


def word(value: Any) -> str:
    """The value of a knob as it is shown."""
    return value if isinstance(value, str) else json.dumps(value)


def printable(text: object) -> str:
    """Text in one line, with everything that could steer a terminal made visible."""
    return channels.line(text)
