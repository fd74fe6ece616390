"""Is this run slower than its baseline? Cases matched, judged, measured again, and summed up.

Three guards stand between noise and a failed night. A case is *flagged* where its replicate values
regressed and the change lies outside what runs differ by anyway. With a confirmation each flagged
case is measured again in fresh replicates, and these alone decide. And the decision, confirmed or
not, must pass a bound that a whole suite of unchanged cases passes in all but few nights: a
baseline cannot be measured again, and its luck, and that of tonight's machine, survive everything
else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from hwbench import units
from hwbench.analysis.compare import (
    Side,
    check_metric,
    compare,
    enormous,
    quantities_of,
    side,
    unlike,
    worked,
)
from hwbench.analysis.noise import FEWEST_RUNS, Noise, noises
from hwbench.analysis.outcome import Outcome, cases
from hwbench.analysis.ranks import normal_quantile
from hwbench.analysis.stats import Rule, median
from hwbench.errors import EnvironmentMismatchError, RunFileError, UsageError
from hwbench.measure import run as runner
from hwbench.measure.replicate import ANCHOR
from hwbench.measure.schedule import Listener
from hwbench.records import Change, Status, Verdict, without_gc
from hwbench.store import Run, read_run
from hwbench.studies.baseline import Chosen, choose, foreign, load, warnings

WINDOW = 5  # baseline runs
CONFIRMATIONS = 10  # fresh replicates of each flagged case
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


def _dense_note(baselines: Sequence[Side], new: Side, run: Run) -> list[str]:
    """How far dense itself moved in seconds, where that is more than machines differ by."""
    ratios = []
    for case, planned in run.planned.items():
        before, after = _seconds(case, baselines), _seconds(case, [new])
        if planned.case.format == ANCHOR and before and after:
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


def check(  # noqa: PLR0913 (each is an option of the command line)
    path: Path,
    baseline: Path,
    *,
    threshold: float = 0.03,
    metric: str = "auto",
    window: int = WINDOW,
    confirm: bool = False,
    fail_on_undecided: bool = False,
    unfinished: bool = False,
    require_sight: float | None = None,
    listener: Listener = lambda progress: None,
) -> Outcome:
    """Compare a run with its baseline, as ``hwbench check`` does.

    Args:
        path: the run.
        baseline: a run, or a folder that stands for its last comparable runs.
        threshold: the smallest relative change that counts; up to it cases may be equivalent.
        metric: ``auto``, one of ``quantities.METRICS``, or the name of a quantity.
        window: baseline runs to take from a folder.
        confirm: measure flagged cases again, on this machine.
        require_sight: the largest slow-down that may go unseen; seeing less is undecided.
        unfinished: take a run that was cut off; cases without a result are left out.
        fail_on_undecided: whether cases without a verdict make the exit code 3.
        listener: told of every result of the confirmation.

    Raises:
        RunFileError: the run cannot be read, or is not finished.
        UnknownNameError: there is no such metric.
        UsageError: the run cannot be measured again.
    """
    run = _finished(path, confirm=confirm, unfinished=unfinished)
    check_metric(metric, [_side(run)])
    chosen = choose(baseline, run, window)
    rule = Rule(threshold=threshold, margin=threshold, floor=FLOOR_SECONDS)
    mismatch, notes = list(chosen.mismatch), _notes(chosen, run, threshold, window)

    def again(cases: list[str]) -> Side:
        return _side(read_run(runner.again(run, cases, CONFIRMATIONS, listener=listener)))

    with without_gc():
        sides, new = [_side(each) for each in chosen.runs], _side(run)
        absent = set(run.planned).difference(new.cases)
        sides = [_without(each, absent) for each in sides]
        notes += _dense_note(sides, new, run)
        judge = partial(judge_cases, sides, new, rule, metric=metric, window=window)
        try:
            judged = judge(again=again if confirm and not mismatch else None)
        except EnvironmentMismatchError as error:
            mismatch.append(f"nothing could be confirmed here: {error}")
            judged = judge()
    return Outcome(
        run=run.header.run,
        suite=run.header.suite,
        machine=run.header.machine,
        baseline=[each.header.run for each in chosen.runs],
        changes=judged.changes,
        measured=sum(entry.status is Status.OK for entry in new.cases.values()),
        threshold=threshold,
        used_threshold=raised(threshold, len(sides), window),
        confirmed=judged.confirmed,
        mismatch=mismatch,
        problem=chosen.problem,
        notes=notes,
        fail_on_undecided=fail_on_undecided,
        unfinished=None if run.complete else how_far(run),
        sight=_sight(sides, new, rule, metric, window),
        require_sight=require_sight,
    )


def _sight(
    baselines: Sequence[Side], new: Side, rule: Rule, metric: str, window: int
) -> tuple[float, float] | None:
    """The slow-down found in 9 nights of 10, usually and in the worst case; None without times."""
    metrics = [name for name in TIMED if metric in (name, "auto")]
    found: dict[str, float] = {}
    for name in metrics:
        sizes = detectable(baselines, new, rule, metric=name, window=window) if baselines else {}
        found = {**sizes, **found}  # relative first, as auto has it
    known = [size for size in found.values() if not math.isnan(size)]
    return (median(known), max(known)) if known else None


def _without(side_: Side, cases: Collection[str]) -> Side:
    """What a run says of all but these cases."""
    kept = {case: entry for case, entry in side_.cases.items() if case not in cases}
    return dataclasses.replace(side_, cases=kept)


def how_far(run: Run) -> str:
    """How far a run got that was cut off: ``3 of 20 cases have no result, 2 of 5 replicates``."""
    measured = {result.case for result in run.results}
    missing = sum(case not in measured for case in run.planned)
    replicates = len({result.replicate for result in run.results})
    return (
        f"{missing} of {len(run.planned)} cases have no result, and {replicates} of "
        f"{run.header.plan.replicates} replicates were begun"
    )


def _finished(path: Path, *, confirm: bool, unfinished: bool) -> Run:
    """The run under test, once it is known that it can be judged as asked."""
    if confirm and foreign(path):
        raise UsageError(
            f"{path} is a file of pytest-benchmark, whose cases cannot be measured again here; "
            "leave --confirm out, or check a run of hwbench run."
        )
    run = load(path)
    if not run.complete and not unfinished:
        raise RunFileError(
            f"{path} is not finished; go on with: hwbench run --resume {path}, or take it as it "
            "is with --unfinished."
        )
    return run


def _side(run: Run) -> Side:
    return side(run.header, run.planned, run.results)


def _notes(chosen: Chosen, run: Run, threshold: float, window: int) -> list[str]:
    """What limits the outcome, in sentences."""
    notes, count = list(chosen.notes), len(chosen.runs)
    if 0 < count < window and not chosen.mismatch:
        used = units.percent(raised(threshold, count, window))
        runs = "1 baseline run" if count == 1 else f"{count} baseline runs"
        notes.append(
            f"Against {runs} instead of {window} the threshold is {used} instead of "
            f"{units.percent(threshold)}."
        )
        if count < FEWEST_RUNS:
            notes.append("How much runs of this machine differ by itself is not known yet.")
    notes += [f"Not the same as before: {each}." for each in warnings(chosen.runs, run.header)]
    return notes
