"""What keeps the most in how many bytes: the answer of a run that times nothing against dense."""

from __future__ import annotations

from dataclasses import dataclass

from hwbench import units
from hwbench.report import _experiments, _whose
from hwbench.report import _words as words
from hwbench.report._scores import score_of
from hwbench.report.rows import Row, known

_ASKED = (0.5, 0.25, 0.1, 1.0)
"""Shares of dense's bytes in the order in which they make the sentence."""
_FEWER = 0.9  # of the asked bytes: what takes fewer is told
HEADS = ("stored", "of dense’s bytes", "format")


@dataclass(frozen=True)
class Kept:
    """One experiment: a sentence, and what nothing that is smaller is better than."""

    title: str
    groups: tuple[int, ...]  # the numbers of its groups
    says: str
    score: str  # what it is of, and which way it is better
    note: str  # whose weights the scores are of
    lines: list[tuple[Row, tuple[str, ...]]]  # the smallest first


def kept(rows: list[Row]) -> list[Kept]:
    """Every experiment that has a score, in the order of the rows."""
    have = [r for r in rows if r.scored and known(r.score) and known(r.stored_ratio)]
    return [_experiment(members) for members in _experiments.experiments(have)]


def _experiment(members: list[Row]) -> Kept:
    score = score_of(members[0])
    sign = -1 if score.higher else 1
    front: list[Row] = []
    for row in sorted(members, key=lambda row: (row.stored_ratio, sign * row.score)):
        if not front or sign * row.score < sign * front[-1].score:
            front.append(row)
    return Kept(
        title=_experiments.title(members),
        groups=tuple(dict.fromkeys(row.group_number for row in members)),
        says=_says(members, front),
        score=score.axis,
        note=_whose.noted(members[0]),
        lines=[(row, _cells(row)) for row in front],
    )


def _cells(row: Row) -> tuple[str, ...]:
    share = units.percent(row.stored_ratio, 0)
    return (units.nbytes(row.stored_bytes), share, _named(row), _said(row))


def _named(row: Row) -> str:
    """The format in words, and what its projection was weighted by, or how deep its model is."""
    return ", ".join(filter(None, (words.format_name(row), _experiments.fitted(row))))


def _says(members: list[Row], front: list[Row]) -> str:
    dense = _experiments.dense(members)
    beside = f" Dense: {_said(dense)}." if dense else ""
    for share in _ASKED:
        fit = [row for row in front if row.stored_ratio <= share * 1.001 and row is not dense]
        if fit:
            best = fit[-1]
            fewer = best.stored_ratio < _FEWER * share
            own = f" (it takes {units.percent(best.stored_ratio, 0)})" if fewer else ""
            return (
                f"In {units.percent(share, 0)} of dense’s bytes, use {_named(best)}{own}: "
                f"{score_of(best).title} {_said(best)}.{beside}"
            )
    least = min(members, key=lambda row: row.stored_ratio)
    return (
        f"Nothing is smaller than dense: {_named(least)} stores the least, "
        f"{units.percent(least.stored_ratio, 0)} of its bytes.{beside}"
    )


def _said(row: Row) -> str:
    low, high = row.score_low, row.score_high
    span = f" ({units.significant(low)}–{units.significant(high)})" if known(low) else ""
    return f"{score_of(row).amount(row.score)}{span}"
