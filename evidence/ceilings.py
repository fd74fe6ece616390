"""How well the ceilings agree when they are measured again, and how near dense layers come.

``hwbench ceilings`` in a fresh process and with an empty cache, several times; then one run of
large dense layers against the last of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import hwbench
from hwbench import units

LAYERS = {
    "schema": 1,
    "name": "large",
    "plan": {"replicates": 3},
    "cases": [
        {
            "workload": "linear",
            "shape": [[1024, 1024], [2048, 2048], [4096, 1024]],
            "tokens": 2048,
            "dtype": ["float32", "bfloat16"],
            "format": [{"name": "dense"}],
        }
    ],
}


def once(threads: int, cache: Path) -> tuple[float, dict[str, Any]]:
    """Wall seconds of the command, its start included, and what it printed."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-m", "hwbench", "ceilings", "--device", "cpu", "--json"]
    begun = time.monotonic()
    done = subprocess.run(
        [*command, "--threads", str(threads)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return time.monotonic() - begun, json.loads(done.stdout)


def row(words: str, values: list[float], unit: str) -> str:
    """One figure of every time, and the largest over the smallest."""
    apart = max(values) / min(values) - 1
    return f"{words:20s}" + "".join(f"{units.si(v, unit):>14s}" for v in values) + f"{apart:9.1%}"


def main() -> None:
    """Print each ceiling as often as it was measured, then the dense layers' share of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        measured = [once(options.threads, Path(name) / str(nth)) for nth in range(options.times)]
        everything = [ceilings for _, ceilings in measured]
        print(
            f"{options.times} times hwbench ceilings, {options.threads} threads; "
            "last: max / min − 1"
        )
        print(row("wall", [seconds for seconds, _ in measured], "s"))
        print(f"{'disturbed':20s}" + "".join(f"{c['disturbed']:14.0%}" for c in everything))
        for dtype in everything[0]["matmul"]:
            rates = [c["matmul"][dtype]["flops_per_second"] for c in everything]
            best = " / ".join(dict.fromkeys(c["matmul"][dtype]["library"] for c in everything))
            print(f"{row(f'matmul {dtype}', rates, 'FLOP/s')}  {best}")
        for moved in ("copy", "triad"):
            print(row(moved, [c[moved]["bytes_per_second"] for c in everything], "B/s"))
        print(row("launch", [c["launch"]["seconds"] for c in everything], "s"))
        os.environ["XDG_CACHE_HOME"] = str(Path(name) / str(options.times - 1))
        path = hwbench.run(LAYERS, device="cpu", out=Path(name), threads=options.threads)
        for layer in hwbench.summary(path).to_dict("records"):
            shape = f"{layer['out_features']}x{layer['in_features']}"
            words = f"dense {shape} {layer['dtype']}, {layer['tokens']} tokens"
            print(f"{words}: {layer['efficiency']:.0%} of its roof, bound by {layer['bound']}")


if __name__ == "__main__":
    main()
