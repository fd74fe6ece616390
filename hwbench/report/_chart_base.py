"""What all charts share: sizes, colours, the look of points, and their tooltips."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hwbench.report._palette import Style

if TYPE_CHECKING:
    import altair as alt

INK, FAINT, GRID = "var(--ink)", "var(--faint)", "var(--grid)"
HEIGHT, SIZE = 300, 70

_RATIOS = [v * 10.0**power for power in range(-4, 5) for v in (1, 2, 5)]
_TIMES = "format(datum.value, '~g') + '×'"

_TIPS = {
    "label": "format",
    "group_title": "group",
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
    """What a point says, by the fields that the page's script makes."""
    import altair as alt

    return [alt.Tooltip(f"{name}:N", title=title) for name, title in {**_TIPS, **more}.items()]


def look(styles: dict[str, Style], *, filled: bool = True) -> dict[str, Any]:
    """Colour and shape of points, by format."""
    import altair as alt

    names = list(styles)
    colours = alt.Scale(domain=names, range=[styles[name].css for name in names])
    shapes = alt.Scale(domain=names, range=[styles[name].path for name in names])
    colour = alt.Fill if filled else alt.Color
    return {
        "fill" if filled else "color": colour("format:N", scale=colours, legend=None),
        "shape": alt.Shape("format:N", scale=shapes, legend=None),
    }


def colour(styles: dict[str, Style]) -> dict[str, Any]:
    """The colour of lines, by format."""
    return {"color": look(styles, filled=False)["color"]}


def points(
    base: alt.Chart, styles: dict[str, Style], tips: list[alt.Tooltip], **mark: Any
) -> alt.Chart:
    """Points with a thin edge in the colour of the page, so that neighbours stay apart."""
    drawn = base.mark_point(
        filled=True, size=SIZE, opacity=1, stroke="var(--card)", strokeWidth=0.8, **mark
    )
    return drawn.encode(**look(styles), tooltip=tips)
