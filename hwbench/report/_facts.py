"""The machine and the run in words: what stood in the header, one line a fact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hwbench import units
from hwbench.report._rows import Row, known, printable
from hwbench.store import Run

Facts = list[tuple[str, str]]


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
    """A name for each run's machine, told apart by the run where two are alike."""
    names = [printable(run.header.machine) for run in runs]
    return [
        f"{name} ({printable(run.header.run)})" if names.count(name) > 1 else name
        for name, run in zip(names, runs, strict=True)
    ]


def summary(run: Run, machine: str, rows: list[Row]) -> Summary:
    """What is said of a run before its results, and in the last section."""
    header = run.header
    return Summary(
        machine=machine,
        name=printable(header.run),
        suite=printable(header.suite),
        about=printable(header.about),
        created=_moment(header.created),
        version=printable(header.version),
        state=_state(run, rows),
        complete=run.complete,
        counts=counts(run),
        tables=_tables(run),
    )


def counts(run: Run) -> str:
    """``36 cases, 3 of 5 replicates, 2 of 2 seeds``: a scored case has seeds, a timed one not."""
    seeds = {case: planned.seeds for case, planned in run.planned.items() if planned.seeds}
    done: dict[bool, set[int]] = {False: set(), True: set()}
    for result in run.results:
        done[result.case in seeds].add(result.replicate)
    parts = [_count(len(run.planned), "case")]
    if len(seeds) < len(run.planned) or not seeds:
        parts.append(f"{len(done[False])} of {_count(run.header.plan.replicates, 'replicate')}")
    if seeds:
        parts.append(f"{len(done[True])} of {_count(max(seeds.values()), 'seed')}")
    return ", ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _moment(text: str) -> str:
    """``2026-01-02 03:04 UTC``; the text itself where it is no moment."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return printable(text)
    return f"{moment:%Y-%m-%d %H:%M} {moment.tzname() or ''}".rstrip()


def _state(run: Run, rows: list[Row]) -> str:
    if run.footer:
        return f"finished in {units.clock(run.footer.wall_seconds)}"
    missing = sum(row["status"] == "missing" for row in rows)
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
    matmul, copy = found.get("matmul"), found.get("copy")
    for dtype, entry in matmul.items() if isinstance(matmul, Mapping) else ():
        rate = entry.get("flops_per_second") if isinstance(entry, Mapping) else None
        if known(rate):
            sides = [printable(side) for side in entry.get("shape") or []]
            product = f", product of {' × '.join(sides)}" if sides else ""
            facts.append((f"matmul {printable(dtype)}", f"{units.flops_per_second(rate)}{product}"))
    rate = copy.get("bytes_per_second") if isinstance(copy, Mapping) else None
    if isinstance(copy, Mapping) and known(rate):
        working = copy.get("working_set_bytes")
        size = f", working set {units.nbytes(working)}" if known(working) else ""
        facts.append(("copy", f"{units.si(rate, 'B/s')}{size}"))
    if known(disturbed := found.get("disturbed")) and disturbed:
        facts.append(("disturbed", f"{disturbed:.0%} of the time in which they were measured"))
    return facts or [("ceilings", "not measured in this run, so there is no roofline")]


def flat(tree: Mapping[str, Any], prefix: str = "") -> Facts:
    """A tree of facts as lines; keys are joined by dots, bytes and seconds get their unit."""
    facts: Facts = []
    for key, value in tree.items():
        name = f"{prefix}{printable(key)}"
        if isinstance(value, Mapping) and value:
            facts += flat(value, f"{name}.")
        elif value not in (None, "", [], {}):
            facts.append((name, _value(name, value)))
    return facts


def _value(name: str, value: Any) -> str:
    if isinstance(value, list | tuple):
        return printable(", ".join(map(str, value)))
    if known(value) and not isinstance(value, bool):
        if "_bytes" in name:
            return units.nbytes(value)
        if name.endswith("_seconds"):
            return units.seconds(value)
    return printable(value)
