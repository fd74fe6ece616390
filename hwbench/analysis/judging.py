"""Judges cases against baseline nights: which moved by more than noise, and which surely. Pure.

Three guards stand between noise and a failed night. A case is *flagged* where its replicate values
regressed and the change lies outside what runs differ by anyway. With a confirmation each flagged
case is measured again, and the new measurement alone decides. And the decision, confirmed or not,
must pass a bound that a whole suite of unchanged cases passes in all but few nights: a baseline
cannot be measured again, and its luck, and that of tonight's machine, survive everything else.
"""

from __future__ import annotations

import dataclasses
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
from hwbench.analysis.noise import FEWEST_RUNS, Noise, noises, quantile
from hwbench.analysis.outcome import cases
from hwbench.analysis.ranks import normal_quantile
from hwbench.analysis.stats import Rule, median
from hwbench.records import Change, Verdict

WINDOW = 5  # baseline runs
FALSE_NIGHTS = 0.005  # nights in which a suite without a change may fail; spreads are estimates
FLAG_LEVEL = 0.05  # of the run-level check before a confirmation, a case
FLOOR_SECONDS = 5e-7  # smaller differences are below the cost of calling torch

# By how much dense may move between nights of one machine: docs/nightly.md, "What makes a verdict".
DENSE_MOVED = 0.05

_FASTEST = 0.1  # share of replicates that are the fastest
_FEWEST_TO_SEE_MODES = 4  # replicates a run

TIMED = ("relative", "time")  # the metrics that are judged by their noise
_EXACT = ("memory", "score")  # measured again they say the same: bytes, and scores of one seed

Again = Callable[[list[str]], Side]
"""Measures cases again in fresh replicates, each with its dense."""


@dataclass(frozen=True)
class Judged:
    """The verdicts, and the confirmed regressions (None without a confirmation)."""

    changes: list[Change]
    confirmed: frozenset[str] | None


@dataclass(frozen=True)
class _Known:
    """The noise of a case, and what else separates its change from noise."""

    noise: Noise
    replicates: int  # of the run under test
    seconds: float | None  # of the baseline
    fast: float  # how far the fastest replicates of the run under test moved, on logs
    base: Sequence[Sequence[float]]  # logs of the baseline, run by run


def raised(threshold: float, runs: int, window: int = WINDOW) -> float:
    """The threshold for a number of baseline runs: higher when they are fewer than the window.

    It grows like the error of a run against the mean of a short baseline, when runs differ.
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
    return decided(look(baselines, new, rule, metric=metric, window=window), again)


def decided(first: Look, again: Again | None) -> Judged:
    """The verdicts by fresh replicates of the flagged cases, or by the first look alone."""
    if again is None:
        return Judged([unconfirmed(each) for each in first.settled.values()], None)
    return confirmed(first, again(list(first.flagged)) if first.flagged else Side({}))


def ended(first: Look, settled: Mapping[str, Change]) -> Judged:
    """The final verdicts, after the second look at the flagged cases."""
    regressed = {case for case in first.flagged if settled[case].verdict is Verdict.REGRESSED}
    return Judged(list(settled.values()), frozenset(regressed))


@dataclass(frozen=True)
class Look:
    """A run compared with its baseline, case by case, before anything is measured again."""

    baselines: Sequence[Side]
    rule: Rule
    metric: str
    changes: Mapping[str, Change]
    settled: Mapping[str, Change]  # the verdicts that stand where runs differ by themselves
    flagged: Mapping[str, Change]  # the cases that are worth measuring again
    known: Mapping[str, _Known]

    def left(self, case: str) -> int:
        """Whether a case left the night's noise: 1 upwards, -1 downwards, 0 where it did not."""
        change, here = self.changes[case], self.known.get(case)
        if here is None or change.ratio is None:
            return 0
        size = math.log(change.ratio.value)
        within = abs(size) <= here.noise.bound(here.replicates, FLAG_LEVEL / 2)
        return 0 if within else round(math.copysign(1, size))


