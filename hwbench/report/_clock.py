"""What the times of a run mean, in sentences: by which clock, how fast it ran, who had to wait."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from hwbench import units
from hwbench.quantities import GRAPH
from hwbench.records import Status
from hwbench.report.rows import Row, known, printable, timed
from hwbench.store import Run

_FIGURES = re.compile(r"\d+(\.\d+)?")

CONTRACTS = {
    "event": "Times are the device’s own, between two events in its queue, which was filled "
    "before: the host’s time to launch a call is not in them.",
    "wall": "Times are those of the host’s clock.",
    "pytest": "Times are those of pytest-benchmark, in one process.",
}
"""The meaning of each timing contract; that of graphs stands beside another one."""


def contracts(rows: list[Row]) -> list[str]:
    """A sentence for each contract by which a case was timed."""
    names = dict.fromkeys(row.contract for row in rows if timed(row) and row.contract)
    return [CONTRACTS.get(name, f"Times have the contract {printable(name)}.") for name in names]


def launches(run: Run, rows: list[Row]) -> str | None:
    """How many cases are launch-bound, what that means, and what graphs make of them."""
    cases = [row for row in rows if timed(row)]
    bound = [row for row in cases if "launch_bound" in row.flags.split(",")]
    if not bound:
        return None
    sentence = (
        f"{len(bound)} of {len(cases)} timed cases are launch-bound: the host takes about as long "
        "to launch a call as the device to execute it, or longer. A program that calls such a "
        "layer alone waits for the host, and gains less than these times say."
    )
    shares = [
        row.value(GRAPH.name) / row.time_seconds for row in bound if known(row.value(GRAPH.name))
    ]
    if shares:
        low, high = (units.significant(end, 2) for end in (min(shares), max(shares)))
        span = f"{low}×" if low == high else f"{low}–{high}×"
        sentence += f" Replayed as a graph, {len(shares)} of them take {span} of their time."
    sentence += _uncaptured(run)
    return sentence


def _uncaptured(run: Run) -> str:
    """How many cases could not be replayed as a graph, and the most common reason."""
    reasons = {
        result.case: measured.note
        for result in run.results
        for measured in result.measurements
        if measured.quantity == GRAPH.name and not measured.values and measured.note
    }
    if not reasons:
        return ""
    ((reason, _),) = Counter(reasons.values()).most_common(1)
    return f" {len(reasons)} have no graph: {printable(reason)}"


def starved(rows: list[Row]) -> str | None:
    """How many cases have no time, because it might be that of the host."""
    cases = [row for row in rows if "starved" in row.flags.split(",")]
    if not cases:
        return None
    graphs = sum(known(row.value(GRAPH.name)) for row in cases)
    return (
        f"{len(cases)} of {len(rows)} cases are starved: the device waited for the host in too "
        f"many of their samples, so they have no time of their own; {graphs} have that of a graph."
    )


def causes(run: Run, most: int = 3) -> str | None:
    """The causes that disturbed cases, the most frequent first; figures make no new cause."""
    notes = [
        cause
        for result in run.results
        if result.status is Status.OK and "disturbed" in result.flags
        for measured in result.measurements
        if measured.quantity == "time_seconds" and measured.note
        for cause in measured.note.split("; ")
    ]
    if not notes:
        return None
    kinds = [_FIGURES.sub("0", cause) for cause in notes]
    first = dict(zip(reversed(kinds), reversed(notes), strict=True))
    counted = Counter(kinds).most_common()
    listed = [
        printable(first[kind]) + (f" (and {count - 1} like it)" if count > 1 else "")
        for kind, count in counted[:most]
    ]
    further = f"; and {len(counted) - most} other causes" if len(counted) > most else ""
    return f"What disturbed: {'; '.join(listed)}{further}."


_MOVING = {
    "sm_clock_hertz": ("the SM clock", "Hz"),
    "power_watts": ("the power", "W"),
    "temperature_celsius": ("the temperature", "°C"),
}


def clocks(run: Run) -> str | None:
    """Clock, power and temperature when the run began and ended, and what held the clock back."""
    began = run.header.environment.state
    ended = run.footer.state if run.footer else {}
    parts = [
        f"{what} was {_moved(began.get(name), ended.get(name), unit)}"
        for name, (what, unit) in _MOVING.items()
        if known(began.get(name))
    ]
    if not parts:
        return None
    sentence = ", ".join(parts)
    limit = run.header.device_facts.get("power_limit_watts")
    if known(limit):
        sentence += f"; the power limit is {units.si(limit, 'W')}"
    reasons = ended.get("clocks_event_reasons")
    if isinstance(reasons, list) and reasons:
        sentence += f"; in the end the clock was set by: {printable(', '.join(map(str, reasons)))}"
    return f"{sentence[0].upper()}{sentence[1:]}."


def _moved(began: Any, ended: Any, unit: str) -> str:
    first = _quantity(began, unit)
    return f"{first} and became {_quantity(ended, unit)}" if known(ended) else first


def _quantity(value: float, unit: str) -> str:
    return f"{value:.0f} {unit}" if unit == "°C" else units.si(value, unit)
