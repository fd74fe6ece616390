"""Cases judged against baseline nights: what moved by more than noise, and what is sure. Pure.

Three guards stand between noise and a failed night. A case is *flagged* where its replicate values
regressed and the change lies outside what runs differ by anyway. With a confirmation each flagged
case is measured again, and the new measurement alone decides. And the decision, confirmed or not,
must pass a bound that a whole suite of unchanged cases passes in all but few nights: a baseline
cannot be measured again, and its luck, and that of tonight's machine, survive everything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from hwbench import units
from hwbench.analysis.accuracy import DENSE
from hwbench.analysis.compare import (
    Side,
    compare,
    enormous,
    quantities_of,
    unlike,
    worked,
)
from hwbench.analysis.noise import FEWEST_RUNS, Noise, noises
from hwbench.analysis.outcome import cases
from hwbench.analysis.ranks import normal_quantile
from hwbench.analysis.stats import Rule, median
from hwbench.records import Change, Verdict

WINDOW = 5  # baseline runs
FALSE_NIGHTS = 0.005  # nights in which a suite without a change may fail; spreads are estimates
FLAG_LEVEL = 0.05  # of the run-level check before a confirmation, a case
FLOOR_SECONDS = 5e-7  # smaller differences are below what calling torch costs

# By how much dense may move between nights of one machine: docs/nightly.md, "What makes a verdict".
DENSE_MOVED = 0.05

TIMED = ("relative", "time")  # the metrics that are judged by their noise
_EXACT = ("memory", "score")  # measured again they say the same: bytes, and scores of one seed

Again = Callable[[list[str]], Side]
"""Measures cases again in fresh replicates, each with its dense."""


@dataclass(frozen=True)
class Judged:
    """The verdicts, and which regressions were confirmed (None: no confirmation was asked for)."""

    changes: list[Change]
    confirmed: frozenset[str] | None


@dataclass(frozen=True)
class _Known:
    """What tells a case's change from noise."""

    noise: Noise
    replicates: int  # of the run under test
    seconds: float | None  # of the baseline


def raised(threshold: float, runs: int, window: int = WINDOW) -> float:
    """The threshold against so many baseline runs: higher when they are fewer than asked for.

    It grows as the error of a run against the mean of a short baseline does, when runs differ.
    """
    if runs >= window or runs == 0:
        return threshold
    return threshold * math.sqrt((1 + 1 / runs) / (1 + 1 / window))


def judge_cases(
    baselines: Sequence[Side],
    new: Side,
    rule: Rule,
    *,
    metric: str = "auto",
    window: int = WINDOW,
    again: Again | None = None,
) -> Judged:
    """The verdict on every case of either side.

    Args:
        baselines: the runs compared against, on a comparable machine.
        new: the run under test.
        rule: what counts as a change against a full window; ``raised`` for fewer runs.
        metric: ``auto``, one of ``quantities.METRICS``, or the name of a quantity.
        window: the baseline runs that the threshold is meant for.
        again: measures flagged cases again; without it the first look decides.
    """
    used = _rule(rule, raised(rule.threshold, len(baselines), window))
    changes = compare(baselines, [new], used, metric=metric)
    known = _known(changes, baselines, new)
    moved = {each.case: _by_dense(each, baselines, new, used) for each in changes}
    changes = [moved[each.case] or each for each in changes]
    settled = {each.case: _settled(each, known, used) for each in changes}
    if again is None:
        return Judged([_unconfirmed(each) for each in settled.values()], None)
    flagged = {each.case: each for each in changes if _flagged(each, known)}
    if flagged:
        fresh = again(list(flagged))
        seen = [_only(one, flagged) for one in baselines]
        told = compare(seen, [_only(fresh, flagged)], used, metric=metric)
        later = {each.case: each for each in told}
        for case, first in flagged.items():
            settled[case] = _confirmed(first, later[case], known, used)
    found = {case for case in flagged if settled[case].verdict is Verdict.REGRESSED}
    return Judged(list(settled.values()), frozenset(found))


