"""Is this run slower than its baseline? Cases matched, judged, measured again, and summed up.

Three guards stand between noise and a failed night. A case is *flagged* where its replicate values
regressed and the change lies outside what runs differ by anyway. With a confirmation each flagged
case is measured again in fresh replicates, and these alone decide. And the decision, confirmed or
not, must pass a bound that a whole suite of unchanged cases passes in all but few nights: a
baseline cannot be measured again, and its luck, and that of tonight's machine, survive everything
else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from hwbench import units
from hwbench.compare import METRICS, Side, compare, unlike, worked
from hwbench.records import Change, Verdict
from hwbench.stats import Rule, median
from hwbench.studies._nights import FEWEST_RUNS, Noise, noises

WINDOW = 5  # baseline runs
CONFIRMATIONS = 10  # fresh replicates of each flagged case
FALSE_NIGHTS = 0.005  # nights in which a suite without a change may fail; spreads are estimates
FLAG_LEVEL = 0.05  # of the run-level check before a confirmation, a case
FLOOR_SECONDS = 5e-7  # smaller differences are below what calling torch costs

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
    higher: Collection[str] = (),
    window: int = WINDOW,
    again: Again | None = None,
) -> Judged:
    """The verdict on every case of either side.

    Args:
        baselines: the runs compared against, on a comparable machine.
        new: the run under test.
        rule: what counts as a change against a full window; ``raised`` for fewer runs.
        metric: ``auto`` or one of ``compare.METRICS``.
        higher: the workloads whose score is better when it is higher.
        window: the baseline runs that the threshold is meant for.
        again: measures flagged cases again; without it the first look decides.
    """
    used = _rule(rule, raised(rule.threshold, len(baselines), window))
    changes = compare(baselines, [new], used, metric=metric, higher=higher)
    known = _known(changes, baselines, new)
    settled = {each.case: _settled(each, known, used) for each in changes}
    if again is None:
        return Judged([_unconfirmed(each) for each in settled.values()], None)
    flagged = {each.case: each for each in changes if _flagged(each, known)}
    if flagged:
        fresh = again(list(flagged))
        seen = [_only(side, flagged) for side in baselines]
        told = compare(seen, [_only(fresh, flagged)], used, metric=metric, higher=higher)
        later = {each.case: each for each in told}
        for case, first in flagged.items():
            settled[case] = _confirmed(first, later.get(case), known, used)
    found = {case for case in flagged if settled[case].verdict is Verdict.REGRESSED}
    return Judged(list(settled.values()), frozenset(found))


def _only(side: Side, cases: Collection[str]) -> Side:
    return Side({case: side.cases[case] for case in cases if case in side.cases}, side.facts)


def _rule(rule: Rule, threshold: float) -> Rule:
    return Rule(threshold=threshold, margin=rule.margin, floor=rule.floor, level=rule.level)


def _known(changes: list[Change], baselines: Sequence[Side], new: Side) -> dict[str, _Known]:
    """The noise of every case whose time was compared."""
    timed = [each for each in changes if each.ratio and each.metric in ("relative", "time")]
    samples = [_sample(each, baselines, new) for each in timed]
    usable = [
        (each, old, now)
        for each, (old, now) in zip(timed, samples, strict=True)
        if all(value > 0 and math.isfinite(value) for run in (*old, now) for value in run)
    ]
    logs = [[[math.log(v) for v in run] for run in (*old, now)] for _, old, now in usable]
    found = noises([runs[:-1] for runs in logs], [runs[-1] for runs in logs])
    return {
        each.case: _Known(noise, len(now), _seconds(each.case, baselines))
        for (each, _, now), noise in zip(usable, found, strict=True)
    }


def _sample(
    change: Change, baselines: Sequence[Side], new: Side
) -> tuple[list[list[float]], list[float]]:
    """The values that a change rests on: of each baseline run, and of the new one."""
    (quantity,) = METRICS[change.metric]
    now = new.cases[change.case]
    entries = (side.cases.get(change.case) for side in baselines)
    old = [
        list(entry.readings[quantity].values.values())
        for entry in entries
        if entry and worked(entry) and quantity in entry.readings
        if unlike(entry, [now], quantity) is None
    ]
    return old, list(now.readings[quantity].values.values())


def _seconds(case: str, baselines: Sequence[Side]) -> float | None:
    entries = (side.cases.get(case) for side in baselines)
    found = [
        value
        for entry in entries
        if entry and "time_seconds" in entry.readings
        for value in entry.readings["time_seconds"].values.values()
    ]
    return median(found) if found else None


def _flagged(change: Change, known: Mapping[str, _Known]) -> bool:
    """Whether a case is worth measuring again: it regressed, and may do so for a reason."""
    if change.verdict is not Verdict.REGRESSED or change.metric in ("memory", "score"):
        return False  # bytes are exact, and the same seeds give the same score again
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
    if change.ratio is None or change.metric not in ("relative", "time"):
        return change
    here = known.get(change.case)
    if here is None:
        return _undecided(change, "Values that are not above zero tell nothing.")
    count, size = replicates or here.replicates, abs(math.log(change.ratio.value))
    if change.verdict in (Verdict.REGRESSED, Verdict.IMPROVED):
        needed = here.noise.bound(count, FALSE_NIGHTS / len(known))
        if size > needed:
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
    change: Change | None,
    known: Mapping[str, _Known],
    rule: Rule,
) -> Change:
    """The verdict of the fresh replicates alone; the first look is told beside it."""
    if change is None:
        return _undecided(first, "It could not be measured again.")
    count = None
    if change.ratio is not None:
        count = change.ratio.counts[1]
    settled = _settled(change, known, rule, count)
    seen = f"{units.percent(first.ratio.value - 1)} at first" if first.ratio else "at first"
    if settled.verdict is Verdict.REGRESSED:
        again = f"Confirmed in {count} fresh replicates ({seen})." if count else "Confirmed."
        return _noted(settled, again)
    if settled.verdict in (Verdict.UNDECIDED, Verdict.EQUIVALENT, Verdict.IMPROVED):
        return _noted(settled, f"Not confirmed in {count} fresh replicates ({seen}).")
    return settled


def _unconfirmed(change: Change) -> Change:
    timed = change.verdict is Verdict.REGRESSED and change.metric not in ("memory", "score")
    return _noted(change, "Unconfirmed.") if timed else change


def _undecided(change: Change, reason: str) -> Change:
    return _noted(replace(change, verdict=Verdict.UNDECIDED, replicates_needed=None), reason)


def _noted(change: Change, sentence: str) -> Change:
    return replace(change, reason=" ".join(filter(None, [sentence, change.reason])))
