"""How far timed passes of one planned model differ between processes.

Each process reads the model, puts its layers into the formats of the plan, and times passes of it
and of the dense model in turn, as ``hwbench choose`` does for a budget of time. A line for each
has both seconds and their quotient; the last has the mean and the standard deviation of the
quotients. Run it on a machine that does nothing else: ``python evidence/passes.py plan.json``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import fmean, stdev

from hwbench import checkpoints
from hwbench.errors import HwbenchError
from hwbench.studies import choose as study


def main() -> None:
    """Print a line for each process, and what they have in common."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("plan", type=Path, help="a plan of hwbench choose")
    parser.add_argument("--processes", type=int, default=6)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    if options.processes < 2:
        parser.error("--processes is at least 2: a spread is asked for")
    try:
        tokens = int(checkpoints.described(options.plan)["tokens"])
    except (HwbenchError, KeyError, TypeError) as error:
        parser.error(f"{options.plan} is no plan that says how many tokens it is for: {error}")
    shares = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.processes):
            passed = study.passed(options.plan, tokens, device="cpu",
                                  threads=options.threads, out=folder)  # fmt: skip
            shares.append(passed.share)
            print(
                f"dense {1e3 * passed.dense_seconds:.1f} ms, planned "
                f"{1e3 * passed.planned_seconds:.1f} ms: {passed.share:.1%}",
                flush=True,
            )
    print(f"mean {fmean(shares):.1%}, standard deviation {stdev(shares):.1%} of a dense pass")


if __name__ == "__main__":
    main()
