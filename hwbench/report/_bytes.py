"""What keeps the most in how many bytes: the answer of a run that times nothing against dense."""

from __future__ import annotations

from dataclasses import dataclass

from hwbench import units
from hwbench.report import _whose
from hwbench.report import _words as words
from hwbench.report._scores import score_of
from hwbench.report.decision import named
from hwbench.report.rows import DENSE, Row, groups, known

_ASKED = (0.5, 0.25, 0.1, 1.0)
"""Shares of dense's bytes in the order in which they make the sentence."""
HEADS = ("stored", "of dense’s bytes", "format", "score")


@dataclass(frozen=True)
class Kept:
    """One experiment: a sentence, and what nothing that is smaller is better than."""

    title: str
    group: int  # the number of its group
    says: str
    note: str  # whose weights the scores are of
    lines: list[tuple[Row, tuple[str, ...]]]  # the smallest first


def kept(rows: list[Row]) -> list[Kept]:
    """Every experiment that has a score, in the order of the rows."""
    have = [r for r in rows if r.scored and known(r.score) and known(r.stored_ratio)]
    return [_experiment(members) for members in groups(have).values()]


def _experiment(members: list[Row]) -> Kept:
    score = score_of(members[0])
    sign = -1 if score.higher else 1
    front: list[Row] = []
    for row in sorted(members, key=lambda row: (row.stored_ratio, sign * row.score)):
        if not front or sign * row.score < sign * front[-1].score:
            front.append(row)
    return Kept(
        title=words.group_title(members[0]),
        group=members[0].group_number,
        says=_says(members, front),
        note=_whose.noted(members[0]),
        lines=[(row, _cells(row)) for row in front],
    )


def _cells(row: Row) -> tuple[str, ...]:
    share = units.percent(row.stored_ratio, 0)
    return (units.nbytes(row.stored_bytes), share, named(row), _said(row))


def _says(members: list[Row], front: list[Row]) -> str:
    dense = next((row for row in members if row.format == DENSE), None)
    beside = f" Dense: {_said(dense)}." if dense else ""
    for share in _ASKED:
        fit = [row for row in front if row.stored_ratio <= share * 1.001 and row is not dense]
        if fit:
            best = fit[-1]
            return (
                f"In {units.percent(share, 0)} of dense’s bytes, use {named(best)}: "
                f"{score_of(best).title} {_said(best)}.{beside}"
            )
    least = min(members, key=lambda row: row.stored_ratio)
    return (
        f"Nothing is smaller than dense: {named(least)} stores the least, "
        f"{units.percent(least.stored_ratio, 0)} of its bytes.{beside}"
    )


def _said(row: Row) -> str:
    low, high = row.score_low, row.score_high
    span = f" ({units.significant(low)}–{units.significant(high)})" if known(low) else ""
    return f"{score_of(row).said(row.score)}{span}"
