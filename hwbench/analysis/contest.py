"""Compares the fastest case with its rivals by paired quotients, corrected for their number. Pure.

Cases that were timed in the same replicates are set against each other replicate by replicate: the
quotient of their times removes what a replicate did to both. The best is faster than a rival where
the interval of that quotient lies above one, at a level that is corrected for the number of pairs
among which the best was found (Bonferroni); the two are *tied* where two one-sided tests prove them
within 3 % of each other; the rest is undecided. Where a quotient is not even known within a factor
of 1.5, the one that scatters more was not measured well enough: a rival is named so, and undoes no
decision; but a best that is itself known so badly leaves all open.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

from hwbench.analysis.noise import Variance, added, moderated
from hwbench.analysis.power import student
from hwbench.analysis.stats import variance
from hwbench.records import Ratio

MARGIN = 0.03
"""Two that are proved within this share of each other are tied."""

BADLY = 1.5
"""A quotient with an interval wider than this factor was not measured well enough."""

CHANCE = 0.05
"""The probability that any rival is called slower wrongly; and that a tie is proved wrongly."""

_FEWEST = 2  # common replicates
_UNKNOWN: Variance = (math.nan, 0.0)


class Outcome(StrEnum):
    """The verdict on one rival of the best."""

    SLOWER = "slower"  # the best is faster beyond doubt
    TIED = "tied"
    UNDECIDED = "undecided"
    BADLY = "not measured well enough"


@dataclass(frozen=True)
class Entrant:
    """One case of a contest: its time in each replicate that counts."""

    name: str
    values: Mapping[int, float]  # time, or relative time, by replicate
    night: Variance = _UNKNOWN  # between the machine's earlier runs, on logs


@dataclass(frozen=True)
class Standing:
    """A rival against the best of a contest: its time over the best's, at the corrected level."""

    rival: str
    outcome: Outcome
    ratio: Ratio


def standings(
    best: Entrant, rivals: Sequence[Entrant], pool: Sequence[Entrant] = (), among: int = 0
) -> list[Standing]:
    """Return the verdict on each rival of the best, in their order.

    Args:
        best: the one that may be named.
        rivals: the others of the contest; the correction is for the pairs among all of them.
        pool: further cases of the same replicates; variances are drawn together with theirs.
        among: how many rivals the best has in all, where these are some of them.
    """
    quotients = [_quotients(best, rival) for rival in rivals]
    names = {best.name, *(rival.name for rival in rivals)}
    others = [_quotients(best, each) for each in pool if each.name not in names]
    variances = moderated([_variance(each) for each in (*quotients, *others)])
    return [
        _standing(best, rival, logs, within, max(among, len(rivals)))
        for rival, logs, within in zip(rivals, quotients, variances, strict=False)
    ]


def _standing(
    best: Entrant, rival: Entrant, logs: list[float], within: Variance, rivals: int
) -> Standing:
    counts = (len(best.values), len(rival.values))
    if len(logs) < _FEWEST or math.isnan(within[0]):
        unknown = Ratio(value=math.nan, low=math.nan, high=math.nan, counts=counts)
        measured = len(best.values) >= _FEWEST > len(rival.values)
        return Standing(rival.name, Outcome.BADLY if measured else Outcome.UNDECIDED, unknown)
    centre = fmean(logs)
    nights = [each for each in (best.night, rival.night) if each[0] > 0]
    total, freedom = added((within[0] / len(logs), within[1]), *nights)

    def half(level: float) -> float:
        return student(freedom, level) * math.sqrt(total) if total else 0.0

    level = 1 - CHANCE / (rivals * (rivals + 1) / 2)
    low, high = centre - half(level), centre + half(level)
    ratio = Ratio(
        value=math.exp(centre), low=_exp(low), high=_exp(high), counts=counts, level=level
    )
    if low > 0:
        outcome = Outcome.SLOWER
    elif abs(centre) + half(1 - 2 * CHANCE) < math.log1p(MARGIN):
        outcome = Outcome.TIED
    elif 2 * half(1 - CHANCE) > math.log(BADLY) and _scatters(rival) >= _scatters(best):
        outcome = Outcome.BADLY
    else:
        outcome = Outcome.UNDECIDED
    return Standing(rival.name, outcome, ratio)


def _scatters(entrant: Entrant) -> float:
    """The variance of the logarithms of its values."""
    return variance([math.log(value) for value in entrant.values.values()])


def _quotients(best: Entrant, rival: Entrant) -> list[float]:
    """The logarithms of the rival's time over the best's, in the replicates of both."""
    common = sorted(best.values.keys() & rival.values.keys())
    return [math.log(rival.values[each] / best.values[each]) for each in common]


def _variance(logs: list[float]) -> Variance:
    return (variance(logs), len(logs) - 1.0) if len(logs) >= _FEWEST else _UNKNOWN


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))
