"""Two interpreters, or two revisions, measured against each other replicate by replicate.

The way to compare torch versions, libraries or a change of a kernel without drift: the replicates
of both sides run in pairs, in a random order within each pair, with the same seed and the same
worker code. Drift then moves both values of a pair, and verdicts rest on the quotients of pairs.
"""

from __future__ import annotations

import dataclasses
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from hwbench import files, protocol
from hwbench import suite as suites
from hwbench.analysis.compare import check_metric, side
from hwbench.analysis.fingerprint import differences, facts
from hwbench.analysis.judging import FLOOR_SECONDS
from hwbench.analysis.outcome import Outcome
from hwbench.analysis.pairs import judge_pairs
from hwbench.analysis.stats import Rule
from hwbench.errors import (
    EnvironmentMismatchError,
    RunFileError,
    SuiteError,
    UsageError,
    WorkerError,
)
from hwbench.measure import run as runner
from hwbench.measure.replicate import SPANS
from hwbench.measure.schedule import Listener, Progress, State, finish, measure
from hwbench.measure.transports import local
from hwbench.measure.transports._base import Worker
from hwbench.records import PAIRED, Allocator, Case, Header, PlannedLine, Status, Suite
from hwbench.store import RunWriter, read_run
from hwbench.studies._sides import Origin, resolve, worker_folder

_PLAN_SECONDS = 600.0
_SIDES = ("a", "b")


@dataclass(frozen=True)
class Comparison:
    """The outcome of a comparison in pairs, and the files of its two runs."""

    outcome: Outcome
    paths: tuple[Path, Path]
    labels: tuple[str, str]


def ab(  # noqa: PLR0913 (each is an option of the command line)
    a: str,
    b: str,
    suite: str | dict[str, Any],
    *,
    device: str = "auto",
    replicates: int | None = None,
    install: str = "shared",
    threads: int | None = None,
    seed: int = 0,
    filter: str | None = None,  # noqa: A002 (the option's name on the command line)
    threshold: float = 0.03,
    metric: str = "auto",
    out: str | Path = "runs",
    listener: Listener = lambda progress: None,
) -> Comparison:
    """Measure ``b`` against ``a`` in pairs of fresh replicates.

    Args:
        a: an interpreter (a path, or a name on PATH), or a git revision: the baseline.
        b: the same for what is compared with it.
        suite: the name of a shipped suite, the path of a suite file, or a suite's document.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        replicates: pairs; what the suite says by default.
        install: ``shared`` (a revision beside this interpreter's packages) or ``fresh``.
        threads: threads that a CPU worker uses; the usable cores by default.
        seed: seeds all data and all orders; the sides of a pair share it.
        filter: keep only the cases that match.
        threshold: the smallest relative change that counts; up to it cases may be equivalent.
        metric: ``auto``, one of ``quantities.METRICS``, or the name of a quantity.
        out: the folder of the two run files.
        listener: called with every result.

    Raises:
        UsageError: a side cannot be made or does not start, or plans other cases than the other.
        UnknownNameError: there is no such metric.
    """
    count, device = runner.usable_threads(threads), runner.resolve_device(device)
    document = suites.read(suite) if isinstance(suite, str) else suite
    built = suites.build(document, device.partition(":")[0])
    if replicates is not None:
        built = replace(built, plan=suites.replanned(built.plan, {"replicates": replicates}))
    cases = suites.select(built.cases, filter) if filter else built.cases
    built = replace(built, cases=runner.with_anchors(cases))
    how = How(
        device=device, threads=count, seed=seed, install=install, metric=metric,
        out=files.named(out, RunFileError), listener=listener,
    )  # fmt: skip
    paths, labels = measured_in_pairs(built, (a, b), how)
    return Comparison(_outcome(paths, labels, threshold, metric), paths, labels)


@dataclass(frozen=True, kw_only=True)
class How:
    """How two sides are measured in pairs."""

    device: str
    threads: int
    seed: int
    out: Path  # the folder of the two run files
    listener: Listener
    install: str = "shared"
    metric: str = "auto"
    stem: str | None = None  # what the runs are called, before -a and -b
    arguments: Mapping[str, Any] = field(default_factory=dict)  # more of the headers'
    options: tuple[str, str] = ("--a", "--b")  # what the sides are called in messages
    accept: Callable[[Header], None] = lambda header: None  # raises where a side may not run


def measured_in_pairs(
    built: Suite, sides: tuple[str, str], how: How
) -> tuple[tuple[Path, Path], tuple[str, str]]:
    """Measure a suite on two sides in pairs; the paths of the two runs, and the sides' labels.

    Raises:
        UsageError: a side cannot be made or does not start, or plans other cases than the other.
    """
    with tempfile.TemporaryDirectory(prefix="hwbench-ab-") as folder:
        worker = worker_folder(Path(folder))
        origins = [
            resolve(option, side_, how.install, worker)
            for option, side_ in zip(how.options, sides, strict=True)
        ]
        states = _begun(built, origins, how)
        _measured(states, origins, how.threads, how.seed)
    paths = states[0].writer.path, states[1].writer.path
    return paths, (origins[0].label, origins[1].label)


