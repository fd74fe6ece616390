"""Figures for papers, drawn with seaborn: png, svg or pdf by the suffix of the file.

One panel a group, one column wide when there is one and the width of the text when there are more.
Formats have the colours and marker shapes of the report. A figure that would have more panels than
fit shows the first ones and says so below.
"""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwbench import files, units
from hwbench.analysis.accuracy import Joined
from hwbench.analysis.roofline import Line
from hwbench.errors import RunFileError, UnknownNameError, UsageError
from hwbench.report import _whose
from hwbench.report import _words as words
from hwbench.report._palette import Style
from hwbench.report._paper import (
    COLUMN_INCHES,
    GREY,
    INK,
    MOST_PANELS,
    TEXT_INCHES,
    Panel,
    bars,
    cut,
    lines,
    literal,
    log,
    looks_of,
    paneled,
    wrapped,
)
from hwbench.report._scores import score_of
from hwbench.report._trade import joins, placed
from hwbench.report.rows import (
    DENSE,
    Group,
    Row,
    groups,
    known,
    relative,
    report_rows,
    row_of,
    timed,
)
from hwbench.store import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")

_RC: dict[Any, Any] = {
    "axes.titlesize": 7.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "font.size": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "xtick.minor.width": 0,
    "ytick.minor.width": 0,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.0,
    "pdf.fonttype": 42,  # text stays text
    "svg.hashsalt": "hwbench",  # the same file for the same run
}


