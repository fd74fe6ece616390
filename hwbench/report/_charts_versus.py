"""The charts of a comparison: the ratio of times, case by case in a group, and of all by format."""

from __future__ import annotations

from typing import Any

from hwbench.report._chart_base import (
    FAINT,
    INK,
    SIZE,
    VALUES,
    base,
    channels,
    colour,
    points,
    reach,
    times,
)
from hwbench.report._palette import Style

_TIPS = {
    "label": "format",
    "group_title": "setting",
    "ratio_text": "ratio",
    "base_text": "first run",
    "time_text": "this run",
    "roofs_text": "expected",
    "explained": "explained by",
}


def charts_of_ratios(styles: dict[str, Style]) -> dict[str, Any]:
    """The charts of this file, by kind."""
    return {"versus": _cases(styles), "versus_all": _formats(styles)}


def _tips() -> list[Any]:
    import altair as alt

    return [alt.Tooltip(f"{name}:N", title=title) for name, title in _TIPS.items()]


def _equal() -> Any:
    """As fast as the first run: the line at one."""
    import altair as alt

    data = alt.InlineData(values=[{"one": 1}])
    rule = alt.Chart(data).mark_rule(color=INK, strokeDash=[4, 3], strokeWidth=1)
    return rule.encode(**channels(x=alt.datum(1)))


def _axes(line: str, title: str) -> tuple[Any, Any]:
    import altair as alt

    axis = alt.Axis(labelLimit=190, labelExpr=VALUES.format("datum.label"))
    # With no field to sort by, a chart that is given other rows keeps the lines of both in place.
    sort = alt.EncodingSortField(field="place", op="min")
    y = alt.Y(f"{line}:N", title=None, sort=sort, axis=axis)
    return times(alt.X, title, "ratio"), y


def _cases(styles: dict[str, Style]) -> Any:
    """A line a case: its ratio with the interval, and a bar where the roofs put it."""
    import altair as alt

    x, y = _axes("label", "time over the first run’s (log)")
    ground = base(alt.Step(22)).encode(**channels(y=y))
    span = ground.mark_rule(strokeWidth=1.6).encode(
        **channels(x="span_low:Q", x2="span_high:Q", **colour(styles))
    )
    roofs = ground.transform_filter("isValid(datum.ratio_roofs)").mark_tick(
        color=INK, thickness=2, size=16
    )
    return alt.layer(
        reach(x=x),
        _equal(),
        span,
        roofs.encode(**channels(x="ratio_roofs:Q")),
        points(ground, styles, _tips()).encode(**channels(x=x)),
    )


def _formats(styles: dict[str, Style]) -> Any:
    """A line a format: all its cases, and a bar at their median."""
    import altair as alt

    x, y = _axes("format", "time over the first run’s (log)")
    ground = base(alt.Step(24)).encode(**channels(y=y))
    middle = ground.mark_tick(color=INK, thickness=2, size=18).encode(
        **channels(x="median(ratio):Q")
    )
    dots = points(ground, styles, _tips()).encode(**channels(x=x, size=alt.value(SIZE / 2)))
    wide = ground.mark_rule(color=FAINT, strokeWidth=1).encode(
        **channels(x="min(ratio):Q", x2="max(ratio):Q")
    )
    return alt.layer(reach(x=x), _equal(), wide, dots, middle)
