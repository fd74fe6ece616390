"""What stands behind one number: replicate values and quantiles of every case, samples of some.

Quantiles and replicate values are carried as thousandths of the natural logarithm over the case's
time: three digits that stay small in the page. Raw samples are carried of the cases that were
asked for, and of the first flagged ones.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from msgspec.structs import replace

from hwbench import units
from hwbench.analysis.quiet import counted
from hwbench.analysis.stats import median
from hwbench.errors import UsageError
from hwbench.records import Measurement, Result
from hwbench.report import _words as words
from hwbench.report._views import Figure
from hwbench.report.rows import Row, groups, known, printable
from hwbench.store import Run

QUANTILES = (0.05, 0.25, 0.75, 0.95)
FLAGGED = 12
"""Flagged cases whose samples are carried without being asked for."""
MOST_REPLICATES = 10
_MOST_SAMPLES = 1500  # of one case; a longer series shows every n-th
_MOST_NUMBERS = 24  # of replicates over the samples of one case; more show every n-th


def attached(run: Run, rows: list[Row]) -> list[Row]:
    """The rows with quantiles of their samples (``spread``) and the values of their replicates."""
    timings_of = _timings(run)
    return [
        replace(
            row,
            spread=_quantiles(timings, row.time_seconds),
            replicate_codes=_replicates(timings, row.time_seconds),
        )
        if (timings := timings_of.get(row.case))
        and known(row.time_seconds)
        and row.time_seconds > 0
        else row
        for row in rows
    ]


def _quantiles(timings: list[tuple[Result, Measurement]], middle: float) -> tuple[int, ...]:
    samples = sorted(sample for _, timing in timings for sample in _samples(timing))
    last = len(samples) - 1
    shares = QUANTILES if samples else ()
    return tuple(_code(samples[min(last, int(share * len(samples)))], middle) for share in shares)


def _replicates(timings: list[tuple[Result, Measurement]], middle: float) -> tuple[int, ...]:
    replicates = [sorted(result.values("time_seconds")) for result, _ in timings[:MOST_REPLICATES]]
    medians = [
        (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2 for values in replicates
    ]
    return tuple(_code(value, middle) for value in medians)


def columns() -> dict[str, Callable[[Row], int | None]]:
    """The page's columns of what ``attached`` adds: how each is read from a row."""
    readers: dict[str, Callable[[Row], int | None]] = {}
    for place, share in enumerate(QUANTILES):
        readers[f"spread_{round(100 * share)}"] = partial(_spread, place=place)
    for place in range(MOST_REPLICATES):
        readers[f"replicate_{place}"] = partial(_replicate, place=place)
    return readers


def _spread(row: Row, place: int) -> int | None:
    return row.spread[place] if row.spread else None


def _replicate(row: Row, place: int) -> int | None:
    return row.replicate_codes[place] if place < len(row.replicate_codes) else None


def named_cases(runs: list[Run], names: Collection[str]) -> set[str]:
    """The cases that the names stand for: whole ids, or parts of them.

    Raises:
        UsageError: a name is part of no case that was timed.
    """
    chosen: set[str] = set()
    cases = dict.fromkeys(case for run in runs if names for case in _timings(run))
    for name in names:
        matching = {name} if name in cases else {case for case in cases if name in case}
        if not matching:
            raise UsageError(f"--samples {printable(name)!r} is part of no case that was timed.")
        chosen |= matching
    return chosen


def spreads(rows: list[Row]) -> list[Figure]:
    """Quantiles and replicates of each case, one figure a group."""
    figures = []
    for members in groups(rows).values():
        sampled = [row for row in members if row.spread]
        if not sampled:
            continue
        widest = max(sampled, key=_width)
        figures.append(
            Figure(
                "spread",
                f"Samples, {words.group_title(sampled[0], capital=False)}",
                f"Widest: {printable(widest.label)}, whose samples from the 5th to the 95th "
                f"per cent differ by {units.ratio(math.exp(_width(widest) / 1000))}.",
                [row.number for row in sampled],
            )
        )
    return figures


