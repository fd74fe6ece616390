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
    """One group as a table: each score, the fastest format that reaches it, what dense costs."""

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
"""The columns of the table beside the score."""


def joins(rows: Sequence[Row]) -> list[Joined]:
    """Every group of the rows of one run that has relative times, with every experiment."""
    columns = [Columns(row) for row in rows]
    return [
        joined
        for joined in join(columns, columns)
        if any(relative(row) is not None for row in _timed(joined) if row.format != DENSE)
    ]


def _timed(joined: Joined) -> list[Row]:
    return [
        row_of(columns)
        for columns in (*(p.timed for p in joined.pairs), *(a.row for a in joined.alone))
    ]


def drawable(joined: Joined) -> list[Pair]:
    """The pairs that can be drawn: those with a relative time, fastest first, dense left out."""
    return [p for p in joined.pairs if known(p.relative) and p.timed["format"] != DENSE]


def trade(joined: Joined) -> Trade:
    """For each score: the fastest format that reaches it, its time and memory, what dense costs."""
    rows = table(joined)
    score = score_of(row_of(joined.scored))
    dense = joined.dense
    result = Trade(
        title=words.group_title(row_of(joined.timed)),
        group=row_of(joined.timed).group_number,
        shapes=_shapes(joined),
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
        result.lines.append(
            [
                units.significant(row["bound"]),
                printable(row["format"]),
                units.seconds(row["time_seconds"]),
                units.ratio(row["relative_time"]),
                units.nbytes(row["stored_bytes"]),
                f"{row['verdict']}; not significantly slower: {equal}" if equal else row["verdict"],
            ]
        )
    return result


def _shapes(joined: Joined) -> str:
    timed, scored = joined.shapes
    row = row_of(joined.scored)
    sentence = (
        f"Time measured at {printable(timed)}; {score_of(row).title} of "
        f"{words.workload(row)} at {printable(scored)}{_whose.remark(row)}."
    )
    return f"{sentence} {_moved(joined)}".rstrip()


def _moved(joined: Joined) -> str:
    """How the score of each format moves from the smallest to the largest layer that has one."""
    row = row_of(joined.scored)
    if not _whose.layers(row):
        return ""
    scored = [row_of(each) for each in (*(p.scored for p in joined.pairs), *joined.elsewhere)]
    by_shape: dict[tuple[int, int], dict[str, str]] = {}
    for layer in sorted(scored, key=_size):
        if known(layer.score) and layer.score > 0:
            sides = by_shape.setdefault((layer.out_features, layer.in_features), {})
            sides[layer.label] = score_of(layer).amount(layer.score)
    if len(by_shape) < 2:
        return ""
    (small, first), *_, (large, last) = by_shape.items()
    moved = [f"{printable(n)} {first[n]} → {last[n]}" for n in last if n in first]
    ends = " to ".join(f"{rows}×{columns}" for rows, columns in (small, large))
    sentence = f"The {score_of(row).title} from layers of {ends}: {', '.join(moved)}."
    return sentence if moved else ""


def _size(row: Row) -> tuple[int, int]:
    return row.out_features * row.in_features, row.out_features


def pareto(joined: Joined) -> Figure:
    """The score against relative time."""
    pairs = sorted(drawable(joined), key=lambda pair: row_of(pair.timed).number)
    front = [pair for pair in reversed(drawable(joined)) if pair.front]
    score = score_of(row_of(joined.scored))
    faster = [pair for pair in front if pair.relative < 1]
    if faster:
        ends = [
            f"{printable(p.name)} ({units.ratio(p.relative)} of dense, "
            f"{score.title} {score.amount(p.score)})"
            for p in [faster[0], faster[-1]][: len(faster)]
        ]
        sure = sum(beats(row_of(pair.timed)) for pair in faster)
        reach = f"from {ends[0]} to {ends[1]}" if len(ends) > 1 else ends[0]
        says = (
            f"Pareto front, where faster than dense: {reach}; "
            f"{sure or 'none'} of {len(faster)} points are significantly faster."
        )
    else:
        says = f"None of the {len(front)} points on the Pareto front is faster than dense."
    alone = [(printable(row_of(a.row).label), printable(a.reason)) for a in joined.alone]
    aside = [
        (printable(p.name), f"drawn; set aside to make the pair: {', '.join(p.aside)}")
        for p in pairs
        if p.aside
    ]
    return Figure(
        kind=f"pareto {score.name}",
        title=words.group_title(row_of(joined.timed)),
        says=says,
        rows=[row_of(pair.timed).number for pair in pairs],
        note=_shapes(joined),
        alone=alone,
        aside=aside,
        own={"error": [float(f"{pair.score:.5g}") for pair in pairs]},
        extra={
            "better": score.better,
            "group": row_of(joined.timed).group_number,
            "scored": row_of(joined.scored).group_number,
        },
    )


def unjoined(joins: list[Joined]) -> list[str]:
    """Timed groups for which a run has scores but no pair of the same knobs."""
    return [words.group_title(row_of(joined.timed)) for joined in joins if not drawable(joined)]


def errors(rows: list[Row]) -> list[Figure]:
    """The scores of every experiment against density and against stored bytes.

    What is fitted to other things, or a smaller dense model, is a series of its experiment.
    """
    figures = []
    scored = [row for row in rows if row.scored and known(row.score)]
    experiments = [sorted(each, key=_number) for each in _experiments.experiments(scored)]
    for members in sorted(experiments, key=lambda each: each[0].number):
        title, numbers = _experiments.title(members), [row.number for row in members]
        score = score_of(members[0])
        for kind, share_of, whole in (
            ("error_density", _density_of, "parameters kept"),
            ("error_bytes", _stored_ratio_of, "stored bytes of dense"),
        ):
            says = _best_scores(members, share_of, whole)
            by = "parameters kept" if kind == "error_density" else "stored bytes"
            heading = f"{title}: {score.title}, by {by}"
            note = _whose.noted(members[0])
            figures.append(
                Figure(
                    f"{kind} {score.name}", heading, says, numbers, note=note, own=_series(members)
                )
            )
        if closed := _closed_forms(members):
            figures[-2].note = f"{figures[-2].note} {_CLOSED_FORMS_NOTE}"
            figures[-2].extra = {"closed": closed}
    return figures


def _series(rows: list[Row]) -> dict[str, list[Any]]:
    """The columns that tell the rows of an experiment apart; none where their knobs do."""
    if not any(map(_experiments.fitted, rows)):
        return {}
    return {
        "series": [_experiments.series(row) for row in rows],
        "label": [_experiments.label(row) for row in rows],
    }


def _number(row: Row) -> int:
    return row.number


def _density_of(row: Row) -> float:
    return row.density


def _stored_ratio_of(row: Row) -> float:
    return row.stored_ratio


def _best_scores(rows: list[Row], share_of: Callable[[Row], float], whole: str) -> str:
    """The format with the best score at about half and about a tenth of dense."""
    score = score_of(rows[0])
    better = max if score.higher else min
    parts = []
    for share in (0.5, 0.1):
        near = [row for row in rows if known(share_of(row)) and share_of(row) <= share]
        if near:
            best = better(near, key=lambda row: row.score)
            parts.append(
                f"{printable(_experiments.label(best))} ({score.amount(best.score)}) with at most "
                f"{share:g} of the {whole.removesuffix(' of dense')}"
            )
    if not parts:
        return f"Every {score.title} by format."
    return f"Best {score.title}: {', and '.join(parts)}."


def _closed_forms(rows: list[Row]) -> list[dict[str, Any]]:
    """Points of the curve of unstructured sparsity, and that of 2:4; none for other experiments.

    Each has ``density`` and ``score``, ``law`` (unstructured or 2:4), and ``text`` where its name
    is written. The curve reaches from the least density of the rows to one.
    """
    row = rows[0]
    experiment = row.workload, row.score_name, json.loads(row.options).get("matrix")
    least = min((r.density for r in rows if known(r.density)), default=0.0)
    if experiment != ("projection", PROJECTION_ERROR.name, "gaussian") or not 0 < least < 1:
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