def look(
    baselines: Sequence[Side],
    new: Side,
    rule: Rule,
    *,
    metric: str = "auto",
    window: int = WINDOW,
    own_seconds: bool = False,
    latest: Sequence[Side] | None = None,
) -> Look:
    """Compare a run with its baseline.

    Args:
        baselines: the runs compared against.
        new: the run under test.
        rule: what counts as a change against a full window.
        metric: ``auto``, one of ``quantities.METRICS``, or the name of a quantity.
        window: the baseline runs that the threshold is meant for.
        own_seconds: judge cases by their own seconds beside their ratio.
        latest: the baseline of metrics that do not depend on the night, such as bytes and scores.
    """
    used = dataclasses.replace(rule, threshold=raised(rule.threshold, len(baselines), window))
    changes = compare(baselines, [new], used, metric=metric)
    if latest is not None and list(latest) != list(baselines):
        others = {each.case: each for each in compare(latest, [new], used, metric=metric)}
        changes = [
            others.get(each.case, each) if each.metric not in TIMED else each for each in changes
        ]
    if own_seconds and metric == "auto":
        changes = _by_seconds(changes, compare(baselines, [new], used, metric="time"))
    noise_of = _known(changes, baselines, new)
    moved = {each.case: _by_dense(each, baselines, new, used) for each in changes}
    by_case = {each.case: moved[each.case] or each for each in changes}
    return Look(
        baselines=baselines,
        rule=used,
        metric=metric,
        changes=by_case,
        settled={case: _settled(each, noise_of, used) for case, each in by_case.items()},
        flagged={case: each for case, each in by_case.items() if _flagged(each, noise_of)},
        known=noise_of,
    )


def confirmed(first: Look, fresh: Side) -> Judged:
    """The verdicts where fresh replicates of the flagged cases decide."""
    settled, flagged = dict(first.settled), first.flagged
    if flagged:
        before, now = [only(one, flagged) for one in first.baselines], only(fresh, flagged)
        later = {
            each.case: each for each in compare(before, [now], first.rule, metric=first.metric)
        }
        timed = [case for case, each in flagged.items() if each.metric == "time"]
        if other := [case for case in timed if later[case].metric == "relative"]:
            baselines_by_time = [only(one, other) for one in before]
            changes = compare(baselines_by_time, [only(now, other)], first.rule, metric="time")
            later |= {each.case: each for each in changes}
        for case, change in flagged.items():
            settled[case] = _confirmed(change, later[case], first, now)
    return ended(first, settled)


def _by_seconds(changes: Sequence[Change], timed: Sequence[Change]) -> list[Change]:
    """The changes; where only a case's own seconds regressed, the change of these."""
    own = {each.case: each for each in timed if each.verdict is Verdict.REGRESSED}
    return [
        noted(own[each.case], "By its own seconds; by its time relative to dense it did not.")
        if each.metric == "relative" and each.ratio and each.verdict is not Verdict.REGRESSED
        and each.case in own
        else each
        for each in changes
    ]  # fmt: skip


def detectable(
    baselines: Sequence[Side],
    new: Side,
    rule: Rule,
    *,
    metric: str,
    window: int = WINDOW,
    power: float = 0.9,
    changes: Sequence[Change] = (),
) -> dict[str, float]:
    """The smallest slow-down of each case that such a check finds with this power, as a fraction.

    A caller that compared the same runs by this metric already passes the ``changes``.
    """
    used = dataclasses.replace(rule, threshold=raised(rule.threshold, len(baselines), window))
    compared = list(changes) or compare(baselines, [new], used, metric=metric)
    noise_of = _known(compared, baselines, new)
    sizes = {}
    for case, here in noise_of.items():
        passed = max(
            math.log1p(used.threshold), here.noise.bound(here.replicates, _chance(len(noise_of)))
        )
        scatter = math.sqrt(here.noise.error(here.replicates)[0])
        sizes[case] = math.expm1(passed + normal_quantile(power) * scatter)
    return sizes


def _chance(cases: int) -> float:
    """The chance of a false alarm that each case may have, so that a night fails rarely."""
    return FALSE_NIGHTS / cases


