"""All linear layers of a model together, where the suite says how many a token passes through.

For so many tokens at once, the time and the bytes of each shape count as often as it stands in the
model. A format stands in for the layers that were measured in it; the others stay dense. The best
mix takes the fastest of each shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hwbench import units
from hwbench.report import _words as words
from hwbench.report.rows import DENSE, Group, Row, known, printable, timed

MIX = "the fastest of each shape"
HEADS = ("format", "layers in it", "time of all", "a token", "relative", "stored")


@dataclass(frozen=True)
class Total:
    """All linear layers in one format, where they can be."""

    label: str
    layers: int  # in the format; the others are dense
    seconds: float
    stored_bytes: float
    relative: float  # to all of them dense


@dataclass(frozen=True)
class Totals:
    """The cost of one pass through all linear layers with so many tokens at once."""

    title: str
    layers: int
    tokens: int
    lines: list[Total]
    left_out: list[str]  # shapes that were not timed dense with so many tokens

    def cells(self) -> list[list[str]]:
        """The lines as texts, under ``HEADS``."""
        return [
            [
                printable(each.label),
                f"{each.layers} of {self.layers}",
                units.seconds(each.seconds),
                units.seconds(each.seconds / self.tokens),
                units.significant(each.relative),
                units.nbytes(each.stored_bytes),
            ]
            for each in self.lines
        ]


def totals(rows: Iterable[Row]) -> list[Totals]:
    """Every sum over the shapes of a model; none where no suite gave a ``count``."""
    layers = [row for row in rows if row.workload == "linear" and row.tokens is not None]
    runs = {row.run for row in layers if row.count > 1}
    settings: dict[Group, list[Row]] = {}
    for row in layers:
        if row.run in runs:
            shared = row.group.without("out_features", "in_features")
            settings.setdefault(shared, []).append(row)
    shapes = {run: {_shape(row) for row in layers if row.run == run} for run in runs}
    sums = (_total(members, shapes[members[0].run]) for members in settings.values())
    return [each for each in sums if each is not None]


def _shape(row: Row) -> tuple[int, int]:
    return row.out_features, row.in_features


def _total(rows: Sequence[Row], all_shapes: set[tuple[int, int]]) -> Totals | None:
    """The sums of one number of tokens; None where dense was measured of no shape."""
    shapes: dict[tuple[int, int], dict[str, Row]] = {}
    for row in rows:
        if timed(row) and known(row.stored_bytes):
            shapes.setdefault(_shape(row), {})[row.label] = row
    shapes = {shape: by_label for shape, by_label in shapes.items() if DENSE in by_label}
    if not shapes:
        return None
    dense = _sum(DENSE, [by_label[DENSE] for by_label in shapes.values()], None)
    labels = dict.fromkeys(
        label for by_label in shapes.values() for label in by_label if label != DENSE
    )
    lines = [dense]
    lines += [
        _sum(label, [by_label.get(label, by_label[DENSE]) for by_label in shapes.values()], dense)
        for label in labels
    ]
    fastest = [
        min(by_label.values(), key=lambda row: row.time_seconds) for by_label in shapes.values()
    ]
    lines.append(_sum(MIX, fastest, dense))
    first = rows[0]
    parts = [part for part in words.group_parts(first) if part != words.shape(first)]
    title = f"All linear layers of the model, {', '.join(parts)}"
    absent = sorted(all_shapes - set(shapes))
    return Totals(
        title=title[:1].upper() + title[1:],
        layers=sum(by_label[DENSE].count for by_label in shapes.values()),
        tokens=first.tokens or 1,
        lines=lines,
        left_out=[f"{rows_}×{columns}" for rows_, columns in absent],
    )


def _sum(label: str, rows: Sequence[Row], dense: Total | None) -> Total:
    seconds = math.fsum(row.count * row.time_seconds for row in rows)
    layers = [row for row in rows if (row.format == DENSE) == (label == DENSE)]
    return Total(
        label=label,
        layers=sum(row.count for row in layers),
        seconds=seconds,
        stored_bytes=math.fsum(row.count * row.stored_bytes for row in rows),
        relative=1.0 if dense is None else seconds / dense.seconds,
    )
