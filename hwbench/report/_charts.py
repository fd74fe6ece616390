"""The charts as Vega-Lite specifications, made with Altair: one a kind, whatever the data.

The page gives each figure its rows under the name ``table`` (and, for rooflines, the measured roofs
under ``roofs``). Colours are CSS variables, so that one drawing serves light, dark and print.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from hwbench.quantities import PROJECTION_ERROR, Quantity
from hwbench.report._chart_base import COUNTS, FAINT, GRID, INK
from hwbench.report._chart_base import SIZE as _SIZE
from hwbench.report._chart_base import base as _base
from hwbench.report._chart_base import before_names as _before_names
from hwbench.report._chart_base import channels as _channels
from hwbench.report._chart_base import colour as _colour
from hwbench.report._chart_base import dash as _dash
from hwbench.report._chart_base import names_at_ends as _names_at_ends
from hwbench.report._chart_base import points as _points
from hwbench.report._chart_base import reach as _reach_axis
from hwbench.report._chart_base import times as _relative
from hwbench.report._chart_base import tips as _tips
from hwbench.report._charts_costs import charts_beside
from hwbench.report._charts_versus import charts_of_ratios
from hwbench.report._crossing import EQUAL
from hwbench.report._palette import Style
from hwbench.report._scores import Score

if TYPE_CHECKING:
    import altair as alt

CONFIG: dict[str, Any] = {
    "aria": False,  # the figure around it has the words
    "background": "transparent",
    "font": "system-ui, -apple-system, Segoe UI, Roboto, Helvetica Neue, sans-serif",
    "view": {"stroke": "transparent"},
    "axis": {
        "labelColor": "var(--soft)",
        "labelFontSize": 11,
        "titleColor": "var(--soft)",
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "gridColor": GRID,
        "domain": False,
        "ticks": False,
        "labelPadding": 6,
    },
    "axisX": {"grid": False, "domain": True, "domainColor": FAINT, "titlePadding": 8},
    "axisY": {
        "titleAngle": 0,
        "titleAlign": "left",
        "titleAnchor": "end",
        "titleY": -12,
        "titleX": -44,
    },
    "text": {"color": "var(--soft)", "fontSize": 11},
    "rule": {"color": FAINT},
}
"""The look of all charts, given to Vega-Embed."""

_DENSITIES = [1, 0.5, 0.25, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001]
_ROOF_HEIGHT = 360
_NAMED = ("crossover", "sweep", "error_density", "error_bytes")  # at the ends of their lines
_EVEN = [v * 10.0**power for power in range(-3, 19) for v in (1, 2, 5)]


def specifications(
    styles: dict[str, Style], scores: Iterable[Score] = (), read: Iterable[Quantity] = ()
) -> dict[str, dict[str, Any]]:
    """Every kind of chart as a Vega-Lite specification, by name.

    Some have one for each score, and one for each quantity of ``read``.

    They are the same for all data, so it is the tests that hold them against the schema.
    """
    from altair.utils.schemapi import debug_mode

    with debug_mode(False):
        charts = _charts(styles, scores, read)
        return {name: _specification(each, _is_named(name)) for name, each in charts.items()}


def _charts(
    styles: dict[str, Style], scores: Iterable[Score], read: Iterable[Quantity]
) -> dict[str, Any]:
    charts = {
        "crossover": _crossover(styles),
        "sweep": _sweep(styles),
        "roofline": _roofline(styles),
        **charts_beside(styles, read),
        **charts_of_ratios(styles),
    }
    for score in scores:
        charts |= {
            f"pareto {score.name}": _pareto(styles, score),
            f"error_density {score.name}": _error(
                styles, score, "density", "density (parameters kept)"
            ),
            f"error_bytes {score.name}": _error(
                styles, score, "stored_ratio", "stored bytes, relative to dense"
            ),
        }
    return charts


def _is_named(kind: str) -> bool:
    return kind.partition(" ")[0] in _NAMED


def _specification(chart: Any, named_ends: bool) -> dict[str, Any]:
    spec: dict[str, Any] = chart.to_dict(validate=False)
    for key in ("config", "$schema"):  # one look for all; no address in the page
        spec.pop(key, None)
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    if named_ends:  # the script says how many pixels the names at the ends of lines take
        spec["params"] = [{"name": "room", "value": 0}]
    return spec


def _density(field: str = "density", title: str = "density (parameters kept)") -> alt.X:
    import altair as alt

    return alt.X(
        f"{field}:Q",
        title=title,
        scale=alt.Scale(type="log", nice=False, padding=18, **_before_names()),
        axis=alt.Axis(
            values=[20, 10, 5, 2, *_DENSITIES], format="~g", labelOverlap="greedy", tickCount=6
        ),
    )


def _reach() -> Any:
    """An invisible layer that keeps the axis of densities open where all points share one."""
    import altair as alt

    ends: list[dict[str, float]] = [{"density": 0.5}, {"density": 1.0}]
    data = alt.InlineData(values=ends)
    return alt.Chart(data).mark_point(opacity=0, tooltip=None).encode(**_channels(x="density:Q"))


def _dense_line(along: str) -> Any:
    """Dense, the line at one."""
    import altair as alt

    data = alt.InlineData(values=[{"one": 1}])
    base = alt.Chart(data).encode(**_channels(**{along: alt.datum(1)}))
    rule = base.mark_rule(color=INK, strokeDash=[4, 3], strokeWidth=1)
    if along == "x":
        text = base.mark_text(text="dense", align="left", baseline="top", dx=4, dy=2, color=INK)
        return rule + text.encode(**_channels(y=alt.value(0)))
    text = base.mark_text(text="dense", align="left", baseline="bottom", dx=2, dy=-3, color=INK)
    rule = rule.encode(**_channels(**_as_wide_as_lines()))
    return rule + text.encode(**_channels(x=alt.value(0)))


def _as_wide_as_lines() -> dict[str, Any]:
    """From the left of the plot to where the names at the ends of lines begin."""
    import altair as alt

    return {"x": alt.value(0), "x2": alt.value(alt.expr("width - room"))}


def _scored(field: str, score: Score) -> Any:
    """The axis of a score."""
    import altair as alt

    if score.log:
        powers = [10.0**power for power in range(-12, 19)]
        axis = alt.Axis(values=powers, format=",.3~r", labelOverlap="greedy")
        scale = alt.Scale(type="log", nice=True)
        return alt.Y(f"{field}:Q", title=f"{score.axis} (log)", scale=scale, axis=axis)
    scale = alt.Scale(zero=score.zero, nice=True)
    return alt.Y(f"{field}:Q", title=score.axis, scale=scale)


def _pareto(styles: dict[str, Style], score: Score) -> Any:
    import altair as alt

    base = _base(360)
    y = _scored("error", score)
    x = _relative(alt.X, "time relative to dense (log), with 95 % interval")
    front = base.transform_filter("datum.front")
    step = front.mark_line(interpolate="step-before", color=FAINT, strokeWidth=1.5)
    span = base.mark_rule(strokeWidth=1.2, opacity=0.8).encode(
        **_channels(x="span_low:Q", x2="span_high:Q", y=y, **_colour(styles))
    )
    points = _points(base, styles, _tips(error_text=score.measured)).encode(
        **_channels(
            x=x,
            y=y,
            size=alt.condition("datum.front", alt.value(_SIZE * 1.7), alt.value(_SIZE * 0.9)),
            opacity=alt.condition("datum.front", alt.value(1), alt.value(0.7)),
        )
    )
    return alt.layer(
        _reach_axis(x=x),
        step.encode(**_channels(x=x, y=y, order=alt.Order("relative:Q", sort="descending"))),
        _dense_line("x"),
        span,
        points,
        _names_beside(x, y),
    )


def _names_beside(x: alt.X, y: alt.Y) -> Any:
    """The names beside points; the page's script says which have room, and where."""
    import altair as alt

    names = alt.Chart(alt.NamedData(name="names")).mark_text(
        baseline="middle",
        align=alt.expr("datum.align"),
        dx=alt.expr("datum.dx"),
        dy=alt.expr("datum.dy"),
    )
    ink = alt.condition("datum.front", alt.value(INK), alt.value("var(--soft)"))
    return names.encode(**_channels(x=x, y=y, text="text:N", color=ink))


