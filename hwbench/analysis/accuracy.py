"""Accuracy joined to wall-clock: which format is fastest here at the accuracy that is needed. Pure.

A timed row and a scored one are partners when format, knobs as written and asked density agree.
Their shapes may differ: of several scored shapes the same one is taken, else the same dtype, else
the nearest size, and every table says both; the scores of a tensor of a file are joined at its own
shape alone. ``kernel`` and ``multiple`` choose how a layer is run
and how its ranks are rounded; where no partner has the same ones, a partner without them is taken,
and the pair names what was set aside. What has no partner is listed with the reason, never dropped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from hwbench import quantities
from hwbench.quantities import PEAK_BYTES

Row = Mapping[str, Any]
"""One row of ``hwbench.summary``, with the workload's ``options``; rows of several runs may mix."""

DENSE, FILE, PACKAGED = "dense", "file", "packaged"
_TIMED = ("run", "device", "workload", "options", "out_features", "in_features", "tokens", "dtype",
          "direction", "regime", "mode")  # fmt: skip
_SCORED = ("workload", "options", "score_name", "better")
_SHAPE = ("out_features", "in_features", "dtype")
_ASIDE = ("kernel", "multiple")


@dataclass(frozen=True)
class Pair:
    """One format with its knobs: where it is timed, and where it is scored."""

    timed: Row
    scored: Row
    front: bool = False  # nothing measured is both faster and better
    aside: tuple[str, ...] = ()  # knobs that only one side has, set aside to make the pair

    @property
    def name(self) -> str:
        """The format and its knobs, as the timed side wrote them."""
        return str(self.timed["label"])

    @property
    def seconds(self) -> float:
        """Its time; ``timed`` holds the interval."""
        return float(self.timed["time_seconds"])

    @property
    def relative(self) -> float:
        """Its time over that of dense, nan where that was not measured."""
        return 1.0 if self.timed["format"] == DENSE else _number(self.timed["relative_time"])

    @property
    def score(self) -> float:
        """Its score over all seeds; ``scored`` holds the interval."""
        return float(self.scored["score"])


@dataclass(frozen=True)
class Alone:
    """A row without a partner, and why."""

    row: Row
    reason: str


@dataclass(frozen=True)
class Joined:
    """One group of timed cases with the scores of one accuracy experiment."""

    timed: Row  # a row that stands for the timed group: its shape, tokens, dtype and direction
    scored: Row  # a row that stands for the experiment: its options, shape and dtype
    better: str  # whether a lower or a higher score is better
    dense: Row | None  # dense in the same group; None where it was not timed
    pairs: list[Pair] = field(default_factory=list)  # fastest first
    alone: list[Alone] = field(default_factory=list)
    elsewhere: list[Row] = field(default_factory=list)  # the experiment at its other shapes

    @property
    def front(self) -> list[Pair]:
        """The Pareto front, from the best score (the slowest) to the fastest."""
        return [pair for pair in reversed(self.pairs) if pair.front]

    @property
    def shapes(self) -> tuple[str, str]:
        """Shape and dtype of the timed and of the scored side, as text."""
        timed, scored = (
            f"{row['out_features']}×{row['in_features']} {row['dtype']}"
            for row in (self.timed, self.scored)
        )
        return timed, scored

    @property
    def score_name(self) -> str:
        """The name of the score, such as ``projection_error``."""
        return str(self.scored.get("score_name") or "score")


@dataclass(frozen=True)
class Choice:
    """One line of the table: a limit of the score, and the fastest format that keeps it."""

    bound: float
    fastest: Pair | None  # None: nothing that was measured keeps it
    level: list[Pair] = field(default_factory=list)  # its interval of time overlaps theirs
    verdict: str = "undecided"  # against dense, by its interval: faster, slower or undecided


def join(timing: Iterable[Row], accuracy: Iterable[Row]) -> list[Joined]:
    """Every group of timed rows with every accuracy experiment.

    Args:
        timing: rows of timed cases. Those that hold a score or ask for one are left out, so that
            the rows of one run may be given on both sides.
        accuracy: rows of scored cases; likewise.
    """
    experiments: dict[Hashable, dict[Hashable, list[Row]]] = {}
    for row in accuracy:
        if is_scored(row):
            shapes = experiments.setdefault(_key(row, _SCORED[:2]), {})
            shapes.setdefault(_key(row, _SHAPE), []).append(row)
    groups: dict[Hashable, list[Row]] = {}
    for row in timing:
        if not is_scored(row):
            groups.setdefault(_key(row, _TIMED), []).append(row)
    return [
        _join(members, nearest, list(shapes.values()))
        for members in groups.values()
        for shapes in experiments.values()
        if _belong(members[0], shapes)
        for nearest in (_nearest(members[0], list(shapes.values())),)
    ]


