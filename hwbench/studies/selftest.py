"""Measures the machine against itself: how often the gate is wrong here, and what it can see.

``aa`` measures the same suite night after night and checks each night against the nights before:
every alarm is false. ``ab`` adds nights with a known delay, a share of its own time, after every
call of every format but dense: every alarm there is true. The device makes the delay (it spins for
so many seconds), not this package's clock of formats, and the run file records it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from hwbench.analysis.compare import Side, side
from hwbench.analysis.stats import Rule, clopper_pearson, median
from hwbench.errors import RunFileError, UsageError
from hwbench.measure import rerun
from hwbench.measure import run as runner
from hwbench.measure.replicate import ANCHOR
from hwbench.measure.schedule import Listener
from hwbench.records import SLOWER, Change, Planned, Status, Verdict
from hwbench.store import Run, read_header, read_run
from hwbench.studies import gate
from hwbench.studies.baseline import machine_key, run_files

FEWEST_NIGHTS = 2
_SEEDS_A_NIGHT = 1000  # no two replicates of a self-test share their data and order
_ONE_SIDED = 0.9  # the level of a two-sided interval whose upper end holds with 95 %


@dataclass(frozen=True)
class Rate:
    """Events in a number of trials, and the bounds of the true rate with 95 % confidence."""

    events: int
    trials: int

    @property
    def most(self) -> float:
        """The rate is below this."""
        return clopper_pearson(self.events, self.trials, _ONE_SIDED)[1]

    @property
    def least(self) -> float:
        """The rate is above this."""
        return clopper_pearson(self.events, self.trials, _ONE_SIDED)[0]


@dataclass(frozen=True)
class Sight:
    """The smallest change of one metric that is found in nine nights of ten, over the cases."""

    metric: str
    cases: int
    usual: float
    usual_seconds: float | None  # of absolute times
    worst: float
    worst_case: str


@dataclass(frozen=True)
class SelfTest:
    """The result of a self-test."""

    machine: str
    suite: str
    cases: int
    nights: int
    replicates: int
    false_nights: Rate
    false_cases: Rate
    sights: Sequence[Sight]
    slower: float | None = None  # as asked, of ab alone
    seen: float | None = None  # the median over the cases, as measured
    found: Rate | None = None
    alarms: Sequence[Change] = ()
    runs: Sequence[Path] = ()


@dataclass
class _Nights:
    """The nights so far, and the verdicts on each."""

    rule: Rule
    window: int
    even: list[Side] = field(default_factory=list)
    alarms: list[list[Change]] = field(default_factory=list)
    trials: int = 0
    hits: int = 0
    chances: int = 0
    ratios: list[float] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)

    def unchanged(self, run: Run) -> None:
        """A night without a change; the first ones have nothing to be compared with."""
        self.runs.append(run.path)
        now = side(run.header, run.planned, run.results)
        if self.even:
            changes = self._judged(now)
            self.trials += len(changes)
            self.alarms.append([c for c in changes if c.verdict is Verdict.REGRESSED])
        self.even.append(now)

    def delayed(self, run: Run) -> None:
        """A night whose every case but dense was delayed."""
        self.runs.append(run.path)
        slow = {case for case, planned in run.planned.items() if planned.added_seconds}
        for change in self._judged(side(run.header, run.planned, run.results)):
            if change.case in slow:
                self.chances += 1
                self.hits += change.verdict is Verdict.REGRESSED
                if change.ratio is not None:
                    self.ratios.append(change.ratio.value)

    def _judged(self, now: Side) -> list[Change]:
        judged = gate.judge_cases(self.even[-self.window :], now, self.rule, window=self.window)
        return [change for change in judged.changes if change.metric in gate.TIMED]


def run(
    suite: str | dict[str, Any],
    nights: int,
    *,
    slower: float | None = None,
    threshold: float = 0.03,
    tell: Callable[[int, bool], None] = lambda night, delayed: None,
    listener: Listener = lambda progress: None,
    **how: Any,
) -> SelfTest:
    """Measure a suite on so many nights, one after another, and check each against the others.

    Args:
        suite: what is measured, as for ``hwbench.run``.
        nights: how many nights without a change.
        slower: the share of its time by which each format is delayed in further nights (``ab``).
        threshold: the smallest change that counts.
        tell: called with each night before it begins.
        listener: called with every result.
        how: further arguments of ``hwbench.run``: device, out, threads, replicates.

    Raises:
        UsageError: there are too few nights, or nothing could be timed.
    """
    if nights < FEWEST_NIGHTS:
        raise UsageError(f"A self-test needs {FEWEST_NIGHTS} nights or more, not {nights}.")
    rule = Rule(threshold=threshold, margin=threshold, floor=gate.FLOOR_SECONDS)
    record = _Nights(rule, gate.WINDOW)
    tell(0, False)
    path = runner.run(suite, listener=listener, **how)
    first = last = read_run(path)
    record.unchanged(first)
    if not any(entry.status is Status.OK for entry in record.even[0].cases.values()):
        raise UsageError(f"Nothing could be measured; hwbench report {path} says why.")
    for night in range(1, nights):
        if slower is not None:
            tell(night, True)
            record.delayed(
                _again(first, delayed(last, _shares(last, slower)), night, slower, listener)
            )
        tell(night, False)
        last = _again(first, first.planned, night, None, listener)
        record.unchanged(last)
    return _summary(first, record, slower)


def stored(folder: Path, *, threshold: float = 0.03) -> SelfTest:
    """Check stored runs of identical code, each against the runs before it.

    It takes the finished runs of the folder with the suite and the machine of the last one, each
    once.

    Raises:
        RunFileError: the folder cannot be read.
        UsageError: there are too few runs, or nothing is timed in them.
    """
    if not folder.is_dir():
        raise RunFileError(f"{folder} is not a folder.")
    headers = [(path, read_header(path)) for path in run_files(folder)]
    by_run = {h.run: (h.created, h.run, p) for p, h in headers[::-1] if h.purpose is None}
    runs = [run for run in (read_run(path) for *_, path in sorted(by_run.values())) if run.complete]
    alike = [run for run in runs if _place(run) == _place(runs[-1])]
    if len(alike) < FEWEST_NIGHTS:
        raise UsageError(
            f"A self-test needs {FEWEST_NIGHTS} finished runs of one suite on one machine; "
            f"{folder} holds {len(alike)}."
        )
    rule = Rule(threshold=threshold, margin=threshold, floor=gate.FLOOR_SECONDS)
    record = _Nights(rule, gate.WINDOW)
    for run in alike:
        record.unchanged(run)
    return _summary(alike[0], record, None)


def _place(run: Run) -> tuple[str, str]:
    return machine_key(run.header), run.header.suite


def _again(
    first: Run, planned: dict[str, Planned], night: int, slower: float | None, listener: Listener
) -> Run:
    """The same cases on another night."""
    number = 2 * night + (slower is not None)
    path = rerun.anew(
        first,
        planned,
        f"{first.header.run}-{'slow' if slower else 'night'}-{night + 1}",
        replicates=first.header.plan.replicates,
        seed=first.header.seed + _SEEDS_A_NIGHT * number,
        arguments={} if slower is None else {SLOWER: slower},
        listener=listener,
    )
    return read_run(path)


def delayed(last: Run, shares: Mapping[str, float]) -> dict[str, Planned]:
    """The planned cases, where each case of a format in ``shares`` gets a delay.

    Args:
        last: the run with the time of each case.
        shares: by format name, the delay as a fraction of a case's own time.
    """
    times: dict[str, list[float]] = {}
    for result in last.results:
        if result.values("time_seconds"):
            times.setdefault(result.case, []).append(median(result.values("time_seconds")))
    return {
        case: replace(planned, added_seconds=shares[planned.case.format] * median(times[case]))
        if case in times and planned.case.format in shares
        else planned
        for case, planned in last.planned.items()
    }


def _shares(run: Run, slower: float) -> dict[str, float]:
    """Delays every format but dense, or dense where it stands alone."""
    timed = {
        run.planned[result.case].case.format
        for result in run.results
        if result.values("time_seconds")
    }
    return dict.fromkeys(timed - {ANCHOR} or timed, slower)


def _summary(first: Run, record: _Nights, slower: float | None) -> SelfTest:
    alarms = [change for night in record.alarms for change in night]
    if not record.trials:
        raise UsageError(f"No case of the suite {first.header.suite} is timed.")
    return SelfTest(
        machine=first.header.machine,
        suite=first.header.suite,
        cases=len(first.planned),
        nights=len(record.even),
        replicates=first.header.plan.replicates,
        false_nights=Rate(sum(map(bool, record.alarms)), len(record.alarms)),
        false_cases=Rate(len(alarms), record.trials),
        sights=_sights(record),
        slower=slower,
        seen=median(record.ratios) - 1 if record.ratios else None,
        found=Rate(record.hits, record.chances) if record.chances else None,
        alarms=alarms,
        runs=record.runs,
    )


def _sights(record: _Nights) -> list[Sight]:
    """The smallest visible slow-down of each metric, from the noise of the last nights."""
    old, now = record.even[-1 - record.window : -1], record.even[-1]
    sights = []
    for metric in gate.TIMED:
        sizes = gate.detectable(old, now, record.rule, metric=metric, window=record.window)
        if sizes:
            worst = max(sizes, key=lambda case: sizes[case])
            usual, seconds = median(list(sizes.values())), None
            if metric == "time":
                seconds = median([size * _seconds(now, case) for case, size in sizes.items()])
            sights.append(Sight(metric, len(sizes), usual, seconds, sizes[worst], worst))
    return sights


def _seconds(one: Side, case: str) -> float:
    return median(list(one.cases[case].readings["time_seconds"].values.values()))
