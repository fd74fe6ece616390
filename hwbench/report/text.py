"""The terminal's table: rich renderables for people, plain rows for ``--json``.

Where the terminal is too narrow, columns leave in the order of ``DROPPED_FIRST``; the format with
its knobs, the density, the relative time (or the time) and the status always stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from hwbench import quantities, units
from hwbench.analysis import blocks
from hwbench.analysis.contest import Outcome
from hwbench.analysis.frames import placement, summary_rows
from hwbench.analysis.quiet import slowed
from hwbench.analysis.roofline import Placement, roof
from hwbench.quantities import (
    ENERGY,
    GRAPH,
    NUMERICAL_ERROR,
    SAVED_BYTES,
    TERMINAL,
    Quantity,
    built_in,
)
from hwbench.report import _bytes, _clock, _facts, _heat, _totals, _whose, decision
from hwbench.report import _words as words
from hwbench.report._scores import score_of
from hwbench.report.rows import (
    DENSE,
    Row,
    groups,
    known,
    numbered,
    printable,
    quantities_shown,
    report_rows,
    timed,
)
from hwbench.store import Run

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

DROPPED_FIRST = (
    *(NUMERICAL_ERROR.name, ENERGY.name, SAVED_BYTES.name),
    *("efficiency", "rate", GRAPH.name, "stored", "score", "time"),
)
"""Columns in the order in which a narrow terminal loses them, after those of other packages."""

_LISTED = 8  # cases named for each reason
_GAP = 2  # columns between cells: one of padding, one that the box draws


@dataclass(frozen=True)
class _Column:
    name: str
    title: str
    cell: Callable[[Row], str]
    left: bool = False
    foreign: bool = False  # of another package


def table(run: Run, width: int = 80, sort: str = "time") -> list[RenderableType]:
    """The run as renderables that fit ``width`` columns: head, a table a group, the answer.

    Args:
        run: the run.
        width: columns of the terminal; the same columns leave every table where it is narrow.
        sort: ``time``, the fastest of a group first, or ``suite``, as the suite has them.
    """
    from rich.text import Text

    rows, readings = _heat.marked(numbered(report_rows(run))), quantities_shown([run], TERMINAL)
    parts: list[RenderableType] = [Text(line) for line in _head(run, rows)]
    names, hidden = _fitting(rows, readings, width)
    for members in groups(rows).values():
        ordered = sorted(members, key=_speed) if sort == "time" else members
        parts += [Text(), Text(words.group_title(members[0]), style="bold")]
        parts.append(_group_table(ordered, names, readings))
    if hidden:
        parts.append(Text(f"Too narrow for {', '.join(hidden)}; --wide has them.", style="dim"))
    for total in _totals.totals(rows):
        parts += _summed(total)
    parts += _failures(rows)
    return [*parts, *_foot(run, rows), *_answer(rows)]


def _answer(rows: list[Row]) -> list[RenderableType]:
    """The answer in a few lines; nothing where nothing was timed against dense, or scored."""
    from rich.text import Text

    lines = decision.terminal_lines(decision.settings(rows))
    head = "What to use, by the largest error that you accept"
    if not lines:
        lines = _bytes.lines(_bytes.answers(rows))
        head = "What keeps the most, by the bytes that you have"
    if not lines and _bytes.scored(rows):
        return [Text(), Text(_bytes.nothing(rows))]
    return [Text(), Text(head, style="bold"), *map(Text, lines)] if lines else []


def _speed(row: Row) -> tuple[bool, float]:
    """The fastest first; what has no time last, in the order of the suite."""
    return (not timed(row), row.time_seconds if timed(row) else 0.0)


def rows_json(run: Run) -> list[dict[str, Any]]:
    """One object a case for ``--json``: the summary with its roofline; what is unknown is null."""
    rows = summary_rows(run)
    roofs = {dtype: roof(run.header.ceilings, dtype) for dtype in {row["dtype"] for row in rows}}
    return [_plain(row, placement(row, roofs[row["dtype"]])) for row in rows]


def _plain(summary: Mapping[str, Any], place: Placement | None) -> dict[str, Any]:
    """A row that JSON can hold: no NaN, the roofline as fields."""
    plain = {name: value for name, value in summary.items() if name != "label"}
    for name, value in plain.items():
        if isinstance(value, float) and not known(value):
            plain[name] = None
    plain["roofline"] = msgspec.to_builtins(place) if place else None
    return plain


def cells(run: Run, rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """The headings of a group's table, those that hold anything, and the cells of its rows."""
    columns = _used(rows, quantities_shown([run], TERMINAL))
    return [each.title for each in columns], [[c.cell(row) for c in columns] for row in rows]


