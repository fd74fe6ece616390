"""What all charts share: sizes, colours, the look of points, and their tooltips."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hwbench.report._palette import VARIANTS, Style, Variant

if TYPE_CHECKING:
    import altair as alt

INK, FAINT, GRID = "var(--ink)", "var(--faint)", "var(--grid)"
HEIGHT, SIZE = 300, 70

_RATIOS = [v * 10.0**power for power in range(-4, 5) for v in (1, 2, 5)]
_TIMES = "format(datum.value, '~g') + '×'"

COUNTS = (
    "datum.value >= 1000 && datum.value % 1000 === 0"
    " ? format(datum.value / 1000, ',') + 'k' : format(datum.value, ',')"
)
"""The words of an axis of counts: ``1,024``, and ``4k`` for what is round."""

VALUES = "replace({}, regexp(' [a-z_]+=', 'g'), ' ')"
"""A name with the values of its knobs alone: ``low_rank 0.5 onednn``; its tooltip has all of it."""

_TIPS = {
    "label": "format",
    "group_title": "setting",
    "density_text": "density",
    "time_text": "time",
    "relative_text": "relative to dense",
    "flags": "flags",
}


def base(height: Any = HEIGHT) -> alt.Chart:
    """A chart of the figure's rows, as wide as its place."""
    import altair as alt

    return alt.Chart(alt.NamedData(name="table"), height=height, width="container")


def times(channel: type[alt.X] | type[alt.Y], title: str, field: str = "relative") -> Any:
    """A logarithmic axis of times over other times."""
    import altair as alt

    return channel(
        f"{field}:Q",
        title=title,
        scale=alt.Scale(type="log", nice=False, padding=14),
        axis=alt.Axis(values=_RATIOS, labelExpr=_TIMES, labelOverlap="greedy"),
    )


def tips(**more: str) -> list[alt.Tooltip]:
    """The tooltip of a point, by the fields that the page's script makes."""
    import altair as alt

    return [alt.Tooltip(f"{name}:N", title=title) for name, title in {**_TIPS, **more}.items()]


def channels(**given: Any) -> dict[str, Any]:
    """The channels of an encoding, each of its class.

    Altair itself finds the class of a string, a value or a datum by comparing schemas, which takes
    20 ms each time.
    """
    import altair as alt

    found = {}
    for name, channel in given.items():
        kind = name[0].upper() + name[1:]
        if isinstance(channel, str):
            found[name] = getattr(alt, kind)(channel)
        elif isinstance(channel, dict) and len(channel) == 1:
            ((key, value),) = channel.items()
            found[name] = getattr(alt, f"{kind}{key.capitalize()}")(value)
        else:
            found[name] = channel
    return found


def _of_variant(value: Callable[[Variant], Any]) -> Any:
    """A value that differs between the variants of a format, by the ``variant`` of the datum."""
    import altair as alt

    return alt.expr(f"{json.dumps(list(map(value, VARIANTS)))}[datum.variant]")


def dash() -> dict[str, Any]:
    """The dash of a line that belongs to one series of a format."""
    return {"strokeDash": _of_variant(lambda each: each.dash)}


def colour(styles: dict[str, Style]) -> dict[str, Any]:
    """The colour of lines, by format."""
    import altair as alt

    return {"color": alt.Color("format:N", **_scaled(styles, lambda each: each.css))}


def _scaled(styles: dict[str, Style], value: Callable[[Style], str]) -> dict[str, Any]:
    """A scale of formats, without a legend."""
    import altair as alt

    names = list(styles)
    scale = alt.Scale(domain=names, range=[value(styles[name]) for name in names])
    return {"scale": scale, "legend": None}


def reach(**axis: Any) -> alt.Chart:
    """An invisible layer that makes an axis as wide as the figures beside this one need it."""
    import altair as alt

    empty = alt.Chart(alt.NamedData(name="reach"))
    return empty.mark_point(opacity=0, tooltip=None).encode(**channels(**axis))


def names_at_ends(styles: dict[str, Style]) -> list[alt.Chart]:
    """The mark and the name of each line, right of its last point; the page's script places them.

    ``before_names`` keeps the axis out of the ``room`` that they take, which is in pixels.
    """
    import altair as alt

    data = alt.Chart(alt.NamedData(name="ends"))
    mark_place: Any = {"x": alt.expr("width - room + 12"), "y": alt.expr("datum.y")}
    label_place: Any = {"x": alt.expr("width - room + 21"), "y": alt.expr("datum.y")}
    text = data.mark_text(
        align="left", baseline="middle", color=INK, limit=alt.expr("room - 21"), **label_place
    )
    tips = [alt.Tooltip("series:N", title="format")]
    return [
        points(data, styles, tips, **mark_place),
        text.encode(**channels(text="text:N", detail="series:N", tooltip=tips)),
    ]


def before_names() -> dict[str, Any]:
    """The range of an axis that leaves room for the names at the ends of its lines."""
    import altair as alt

    return {"rangeMax": alt.expr("width - room")}


def points(
    base: alt.Chart, styles: dict[str, Style], tips: list[alt.Tooltip], **mark: Any
) -> alt.Chart:
    """Points by format; hollow, tinted or with an edge where a format has several series.

    A filled point has a thin edge in the colour of the page, so that neighbours stay apart.
    """
    import altair as alt

    card = {"test": _is_variant(lambda each: each.edge == "none"), "value": "var(--card)"}
    ink = {"test": _is_variant(lambda each: each.edge == "ink"), "value": INK}
    hollow = {"test": _is_variant(lambda each: each.hollow), "value": "var(--card)"}
    coloured = _scaled(styles, lambda each: each.css)
    marks = base.mark_point(
        filled=True,
        size=SIZE,
        opacity=1,
        fillOpacity=_of_variant(lambda each: each.opacity or 1),
        strokeOpacity=1,
        strokeWidth=_of_variant(lambda each: 0.8 if each.edge == "none" else 1.4),
        strokeDash=_of_variant(lambda each: [1.5, 1.5] if each.dotted else [1, 0]),
        **mark,
    )
    return marks.encode(
        **channels(
            shape=alt.Shape("format:N", **_scaled(styles, lambda each: each.path)),
            fill=alt.Fill("format:N", condition=hollow, **coloured),
            stroke=alt.Stroke("format:N", condition=[card, ink], **coloured),
            tooltip=tips,
        )
    )


def _is_variant(what: Callable[[Variant], bool]) -> str:
    """A test of the ``variant`` of the datum."""
    numbers = [number for number, each in enumerate(VARIANTS) if what(each)]
    return f"indexof({json.dumps(numbers)}, datum.variant) >= 0"
