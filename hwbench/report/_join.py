"""Accuracy joined to wall-clock: projection errors of the formats whose times were measured.

A timed case and a projected one are partners when format, knobs as written and asked density agree.
Their shapes may differ; where several projections were made, the one of the same shape is taken,
else the same dtype, else the nearest size. What has no partner is listed with the reason.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hwbench.report import _words as words
from hwbench.report._rows import DENSE, Row, groups, known, relative

PROJECTION = "projection"


@dataclass(frozen=True)
class Pair:
    """One format with its knobs: where it is timed, and where it is scored."""

    timed: Row
    scored: Row
    relative: float
    error: float
    front: bool  # nothing measured is both faster and nearer


@dataclass
class Join:
    """One group of timed cases with the projection errors of one set of matrices."""

    timed: Row  # a row that stands for the timed group
    scored: Row  # a row that stands for the projections
    pairs: list[Pair] = field(default_factory=list)
    alone: list[tuple[Row, str]] = field(default_factory=list)  # no partner, and why

    @property
    def front(self) -> list[Pair]:
        """The Pareto front, from the smallest error (the slowest) to the fastest."""
        return sorted((p for p in self.pairs if p.front), key=lambda p: (p.error, p.relative))


def joins(rows: list[Row]) -> list[Join]:
    """Every group that has relative times, with every kind of projection in the run."""
    sets: dict[str, list[list[Row]]] = {}
    for members in groups([r for r in rows if r["workload"] == PROJECTION]).values():
        sets.setdefault(members[0]["options"], []).append(members)
    found = []
    for members in groups([r for r in rows if r["workload"] != PROJECTION]).values():
        if any(relative(row) is not None for row in members if row["format"] != DENSE):
            found += [_join(members, _nearest(members[0], choice)) for choice in sets.values()]
    return found


def _nearest(timed: Row, choice: list[list[Row]]) -> list[Row]:
    def distance(members: list[Row]) -> tuple[bool, bool, float]:
        row = members[0]
        sides = ("out_features", "in_features")
        return (
            any(row[side] != timed[side] for side in sides),
            row["dtype"] != timed["dtype"],
            abs(math.log(math.prod(row[side] / timed[side] for side in sides))),
        )

    return min(choice, key=distance)


def _join(timed: list[Row], scored: list[Row]) -> Join:
    join = Join(timed=timed[0], scored=scored[0])
    partners = {(row["format"], row["knobs"]): row for row in scored}
    found: list[tuple[Row, Row, float]] = []
    for row in timed:
        partner = partners.pop((row["format"], row["knobs"]), None)
        time = relative(row)
        if time is not None and partner is not None and known(partner["score"]):
            found.append((row, partner, time))
        elif row["format"] != DENSE:  # dense is the line at one
            join.alone.append((row, _why(row, partner)))
    for row in partners.values():
        join.alone.append((row, "projected, but not in this group of timed cases"))
    best = math.inf
    ordered = sorted(found, key=lambda entry: (entry[2], entry[1]["score"]))
    for row, partner, time in ordered:
        error = float(partner["score"])
        join.pairs.append(Pair(row, partner, time, error, front=error < best))
        best = min(best, error)
    return join


def _why(row: Row, partner: Row | None) -> str:
    if relative(row) is None:
        said = "has no relative time"
        return f"{said}: {_reason(row)}" if row["status"] != "ok" else said
    if partner is None:
        return "timed, but not projected with these knobs"
    return f"the projection has no score: {_reason(partner)}"


def _reason(row: Row) -> str:
    status = words.STATUSES.get(row["status"], row["status"])
    return f"{status} ({row['reason']})" if row["reason"] else str(status)