def detectable(
    baselines: Sequence[Side],
    new: Side,
    rule: Rule,
    *,
    metric: str,
    window: int = WINDOW,
    power: float = 0.9,
) -> dict[str, float]:
    """The slow-down of each case that a check like this finds with that power, as a fraction."""
    used = _rule(rule, raised(rule.threshold, len(baselines), window))
    known = _known(compare(baselines, [new], used, metric=metric), baselines, new)
    sizes = {}
    for case, here in known.items():
        passed = max(
            math.log1p(used.threshold), here.noise.bound(here.replicates, _chance(len(known)))
        )
        scatter = math.sqrt(here.noise.error(here.replicates)[0])
        sizes[case] = math.expm1(passed + normal_quantile(power) * scatter)
    return sizes


def _chance(cases: int) -> float:
    """The chance at which each of so many cases may fail, for a night to fail rarely."""
    return FALSE_NIGHTS / cases


def _only(one: Side, cases: Collection[str]) -> Side:
    return Side({case: one.cases[case] for case in cases if case in one.cases}, one.facts)


def _rule(rule: Rule, threshold: float) -> Rule:
    return Rule(threshold=threshold, margin=rule.margin, floor=rule.floor, level=rule.level)


def _known(changes: list[Change], baselines: Sequence[Side], new: Side) -> dict[str, _Known]:
    """The noise of every case whose time was compared; each metric has its own usual noise."""
    found: dict[str, _Known] = {}
    for metric in TIMED:
        timed = [each for each in changes if each.ratio and each.metric == metric]
        samples = [(each.case, *_sample(each, baselines, new)) for each in timed]
        usable = [each for each in samples if _positive(*each[1], each[2])]
        logs = [[[math.log(v) for v in run] for run in (*old, now)] for _, old, now in usable]
        noise = noises([runs[:-1] for runs in logs], [runs[-1] for runs in logs])
        for (case, _, now), each in zip(usable, noise, strict=True):
            found[case] = _Known(each, len(now), _seconds(case, baselines))
    return found


def _positive(*runs: Sequence[float]) -> bool:
    return all(value > 0 and math.isfinite(value) for run in runs for value in run)


def _sample(
    change: Change, baselines: Sequence[Side], new: Side
) -> tuple[list[list[float]], list[float]]:
    """The values that a change rests on: of each baseline run, and of the new one."""
    (quantity,) = quantities_of(change.metric)
    now = new.cases[change.case]
    entries = (one.cases.get(change.case) for one in baselines)
    old = [
        list(entry.readings[quantity].values.values())
        for entry in entries
        if entry and worked(entry) and quantity in entry.readings
        if unlike(entry, [now], quantity) is None
    ]
    return old, list(now.readings[quantity].values.values())


def _seconds(case: str, baselines: Sequence[Side]) -> float | None:
    entries = (one.cases.get(case) for one in baselines)
    found = [
        value
        for entry in entries
        if entry and "time_seconds" in entry.readings
        for value in entry.readings["time_seconds"].values.values()
    ]
    return median(found) if found else None


def _by_dense(change: Change, baselines: Sequence[Side], new: Side, rule: Rule) -> Change | None:
    """What is said of a relative time that rose because dense fell; None of any other change."""
    if change.verdict is not Verdict.REGRESSED or change.metric != "relative":
        return None
    before, after = _seconds(change.case, baselines), _seconds(change.case, [new])
    if change.ratio is None or not before or not after:
        return None
    own = after / before
    dense = own / change.ratio.value
    if own > 1 + rule.threshold or dense > 1 / (1 + DENSE_MOVED):
        return None
    return _undecided(
        change,
        f"Dense took {units.percent(1 - dense)} less time than in the baseline, and this case by "
        f"itself {_moved(own)}: dense moved, not the format.",
    )


