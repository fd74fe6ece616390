"""The machine and the run in words: what stood in the header, one line a fact."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hwbench import units
from hwbench.report.rows import Row, known, printable
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
    tables: list[tuple[str, Facts]]


def machines(runs: list[Run]) -> list[str]:
    """A name for each run's machine; where several are alike, with what differs between them."""
    found: list[tuple[str, ...]] = [(printable(run.header.machine),) for run in runs]
    for told in (_distinct, lambda own: [[printable(run.header.run)] for run in own]):
        for alike in {each for each in found if found.count(each) > 1}:
            places = [place for place, each in enumerate(found) if each == alike]
            for place, words in zip(places, told([runs[p] for p in places]), strict=True):
                found[place] = (*alike, *words)
    return [f"{name} ({', '.join(words)})" if words else name for name, *words in found]


def _distinct(runs: list[Run]) -> list[list[str]]:
    """What tells runs of one machine apart: threads, torch, suite, as far as they differ."""
    told = [
        (
            _count(int(run.header.environment.fingerprint.get("threads") or 0), "thread"),
            f"torch {printable(run.header.environment.fingerprint.get('torch'))}",
            printable(run.header.suite),
        )
        for run in runs
    ]
    differ = [len(set(values)) > 1 for values in zip(*told, strict=True)]
    return [list(itertools.compress(words, differ)) for words in told]


def summary(run: Run, machine: str, rows: list[Row]) -> Summary:
    """What is said of a run before its results, and in the last section."""
    header = run.header
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
        tables=_tables(run),
    )


def counts(run: Run) -> str:
    """``36 cases, 3 of 5 replicates, 2 of 2 seeds``: a scored case has seeds, a timed one not.

    A busy machine has further replicates: ``12 replicates (4 asked, 8 further)``.
    """
    seeds = {case: planned.seeds for case, planned in run.planned.items() if planned.seeds}
    done: dict[bool, set[int]] = {False: set(), True: set()}
    for result in run.results:
        done[result.case in seeds].add(result.replicate)
    parts = [_count(len(run.planned), "case")]
    if len(seeds) < len(run.planned) or not seeds:
        parts.append(_made(len(done[False]), run.header.plan.replicates))
    if seeds:
        parts.append(f"{len(done[True])} of {_count(max(seeds.values()), 'seed')}")
    return ", ".join(parts)


def _made(made: int, asked: int) -> str:
    if made <= asked:
        return f"{made} of {_count(asked, 'replicate')}"
    return f"{_count(made, 'replicate')} ({asked} asked, {made - asked} further)"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


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
    return f"not finished: {_count(missing, 'case')} without any result"


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


def ceilings(found: Mapping[str, Any]) -> Facts:
    """The measured ceilings in words; one line that says so where there are none."""
    facts: Facts = []
    matmul = found.get("matmul")
    for dtype, entry in matmul.items() if isinstance(matmul, Mapping) else ():
        rate = entry.get("flops_per_second") if isinstance(entry, Mapping) else None
        if known(rate):
            facts.append((f"matmul {printable(dtype)}", _product(entry)))
    for name in ("copy", "triad"):
        moved = found.get(name)
        rate = moved.get("bytes_per_second") if isinstance(moved, Mapping) else None
        if isinstance(moved, Mapping) and known(rate):
            working = moved.get("working_set_bytes")
            size = f", working set {units.nbytes(working)}" if known(working) else ""
            facts.append((name, f"{units.si(rate, 'B/s')}{size}"))
    facts += _levels(found.get("levels")) + _launch(found.get("launch"))
    if known(disturbed := found.get("disturbed")) and disturbed:
        facts.append(("disturbed", f"{disturbed:.0%} of the time in which they were measured"))
    return facts or [("ceilings", "not measured in this run, so there is no roofline")]


def _product(entry: Mapping[str, Any]) -> str:
    """The rate of the best product, its shape, and the library and the clock where they stand."""
    said = units.flops_per_second(entry["flops_per_second"])
    if sides := [printable(side) for side in entry.get("shape") or []]:
        said += f", product of {' × '.join(sides)}"
    if library := entry.get("library"):
        said += f" by {printable(library)}"
    clock = entry.get("sm_clock_hertz")
    return f"{said}, at {units.si(clock, 'Hz')}" if known(clock) else said


def _levels(found: Any) -> Facts:
    """The caches that a sweep of copies showed; memory itself is the copy."""
    levels = (
        [each for each in found if isinstance(each, Mapping)] if isinstance(found, list) else []
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


def _launch(found: Any) -> Facts:
    """The smallest call, in each manner in which it was timed."""
    if not isinstance(found, Mapping):
        return []
    said = [
        f"{units.seconds(found[name])} {how}"
        for name, how in LAUNCH.items()
        if known(found.get(name))
    ]
    return [("smallest call", ", ".join(said))] if said else []


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
