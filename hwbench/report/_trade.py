"""Accuracy against wall-clock: what is drawn and tabled of the join, and errors by themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hwbench import units
from hwbench.analysis import closed_forms
from hwbench.analysis.accuracy import Joined, Pair, join, table
from hwbench.quantities import PROJECTION_ERROR
from hwbench.report import _experiments, _whose
from hwbench.report import _words as words
from hwbench.report._answers import beats
from hwbench.report._scores import score_of
from hwbench.report._views import Figure
from hwbench.report.rows import (
    DENSE,
    Columns,
    Row,
    known,
    printable,
    relative,
    row_of,
)

_CLOSED_FORMS_NOTE = (
    "The dashed line and the ring are closed forms for large matrices of independent normal "
    "entries: the error of keeping the largest entries, wherever they are, and of 2:4."
)
_POINTS = 40


@dataclass
class Trade:
    """One group as a table: the score that is kept, the fastest that keeps it, what dense costs."""

    title: str
    group: int
    shapes: str
    dense: str
    lines: list[list[str]] = field(default_factory=list)
    score: str = "score"
    bound: str = "at most"

    @property
    def heads(self) -> tuple[str, ...]:
        """The headings of the table's columns."""
        return (f"{self.score} {self.bound}", *HEADS)


HEADS = ("fastest", "time", "of dense", "stored", "against dense")
"""The columns of the table beside the score that is kept."""


def joins(rows: Sequence[Row]) -> list[Joined]:
    """Every group of the rows of one run that has relative times, with every experiment."""
    columns = [Columns(row) for row in rows]
    return [
        found
        for found in join(columns, columns)
        if any(relative(row) is not None for row in _timed(found) if row.format != DENSE)
    ]


def _timed(found: Joined) -> list[Row]:
    return [
        row_of(each) for each in (*(p.timed for p in found.pairs), *(a.row for a in found.alone))
    ]


def placed(found: Joined) -> list[Pair]:
    """The pairs that can be drawn: those with a relative time, fastest first, dense left out."""
    return [p for p in found.pairs if known(p.relative) and p.timed["format"] != DENSE]


def trade(found: Joined) -> Trade:
    """For each score: the fastest format that keeps it, its time and memory, what dense costs."""
    rows = table(found)
    score = score_of(row_of(found.scored))
    dense = found.dense
    told = Trade(
        title=words.group_title(row_of(found.timed)),
        group=row_of(found.timed).group_number,
        shapes=_shapes(found),
        dense="Dense was not timed here."
        if dense is None
        else f"Dense takes {units.seconds(dense['time_seconds'])} and stores "
        f"{units.nbytes(dense['stored_bytes'])}.",
        score=score.measured,
        bound=score.bound,
    )
    for row in rows:
        if row["format"] in (None, DENSE):
            continue
        equal = ", ".join(map(printable, row["level"]))
        told.lines.append(
            [
                units.significant(row["bound"]),
                printable(row["format"]),
                units.seconds(row["time_seconds"]),
                units.ratio(row["relative_time"]),
                units.nbytes(row["stored_bytes"]),
                f"{row['verdict']}; not significantly slower: {equal}" if equal else row["verdict"],
            ]
        )
    return told


def _shapes(found: Joined) -> str:
    timed, scored = found.shapes
    row = row_of(found.scored)
    said = (
        f"Time measured at {printable(timed)}; {score_of(row).title} of "
        f"{words.workload(row)} at {printable(scored)}{_whose.remark(row)}."
    )
    return f"{said} {_moved(found)}".rstrip()


def _moved(found: Joined) -> str:
    """How the score of each format moves from the smallest to the largest layer that has one."""
    row = row_of(found.scored)
    if not _whose.layers(row):
        return ""
    scored = [row_of(each) for each in (*(p.scored for p in found.pairs), *found.elsewhere)]
    of: dict[tuple[int, int], dict[str, str]] = {}
    for one in sorted(scored, key=_size):
        if known(one.score) and one.score > 0:
            sides = of.setdefault((one.out_features, one.in_features), {})
            sides[one.label] = score_of(one).amount(one.score)
    if len(of) < 2:
        return ""
    (small, first), *_, (large, last) = of.items()
    moved = [f"{printable(n)} {first[n]} → {last[n]}" for n in last if n in first]
    ends = " to ".join(f"{rows}×{columns}" for rows, columns in (small, large))
    said = f"The {score_of(row).title} from layers of {ends}: {', '.join(moved)}."
    return said if moved else ""


def _size(row: Row) -> tuple[int, int]:
    return row.out_features * row.in_features, row.out_features