def _error(styles: dict[str, Style], score: Score, field: str, title: str) -> Any:
    import altair as alt

    base = _base().encode(**_channels(x=_density(field, title), y=_scored("score", score)))
    line = base.mark_line(strokeWidth=1.3, opacity=0.7, **_dash())
    line = line.encode(**_channels(detail="series:N", order=f"{field}:Q", **_colour(styles)))
    tips = _tips(error_text=score.measured, stored_text="stored")
    points = _points(base, styles, tips[:1] + tips[2:3] + tips[-2:])
    closed = _closed() if (score.name, field) == (PROJECTION_ERROR.name, "density") else []
    return alt.layer(_reach(), *closed, line, points, *_names_at_ends(styles))


def _closed() -> list[Any]:
    """Closed forms, which only the figures of Gaussian matrices have."""
    import altair as alt

    base = alt.Chart(alt.NamedData(name="closed")).encode(**_channels(x="density:Q", y="score:Q"))
    largest, two_four = (
        base.transform_filter(f"datum.law == '{law}'") for law in ("unstructured", "2:4")
    )
    curve = largest.mark_line(color=INK, strokeWidth=1, strokeDash=[4, 3], tooltip=None)
    ring = two_four.mark_point(size=_SIZE * 3, color=INK, strokeWidth=1, tooltip=None)
    below = largest.mark_text(align="right", baseline="top", dx=-6, dy=4, color=INK)
    right = two_four.mark_text(align="left", baseline="middle", dx=12, color=INK)
    return [
        curve.encode(**_channels(order="density:Q")),
        ring,
        below.encode(**_channels(text="text:N")),
        right.encode(**_channels(text="text:N")),
    ]