def only(one: Side, cases: Collection[str]) -> Side:
    """The side with these cases alone."""
    selected = {case: one.cases[case] for case in cases if case in one.cases}
    return dataclasses.replace(one, cases=selected)


def _known(changes: list[Change], baselines: Sequence[Side], new: Side) -> dict[str, _Known]:
    """The noise of every case with a compared time; each metric has its own usual noise."""
    known: dict[str, _Known] = {}
    for metric in TIMED:
        timed = [each for each in changes if each.ratio and each.metric == metric]
        samples = [(each.case, *_sample(each, baselines, new)) for each in timed]
        usable = [each for each in samples if _positive(*each[1], each[2])]
        logs = [[[math.log(v) for v in run] for run in (*old, now)] for _, old, now in usable]
        kinds = [new.cases[case].format for case, _, _ in usable]
        noise = noises([runs[:-1] for runs in logs], [runs[-1] for runs in logs], kinds)
        for (case, _, now), each, runs in zip(usable, noise, logs, strict=True):
            fast = _fast(runs[:-1], runs[-1])
            known[case] = _Known(each, len(now), _seconds(case, baselines), fast, runs[:-1])
    return known


def _fast(old: Sequence[Sequence[float]], now: Sequence[float]) -> float:
    """How far the fastest tenth moved, on logs; infinite where there are too few replicates.

    Processes may fall into two modes by chance. More processes in the slower mode move the median
    and not the fastest; a change of the code moves both.
    """
    if min(len(now), *map(len, old)) < _FEWEST_TO_SEE_MODES:
        return math.inf
    before = median([quantile(sorted(values), _FASTEST) for values in old])
    return quantile(sorted(now), _FASTEST) - before


def _positive(*runs: Sequence[float]) -> bool:
    return all(value > 0 and math.isfinite(value) for run in runs for value in run)


def _sample(
    change: Change, baselines: Sequence[Side], new: Side
) -> tuple[list[list[float]], list[float]]:
    """The values behind a change: those of each baseline run, and those of the new run."""
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
    seconds = [
        value
        for entry in entries
        if entry and "time_seconds" in entry.readings
        for value in entry.readings["time_seconds"].values.values()
    ]
    return median(seconds) if seconds else None


def _by_dense(change: Change, baselines: Sequence[Side], new: Side, rule: Rule) -> Change | None:
    """The change as undecided where a relative time moved because dense did; else None."""
    worse = change.verdict is Verdict.REGRESSED
    if not (worse or change.verdict is Verdict.IMPROVED) or change.metric != "relative":
        return None
    before, after = _seconds(change.case, baselines), _seconds(change.case, [new])
    if change.ratio is None or not before or not after:
        return None
    own = after / before
    dense = own / change.ratio.value
    by = (own, 1 / dense) if worse else (1 / own, dense)
    if by[0] > 1 + rule.threshold or by[1] < 1 + DENSE_MOVED:
        return None
    return undecided(
        change,
        f"Dense took {_moved(dense)} time than in the baseline, and this case by itself "
        f"{_moved(own)}: dense moved, not the format.",
    )


def _moved(ratio: float) -> str:
    """``2.1 % more`` or ``0.4 % less``."""
    return f"{units.percent(abs(ratio - 1))} {'more' if ratio > 1 else 'less'}"


def dense_note(baselines: Sequence[Side], new: Side) -> list[str]:
    """Says how far dense moved in seconds, where it moved more than one machine's nights differ."""
    ratios = []
    for case, entry in new.cases.items():
        before, after = _seconds(case, baselines), _seconds(case, [new])
        if entry.format == DENSE and before and after:
            ratios.append(after / before)
    if not ratios or abs(math.log(middle := median(ratios))) <= math.log1p(DENSE_MOVED):
        return []
    sentence = (
        f"Dense itself took {_moved(middle)} time than in the baseline, at the median of "
        f"{cases(len(ratios))}: every relative time moves with it, and --metric time compares "
        "seconds."
    )
    return [sentence]


