"""What the figures for papers share: size, panels, marks, legend, axes, lines and labels.

The colour and shape of a mark is its format's. Where a figure shows several runs, a filled mark is
the first, a hollow one the second, half ones the third and fourth. Kernels of one format are told
by the dash of their line and by a word beside the mark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hwbench import units
from hwbench.errors import UsageError
from hwbench.report import _words as words
from hwbench.report._palette import styles
from hwbench.report.rows import Group, Row, groups, known, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

Place = tuple[float, float]
"""A place in the numbers of the axes."""
COLUMN_INCHES, TEXT_INCHES = 3.35, 6.9
LEAST_INCHES, MOST_INCHES = 2.0, 40.0
MOST_PANELS = 12
GREY = "#7a808a"
INK = "#1b1e23"
MARK = 4.5  # points, as are the sizes of text
SMALL = 5.5
FILLS = ("full", "none", "left", "bottom")
"""How marks are filled, run by run."""
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (4, 1.5, 1, 1.5)))
"""How lines are drawn, kernel by kernel of a format."""
_CURVE = 3  # points from which a line may join them: two would suggest a curve


@dataclass(frozen=True)
class Sheet:
    """What a figure is asked to be.

    ``panels`` are numbers from 1, or parts of titles; none asks for all. ``width`` is in inches.
    ``title`` stands in place of that of a single panel, and above several.
    """

    panels: tuple[str, ...] = ()
    width: float | None = None
    title: str | None = None


@dataclass(frozen=True)
class Panel:
    """One panel: its title, the rows in it, and what draws it."""

    title: str
    rows: Sequence[Row]
    draw: Callable[[Axes], None]


@dataclass
class Label:
    """A word at a point, which goes where it hides no mark and no other word."""

    ax: Axes
    x: float
    y: float
    text: str
    colour: str


@dataclass
class Looks:
    """How the rows of a figure look, and the words that stand beside their marks."""

    rows: Sequence[Row]
    labels: list[Label] = field(default_factory=list)
    points: list[tuple[Axes, float, float]] = field(default_factory=list)
    slopes: list[tuple[Axes, Text, Place, Place]] = field(default_factory=list)
    """Words that run along a line between two places."""

    def __post_init__(self) -> None:
        self.styles = styles(row.format for row in self.rows)
        self.runs = {row.run: row.machine for row in self.rows}
        self._series: dict[str, list[str]] = {}
        for row in self.rows:
            series = self._series.setdefault(row.format, [])
            if row.series not in series:
                series.append(row.series)

    def colour(self, row: Row) -> str:
        """The colour of the row's format on white paper."""
        return self.styles[row.format].light

    def kernel(self, row: Row) -> str:
        """The words that tell its series from others of its format, ``onednn``; else nothing."""
        series = self._series.get(row.format, [])
        words_ = row.series.removeprefix(row.format).split()
        if len([one for one in series if one != row.series]) == 0:
            return ""
        return printable(" ".join(word.removeprefix("kernel=") for word in words_))

    def dash(self, row: Row) -> Any:
        """The dash of the line of its series."""
        return DASHES[self._series[row.format].index(row.series) % len(DASHES)]

    def mark(self, ax: Axes, row: Row, x: float, y: float, **more: Any) -> None:
        """Draw the mark of a row; a mark at the edge of the axes is whole."""
        look: dict[str, Any] = {
            "marker": self.styles[row.format].marker, "color": self.colour(row), "ls": "",
            "ms": MARK, "clip_on": False, "zorder": 4, **_filled(row.run, self.colour(row)),
        }  # fmt: skip
        ax.plot([x], [y], **(look | more))
        self.points.append((ax, x, y))

    def say(self, ax: Axes, row: Row, x: float, y: float, text: str) -> None:
        """Put a word beside the mark of a row."""
        if text:
            self.labels.append(Label(ax, x, y, literal(text), self.colour(row)))


