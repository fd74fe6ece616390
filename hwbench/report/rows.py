"""The rows that every output shows: a case as a record, the group of cases that it stands in.

``report_rows`` makes the rows of a run, once; ``numbered`` gives the rows of a page their numbers.
Nothing else changes a row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Self, TypeGuard

import msgspec
from msgspec.structs import replace

from hwbench import channels, quantities
from hwbench.analysis.accuracy import is_scored
from hwbench.analysis.frames import between, by_replicate, measured, placement, roofs, summary_rows
from hwbench.analysis.noise import Variance
from hwbench.analysis.quiet import counted
from hwbench.analysis.roofline import Line, Placement, Roof, lines
from hwbench.quantities import RELATIVE, SCORE, TIME, Quantity
from hwbench.store import Run
from hwbench.suite import SHARES

DENSE = "dense"


class Group(NamedTuple):
    """The fields that cases shown side by side share; outputs use their names, never places."""

    run: int | None  # its number on the page
    workload: str | None
    options: str | None
    out_features: int | None
    in_features: int | None
    tokens: int | None
    dtype: str | None
    direction: str | None
    regime: str | None
    mode: str | None

    def without(self, *names: str) -> Self:
        """The group in which cases may also differ in these fields, which are None in it."""
        return self._replace(**dict.fromkeys(names))


class Against(msgspec.Struct, frozen=True, kw_only=True):
    """A case of a compared run against the same case of the first run."""

    base_seconds: float | None = None
    ratio: float | None = None  # of times, this run over the first
    low: float | None = None
    high: float | None = None
    roofs: float | None = None  # the quotient of the times that the roofs allow
    explained: str | None = None


class Row(msgspec.Struct, frozen=True, kw_only=True, dict=False):
    """One case of a run, as ``hwbench.summary`` has it, and what outputs need beside that.

    A number that is not known is nan, a text that is not known is None.
    """

    case: str
    format: str
    label: str
    series: str  # the format with all knobs but the asked share
    kernel: str | None
    knobs: str
    resolved: str
    workload: str
    options: str
    out_features: int
    in_features: int
    tokens: int | None
    dtype: str
    direction: str | None
    regime: str | None
    mode: str | None
    device: str
    better: str | None
    group: Group

    asked_density: float
    asked_stored: float
    density: float
    parameters: float
    stored_bytes: float
    dense_bytes: int
    flops: float
    dense_flops: float
    compulsory_bytes: float
    intermediate_bytes: float

    status: str
    reason: str | None
    flags: str  # joined by commas
    replicates: int
    slowed: int
    contract: str | None
    scored: bool  # part of an accuracy experiment
    score_name: str | None
    score_quantity: Quantity  # what declares the score

    values: Mapping[str, float]  # of the quantities, by name; nan where it was not read
    time_low: float
    time_high: float
    graph_low: float
    graph_high: float
    relative_low: float
    relative_high: float
    score_low: float
    score_high: float

    by_replicate: Mapping[int, float] = MappingProxyType({})  # relative times that count
    night: Variance = (math.nan, 0.0)  # of it between the machine's earlier runs, on logs

    roof: Roof | None  # of its dtype; None where none was measured
    roofs: Sequence[Line]  # all that are drawn
    placement: Placement | None  # where it stands; None where it was not timed

    count: int = 1  # such layers that a token passes through in the suite's model
    run: int = 0  # the number of its run on the page
    machine: str = ""  # its run's, where several are shown; else nothing
    number: int = 0  # in the order of the page
    group_number: int = 0
    best: bool = False  # the fastest of its group, faster than dense beyond its interval
    level: str = ""  # beside that one: tied with it, or undecided; else nothing
    spread: tuple[int, ...] = ()  # quantiles of samples, as ``_samples`` codes them
    replicate_codes: tuple[int, ...] = ()
    against: Against = Against()

    def value(self, quantity: str) -> float:
        """The value of a quantity by its name; nan where the run has none of it."""
        return self.values.get(quantity, math.nan)

    @property
    def time_seconds(self) -> float:
        """The time of a call."""
        return self.values[TIME.name]

    @property
    def relative_time(self) -> float:
        """The time over that of dense in the same rounds; ``relative`` knows dense itself too."""
        return self.values[RELATIVE.name]

    @property
    def score(self) -> float:
        """The score over all seeds."""
        return self.values[SCORE.name]

    @property
    def against_dense(self) -> bool:
        """Whether the table of winners holds the row: it was to be timed and is not dense."""
        return not self.scored and self.format != DENSE

    @property
    def density_word(self) -> str:
        """The asked share, ``0.5`` or ``0.5 stored``; else the format's density, or nothing.

        Rows with one word are compared with each other: those of one share of dense's bytes too,
        whatever their densities are.
        """
        if known(self.asked_stored):
            return f"{self.asked_stored:.3g}{STORED}"
        density = self.asked_density if known(self.asked_density) else self.density
        return f"{density:.3g}" if known(density) else ""

    @property
    def stored_ratio(self) -> float:
        """Stored bytes over those of the dense matrix."""
        return self.stored_bytes / self.dense_bytes if self.dense_bytes else math.nan

    @property
    def intensity(self) -> float:
        """Executed FLOP per byte."""
        return self.placement.intensity if self.placement else math.nan

    @property
    def unfused_intensity(self) -> float:
        """Executed FLOP per byte where every intermediate result passes through memory."""
        return self.placement.unfused_intensity if self.placement else math.nan

    @property
    def efficiency(self) -> float:
        """The share of what the roof allows."""
        return self.placement.efficiency if self.placement else math.nan

    @property
    def bound(self) -> str | None:
        """The roof under which the case stands."""
        return self.placement.bound if self.placement else None


STORED = " stored"
"""How a word ends that is a share of dense's bytes."""

