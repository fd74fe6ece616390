"""The figures of what a format costs beside its time: energy, split by pass, compiling, packing."""

from __future__ import annotations

from typing import Any

from hwbench import units
from hwbench.join import is_scored
from hwbench.report import _words as words
from hwbench.report._rows import DENSE, Row, groups, known, printable, timed
from hwbench.report._views import Figure, titled

_READ = {
    "energy": ("energy_joules", "Energy a call", "J"),
    "compile": ("compile_seconds", "First compilation", "s"),
    "first": ("first_call_seconds", "First call", "s"),
    "pack": ("prepare_seconds", "Projecting and packing", "s"),
}


def costs(rows: list[Row]) -> list[Figure]:
    """One figure a group for each quantity that was read, and one for the passes side by side."""
    figures = _split(rows)
    for kind, (name, title, unit) in _READ.items():
        for members in groups(rows).values():
            have = [row for row in members if known(row[name])]
            if len(have) > 1:
                figures.append(
                    _read(
                        kind,
                        name,
                        f"{title}, {words.group_title(have[0], capital=False)}",
                        unit,
                        have,
                    )
                )
    return figures


def _read(kind: str, name: str, title: str, unit: str, have: list[Row]) -> Figure:
    least, most = (f(have, key=lambda row: row[name]) for f in (min, max))
    said = [f"{printable(row['label'])} ({units.si(row[name], unit)})" for row in (least, most)]
    return Figure(kind, title, f"Least: {said[0]}; most: {said[1]}.", [r["number"] for r in have])


def _split(rows: list[Row]) -> list[Figure]:
    """The passes of one layer beside one another; none is the difference of two others."""
    sets: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if timed(row) and row["direction"] and not is_scored(row):
            key = tuple(part for part in row["group"] if part != row["direction"])
            sets.setdefault(key, []).append(row)
    figures = []
    for members in sets.values():
        if len({row["direction"] for row in members}) < 2:
            continue
        title = ", ".join(words.group_parts(members[0])[1:])
        numbers = [row["number"] for row in members]
        figures.append(Figure("split", f"Passes, {title}", _shares(members), numbers))
    return figures


def _shares(members: list[Row]) -> str:
    """How much longer a step takes than a forward pass, at the least and at the most."""
    times: dict[str, dict[str, float]] = {}
    for row in members:
        times.setdefault(row["label"], {})[row["direction"]] = row["time_seconds"]
    quotients = {
        label: found["step"] / found["forward"]
        for label, found in times.items()
        if {"step", "forward"} <= set(found)
    }
    if not quotients:
        return "Each pass was timed by itself; none is the difference of two others."
    least, most = (f(quotients, key=quotients.__getitem__) for f in (min, max))
    said = (
        f"A step takes {units.ratio(quotients[least])} the time of a forward pass with "
        f"{printable(least)} at the least, {units.ratio(quotients[most])} with "
        f"{printable(most)} at the most"
    )
    if DENSE in quotients and DENSE not in (least, most):
        said += f" (dense: {units.ratio(quotients[DENSE])})"
    return f"{said}."


def memory(rows: list[Row]) -> list[Figure]:
    """Stored bytes by format, one figure a shape and dtype; saved bytes, one a group."""
    figures = []
    stored: dict[tuple[Any, ...], dict[str, Row]] = {}
    layers = [row for row in rows if not is_scored(row)]
    for row in layers or rows:
        if known(row["stored_bytes"]):
            key = (row["run"], row["out_features"], row["in_features"], row["dtype"])
            stored.setdefault(key, {}).setdefault(row["label"], row)
    for by_label in stored.values():
        members = list(by_label.values())
        title = titled(f"Stored, {words.shape(members[0])}, {members[0]['dtype']}", members[0])
        figures.append(_bytes_figure("stored", title, members, "stored_bytes"))
    for members in groups(rows).values():
        have = [row for row in members if known(row["saved_bytes"]) and timed(row)]
        if have:
            title = f"Saved for backward, {', '.join(words.group_parts(have[0])[1:])}"
            figures.append(_bytes_figure("saved", title, have, "saved_bytes"))
    return figures


def _bytes_figure(kind: str, title: str, members: list[Row], name: str) -> Figure:
    least, most = (f(members, key=lambda row: row[name]) for f in (min, max))
    dense = next((row[name] for row in members if row["format"] == DENSE), None)
    if kind == "stored":
        dense = members[0]["dense_bytes"]
    said = [
        f"{printable(row['label'])} {units.nbytes(row[name])}"
        + (f" ({units.ratio(row[name] / dense)} of dense)" if dense else "")
        for row in (least, most)
    ]
    says = f"Least: {said[0]}; most: {said[1]}."
    return Figure(kind, title, says, [row["number"] for row in members])
