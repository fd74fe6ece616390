"""Identical code on many nights, and nights with a format made slower: what the gate says of them.

One suite is measured night after night on this machine, with one thread and five replicates. After
the first five, a shorter run follows each night in which every call of two formats is delayed, one
by 10 % of its own time and one by 5 %; the two change places from night to night. Then

* every night but the first five is checked against the nights before it, as ``hwbench check
  --confirm`` does: against the last five until ten are stored, and then against the five of the
  last twenty that are nearest to it by their seconds of dense. What fails (exit 1) is false;
* nights are compared in disjoint pairs, one run a side, with confirmation: what regressed is false;
* every delayed run is judged by the gate as well, without confirmation: against the nights before
  its own, chosen in the same way, and against its own night alone, as ``--window 1`` has it. One
  that is told to be another machine's (exit 4) finds nothing, and is counted. It can be told so by
  dense alone: the gate suspects the machine where three formats move, and two are delayed.

Seeds, cases and pairs are fixed here. The folder keeps the runs; a second call finishes the one
that was cut off, and goes on with them.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

from hwbench.analysis.compare import Side, side
from hwbench.analysis.nights import KNOWN, NightResult, Question, judge_night
from hwbench.analysis.outcome import FINE, NOT_COMPARABLE, REGRESSION
from hwbench.analysis.stats import Rule
from hwbench.files import listed
from hwbench.measure import rerun
from hwbench.measure import run as runner
from hwbench.records import SLOWER, Verdict
from hwbench.store import Run, read_run
from hwbench.studies import gate, selftest

SUITE = {
    "schema": 1,
    "name": "nights",
    "plan": {"replicates": 5, "budget_seconds": 0.15, "relative_width": 0.005},
    "cases": [
        {
            "workload": "linear",
            "direction": ["forward", "step"],
            "shape": [1024, 1024],
            "tokens": [16, 64, 256],
            "format": [
                {"name": name, "density": 0.5}
                for name in (
                    "low_rank", "monarch", "btt", "blast", "block_dense", "low_rank_light"
                )
            ],
        }
    ],
}  # fmt: skip
SLOWED = ("low_rank", "monarch")
SHARES = (0.10, 0.05)
_NIGHT = re.compile(r"(night|slow)-\d+\.jsonl")
RULE = Rule(threshold=0.03, margin=0.03, floor=gate.FLOOR_SECONDS)


def shares(night: int) -> dict[str, float]:
    """By how much each slowed format is delayed on a night."""
    return dict(zip(SLOWED, SHARES if night % 2 else SHARES[::-1], strict=True))


def measured(folder: Path, nights: int, rest: float) -> tuple[list[Run], dict[int, Run]]:
    """The runs of all nights, and the delayed ones by night; those that exist are read.

    One that was cut off is finished: the replicates that it lacks are of today.
    """
    first, there = folder / "first", stored(folder)
    if there:
        dates = sorted(run.header.created for run in there)
        cut = sum(not run.complete for run in there)
        print(
            f"{len(there)} runs were there already, made from {dates[0]} to {dates[-1]}; "
            f"{cut} of them were cut off, and are finished now",
            flush=True,
        )
    if not first.exists():
        path = runner.run(SUITE, device="cpu", out=folder, threads=1, seed=20_000)
        first.write_text(path.name)
    runs, slow = [read_run(folder / first.read_text())], {}
    for night in range(1, nights):
        runs.append(_measured(runs[0], f"night-{night:02d}", runs[0].planned, night, rest))
        if night >= gate.WINDOW:
            gate.check(runs[-1].path, folder, confirm=True)  # what is flagged is measured tonight
            planned = {
                case: planned
                for case, planned in selftest.delayed(runs[-1], shares(night)).items()
                if planned.case.format in (*SLOWED, "dense")
            }
            slow[night] = _measured(runs[0], f"slow-{night:02d}", planned, 1000 + night, rest)
    return runs, slow


def _measured(first: Run, name: str, planned: dict[str, Any], number: int, rest: float) -> Run:
    path = first.path.with_name(f"{name}.jsonl")
    if path.exists():
        if not read_run(path).complete:
            time.sleep(rest)
            runner.resume(path)
            print(f"{name} finished", flush=True)
    else:
        time.sleep(rest)
        rerun.anew(
            first, planned, name,
            replicates=5, seed=20_000 + 100 * number,
            arguments={SLOWER: max(SHARES)} if name.startswith("slow") else {},
        )  # fmt: skip
        print(f"{name} measured", flush=True)
    return read_run(path)


def stored(folder: Path) -> list[Run]:
    """The nights of a folder that an earlier call measured, delayed ones among them."""
    first = folder / "first"
    names = [first.read_text()] if first.exists() else []
    names += [path.name for path in listed(folder, "*.jsonl") if _NIGHT.fullmatch(path.name)]
    return [read_run(folder / name) for name in names]


def sided(run: Run) -> Side:
    """The cases of a run with their values."""
    return side(run.header, run.planned, run.results)


def nightly(runs: list[Run]) -> None:
    """Every night but the first five, as ``hwbench check --confirm`` judges it."""
    codes = Counter[int]()
    for run in runs[gate.WINDOW :]:
        outcome = gate.check(run.path, run.path.parent, confirm=True)
        codes[outcome.exit] += 1
        for change in outcome.changes:
            if change.verdict is Verdict.REGRESSED:
                print(f"  false: {run.header.run} {change.case}: {change.reason}")
    total = sum(codes.values())
    others = codes.keys() - {FINE, REGRESSION, NOT_COMPARABLE}
    words = "".join(f", {codes[code]} were {code}" for code in sorted(others))
    print(
        f"identical nights against five: {codes[REGRESSION]} of {total} failed (exit 1), "
        f"{codes[NOT_COMPARABLE]} were another machine's (exit 4){words}"
    )


def pairs(runs: list[Run]) -> None:
    """Disjoint pairs of nights, one run a side, confirmed."""
    compared, wrong, verdicts = 0, 0, Counter[str]()
    for old, new in zip(runs[::2], runs[1::2], strict=False):

        def again(cases: list[str], new: Run = new) -> Side:
            return sided(read_run(rerun.again(new, cases, gate.CONFIRMATIONS)))

        judged = gate.judge_cases([sided(old)], sided(new), RULE, window=1, again=again)
        timed = [each for each in judged.changes if each.metric == "relative"]
        compared += len(timed)
        wrong += sum(each.verdict is Verdict.REGRESSED for each in timed)
        verdicts.update(each.verdict.value for each in timed)
    counts = ", ".join(f"{count} {name}" for name, count in verdicts.most_common())
    print(f"identical pairs: {wrong} of {compared} comparisons regressed ({counts})")


def judged(stored: list[Side], new: Side, window: int) -> NightResult:
    """The gate's verdicts on a run, unconfirmed."""
    return judge_night(stored[-KNOWN:], new, Question(rule=RULE, window=window))