def _width(row: Row) -> float:
    return float(row.spread[-1] - row.spread[0])


def series(run: Run, rows: list[Row], chosen: set[str]) -> list[Figure]:
    """Every sample of the chosen cases, and of the first flagged ones, in the order of blocks."""
    flagged = [row.case for row in rows if row.flags and known(row.time_seconds)]
    timings_of, shown = _timings(run), chosen | set(flagged[:FLAGGED])
    ordered = sorted(rows, key=lambda row: row.case not in chosen)
    drawn = [row for row in ordered if row.case in shown and timings_of.get(row.case)]
    count = counted(run.header, run.planned, run.results) if drawn else {}
    left_out = {case: each.slow for case, each in count.items() if not each.never}
    return [
        _figure(row, timings_of[row.case], left_out.get(row.case, frozenset())) for row in drawn
    ]


def _figure(
    row: Row, timings: list[tuple[Result, Measurement]], left_out: frozenset[int]
) -> Figure:
    """One replicate after the other, each as a band of its own with its median."""
    points: list[dict[str, Any]] = []
    bands: list[dict[str, Any]] = []
    apart = -(-len(timings) // _MOST_NUMBERS)
    for place, (result, timing) in enumerate(timings):
        before = len(points)
        points += _points(result, timing, before)
        if len(points) > before:
            bands.append(_band(result, timing, (before, len(points))))
            bands[-1]["slow"] = result.replicate in left_out
            bands[-1] |= {"shaded": place % 2 == 1, "numbered": place % apart == 0}
    step = -(-len(points) // _MOST_SAMPLES)
    disturbed = sum(point["state"] == "disturbed" for point in points)
    count = f"{units.count(len(points), 'sample')} of {units.count(len(timings), 'replicate')}"
    state = (
        f"{disturbed} of them (crosses) in disturbed blocks"
        if disturbed
        else "none in a disturbed block"
    )
    slow = sum(band["slow"] for band in bands)
    state += f"; {slow} of the replicates (dashed) left out: the machine was slower" if slow else ""
    note = f"One sample in {step} is drawn." if step > 1 else ""
    title = f"{printable(row.label)}, {words.group_title(row, capital=False)}"
    figure = Figure("series", title, f"{count}, {state}.", [row.number], note=note)
    figure.extra["points"] = points[::step]
    figure.extra["bands"] = bands
    return figure


def _band(result: Result, timing: Measurement, ends: tuple[int, int]) -> dict[str, Any]:
    """Where the samples of a replicate begin and end, and the median of the quiet ones.

    ``ends`` are how many samples came before it, and how many there were with its own.
    """
    samples = _samples(timing) or [each for block in timing.samples or () for each in block]
    return {
        "replicate": f"replicate {result.replicate}",
        "text": f"{result.replicate}",
        "low": ends[0] + 0.5,
        "high": ends[1] + 0.5,
        "seconds": float(f"{median(samples):.4g}"),
    }


def _points(result: Result, timing: Measurement, before: int) -> list[dict[str, Any]]:
    """The samples of a replicate, numbered on from ``before``."""
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
        for number, (sample, off) in enumerate(states, before + 1)
    ]


def _timings(run: Run) -> dict[str, list[tuple[Result, Measurement]]]:
    by_case: dict[str, list[tuple[Result, Measurement]]] = defaultdict(list)
    for result in run.results:
        for measurement in result.measurements:
            if measurement.quantity == "time_seconds" and measurement.values:
                by_case[result.case].append((result, measurement))
    return by_case


def _samples(timing: Measurement) -> list[float]:
    """The samples of quiet blocks, or of all where most were disturbed."""
    blocks = timing.samples or [[value] for value in timing.values]
    bad = timing.disturbed or []
    if len(bad) != len(blocks) or 2 * sum(bad) > len(blocks):
        return [sample for block in blocks for sample in block]
    return [s for block, off in zip(blocks, bad, strict=True) if not off for s in block]


def _code(value: float, middle: float) -> int:
    return round(1000 * math.log(value / middle)) if value > 0 else 0
