"""Figures of points: error against time, and rates under the roofline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hwbench import units
from hwbench.analysis.accuracy import Joined, Pair
from hwbench.analysis.roofline import Line
from hwbench.errors import UsageError
from hwbench.report import _whose
from hwbench.report import _words as words
from hwbench.report._paper import (
    GREY,
    INK,
    Looks,
    Panel,
    Place,
    Sheet,
    cut,
    log,
    paneled,
    times,
    titled,
)
from hwbench.report._scores import score_of
from hwbench.report._trade import drawable, joins
from hwbench.report.rows import Group, Row, known, row_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def pareto(rows: list[Row], sheet: Sheet) -> Figure:
    """Error against relative time, with the density of every point and the Pareto front."""
    runs: dict[int, list[Row]] = {}
    for row in rows:
        runs.setdefault(row.run, []).append(row)
    joined = [join for own in runs.values() for join in joins(own) if drawable(join)]
    if not joined:
        raise UsageError(
            "The run has no score that goes with a time; a suite with a second block, such as "
            'workload = "projection", over the same formats gives both.'
        )
    looks = Looks(rows)
    sets: dict[tuple[Group, str], list[Joined]] = {}
    for join in joined:
        timed, scored = row_of(join.timed), row_of(join.scored)
        experiment_words = f"{words.workload(scored)} {words.shape(scored)} {scored.dtype}"
        sets.setdefault((timed.group.without("run"), experiment_words), []).append(join)
    panels = []
    several = len({name for _, name in sets}) > 1
    for (_, name), experiment in sets.items():
        drawn = [row_of(pair.timed) for join in experiment for pair in drawable(join)]
        title = titled(row_of(experiment[0].timed)) + (f"; {name}" if several else "")
        panels.append(Panel(title, drawn, _trade(experiment, looks)))
    return paneled(panels, looks, sheet, [_scored(experiment[0]) for experiment in sets.values()])


def _scored(join: Joined) -> str:
    """The experiment that the scores are of, the same for every panel of it."""
    row = row_of(join.scored)
    return f"{score_of(row).title}: {words.workload(row)}, {words.shape(row)} {row.dtype}" + (
        _whose.remark(row)
    )


def _trade(experiment: Sequence[Joined], looks: Looks) -> Callable[[Axes], None]:
    score = score_of(row_of(experiment[0].scored))

    def draw(ax: Axes) -> None:
        ax.axvline(1, color=INK, lw=0.8, ls=(0, (4, 3)), zorder=0)
        for join, dash in zip(experiment, ("-", "--", ":", "-."), strict=False):
            front = [pair for pair in reversed(drawable(join)) if pair.front]
            steps = [pair.relative for pair in front], [pair.score for pair in front]
            ax.step(*steps, where="pre", color=GREY, lw=0.9, ls=dash, zorder=1)
            points = [1.0, *(pair.relative for pair in drawable(join))]
            for pair in drawable(join):
                _point(ax, pair, points, looks)
        log(ax, "x", times)
        if score.zero:
            ax.set_ylim(bottom=0)
        label = f"{score.measured} ({score.better} is better)"
        ax.set(xlabel="time relative to dense", ylabel=label)

    return draw


def _point(ax: Axes, pair: Pair, points: Sequence[float], looks: Looks) -> None:
    row = row_of(pair.timed)
    span = cut(row.relative_low, row.relative_high, points)
    ax.plot(span, [pair.score] * 2, color=looks.colour(row), lw=1.0, zorder=2)
    looks.mark(ax, row, pair.relative, pair.score, ms=5.5 if pair.front else 4)
    density = f"{row.density:.3g}" if known(row.density) else ""
    looks.say(ax, row, pair.relative, pair.score, f"{density} {looks.kernel(row)}".strip())


def roofline(rows: list[Row], sheet: Sheet) -> Figure:
    """Executed rates under the measured peaks, a panel for each pass, tokens and dtype."""
    sets: dict[Group, list[Row]] = {}
    for row in rows:
        if row.placement and row.flops > 0:
            pooled = row.group.without("run", "out_features", "in_features")
            sets.setdefault(pooled, []).append(row)
    looks = Looks(rows)
    panels = [Panel(_title(members), members, _under(members, looks)) for members in sets.values()]
    if not panels:
        raise UsageError(
            "The run has no roofline: its ceilings were not measured, or nothing was timed."
        )
    return paneled(panels, looks, sheet)


def _title(rows: Sequence[Row]) -> str:
    """A group's title; without the shape where there are several."""
    shapes = {words.shape(row) for row in rows}
    return titled(rows[0], *([words.shape(rows[0])] if len(shapes) > 1 else []))