def _head(run: Run, rows: list[Row]) -> list[str]:
    header = run.header
    name = printable(header.machine)
    slowdown = slowed(header, run.planned, run.results)
    lines = [
        *([str(slowdown)] if slowdown else []),
        f"{printable(header.suite)} on {name}",
        f"run {printable(header.run)}: {_facts.counts(run)}",
    ]
    if left_out := header.arguments.get("scores_left_out"):
        lines.append(f"{left_out} scored cases were left out (--no-scores): there is no accuracy.")
    if note := header.environment.state.get("allocator"):
        lines.append(printable(note))
    if note := header.environment.state.get("git"):
        lines.append(f"git did not tell the revision whole: {printable(note)}.")
    if not rows:
        lines.append("The run holds no cases: nothing was measured.")
    elif not run.complete:
        missing = sum(row.status == "missing" for row in rows)
        what = f"{units.count(missing, 'case')} {'has' if missing == 1 else 'have'} no result yet"
        rest = what if missing else _facts.UNREPEATED
        how = f"; go on with --resume {printable(run.path)}" if header.resumable else "."
        lines.append(f"The run is not finished: {rest}{how}")
    return lines


def _group_table(rows: list[Row], names: set[str], readings: list[Quantity]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    columns = [column for column in _used(rows, readings) if column.name in names]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0))
    for column in columns:
        table.add_column(
            column.title,
            justify="left" if column.left else "right",
            overflow="fold" if column.left else "ellipsis",
            no_wrap=not column.left,
        )
    for row in rows:
        table.add_row(*(Text(column.cell(row)) for column in columns), style=_style(row))
    return table


