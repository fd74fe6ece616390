"""Steps of known duration (a busy-wait of 20 µs, 200 µs, 5 ms) and what hwbench reports."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median

import hwbench
from hwbench.store import read_run

ASKED_MICROSECONDS = (20, 200, 5000)
REPLICATES = 5


def document() -> dict[str, object]:
    """A suite of one busy-wait for each duration."""
    return {
        "schema": 1,
        "name": "durations",
        "plan": {"replicates": REPLICATES},
        "cases": [
            {
                "workload": "spin",
                "microseconds": list(ASKED_MICROSECONDS),
                "shape": [1, 1],
                "format": [{"name": "dense"}],
            }
        ],
    }


def main() -> None:
    """Measure and print one line a duration."""
    with tempfile.TemporaryDirectory() as folder:
        run = read_run(hwbench.run(document(), device="cpu", out=Path(folder)))
    print("asked        reported     error     quiet blocks   error within 1 %")
    for case, planned in run.planned.items():
        seconds_asked = float(planned.case.options["microseconds"]) * 1e-6
        samples = [
            (value, bad)
            for result in run.results
            if result.case == case
            for m in result.measurements
            if m.quantity == "time_seconds"
            for value, bad in zip(m.values, m.disturbed or [False] * len(m.values), strict=True)
        ]
        quiet = [value for value, bad in samples if not bad]
        reported = median(quiet)
        error = reported / seconds_asked - 1
        print(
            f"{seconds_asked * 1e6:7.0f} µs   {reported * 1e6:8.2f} µs   {100 * error:+.2f} %   "
            f"{len(quiet):4d} of {len(samples):4d}   {'yes' if abs(error) <= 0.01 else 'NO'}"
        )


if __name__ == "__main__":
    main()