def of_a_file(row: Row) -> bool:
    """Whether a score is that of one tensor of a file: of that layer, and of no other."""
    return bool(json.loads(row["options"] or "{}").get("matrix") == FILE)


def _belong(timed: Row, shapes: Mapping[Hashable, list[Row]]) -> bool:
    """Whether scores say something of a timed group: those of a file's tensor at its shape alone.

    Two layers of a model have two shapes, and each is the answer for itself.
    """
    scored = [members[0] for members in shapes.values()]
    sides = ("out_features", "in_features")
    return not of_a_file(scored[0]) or any(
        all(row[side] == timed[side] for side in sides) for row in scored
    )


def is_scored(row: Row) -> bool:
    """Whether a row belongs to an accuracy experiment: it has a score, or neither way nor time."""
    return _known(row["score"]) or (row["direction"] is None and not _known(row["time_seconds"]))


def best_within(
    joined: Joined, bounds: Sequence[float] | None = None, *, densest: float | None = None
) -> list[Choice]:
    """For each bound on the score, the fastest that keeps it, best score first.

    Dense is among the candidates where it was scored; where a projection error or a PSNR is asked
    for it is one that loses nothing, by definition.

    Args:
        joined: one group of timed cases with their scores.
        bounds: errors not to exceed, or scores to reach where higher is better. None: the scores
            of the Pareto front, where the answer changes.
        densest: leave out what keeps more than this share of the dense parameters.
    """
    candidates = [pair for pair in (*joined.pairs, *_exact(joined)) if _fits(pair, densest)]
    if bounds is None:
        front = [pair for pair in _front(candidates, joined.better) if pair.front]
        bounds = [pair.score for pair in front if math.isfinite(pair.score)]
    sign = _sign(joined)
    return [_choice(bound, candidates, sign) for bound in sorted(bounds, key=lambda b: sign * b)]


def table(joined: Joined, bounds: Sequence[float] | None = None) -> list[dict[str, Any]]:
    """The choices as flat rows: the format, its time and memory, and what dense costs.

    Columns: ``bound format score score_low score_high time_seconds time_low time_high
    relative_time stored_bytes peak_bytes density verdict level dense_seconds dense_stored_bytes
    dense_peak_bytes timed_shape scored_shape``. ``format`` is None where nothing keeps the bound.
    """
    dense: Row = joined.dense or {}
    timed_shape, scored_shape = joined.shapes
    rows = []
    for choice in best_within(joined, bounds):
        pair = choice.fastest
        timed: Row = pair.timed if pair else {}
        scored: Row = pair.scored if pair else {}
        rows.append(
            {
                "bound": choice.bound,
                "format": pair.name if pair else None,
                **{name: scored.get(name) for name in ("score", "score_low", "score_high")},
                **{name: timed.get(name) for name in ("time_seconds", "time_low", "time_high")},
                "relative_time": pair.relative if pair else None,
                **{name: timed.get(name) for name in ("stored_bytes", PEAK_BYTES.name, "density")},
                "verdict": choice.verdict if pair else None,
                "level": [other.name for other in choice.level],
                "dense_seconds": dense.get("time_seconds"),
                "dense_stored_bytes": dense.get("stored_bytes"),
                "dense_peak_bytes": dense.get(PEAK_BYTES.name),
                "timed_shape": timed_shape,
                "scored_shape": scored_shape,
            }
        )
    return rows


# Who belongs to whom


def _key(row: Row, names: Iterable[str]) -> Hashable:
    return tuple(row.get(name) for name in names)


def _nearest(timed: Row, shapes: list[list[Row]]) -> list[Row]:
    def distance(members: list[Row]) -> tuple[bool, bool, float]:
        row = members[0]
        sides = ("out_features", "in_features")
        return (
            any(row[side] != timed[side] for side in sides),
            row["dtype"] != timed["dtype"],
            sum(abs(math.log(row[side] / timed[side])) for side in sides),
        )

    return min(shapes, key=distance)


