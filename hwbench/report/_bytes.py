"""What keeps the most in how many bytes: the answer of a run that times nothing against dense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hwbench import units
from hwbench.report import _experiments, _whose
from hwbench.report import _words as words
from hwbench.report._scores import score_of
from hwbench.report.rows import Row, is_whole_dense, known, printable

_SHARES = (0.5, 0.25, 0.1, 1.0)
"""Shares of dense's bytes in the order in which they make the sentence."""
_FEWER = 0.9  # of the asked bytes: a sentence says how many a format takes that needs fewer
HEADS = ("stored", "of dense’s bytes", "format")


@dataclass(frozen=True)
class ByteAnswer:
    """What to use in how many bytes, by one experiment: a sentence, and the front of its rows."""

    title: str
    groups: tuple[int, ...]  # the numbers of its groups
    says: str
    score: str  # what it is of, and which way it is better
    note: str  # whose weights the scores are of
    lines: list[
        tuple[Row, tuple[str, ...]]
    ]  # rows that no smaller one is as good as, the smallest first


def answers(rows: list[Row]) -> list[ByteAnswer]:
    """Every experiment that has a score, in the order of the rows."""
    rows_with_bytes = [r for r in rows if r.scored and known(r.score) and known(r.stored_ratio)]
    return [_experiment(members) for members in _experiments.experiments(rows_with_bytes)]


def lines(answers: Sequence[ByteAnswer]) -> list[str]:
    """The answers for a terminal, and whose weights the scores are of."""
    told = [f"{printable(each.title)}: {each.says}" for each in answers]
    return [*told, *dict.fromkeys(each.note for each in answers if each.note)]


def scored(rows: Sequence[Row]) -> bool:
    """Whether anything has a score."""
    return any(row.scored and known(row.score) for row in rows)


def nothing(rows: Sequence[Row]) -> str:
    """Why a run has no answer at all."""
    if scored(rows):
        return "Dense is not among what was scored, so no share of its bytes is known."
    if any(row.status == "ok" for row in rows):
        return "The run times no format against dense and scores none."
    return "No case has a result that counts, so there is no answer."


def _experiment(members: list[Row]) -> ByteAnswer:
    score = score_of(members[0])
    sign = -1 if score.higher else 1
    front: list[Row] = []
    for row in sorted(members, key=lambda row: (row.stored_ratio, sign * row.score)):
        if not front or sign * row.score < sign * front[-1].score:
            front.append(row)
    return ByteAnswer(
        title=_experiments.title(members),
        groups=tuple(dict.fromkeys(row.group_number for row in members)),
        says=_sentence(members, front),
        score=score.axis,
        note=_whose.noted(members[0]),
        lines=[(row, _cells(row)) for row in front],
    )


def _cells(row: Row) -> tuple[str, ...]:
    share = units.percent(row.stored_ratio, 0)
    return (units.nbytes(row.stored_bytes), share, _format_words(row), _score_words(row))


def _format_words(row: Row) -> str:
    """The format in words, and what its projection was weighted by, or how deep its model is."""
    return ", ".join(filter(None, (words.format_name(row), _experiments.fitted(row))))


def _sentence(members: list[Row], front: list[Row]) -> str:
    dense = _experiments.dense(members)
    dense_sentence = f" Dense: {_score_words(dense)}." if dense else ""
    for share in _SHARES:
        fit = [
            row for row in front if row.stored_ratio <= share * 1.001 and not is_whole_dense(row)
        ]
        if fit:
            best = fit[-1]
            fewer = best.stored_ratio < _FEWER * share
            name = _format_words(best)
            actual = f" (it takes {units.percent(best.stored_ratio, 0)})" if fewer else ""
            return (
                f"In {units.percent(share, 0)} of dense’s bytes, use {name}{actual}: "
                f"{score_of(best).title} {_score_words(best)}.{dense_sentence}"
            )
    least = min(members, key=lambda row: row.stored_ratio)
    return (
        f"Nothing is smaller than dense: {_format_words(least)} stores the least, "
        f"{units.percent(least.stored_ratio, 0)} of its bytes.{dense_sentence}"
    )


def _score_words(row: Row) -> str:
    low, high = row.score_low, row.score_high
    span = f" ({units.significant(low)}–{units.significant(high)})" if known(low) else ""
    return f"{score_of(row).amount(row.score)}{span}"
