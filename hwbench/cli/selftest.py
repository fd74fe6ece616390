"""``hwbench selftest``: how often the gate would be wrong on this machine, and what it sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hwbench.cli import _options, _shared
from hwbench.cli._progress import progress
from hwbench.cli.check import fraction
from hwbench.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from hwbench.studies.selftest import Rate, SelfTest, Sight

_KINDS = ("aa", "ab")
_OF_WHAT_MATTERS = 0.6  # the threshold over the smallest change that matters: docs/nightly.md


def selftest(
    kind: str = typer.Argument(..., help="aa: nothing changes; ab: a known slow-down as well."),
    suite: _options.ASuite = "smoke",
    device: _options.Device = "auto",
    nights: int = typer.Option(
        6,
        "--nights",
        "-n",
        min=2,
        max=1000,
        help="Runs, one after another, as if on so many nights.",
    ),
    replicates: int = typer.Option(
        5, "--replicates", "-r", min=1, max=1000, help="Fresh processes a night."
    ),
    slower: str = typer.Option("5%", "--slower", help="The slow-down of ab, such as 5%."),
    threshold: _options.Threshold = "3%",
    threads: _options.Threads = None,
    runs: Path | None = typer.Option(
        None, "--runs", help="Measure nothing: take the runs of identical code in this folder (aa)."
    ),
    out: Path = typer.Option(Path("runs/selftest"), "--out", "-o", help="Folder for the runs."),
    as_json: _options.PrintJson = False,
) -> None:
    """Measure this machine against itself: false alarms, and the smallest change that is found.

    Each run is checked against the five before it, without a confirmation (which could only take
    alarms away). With ab, runs whose calls are delayed by a known share of their time stand
    between them.
    """
    from hwbench.studies import selftest as study

    if kind not in _KINDS:
        raise UnknownNameError("selftest", kind, _KINDS)
    delay = fraction("--slower", slower) if kind == "ab" else None
    share = fraction("--threshold", threshold)
    if runs is not None:
        if delay is not None:
            raise UsageError("--runs goes with aa; ab has to measure, because it delays calls.")
        result = study.stored(runs, threshold=share)
    else:
        with progress() as listener:
            result = study.run(
                suite, nights, slower=delay, threshold=share, listener=listener, device=device,
                out=out, threads=threads, replicates=replicates,
            )  # fmt: skip
    if as_json:
        _shared.say_json(_plain(result))
        return
    for line in _lines(result, share):
        _shared.say(line)


def _lines(result: SelfTest, threshold: float) -> list[str]:
    from hwbench.report.rows import printable
    from hwbench.units import count, percent

    machine = f"{printable(result.suite)} on {printable(result.machine)}"
    runs = f"{count(result.nights, 'run')} of {count(result.replicates, 'replicate')}"
    lines = [
        f"{machine}: {count(result.cases, 'case')}, {runs}.",
        f"False nights: {_rate(result.false_nights)}.",
        f"False cases: {_rate(result.false_cases)}.",
    ]
    lines += [f"  {printable(change.case)} ({change.metric})" for change in result.alarms]
    names = {"relative": "relative to dense", "time": "absolute time"}
    lines += [
        f"Smallest slow-down found in 9 nights of 10, {names[sight.metric]}: "
        f"{_size(sight)} (median of {count(sight.cases, 'case')}), {percent(sight.worst)} at worst "
        f"({printable(sight.worst_case)})."
        for sight in result.sights
    ]
    if result.slower is not None and result.seen is not None and result.found is not None:
        lines.append(
            f"A delay of {percent(result.slower)} was seen as {percent(result.seen)} (median), and "
            f"found in {result.found.events} of {count(result.found.trials, 'case')}: in more than "
            f"{percent(result.found.least)} with 95 % confidence."
        )
    advice = _advice(result.sights, threshold)
    return [*lines, advice] if advice else lines


def _advice(sights: Sequence[Sight], threshold: float) -> str | None:
    """What follows for the threshold of the gate, from the metric that it prefers."""
    from hwbench.units import percent

    sight = next((each for each in sights if each.metric == "relative"), None)
    if sight is None or not math.isfinite(sight.usual):
        return None
    least = _OF_WHAT_MATTERS * sight.usual
    if least > threshold:
        return (
            f"So a --threshold below {percent(least)} promises nothing here. More replicates, "
            "longer budgets or a quieter machine let the gate find less."
        )
    seen = max(sight.usual, threshold / _OF_WHAT_MATTERS)
    return (
        f"So --threshold {percent(threshold)} suits this machine: the gate usually finds a "
        f"slow-down of {percent(seen)}."
    )


def _size(sight: Sight) -> str:
    from hwbench.units import percent, seconds

    share = percent(sight.usual)
    return share if sight.usual_seconds is None else f"{share} or {seconds(sight.usual_seconds)}"


def _rate(rate: Rate) -> str:
    from hwbench.units import percent

    return f"{rate.events} of {rate.trials}, a rate below {percent(rate.most)} with 95 % confidence"


def _plain(result: SelfTest) -> dict[str, Any]:
    def rate(value: Rate | None) -> dict[str, Any] | None:
        if value is None:
            return None
        return {
            "events": value.events,
            "trials": value.trials,
            "at_least": value.least,
            "at_most": value.most,
        }

    return {
        "machine": result.machine,
        "suite": result.suite,
        "cases": result.cases,
        "nights": result.nights,
        "replicates": result.replicates,
        "false_nights": rate(result.false_nights),
        "false_cases": rate(result.false_cases),
        "alarms": [change.case for change in result.alarms],
        "detectable": {
            sight.metric: {
                "median": sight.usual,
                "median_seconds": sight.usual_seconds,
                "worst": sight.worst,
                "case": sight.worst_case,
            }
            for sight in result.sights
        },
        "slower": result.slower,
        "seen": result.seen,
        "found": rate(result.found),
        "runs": [str(path) for path in result.runs],
    }
