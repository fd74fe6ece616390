"""Is this run slower than its baseline? Runs matched, judged, measured again, and summed up.

``hwbench.analysis.judging`` judges; this module finds the runs, reads them and measures them again.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hwbench import units
from hwbench.analysis.compare import Side, check_metric, side
from hwbench.analysis.judging import (
    FLOOR_SECONDS,
    TIMED,
    WINDOW,
    Look,
    dense_note,
    detectable,
    judge_cases,
    only,
    raised,
)
from hwbench.analysis.nights import KNOWN, WAYS, NightResult, Question, judge_night, match
from hwbench.analysis.noise import FEWEST_RUNS
from hwbench.analysis.outcome import Outcome, cases
from hwbench.analysis.stats import Rule, median
from hwbench.errors import EnvironmentMismatchError, RunFileError, UnknownNameError, UsageError
from hwbench.measure import rerun
from hwbench.measure.schedule import Listener
from hwbench.records import Status, without_gc
from hwbench.store import Run, read_run
from hwbench.studies import confirm as confirming
from hwbench.studies.baseline import Chosen, choose, foreign, load, plans, warnings

__all__ = [
    "CONFIRMATIONS",
    "FLOOR_SECONDS",
    "TIMED",
    "WINDOW",
    "check",
    "detectable",
    "how_far",
    "judge_cases",
    "raised",
]

CONFIRMATIONS = 10  # fresh replicates of each flagged case


def check(  # noqa: PLR0913 (each is an option of the command line)
    path: Path,
    baseline: Path,
    *,
    threshold: float = 0.03,
    metric: str = "auto",
    window: int = WINDOW,
    confirm: bool = False,
    confirm_by: str | None = None,
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
        confirm: measure flagged cases again, on this machine; ``confirm_by="fresh"``.
        confirm_by: how flagged cases are confirmed: ``fresh`` (fresh replicates against the stored
            nights), ``ab`` (pairs of both nights' revisions) or ``nights`` (the night before).
        require_sight: the largest slow-down that may go unseen; seeing less is undecided.
        unfinished: take a run that was cut off; cases without a result are left out.
        fail_on_undecided: whether cases without a verdict make the exit code 3.
        listener: called with every result of the confirmation.

    Raises:
        RunFileError: the run cannot be read, or is not finished.
        UnknownNameError: there is no such metric, or no such way of confirming.
        UsageError: the run cannot be measured again.
    """
    way = confirm_by or ("fresh" if confirm else None)
    if way not in (None, *WAYS):
        raise UnknownNameError("way of confirming", str(way), WAYS)
    with without_gc():
        run = _finished(path, confirm=way is not None, unfinished=unfinished)
        new = _side(run)
    check_metric(metric, [new])
    with without_gc():
        baselines = choose(baseline, run, max(window, KNOWN))
    rule = Rule(threshold=threshold, margin=threshold, floor=FLOOR_SECONDS)
    question = Question(rule=rule, metric=metric, window=window)
    outcome = _outcome(run, new, baselines, question, way, listener)
    return replace(outcome, fail_on_undecided=fail_on_undecided, require_sight=require_sight)


def _outcome(
    run: Run, new: Side, baselines: Chosen, question: Question, way: str | None, listener: Listener
) -> Outcome:
    """The outcome of a run against the chosen baselines, before the options that fail it."""
    night, mismatch = _night(run, new, baselines, question, way, listener)
    threshold, window = question.rule.threshold, question.window
    names = [each.run for each in night.baselines]
    compared = [each for each in baselines.runs if each.header.run in names]
    notes = [*_notes(replace(baselines, runs=compared), run, threshold, window), *night.notes]
    return Outcome(
        run=run.header.run,
        suite=run.header.suite,
        machine=run.header.machine,
        baseline=names,
        changes=night.judged.changes,
        measured=sum(entry.status is Status.OK for entry in new.cases.values()),
        threshold=threshold,
        used_threshold=raised(threshold, len(names), window),
        confirmed=night.judged.confirmed,
        mismatch=mismatch,
        problem=baselines.problem,
        notes=[*notes, *dense_note(night.baselines, new)],
        unfinished=None if run.complete else how_far(run),
        sight=_sight(night.first, new, question.rule, question.metric, window),
    )


