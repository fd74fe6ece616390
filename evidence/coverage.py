"""How often a printed interval holds what the next runs say, and whether winners stay winners.

Several runs of one suite on this machine, whatever its neighbours do, into one folder, as a user
makes them. The 95 % interval of each relative time is held to the median of the other runs. A run
that says of itself that the machine was slower throughout is not counted, and told. Every run is
also checked against every other, as ``hwbench check`` does without a confirmation: the code is the
same, so each regression is false.

``--neighbour`` starts a process that streams memory for all of the time. ``--read FOLDER`` makes no
runs and reads those of a folder, which must be of one suite, one machine and one version; runs that
were cut off or made for a purpose, such as a confirmation, are left out and counted.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from statistics import median, stdev

import hwbench
from hwbench.analysis import fingerprint
from hwbench.analysis.compare import side
from hwbench.analysis.frames import summary_rows
from hwbench.analysis.quiet import slowed
from hwbench.analysis.stats import Rule
from hwbench.measure.run import deciding
from hwbench.records import Verdict
from hwbench.report import _answers
from hwbench.report.rows import groups, report_rows
from hwbench.store import Run, list_runs, read_header, read_run
from hwbench.studies import doctor, gate

SUITE = {
    "schema": 1,
    "name": "coverage",
    "about": "Does the next run keep what this one says?",
    "plan": {"replicates": 5},
    "cases": [
        {
            "workload": "linear",
            "direction": ["forward", "step"],
            "shape": [1024, 1024],
            "tokens": [16, 256],
            "format": [
                {"name": "dense"},
                {"name": "low_rank", "density": 0.5},
                {"name": "monarch", "density": 0.5},
                {"name": "btt", "density": 0.5},
                {"name": "csr", "density": 0.1},
            ],
        }
    ],
}
"""Twenty cases of ``linear``."""

WANTED = {
    "coverage": 0.88,
    "narrowest fifth": 0.85,
    "verdicts, quiet runs": 0.95,
    "verdicts, other runs": 0.60,
    "decided or tied": 0.60,
}
"""The least that is asked for."""

AT_MOST = {
    "half width": 0.025,
    "sd between runs": 0.015,
    "contradictory winners": 0.0,
    "false regressions": 2 / 400,
}
"""The most that is allowed."""

RULE = Rule(threshold=0.03, margin=0.03, floor=gate.FLOOR_SECONDS)

_QUIET = ("load", "quiet", "steady")  # the checks of doctor that speak of the moment

STREAM = """
import torch
torch.set_num_threads(1)
here, there = torch.ones(64_000_000), torch.empty(64_000_000)
while True:
    there.copy_(here)