def _crossover(styles: dict[str, Style]) -> Any:
    import altair as alt

    # formats of one density stand beside one another: moved by pixels, never in the data
    aside: Any = {"xOffset": {"expr": "datum.aside"}}
    y = _relative(alt.Y, "time relative to dense (log)")
    base = _base().encode(**_channels(x=_density(), y=y))
    line = base.mark_line(strokeWidth=1.2, opacity=0.45, **_dash(), **aside)
    line = line.encode(**_channels(detail="series:N", order="density:Q", **_colour(styles)))
    span = base.mark_rule(strokeWidth=1.4, **aside)
    span = span.encode(**_channels(y="span_low:Q", y2="span_high:Q", **_colour(styles)))
    points = _points(base, styles, _tips(), **aside)
    names = _names_at_ends(styles)
    return alt.layer(
        _reach_axis(y=y), _reach(), _equal(), _dense_line("y"), line, span, points, *names
    )


def _sweep(styles: dict[str, Style]) -> Any:
    import altair as alt

    ticks = [4**power for power in range(12)]
    x = alt.X(
        "tokens:Q",
        title="tokens (log)",
        scale=alt.Scale(type="log", nice=False, padding=18, **_before_names()),
        axis=alt.Axis(values=ticks, labelExpr=COUNTS, labelOverlap="greedy"),
    )
    y = _relative(alt.Y, "time relative to dense (log)")
    base = _base().encode(**_channels(x=x, y=y))
    line = base.mark_line(strokeWidth=1.2, opacity=0.6, **_dash())
    line = line.encode(**_channels(detail="series:N", order="tokens:Q", **_colour(styles)))
    span = base.mark_rule(strokeWidth=1.4)
    span = span.encode(**_channels(y="span_low:Q", y2="span_high:Q", **_colour(styles)))
    points, names = _points(base, styles, _tips()), _names_at_ends(styles)
    return alt.layer(_reach_axis(y=y), _equal(), _dense_line("y"), line, span, points, *names)