def panel_places(titles: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """The places of the panels that were asked for; of all where none were.

    Raises:
        UsageError: there is no such panel.
    """
    if not wanted:
        return list(range(len(titles)))
    chosen: list[int] = []
    for each in wanted:
        part = each.strip().casefold()
        if part.isdecimal():
            places = [int(part) - 1] if 1 <= int(part) <= len(titles) else []
        else:
            places = [n for n, title in enumerate(titles) if part in title.casefold()]
        if not places or not part:
            listed = "; ".join(f"{n} {title}" for n, title in enumerate(titles[:MOST_PANELS], 1))
            more = f"; and {len(titles) - MOST_PANELS} more" if len(titles) > MOST_PANELS else ""
            raise UsageError(f"The figure has no panel {each!r}; it has: {listed}{more}.")
        chosen += [place for place in places if place not in chosen]
    return chosen


def paneled(
    panels: Sequence[Panel], looks: Looks, sheet: Sheet, notes: Iterable[str] = ()
) -> Figure:
    """A figure of panels with one legend below, and notes under it.

    Raises:
        UsageError: a panel was asked for that is not there.
    """
    from matplotlib.figure import Figure as NewFigure

    places = panel_places([panel.title for panel in panels], sheet.panels)
    drawn = [panels[place] for place in places[:MOST_PANELS]]
    width = sheet.width or (COLUMN_INCHES if len(drawn) == 1 else TEXT_INCHES)
    across = max(1, min(len(drawn), int(width / 3)))
    down, panel_width = math.ceil(len(drawn) / across), width / across
    figure = NewFigure(
        figsize=(width, min(3.2, 0.68 * panel_width + 0.05) * down + 0.45), layout="constrained"
    )
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for ax, panel in zip(axes, drawn, strict=False):
        panel.draw(ax)
        alone = len(drawn) == 1 and sheet.title is not None
        title = sheet.title or "" if alone else panel.title
        ax.set_title(wrapped(title, _letters(panel_width - 0.6)))
    for ax in axes[len(drawn) :]:
        ax.set_visible(False)
    if sheet.title and len(drawn) > 1:
        figure.suptitle(wrapped(sheet.title, _letters(width)), fontsize=8.5, fontweight="bold")
    formats = {row.format for panel in drawn for row in panel.rows}
    legend_notes = list(notes)
    if len(places) > len(drawn):
        legend_notes.append(f"{len(drawn)} of {len(places)} panels; --panel chooses others")
    legend(figure, looks, formats, width, legend_notes)
    place(figure, looks)
    return figure


def _letters(inches: float) -> int:
    """How many characters of a title stand in so many inches."""
    return max(16, int(15 * inches))


def wrapped(title: str, width: int = 44) -> str:
    """A title in lines of so many characters."""
    import textwrap

    return "\n".join(textwrap.wrap(literal(title), width))


def literal(name: str) -> str:
    """Text that matplotlib shows as it is: a dollar would open a formula."""
    return printable(name).replace("$", r"\$")


def legend(
    figure: Figure, looks: Looks, formats: set[str], width: float, notes: Sequence[str] = ()
) -> None:
    """The formats in the order of the run, then the runs where there are several, under notes."""
    from matplotlib.lines import Line2D

    dot: dict[str, Any] = {"ls": "", "ms": MARK}
    room = int((width * 72 - 40) / 4.6)  # letters
    marks = [
        Line2D([], [], color=s.light, marker=s.marker, label=literal(name), **dot)
        for name, s in looks.styles.items()
        if name in formats
    ]
    for number, machine in looks.runs.items() if len(looks.runs) > 1 else ():
        more = {**dot, **_filled(number, GREY), "mec": GREY}
        marks.append(Line2D([], [], color=GREY, marker="o", label=wrapped(machine, room), **more))
    longest = [max(map(len, str(mark.get_label()).split("\n"))) for mark in marks]
    wide = [4.6 * letters + 28 for letters in longest]
    heading = headed(notes, width)
    figure.legend(
        handles=marks, loc="outside lower center", ncols=_columns(wide, width * 72),
        frameon=False, handletextpad=0.2, columnspacing=1.4, title=heading or None,
        title_fontproperties={"size": 6},
    )  # fmt: skip
    if heading:
        figure.legends[-1].get_title().set_color(GREY)


def _columns(wide: Sequence[float], room: float) -> int:
    """In how many columns entries of such widths fit; they are filled column by column."""
    for columns in range(len(wide), 1, -1):
        down = math.ceil(len(wide) / columns)
        if sum(max(wide[at : at + down]) for at in range(0, len(wide), down)) <= room:
            return columns
    return 1


def headed(notes: Iterable[str], width: float) -> str:
    """Notes in lines that fit a figure, each once."""
    return "\n".join(wrapped(note, max(30, int(19 * width))) for note in dict.fromkeys(notes))


def _filled(number: int, colour: str) -> dict[str, Any]:
    """How the marks of a run are filled, as properties of a line."""
    if (fill := FILLS[number]) == "none":  # white, so that lines do not show through
        return {"markerfacecolor": "white", "mec": colour, "mew": 0.8}
    edge = {"mec": "white", "mew": 0.4} if fill == "full" else {"mec": colour, "mew": 0.8}
    return {"fillstyle": fill, "markerfacecoloralt": "white", **edge}


def grouped(rows: Iterable[Row]) -> dict[Group, list[Row]]:
    """Rows by group, those of several runs together."""
    by_group: dict[Group, list[Row]] = {}
    for group, members in groups(rows).items():
        by_group.setdefault(group.without("run"), []).extend(members)
    return by_group


def titled(row: Row, *without: str, also: str = "") -> str:
    """The title of a row's group without its run, and without some of its parts."""
    left_out = {words.machine(row), *without}
    parts = [part for part in words.group_parts(row) if part not in left_out]
    title = ", ".join([*parts, also] if also else parts)
    return title[:1].upper() + title[1:]


_SUBS = ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8))