_DASHES = {"measured": "-", "cache": "-", "datasheet": "--", "formula": ":"}


def _under(rows: list[Row], looks: Looks) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        sets: dict[int, Sequence[Line]] = {row.run: row.roofs for row in rows}
        ridges = [each.ridge for roofs in sets.values() for each in roofs]
        first = [roofs[0].ridge / 8 for roofs in sets.values()]
        low = min([*first, *(row.unfused_intensity / 2 for row in rows)])
        high = max([*ridges, *(row.intensity for row in rows)]) * 2
        for number, roofs in enumerate(sets.values()):
            _draw_roofs(ax, roofs, (low, high), looks, GREY if number else INK)
        for row in rows:
            rate = row.flops / row.time_seconds
            span = [row.unfused_intensity, row.intensity]
            ax.plot(span, [rate] * 2, color=looks.colour(row), lw=0.6, alpha=0.5, zorder=2)
            looks.mark(ax, row, row.intensity, rate)
            if row.efficiency > 1:  # a point above the roof needs a name
                looks.say(ax, row, row.intensity, rate, f"{row.format} {looks.kernel(row)}".strip())
        log(ax, "x")
        log(ax, "y", lambda rate: f"{rate / 1e9:g}")
        ax.set(xlabel="executed FLOP per byte", ylabel="executed GFLOP/s")

    return draw


def _draw_roofs(ax: Axes, roofs: Sequence[Line], span: Place, looks: Looks, colour: str) -> None:
    """Every roof, with its bandwidth along its slope and its rate above its top."""
    low, high = span
    small: dict[str, Any] = {"textcoords": "offset points", "fontsize": 6, "color": colour}
    for roof in roofs:
        top, ends = roof.flops_per_second, [min(low, roof.ridge / 2), roof.ridge]
        corners = ends if roof.source == "cache" else [*ends, high]
        heights = [min(top, x * roof.bytes_per_second) for x in corners]
        width = 1.1 if roof.source == "measured" else 0.7
        ax.plot(corners, heights, _DASHES[roof.source], color=colour, lw=width, zorder=1)
        if roof.source in ("measured", "cache"):
            word = "copy" if roof.source == "measured" else roof.label
            middle = (corners[0] * corners[1]) ** 0.5
            label = f"{units.si(roof.bytes_per_second, 'B/s')} {word}"
            text = ax.annotate(
                label, (middle, middle * roof.bytes_per_second), (-2, 2), ha="center",
                va="bottom", rotation_mode="anchor", **small,
            )  # fmt: skip
            first, last = zip(corners[:2], heights[:2], strict=True)
            looks.slopes.append((ax, text, first, last))
    tops = [roof for roof in roofs if roof.source != "cache"]
    tops.sort(key=lambda roof: roof.flops_per_second)
    highest = tops[-1].flops_per_second
    for number, roof in enumerate(tops):
        word = "matmul" if roof.source == "measured" else roof.label
        label = f"{units.flops_per_second(roof.flops_per_second)} {word}"
        ax.annotate(label, (high, highest), (0, 3 + 8 * number), ha="right", **small)
    if len(tops) > 1:
        ax.plot(high, highest * 4, alpha=0)  # room for the words
