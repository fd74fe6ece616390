"""The machine and the run in words: what stood in the header, one line a fact."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hwbench import units
from hwbench.analysis.frames import NEVER_QUIET
from hwbench.report.rows import Row, known, printable, timed
from hwbench.store import Run

Facts = list[tuple[str, str]]

_UNITS = {"hertz": "Hz", "watts": "W", "joules": "J", "celsius": "°C"}
"""The unit of a fact by the last word of its name."""


@dataclass(frozen=True)
class Summary:
    """One run at the head of the page."""

    machine: str
    name: str
    suite: str
    about: str
    created: str
    version: str
    state: str  # complete, or what is missing
    complete: bool
    counts: str
    health: str  # of the machine while it was timed; empty where nothing was
    healthy: bool
    tables: list[tuple[str, Facts]]


def machines(runs: Sequence[Run]) -> list[str]:
    """A name for each run's machine; where several are alike, with what differs between them."""
    return _named(runs, _kinds, _distinct, lambda own: [[printable(run.header.run)] for run in own])


def devices(runs: Sequence[Run]) -> list[str]:
    """The device of each run; with what tells them apart where kinds of devices have one name."""
    return _named(runs, _kinds)


def _named(runs: Sequence[Run], *distinctions: Callable[[list[Run]], list[list[str]]]) -> list[str]:
    """The machines' names; each distinction in turn adds words to those that are still alike."""
    names: list[tuple[str, ...]] = [(printable(run.header.machine),) for run in runs]
    for distinguish in distinctions:
        for alike in {each for each in names if names.count(each) > 1}:
            places = [place for place, each in enumerate(names) if each == alike]
            added = distinguish([runs[place] for place in places])
            for place, words in zip(places, added, strict=True):
                names[place] = (*alike, *words)
    return [f"{name} ({', '.join(words)})" if words else name for name, *words in names]


def _kinds(runs: list[Run]) -> list[list[str]]:
    """The facts in which devices of one name differ, of family and model.

    Three generations of processors call themselves ``AMD EPYC``. Cores are those that a run may
    use, so two runs of one machine can differ in them.
    """
    facts = []
    for run in runs:
        family, model = (run.header.device_facts.get(name) for name in ("family", "model"))
        facts.append((
            f"family {printable(family)}" if family else "",
            f"model {printable(model)}" if model else "",
        ))  # fmt: skip
    return _differing(facts)


def _distinct(runs: list[Run]) -> list[list[str]]:
    """The facts in which runs of one machine differ, of cores, threads, torch and suite."""
    facts = [
        (
            _cores(run),
            units.count(int(run.header.environment.fingerprint.get("threads") or 0), "thread"),
            f"torch {printable(run.header.environment.fingerprint.get('torch'))}",
            printable(run.header.suite),
        )
        for run in runs
    ]
    return _differing(facts)


def _cores(run: Run) -> str:
    """The cores that a run could use; nothing where none are recorded."""
    cores = run.header.device_facts.get("cores")
    return units.count(cores, "core") if isinstance(cores, int) else ""


def _differing(facts: Sequence[tuple[str, ...]]) -> list[list[str]]:
    """Of each run the words in which the runs differ; a fact that is not recorded has none."""
    differ = [len(set(values)) > 1 for values in zip(*facts, strict=True)]
    return [[word for word in itertools.compress(words, differ) if word] for words in facts]


def summary(run: Run, machine: str, rows: list[Row]) -> Summary:
    """The facts of a run that stand before its results, and in the last section."""
    header = run.header
    health_words, healthy = health(run, rows)
    return Summary(
        machine=machine,
        name=printable(header.run),
        suite=printable(header.suite),
        about=printable(header.about),
        created=moment(header.created),
        version=printable(header.version),
        state=_state(run, rows),
        complete=run.complete,
        counts=counts(run),
        health=health_words,
        healthy=healthy,
        tables=_tables(run),
    )


