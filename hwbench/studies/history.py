"""A folder of runs as series: each case over time, where its level changed, and what else did.

Runs of another suite or machine make a history of their own. Runs that were not finished, that
measured some cases again, that were slowed on purpose or that are a side of ``hwbench ab`` are
left out, and counted.
"""

from __future__ import annotations

import fnmatch
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hwbench import quantities
from hwbench.analysis.changepoints import (
    Event,
    History,
    Night,
    Series,
    Step,
    change_points,
    correlation,
)
from hwbench.analysis.compare import (
    AUTO,
    Entry,
    Reading,
    Side,
    check_metric,
    quantities_of,
    side,
    unlike,
    worked,
)
from hwbench.analysis.fingerprint import differences, facts
from hwbench.analysis.judging import TIMED
from hwbench.analysis.stats import median
from hwbench.errors import RunFileError
from hwbench.records import Header, Verdict, without_gc
from hwbench.store import Run, read_header, read_run
from hwbench.studies.baseline import COPIES, machine_key, run_files

_STATE = ("governor", "turbo", "hostname")


@dataclass(frozen=True)
class Histories:
    """The histories of a folder, the longest first, and what was left out of them."""

    histories: Sequence[History]
    notes: Sequence[str]


@dataclass(frozen=True)
class _Read:
    """The part of a run that a history keeps: one value per case and quantity."""

    header: Header
    side: Side

    @property
    def entries(self) -> Mapping[str, Entry]:
        """The run's entry of each case."""
        return self.side.cases


def history(
    folder: Path,
    *,
    metric: str = "auto",
    threshold: float = 0.03,
    suite: str | None = None,
    cases: str | None = None,
) -> Histories:
    """The series of every case in a folder of runs.

    Args:
        folder: where the run files are; where it holds none itself, the folders in it.
        metric: ``auto`` (relative where most runs have it, else time, else score) or one of
            ``quantities.METRICS``, or the name of a quantity.
        threshold: the smallest change of level that counts.
        suite: keep only runs of this suite.
        cases: keep only cases whose id has this part, or matches this glob.

    Raises:
        RunFileError: the folder holds no run that can be used.
        UnknownNameError: there is no such metric.
    """
    left_out: Counter[str] = Counter()
    groups: dict[tuple[str, str], list[_Read]] = defaultdict(list)
    with without_gc():
        for run in _runs(folder, suite, left_out):
            read = _Read(run.header, _side(run, cases))
            groups[machine_key(run.header), run.header.suite].append(read)
    reasons = [f"{count} {why}" for why, count in left_out.items()]
    notes = [f"Runs in {folder} that are left out: {'; '.join(reasons)}."] if reasons else []
    check_metric(metric, [read.side for runs in groups.values() for read in runs])
    if not groups:
        raise RunFileError(" ".join([f"{folder} holds no run that makes a history.", *notes]))
    series = [
        _history(sorted(runs, key=_when), metric=metric, threshold=threshold)
        for runs in groups.values()
    ]
    return Histories(sorted(series, key=lambda each: len(each.nights), reverse=True), notes)


def _when(read: _Read) -> tuple[str, str]:
    return read.header.created, read.header.run


def _runs(folder: Path, suite: str | None, left_out: Counter[str]) -> Iterator[Run]:
    """The runs of the folder that make a history, one at a time."""
    if not folder.is_dir():
        raise RunFileError(f"{folder} is not a folder.")
    seen: set[str] = set()
    for path in run_files(folder):
        try:
            header = read_header(path)
            if suite is not None and header.suite != suite:
                left_out["of another suite"] += 1
                continue
            if header.purpose:
                left_out[header.purpose] += 1
                continue
            if header.run in seen:
                left_out[COPIES] += 1
                continue
            run = read_run(path)
        except RunFileError:
            left_out["cannot be read"] += 1
            continue
        if run.complete:
            seen.add(header.run)
            yield run
        else:
            left_out["not finished"] += 1


def _side(run: Run, cases: str | None) -> Side:
    """The run's entries of the selected cases."""
    whole = side(run.header, run.planned, run.results)
    selected = {
        case: entry
        for case, entry in whole.cases.items()
        if cases is None or cases in case or fnmatch.fnmatchcase(case, cases)
    }
    return replace(whole, cases=selected)


