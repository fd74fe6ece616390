"""How well a run tells the time that it has left, beside the mean of its results so far.

It measures a suite and notes what each result told: the seconds until the last result of the
plan's replicates, and what the mean of all results so far would have said. Further replicates, of
which no run knows before, are left out. ``python evidence/time_left.py suite.toml``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import hwbench
from hwbench.errors import HwbenchError
from hwbench.measure.schedule import Progress
from hwbench.store import read_run
from hwbench.units import clock


class Told(NamedTuple):
    """What a result told: seconds since the first line of the run, and seconds left."""

    seconds: float
    left: float | None
    mean: float


def measured(suite: str, words: str | None, out: Path) -> list[Told]:
    """Run the suite; what each result of the plan's replicates told.

    Raises:
        HwbenchError: it cannot be run.
    """
    heard: list[Progress] = []
    path = hwbench.run(suite, filter=words, device="cpu", out=out, listener=heard.append)
    begun = next(each.seconds for each in heard if each.begun)
    replicates = read_run(path).header.plan.replicates
    results = [each for each in heard if each.result and each.result.replicate < replicates]
    return [
        Told(
            each.seconds - begun,
            each.left,
            (each.seconds - begun) / number * (len(results) - number),
        )
        for number, each in enumerate(results, 1)
    ]


def main() -> None:
    """Print a table: the true time left, the one that was told, and the one by the mean."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("suite", help="a shipped suite, or a TOML file")
    parser.add_argument("--filter", default=None)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--lines", type=int, default=10)
    options = parser.parse_args()
    try:
        told = measured(options.suite, options.filter, options.out)
    except HwbenchError as error:
        parser.error(str(error))
    end = told[-1].seconds
    print(f"{'after':>7}{'left':>7}{'told':>7}{'mean':>7}")
    for number in range(1, options.lines):
        each = next(each for each in told if each.seconds >= number * end / options.lines)
        left = "–" if each.left is None else clock(each.left)
        print(
            f"{clock(each.seconds):>7}{clock(end - each.seconds):>7}{left:>7}{clock(each.mean):>7}"
        )


if __name__ == "__main__":
    main()
