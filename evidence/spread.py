"""How well repeated runs agree: hwbench, torch.utils.benchmark and pytest-benchmark.

All get the same wall time.
Each tool gives, in one run, the ratio of a format's time to dense. Runs of the three alternate. The
time that hwbench takes for a run, process starts included, is what the other two get. The figure is
the standard deviation of the logarithm of the ratio over the runs of a tool.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev

import hwbench
from hwbench.analysis.frames import summary_rows
from hwbench.store import read_run

FORMATS = {"low_rank": 0.5, "monarch": 0.5, "csr": 0.1}
SIDE = 1024
PROBES = (0.5, 2.0)  # seconds a layer, tried to learn how much wall time a tool makes of them

LAYERS = """
import torch, hwbench
torch.set_num_threads({threads})
def layer(name):
    f = hwbench.get_format(name)
    knobs = {{}} if name == "dense" else {{"density": {formats}[name]}}
    made = f.from_knobs({side}, {side}, **knobs)
    random = made.random(dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    return random.trust_versions()
x = torch.randn({tokens}, {side})
names = ["dense", *{formats}]
layers = {{name: layer(name) for name in names}}
"""

TORCH = (
    LAYERS
    + """
import json
from torch.utils.benchmark import Timer
found = {{}}
with torch.no_grad():
    for name in names:
        timer = Timer("layer(x)", globals={{"layer": layers[name], "x": x}}, num_threads={threads})
        found[name] = timer.adaptive_autorange(min_run_time={each}, max_run_time={each}).median
print(json.dumps(found))
"""
)

PYTEST = (
    LAYERS
    + """
import pytest
@pytest.mark.parametrize("name", names)
def test_layer(benchmark, name):
    with torch.no_grad():
        benchmark(layers[name], x)
"""
)


def by_hwbench(folder: Path, options: argparse.Namespace, each: float) -> dict[str, float]:
    """One run of hwbench; the relative times by format."""
    del each  # it sets the time
    document = {
        "schema": 1,
        "name": "spread",
        "plan": {"replicates": 10, "relative_width": 0.002, "budget_seconds": 0.1},
        "cases": [
            {
                "workload": "linear",
                "direction": "forward",
                "shape": [SIDE, SIDE],
                "tokens": options.tokens,
                "format": [{"name": n, "density": d} for n, d in FORMATS.items()],
            }
        ],
    }
    run = read_run(hwbench.run(document, device="cpu", out=folder, threads=options.threads))
    rows = {row["format"]: row["relative_time"] for row in summary_rows(run)}
    return {name: rows[name] for name in FORMATS}


def _filled(template: str, each: float, options: argparse.Namespace) -> str:
    return template.format(
        threads=options.threads, formats=repr(FORMATS), side=SIDE, tokens=options.tokens, each=each
    )


def by_torch(folder: Path, options: argparse.Namespace, each: float) -> dict[str, float]:
    """One process of torch.utils.benchmark; the ratios of medians by format."""
    del folder
    done = subprocess.run(
        [sys.executable, "-c", _filled(TORCH, each, options)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    seconds = json.loads(done.stdout.strip().splitlines()[-1])
    return {name: seconds[name] / seconds["dense"] for name in FORMATS}


def by_pytest(folder: Path, options: argparse.Namespace, each: float) -> dict[str, float]:
    """One process of pytest-benchmark; the ratios of medians by format."""
    test = folder / "test_spread.py"
    test.write_text(_filled(PYTEST, each, options))
    stored = folder / "stored.json"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", str(test),
         f"--benchmark-json={stored}", f"--benchmark-max-time={each}",
         f"--benchmark-min-time={each / 1000}"],
        capture_output=True, check=True,
    )  # fmt: skip
    stats = json.loads(stored.read_text())["benchmarks"]
    medians = {b["params"]["name"]: b["stats"]["median"] for b in stats}
    return {name: medians[name] / medians["dense"] for name in FORMATS}


TOOLS = {
    "hwbench": by_hwbench,
    "torch.utils.benchmark": by_torch,
    "pytest-benchmark": by_pytest,
}


def timed(
    tool: str, folder: Path, options: argparse.Namespace, each: float
) -> tuple[float, dict[str, float]]:
    """Wall seconds of one run of a tool, its start included, and its ratios."""
    begun = time.monotonic()
    ratios = TOOLS[tool](folder, options, each)
    return time.monotonic() - begun, ratios


def budgets(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Seconds a layer with which each tool takes as long as hwbench takes for a run."""
    wall = timed("hwbench", folder, options, 0.0)[0]
    seconds_of = {"hwbench": 0.0}
    for tool in list(TOOLS)[1:]:
        short, long = (timed(tool, folder, options, each)[0] for each in PROBES)
        slope = (long - short) / (PROBES[1] - PROBES[0])
        seconds_of[tool] = max(0.1, PROBES[0] + (wall - short) / slope)
    return seconds_of


def main() -> None:
    """Alternate the three tools and print the spread of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rest", type=float, default=0.0, help="seconds between the runs")
    options = parser.parse_args()
    logs: dict[str, dict[str, list[float]]] = {t: {n: [] for n in FORMATS} for t in TOOLS}
    walls: dict[str, list[float]] = {tool: [] for tool in TOOLS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        each = budgets(folder, options)
        for _ in range(options.runs):
            for tool in TOOLS:
                time.sleep(options.rest)
                wall, ratios = timed(tool, folder, options, each[tool])
                walls[tool].append(wall)
                for format_name, value in ratios.items():
                    logs[tool][format_name].append(math.log(value))
    print(
        f"spread of the ratio to dense, {options.runs} runs (sd of logs), {options.tokens} tokens"
    )
    print(
        f"{'tool':24s}{'wall':>8s}" + "".join(f"{name:>12s}" for name in FORMATS) + "        mean"
    )
    for tool, values in logs.items():
        spreads = [stdev(values[name]) for name in FORMATS]
        cells = "".join(f"{100 * spread:10.2f} %" for spread in spreads)
        print(f"{tool:24s}{mean(walls[tool]):6.1f} s{cells}{100 * mean(spreads):10.2f} %")


if __name__ == "__main__":
    main()
