"""Figures of a sweep: relative time against density or tokens, and time against tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

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
    found = [row for row in rows if relative(row) is not None and known(row.density)]
    looks, panels = Looks(rows), list[Panel]()
    by_group = {
        group: have
        for group, have in grouped(found).items()
        if any(row.format != DENSE for row in have)
    }
    few: dict[Group, list[Group]] = {}
    for group, have in by_group.items():
        if len(_shares(have)) > 1:
            panels.append(Panel(titled(have[0]), have, _against_density(have, looks)))
        else:
            few.setdefault(group.without("tokens"), []).append(group)
    for sweep, singles in few.items():
        same = [have for group, have in by_group.items() if group.without("tokens") == sweep]
        share = set().union(*(_shares(by_group[group]) for group in singles))
        have = _swept(
            [row for own in same for row in own if not _asked(row) or row.density_word in share]
        )
        if len({row.tokens for row in have}) > 1:
            panels.append(Panel(_at(have), have, _against_tokens(have, looks)))
            continue
        for own in (by_group[group] for group in singles):
            panels.append(Panel(titled(own[0]), own, _against_density(own, looks)))
    if not panels:
        raise UsageError("The run has no case with a time relative to dense, so nothing can cross.")
    return paneled(panels, looks, sheet)


def _asked(row: Row) -> bool:
    return known(row.asked_density) or known(row.asked_stored)


def _shares(rows: list[Row]) -> set[str]:
    """The shares that were asked for, in words; a format that has none of them asks for none."""
    return {row.density_word for row in rows if _asked(row)}


def _swept(rows: list[Row]) -> list[Row]:
    """The rows whose series has several token counts."""
    counts: dict[tuple[int, str], set[int | None]] = {}
    for row in rows:
        counts.setdefault((row.run, row.series), set()).add(row.tokens)
    return [row for row in rows if len(counts[row.run, row.series]) > 1]


def _at(rows: list[Row]) -> str:
    """The title of a sweep over tokens: its group, and the share that formats were asked for."""
    shares = [words.share(row) for row in rows if _asked(row)]
    tokens = words.tokens(rows[0]) or ""
    return titled(rows[0], tokens, also=" and ".join(dict.fromkeys(shares)))


def _ratios(row: Row) -> tuple[float, float]:
    return row.relative_low, row.relative_high


def _against_density(have: list[Row], looks: Looks) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        ax.axhline(1, color=INK, lw=0.8, ls=(0, (4, 3)), zorder=0)
        lines(ax, have, (lambda row: row.density, relative, _ratios), looks)
        log(ax, "x")
        log(ax, "y", times)
        ax.set(xlabel="density (parameters kept)", ylabel="time relative to dense")

    return draw


def _against_tokens(have: list[Row], looks: Looks) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        ax.axhline(1, color=INK, lw=0.8, ls=(0, (4, 3)), zorder=0)
        others = [row for row in have if row.format != DENSE]
        lines(ax, others, (lambda row: row.tokens, relative, _ratios), looks, guided=True)
        _tokens(ax, have)
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
    kept = [row for row in rows if timed(row) and row.tokens and not row.scored]
    for asked in ("asked_density", "asked_stored"):
        shares = [share for row in kept if known(share := getattr(row, asked))]
        if shares:
            most = max(shares)
            kept = [r for r in kept if not known(getattr(r, asked)) or getattr(r, asked) == most]
    sets: dict[Group, list[Row]] = {}
    for row in kept:
        sets.setdefault(row.group.without("run", "tokens"), []).append(row)
    looks = Looks(rows)
    panels = [
        Panel(_at(members), members, _sweep(members, looks))
        for members in sets.values()
        if len({row.tokens for row in members}) > 1
    ]
    if not panels:
        raise UsageError("Scaling needs at least two token counts of one shape; the run has none.")
    without = {row.format for panel in panels for row in panel.rows if not _asked(row)}
    note = f"{' and '.join(sorted(without))} at density 1" if without else ""
    return paneled(panels, looks, sheet, [note] if note and any(map(_asked, kept)) else [])


def _sweep(members: list[Row], looks: Looks) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        ends = lambda row: (row.time_low, row.time_high)  # noqa: E731
        readings = lambda row: row.tokens, lambda row: row.time_seconds, ends
        lines(ax, members, readings, looks, guided=True)
        _tokens(ax, members)
        log(ax, "y", lasting)
        ax.set(ylabel="time of a call")

    return draw
