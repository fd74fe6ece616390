"""The charts of costs, winners and samples: bars by format, the grid of who wins, distributions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from hwbench.quantities import SAVED_BYTES, Quantity
from hwbench.report._chart_base import (
    COUNTS,
    FAINT,
    INK,
    SIZE,
    VALUES,
    base,
    channels,
    colour,
    dash,
    points,
    reach,
)
from hwbench.report._costs import chart_kind
from hwbench.report._palette import Style

if TYPE_CHECKING:
    import altair as alt

_SHADES = ("f4", "f3", "f2", "f1", "even", "s1", "s2", "s3", "s4")
_DENSITY = "datum.best.density_text"
_OFF = f"isValid(datum.best.asked_density) && {_DENSITY} != datum.best.asked_density"
"""Whether the density of the best is another than was asked for, in the page's words."""
_AXES = {"s": "time", "J": "joules a call", "B": "bytes"}
_WARN = "var(--warn)"


def _ticks(unit: str) -> str:
    """The words of an axis whose values have this unit: ``1.5ms``."""
    suffix = f" + {json.dumps(unit)}" if unit else ""
    return f"datum.value ? format(datum.value, '~s'){suffix} : '0'"


_BYTES, _SECONDS = _ticks("B"), _ticks("s")


def charts_beside(styles: dict[str, Style], read: Iterable[Quantity] = ()) -> dict[str, Any]:
    """The charts of this file, by kind; ``read`` are the quantities that have one of their own."""
    readings = {
        chart_kind(each): _bars(
            styles, each.name, f"{each.name}_text",
            _AXES.get(each.unit, each.heading), _ticks(each.unit),
        )
        for each in read
    }  # fmt: skip
    return {
        **readings,
        "stored": _bars(styles, "stored_bytes", "stored_text", "bytes at rest", _BYTES),
        "saved": _bars(
            styles, SAVED_BYTES.name, f"{SAVED_BYTES.name}_text", "bytes saved for backward", _BYTES
        ),
        "split": _bars(styles, "time_seconds", "time_short", "time a call", _SECONDS, "line"),
        "winners": _winners(),
        "spread": _spread(styles),
        "series": _series(),
    }


def _lines(field: str, line: str) -> Any:
    """A line a case: sorted by its value, or by the script where a case has several lines."""
    import altair as alt

    several = line != "label"
    sort = alt.EncodingSortField(
        field="place" if several else field, order="ascending" if several else "descending"
    )
    axis = alt.Axis(labelLimit=230 if several else 190, labelExpr=VALUES.format("datum.label"))
    return alt.Y(f"{line}:N", title=None, sort=sort, axis=axis)


def _bars(
    styles: dict[str, Style], field: str, text: str, title: str, words: str, line: str = "label"
) -> Any:
    import altair as alt

    x = alt.X(
        f"{field}:Q",
        title=title,
        scale=alt.Scale(zero=True, nice=False, padding=6),
        axis=alt.Axis(labelExpr=words, tickCount=4, labelOverlap=True, labelSeparation=8),
    )
    ground = base().properties(height=alt.Step(19)).encode(**channels(y=_lines(field, line), x=x))
    bar = ground.mark_rule(strokeWidth=2, opacity=0.55, **dash())
    bar = bar.encode(**channels(x2=alt.datum(0), **colour(styles)))
    labels = ground.mark_text(align="left", baseline="middle", dx=9)
    tips = [alt.Tooltip(f"{line}:N", title="case"), alt.Tooltip(f"{text}:N", title=title)]
    return alt.layer(
        reach(x=x), bar, points(ground, styles, tips), labels.encode(**channels(text=f"{text}:N"))
    )


def _winners() -> Any:
    """The fastest of what is drawn in each cell: its name, its time, and the shade of that."""
    import altair as alt

    best = base(alt.Step(46)).transform_aggregate(
        [alt.AggregatedFieldDef(op="argmin", field="relative", **{"as": "best"})],
        groupby=["shape_text", "tokens"],
    )
    best = best.transform_calculate(
        area="datum.best.area",
        shade="datum.best.shade",
        series="datum.best.series",
        name=f"{VALUES.format('datum.best.series')} + ({_OFF} ? ' ' + {_DENSITY} : '')",
        said="datum.best.relative_short",
    ).encode(
        **channels(
            x=alt.X(
                "tokens:O",
                title="tokens",
                axis=alt.Axis(labelAngle=0, orient="top", labelExpr=COUNTS),
            ),
            y=alt.Y("shape_text:N", title="out × in", sort=alt.EncodingSortField("area")),
        )
    )
    fills = alt.Scale(domain=list(_SHADES), range=[f"var(--h-{name})" for name in _SHADES])
    inks = alt.Scale(domain=list(_SHADES), range=[f"var(--t-{name})" for name in _SHADES])
    tips = [alt.Tooltip("series:N", title="fastest"), alt.Tooltip("said:N", title="of dense")]
    cell = best.mark_rect(stroke="var(--card)", strokeWidth=2, cornerRadius=4).encode(
        **channels(fill=alt.Fill("shade:N", scale=fills, legend=None), tooltip=tips)
    )
    ink = alt.Color("shade:N", scale=inks, legend=None)
    room = alt.expr("bandwidth('x') - 10")
    name = best.mark_text(dy=-7, fontWeight=600, limit=room).encode(
        **channels(text="name:N", color=ink)
    )
    times = best.mark_text(dy=8).encode(**channels(text="said:N", color=ink))
    return alt.layer(cell, name, times)