def _moved(ratio: float) -> str:
    """``2.1 % more`` or ``0.4 % less``."""
    return f"{units.percent(abs(ratio - 1))} {'more' if ratio > 1 else 'less'}"


def dense_note(baselines: Sequence[Side], new: Side) -> list[str]:
    """How far dense itself moved in seconds, where that is more than machines differ by."""
    ratios = []
    for case, entry in new.cases.items():
        before, after = _seconds(case, baselines), _seconds(case, [new])
        if entry.format == DENSE and before and after:
            ratios.append(after / before)
    if not ratios or abs(math.log(middle := median(ratios))) <= math.log1p(DENSE_MOVED):
        return []
    said = (
        f"Dense itself took {_moved(middle)} time than in the baseline, at the median of "
        f"{cases(len(ratios))}: every relative time moves with it, and --metric time compares "
        "seconds."
    )
    return [said]


def _flagged(change: Change, known: Mapping[str, _Known]) -> bool:
    """Whether a case is worth measuring again: it regressed, and may do so for a reason."""
    if change.verdict is not Verdict.REGRESSED or change.metric in _EXACT:
        return False
    if change.ratio is None:
        return True  # it ran out of memory
    here = known.get(change.case)
    if here is None:
        return False
    return math.log(change.ratio.value) > here.noise.bound(here.replicates, FLAG_LEVEL)


def _settled(
    change: Change, known: Mapping[str, _Known], rule: Rule, replicates: int | None = None
) -> Change:
    """The verdict that stands when runs differ by more than their replicates tell."""
    if change.ratio is None or change.metric not in TIMED:
        return change
    here = known.get(change.case)
    if here is None:
        return _undecided(change, "Values that are not above zero tell nothing.")
    count, size = replicates or here.replicates, abs(math.log(change.ratio.value))
    if change.verdict in (Verdict.REGRESSED, Verdict.IMPROVED):
        needed = here.noise.bound(count, _chance(len(known)))
        if size > needed or (math.isinf(needed) and enormous(change.ratio)):
            return change
        shown = units.percent(math.expm1(needed)) if math.isfinite(needed) else "more"
        return _undecided(
            change, f"It takes {shown} to tell a change from what runs of this case differ by."
        )
    if change.verdict is Verdict.EQUIVALENT and here.noise.runs >= FEWEST_RUNS:
        most = math.expm1(size + here.noise.bound(count, (1 - rule.level)))
        if most >= rule.margin and not (here.seconds or math.inf) * most < rule.floor:
            return _undecided(change, "Runs of this case differ by too much to prove it unchanged.")
    return change


def _confirmed(
    first: Change,
    change: Change,
    known: Mapping[str, _Known],
    rule: Rule,
) -> Change:
    """The verdict of the fresh replicates alone; the first look is told beside it."""
    if change.ratio is None:
        return change
    count = change.ratio.counts[1]
    if first.ratio is None:
        return _undecided(change, f"It had room in {count} fresh replicates, and none at first.")
    if change.metric != first.metric:
        return _undecided(
            change,
            f"Fresh replicates could be compared by {change.metric} and not by {first.metric}.",
        )
    settled = _settled(change, known, rule, count)
    word = "Confirmed" if settled.verdict is Verdict.REGRESSED else "Not confirmed"
    seen = units.percent(first.ratio.value - 1)
    return _noted(settled, f"{word} in {count} fresh replicates ({seen} at first).")


def _unconfirmed(change: Change) -> Change:
    timed = change.verdict is Verdict.REGRESSED and change.metric not in _EXACT
    return _noted(change, "Unconfirmed.") if timed else change


def _undecided(change: Change, reason: str) -> Change:
    return _noted(replace(change, verdict=Verdict.UNDECIDED, replicates_needed=None), reason)


def _noted(change: Change, sentence: str) -> Change:
    return replace(change, reason=" ".join(filter(None, [sentence, change.reason])))
