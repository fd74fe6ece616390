"""``hwbench selftest``: how often the gate would be wrong on this machine, and what it sees."""

from __future__ import annotations

import json
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
    asked = fraction("--slower", slower) if kind == "ab" else None
    share = fraction("--threshold", threshold)
    if runs is not None:
        if asked is not None:
            raise UsageError("--runs goes with aa; ab has to measure, because it delays calls.")
        told = study.stored(runs, threshold=share)
    else:
        with progress() as listener:
            told = study.run(
                suite, nights, slower=asked, threshold=share, listener=listener, device=device,
                out=out, threads=threads, replicates=replicates,
            )  # fmt: skip
    if as_json:
        _shared.say_json(json.dumps(_plain(told), allow_nan=False))
        return
    for line in _lines(told):
        _shared.say(line)


def _lines(told: SelfTest) -> list[str]:
    from hwbench.report.rows import printable
    from hwbench.units import percent

    machine = f"{printable(told.suite)} on {printable(told.machine)}"
    lines = [
        f"{machine}: {told.cases} cases, {told.nights} runs of {told.replicates} replicates.",
        f"False nights: {_rate(told.false_nights)}.",
        f"False cases: {_rate(told.false_cases)}.",
    ]
    lines += [f"  {printable(change.case)} ({change.metric})" for change in told.alarms]
    names = {"relative": "relative to dense", "time": "absolute time"}
    lines += [
        f"Smallest slow-down found in 9 nights of 10, {names[sight.metric]}: "
        f"{_size(sight)} (median of {sight.cases} cases), {percent(sight.worst)} at worst "
        f"({printable(sight.worst_case)})."
        for sight in told.sights
    ]
    if told.slower is not None and told.seen is not None and told.found is not None:
        lines.append(
            f"A delay of {percent(told.slower)} was seen as {percent(told.seen)} (median), and "
            f"found in {told.found.events} of {told.found.trials} cases: in more than "
            f"{percent(told.found.least)} with 95 % confidence."
        )
    return lines


def _size(sight: Sight) -> str:
    from hwbench.units import percent, seconds

    share = percent(sight.usual)
    return share if sight.usual_seconds is None else f"{share} or {seconds(sight.usual_seconds)}"


def _rate(rate: Rate) -> str:
    from hwbench.units import percent

    return f"{rate.events} of {rate.trials}, a rate below {percent(rate.most)} with 95 % confidence"


def _plain(told: SelfTest) -> dict[str, Any]:
    def rate(found: Rate | None) -> dict[str, Any] | None:
        if found is None:
            return None
        return {
            "events": found.events,
            "trials": found.trials,
            "at_least": found.least,
            "at_most": found.most,
        }

    return {
        "machine": told.machine,
        "suite": told.suite,
        "cases": told.cases,
        "nights": told.nights,
        "replicates": told.replicates,
        "false_nights": rate(told.false_nights),
        "false_cases": rate(told.false_cases),
        "alarms": [change.case for change in told.alarms],
        "detectable": {
            sight.metric: {
                "median": sight.usual,
                "median_seconds": sight.usual_seconds,
                "worst": sight.worst,
                "case": sight.worst_case,
            }
            for sight in told.sights
        },
        "slower": told.slower,
        "seen": told.seen,
        "found": rate(told.found),
        "runs": [str(path) for path in told.runs],
    }
