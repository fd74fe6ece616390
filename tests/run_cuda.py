"""Runs the tests marked cuda, in an interpreter that has torch and pytest; installs nothing.

Tests of results run side by side where pytest-xdist is there. Those of memory and time come after
them, alone. It fails when a test fails, and when none ran.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

TESTS = Path(__file__).parent
RESULTS = TESTS.parent / ".pytest_cache"
ALONE = "test_devices_cuda.py"
"""Reads the device's memory and time, which other tests would disturb."""


def files() -> list[Path]:
    """The files with tests marked cuda; the others may import what is not there."""
    marked = (path for path in TESTS.glob("test_*.py") if "mark.cuda" in path.read_text("utf-8"))
    return sorted(marked)


def command(paths: list[Path], results: Path, warnings: str, jobs: int = 0) -> list[str]:
    """How pytest is called, with the plug-ins that this interpreter has."""
    options = ["-m", "cuda", "-W", warnings, "--junit-xml", str(results)]
    if jobs and importlib.util.find_spec("xdist"):
        options += ["-n", str(jobs)]
    if importlib.util.find_spec("pytest_timeout"):
        options += ["--timeout", "60"]
    return [sys.executable, "-m", "pytest", *options, *map(str, paths)]


def ran(results: Path) -> int:
    """How many tests ran, those that were skipped left out."""
    suite = ET.parse(results).getroot().find("testsuite")  # noqa: S314 (pytest wrote it)
    return 0 if suite is None else int(suite.get("tests", 0)) - int(suite.get("skipped", 0))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--warnings", default="default")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    alone = [path for path in files() if path.name == ALONE]
    parts = {
        "cuda.xml": ([path for path in files() if path not in alone], arguments.jobs),
        "cuda-alone.xml": (alone, 0),
    }
    codes, count = [], 0
    for name, (paths, jobs) in parts.items():
        results = RESULTS / name
        results.unlink(missing_ok=True)
        done = subprocess.run(command(paths, results, arguments.warnings, jobs), check=False)
        codes.append(done.returncode)
        count += ran(results) if results.exists() else 0
    print(count, "cuda tests ran")
    return int(any(codes) or not count)


if __name__ == "__main__":
    raise SystemExit(main())