_SHARED = tuple(name for name in Group._fields if name != "run")
_NUMBERS = (
    *("asked_density", "asked_stored", "density", "parameters", "stored_bytes", "dense_bytes"),
    *("flops", "dense_flops", "compulsory_bytes", "intermediate_bytes"),
)
_CASE = (
    *("case", "format", "label", "kernel", "knobs", "resolved", "workload", "options"),
    *("out_features", "in_features", "tokens", "dtype", "direction", "regime", "mode", "device"),
    *("better", "status", "reason", "flags", "replicates", "slowed", "contract", "score_name"),
    *("time_low", "time_high", "graph_low", "graph_high", "relative_low", "relative_high"),
    *("score_low", "score_high"),
)


def report_rows(run: Run, number: int = 0, machine: str = "") -> list[Row]:
    """One row a case, in the order of the suite.

    Args:
        run: the run.
        number: which of several runs it is.
        machine: what its rows are called beside those of other runs.
    """
    count = counted(run.header, run.planned, run.results)
    summaries = summary_rows(run, count)
    header = run.header
    roof_of = {
        dtype: (ceiling, lines(header.ceilings, header.environment, dtype, ceiling)[0])
        for dtype, ceiling in roofs(run, summaries).items()
    }
    names = [each.name for each in measured(run).values()]
    values, nights = by_replicate(run, count=count), between(run, RELATIVE.name)
    rows = []
    summary: Mapping[str, Any]
    for summary, planned in zip(summaries, run.planned.values(), strict=True):
        ceiling, roof_lines = roof_of[summary["dtype"]]
        columns = {name: summary[name] for name in _CASE}
        columns |= {name: _number(summary[name]) for name in _NUMBERS}
        rows.append(
            Row(
                **columns,
                series=_series(planned.case.format, planned.case.knobs),
                group=Group(run=number, **{name: summary[name] for name in _SHARED}),
                scored=is_scored(summary),
                score_quantity=quantities.find(
                    summary["score_name"] or SCORE.name, header.quantities
                ),
                values=MappingProxyType({name: summary[name] for name in names}),
                by_replicate=MappingProxyType(values.get(summary["case"], {})),
                night=nights.get(summary["case"], (math.nan, 0.0)),
                roof=ceiling,
                roofs=roof_lines,
                placement=placement(summary, ceiling),
                count=planned.case.count,
                run=number,
                machine=machine,
            )
        )
    return _beside_dense(rows)


