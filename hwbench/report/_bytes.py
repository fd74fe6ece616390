"""What keeps the most in how many bytes: the answer of a run that times nothing against dense."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from hwbench import units
from hwbench.report import _whose
from hwbench.report import _words as words
from hwbench.report._scores import score_of
from hwbench.report.decision import named
from hwbench.report.rows import DENSE, Row, groups, is_whole_dense, known, printable, word

_ASKED = (0.5, 0.25, 0.1, 1.0)
"""Shares of dense's bytes in the order in which they make the sentence."""
_FEWER = 0.9  # of the asked bytes: what takes fewer is told
_WEIGHTING = "weighting"  # the option of an experiment that says what a projection is fitted to
_DEPTH = "depth"  # … and the share of the blocks that a smaller dense model keeps
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
    return [_experiment(members) for members in _merged(list(groups(have).values()))]


def _merged(experiments: list[list[Row]]) -> list[list[Row]]:
    """Those without the whole dense join the one that has it, but for weighting and depth."""
    found = {_key(members[0]): list(members) for members in experiments if _dense(members)}
    others = []
    for members in experiments:
        if _dense(members):
            continue
        if _key(members[0]) in found:
            found[_key(members[0])] += members
        else:
            others.append(members)
    return [*found.values(), *others]


def _key(row: Row) -> tuple[object, ...]:
    return (row.group._replace(options=_shared(row)), row.score_name)


def _shared(row: Row) -> str:
    """The options that all rows of an experiment have alike."""
    apart = (_WEIGHTING, _DEPTH)
    options = {name: value for name, value in _options(row).items() if name not in apart}
    return json.dumps(options, sort_keys=True)


def _options(row: Row) -> dict[str, Any]:
    return dict(json.loads(row.options or "{}"))


def _dense(members: list[Row]) -> Row | None:
    return next(filter(is_whole_dense, members), None)


def _experiment(members: list[Row]) -> Kept:
    score = score_of(members[0])
    sign = -1 if score.higher else 1
    front: list[Row] = []
    for row in sorted(members, key=lambda row: (row.stored_ratio, sign * row.score)):
        if not front or sign * row.score < sign * front[-1].score:
            front.append(row)
    return Kept(
        title=_title(members),
        groups=tuple(dict.fromkeys(row.group_number for row in members)),
        says=_says(members, front),
        score=score.axis,
        note=_whose.noted(members[0]),
        lines=[(row, _cells(row)) for row in front],
    )


def _cells(row: Row) -> tuple[str, ...]:
    share = units.percent(row.stored_ratio, 0)
    return (units.nbytes(row.stored_bytes), share, _named(row), _said(row))


def _title(members: list[Row]) -> str:
    """The title of the group; without weighting and depth where several stand together."""
    row = members[0]
    if len({each.options for each in members}) > 1:
        row = replace(row, options=_shared(row))
    return words.group_title(row)


def _named(row: Row) -> str:
    """The format in words, and what its projection was weighted by, or how deep its model is."""
    weighting = _options(row).get(_WEIGHTING, "none")
    if row.format == DENSE and not is_whole_dense(row):
        return f"{named(row)}, {units.percent(_options(row)[_DEPTH], 0)} of its blocks"
    return named(row) + (
        "" if weighting == "none" else f", weighted by {printable(word(weighting))}"
    )


def _says(members: list[Row], front: list[Row]) -> str:
    dense = _dense(members)
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
    return f"{score_of(row).said(row.score)}{span}"