def counts(run: Run) -> str:
    """``36 cases, 3 of 5 replicates, 2 of 2 seeds``: a scored case has seeds, a timed one not.

    A busy machine has further replicates: ``12 replicates (4 asked, 8 further)``.
    """
    seeds, done = _seeds(run), _replicates(run)
    parts = [units.count(len(run.planned), "case")]
    if len(seeds) < len(run.planned) or not seeds:
        parts.append(_replicate_words(len(done[False]), run.header.plan.replicates))
    if seeds:
        parts.append(f"{len(done[True])} of {units.count(max(seeds.values()), 'seed')}")
    return ", ".join(parts)


def _seeds(run: Run) -> dict[str, int]:
    """The number of seeds of each scored case."""
    return {case: planned.seeds for case, planned in run.planned.items() if planned.seeds}


def _replicates(run: Run) -> dict[bool, set[int]]:
    """The replicates that were made; under True the seeds of scored cases."""
    seeds = _seeds(run)
    done: dict[bool, set[int]] = {False: set(), True: set()}
    for result in run.results:
        done[result.case in seeds].add(result.replicate)
    return done


def health(run: Run, rows: list[Row]) -> tuple[str, bool]:
    """Whether the machine was left alone while it was timed, and whether all was well.

    It is said of every run, so that a page without a warning is not one that nobody checked.
    """
    timed_rows = [row for row in rows if timed(row)]
    if not timed_rows:
        return "", True
    flags = Counter(flag for row in timed_rows for flag in row.flags.split(",") if flag)
    slow = max(row.slowed for row in timed_rows)
    replicates = len(_replicates(run)[False])
    if slow:
        slowness = f"up to {slow} of {units.count(replicates, 'replicate')} slowed"
    elif replicates > 1 or run.header.references:
        slowness = "no replicate slowed"
    else:
        slowness = "one replicate, which does not show whether it was slowed"
    parts = [slowness]
    of = units.count(len(timed_rows), "timed case")
    if never := flags[NEVER_QUIET]:
        parts.append(f"never quiet in {never} of {of}")
    disturbed = flags["disturbed"]
    parts.append(f"{disturbed} of {of} disturbed" if disturbed else "no case disturbed")
    governor = run.header.environment.state.get("governor")
    if governor not in (None, "not readable"):
        parts.append(f"governor {printable(governor)}")
    return f"machine: {', '.join(parts)}", not (slow or disturbed)


def _replicate_words(count: int, planned: int) -> str:
    if count <= planned:
        return f"{count} of {units.count(planned, 'replicate')}"
    return f"{units.count(count, 'replicate')} ({planned} asked, {count - planned} further)"


UNREPEATED = "every case has a result, and some replicates are missing"
"""What is said of a run that was cut off after each case had its first result."""


