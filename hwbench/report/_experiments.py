"""Scored rows as experiments: rows whose projections were fitted to different things are one.

A weighting says what a projection is fitted to, and a depth how many blocks a smaller dense model
keeps. Cases that differ in these alone answer one question, so they share an answer and a chart.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from msgspec.structs import replace

from hwbench import units
from hwbench.report import _words as words
from hwbench.report.rows import DENSE, Row, groups, is_whole_dense, printable, word

_WEIGHTING = "weighting"  # the option of an experiment that says what a projection is fitted to
_DEPTH = "depth"  # … and the share of the blocks that a smaller dense model keeps
_UNWEIGHTED = "none"


def experiments(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows by experiment: those without the whole dense join those that have it.

    Only what differs in weighting and depth alone is joined.
    """
    by_group = list(groups(rows).values())
    with_dense: dict[tuple[object, ...], list[Row]] = {}
    for members in by_group:
        if dense(members):
            with_dense.setdefault(_key(members[0]), []).extend(members)
    without_dense = []
    for members in by_group:
        if dense(members):
            continue
        if _key(members[0]) in with_dense:
            with_dense[_key(members[0])] += members
        else:
            without_dense.append(members)
    return [*with_dense.values(), *without_dense]


def _key(row: Row) -> tuple[object, ...]:
    return (row.group._replace(options=_shared(row)), row.score_name)


def _shared(row: Row) -> str:
    """The options that all rows of an experiment have alike."""
    apart = (_WEIGHTING, _DEPTH)
    options = {name: value for name, value in _options(row).items() if name not in apart}
    return json.dumps(options, sort_keys=True)


def _options(row: Row) -> dict[str, Any]:
    return dict(json.loads(row.options or "{}"))


def dense(members: Iterable[Row]) -> Row | None:
    """The whole dense of an experiment."""
    return next(filter(is_whole_dense, members), None)


def title(members: list[Row]) -> str:
    """The title of the group; without weighting and depth where several stand together."""
    row = members[0]
    if len({each.options for each in members}) > 1:
        row = replace(row, options=_shared(row))
    return words.group_title(row)


def fitted(row: Row) -> str:
    """The weighting of a row's projection, or the depth of its model, in words; else nothing."""
    if not row.scored:
        return ""
    if is_whole_dense(row):
        return ""
    if row.format == DENSE:
        return f"{units.percent(_options(row)[_DEPTH], 0)} of its blocks"
    weighting = _options(row).get(_WEIGHTING, _UNWEIGHTED)
    return "" if weighting == _UNWEIGHTED else f"weighted by {printable(word(weighting))}"


def series(row: Row) -> str:
    """The series of a row in a chart of its experiment: its knobs, and what it was fitted to."""
    return ", ".join(filter(None, (row.series, fitted(row))))


def label(row: Row) -> str:
    """The case in words, and what it was fitted to."""
    return ", ".join(filter(None, (row.label, fitted(row))))