def _join(timed: list[Row], scored: list[Row], shapes: list[list[Row]]) -> Joined:
    named = next((row for row in scored if row.get("score_name")), scored[0])
    better = str(named.get("better") or "lower")
    exact = {(row["format"], _text(row["knobs"])): row for row in scored}
    bare = {(row["format"], _text(row["knobs"], bare=True)): row for row in reversed(scored)}
    pairs: list[Pair] = []
    alone: list[Alone] = []
    used: set[int] = set()
    for row in timed:
        partner = exact.get((row["format"], _text(row["knobs"])))
        aside: tuple[str, ...] = ()
        if partner is None:
            partner = bare.get((row["format"], _text(row["knobs"], bare=True)))
            aside = _differing(row, partner) if partner is not None else ()
        if partner is not None:
            used.add(id(partner))
        if partner is not None and _known(row["time_seconds"]) and _known(partner["score"]):
            pairs.append(Pair(row, partner, aside=aside))
        elif row["format"] != DENSE or partner is not None:
            alone.append(Alone(row, _why(row, partner)))
    alone += [
        Alone(row, "scored, but not among these timed cases")
        for row in scored
        if id(row) not in used and row["format"] != DENSE
    ]
    dense = next((r for r in timed if r["format"] == DENSE and _known(r["time_seconds"])), None)
    return Joined(
        timed=timed[0],
        scored=named,
        better=better,
        dense=dense,
        pairs=_front(pairs, better),
        alone=alone,
        elsewhere=[row for members in shapes if members is not scored for row in members],
    )


def _front(pairs: Iterable[Pair], better: str) -> list[Pair]:
    """The pairs, fastest first, with those marked that nothing both faster and better beats."""
    sign = -1.0 if better == "higher" else 1.0
    best, front = math.inf, []
    for pair in sorted(pairs, key=lambda p: (_order(p), sign * p.score)):
        front.append(
            Pair(pair.timed, pair.scored, front=sign * pair.score < best, aside=pair.aside)
        )
        best = min(best, sign * pair.score)
    return front


def _why(row: Row, partner: Row | None) -> str:
    if not _known(row["time_seconds"]):
        return f"not timed: {_reason(row)}"
    if partner is None:
        return "timed, but not scored with these knobs"
    return f"not scored: {_reason(partner)}"


def _reason(row: Row) -> str:
    status = str(row["status"]).replace("_", " ")
    return f"{status} ({row['reason']})" if row.get("reason") else status


def _knobs(row: Row) -> dict[str, Any]:
    return dict(json.loads(row["knobs"]))


def _differing(row: Row, partner: Row) -> tuple[str, ...]:
    ours, theirs = _knobs(row), _knobs(partner)
    return tuple(name for name in _ASIDE if ours.get(name) != theirs.get(name))


@lru_cache(4096)
def _text(written: str, *, bare: bool = False) -> str:
    """Knobs in one order; bare of those that are set aside where nothing else fits."""
    knobs = json.loads(written)
    stated = {name: value for name, value in knobs.items() if not (bare and name in _ASIDE)}
    return json.dumps(stated, sort_keys=True)


# Who is the fastest


def _exact(joined: Joined) -> list[Pair]:
    """Dense with nothing lost, where that has a score and dense was timed but not scored."""
    scored = any(pair.timed["format"] == DENSE for pair in joined.pairs)
    declared = joined.scored.get("score_quantity") or quantities.find(joined.score_name)
    lossless = declared.lossless
    if joined.dense is None or scored or lossless is None:
        return []
    exact = {**joined.scored, "score": lossless, "score_low": lossless, "score_high": lossless}
    return [Pair(joined.dense, exact | {"format": DENSE, "label": DENSE, "knobs": "{}"})]


def _fits(pair: Pair, densest: float | None) -> bool:
    density = _number(pair.timed.get("density"))
    return densest is None or not density > densest


def _choice(bound: float, candidates: Iterable[Pair], sign: float) -> Choice:
    accurate = sorted((p for p in candidates if sign * p.score <= sign * bound), key=_order)
    if not accurate:
        return Choice(bound, None)
    best = accurate[0]
    return Choice(bound, best, [p for p in accurate[1:] if _overlap(best, p)], _verdict(best))


def _verdict(pair: Pair) -> str:
    if pair.timed["format"] == DENSE:
        return "dense"
    low, high = (_number(pair.timed.get(f"relative_{side}")) for side in ("low", "high"))
    return "faster" if high < 1 else ("slower" if low > 1 else "undecided")


def _order(pair: Pair) -> tuple[bool, float]:
    """By relative time, which can be trusted on a busy machine; by time where there is none."""
    relative = pair.relative
    return (False, relative) if _known(relative) else (True, pair.seconds)


def _overlap(best: Pair, other: Pair) -> bool:
    name = "relative" if _known(best.relative) and _known(other.relative) else "time"
    high, low = _number(best.timed.get(f"{name}_high")), _number(other.timed.get(f"{name}_low"))
    if best.timed["format"] == DENSE and name == "relative":
        high = 1.0
    if other.timed["format"] == DENSE and name == "relative":
        low = 1.0
    return not low > high  # a value without an interval may be equal to any other


def _sign(joined: Joined) -> float:
    return -1.0 if joined.better == "higher" else 1.0


def _known(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