def _flagged(change: Change, noise_of: Mapping[str, _Known]) -> bool:
    """Whether a case is worth measuring again: it regressed by more than noise explains."""
    if change.verdict is not Verdict.REGRESSED or change.metric in _EXACT:
        return False
    if change.ratio is None:
        return True  # it ran out of memory
    here = noise_of.get(change.case)
    if here is None:
        return False
    return math.log(change.ratio.value) > here.noise.bound(here.replicates, FLAG_LEVEL)


def _settled(
    change: Change,
    noise_of: Mapping[str, _Known],
    rule: Rule,
    fresh: Sequence[float] | None = None,
) -> Change:
    """The verdict that remains after allowing for the noise between runs."""
    if change.ratio is None or change.metric not in TIMED:
        return change
    here = noise_of.get(change.case)
    if here is None:
        return undecided(change, "Values that are not above zero tell nothing.")
    count, size = len(fresh or ()) or here.replicates, abs(math.log(change.ratio.value))
    if change.verdict in (Verdict.REGRESSED, Verdict.IMPROVED):
        needed = here.noise.bound(count, _chance(len(noise_of)))
        if not (size > needed or (math.isinf(needed) and enormous(change.ratio))):
            shown = units.percent(math.expm1(needed)) if math.isfinite(needed) else "more"
            return undecided(
                change, f"It takes {shown} to tell a change from what runs of this case differ by."
            )
        fast = _fast(here.base, fresh) if fresh else here.fast
        limit = max(math.log1p(rule.threshold), needed if math.isfinite(needed) else 0.0) / 2
        if change.verdict is Verdict.REGRESSED and fast < limit:
            return undecided(
                change, "Its fastest replicates are as fast as before: some processes are slower."
            )
        return change
    if change.verdict is Verdict.EQUIVALENT and here.noise.runs >= FEWEST_RUNS:
        most = math.expm1(size + here.noise.bound(count, (1 - rule.level)))
        if most >= rule.margin and not (here.seconds or math.inf) * most < rule.floor:
            return undecided(change, "Runs of this case differ by too much to prove it unchanged.")
    return change


def _confirmed(first: Change, change: Change, first_look: Look, fresh: Side) -> Change:
    """The verdict of the fresh replicates alone; its reason mentions the first look."""
    if change.verdict is Verdict.INCOMPARABLE:
        stands = unconfirmed(first_look.settled[first.case])
        return noted(stands, f"What was measured again cannot be compared: {change.reason}")
    if change.ratio is None:
        return change
    count = change.ratio.counts[1]
    if first.ratio is None:
        return undecided(change, f"It had room in {count} fresh replicates, and none at first.")
    if change.metric != first.metric:
        return undecided(
            change,
            f"Fresh replicates could be compared by {change.metric} and not by {first.metric}.",
        )
    (quantity,) = quantities_of(change.metric)
    values = fresh.cases[first.case].readings[quantity].values.values()
    logs = [math.log(value) for value in values] if _positive(list(values)) else None
    settled = _settled(change, first_look.known, first_look.rule, logs)
    word = "Confirmed" if settled.verdict is Verdict.REGRESSED else "Not confirmed"
    return noted(settled, f"{word} in {count} fresh replicates ({at_first(first)}).")


def at_first(change: Change) -> str:
    """The first look's change: ``20.0 % at first``."""
    return f"{units.percent(change.ratio.value - 1)} at first" if change.ratio else "at first"


def unconfirmed(change: Change) -> Change:
    """The verdict of the first look; a failing time is noted as unconfirmed."""
    timed = change.verdict is Verdict.REGRESSED and change.metric not in _EXACT
    return noted(change, "Unconfirmed.") if timed else change


def undecided(change: Change, reason: str) -> Change:
    """The change without a verdict, and why."""
    return noted(replace(change, verdict=Verdict.UNDECIDED, replicates_needed=None), reason)


def noted(change: Change, sentence: str) -> Change:
    """The change with a sentence in front of its reason."""
    return replace(change, reason=" ".join(filter(None, [sentence, change.reason])))
