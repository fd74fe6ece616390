"""Simulated nights: how often the gate fails without a reason, and what it finds.

The figures of docs/nightly.md, with the nights of ``tests/test_gate.py``: 200 cases, five
replicates a night, the last five nights as the baseline, and a confirmation that shares its
night's luck.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from test_gate import gaussian, simulate, spikes, two_modes, unlike_cases

KINDS: dict[str, dict[str, Any]] = {
    "spread 2 %": {},
    "spread 2 %, without --confirm": {"confirm": False},
    "and 5 % of replicates last 1.3 times as long": {"noise": spikes},
    "spread 1 %, 20 % of processes in a mode 10 % slower": {"noise": two_modes},
    "cases with spreads from 0.3 % to 6 %": {"noise": unlike_cases},
    "0.1 % slower every night": {"drift": 0.001},
    "spread 1 %, nights differ by 1 % more, case by case": {
        "noise": gaussian(0.01),
        "own_night": 0.01,
    },
    "spread 1 %, nights differ by 2 % more, case by case": {
        "noise": gaussian(0.01),
        "own_night": 0.02,
    },
    "one baseline run": {"runs": 1},
    "three baseline runs": {"runs": 3},
}


def main() -> None:
    """Print a row for each kind of night."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nights", type=int, default=200, help="nights without a change")
    nights = parser.parse_args().nights
    few = max(1, nights // 8)
    print("| | false nights | 5 % slower, found | called equal | 10 % slower, found |")
    print("|---|---:|---:|---:|---:|")
    for words, kind in KINDS.items():
        same, five, ten = (
            simulate(count, slower=slower, **kind)
            for count, slower in ((nights, 0.0), (few, 0.05), (few, 0.10))
        )
        print(
            f"| {words} | {same.false_nights} of {same.nights} | {five.found:.1%} "
            f"| {five.equivalent / five.cases:.2%} | {ten.found:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
