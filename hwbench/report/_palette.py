"""One colour and one marker shape for each format, the same in every chart of every report.

The eight colours keep apart under protanopia, deuteranopia and tritanopia, and stand at 3 : 1 or
more against their background, in the light and in the dark set; dense is drawn in the colour of
text. No two formats share both colour and shape, so that colour is never the only difference. What
one format has of several kernels or other knobs shares both: a hollow or tinted mark, or one with
an edge, and the dash of a line tell them apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

LIGHT = ("#114081", "#954d05", "#3b6f62", "#e16c93", "#2692e1", "#7640b7", "#a28b23", "#5e362e")
DARK = ("#7b8ff4", "#f18f40", "#67d6ac", "#b6899d", "#2c7ab6", "#bdb4f4", "#eed04c", "#b0554e")
INK = ("#1b1e23", "#e8eaed")  # of text, and of dense

_KNOWN = {  # colour, shape
    "low_rank": (4, "circle"),
    "monarch": (5, "square"),
    "blast": (3, "diamond"),
    "btt": (6, "up"),
    "csr": (2, "down"),
    "coo": (7, "cross"),
    "semi_structured": (1, "right"),
    "condensed": (0, "left"),
    "packed_dense": (0, "plus"),
    "quantized": (1, "star"),
    "quantized_low_rank": (4, "star"),
    "narrow": (6, "hexagon"),
    "low_rank_light": (4, "pentagon"),
    "low_rank_sparse": (5, "pentagon"),
    "block_dense": (0, "pentagon"),
    "block_diagonal": (1, "pentagon"),
    "bsr": (2, "pentagon"),
    "kronecker": (3, "pentagon"),
    "masked_dense": (7, "plus"),
    "n_m": (1, "plus"),
    "two_four_training": (1, "cross"),
    "dictionary": (2, "star"),
    "armor": (1, "hexagon"),
    "gqsa": (5, "star"),
    "block_sparse_kronecker": (3, "star"),
}
_MARKERS = {  # of matplotlib
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "up": "^",
    "down": "v",
    "cross": "X",
    "right": ">",
    "left": "<",
    "plus": "P",
    "star": "*",
    "pentagon": "p",
    "hexagon": "h",
}


@dataclass(frozen=True)
class Style:
    """How one format is drawn."""

    colour: int | None  # index into the palettes; None is the colour of text
    shape: str

    @property
    def css(self) -> str:
        """The colour as a CSS variable of the page."""
        return "var(--ink)" if self.colour is None else f"var(--c{self.colour})"

    @property
    def light(self) -> str:
        """The colour on white paper."""
        return INK[0] if self.colour is None else LIGHT[self.colour]

    @property
    def path(self) -> str:
        """The shape as an SVG path in the square from −1 to 1."""
        return PATHS[self.shape]

    @property
    def marker(self) -> str:
        """The shape as a marker of matplotlib."""
        return _MARKERS[self.shape]


@dataclass(frozen=True)
class Variant:
    """How the marks and lines of one of the series of a format differ from those of the others."""

    opacity: float = 1.0  # of the fill; at 0 it is that of the background
    edge: str = "none"  # "own" colour, that of "ink", or "none"
    dotted: bool = False  # the edge
    dash: tuple[float, ...] = (1, 0)  # of lines

    @property
    def hollow(self) -> bool:
        """Whether the background shows inside the mark."""
        return self.opacity == 0


_FILLS = (
    Variant(),
    Variant(0, "own"),
    Variant(0.35, "own"),
    Variant(0, "own", dotted=True),
    Variant(1, "ink"),
)
_DASHES = ((1, 0), (5, 3), (1.5, 2.5), (7, 2.5, 1.5, 2.5))
VARIANTS = tuple(
    replace(_FILLS[n % len(_FILLS)], dash=_DASHES[n % len(_DASHES)])
    for n in range(len(_FILLS) * len(_DASHES))
)
"""The first is a filled mark and a whole line. Each differs from all others by its fill or dash."""


def variants(series: Iterable[tuple[str, str]]) -> dict[str, int]:
    """The number of a variant for each series, so that those of one format differ.

    Args:
        series: pairs of a format and one of its series, in any order.
    """
    by_format: dict[str, set[str]] = {}
    for name, series_name in series:
        by_format.setdefault(name, set()).add(series_name)
    return {
        series_name: number % len(VARIANTS)
        for members in by_format.values()
        for number, series_name in enumerate(sorted(members))
    }


def styles(formats: Iterable[str]) -> dict[str, Style]:
    """A style for each format: hwbench's own always have the same, others the next free pair."""
    names = list(dict.fromkeys(formats))
    chosen = {"dense": Style(None, "hexagon")}
    chosen |= {name: Style(*_KNOWN[name]) for name in names if name in _KNOWN}
    taken = set(_KNOWN.values())
    shapes = [shape for shape in _MARKERS if shape != "hexagon"]
    # 8 colours and 11 shapes have no common divisor: the pairs repeat after 88
    pairs = ((i % len(LIGHT), shapes[(i + 8) % len(shapes)]) for i in range(88))
    free = [pair for pair in pairs if pair not in taken]
    foreign = sorted(name for name in names if name not in chosen)
    for number, name in enumerate(foreign):
        chosen[name] = Style(*free[number % len(free)])
    return {name: chosen[name] for name in names}


def _polygon(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.3g},{y:.3g}" for x, y in points) + "Z"


def _regular(corners: int, radius: float = 1.0, inner: float | None = None) -> str:
    """A regular polygon with a corner on top, or a star where there is an inner radius."""
    count = corners if inner is None else 2 * corners
    radii = [radius if inner is None or i % 2 == 0 else inner for i in range(count)]
    turns = [2 * math.pi * i / count for i in range(count)]
    ends = zip(radii, turns, strict=True)
    return _polygon((r * math.sin(turn), -r * math.cos(turn)) for r, turn in ends)


def _turned(points: list[tuple[float, float]], degrees: float) -> str:
    turn = math.radians(degrees)
    sine, cosine = math.sin(turn), math.cos(turn)
    return _polygon((x * cosine - y * sine, x * sine + y * cosine) for x, y in points)


_TRIANGLE = [(0.0, -1.0), (1.0, 0.8), (-1.0, 0.8)]
_PLUS = [(-0.35, -1.0), (0.35, -1.0), (0.35, -0.35), (1.0, -0.35), (1.0, 0.35), (0.35, 0.35)]
_PLUS += [(0.35, 1.0), (-0.35, 1.0), (-0.35, 0.35), (-1.0, 0.35), (-1.0, -0.35), (-0.35, -0.35)]

PATHS = {
    "circle": "M0.9,0A0.9,0.9,0,1,1,-0.9,0A0.9,0.9,0,1,1,0.9,0Z",
    "square": _polygon([(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)]),
    "diamond": _polygon([(0.0, -1.1), (0.9, 0.0), (0.0, 1.1), (-0.9, 0.0)]),
    "up": _turned(_TRIANGLE, 0),
    "right": _turned(_TRIANGLE, 90),
    "down": _turned(_TRIANGLE, 180),
    "left": _turned(_TRIANGLE, 270),
    "plus": _turned(_PLUS, 0),
    "cross": _turned(_PLUS, 45),
    "star": _regular(5, 1.15, 0.5),
    "pentagon": _regular(5),
    "hexagon": _regular(6),
}
"""The shapes as SVG paths in the square from −1 to 1."""
