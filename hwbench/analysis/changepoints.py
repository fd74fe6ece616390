"""A case over many runs, and where its level changed. Pure: values in, change points out.

The search is penalised least squares on logs (PELT, Killick 2012,
doi:10.1080/01621459.2012.737745, in ruptures), after single spikes were taken out by a running
median of three. What it finds is kept only if it lies outside of what so many series show by
chance and above a floor; otherwise the two parts are one. A level holds for ``FEWEST`` runs, and
all of them where it has no more than ``_SHORT``, or it is none: what happened in the last night
alone is for ``hwbench check``.

Neighbouring nights are not independent: a machine keeps its temperature, its neighbours and its
host. How much of a night the next one keeps is read from the series: nights that are four apart
differ by more than neighbours do. A level of n nights is known as well as the mean of so many
correlated ones, and not as well as that of n independent ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from hwbench.analysis.power import student
from hwbench.analysis.stats import median
from hwbench.quantities import Quantity
from hwbench.records import Verdict

FEWEST = 3  # runs that make a level
_SHORT = 5  # runs of a level that two spikes could make
CHANCE = 0.01  # of a change point anywhere in a history of noise
_PENALTY = 3.0  # times σ² log n; too many points cost time only, because each is tested
_DIFFERENCE = 0.6745 * math.sqrt(2)  # median of |x − y| of two normal values, over σ
_APART = 4  # nights after which little of a night is left
_MOST_KEPT = 0.5
_USUAL = 0.85  # share of the moves between nights that are no steps or spikes
_MARGIN = 1.0  # over the root of the number of nights: by simulation
_FLAT = 1e-9  # noise of a series that never moves, so that any step of it counts


_UNKNOWN = Quantity(name="")


@dataclass(frozen=True)
class Step:
    """A change of level: the first run of the new one, and the levels, as quotient."""

    index: int
    ratio: float  # new over old
    verdict: Verdict  # regressed or improved


@dataclass(frozen=True)
class Series:
    """One quantity of one case, run by run; ``runs`` are indices into the history's runs."""

    case: str
    metric: str
    runs: Sequence[int]
    values: Sequence[float]
    steps: Sequence[Step] = ()
    left_out: int = 0  # runs with another timing contract or revision, or no value above zero
    quantity: Quantity = _UNKNOWN  # what the values are of, and their unit


@dataclass(frozen=True)
class Night:
    """One run of a history."""

    run: str
    created: str
    commit: str | None = None
    remote: str | None = None  # the web page of the repository


@dataclass(frozen=True)
class Event:
    """A run at which levels changed, and the facts that changed with it."""

    run: int
    since: int  # the run before it in the history
    regressed: Sequence[tuple[Series, Step]]
    improved: Sequence[tuple[Series, Step]]
    changed: Sequence[str]  # the environment, in words
    commits: tuple[str | None, str | None]


@dataclass(frozen=True)
class History:
    """All runs of one suite on one machine, in order, and the changes at each."""

    suite: str
    machine: str
    nights: Sequence[Night]
    series: Sequence[Series]
    events: Sequence[Event]  # the newest first
    threshold: float


def change_points(
    values: Sequence[float],
    *,
    floor: float,
    series: int = 1,
    better: str = "lower",
    kept: float = 0.0,
) -> list[Step]:
    """Where the level of positive values changed.

    Args:
        values: one a run, in order.
        floor: the smallest relative change that counts.
        series: how many series are looked at, so that noise rarely makes a change in any.
        better: ``lower`` or ``higher``.
        kept: how much of a night the next one keeps, see ``correlation``.
    """
    if len(values) < 2 * FEWEST:
        return []
    logs = [math.log(value) for value in values]
    smooth = _without_spikes(logs)
    chance = CHANCE * (1 - kept) ** 2 / max(1, series)
    tested = _Tested(math.log1p(floor), chance, kept)
    cuts = _confirmed_cuts(logs, _candidates(logs, smooth), tested)
    edges = [0, *cuts, len(logs)]
    steps = []
    for before, at, after in zip(edges, edges[1:], edges[2:], strict=False):
        ratio = math.exp(median(logs[at:after]) - median(logs[before:at]))
        worse = (ratio > 1) == (better == "lower")
        steps.append(Step(at, ratio, Verdict.REGRESSED if worse else Verdict.IMPROVED))
    return steps


def _without_spikes(logs: Sequence[float]) -> list[float]:
    """The running median of three; the ends as they are, against their two neighbours."""
    inner = [median(logs[index - 1 : index + 2]) for index in range(1, len(logs) - 1)]
    first, last = median([logs[0], *inner[:2]]), median([logs[-1], *inner[-2:]])
    return [first, *inner, last]


@dataclass(frozen=True)
class _Tested:
    """The limits against which a cut is tested."""

    floor: float  # the smallest change that counts, on logs
    chance: float  # of a change anywhere in noise
    kept: float  # correlation of neighbouring nights


