"""What a hundred thousand cases and a hundred thousand results cost: seconds and memory."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from msgspec.structs import replace

import hwbench
from hwbench.measure import run as runner
from hwbench.measure.schedule import Progress
from hwbench.records import Footer, Measurement, PlannedLine, Result, ResultLine, Status
from hwbench.store import RunWriter, read_run

SUITE = """
schema = 1
name = "scale"
[plan]
replicates = 1
[[cases]]
workload = "linear"
direction = ["forward", "step"]
shape = [[128, 128], [256, 128], [128, 256], [256, 256], [512, 256],
         [256, 512], [512, 512], [1024, 128], [128, 1024], [1024, 1024]]
tokens = [{tokens}]
dtype = ["float32", "bfloat16"]
format = [
  {{ name = "dense" }},
  {{ name = "low_rank", rank = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10] }},
  {{ name = "low_rank", density = [0.5, 0.4, 0.3, 0.2, 0.1] }},
  {{ name = "coo", density = [0.5, 0.4, 0.3, 0.2, 0.1] }},
  {{ name = "csr", density = [0.5, 0.4, 0.3, 0.2, 0.1] }},
  {{ name = "monarch", density = [0.5, 0.4, 0.3, 0.25] }},
  {{ name = "blast", density = [0.5, 0.4, 0.3, 0.25], blocks = [2, 4] }},
  {{ name = "btt", density = [0.5, 0.48, 0.46, 0.44, 0.42, 0.4, 0.38, 0.36, 0.34,
                           0.32, 0.3, 0.28] }},
]
"""
REPLICATES = 5


class _PlannedError(Exception):
    """Raised by the listener as soon as the run is planned."""


def planned(folder: Path, tokens: int) -> tuple[Path, float]:
    """Plan 2000 cases a token count; the run file with its cases, and the seconds from the start.

    The run is left where its first case would be measured.
    """
    suite = folder / f"scale-{tokens}.toml"
    suite.write_text(SUITE.format(tokens=", ".join(map(str, range(1, tokens + 1)))))
    paths: list[Path] = []

    def stop(progress: Progress) -> None:
        paths.append(progress.path)
        raise _PlannedError

    begun = time.perf_counter()
    with contextlib.suppress(_PlannedError):
        runner.run(str(suite), device="fake", out=folder, threads=1, listener=stop)
    return paths[0], time.perf_counter() - begun


def stored(path: Path) -> tuple[Path, int, float]:
    """A made-up result of every case and replicate, one append each, as a run would write them."""
    run = read_run(path)
    run.path.unlink()
    lines = [PlannedLine(id=case, planned=each) for case, each in run.planned.items()]
    begun = time.perf_counter()
    header = replace(run.header, plan=replace(run.header.plan, replicates=REPLICATES))
    writer = RunWriter.create(path.parent, header, lines)
    count = 0
    for replicate in range(REPLICATES):
        for number, case in enumerate(run.planned):
            seconds = 1e-5 * (1 + number % 97)
            writer.append(ResultLine(result=Result(
                case=case, replicate=replicate, seed=replicate, status=Status.OK,
                measurements=[
                    Measurement(quantity="numerical_error", unit="", values=[3e-7]),
                    Measurement(
                        quantity="time_seconds", unit="s", contract="wall", calls=64,
                        values=[seconds * (1 + 0.01 * block) for block in range(6)],
                    ),
                    Measurement(
                        quantity="relative_time", unit="×", values=[0.5 + 0.01 * (number % 40)] * 5
                    ),
                ],
            )))  # fmt: skip
            count += 1
    writer.append(Footer(finished=run.header.created, wall_seconds=1.0))
    writer.close()
    return writer.path, count, time.perf_counter() - begun


def processor_seconds() -> float:
    """The processor time of this process and of its children that ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def peak_bytes() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Print what each step took."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, seconds = planned(folder, 50)
        spent = processor_seconds()
        cases = len(read_run(path).planned)
        child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        print(f"planned   {cases:7d} cases    {seconds:6.2f} s   "
              f"{spent:.2f} s of processor time, "
              f"{peak_bytes() / 1e6:.0f} MB, its worker {child / 1e6:.0f} MB")  # fmt: skip
        small, _ = planned(folder, 10)
        run, count, seconds = stored(small)
        print(f"stored    {count:7d} results  {seconds:6.2f} s   {run.stat().st_size / 1e6:.0f} MB")
        begun, before = time.perf_counter(), processor_seconds()
        frame = hwbench.load_run(run)
        print(f"loaded    {len(frame):7d} rows     {time.perf_counter() - begun:6.2f} s   "
              f"{processor_seconds() - before:.2f} s of processor time, pandas")  # fmt: skip
        page = folder / "report.html"
        begun, before = time.perf_counter(), processor_seconds()
        command = [sys.executable, "-m", "hwbench", "report", str(run), "--out", str(page)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        print(f"reported  {len(frame):7d} results  {time.perf_counter() - begun:6.2f} s   "
              f"{processor_seconds() - before:.2f} s of processor time, "
              f"{page.stat().st_size / 1e6:.0f} MB of HTML")  # fmt: skip


if __name__ == "__main__":
    main()
