"""Relative time against density and against tokens, and who wins where."""

from __future__ import annotations

from dataclasses import dataclass, field

from hwbench import units
from hwbench.quantities import PREPARE
from hwbench.report import _words as words
from hwbench.report._answers import beats, loses
from hwbench.report._crossing import by_series, points, repaid, wins
from hwbench.report._views import Figure
from hwbench.report.rows import DENSE, Group, Row, groups, known, relative, timed


@dataclass
class Starts:
    """The table of where each format starts to win: one line a group and format."""

    lines: list[tuple[int, list[str]]] = field(default_factory=list)  # the group's number, cells
    left_out: int = 0
    packed: bool = False  # whether packing was measured at any of the shapes

    @property
    def heads(self) -> tuple[str, ...]:
        """The headings of the cells."""
        heads = ("setting", "format", "faster than dense, by density")
        return (*heads, "packing repaid after") if self.packed else heads


def starts(rows: list[Row], most: int = 120) -> Starts:
    """At which densities each format is faster than dense, and when packing it is repaid."""
    table = Starts()
    packs = {_packed(row): pack for row in rows if known(pack := row.value(PREPARE.name))}
    for members in groups(_layers(rows)).values():
        dense = next((r.time_seconds for r in members if r.format == DENSE and timed(r)), None)
        for name, series in by_series(members).items():
            winning = wins(points(series, lambda row: row.density))
            if winning is None:
                continue
            where = winning.in_words()
            if winning.all_alike:
                low, high = (units.significant(winning.measured[end]) for end in (0, -1))
                where += f" ({low}–{high})"
            pays = _repaid(series, dense, packs)
            table.packed |= pays is not None
            title = words.group_title(series[0])
            line = [title, name, where, pays or "not measured at this shape"]
            table.lines.append((series[0].group_number, line))
    table.lines = [(number, line[: len(table.heads)]) for number, line in table.lines]
    table.left_out = max(0, len(table.lines) - most)
    del table.lines[most:]
    return table


Packed = tuple[int, str, str, int, int]
"""A layer that is projected and packed: run, format, knobs, and out_features × in_features."""


def _packed(row: Row) -> Packed:
    return row.run, row.format, row.knobs, row.out_features, row.in_features


def _repaid(rows: list[Row], dense: float | None, packs: dict[Packed, float]) -> str | None:
    """After how many calls the packing of the fastest setting is repaid."""
    best = min(filter(timed, rows), key=lambda row: row.time_seconds)
    pack = packs.get(_packed(best))
    if dense is None or pack is None:
        return None
    calls = repaid(pack, dense, best.time_seconds)
    return "never" if calls is None else f"{units.significant(calls)} calls ({best.density:.3g})"


def _layers(rows: list[Row]) -> list[Row]:
    return [row for row in rows if not row.scored]


def winners(rows: list[Row]) -> list[Figure]:
    """The fastest format over shape and tokens, one figure a share, dtype and pass.

    Where one setting alone was measured at a share there is none: the table of all settings has it.
    """
    sets: dict[tuple[str, Group], list[Row]] = {}
    for row in _layers(rows):
        if row.format != DENSE and relative(row) is not None and row.tokens:
            shared = row.group.without("out_features", "in_features", "tokens")
            sets.setdefault((row.density_word, shared), []).append(row)
    common = [
        key
        for key, members in sets.items()
        if len({row.format for row in members}) > 1 and len(set(map(_cell, members))) > 1
    ]
    figures = []
    for key in common:
        members = sets[key]
        first = members[0]
        parts = [words.direction(first), first.dtype, *words.setting(first)]
        title = ", ".join([*filter(None, parts), words.share(first)])
        if words.machine(first):
            title += f", {words.machine(first)}"
        numbers = [row.number for row in members]
        figures.append(Figure("winners", title, _won(members), numbers))
    return figures


def _cell(row: Row) -> tuple[int, int, int | None]:
    return row.out_features, row.in_features, row.tokens