def pareto(found: Joined) -> Figure:
    """The score against relative time."""
    pairs = sorted(placed(found), key=lambda pair: row_of(pair.timed).number)
    front = [pair for pair in reversed(placed(found)) if pair.front]
    score = score_of(row_of(found.scored))
    faster = [pair for pair in front if pair.relative < 1]
    if faster:
        shown = [
            f"{printable(p.name)} ({units.ratio(p.relative)} of dense, "
            f"{score.title} {score.amount(p.score)})"
            for p in [faster[0], faster[-1]][: len(faster)]
        ]
        sure = sum(beats(row_of(pair.timed)) for pair in faster)
        reach = f"from {shown[0]} to {shown[1]}" if len(shown) > 1 else shown[0]
        says = (
            f"Pareto front, where faster than dense: {reach}; "
            f"{sure or 'none'} of {len(faster)} points are significantly faster."
        )
    else:
        says = f"None of the {len(front)} points on the Pareto front is faster than dense."
    alone = [(printable(row_of(a.row).label), printable(a.reason)) for a in found.alone]
    aside = [
        (printable(p.name), f"drawn; set aside to make the pair: {', '.join(p.aside)}")
        for p in pairs
        if p.aside
    ]
    return Figure(
        kind=f"pareto {score.name}",
        title=words.group_title(row_of(found.timed)),
        says=says,
        rows=[row_of(pair.timed).number for pair in pairs],
        note=_shapes(found),
        alone=alone,
        aside=aside,
        own={"error": [float(f"{pair.score:.5g}") for pair in pairs]},
        extra={
            "better": score.better,
            "group": row_of(found.timed).group_number,
            "scored": row_of(found.scored).group_number,
        },
    )


def unjoined(found: list[Joined]) -> list[str]:
    """Timed groups for which a run has scores but no pair of the same knobs."""
    return [words.group_title(row_of(j.timed)) for j in found if not placed(j)]


def errors(rows: list[Row]) -> list[Figure]:
    """The scores of every experiment against density and against stored bytes.

    What is fitted to other things, or a smaller dense model, is a series of its experiment.
    """
    figures = []
    scored = [row for row in rows if row.scored and known(row.score)]
    found = [sorted(each, key=_number) for each in _experiments.experiments(scored)]
    for have in sorted(found, key=lambda each: each[0].number):
        title, numbers = _experiments.title(have), [row.number for row in have]
        score = score_of(have[0])
        for kind, share, what in (
            ("error_density", _kept, "parameters kept"),
            ("error_bytes", _stored, "stored bytes of dense"),
        ):
            says = _best_scores(have, share, what)
            by = "parameters kept" if kind == "error_density" else "stored bytes"
            named = f"{title}: {score.title}, by {by}"
            note = _whose.noted(have[0])
            figures.append(
                Figure(f"{kind} {score.name}", named, says, numbers, note=note, own=_series(have))
            )
        if closed := _closed_forms(have):
            figures[-2].note = f"{figures[-2].note} {_CLOSED_FORMS_NOTE}"
            figures[-2].extra = {"closed": closed}
    return figures


def _series(have: list[Row]) -> dict[str, list[Any]]:
    """The columns in which the rows of an experiment are told apart; none where knobs do that."""
    if not any(map(_experiments.fitted, have)):
        return {}
    return {
        "series": [_experiments.series(row) for row in have],
        "label": [_experiments.label(row) for row in have],
    }


def _number(row: Row) -> int:
    return row.number


def _kept(row: Row) -> float:
    return row.density


def _stored(row: Row) -> float:
    return row.stored_ratio


def _best_scores(have: list[Row], share_of: Callable[[Row], float], what: str) -> str:
    """The format with the best score at about half and about a tenth of dense."""
    score = score_of(have[0])
    better = max if score.higher else min
    said = []
    for share in (0.5, 0.1):
        near = [row for row in have if known(share_of(row)) and share_of(row) <= share]
        if near:
            best = better(near, key=lambda row: row.score)
            said.append(
                f"{printable(_experiments.label(best))} ({score.amount(best.score)}) with at most "
                f"{share:g} of the {what.removesuffix(' of dense')}"
            )
    return (
        f"Best {score.title}: {', and '.join(said)}." if said else f"Every {score.title} by format."
    )


def _closed_forms(have: list[Row]) -> list[dict[str, Any]]:
    """Points of the curve of unstructured sparsity, and that of 2:4; none for other experiments.

    Each has ``density`` and ``score``, ``law`` (unstructured or 2:4), and ``text`` where its name
    is written. The curve reaches from the least density of the rows to one.
    """
    row = have[0]
    named = row.workload, row.score_name, json.loads(row.options).get("matrix")
    least = min((r.density for r in have if known(r.density)), default=0.0)
    if named != ("projection", PROJECTION_ERROR.name, "gaussian") or not 0 < least < 1:
        return []
    steps = [least ** (1 - step / _POINTS) for step in range(_POINTS + 1)]
    curve = [
        _point(density, closed_forms.unstructured(density), "unstructured") for density in steps
    ]
    curve[_POINTS // 2]["text"] = "unstructured, closed form"
    return [*curve, {**_point(0.5, closed_forms.n_of_m(2, 4), "2:4"), "text": "2:4, closed form"}]


def _point(density: float, error: float, law: str) -> dict[str, Any]:
    places = {"density": float(f"{density:.5g}"), "score": float(f"{error:.5g}")}
    return {**places, "law": law, "text": ""}