def _spread(styles: dict[str, Style]) -> Any:
    """Quantiles of the samples of each case, and the value of each replicate."""
    import altair as alt

    ground = base(alt.Step(22))
    y = alt.Y(
        "label:N",
        title=None,
        sort=alt.EncodingSortField(field="time_seconds", order="descending"),
        axis=alt.Axis(labelLimit=190, labelExpr=VALUES.format("datum.label")),
    )
    x = alt.X(
        "low:Q",
        title="time a call (log)",
        scale=alt.Scale(type="log", nice=False, padding=10),
        axis=alt.Axis(labelExpr=_SECONDS, labelOverlap="greedy", labelSeparation=9, tickCount=6),
    )
    wide = ground.mark_rule(strokeWidth=1.4, opacity=0.8, **dash())
    wide = wide.encode(**channels(x=x, x2="high:Q", y=y, **colour(styles)))
    half = ground.mark_rule(strokeWidth=7, opacity=0.45)
    half = half.encode(**channels(x="quarter:Q", x2="three_quarters:Q", y=y, **colour(styles)))
    flat = ground.transform_flatten(["replicates_at"], ["value"])
    dots = flat.mark_tick(thickness=2, size=14, color=INK)
    tips = [
        alt.Tooltip("label:N", title="case"),
        alt.Tooltip("time_text:N", title="time"),
        alt.Tooltip("flags:N", title="flags"),
    ]
    return alt.layer(wide, half, dots.encode(**channels(x="value:Q", y=y, tooltip=tips)))


def _series() -> Any:
    """Every sample of one case, one replicate after the other; disturbed blocks stand out.

    Each replicate has its number, a shade where it is the second of two, and a line at its median.
    """
    import altair as alt

    states = ["quiet", "disturbed"]
    ground = alt.Chart(alt.NamedData(name="points"), height=260, width="container")
    x = _along("at")
    y = alt.Y(
        "seconds:Q",
        title="time a call",
        scale=alt.Scale(zero=False, padding=14),
        axis=alt.Axis(labelExpr=_SECONDS, tickCount=6),
    )
    points = ground.mark_point(filled=True, opacity=0.8).encode(
        **channels(
            x=x,
            y=y,
            color=alt.Color(
                "state:N",
                scale=alt.Scale(domain=states, range=[FAINT, _WARN]),
                legend=None,
            ),
            shape=alt.Shape(
                "state:N", scale=alt.Scale(domain=states, range=["circle", "cross"]), legend=None
            ),
            size=alt.condition("datum.state == 'disturbed'", alt.value(SIZE), alt.value(SIZE / 3)),
            tooltip=[
                alt.Tooltip("replicate:N", title="replicate"),
                alt.Tooltip("seconds:Q", title="seconds", format=".4s"),
                alt.Tooltip("state:N", title="block"),
            ],
        )
    )
    shade, middle, number = _replicates(y)
    return alt.layer(shade, points, middle, number)


def _along(field: str) -> alt.X:
    """The axis of samples in their order."""
    import altair as alt

    return alt.X(
        f"{field}:Q",
        title="sample, one replicate after the other",
        scale=alt.Scale(zero=False, nice=False),
        axis=alt.Axis(tickCount=6),
    )


def _replicates(y: alt.Y) -> tuple[Any, Any, Any]:
    """The bands of the replicates: their shades, their medians and their numbers."""
    import altair as alt

    ground = alt.Chart(alt.NamedData(name="bands"))
    span: dict[str, Any] = {"x": _along("low"), "x2": "high:Q"}
    shade = ground.transform_filter("datum.shaded").mark_rect(color=FAINT, opacity=0.16)
    middle = ground.mark_rule(
        color=INK,
        strokeWidth=1.6,
        strokeDash=alt.expr("datum.slow ? [3, 2] : [1, 0]"),
    )
    tips = [
        alt.Tooltip("replicate:N", title="replicate"),
        alt.Tooltip("seconds:Q", title="median", format=".4s"),
    ]
    number = ground.transform_filter("datum.numbered").mark_text(
        align="left", baseline="top", dx=2, dy=2, color=INK
    )
    return (
        shade.encode(**channels(**span, tooltip=tips)),
        middle.encode(**channels(**span, y=y, tooltip=tips)),
        number.encode(**channels(x=span["x"], y=alt.value(0), text="text:N")),
    )