def _equal() -> Any:
    """The band in which a format is as fast as dense for all that matters."""
    import altair as alt

    data = alt.InlineData(values=[{"one": 1}])
    band = alt.Chart(data).mark_rect(color=FAINT, opacity=0.22, tooltip=None)
    ends = {"y": alt.datum(1 / (1 + EQUAL)), "y2": alt.datum(1 + EQUAL)}
    return band.encode(**_channels(**ends, **_as_wide_as_lines()))


def _roofline(styles: dict[str, Style]) -> Any:
    import altair as alt

    log = alt.Scale(type="log", nice=False, padding=12)
    x = alt.X(
        "intensity:Q",
        title="executed FLOP per byte (log)",
        scale=log,
        axis=alt.Axis(values=_EVEN, format="~g", labelOverlap="greedy"),
    )
    y = alt.Y(
        "flops_per_second:Q",
        title="executed FLOP/s (log)",
        scale=log,
        axis=alt.Axis(values=_EVEN, format="~s", labelOverlap="greedy"),
    )
    base = _base(_ROOF_HEIGHT)
    unfused = base.mark_rule(strokeWidth=1, opacity=0.5, **_dash()).encode(
        **_channels(x="unfused_intensity:Q", x2="intensity:Q", y=y, **_colour(styles))
    )
    tips = _tips(
        intensity_text="FLOP per byte", rate_text="executed", efficiency_text="of its roof"
    )
    points = _points(base, styles, tips).encode(**_channels(x=x, y=y))
    return alt.layer(*_roofs(x, y), unfused, points, _names_beside(x, y))


def _roofs(x: alt.X, y: alt.Y) -> list[Any]:
    """The lines of the roofs, and what is written at the flat ones, the slope and the caches."""
    import altair as alt

    roofs = alt.Chart(alt.NamedData(name="roofs"), width="container", height=_ROOF_HEIGHT).encode(
        **_channels(x=x, y=y)
    )
    dashes = alt.Scale(
        domain=["measured", "cache", "datasheet", "formula"],
        range=[[1, 0], [1, 0], [7, 3], [2, 3]],
    )
    roof = (
        roofs.mark_line(color=INK, strokeWidth=alt.expr("datum.source == 'cache' ? 0.7 : 1.6"))
        .encode(
            **_channels(
                detail="roof:N", strokeDash=alt.StrokeDash("source:N", scale=dashes, legend=None)
            )
        )
        .transform_filter("!datum.text")
    )
    label = roofs.encode(**_channels(text="text:N"))
    flat = label.transform_filter("datum.at == 'compute' || datum.at == 'room'").mark_text(
        align="right", baseline="bottom", dy=-5, color=INK, yOffset={"expr": "-(datum.lift || 0)"}
    )
    slope = label.transform_filter("datum.at == 'measured'").mark_text(
        align="right", baseline="middle", dx=-10, dy=-5, color=INK
    )
    caches = label.transform_filter("datum.at == 'cache'").mark_text(
        align="left", baseline="middle", dx=12, dy=2, color=INK
    )
    at_ridge = "datum.at == 'ridge'"
    ridge = label.transform_filter(at_ridge)
    below = roofs.transform_filter(at_ridge).mark_rule(
        strokeWidth=1, strokeDash=[2, 3], color=FAINT, tooltip=None
    )
    named = ridge.mark_text(align="left", baseline="bottom", dx=5, color=INK)
    foot = alt.value(_ROOF_HEIGHT)
    return [
        *(roof, flat, slope, caches),
        below.encode(**_channels(y2=foot)),
        named.encode(**_channels(y=alt.value(_ROOF_HEIGHT - 4))),
    ]
