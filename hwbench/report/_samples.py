"""What stands behind one number: replicate values and quantiles of every case, samples of some.

Quantiles and replicate values are carried as thousandths of the natural logarithm over the case's
time: three digits that stay small in the page. Raw samples are carried of the cases that were
asked for, and of the first flagged ones.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection
from typing import Any

from hwbench import units
from hwbench.errors import UsageError
from hwbench.records import Measurement, Result
from hwbench.report import _words as words
from hwbench.report._rows import Row, groups, known, printable
from hwbench.report._views import Figure
from hwbench.store import Run

QUANTILES = (0.05, 0.25, 0.75, 0.95)
FLAGGED = 12
"""Flagged cases whose samples are carried without being asked for."""
MOST_REPLICATES = 10
_MOST_SAMPLES = 1500  # of one case; a longer series shows every n-th


def attach(run: Run, rows: list[Row]) -> None:
    """Give every timed row its ``spread_…`` columns: quantiles of samples, replicate values."""
    found = _timings(run)
    for row in rows:
        if not known(row["time_seconds"]) or row["time_seconds"] <= 0:
            continue
        timings = found.get(row["case"], [])
        samples = sorted(sample for _, timing in timings for sample in _samples(timing))
        for share in QUANTILES if samples else ():
            value = samples[min(len(samples) - 1, int(share * len(samples)))]
            row[f"spread_{round(100 * share)}"] = _code(value, row["time_seconds"])
        for place, (result, _) in enumerate(timings[:MOST_REPLICATES]):
            values = sorted(result.values("time_seconds"))
            middle = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
            row[f"replicate_{place}"] = _code(middle, row["time_seconds"])


def columns() -> list[str]:
    """The columns that ``attach`` fills in."""
    shares = [f"spread_{round(100 * share)}" for share in QUANTILES]
    return [*shares, *(f"replicate_{place}" for place in range(MOST_REPLICATES))]


def asked(runs: list[Run], names: Collection[str]) -> set[str]:
    """The cases that the names stand for: whole ids, or parts of them.

    Raises:
        UsageError: a name is part of no case that was timed.
    """
    cases = dict.fromkeys(case for run in runs for case in _timings(run))
    found: set[str] = set()
    for name in names:
        fitting = {name} if name in cases else {case for case in cases if name in case}
        if not fitting:
            raise UsageError(f"--samples {printable(name)!r} is part of no case that was timed.")
        found |= fitting
    return found


def spreads(rows: list[Row]) -> list[Figure]:
    """Quantiles and replicates of each case, one figure a group."""
    figures = []
    for members in groups(rows).values():
        have = [row for row in members if "spread_5" in row]
        if not have:
            continue
        widest = max(have, key=_width)
        figures.append(
            Figure(
                "spread",
                f"Samples, {words.group_title(have[0], capital=False)}",
                f"Widest: {printable(widest['label'])}, whose samples from the 5th to the 95th "
                f"per cent differ by {units.ratio(math.exp(_width(widest) / 1000))}.",
                [row["number"] for row in have],
            )
        )
    return figures


def _width(row: Row) -> float:
    return float(row["spread_95"] - row["spread_5"])


def series(run: Run, rows: list[Row], chosen: set[str]) -> list[Figure]:
    """Every sample of the chosen cases, and of the first flagged ones, in the order of blocks."""
    flagged = [row["case"] for row in rows if row["flags"] and known(row["time_seconds"])]
    found, wanted = _timings(run), chosen | set(flagged[:FLAGGED])
    ordered = sorted(rows, key=lambda row: row["case"] not in chosen)
    have = [row for row in ordered if row["case"] in wanted and found.get(row["case"])]
    return [_figure(row, found[row["case"]]) for row in have]


def _figure(row: Row, timings: list[tuple[Result, Measurement]]) -> Figure:
    points = [point for result, timing in timings for point in _points(result, timing)]
    every = -(-len(points) // _MOST_SAMPLES)
    disturbed = sum(point["state"] == "disturbed" for point in points)
    many = f"{len(points)} samples of {len(timings)} replicates"
    said = (
        f"{disturbed} of them (crosses) in disturbed blocks"
        if disturbed
        else "none in a disturbed block"
    )
    note = f"One sample in {every} is drawn." if every > 1 else ""
    title = f"{printable(row['label'])}, {words.group_title(row, capital=False)}"
    figure = Figure("series", title, f"{many}, {said}.", [row["number"]], note=note)
    figure.extra["points"] = points[::every]
    return figure


def _points(result: Result, timing: Measurement) -> list[dict[str, Any]]:
    blocks = timing.samples or [[value] for value in timing.values]
    bad = timing.disturbed or [False] * len(blocks)
    states = [(sample, off) for block, off in zip(blocks, bad, strict=False) for sample in block]
    return [
        {
            "at": number,
            "seconds": float(f"{sample:.4g}"),
            "replicate": f"replicate {result.replicate}",
            "state": "disturbed" if off else "quiet",
        }
        for number, (sample, off) in enumerate(states, 1)
    ]


def _timings(run: Run) -> dict[str, list[tuple[Result, Measurement]]]:
    found: dict[str, list[tuple[Result, Measurement]]] = defaultdict(list)
    for result in run.results:
        for measurement in result.measurements:
            if measurement.quantity == "time_seconds" and measurement.values:
                found[result.case].append((result, measurement))
    return found


def _samples(timing: Measurement) -> list[float]:
    """The samples of quiet blocks, or of all where most were disturbed."""
    blocks = timing.samples or [[value] for value in timing.values]
    bad = timing.disturbed or []
    if len(bad) != len(blocks) or 2 * sum(bad) > len(blocks):
        return [sample for block in blocks for sample in block]
    return [s for block, off in zip(blocks, bad, strict=True) if not off for s in block]


def _code(value: float, middle: float) -> int:
    return round(1000 * math.log(value / middle)) if value > 0 else 0