"""


@dataclass
class Figures:
    """The counts over the runs of one suite; shares and relative widths are fractions."""

    runs: int
    slowed: int  # of them, which are in nothing else
    rows: int  # of relative times, in runs that count
    with_verdict: dict[bool, list[bool]] = field(default_factory=lambda: defaultdict(list))
    held: list[tuple[float, bool]] = field(default_factory=list)  # half width, and whether it holds
    spreads: list[float] = field(default_factory=list)  # sd of a case between runs, on logs
    looks: int = 0  # at a named winner, in another run
    contradictory: int = 0
    statements: int = 0
    decided: int = 0  # of them, which name a winner, tied or not
    alarms: list[bool] = field(default_factory=list)  # of each comparison: whether it regressed

    def figures(self) -> dict[str, float]:
        """The figures by name; nan where nothing tells them."""
        narrow = sorted(self.held)[: len(self.held) // 5]
        return {
            "coverage": _share([held for _, held in self.held]),
            "narrowest fifth": _share([held for _, held in narrow]),
            "verdicts, quiet runs": _share(self.with_verdict[True]),
            "verdicts, other runs": _share(self.with_verdict[False]),
            "half width": median([half for half, _ in self.held]) if self.held else math.nan,
            "sd between runs": median(self.spreads) if self.spreads else math.nan,
            "decided or tied": self.decided / self.statements if self.statements else math.nan,
            "contradictory winners": float(self.contradictory),
            "false regressions": _share(self.alarms),
        }


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else math.nan


def evaluate(runs: Sequence[Run], quiet: Sequence[bool]) -> Figures:
    """Hold every interval to the other runs. ``quiet`` is what doctor said before each run."""
    slow_runs = [slowed(run.header, run.planned, run.results) is not None for run in runs]
    calm_runs = [
        (run, calm) for run, calm, slow in zip(runs, quiet, slow_runs, strict=True) if not slow
    ]
    figures = Figures(runs=len(runs), slowed=sum(slow_runs), rows=0)
    tables = [
        {row["case"]: row for row in summary_rows(run) if row["relative_time"] > 0}
        for run, _ in calm_runs
    ]
    values: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for number, table in enumerate(tables):
        for case, row in table.items():
            figures.rows += 1
            sure = math.isfinite(row["relative_low"])
            figures.with_verdict[calm_runs[number][1]].append(sure)
            if sure:
                values[case].append((number, row["relative_time"]))
    for case, points in values.items():
        if len(points) > 1:
            figures.spreads.append(stdev([math.log(value) for _, value in points]))
        for number, value in points:
            others = [other for another, other in points if another != number]
            if others:
                row = tables[number][case]
                half = (row["relative_high"] - row["relative_low"]) / 2 / value
                inside = row["relative_low"] <= median(others) <= row["relative_high"]
                figures.held.append((half, inside))
    _winners([winners(run) for run, _ in calm_runs], figures)
    figures.alarms += alarms([run for run, _ in calm_runs])
    return figures


def alarms(runs: Sequence[Run]) -> list[bool]:
    """Whether each relative time of each run regressed against each other run, unconfirmed."""
    sides = [side(run.header, run.planned, run.results) for run in runs]
    return [
        change.verdict is Verdict.REGRESSED
        for old, new in permutations(sides, 2)
        for change in gate.judge_cases([old], new, RULE, window=1).changes
        if change.metric == "relative"
    ]


def winners(run: Run) -> dict[tuple[str, float], _answers.Winner]:
    """The winner that the report names for each group at each density."""
    answers = [_answers.answer(members) for members in groups(report_rows(run)).values()]
    return {
        (each.title, density): winner
        for each in answers
        for density, winner in each.winners.items()
    }


def _winners(named: Sequence[dict[tuple[str, float], _answers.Winner]], figures: Figures) -> None:
    """A winner is contradicted where another run names one with which it is not tied."""
    for number, run in enumerate(named):
        for key, winner in run.items():
            figures.statements += 1
            if winner.name is None:
                continue
            figures.decided += 1
            for other in [each[key] for n, each in enumerate(named) if n != number and key in each]:
                figures.looks += 1
                if other.name is not None:
                    figures.contradictory += not (
                        {winner.name, *winner.tied} & {other.name, *other.tied}
                    )


def report(figures: Figures) -> list[str]:
    """The figures beside what is asked for, one line each."""
    first = (
        f"{figures.runs} runs, {figures.slowed} of them slower throughout and not counted; "
        f"{figures.rows} relative times, {len(figures.held)} intervals held to the other runs; "
        f"{figures.looks} looks at a named winner, {figures.statements} statements; "
        f"{len(figures.alarms)} comparisons of runs, {sum(figures.alarms)} of them regressed"
    )
    lines = [first]
    for name, value in figures.figures().items():
        limit = WANTED.get(name, AT_MOST.get(name))
        assert limit is not None
        bound = "at least" if name in WANTED else "at most"
        met = value >= limit if name in WANTED else value <= limit
        outcome = "nothing tells it" if math.isnan(value) else "holds" if met else "MISSED"
        number = f"{value:.0f}" if name == "contradictory winners" else f"{100 * value:.1f} %"
        bound_words = f"{limit:.0f}" if name == "contradictory winners" else f"{100 * limit:.1f} %"
        lines.append(f"{name:24s}{number:>10s}   {bound} {bound_words}: {outcome}")
    return lines


@contextmanager
def neighbour() -> Iterator[None]:
    """A process that streams memory for as long as this lasts."""
    process = subprocess.Popen([sys.executable, "-c", STREAM])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def make(folder: Path, options: argparse.Namespace) -> tuple[list[Run], list[bool]]:
    """The runs, one after another, and whether doctor called the machine quiet before each."""
    runs, quiet = [], []
    for number in range(options.runs):
        time.sleep(options.rest)
        checks = doctor.examine(options.device, options.threads)
        bad = [c.key for c in checks if c.key in _QUIET and c.verdict is not doctor.Verdict.FINE]
        begun = time.monotonic()
        path = hwbench.run(SUITE, device=options.device, out=folder, threads=options.threads)
        runs.append(read_run(path))
        quiet.append(not bad)
        replicates = len({result.replicate for result in runs[-1].results})
        words = f"not quiet: {', '.join(bad)}" if bad else "quiet"
        seconds = time.monotonic() - begun
        print(f"run {number + 1}: {replicates} replicates, {seconds:.0f} s, {words}", flush=True)
    return runs, quiet


def comparable(folder: Path) -> list[Run]:
    """The finished runs of a folder that are measurements of their own, oldest first.

    Raises:
        SystemExit: they are of two suites, or of machines or versions that cannot be compared.
    """
    read, left = [], Counter[str]()
    for path in list_runs(folder):
        header = read_header(path)
        run = None if header.purpose else read_run(path)
        if run is not None and run.complete:
            read.append(run)
        else:
            left[header.purpose or "cut off"] += 1
    for reason, count in left.items():
        print(f"{count} runs of {folder} are left out: {reason}", flush=True)
    for run in read[1:]:
        if run.header.suite != read[0].header.suite:
            suites = f"{read[0].header.suite} and {run.header.suite}"
            raise SystemExit(f"{folder} holds runs of two suites, {suites}: read one of them.")
        machines = [fingerprint.facts(each.header.environment) for each in (read[0], run)]
        if different := deciding(fingerprint.differences(*machines)):
            raise SystemExit(
                f"{read[0].path.name} and {run.path.name} are of two machines or versions: "
                f"{'; '.join(different)}."
            )
    return read


def main(arguments: Sequence[str] | None = None) -> None:
    """Make or read the runs, and print what they say together."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--rest", type=float, default=10.0, help="seconds before each run")
    parser.add_argument("--neighbour", action="store_true")
    parser.add_argument("--out", type=Path, help="keep the runs here")
    parser.add_argument("--read", type=Path, help="read the runs of this folder, and make none")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name, neighbour() if options.neighbour else nullcontext():
        if options.read:
            runs = comparable(options.read)
            quiet = [False] * len(runs)  # what doctor said then is not known
        else:
            runs, quiet = make(options.out or Path(name), options)
    print("\n".join(report(evaluate(runs, quiet))))


if __name__ == "__main__":
    main()
