"""The figure of who wins where: the table of the page, for a paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hwbench import units
from hwbench.errors import UsageError
from hwbench.report import _words as words
from hwbench.report._heat import SHADES, shade
from hwbench.report._paper import GREY, MOST_PANELS, Sheet, literal, panel_places, titled, wrapped
from hwbench.report.rows import DENSE, Group, Row, groups, relative

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {
    "f4": "#2a6fb0", "f3": "#7db4e3", "f2": "#b7d7f1", "f1": "#dfedf9", "even": "#eeeeec",
    "s1": "#fdebdd", "s2": "#f8cfad", "s3": "#eda66b", "s4": "#b45a12",
}  # fmt: skip
"""The shades of the page's table, on white paper."""
_DARK = ("f4", "s4")  # shades that need white letters
_CELL = (0.56, 0.2)  # inches
_LETTER = 0.058  # inches of a label's letter
_ENOUGH = 0.5  # of a block's columns that a row must have to join it

Cells = dict[str, dict[Group, Row]]
"""The row of each label in each group."""


def heatmap(rows: list[Row], sheet: Sheet) -> Figure:
    """Relative time of every format in every group; grey where it does not differ from dense.

    Formats that were measured in other groups than the rest stand in a block of their own.
    """
    from matplotlib.figure import Figure as NewFigure

    measured = [row for row in rows if row.format != DENSE and (relative(row) or 0) > 0]
    if not measured:
        raise UsageError("The run has no case with a time relative to dense, so nothing to map.")
    columns = _ordered({group: members[0] for group, members in groups(measured).items()})
    titles = [words.group_title(row) for row in columns.values()]
    places = panel_places(titles, sheet.panels)
    shown = [list(columns)[place] for place in places[:MOST_PANELS]]
    cells: Cells = {}
    for row in measured:
        if row.group in shown:
            cells.setdefault(row.label, {})[row.group] = row
    blocks = _blocks(cells, shown)
    heads = {group: _head(columns[group], list(columns.values())) for group in shown}
    left = _LETTER * max(map(len, cells)) + 0.15
    most = max(len(block[1]) for block in blocks)
    width = sheet.width or max(3.35, left + _CELL[0] * most + 0.2)
    deep = 0.12 * max(head.count("\n") + 1 for head in heads.values()) + 0.12
    heights = [len(labels) * _CELL[1] + deep for labels, _ in blocks]
    figure = NewFigure(figsize=(width, sum(heights) + 1.0), layout="constrained")
    axes = figure.subplots(len(blocks), 1, squeeze=False, height_ratios=heights).ravel()
    for ax, (labels, across) in zip(axes, blocks, strict=True):
        _block(ax, labels, across, cells, [heads[group] for group in across], most)
    shared = _shared_parts(list(columns.values()))
    title = sheet.title if sheet.title is not None else ", ".join(shared)
    if title:
        figure.suptitle(wrapped(title, max(24, int(13 * width))), fontsize=7.5, fontweight="bold")
    heading = "time relative to dense"
    if len(places) > len(shown):
        heading += f"; {len(shown)} of {len(places)} settings, --panel chooses others"
    used = {shade(row) for own in cells.values() for row in own.values()}
    _shades(figure, used, width, heading)
    return figure


def _ordered(columns: dict[Group, Row]) -> dict[Group, Row]:
    """The columns in the order of the suite, those of one setting by their tokens."""
    first: dict[Group, int] = {}
    for group in columns:
        first.setdefault(group.without("tokens"), len(first))
    order = sorted(columns, key=lambda group: (first[group.without("tokens")], group.tokens or 0))
    return {group: columns[group] for group in order}


def _blocks(cells: Cells, columns: Sequence[Group]) -> list[tuple[list[str], list[Group]]]:
    """Labels with the columns that they share, so that little of a block is empty."""
    blocks: list[tuple[list[str], list[Group]]] = []
    order = sorted(cells, key=lambda label: -len(cells[label]))  # stable: the suite's order
    for label in order:
        measured = cells[label]
        for labels, across in blocks:
            fits = all(group in across for group in measured)
            if fits and len(measured) >= _ENOUGH * len(across):
                labels.append(label)
                break
        else:
            blocks.append(([label], [group for group in columns if group in measured]))
    suite = list(cells)
    return [(sorted(labels, key=suite.index), across) for labels, across in blocks]


def _shared_parts(rows: Sequence[Row]) -> list[str]:
    """The parts of a title that every column has."""
    first, *other_parts = [words.group_parts(row) for row in rows]
    return [part for part in first if all(part in other for other in other_parts)]


def _head(row: Row, rows: Sequence[Row]) -> str:
    """The parts of a column's title that the others do not share, a part a line."""
    shared = _shared_parts(rows)
    parts = [part for part in words.group_parts(row) if part not in shared]
    return "\n".join(wrapped(part, 12) for part in parts) or wrapped(titled(row), 12)


def _block(
    ax: Axes, labels: list[str], across: list[Group], cells: Cells, heads: list[str], most: int
) -> None:
    """One block: a cell a measurement, a dot where nothing was measured."""
    from matplotlib.patches import Rectangle

    for y, label in enumerate(labels):
        for x, group in enumerate(across):
            row = cells[label].get(group)
            if row is None:
                ax.text(x + 0.5, y + 0.5, "·", ha="center", va="center", color=GREY, fontsize=6.5)
                continue
            name, value = shade(row), relative(row) or 0.0
            look: dict[str, Any] = {"facecolor": _COLOURS[name], "edgecolor": "white", "lw": 0.8}
            ax.add_patch(Rectangle((x, y), 1, 1, **look))
            text = units.significant(value, 3 if 0.9 < value < 1.1 else 2)
            colour = "white" if name in _DARK else "black"
            ax.text(
                x + 0.5,
                y + 0.5,
                text,
                ha="center",
                va="center_baseline",
                fontsize=6.5,
                color=colour,
            )
    ax.set(xlim=(0, most), ylim=(len(labels), 0))
    ax.set_yticks([y + 0.5 for y in range(len(labels))], [literal(label) for label in labels])
    ax.set_xticks([x + 0.5 for x in range(len(heads))], heads, fontsize=6.5)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _shades(figure: Figure, used: set[str], width: float, heading: str) -> None:
    from matplotlib.patches import Patch

    patches = [
        Patch(facecolor=_COLOURS[name], edgecolor=GREY, lw=0.3, label=label)
        for name, label in SHADES
        if name in used
    ]
    figure.legend(
        handles=patches, loc="outside lower center", ncols=max(2, int(width / 0.95)),
        frameon=False, title=heading, title_fontsize=7, handlelength=1.2,
        columnspacing=1.0,
    )  # fmt: skip