def found(runs: list[Run], slow: dict[int, Run]) -> None:
    """Every delayed case: found against five nights, and against its own night alone."""
    hits: dict[tuple[str, float, str], list[bool]] = {}
    nights: dict[tuple[str, float], list[bool]] = {}
    strange = Counter[str]()
    sides = [sided(run) for run in runs]
    for night, run in slow.items():
        for against, old in (("five", sides[:night]), ("one", [sides[night]])):
            decision = judged(old, sided(run), gate.WINDOW if against == "five" else 1)
            same = decision.stranger is None
            strange[against] += not same
            for share, name in zip(shares(night).values(), shares(night), strict=True):
                verdicts = [
                    (each.case, same and each.verdict is Verdict.REGRESSED)
                    for each in decision.judged.changes
                    if each.case in run.planned and run.planned[each.case].case.format == name
                ]
                nights.setdefault((against, share), []).append(any(hit for _, hit in verdicts))
                for case, hit in verdicts:
                    where = case.replace(name, "…")
                    hits.setdefault((against, share, where), []).append(hit)
    for (against, share), nights_found in nights.items():
        cases = [tried for key, tried in hits.items() if key[:2] == (against, share)]
        each, all_ = sum(map(sum, cases)), sum(map(len, cases))
        print(
            f"{share:.0%} slower, against {against}: the format is found on "
            f"{sum(nights_found)} of {len(nights_found)} nights, {each} of {all_} of its cases; "
            f"{strange[against]} nights were another machine's (exit 4)"
        )
    for (against, share, case), tried in sorted(hits.items()):
        print(f"  {against:4s} {share:4.0%} {sum(tried):3d} of {len(tried):3d}  {case}")


def main() -> None:
    """Measure what is missing, then judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nights", type=int, default=25)
    parser.add_argument("--rest", type=float, default=0.0, help="seconds between the runs")
    parser.add_argument("--out", type=Path, default=Path("runs/nights"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    runs, slow = measured(options.out, options.nights, options.rest)
    nightly(runs)
    pairs(runs)
    found(runs, slow)


if __name__ == "__main__":
    main()