def _history(runs: Sequence[_Read], *, metric: str, threshold: float) -> History:
    """One suite on one machine."""
    ids = dict.fromkeys(case for read in runs for case in read.entries)
    plain = [_series(runs, case, metric) for case in ids]
    present = [each for each in plain if each is not None]
    timed = [each.values for each in present if each.metric in TIMED]
    share = correlation(timed)
    series = [
        _stepped(each, runs, threshold, len(present), share if each.metric in TIMED else 0.0)
        for each in present
    ]
    last = runs[-1].header
    return History(
        suite=last.suite,
        machine=last.machine,
        nights=[
            Night(
                r.header.run,
                r.header.created,
                _stated(r.header, "commit"),
                _stated(r.header, "remote"),
            )
            for r in runs
        ],
        series=series,
        events=_events(runs, series),
        threshold=threshold,
    )


def _series(runs: Sequence[_Read], case: str, metric: str) -> Series | None:
    """The values of a case, in the runs comparable with the last run that has the case."""
    measured = [
        (number, read.entries[case])
        for number, read in enumerate(runs)
        if case in read.entries and worked(read.entries[case])
    ]
    metrics = AUTO if metric == "auto" else (metric,)
    for name in metrics:
        for quantity in quantities_of(name):
            having = [(n, e) for n, e in measured if quantity in e.readings]
            if not having or 2 * len(having) < len(measured):
                continue
            last = having[-1][1]
            alike = [(n, e) for n, e in having if unlike(e, [last], quantity) is None]
            pairs = [(n, _value(e.readings[quantity])) for n, e in alike]
            usable = [(n, value) for n, value in pairs if value > 0]
            if usable:
                numbers, values = zip(*usable, strict=True)
                return Series(case, name, numbers, values, left_out=len(having) - len(usable))
    return None


def _value(reading: Reading) -> float:
    return median(list(reading.values.values()))


def _stepped(
    plain: Series, runs: Sequence[_Read], threshold: float, count: int, correlated: float
) -> Series:
    """Adds change points to the series; the run file says which direction of a score is better."""
    last = runs[plain.runs[-1]].entries[plain.case]
    (name, *_) = quantities_of(plain.metric)
    declared = quantities.find(name, runs[plain.runs[-1]].side.declared)
    better = last.better if declared is quantities.SCORE else declared.better
    steps = change_points(
        plain.values, floor=threshold, series=count, better=better, kept=correlated
    )
    return replace(plain, steps=steps, quantity=declared)


def _events(runs: Sequence[_Read], series: Sequence[Series]) -> list[Event]:
    """The runs at which levels changed, the newest first, with what changed beside them."""
    at: dict[int, list[tuple[Series, Step]]] = defaultdict(list)
    for each in series:
        for step in each.steps:
            at[each.runs[step.index]].append((each, step))
    events = []
    for number in sorted(at, reverse=True):
        since = max(0, number - 1)
        old, new = runs[since].header, runs[number].header
        moved = sorted(at[number], key=lambda pair: -abs(pair[1].ratio - 1))
        events.append(
            Event(
                run=number,
                since=since,
                regressed=[pair for pair in moved if pair[1].verdict is Verdict.REGRESSED],
                improved=[pair for pair in moved if pair[1].verdict is Verdict.IMPROVED],
                changed=_changed(old, new),
                commits=(_stated(old, "commit"), _stated(new, "commit")),
            )
        )
    return events


def _stated(header: Header, name: str) -> str | None:
    value = header.environment.state.get(name)
    return str(value) if value else None


def _changed(old: Header, new: Header) -> list[str]:
    """Other differences between two runs of one machine, in words."""
    changes = [str(each) for each in differences(facts(old.environment), facts(new.environment))]
    for key in _STATE:
        before, now = (each.environment.state.get(key) for each in (old, new))
        if before != now:
            changes.append(f"{key} was {before!r} and is {now!r}")
    if new.environment.state.get("dirty"):
        changes.append("files differed from the commit")
    return changes