def _noise(logs: Sequence[float]) -> float:
    """σ from neighbours, which steps and spikes leave be."""
    moves = [abs(b - a) for a, b in itertools.pairwise(logs)]
    return max(median(moves) / _DIFFERENCE, _FLAT)


def correlation(histories: Sequence[Sequence[float]]) -> float:
    """The share of a night that the next one keeps, from all series of a machine: 0 to 0.5.

    With a share r, neighbouring nights differ by a variance of 2σ²(1 − r), and nights four apart
    by 2σ²(1 − r⁴). The largest moves are left out: they are steps and spikes. With few nights the
    share is uncertain, and it is taken larger by its uncertainty.
    """
    ratios, nights = [], 0
    for values in histories:
        logs = [math.log(value) for value in values]
        near, far = (_squares(logs, apart) for apart in (1, _APART))
        if far > 0:
            ratios.append(near / far)
            nights += len(logs)
    if not ratios:
        return 0.0
    ratio = median(ratios) - _MARGIN / math.sqrt(nights)
    low, high = 0.0, _MOST_KEPT
    for _ in range(30):
        middle = (low + high) / 2
        below = (1 - middle) / (1 - middle**_APART) > ratio
        low, high = (middle, high) if below else (low, middle)
    return low


def _squares(logs: Sequence[float], apart: int) -> float:
    """The mean square of moves between nights so far apart, without the largest."""
    moves = sorted(abs(b - a) for a, b in zip(logs, logs[apart:], strict=False))
    usual = moves[: math.ceil(_USUAL * len(moves))]
    return math.fsum(move**2 for move in usual) / len(usual) if usual else 0.0


def _candidates(logs: Sequence[float], smooth: Sequence[float]) -> list[int]:
    import numpy as np
    import ruptures

    signal = np.asarray(smooth, dtype=float).reshape(-1, 1)
    penalty = _PENALTY * _noise(logs) ** 2 * math.log(len(smooth))
    ends = ruptures.KernelCPD(kernel="linear", min_size=FEWEST).fit(signal).predict(pen=penalty)
    return [int(index) for index in ends[:-1]]


def _confirmed_cuts(logs: Sequence[float], cuts: Sequence[int], tested: _Tested) -> list[int]:
    """The cuts that count; the weakest is taken away until all do."""
    edges = [0, *cuts, len(logs)]

    def strength(at: int) -> float:
        parts = logs[edges[at - 1] : edges[at]], logs[edges[at] : edges[at + 1]]
        return _strength(*parts, tested)

    strengths = [math.inf, *(strength(at) for at in range(1, len(edges) - 1)), math.inf]
    while min(strengths) <= 1:
        weakest = strengths.index(min(strengths))
        del edges[weakest], strengths[weakest]
        for at in (weakest - 1, weakest):
            if 0 < at < len(edges) - 1:
                strengths[at] = strength(at)
    return edges[1:-1]


def _strength(first: Sequence[float], second: Sequence[float], tested: _Tested) -> float:
    """The change between two levels over the one that is needed."""
    old, new = median(first), median(second)
    middle, sign = (old + new) / 2, math.copysign(1, new - old)
    for level, side in ((first, -sign), (second, sign)):
        if len(level) <= _SHORT and any((value - middle) * side <= 0 for value in level):
            return 0.0
    sigma = _scatter(first, second) * _hidden(len(first), len(second), tested.kept)
    # the median of few is as noisy as this over the mean, at most
    parts = _of_mean(len(first), tested.kept) + _of_mean(len(second), tested.kept)
    error = 1.25 * sigma * math.sqrt(parts)
    freedom = max(1.0, 0.6 * (len(first) + len(second) - 2))
    needed = max(tested.floor, student(freedom, 1 - tested.chance) * error)
    return abs(new - old) / needed if needed > 0 else math.inf


def _of_mean(count: int, kept: float) -> float:
    """The variance of the mean of so many neighbouring nights, over that of one night."""
    apart = (2 * (1 - lag / count) * kept**lag for lag in range(1, count))
    return (1 + math.fsum(apart)) / count


def _hidden(first: int, second: int, kept: float) -> float:
    """σ of a night over the σ seen within two levels, which lacks the part that nights share."""
    observed, independent = (
        sum(count * (1 - _of_mean(count, share)) for count in (first, second))
        for share in (kept, 0.0)
    )
    return math.sqrt(independent / observed)


def _scatter(first: Sequence[float], second: Sequence[float]) -> float:
    """σ within two levels: the median distance from them, corrected for how few there are."""
    away = [abs(value - median(part)) for part in (first, second) for value in part]
    few = len(away) / (len(away) - 2)
    return few * median(sorted(away)) / 0.6745 if len(away) > 2 else math.inf