def import_matplotlib() -> None:
    """Import matplotlib, if nobody has, without the settings of the user and the current folder.

    It reads them when it is imported, before ``plot`` can set them aside, and raises where they
    name a backend that is not there or cannot be read. This is for a process that draws nothing
    else: whoever calls ``plot`` from a notebook keeps the backend that the notebook chose.
    """
    if "matplotlib" in sys.modules:
        return
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None
    assert spec.origin is not None
    shipped = Path(spec.origin).parent / "mpl-data" / "matplotlibrc"
    before = {name: os.environ.pop(name, None) for name in ("MPLBACKEND", "MATPLOTLIBRC")}
    here = os.open(".", os.O_RDONLY)
    os.environ["MATPLOTLIBRC"] = str(shipped)
    os.chdir("/")
    try:
        import_module("matplotlib")
    finally:
        os.fchdir(here)
        os.close(here)
        del os.environ["MATPLOTLIBRC"]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def plot(run: Run, kind: str, path: Path) -> None:
    """Draw one kind of figure of a run: roofline, pareto, crossover, heatmap or scaling.

    It starts from matplotlib's own defaults, so that the same run gives the same file.

    Raises:
        UnknownNameError: there is no such kind.
        UsageError: the run has no data for it, or the file is neither png, svg nor pdf.
        RunFileError: the file cannot be written.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of figure", kind, KINDS)
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"A figure is written as png, svg or pdf, not as {path.name!r}.")
    import matplotlib as mpl
    import seaborn as sns

    rows = report_rows(run)
    with mpl.rc_context():
        mpl.rcdefaults()
        with sns.axes_style("ticks"), sns.plotting_context("paper"), mpl.rc_context(_RC):
            _save(KINDS[kind](rows), path)


def _save(figure: Figure, path: Path) -> None:
    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower())
    try:
        with files.whole(path) as beside:
            figure.savefig(beside, dpi=300, metadata=metadata)
    except OSError as error:
        raise RunFileError(f"Cannot write the figure {path}: {error.strerror}.") from error


def _crossover(rows: list[Row]) -> Figure:
    found = [row for row in rows if relative(row) is not None and known(row.density)]
    looks, panels = looks_of(found), list[Panel]()
    for have in groups(found).values():
        if any(row.format != DENSE for row in have):
            panels.append((words.group_title(have[0]), _crossing(have, looks)))
    if not panels:
        raise UsageError("The run has no case with a time relative to dense, so nothing can cross.")
    return paneled(panels, looks)


def _crossing(have: list[Row], looks: dict[str, Style]) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        ax.axhline(1, color=INK, lw=0.8, ls=(0, (4, 3)), zorder=0)
        lines(ax, have, lambda row: row.density, relative, looks)
        ends = lambda row: (row.relative_low, row.relative_high)  # noqa: E731
        bars(ax, have, lambda row: row.density, relative, ends, looks)
        log(ax, "x")
        log(ax, "y", "×")
        ax.set(xlabel="density (parameters kept)", ylabel="time relative to dense")

    return draw


def _pareto(rows: list[Row]) -> Figure:
    found = [join for join in joins(rows) if placed(join)]
    if not found:
        raise UsageError(
            "The run has no score that goes with a time; a suite with a second block, such as "
            'workload = "projection", over the same formats gives both.'
        )
    looks = looks_of([row_of(pair.timed) for join in found for pair in placed(join)])
    panels = [(words.group_title(row_of(join.timed)), _trade(join, looks)) for join in found]
    return paneled(panels, looks)


def _trade(join: Joined, looks: dict[str, Style]) -> Callable[[Axes], None]:
    scored = row_of(join.scored)
    score = score_of(scored)

    def draw(ax: Axes) -> None:
        ax.axvline(1, color=INK, lw=0.8, ls=(0, (4, 3)), zorder=0)
        front = [pair for pair in reversed(placed(join)) if pair.front]
        steps = [pair.relative for pair in front], [pair.score for pair in front]
        points = [1.0, *(pair.relative for pair in placed(join))]
        ax.step(*steps, where="pre", color=GREY, lw=0.9, zorder=1)
        for pair in placed(join):
            row = row_of(pair.timed)
            look = looks[row.format]
            span = cut(row.relative_low, row.relative_high, points)
            ax.plot(span, [pair.score] * 2, color=look.light, lw=1.0, zorder=2)
            ax.plot(
                pair.relative, pair.score, look.marker, color=look.light, mec="white", mew=0.4,
                ms=5.5 if pair.front else 4, alpha=1 if pair.front else 0.7, zorder=3,
            )  # fmt: skip
        log(ax, "x", "×")
        if score.zero:
            ax.set_ylim(bottom=0)
        of = f"{words.shape(scored)} {scored.dtype}{_whose.remark(scored)}"
        label = f"{wrapped(f'{score.measured}, {of}', 42)}\n{score.better} is better"
        ax.set(xlabel="time relative to dense", ylabel=label)

    return draw


def _roofline(rows: list[Row]) -> Figure:
    placed: dict[str, list[Row]] = {}
    for row in rows:
        if row.placement and row.flops > 0:
            placed.setdefault(row.dtype, []).append(row)
    looks = looks_of([row for members in placed.values() for row in members])
    panels = [(dtype, _under(m, looks)) for dtype, m in placed.items()]
    if not panels:
        raise UsageError(
            "The run has no roofline: its ceilings were not measured, or nothing was timed."
        )
    return paneled(panels, looks)


_DASHES = {"measured": "-", "cache": "-", "datasheet": "--", "formula": ":"}


def _under(members: list[Row], looks: dict[str, Style]) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        roofs = members[0].roofs
        ridges = [each.ridge for each in roofs]
        low = min([roofs[0].ridge / 8, *(row.unfused_intensity / 2 for row in members)])
        high = max([*ridges, *(row.intensity for row in members)]) * 2
        _draw_roofs(ax, roofs, low, high)
        for row in members:
            look, rate = looks[row.format], row.flops / row.time_seconds
            span = [row.unfused_intensity, row.intensity]
            ax.plot(span, [rate] * 2, color=look.light, lw=0.6, alpha=0.5, zorder=2)
            ax.plot(
                row.intensity, rate, look.marker, color=look.light, mec="white", mew=0.4, ms=4.5
            )
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set(xlabel="executed FLOP per byte", ylabel="executed FLOP/s")

    return draw


def _draw_roofs(ax: Axes, roofs: Sequence[Line], low: float, high: float) -> None:
    """Every roof with its rates beside its slope, or stacked over the highest top."""
    shift: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7}
    for each in roofs:
        top, ends = each.flops_per_second, [min(low, each.ridge / 2), each.ridge]
        corners = ends if each.source == "cache" else [*ends, high]
        heights = [min(top, x * each.bytes_per_second) for x in corners]
        width = 1.1 if each.source == "measured" else 0.7
        ax.plot(corners, heights, _DASHES[each.source], color=INK, lw=width, zorder=1)
        if each.source in ("measured", "cache"):
            word = "copy" if each.source == "measured" else each.label
            said = f"{units.si(each.bytes_per_second, 'B/s')} {word}"
            middle = corners[0] ** 0.25 * corners[1] ** 0.75
            beside: dict[str, Any] = {"xytext": (-8, 4), "ha": "right"}
            if each.source == "cache":
                middle, beside = corners[0], {"xytext": (7, 0)}
            at = (middle, middle * each.bytes_per_second)
            ax.annotate(said, at, va="center", **beside, **shift)
    tops = [each for each in roofs if each.source != "cache"]
    tops.sort(key=lambda each: each.flops_per_second)
    highest = tops[-1].flops_per_second
    for number, each in enumerate(tops):
        word = "matmul" if each.source == "measured" else each.label
        said = f"{units.flops_per_second(each.flops_per_second)} {word}"
        ax.annotate(said, (high, highest), (0, 3 + 8 * number), ha="right", **shift)
    if len(tops) > 1:
        ax.plot(high, highest * 4, alpha=0)  # room for the words


def _heatmap(rows: list[Row]) -> Figure:
    import pandas as pd
    import seaborn as sns
    from matplotlib.figure import Figure as NewFigure
    from matplotlib.ticker import FuncFormatter

    cells = [
        {"group": words.group_title(row), "format": literal(row.label), "x": math.log2(value)}
        for row in rows
        if row.format != DENSE and (value := relative(row)) is not None and value > 0
    ]
    if not cells:
        raise UsageError("The run has no case with a time relative to dense, so nothing to map.")
    frame = pd.DataFrame(cells)
    table = frame.pivot_table(index="format", columns="group", values="x", sort=False)
    total, table = len(table.columns), table.iloc[:, :MOST_PANELS]
    height = 0.21 * len(table) + 1.9
    width = max(COLUMN_INCHES, min(TEXT_INCHES, 1.9 + 0.5 * len(table.columns)))
    figure = NewFigure(figsize=(width, height), layout="constrained")
    ax = figure.subplots()
    limit = max(1.0, float(table.abs().max().max()))
    sns.heatmap(
        table,
        ax=ax,
        cmap=sns.color_palette("RdBu_r", as_cmap=True),
        vmin=-limit,
        vmax=limit,
        annot=table.map(lambda x: "" if math.isnan(x) else units.significant(2**x, 2)),
        fmt="",
        annot_kws={"fontsize": 6.5},
        linewidths=0.6,
        cbar_kws={
            "label": "time relative to dense",
            "shrink": 0.7,
            "ticks": range(-math.floor(limit), math.floor(limit) + 1),
            "format": FuncFormatter(lambda x, _: f"{2.0**x:.3g}×"),
        },
    )
    ax.set(xlabel="", ylabel="")
    ax.set_xticklabels([wrapped(str(name), 26) for name in table.columns], rotation=90)
    ax.tick_params(length=0)
    if total > MOST_PANELS:
        figure.supxlabel(f"{MOST_PANELS} of {total} groups", fontsize=7, color=GREY)
    return figure


def _scaling(rows: list[Row]) -> Figure:
    """Time against tokens, at the largest density and share of bytes that were asked for."""
    have = [row for row in rows if timed(row) and row.tokens and not row.scored]
    kept, told = have, []
    for asked, said in (
        ("asked_density", "density {:g}"),
        ("asked_stored", "{:g} of dense's bytes"),
    ):
        shares = [share for row in have if known(share := getattr(row, asked))]
        if shares:
            other = [share for share in shares if share != max(shares)]
            kept = [row for row in kept if getattr(row, asked) not in other]
            told.append(said.format(max(shares)))
    sets: dict[Group, list[Row]] = {}
    for row in kept:
        sets.setdefault(row.group.without("tokens"), []).append(row)
    looks = looks_of(kept)
    panels: list[Panel] = []
    for members in sets.values():
        if len({row.tokens for row in members}) > 1:
            title = ", ".join(p for p in words.group_parts(members[0]) if "token" not in p)
            panels.append((title, _sweep(members, looks, " and ".join(told))))
    if not panels:
        raise UsageError("Scaling needs at least two token counts of one shape; the run has none.")
    return paneled(panels, looks)


def _sweep(members: list[Row], looks: dict[str, Style], shares: str) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        seconds = lambda row: row.time_seconds  # noqa: E731
        lines(ax, members, lambda row: row.tokens, seconds, looks)
        log(ax, "x")
        ax.set_yscale("log")
        ends = lambda row: (row.time_low, row.time_high)  # noqa: E731
        bars(ax, members, lambda row: row.tokens, seconds, ends, looks)
        said = f", at {shares}" if shares else ""
        ax.set(xlabel="tokens", ylabel=f"seconds a call{said}")

    return draw


KINDS: dict[str, Callable[[list[Row]], Figure]] = {
    "roofline": _roofline,
    "pareto": _pareto,
    "crossover": _crossover,
    "heatmap": _heatmap,
    "scaling": _scaling,
}
"""The kinds of figure, and what draws each."""