def _begun(built: Suite, origins: Sequence[Origin], how: How) -> list[State]:
    """Plan both sides, and open the file of each."""
    device, threads, seed = how.device, how.threads, how.seed
    replies = [
        _planned(option, origin, built.cases, device, threads)
        for option, origin in zip(how.options, origins, strict=True)
    ]
    if not all(built.plan.allocator in reply.allocators for reply in replies):
        built = replace(built, plan=replace(built.plan, allocator=Allocator.SYSTEM.value))
    check_metric(how.metric, declared=[q for reply in replies for q in reply.quantities])
    stem = how.stem or runner.header_of(built, device, seed, threads, replies[0], {}, {}).run
    states: list[State] = []

    def both(progress: Progress) -> None:
        done = sum(len(state.done) for state in states)
        total = sum(state.total for state in states)
        seconds = [state.seconds_left() for state in states]
        left = None if None in seconds else sum(filter(None, seconds))
        how.listener(dataclasses.replace(progress, done=done, total=total, left=left))

    for name, origin, reply in zip(_SIDES, origins, replies, strict=True):
        arguments = {PAIRED: name, "python": origin.python, "threads": threads, **how.arguments}
        header = runner.header_of(built, device, seed, threads, reply, {}, arguments)
        moment = header.environment.state
        if origin.revision is not None:
            moment = {**moment, "commit": origin.revision, "dirty": False}
        where = replace(header.environment, state=moment)
        header = replace(header, run=f"{stem}-{name}", environment=where)
        try:
            how.accept(header)
            states.append(_opened(header, reply, how.out, both))
        except (RunFileError, EnvironmentMismatchError):
            for state in states:
                state.writer.discard()
            raise
    return states


def _opened(header: Header, reply: protocol.PlanReply, out: Path, listener: Listener) -> State:
    lines = [PlannedLine(id=each.case.id, planned=each) for each in reply.planned]
    return State(
        header=header,
        planned={line.id: line.planned for line in lines},
        writer=RunWriter.create(out, header, lines),
        listener=listener,
        done=set(),
    )


def _planned(
    option: str, origin: Origin, cases: list[Case], device: str, threads: int
) -> protocol.PlanReply:
    """Start a worker of a side once, and let it plan."""
    try:
        worker = _worker(origin, device, threads)
    except WorkerError as error:
        raise UsageError(
            f"{option} {origin.label} cannot run a worker; it needs torch and msgspec. {error}"
        ) from error
    except UsageError as error:
        raise UsageError(f"{option} {origin.label}: {error}") from error
    try:
        reply = worker.ask(protocol.PlanRequest(cases=cases), protocol.PlanReply, _PLAN_SECONDS)
    except UsageError as error:
        raise UsageError(f"{option} {origin.label}: {error}") from error
    finally:
        worker.close()
    if reply.mistakes:
        raise SuiteError(f"{option} {origin.label}: {' '.join(reply.mistakes[:3])}")
    return reply


def _worker(origin: Origin, device: str, threads: int) -> Worker:
    return local.LocalWorker(device, threads, origin.python, origin.paths)


def _measured(states: list[State], origins: Sequence[Origin], threads: int, seed: int) -> None:
    """All pairs, each in a random order; what was measured stays when it is cut off."""
    rng = random.Random(f"{seed}/pairs")
    pairs = max(
        state.header.plan.seeds(planned) for state in states for planned in state.planned.values()
    )
    spent = [dict.fromkeys(SPANS, 0.0) for _ in states]
    try:
        for number in range(pairs):
            for which in rng.sample(range(len(states)), len(states)):
                state = states[which]
                start = partial(_worker, origins[which], state.header.device, threads)
                seconds = measure(state, number, start)
                spent[which] = {span: spent[which][span] + seconds[span] for span in SPANS}
        for state, seconds in zip(states, spent, strict=True):
            finish(state, seconds, {})
    finally:
        for state in states:
            state.writer.close()


def _outcome(
    paths: tuple[Path, Path], labels: tuple[str, str], threshold: float, metric: str
) -> Outcome:
    """Judges ``b`` against ``a``; the outcome has the form of a check's."""
    old, new = (read_run(path) for path in paths)
    rule = Rule(threshold=threshold, margin=threshold, floor=FLOOR_SECONDS)
    first, second = (side(run.header, run.planned, run.results) for run in (old, new))
    changes = judge_pairs(first, second, rule, metric)
    differing = differences(facts(old.header.environment), facts(new.header.environment))
    return Outcome(
        run=f"{labels[1]}, {new.header.run}",
        suite=new.header.suite,
        machine=new.header.machine,
        baseline=[f"{labels[0]}, {old.header.run}"],
        changes=changes,
        measured=sum(entry.status is Status.OK for entry in second.cases.values()),
        threshold=threshold,
        used_threshold=threshold,
        paired=True,
        notes=[f"Between the two {each}." for each in differing],
    )