def log(ax: Axes, which: str, tick_text: Callable[[float], str] = "{:g}".format) -> None:
    """A log axis with at least four labels where there is room, as plain numbers."""
    from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullFormatter

    class Ticks(Locator):
        """1, 2, 5 of each decade; finer where an axis is short, coarser where it is long."""

        def __call__(self) -> Any:
            assert self.axis is not None
            return self.tick_values(*self.axis.get_view_interval())

        def tick_values(self, vmin: float, vmax: float) -> Any:
            for subs in _SUBS:
                ticks = LogLocator(subs=subs, numticks=50).tick_values(vmin, vmax)
                inside = [tick for tick in ticks if vmin <= tick <= vmax]
                if len(inside) >= 4:
                    return inside
            return [t for t in MaxNLocator(4).tick_values(vmin, vmax) if vmin <= t <= vmax]

    axis = ax.xaxis if which == "x" else ax.yaxis
    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    axis.set_major_locator(Ticks())
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))
    axis.set_minor_formatter(NullFormatter())


def times(value: float) -> str:
    """A factor as a tick: ``0.5×``."""
    return f"{value:.3g}×"


def lasting(value: float) -> str:
    """A duration as a tick: ``200 µs``, without zeros after its last digit."""
    number, _, unit = units.seconds(value).partition(" ")
    return f"{float(number):g} {unit}"


Reading = Callable[[Row], float | None]
"""A number of a row; None or nan where it is not known."""
Ends = Callable[[Row], tuple[float, float]]
"""The ends of an interval of a row."""


def lines(
    ax: Axes,
    rows: Sequence[Row],
    readings: tuple[Reading, Reading, Ends],
    looks: Looks,
    *,
    guided: bool = False,
) -> None:
    """The points of each series with their intervals, joined by a line from three points on.

    Args:
        ax: where to draw.
        rows: the rows of all series.
        readings: what of a row is across, what is up, and the ends of its interval.
        looks: those of the figure.
        guided: a thin line joins two points, whose slope means something.
    """
    x, y, ends = readings
    series: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        if known(x(row)) and known(y(row)):
            series.setdefault((row.run, row.series), []).append(row)
    points = [value(row, y) for members in series.values() for row in members]
    for members in series.values():
        members.sort(key=lambda row: value(row, x))
        at = [value(row, x) for row in members]
        heights, colour = [value(row, y) for row in members], looks.colour(members[0])
        if len(set(at)) >= _CURVE:
            ax.plot(at, heights, color=colour, ls=looks.dash(members[0]), zorder=2)
        elif guided:
            dash = looks.dash(members[0])
            ax.plot(at, heights, color=colour, ls=dash, lw=0.5, alpha=0.5, zorder=2)
        for row in members:
            span = cut(*ends(row), points)
            ax.plot([value(row, x)] * 2, span, color=colour, lw=1.1, zorder=1)
            looks.mark(ax, row, value(row, x), value(row, y))
        looks.say(ax, members[-1], at[-1], heights[-1], looks.kernel(members[-1]))


