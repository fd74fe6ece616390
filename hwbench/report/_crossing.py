"""Where a format starts to win: the crossings of its relative time with dense. Pure.

Between two measured points the curve is taken as straight on log–log axes. The interval of a
crossing goes from where the upper ends of the intervals cross to where the lower ends do. A curve
crosses only between two points whose whole intervals lie on either side of dense: two noisy points
make no crossing. Likewise a format is faster at a point only where the whole interval lies below
dense, and a point without an interval decides nothing.
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
    low: float
    high: float


@dataclass
class Wins:
    """Over which of the measured x a format is significantly faster than dense."""

    measured: tuple[float, ...]  # each x, in ascending order
    faster: tuple[float, ...] = ()  # where the whole interval lies below dense
    undecided: tuple[float, ...] = ()  # where it holds dense, or is not known
    crossings: list[Crossing] = field(default_factory=list)

    @property
    def all_alike(self) -> bool:
        """Whether the words are of all measured x at once."""
        sides = (len(self.faster), len(self.undecided))
        return not self.crossings and max(sides) in (0, len(self.measured))

    def in_words(self, unit: str = "") -> str:
        """``below 0.42 (0.38–0.47)``; ``everywhere measured``; ``at 0.1, undecided at 0.5``."""
        if self.crossings:
            return " and ".join(_one(crossing, unit) for crossing in self.crossings)
        if self.faster == self.measured:
            return "everywhere measured"
        if self.undecided == self.measured:
            return "undecided"
        open_ones = f"undecided {self._where(self.undecided, unit)}" if self.undecided else ""
        faster = self._where(self.faster, unit) if self.faster else ""
        return ", ".join(filter(None, [faster, open_ones])) or "nowhere measured"

    def _where(self, some: tuple[float, ...], unit: str) -> str:
        """Some of the measured x: ``up to 0.1``, ``from 64 tokens on``, ``at 0.1 and 0.5``."""
        count = len(some)
        said = [f"{x:.0f}" if x >= 1 and x.is_integer() else units.significant(x) for x in some]
        if count > 1 and some == self.measured[:count]:
            return f"up to {said[-1]}{unit}"
        if count > 1 and some == self.measured[-count:]:
            return f"from {said[0]}{unit} on"
        *most, last = said
        return f"at {', '.join(most)} and {last}{unit}" if most else f"at {last}{unit}"


def _one(crossing: Crossing, unit: str) -> str:
    side = "below" if crossing.below else "above"
    low, high = (units.significant(end) for end in (crossing.low, crossing.high))
    return f"{side} {units.significant(crossing.at)}{unit} ({low}–{high})"


def wins(points: Sequence[Point]) -> Wins | None:
    """The part of a curve of relative times below one; None with fewer than two known points."""
    curve = sorted(point for point in points if point[0] > 0 and point[1] > 0)
    if len({point[0] for point in curve}) < 2:
        return None
    result = Wins(
        measured=tuple(dict.fromkeys(x for x, *_ in curve)),
        faster=tuple(dict.fromkeys(x for x, _, _, high in curve if high < 1)),
        undecided=tuple(dict.fromkeys(x for x, _, low, high in curve if not (high < 1 or low > 1))),
    )
    clear = [place for place, (_, _, low, high) in enumerate(curve) if high < 1 or low > 1]
    for left, right in pairwise(clear):
        below = curve[left][3] < 1
        if below != (curve[right][3] < 1):
            result.crossings.append(_between(curve[left : right + 1], below=below))
    return result


def _between(curve: list[Point], *, below: bool) -> Crossing:
    """The crossing of a curve whose ends are clear of dense, on either side of it."""
    met = _meets([(x, y) for x, y, _, _ in curve]) or [math.sqrt(curve[0][0] * curve[-1][0])]
    bounded = [point for point in curve if math.isfinite(point[2]) and math.isfinite(point[3])]
    ends = [x for place in (2, 3) for x in _meets([(p[0], p[place]) for p in bounded])]
    # The curve changes sides an odd number of times: the middle one stands for all.
    at = met[len(met) // 2]
    return Crossing(at, below, min([at, *ends]), max([at, *ends]))


def _meets(curve: list[tuple[float, float]]) -> list[float]:
    """Each x at which the curve meets one."""
    met = []
    for (x, y), (next_x, next_y) in pairwise(curve):
        if y > 0 and next_y > 0 and (y < 1) != (next_y < 1):
            share = math.log(y) / (math.log(y) - math.log(next_y))
            met.append(math.exp(math.log(x) + share * (math.log(next_x) - math.log(x))))
    return met


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