def _beside_dense(rows: list[Row]) -> list[Row]:
    """The rows with dense's bytes as their own experiment counts them.

    A case that scores a whole model counts all its layers, not the one of its shape. Dense's own
    bytes are then those of the dense case of the workload; where the run has none, they are 0,
    which is unknown.
    """
    stored: dict[tuple[Any, ...], dict[float, None]] = {}
    for row in rows:
        if is_whole_dense(row) and row.scored and known(row.stored_bytes):
            stored.setdefault(_experiment(row), {})[row.stored_bytes] = None
    return [replace(row, dense_bytes=_dense_bytes(row, [*stored.get(_experiment(row), ())]))
            if row.scored else row for row in rows]  # fmt: skip


def is_whole_dense(row: Row) -> bool:
    """Whether it is dense with all of its blocks, and no smaller dense model."""
    return row.format == DENSE and float(json.loads(row.options or "{}").get("depth", 1)) == 1


def _experiment(row: Row) -> tuple[Any, ...]:
    """The fields in which scored cases agree that count the same layers."""
    return (row.workload, row.out_features, row.in_features, row.dtype)


def _dense_bytes(row: Row, stored: list[float]) -> int:
    if len(stored) == 1:
        return int(stored[0])
    several = known(row.parameters) and row.parameters > row.out_features * row.in_features
    return 0 if several else row.dense_bytes


def _number(value: Any) -> Any:
    return math.nan if value is None else value


def _series(name: str, knobs: Mapping[str, Any]) -> str:
    stated = sorted(knob for knob in knobs if knob not in SHARES)
    return " ".join([name, *(f"{knob}={word(knobs[knob])}" for knob in stated)])


def numbered(rows: Iterable[Row]) -> list[Row]:
    """The rows in the order of the page, with their numbers: a group of all runs side by side."""
    rows = list(rows)
    order: dict[Group, int] = {}
    for row in rows:
        order.setdefault(row.group.without("run"), len(order))
    rows.sort(key=lambda row: (order[row.group.without("run")], row.run))
    numbers = {group: number for number, group in enumerate(groups(rows))}
    return [
        replace(row, number=number, group_number=numbers[row.group])
        for number, row in enumerate(rows)
    ]


_FIELDS = frozenset(Row.__struct_fields__)


class Columns(Mapping[str, Any]):
    """A row by the columns of ``hwbench.summary``, as ``accuracy.join`` reads it."""

    def __init__(self, row: Row) -> None:
        self.row = row

    def __getitem__(self, column: str) -> Any:
        row = self.row
        if column in row.values:
            return row.values[column]
        if column in _FIELDS:
            return getattr(row, column)
        raise KeyError(column)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self.row.values, *Row.__struct_fields__)))

    def __len__(self) -> int:
        return len(list(iter(self)))


def row_of(columns: Mapping[str, Any]) -> Row:
    """The row whose ``Columns`` went into ``accuracy.join`` and came back."""
    assert isinstance(columns, Columns)
    return columns.row


def quantities_shown(runs: Iterable[Run], place: str) -> list[Quantity]:
    """The quantities of these runs that are shown in a place, each once, in declared order."""
    by_name = {each.name: each for run in runs for each in measured(run).values()}
    return [each for each in by_name.values() if place in each.shown]


def groups(rows: Iterable[Row]) -> dict[Group, list[Row]]:
    """Rows by group, groups and rows in the order in which they come."""
    by_group: dict[Group, list[Row]] = {}
    for row in rows:
        by_group.setdefault(row.group, []).append(row)
    return by_group


_NUMBER = (int, float)  # made once: the rows of a large run ask a million times


def known(value: object) -> TypeGuard[float]:
    """Whether a value is a number that can be shown."""
    return isinstance(value, _NUMBER) and math.isfinite(value)


def timed(row: Row) -> bool:
    """Whether a row has a time."""
    return known(row.time_seconds)


def relative(row: Row) -> float | None:
    """A row's time over that of dense: one for dense itself, None where it was not measured."""
    if row.format == DENSE and timed(row):
        return 1.0
    return float(row.relative_time) if known(row.relative_time) else None


def word(value: Any) -> str:
    """The value of a knob as it is shown."""
    return value if isinstance(value, str) else json.dumps(value)


def printable(text: object) -> str:
    """Text in one line, with everything that could steer a terminal made visible."""
    return channels.line(text)