def value(row: Row, reading: Reading) -> float:
    """A number of a row; nan where it is not known."""
    number = reading(row)
    return math.nan if number is None else float(number)


def cut(low: Any, high: Any, points: Sequence[float]) -> tuple[float, float]:
    """The ends of an interval; one that is far wider than the range of the points is cut."""
    if not (known(low) and known(high)):
        return math.nan, math.nan
    return max(low, min(points) / 3), min(high, max(points) * 3)


_AROUND = (
    *((1, 0.9), (1, -0.9), (-1, 0.9), (-1, -0.9), (0, 1.6), (0, -1.6), (1, 0), (-1, 0)),
    *((1, 2.2), (-1, 2.2), (1, -2.2), (-1, -2.2)),
)
"""The places of a word around its mark: sides, and heights in half letters."""


def place(figure: Figure, looks: Looks) -> None:
    """Turn words along their lines, and write every label where it covers no mark and no other."""
    figure.draw_without_rendering()  # only now it is known where everything is
    for ax, text, first, last in looks.slopes:
        (x0, y0), (x1, y1) = (_at(ax, *end) for end in (first, last))
        text.set_rotation(math.degrees(math.atan2(y1 - y0, x1 - x0)))
    for ax in dict.fromkeys(label.ax for label in looks.labels):
        taken = [
            _box(*_at(ax, x, y), MARK, MARK, figure.dpi / 72)
            for on, x, y in looks.points
            if on is ax
        ]
        for label in (one for one in looks.labels if one.ax is ax):
            taken.append(_placed(label, taken, figure.dpi / 72))


def _placed(label: Label, taken: Sequence[Box], scale: float) -> Box:
    """Write a label where it shares the least with what is there; the box that it takes."""
    from matplotlib.patheffects import withStroke

    frame = label.ax.get_window_extent()
    wide = 0.6 * SMALL * len(label.text)
    x, y = _at(label.ax, label.x, label.y)

    def candidate(side: float, height: float) -> tuple[float, Place, Box]:
        shift = side * (wide / 2 + MARK / 2 + 1), height * (SMALL / 2 + 0.8)
        box = _box(x + shift[0] * scale, y + shift[1] * scale, wide, SMALL, scale)
        inside = frame.x0 <= box[0] and box[2] <= frame.x1 + scale and frame.y0 <= box[1]
        return sum(_common(box, other) for other in taken) + (0 if inside else 1e6), shift, box

    _, shift, box = min((candidate(*where) for where in _AROUND), key=lambda placing: placing[0])
    note = label.ax.annotate(
        label.text, (label.x, label.y), shift, textcoords="offset points", ha="center",
        va="center", fontsize=SMALL, color=label.colour, annotation_clip=False, zorder=5,
        path_effects=[withStroke(linewidth=1.2, foreground="white")],
    )  # fmt: skip
    note.set_in_layout(False)
    return box


Box = tuple[float, float, float, float]


def _at(ax: Axes, x: float, y: float) -> tuple[float, float]:
    across, up = ax.transData.transform((x, y))
    return float(across), float(up)


def _box(x: float, y: float, wide: float, high: float, scale: float) -> Box:
    """The corners of a box of so many points around a place in pixels."""
    half, tall = wide * scale / 2, high * scale / 2
    return x - half, y - tall, x + half, y + tall


def _common(one: Box, other: Box) -> float:
    """The area that two boxes share."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return wide * high if wide > 0 and high > 0 else 0.0