def _night(
    run: Run, new: Side, baselines: Chosen, question: Question, way: str | None, listener: Listener
) -> tuple[NightResult, list[str]]:
    """The night of a run as it is judged, and the reasons why it cannot be compared.

    Flagged cases are confirmed by ``way``; where that is not possible on this machine, the night is
    judged without a confirmation.
    """
    mismatch, confirmed = list(baselines.mismatch), question
    with without_gc():
        sides = [_side(each) for each in baselines.runs]
        absent = set(run.planned).difference(new.cases)
        sides = [only(each, set(each.cases) - absent) for each in sides]
        if way and sides and not mismatch:
            confirmed = _confirming(way, question, baselines.runs, sides, run, new, listener)
        try:
            night = judge_night(sides, new, confirmed)
        except EnvironmentMismatchError as error:
            mismatch.append(f"nothing could be confirmed here: {error}")
            night = judge_night(sides, new, question)
    mismatch += [night.stranger] if night.stranger else []
    return night, mismatch


def _confirming(
    way: str,
    question: Question,
    runs: Sequence[Run],
    sides: Sequence[Side],
    run: Run,
    new: Side,
    listener: Listener,
) -> Question:
    """Adds to the question the functions that measure flagged cases again."""

    def again(flagged: list[str]) -> Side:
        return _side(read_run(rerun.again(run, flagged, CONFIRMATIONS, listener=listener)))

    if way != "ab":
        return replace(question, way=way, again=again)
    last = runs[match(sides, new, question.window).nights[-1]]
    why, moved = confirming.same_code(last, run), confirming.software(last, run)
    if why and moved:
        raise UsageError(
            f"--confirm-by ab cannot tell: {why[:-1]}, and {'; '.join(moved)}. Use --confirm, or "
            "hwbench ab with the two interpreters."
        )
    return replace(question, way=way, pairs=confirming.InPairs(last, run, listener), same_code=why)


def _sight(
    first: Look, new: Side, rule: Rule, metric: str, window: int
) -> tuple[float, float] | None:
    """The slow-down found in 9 nights of 10, usually and in the worst case; None without times."""
    metrics = [name for name in TIMED if metric in (name, "auto")]
    # Where it is compared at all, a relative time is what auto compares.
    changes = first.changes.values()
    relative = [each for each in changes if each.metric == "relative" and each.ratio]
    by_case: dict[str, float] = {}
    for name in metrics:
        known_already = relative if (metric, name) == ("auto", "relative") else []
        sizes = (
            detectable(
                first.baselines, new, rule, metric=name, window=window, changes=known_already
            )
            if first.baselines
            else {}
        )
        by_case = {**sizes, **by_case}  # relative first, as auto has it
    finite = [size for size in by_case.values() if not math.isnan(size)]
    return (median(finite), max(finite)) if finite else None


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
    """Reads the run under test; fails where it cannot be judged as requested."""
    if confirm and foreign(path):
        raise UsageError(
            f"{path} is a file of pytest-benchmark, whose cases cannot be measured again here; "
            "leave --confirm out, or check a run of hwbench run."
        )
    run = load(path)
    if run.unfinished and not unfinished:
        raise RunFileError(f"{run.unfinished}, or take it as it is with --unfinished.")
    return run


def _side(run: Run) -> Side:
    return side(run.header, run.planned, run.results)


def _notes(baselines: Chosen, run: Run, threshold: float, window: int) -> list[str]:
    """Return the sentences that say what limits the outcome."""
    notes, count = list(baselines.notes), len(baselines.runs)
    if 0 < count < window and not baselines.mismatch:
        used = units.percent(raised(threshold, count, window))
        runs = units.count(count, "baseline run")
        notes.append(
            f"Against {runs} instead of {window} the threshold is {used} instead of "
            f"{units.percent(threshold)}."
        )
        if count < FEWEST_RUNS:
            notes.append("How much runs of this machine differ by itself is not known yet.")
    notes += [f"Not the same as before: {each}." for each in warnings(baselines.runs, run.header)]
    if different := plans(baselines.runs, run.header):
        notes.append(f"Not measured as before: {'; '.join(different)}.")
    return [*notes, *_disturbed(run)]


def _disturbed(run: Run) -> list[str]:
    """Counts the cases disturbed in more than half of their replicates, in a sentence."""
    flags: dict[str, list[bool]] = defaultdict(list)
    for result in run.results:
        if result.values("time_seconds"):
            flags[result.case].append("disturbed" in result.flags)
    count = sum(2 * sum(each) > len(each) for each in flags.values())
    return [f"Disturbed while they were measured: {cases(count)}."] if count else []