def _summed(total: _totals.Totals) -> list[RenderableType]:
    """All linear layers of a model together, in each format."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0))
    for head in _totals.HEADS:
        left = head == _totals.HEADS[0]
        table.add_column(head, justify="left" if left else "right", no_wrap=not left)
    for line in total.cells():
        table.add_row(*(Text(cell) for cell in line))
    parts: list[RenderableType] = [Text(), Text(total.title, style="bold"), table]
    if total.left_out:
        left_out = f"Not in it, because dense has no time of it here: {', '.join(total.left_out)}."
        parts.append(Text(left_out, style="dim"))
    return parts


def _style(row: Row) -> str:
    """Green where a format is faster than dense beyond its interval; grey without a number."""
    if row.status != "ok":
        return "red" if row.status in ("wrong", "crashed", "timed_out") else "dim"
    if row.format == DENSE:
        return "bold"
    return "green" if known(row.relative_high) and row.relative_high < 1 else ""


def _used(rows: list[Row], readings: list[Quantity]) -> list[_Column]:
    """The columns that hold anything in this group."""
    always = ("label", "status")
    return [
        c
        for c in _columns(rows, readings)
        if c.name in always or any(_filled(c, row) for row in rows)
    ]


def _filled(column: _Column, row: Row) -> bool:
    return column.cell(row) not in ("", "–")


def _fitting(rows: list[Row], readings: list[Quantity], width: int) -> tuple[set[str], list[str]]:
    """The names of the columns that every table may show, and the titles of those that leave."""
    names, hidden = {"label", "status"}, dict[str, None]()
    sets = [(_used(members, readings), members) for members in groups(rows).values()]
    common = {c.name for used, members in sets for c in used} if sets else set()
    for used, members in sets:
        fitting = {column.name for column in _fit(used, members, width)}
        common &= fitting | (common - {column.name for column in used})
    for used, _ in sets:
        names |= {column.name for column in used if column.name in common}
        hidden |= dict.fromkeys(column.title for column in used if column.name not in common)
    return names, list(hidden)


def _fit(columns: list[_Column], rows: list[Row], width: int) -> list[_Column]:
    """Drop columns, the least important first, until the natural width fits."""
    fitting = list(columns)
    foreign = [c.name for c in columns if c.foreign]
    for name in (*reversed(foreign), *DROPPED_FIRST):
        if _natural(fitting, rows) <= width:
            break
        fewer = [column for column in fitting if column.name != name]
        if name != "time" or any(column.name == "relative" for column in fewer):
            fitting = fewer
    return fitting


def _natural(columns: list[_Column], rows: list[Row]) -> int:
    from rich.cells import cell_len

    widths = [max(cell_len(c.title), *(cell_len(c.cell(row)) for row in rows)) for c in columns]
    return sum(widths) + _GAP * len(columns) - 1


def _columns(rows: list[Row], readings: list[Quantity]) -> list[_Column]:
    score = score_of(next((row for row in rows if row.score_name), rows[0])).measured
    rate = lambda row: units.flops_per_second(_rate(row))  # noqa: E731
    contested = any(row.level == Outcome.UNDECIDED for row in rows)
    return [
        _Column("label", "format", lambda row: printable(row.series), left=True),
        _Column("density", "density", _density),
        _Column("time", "time", lambda row: units.seconds(row.time_seconds)),
        _Column("relative", "relative", _relative),
        _Column("rate", "executed", rate),
        _Column("efficiency", "of roof", _efficiency),
        _Column("stored", "stored", lambda row: units.nbytes(row.stored_bytes)),
        *(_reading(quantity) for quantity in readings),
        _Column("score", score, _score),
        _Column("status", "status", lambda row: _status(row, contested), left=True),
    ]


def _reading(quantity: Quantity) -> _Column:
    """The column of what a meter read."""
    title, foreign = printable(quantity.short), not built_in(quantity.name)
    cell = lambda row: words.amount(row.value(quantity.name), quantity)  # noqa: E731
    return _Column(quantity.name, title, cell, foreign=foreign)


def _rate(row: Row) -> float | None:
    return row.flops / row.time_seconds if timed(row) and row.flops > 0 else None


def _efficiency(row: Row) -> str:
    place = row.placement
    return units.percent(place.efficiency, 0) if place else "–"


def _relative(row: Row) -> str:
    if row.format == DENSE:
        return "1" if timed(row) else "–"
    return words.interval(row.relative_time, row.relative_low, row.relative_high)


_RATIO = (
    quantities.PERPLEXITY_RATIO,
    quantities.PERPLEXITY_RATIO_LOW,
    quantities.PERPLEXITY_RATIO_HIGH,
)


def _score(row: Row) -> str:
    """The score; of several layers the median, and their range.

    Beside a perplexity stands how many times the original's it is, with its interval; of a model
    that has collapsed only that.
    """
    text = _number(row.score)
    ratio, low, high = (row.value(each.name) for each in _RATIO)
    if known(ratio) and blocks.collapsed(ratio):
        return f"{text}, collapsed"
    if known(low) and known(high):
        return f"{text}, {_number(ratio)}× ({_number(low)}–{_number(high)})"
    if not (_whose.layers(row) and known(row.score_low) and row.score_high > 0):
        return text
    return f"{text} ({_number(row.score_low)}–{_number(row.score_high)})"


def _density(row: Row) -> str:
    """The density; in brackets what was asked for where the format cannot reach it."""
    shares = [share for share in (row.asked_density, row.asked_stored) if known(share)]
    return _number(row.density) if known(row.density) or not shares else f"({shares[0]:g})"


def _status(row: Row, contested: bool) -> str:
    """How a case ended, and whether it is the fastest of its group, or level with that one.

    In a contested group a rival may be as fast, so nothing is called the fastest.
    """
    fastest = "shortest time" if contested else "fastest"
    stands = fastest if row.best else row.level
    return f"{words.status(row)}, {stands}" if stands else words.status(row)


def _number(value: Any, digits: int = 3) -> str:
    return units.significant(float(value), digits) if known(value) else "–"


def _failures(rows: list[Row]) -> list[RenderableType]:
    """Every case that is not ok, by reason, so that nothing is hidden by a missing number."""
    from rich.text import Text

    failed: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.status != "ok":
            reason = printable(row.reason or "no reason given")
            if row.status == "missing":
                reason = "the run has no result of it"
            failed.setdefault((row.status, reason), []).append(row)
    if not failed:
        return []
    parts: list[RenderableType] = [Text(), Text("Not measured, or not to be trusted", style="bold")]
    for (status, reason), members in failed.items():
        count = units.count(len(members), "case")
        parts.append(Text(f"{words.STATUSES.get(status, status)}: {reason} ({count})"))
        parts += [Text(f"  {printable(row.case)}") for row in members[:_LISTED]]
        if len(members) > _LISTED:
            parts.append(Text(f"  … and {len(members) - _LISTED} more; --json has them all"))
    return parts


def _raised(rows: list[Row]) -> list[str]:
    """The notes on roofs that a case exceeds, each once."""
    notes = dict.fromkeys(words.raised(row.roof) for row in rows if row.roof)
    return [note for note in notes if note]


def _foot(run: Run, rows: list[Row]) -> list[RenderableType]:
    """The meaning of the columns and the flags, in as few words as possible."""
    from rich.text import Text

    whose = [Text(line, style="dim") for line in _whose.sentences(rows)]
    if not any(timed(row) for row in rows):
        return [Text(), *whose] if whose else []
    intervals = any(known(row.relative_low) for row in rows)
    spread = "± is half its 95 % interval over replicates"
    interval = spread if intervals else words.no_interval(rows)
    lines = [f"relative: time over dense in the same rounds; {interval}."]
    if most := max(row.slowed for row in rows):
        ending = "" if most == 1 else "s"
        lines.append(
            f"Up to {most} replicate{ending} of a case dropped: dense ran slower than usual "
            "there, so the machine was busy."
        )
    lines += _raised(rows)
    flags = {flag for row in rows for flag in row.flags.split(",")}
    meanings = ((name, meaning) for name, meaning in words.FLAGS.items() if name in flags)
    lines += [f"{words.flag(name)}: {meaning}." for name, meaning in meanings]
    cautions = [_clock.launches(run, rows), _clock.starved(rows)]
    cautions += [_clock.causes(run), _clock.clocks(run)]
    lines += [line for line in _clock.contracts(rows) if line != _clock.CONTRACTS["wall"]]
    lines += filter(None, cautions)
    return [Text(), *(Text(line, style="dim") for line in lines), *whose]