def _won(members: list[Row]) -> str:
    cells: dict[tuple[int, int, int | None], Row] = {}
    for row in members:
        place = _cell(row)
        if place not in cells or row.relative_time < cells[place].relative_time:
            cells[place] = row
    sure = sum(beats(row) for row in cells.values())
    best = min(cells.values(), key=lambda row: row.relative_time)
    return (
        f"The fastest format is significantly faster than dense in {sure} of {len(cells)} cells; "
        f"the best is {words.series_name(best)}, {units.ratio(best.relative_time)} of dense at "
        f"{words.shape(best)} and {words.tokens(best)}."
    )


def _by_tokens(members: list[Row]) -> str:
    """At which token counts each format is faster than dense, by its curve."""
    names_by_range: dict[str, list[str]] = {}
    for name, rows in by_series(members).items():
        winning = wins(points(rows, lambda row: row.tokens))
        if winning is not None:
            names_by_range.setdefault(winning.in_words(" tokens"), []).append(name)
    pieces = [f"{', '.join(names)} {where}" for where, names in names_by_range.items()]
    return f"Faster than dense: {'; '.join(pieces)}." if pieces else "Each format has one point."


def sweeps(rows: list[Row]) -> list[Figure]:
    """Relative time against tokens, one figure a share, shape, dtype and pass."""
    sets: dict[tuple[str, Group], list[Row]] = {}
    for row in _layers(rows):
        if row.format != DENSE and relative(row) is not None and row.tokens:
            sets.setdefault((row.density_word, row.group.without("tokens")), []).append(row)
    figures = []
    for members in sets.values():
        if len({row.tokens for row in members}) < 2:
            continue
        parts = [part for part in words.group_parts(members[0]) if "token" not in part]
        title = ", ".join([*parts, words.share(members[0])])
        says = _by_tokens(members)
        figures.append(Figure("sweep", title, says, [row.number for row in members]))
    return figures


def crossover(rows: list[Row]) -> list[Figure]:
    """Relative time against density, one figure a group with a format at several densities."""
    figures = []
    for members in groups(_layers(rows)).values():
        measured = [row for row in members if relative(row) is not None and known(row.density)]
        if any(len(_densities(series)) > 1 for series in by_series(measured).values()):
            title = words.group_title(members[0])
            numbers, own = [row.number for row in measured], {"aside": _aside(measured)}
            figures.append(Figure("crossover", title, _crossings(measured), numbers, own=own))
    return figures


def _densities(rows: list[Row]) -> set[float]:
    return {row.density for row in rows}


def _crossings(rows: list[Row]) -> str:
    if not any(known(row.relative_low) for row in rows):
        why = words.no_interval(rows)
        return f"{why[0].upper()}{why[1:]}: points without one decide nothing."
    series = by_series(rows)
    winning = [f"{name} {at}" for name, members in series.items() if (at := _winning(members))]
    losing = [name for name, members in series.items() if all(loses(row) for row in members)]
    sentence = (
        f"Faster than dense: {', '.join(winning)}"
        if winning
        else "No format is significantly faster than dense"
    )
    if losing:
        sentence += f"; slower at every density: {', '.join(losing)}"
    return f"{sentence}."


def _winning(members: list[Row]) -> str:
    """At which densities a format beats dense: ``from 0.495 down``, or ``at 0.25``."""
    densities = sorted((row.density for row in members if beats(row)), reverse=True)
    below = [row.density for row in members if densities and row.density <= densities[0]]
    if len(densities) > 1 and len(densities) == len(below):
        return f"from {units.significant(densities[0])} down"
    return f"at {', '.join(map(units.significant, densities))}" if densities else ""


def _aside(rows: list[Row], step: float = 3.0) -> list[float]:
    """Pixels by which each row's point moves, so that formats of one density stay apart."""
    names = [name for name in dict.fromkeys(row.series for row in rows) if name != DENSE]
    middle = (len(names) - 1) / 2
    places = {name: round((number - middle) * step, 1) for number, name in enumerate(names)}
    return [places.get(row.series, 0.0) for row in rows]
