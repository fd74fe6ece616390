"""The figures of what a format costs beside its time: energy, split by pass, compiling, packing."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hwbench import units
from hwbench.quantities import SAVED_BYTES, Quantity
from hwbench.report import _words as words
from hwbench.report._views import Figure, titled
from hwbench.report.rows import DENSE, Group, Row, groups, known, printable, timed


def costs(rows: list[Row], quantities: Iterable[Quantity]) -> list[Figure]:
    """One figure a group for each quantity that was read, and one for the passes side by side."""
    figures = _split(rows)
    for quantity in quantities:
        for members in groups(rows).values():
            measured = [row for row in members if known(row.value(quantity.name))]
            if len(measured) > 1:
                figures.append(_read(quantity, measured))
    return figures


def chart_kind(quantity: Quantity) -> str:
    """The name of the chart that draws a quantity."""
    return f"reading {quantity.name}"


def _read(quantity: Quantity, rows: list[Row]) -> Figure:
    heading = printable(quantity.heading)
    title = f"{heading[:1].upper()}{heading[1:]}, {words.group_title(rows[0], capital=False)}"
    ends = [end_of(rows, key=lambda row: row.value(quantity.name)) for end_of in (min, max)]
    least, most = [
        f"{printable(row.label)} ({words.amount(row.value(quantity.name), quantity)})"
        for row in ends
    ]
    names = ("Least", "most") if quantity.better == "lower" else ("Lowest", "highest")
    says = f"{names[0]}: {least}; {names[1]}: {most}."
    return Figure(chart_kind(quantity), title, says, [row.number for row in rows])


def _split(rows: list[Row]) -> list[Figure]:
    """The passes of one layer beside one another; none is the difference of two others."""
    sets: dict[Group, list[Row]] = {}
    for row in rows:
        if timed(row) and row.direction and not row.scored:
            sets.setdefault(row.group.without("direction"), []).append(row)
    figures = []
    for members in sets.values():
        if len({row.direction for row in members}) < 2:
            continue
        title = ", ".join(words.group_parts(members[0])[1:])
        numbers = [row.number for row in members]
        figures.append(Figure("split", f"Passes, {title}", _shares(members), numbers))
    return figures


def _shares(members: list[Row]) -> str:
    """How much longer a step takes than a forward pass, at the least and at the most."""
    times: dict[str, dict[str, float]] = {}
    for row in members:
        times.setdefault(row.label, {})[str(row.direction)] = row.time_seconds
    quotients = {
        label: by_direction["step"] / by_direction["forward"]
        for label, by_direction in times.items()
        if {"step", "forward"} <= set(by_direction)
    }
    if not quotients:
        return "Each pass was timed by itself; none is the difference of two others."
    least, most = (f(quotients, key=quotients.__getitem__) for f in (min, max))
    sentence = (
        f"A step takes {units.ratio(quotients[least])} the time of a forward pass with "
        f"{printable(least)} at the least, {units.ratio(quotients[most])} with "
        f"{printable(most)} at the most"
    )
    if DENSE in quotients and DENSE not in (least, most):
        sentence += f" (dense: {units.ratio(quotients[DENSE])})"
    return f"{sentence}."


def memory(rows: list[Row]) -> list[Figure]:
    """Stored bytes by format, one figure a shape and dtype; saved bytes, one a group."""
    figures = []
    stored: dict[tuple[int, int, int, str], dict[str, Row]] = {}
    layers = [row for row in rows if not row.scored]
    for row in layers or rows:
        if known(row.stored_bytes):
            key = (row.run, row.out_features, row.in_features, row.dtype)
            stored.setdefault(key, {}).setdefault(row.label, row)
    for by_label in stored.values():
        members = list(by_label.values())
        title = titled(f"Stored, {words.shape(members[0])}, {members[0].dtype}", members[0])
        figures.append(_bytes_figure("stored", title, members, lambda row: row.stored_bytes))
    for members in groups(rows).values():
        measured = [row for row in members if known(_saved(row)) and timed(row)]
        if measured:
            title = f"Saved for backward, {', '.join(words.group_parts(measured[0])[1:])}"
            figures.append(_bytes_figure("saved", title, measured, _saved))
    return figures


def _saved(row: Row) -> float:
    return row.value(SAVED_BYTES.name)


def _bytes_figure(
    kind: str, title: str, members: list[Row], size: Callable[[Row], float]
) -> Figure:
    least, most = (f(members, key=size) for f in (min, max))
    dense = next((size(row) for row in members if row.format == DENSE), None)
    if kind == "stored":
        dense = members[0].dense_bytes
    ends = [
        f"{printable(row.label)} {units.nbytes(size(row))}"
        + (f" ({units.ratio(size(row) / dense)} of dense)" if dense else "")
        for row in (least, most)
    ]
    says = f"Least: {ends[0]}; most: {ends[1]}."
    if len(members) > 1 and size(least) == size(most):
        says = f"The same in all {len(members)} cases: {units.nbytes(size(least))}."
    return Figure(kind, title, says, [row.number for row in members])