def moment(text: str) -> str:
    """``2026-01-02 03:04 UTC``; the text itself where it is no moment."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return printable(text)
    return f"{moment:%Y-%m-%d %H:%M} {moment.tzname() or ''}".rstrip()


def _state(run: Run, rows: list[Row]) -> str:
    if run.footer:
        return f"finished in {units.clock(run.footer.wall_seconds)}"
    missing = sum(row.status == "missing" for row in rows)
    return (
        f"not finished: {units.count(missing, 'case')} without any result"
        if missing
        else f"not finished: {UNREPEATED}"
    )


def _tables(run: Run) -> list[tuple[str, Facts]]:
    header, environment = run.header, run.header.environment
    plan = {name: getattr(header.plan, name) for name in header.plan.__struct_fields__}
    tables = [
        ("Measured ceilings", ceilings(header.ceilings)),
        ("Machine (must agree to compare runs)", flat(environment.fingerprint)),
        ("Settings", flat(environment.settings)),
        ("State when it began", flat(environment.state)),
        ("State when it ended", flat(run.footer.state) if run.footer else []),
        ("Plan", flat({**plan, "seed": header.seed})),
        ("Asked for", flat(header.arguments)),
    ]
    return [(title, facts) for title, facts in tables if facts]


def ceilings(measured: Mapping[str, Any]) -> Facts:
    """The measured ceilings in words; one line that says so where there are none."""
    facts: Facts = []
    matmul = measured.get("matmul")
    for dtype, entry in matmul.items() if isinstance(matmul, Mapping) else ():
        rate = entry.get("flops_per_second") if isinstance(entry, Mapping) else None
        if known(rate):
            facts.append((f"matmul {printable(dtype)}", _product(entry)))
    for name in ("copy", "triad"):
        traffic = measured.get(name)
        rate = traffic.get("bytes_per_second") if isinstance(traffic, Mapping) else None
        if isinstance(traffic, Mapping) and known(rate):
            working = traffic.get("working_set_bytes")
            size = f", working set {units.nbytes(working)}" if known(working) else ""
            facts.append((name, f"{units.si(rate, 'B/s')}{size}"))
    facts += _levels(measured.get("levels")) + _launch(measured.get("launch"))
    if known(disturbed := measured.get("disturbed")) and disturbed:
        facts.append(("disturbed", f"{disturbed:.0%} of the time in which they were measured"))
    return facts or [("ceilings", "not measured in this run, so there is no roofline")]


def _product(entry: Mapping[str, Any]) -> str:
    """The rate of the best product, its shape, and the library and the clock where they stand."""
    text = units.flops_per_second(entry["flops_per_second"])
    if sides := [printable(side) for side in entry.get("shape") or []]:
        text += f", product of {' × '.join(sides)}"
    if library := entry.get("library"):
        text += f" by {printable(library)}"
    clock = entry.get("sm_clock_hertz")
    return f"{text}, at {units.si(clock, 'Hz')}" if known(clock) else text


def _levels(entries: Any) -> Facts:
    """The caches that a sweep of copies showed; memory itself is the copy."""
    levels = (
        [each for each in entries if isinstance(each, Mapping)] if isinstance(entries, list) else []
    )
    return [
        (f"copy from {printable(level.get('name'))}", units.si(level["bytes_per_second"], "B/s"))
        for level in levels
        if level.get("name") != "memory" and known(level.get("bytes_per_second"))
    ]


LAUNCH = {
    "seconds": "on the device",
    "host_seconds": "of the host",
    "graph_seconds": "as a graph of one",
    "graph_kernel_seconds": "in a graph of many",
}
"""How the smallest call was timed, by the name of its figure."""


def _launch(launch: Any) -> Facts:
    """The smallest call, in each manner in which it was timed."""
    if not isinstance(launch, Mapping):
        return []
    times = [
        f"{units.seconds(launch[name])} {how}"
        for name, how in LAUNCH.items()
        if known(launch.get(name))
    ]
    return [("smallest call", ", ".join(times))] if times else []


def flat(tree: Mapping[str, Any], prefix: str = "") -> Facts:
    """A tree of facts as lines; keys are joined by dots, bytes and seconds get their unit."""
    facts: Facts = []
    for key, value in tree.items():
        name = f"{prefix}{printable(key)}"
        if isinstance(value, Mapping) and value:
            facts += flat(value, f"{name}.")
        elif value not in (None, "", [], {}):
            facts.append((name, worded(name, value)))
    return facts


def worded(name: str, value: Any) -> str:
    """A fact in words; bytes, seconds and what else a name ends in get their unit."""
    if isinstance(value, list | tuple):
        return printable(", ".join(map(str, value)))
    if known(value) and not isinstance(value, bool):
        if "_bytes" in name:
            return units.nbytes(value)
        if name.endswith("_seconds"):
            return units.seconds(value)
        if unit := _UNITS.get(name.rpartition("_")[2]):
            return units.si(value, unit)
        if abs(value) < 1e4:
            return f"{value:.4g}"
    return printable(value)
