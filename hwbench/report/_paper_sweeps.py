"""Figures of a sweep: relative time against density or tokens, and time against tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hwbench import units
from hwbench.errors import UsageError
from hwbench.report import _words as words
from hwbench.report._paper import (
    INK,
    Looks,
    Panel,
    Sheet,
    grouped,
    lasting,
    lines,
    log,
    paneled,
    times,
    titled,
)
from hwbench.report.rows import DENSE, Group, Row, known, relative, timed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def crossover(rows: list[Row], sheet: Sheet) -> Figure:
    """Relative time against density; against tokens where a group was asked for one share alone."""
    measured = [row for row in rows if relative(row) is not None and known(row.density)]
    looks, panels = Looks(rows), list[Panel]()
    by_group = {
        group: members
        for group, members in grouped(measured).items()
        if any(row.format != DENSE for row in members)
    }
    singles: dict[Group, list[Group]] = {}
    for group, members in by_group.items():
        if len(_shares(members)) > 1:
            panels.append(Panel(titled(members[0]), members, _against_density(members, looks)))
        else:
            singles.setdefault(group.without("tokens"), []).append(group)
    for sweep, single_groups in singles.items():
        pooled = [
            row
            for group, members in by_group.items()
            if group.without("tokens") == sweep
            for row in members
        ]
        shares = set().union(*(_shares(by_group[group]) for group in single_groups))
        chosen = [row for row in pooled if not _has_share(row) or row.density_word in shares]
        members = _swept(chosen)
        if len({row.tokens for row in members}) > 1:
            panels.append(Panel(_at(members), members, _against_tokens(members, looks)))
            continue
        for group in single_groups:
            members = by_group[group]
            panels.append(Panel(titled(members[0]), members, _against_density(members, looks)))
    if not panels:
        raise UsageError("The run has no case with a time relative to dense, so nothing can cross.")
    return paneled(panels, looks, sheet)


def _has_share(row: Row) -> bool:
    return known(row.asked_density) or known(row.asked_stored)


def _shares(rows: list[Row]) -> set[str]:
    """The shares that were asked for, in words."""
    return {row.density_word for row in rows if _has_share(row)}


def _swept(rows: list[Row]) -> list[Row]:
    """The rows whose series has several token counts."""
    counts: dict[tuple[int, str], set[int | None]] = {}
    for row in rows:
        counts.setdefault((row.run, row.series), set()).add(row.tokens)
    return [row for row in rows if len(counts[row.run, row.series]) > 1]


def _at(rows: list[Row]) -> str:
    """The title of a sweep over tokens: its group, and the share that formats were asked for."""
    shares = [words.share(row) for row in rows if _has_share(row)]
    tokens = words.tokens(rows[0]) or ""
    return titled(rows[0], tokens, also=" and ".join(dict.fromkeys(shares)))


def _ratios(row: Row) -> tuple[float, float]:
    return row.relative_low, row.relative_high


def _against_density(rows: list[Row], looks: Looks) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        ax.axhline(1, color=INK, lw=0.8, ls=(0, (4, 3)), zorder=0)
        lines(ax, rows, (lambda row: row.density, relative, _ratios), looks)
        log(ax, "x")
        log(ax, "y", times)
        ax.set(xlabel="density (parameters kept)", ylabel="time relative to dense")

    return draw


def _against_tokens(rows: list[Row], looks: Looks) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        ax.axhline(1, color=INK, lw=0.8, ls=(0, (4, 3)), zorder=0)
        formats = [row for row in rows if row.format != DENSE]
        lines(ax, formats, (lambda row: row.tokens, relative, _ratios), looks, guided=True)
        _tokens(ax, rows)
        log(ax, "y", times)
        ax.set(ylabel="time relative to dense")

    return draw


def _tokens(ax: Axes, rows: list[Row]) -> None:
    """A log axis of tokens, labelled at the counts that were measured where these are few."""
    from matplotlib.ticker import FixedLocator

    log(ax, "x")
    counts = sorted({row.tokens for row in rows if row.tokens})
    if len(counts) <= 8:
        ax.xaxis.set_major_locator(FixedLocator(counts))
        ax.xaxis.set_minor_locator(FixedLocator([]))
    ax.set(xlabel="tokens")


def scaling(rows: list[Row], sheet: Sheet) -> Figure:
    """Time against tokens, at the largest density and share of bytes that were asked for."""
    drawn = [row for row in rows if timed(row) and row.tokens and not row.scored]
    for column in ("asked_density", "asked_stored"):
        shares = [share for row in drawn if known(share := getattr(row, column))]
        if shares:
            most = max(shares)
            drawn = [
                r for r in drawn if not known(getattr(r, column)) or getattr(r, column) == most
            ]
    sets: dict[Group, list[Row]] = {}
    for row in drawn:
        sets.setdefault(row.group.without("run", "tokens"), []).append(row)
    looks = Looks(rows)
    panels = [
        Panel(_at(members), members, _sweep(members, looks))
        for members in sets.values()
        if len({row.tokens for row in members}) > 1
    ]
    if not panels:
        raise UsageError("Scaling needs at least two token counts of one shape; the run has none.")
    without = {
        row.format: f"{row.format} at density {units.significant(row.density)}"
        for panel in panels
        for row in panel.rows
        if not _has_share(row) and known(row.density)
    }
    note = " and ".join(without[name] for name in sorted(without))
    return paneled(panels, looks, sheet, [note] if note and any(map(_has_share, drawn)) else [])


def _sweep(members: list[Row], looks: Looks) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        ends = lambda row: (row.time_low, row.time_high)  # noqa: E731
        readings = lambda row: row.tokens, lambda row: row.time_seconds, ends
        lines(ax, members, readings, looks, guided=True)
        _tokens(ax, members)
        log(ax, "y", lasting)
        ax.set(ylabel="time of a call")

    return draw
