"""A run in Bencher's metric format: a benchmark a case, a measure a quantity, with its interval.

The format is JSON, ``{benchmark: {measure: {value, lower_value, upper_value}}}``, which
``bencher run --adapter json --file FILE`` reads (https://bencher.dev, "Bencher Metric Format").
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from hwbench.quantities import GRAPH, RELATIVE, SCORE, TIME
from hwbench.report.rows import Row, known, report_rows
from hwbench.store import Run

LATENCY = "latency"
"""Bencher's own measure of time; its unit is the nanosecond."""
_NANOSECONDS = 1e9  # in a second
_MOST_OF_A_NAME, _MOST_OF_A_MEASURE = 1024, 64  # characters that Bencher takes
_ENDS = {
    TIME.name: ("time_low", "time_high"),
    GRAPH.name: ("graph_low", "graph_high"),
    RELATIVE.name: ("relative_low", "relative_high"),
    SCORE.name: ("score_low", "score_high"),
}
"""The interval of a quantity, as fields of a row."""

Metrics = dict[str, dict[str, dict[str, float]]]


def write(run: Run, path: Path) -> None:
    """Write the cases of a run that have a value.

    Raises:
        OSError: the file cannot be written.
    """
    text = json.dumps(metrics(run), indent=1, allow_nan=False, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def metrics(run: Run) -> Metrics:
    """The content of the file: each quantity's value over the run's replicates, and its interval.

    ``latency`` is the time of a call in nanoseconds; every other measure has the unit of its
    quantity (s, B, × …). An interval that is not known, as with one replicate, is left out.
    """
    by_case = {_benchmark(row.case): dict(_measures(row)) for row in report_rows(run)}
    return {name: measures for name, measures in by_case.items() if measures}


def _measures(row: Row) -> Iterator[tuple[str, dict[str, float]]]:
    for quantity in row.values:
        value = row.value(quantity)
        if not known(value):
            continue
        scale = _NANOSECONDS if quantity == TIME.name else 1.0
        metric = {"value": value * scale}
        if quantity in _ENDS:
            low, high = (getattr(row, end) for end in _ENDS[quantity])
            if known(low) and known(high):
                metric |= {"lower_value": low * scale, "upper_value": high * scale}
        yield measure(row, quantity), metric
    if known(row.stored_bytes) and any(map(known, row.values.values())):
        yield "stored-bytes", {"value": row.stored_bytes}


def measure(row: Row, quantity: str) -> str:
    """The slug of a quantity: ``latency``, ``relative-time``; a score's is the score's own name.

    A measure has one unit and one better side, so a PSNR and an error are two.
    """
    if quantity == TIME.name:
        return LATENCY
    name = row.score_name if quantity == SCORE.name and row.score_name else quantity
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return slug[:_MOST_OF_A_MEASURE].strip("-") or "unnamed"


def _benchmark(case: str) -> str:
    """The id of a case; one that is longer than Bencher takes is cut and ends with a digest."""
    if len(case) <= _MOST_OF_A_NAME:
        return case
    digest = hashlib.sha256(case.encode()).hexdigest()[:16]
    return f"{case[: _MOST_OF_A_NAME - 17]}~{digest}"
