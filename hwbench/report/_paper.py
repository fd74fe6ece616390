"""What the figures for papers share: size, panels, legend, axes, lines and intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hwbench.report._palette import Style, styles
from hwbench.report.rows import Row, known, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN_INCHES, TEXT_INCHES = 3.35, 6.9
MOST_PANELS = 12
GREY = "#7a808a"
INK = "#1b1e23"

Panel = tuple[str, Callable[["Axes"], None]]


def paneled(panels: Sequence[Panel], shown: dict[str, Style], height: float = 2.35) -> Figure:
    """A figure of panels with one legend below, and a note where panels were left out."""
    from matplotlib.figure import Figure as NewFigure

    some = list(panels[:MOST_PANELS])
    across = 1 if len(some) == 1 else 2
    down = math.ceil(len(some) / across)
    width = COLUMN_INCHES if across == 1 else TEXT_INCHES
    figure = NewFigure(figsize=(width, height * down + 0.45), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for ax, (title, draw) in zip(axes, some, strict=False):
        draw(ax)
        ax.set_title(wrapped(title))
    for ax in axes[len(some) :]:
        ax.set_visible(False)
    legend(figure, shown, 4 if across == 1 else 8)
    if len(panels) > len(some):
        figure.supxlabel(f"{len(some)} of {len(panels)} groups", fontsize=7, color=GREY)
    return figure


def wrapped(title: str, width: int = 44) -> str:
    """A title in lines of so many characters."""
    import textwrap

    return "\n".join(textwrap.wrap(literal(title), width))


def literal(name: str) -> str:
    """Text that matplotlib shows as it is: a dollar would open a formula."""
    return printable(name).replace("$", r"\$")


def legend(figure: Figure, shown: dict[str, Style], columns: int) -> None:
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], color=s.light, marker=s.marker, ls="", ms=4.5, label=literal(name))
        for name, s in shown.items()
    ]
    figure.legend(
        handles=marks, loc="outside lower center", ncols=columns, frameon=False, handletextpad=0.2
    )


def looks_of(rows: Sequence[Row]) -> dict[str, Style]:
    """The look of every format of some rows."""
    return styles(row.format for row in rows)


def log(ax: Axes, which: str, suffix: str = "") -> None:
    """A log axis whose labels are plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis = ax.xaxis if which == "x" else ax.yaxis
    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{suffix}"))
    axis.set_minor_formatter(NullFormatter())


Reading = Callable[[Row], float | None]
"""A number of a row; None or nan where it is not known."""
Ends = Callable[[Row], tuple[float, float]]
"""The ends of an interval of a row."""


def lines(ax: Axes, rows: Sequence[Row], x: Reading, y: Reading, looks: dict[str, Style]) -> None:
    """One line a series, with the format's colour and marker."""
    import pandas as pd
    import seaborn as sns

    frame = pd.DataFrame(
        [
            {"format": row.format, "series": row.series, "x": value(row, x), "y": value(row, y)}
            for row in rows
        ]
    )
    sns.lineplot(
        frame,
        x="x",
        y="y",
        hue="format",
        style="format",
        units="series",
        estimator=None,
        palette={name: look.light for name, look in looks.items()},
        markers={name: look.marker for name, look in looks.items()},
        dashes=False,
        markersize=4.5,
        markeredgewidth=0.4,
        legend=False,
        ax=ax,
    )


def value(row: Row, reading: Reading) -> float:
    """A number of a row; nan where it is not known."""
    found = reading(row)
    return math.nan if found is None else float(found)


def bars(
    ax: Axes, rows: Sequence[Row], x: Reading, y: Reading, ends: Ends, looks: dict[str, Style]
) -> None:
    """The interval of each point, drawn to three times the range of the points at most."""
    points = [value(row, y) for row in rows]
    for row in rows:
        span = cut(*ends(row), points)
        ax.plot([value(row, x)] * 2, span, color=looks[row.format].light, lw=1.1, zorder=1)


def cut(low: Any, high: Any, points: Sequence[float]) -> tuple[float, float]:
    """The ends of an interval; one that is far wider than the range of the points is cut."""
    if not (known(low) and known(high)):
        return math.nan, math.nan
    return max(low, min(points) / 3), min(high, max(points) * 3)
