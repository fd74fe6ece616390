"""Where a format starts to win: the crossings of its relative time with dense. Pure.

Between two measured points the curve is taken as straight on log–log axes. The interval of a
crossing goes from where the upper ends of the intervals cross to where the lower ends do. A curve
crosses only between two points whose whole intervals lie on either side of dense: two noisy points
make no crossing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from hwbench import units
from hwbench.report.rows import Row, known, printable, relative

EQUAL = 0.03
"""Within this share of dense's time a format is as fast as dense for all that matters."""

Point = tuple[float, float, float, float]
"""x, relative time, and the ends of its interval (nan where it has none)."""


@dataclass(frozen=True)
class Crossing:
    """A point at which a curve meets dense, and the side on which it is faster."""

    at: float
    below: bool  # faster below it, else above it
    low: float = math.nan
    high: float = math.nan


@dataclass
class Wins:
    """Over which of the measured x a format is faster than dense."""

    measured: tuple[float, float]
    everywhere: bool = False
    crossings: list[Crossing] = field(default_factory=list)
    undecided: bool = False  # the curve crosses, and its intervals do not

    def in_words(self, unit: str = "") -> str:
        """``below 0.42 (0.38–0.47)``; ``everywhere measured``; ``nowhere measured``."""
        if not self.crossings and self.undecided:
            return "undecided"
        if not self.crossings:
            return "everywhere measured" if self.everywhere else "nowhere measured"
        return " and ".join(_one(crossing, unit) for crossing in self.crossings)


def _one(crossing: Crossing, unit: str) -> str:
    side = "below" if crossing.below else "above"
    text = f"{side} {units.significant(crossing.at)}{unit}"
    ends = [crossing.low, crossing.high]
    if any(map(math.isfinite, ends)):
        low, high = (units.significant(end) if math.isfinite(end) else "?" for end in ends)
        text += f" ({low}–{high})"
    return text


def wins(points: Sequence[Point]) -> Wins | None:
    """The part of a curve of relative times below one; None with fewer than two known points."""
    curve = sorted(point for point in points if point[0] > 0 and point[1] > 0)
    if len({point[0] for point in curve}) < 2:
        return None
    result = Wins((curve[0][0], curve[-1][0]), everywhere=all(point[1] < 1 for point in curve))
    ends = [_crossings([(p[0], p[place]) for p in curve]) for place in (2, 3)]
    for after, at, below in _crossings([(x, y) for x, y, _, _ in curve]):
        if not _sure(curve[: after + 1], curve[after + 1 :], below=below):
            result.undecided = True
            continue
        near = [_nearest(at, below, other) for other in ends]
        low, high = sorted(near, key=lambda end: (math.isnan(end), end))
        result.crossings.append(Crossing(at, below, low, high))
    return result


def _sure(before: list[Point], after: list[Point], *, below: bool) -> bool:
    """Whether the nearest points that are clear of dense lie on its two sides, as they should."""
    left, right = (
        [high < 1 for _, _, low, high in points if high < 1 or low > 1]
        for points in (before, after)
    )
    return bool(left and right) and left[-1] == below and right[0] != below


def _crossings(curve: list[tuple[float, float]]) -> list[tuple[int, float, bool]]:
    """Behind which point and where the curve meets one, and whether it is lower to the left."""
    crossings = []
    for number, ((x, y), (next_x, next_y)) in enumerate(pairwise(curve)):
        if not (y > 0 and next_y > 0) or (y < 1) == (next_y < 1):
            continue
        share = math.log(y) / (math.log(y) - math.log(next_y))
        at = math.exp(math.log(x) + share * (math.log(next_x) - math.log(x)))
        crossings.append((number, at, y < 1))
    return crossings


def _nearest(at: float, below: bool, crossings: list[tuple[int, float, bool]]) -> float:
    alike = [x for _, x, lower_left in crossings if lower_left == below]
    return min(alike, key=lambda x: abs(math.log(x / at)), default=math.nan)


def points(members: list[Row], x: Callable[[Row], float | None]) -> list[Point]:
    """The relative times of rows against one of their numbers."""
    return [
        (float(at), value, _end(row.relative_low), _end(row.relative_high))
        for row in members
        if known(at := x(row)) and (value := relative(row)) is not None
    ]


def _end(value: float) -> float:
    return float(value) if known(value) else math.nan


def by_series(members: list[Row]) -> dict[str, list[Row]]:
    """Rows by format with all knobs but the density, dense left out."""
    series: dict[str, list[Row]] = {}
    for row in members:
        if row.format != "dense":
            series.setdefault(printable(row.series), []).append(row)
    return series


def repaid(pack_seconds: float, dense_seconds: float, seconds: float) -> float | None:
    """After how many calls the time that packing took is saved; None where nothing is saved."""
    saved = dense_seconds - seconds
    return pack_seconds / saved if saved > 0 else None
