"""Two sides whose replicates ran in pairs: what changed by more than the pairs scatter. Pure.

As in the gate, a change must also lie outside of what so many unchanged cases would show by
chance: each case's quotients scatter with a variance drawn towards what is usual.
"""

from __future__ import annotations

import math

from msgspec.structs import replace

from hwbench import units
from hwbench.analysis.compare import Side, compare, quantities_of
from hwbench.analysis.judging import TIMED
from hwbench.analysis.noise import moderated
from hwbench.analysis.power import student
from hwbench.analysis.stats import Rule, variance
from hwbench.records import Change, Verdict

FALSE = 0.005  # chance that any of the cases is told as changed when none is


def judge_pairs(first: Side, second: Side, rule: Rule, metric: str = "auto") -> list[Change]:
    """The verdicts on the second side, whose replicates ran in pairs with those of the first."""
    changes = compare([first], [second], rule, metric=metric, paired=True, across_machines=True)
    settled = {change.case: change for change in changes}
    for name in TIMED:
        (quantity,) = quantities_of(name)
        timed = [each for each in changes if each.metric == name and each.ratio]
        pairs = {each.case: _pairs(first, second, each.case, quantity) for each in timed}
        usable = {case: values for case, values in pairs.items() if len(values) > 1}
        spreads = moderated([(variance(v), len(v) - 1.0) for v in usable.values()])
        for (case, values), (spread, freedom) in zip(usable.items(), spreads, strict=True):
            bound = student(freedom, 1 - 2 * FALSE / len(usable))
            needed = bound * math.sqrt(spread / len(values))
            settled[case] = _settled(settled[case], needed)
    return list(settled.values())


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
    told = f"Among so many cases it takes {units.percent(math.expm1(needed))} to tell a change."
    return replace(change, verdict=Verdict.UNDECIDED, replicates_needed=None, reason=told)
