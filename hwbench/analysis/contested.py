"""Which cases the answer of a run leaves open: the fastest within an error, and its equals. Pure.

For each setting, and each largest error that is asked about, the fastest is set against those that
may be as fast (``analysis.contest``). Where the two are neither told apart nor proved to be tied,
both are contested. So is the fastest where dense may be as fast, and what may be as fast as dense
where that is the fastest.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from hwbench import quantities
from hwbench.analysis.accuracy import Joined, join
from hwbench.analysis.contest import Entrant, Outcome, standings
from hwbench.analysis.frames import by_replicate, summary_rows
from hwbench.store import Run

LEVELS = (0.0, 0.05, 0.1, 0.2, 0.5)
"""The error limits of the report's questions; the last question has no limit."""

NEAR = 1.3
"""Rivals that take more than this many times the best's time are not compared with it."""

LOSSLESS = ("dense", "packed_dense")
"""Formats that compute the same as dense, except for rounding."""

_DENSE = "dense"


def contested(run: Run) -> set[str]:
    """The cases of all pairs that some answer of the run leaves undecided; dense is none of them.

    How far the machine moves between runs is left aside: no further replicate makes that less.

    Args:
        run: a run as it stands before its footer; only replicates in which the machine was quiet
            count.
    """
    rows, values = summary_rows(run), by_replicate(run)
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["case"] in values and row["format"] != _DENSE:
            groups[run.planned[row["case"]].case.among].append(row)
    losses: dict[str, list[tuple[dict[str, float], list[float]]]] = defaultdict(list)
    for joined in join(rows, rows):
        group = run.planned[joined.timed["case"]].case.among
        losses[group].append((_losses(joined), _limits(run, joined)))
    open_cases: set[str] = set()
    for group, members in groups.items():
        for limits_by, limits in losses.get(group) or [({}, [0.0])]:
            for limit in (*limits, math.inf):
                open_cases |= _undecided(
                    [row for row in members if _keeps(row, limits_by, limit)], members, values
                )
    return open_cases


def _losses(joined: Joined) -> dict[str, float]:
    """The score of each timed case, with its sign turned where higher is better."""
    sign = -1.0 if joined.better == "higher" else 1.0
    return {pair.timed["case"]: sign * float(pair.scored["score"]) for pair in joined.pairs}


def _limits(run: Run, joined: Joined) -> list[float]:
    """The loss limits of the questions that a report answers."""
    score = quantities.find(str(joined.scored["score_name"]), run.header.quantities)
    if joined.better == "higher":
        return [-level for level in score.levels]
    return list(LEVELS if score.zero else score.levels)


def _keeps(row: Mapping[str, Any], losses: Mapping[str, float], limit: float) -> bool:
    lossless = -math.inf if row["format"] in LOSSLESS else math.nan
    return limit == math.inf or losses.get(row["case"], lossless) <= limit


def _undecided(
    rows: Iterable[Mapping[str, Any]],
    members: Iterable[Mapping[str, Any]],
    values: Mapping[str, Mapping[int, float]],
) -> set[str]:
    """The fastest of ``rows`` and the rivals that may be as fast; empty where all is decided."""
    timed = [row for row in rows if row["relative_time"] > 0]
    if not timed:
        return set()
    best = min(timed, key=lambda row: float(row["relative_time"]))
    level = {row["case"] for row in timed if _level_with_dense(row)}
    if best["relative_time"] >= 1:
        return {row["case"] for row in timed if row["relative_time"] <= NEAR} & level
    near = NEAR * best["relative_time"]
    rivals = [row for row in timed if row is not best and row["relative_time"] <= near]
    entrants = {row["case"]: Entrant(row["case"], values[row["case"]]) for row in members}
    ranked = standings(
        entrants[best["case"]],
        [entrants[row["case"]] for row in rivals],
        among=len(entrants),
    )
    open_ = {each.rival for each in ranked if each.outcome is Outcome.UNDECIDED}
    return open_ | {best["case"]} if open_ or best["case"] in level else set()


def _level_with_dense(row: Mapping[str, Any]) -> bool:
    """Whether the interval of a relative time reaches that of dense."""
    return bool(row["relative_low"] <= 1 <= row["relative_high"])
