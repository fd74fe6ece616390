"""The words that go under a figure: what it shows, on which machine, with which versions."""

from __future__ import annotations

from collections.abc import Sequence

from hwbench import units
from hwbench.report import _facts
from hwbench.report.rows import printable
from hwbench.store import Run

WHAT = {
    "roofline": "Executed rate of each case against its FLOPs per byte, under the measured peaks. "
    "A thin line reaches to the intensity with every intermediate result in memory.",
    "pareto": "Error against time relative to dense, with the density of each point. The grey line "
    "joins the points that no other point beats in both; smaller marks are not on it.",
    "crossover": "Time relative to dense against density, or against tokens where one density was "
    "measured. Below the dashed line a format is faster than dense.",
    "heatmap": "Time relative to dense of every format in every setting. Grey: not significantly "
    "different from dense.",
    "scaling": "Time of a call against tokens, at the largest density that was asked for.",
}
"""The content of each kind of figure, in sentences."""
FILLED = ("filled", "hollow", "half-filled (left)", "half-filled (below)")


def caption(runs: Sequence[Run], kind: str, filtered: str = "") -> str:
    """Sentences in plain text, a paragraph for the figure and one for each run."""
    sentences = [WHAT[kind]]
    if kind != "heatmap" and kind != "roofline":
        sentences.append("Bars are 95 % intervals.")
    if filtered:
        sentences.append(f"Only cases that match {printable(filtered)!r}.")
    names = _facts.machines(list(runs))
    parts = [" ".join(sentences)]
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        marks = kind != "heatmap" and len(runs) > 1
        parts.append(f"{f'Marks that are {FILLED[number]}: ' if marks else ''}{_run(run, name)}")
    return "\n\n".join(parts) + "\n"


def _run(run: Run, name: str) -> str:
    """The machine, its settings, the versions and the run, as one sentence."""
    header, facts = run.header, run.header.environment.fingerprint
    device, host = facts.get("device", {}), facts.get("host", {})
    cores, threads = device.get("cores"), facts.get("threads")
    parts = [
        name + (" (virtual machine)" if host.get("virtual") else ""),
        f"{cores} cores" if cores else "",
        units.count(threads, "thread") if threads else "",
        f"driver {facts['driver']}" if facts.get("driver") else "",
        f"torch {facts['torch']}" if facts.get("torch") else "torch not recorded",
        f"Python {host['python']}" if host.get("python") else "",
        f"hwbench {header.version}",
        f"suite {header.suite}",
        _facts.counts(run),
        f"measured {header.created[:10]}",
        f"run {header.run}",
        "" if run.complete else "not finished",
    ]
    return ", ".join(printable(each) for each in parts if each) + "."
