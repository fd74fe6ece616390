"""Judges two sides that ran in pairs of replicates, against the scatter of the pairs. Pure.

As in the gate, a change must also lie outside of what so many unchanged cases would show by
chance: each case's quotients scatter with a variance drawn towards what is usual.

Where a replicate in five is spiked, four pairs in ten hold one. A case whose quotients scatter far
more than their closest half does is therefore told by the median of the quotients, whose interval
comes from their order alone, and by the spread of that half.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec.structs import replace

from hwbench import units
from hwbench.analysis.compare import Side, compare, quantities_of
from hwbench.analysis.judging import TIMED
from hwbench.analysis.noise import Variance, moderated, spread_within
from hwbench.analysis.power import student
from hwbench.analysis.stats import Rule, median, median_interval, variance, verdict
from hwbench.quantities import TIME
from hwbench.records import Change, Ratio, Verdict

FALSE = 0.005  # the chance that any case is called changed when none is
_SPIKED = 6.0  # times the variance of the closest half, from which spikes make the variance
_MEDIAN = math.pi / 2  # variance of a median over that of the mean, under Gaussian noise


def judge_pairs(first: Side, second: Side, rule: Rule, metric: str = "auto") -> list[Change]:
    """Judge the second side; its replicates ran in pairs with those of the first."""
    changes = compare([first], [second], rule, metric=metric, paired=True, across_machines=True)
    settled = {change.case: change for change in changes}
    for name in TIMED:
        (quantity,) = quantities_of(name)
        timed = [each for each in changes if each.metric == name and each.ratio]
        pairs = {each.case: _pairs(first, second, each.case, quantity) for each in timed}
        usable = {case: values for case, values in pairs.items() if len(values) > 1}
        spiked = {case for case, values in usable.items() if _spiked(values)}
        spreads = moderated([_spread(values, case in spiked) for case, values in usable.items()])
        for (case, values), (spread, freedom) in zip(usable.items(), spreads, strict=True):
            bound = student(freedom, 1 - 2 * FALSE / len(usable))
            error = spread / len(values) * (_MEDIAN if case in spiked else 1.0)
            if case in spiked:
                base = _seconds(first, case)
                settled[case] = _by_median(settled[case], values, rule, base)
            settled[case] = _settled(settled[case], bound * math.sqrt(error))
    return list(settled.values())


def _spread(values: Sequence[float], spiked: bool) -> Variance:
    """The variance of the quotients, and its degrees of freedom."""
    return spread_within([values]) if spiked else (variance(values), len(values) - 1.0)


def _spiked(values: Sequence[float]) -> bool:
    """Whether spikes make most of the variance; False where there are too few values."""
    if median_interval(values) is None:
        return False
    return variance(values) > _SPIKED * spread_within([values])[0]


def _seconds(side: Side, case: str) -> float | None:
    """The median time of a case, in the unit of a rule's floor; None where none was taken."""
    reading = side.cases[case].readings.get(TIME.name)
    return median([*reading.values.values()]) if reading and reading.values else None


def _by_median(
    change: Change, values: Sequence[float], rule: Rule, base_seconds: float | None
) -> Change:
    """The verdict by the median of the quotients, with the interval of its order."""
    ends = median_interval(values, rule.level)
    if ends is None or change.ratio is None:
        return change
    low, high = map(math.exp, ends)
    ratio = Ratio(
        value=math.exp(median(values)), low=low, high=high, counts=change.ratio.counts,
        level=rule.level,
    )  # fmt: skip
    decision = verdict(
        ratio, threshold=rule.threshold, margin=rule.margin, base=base_seconds, floor=rule.floor
    )
    reason = "Single replicates are far off, so the median of the pairs decides."
    return replace(change, verdict=decision, ratio=ratio, reason=reason, replicates_needed=None)


def _pairs(first: Side, second: Side, case: str, quantity: str) -> list[float]:
    """The logs of the quotients of the pairs that both sides have."""
    old, new = (one.cases[case].readings[quantity].values for one in (first, second))
    both = [(old[number], new[number]) for number in old if number in new]
    if not all(value > 0 and math.isfinite(value) for pair in both for value in pair):
        return []
    return [math.log(after / before) for before, after in both]


def _settled(change: Change, needed: float) -> Change:
    """The verdict that stands among so many cases."""
    if change.ratio is None or change.verdict not in (Verdict.REGRESSED, Verdict.IMPROVED):
        return change
    if abs(math.log(change.ratio.value)) > needed:
        return change
    reason = f"Among so many cases it takes {units.percent(math.expm1(needed))} to tell a change."
    return replace(change, verdict=Verdict.UNDECIDED, replicates_needed=None, reason=reason)
