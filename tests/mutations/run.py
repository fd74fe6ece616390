"""Put known faults back into a copy of this checkout, one by one: a test has to find each.

A patch beside this file is a fault: the undoing of a mend of the history, or a change of a line
that matters. Its header says what it is, which area it belongs to, and which tests have to find it:

    Area: resume
    Tests: tests/test_store.py
    Undoes: 5464abd A run file that cannot be begun is taken away again

Run it as ``make mutations``, or with parts of file names as arguments.

First those tests run on a copy without a fault, where all have to pass: a test that fails there
would find anything. The exit code is 1 where a fault was lost: nobody found it. A patch that does
not apply is an error.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NEEDED = ("hwbench", "suites", "tests", "docs", "pyproject.toml", "README.md", "CHANGELOG.md",
          "CONTRIBUTING.md", "CITATION.cff", "constraints.txt", "Makefile")  # fmt: skip
FIRST_TIER = "not cuda and not browser and not heavy"
SECONDS = 300  # a test may take so long
_NO_TEST_FAILED, _A_TEST_FAILED = 0, 1  # exit codes of pytest


def header(patch: Path) -> dict[str, str]:
    """What a patch says of itself, before its first file."""
    about = patch.read_text(encoding="utf-8").partition("\n--- ")[0]
    return dict(re.findall(r"^(\w+): (.*)$", about, re.MULTILINE))


def copied(folder: str) -> Path:
    """The folder, with what the tests need of this checkout."""
    copy = Path(folder)
    for name in NEEDED:
        source, target = ROOT / name, copy / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return copy


def ran(copy: Path, tests: Sequence[str], *options: str) -> subprocess.CompletedProcess[str]:
    """Run tests in a copy; one that hangs fails."""
    usual = ["-q", "-p", "no:cacheprovider", "-m", FIRST_TIER, "--timeout", str(SECONDS)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *usual, *options, *tests],
        cwd=copy, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(copy)},
    )  # fmt: skip
    if done.returncode not in (_NO_TEST_FAILED, _A_TEST_FAILED):
        raise SystemExit(f"{' '.join(tests)}: pytest ended with {done.returncode}.\n"
                         f"{done.stdout[-2000:]}")  # fmt: skip
    return done


def failed(done: subprocess.CompletedProcess[str]) -> str:
    """The first test that failed; empty where none did."""
    if done.returncode == _NO_TEST_FAILED:
        return ""
    named = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return named[1] if named else "a test"


def found(patch: Path, copy: Path) -> str:
    """The test that found the fault; empty where none did."""
    applied = subprocess.run(
        ["git", "apply", "--whitespace=nowarn", str(patch)],
        cwd=copy, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if applied.returncode:
        raise SystemExit(f"{patch.name} does not apply: write it anew. {applied.stderr.strip()}")
    return failed(ran(copy, header(patch)["Tests"].split(), "-x", "-n", "0"))


def main(parts: list[str]) -> int:
    """Try every fault, or those whose file names contain one of the parts."""
    patches = sorted(HERE.glob("*.patch"))
    chosen = [p for p in patches if not parts or any(part in p.name for part in parts)]
    if not chosen:
        raise SystemExit(f"No patch is called {' or '.join(parts)}.")
    tests = sorted({test for patch in chosen for test in header(patch)["Tests"].split()})
    with tempfile.TemporaryDirectory(prefix="hwbench-mutation-") as folder:
        if fails := failed(ran(copied(folder), tests, "-n", "auto")):
            raise SystemExit(f"{fails} fails without a fault: mend it first.")
    print(f"pass   without a fault: {len(tests)} files or tests", flush=True)
    lost = []
    for patch in chosen:
        with tempfile.TemporaryDirectory(prefix="hwbench-mutation-") as folder:
            by = found(patch, copied(folder))
        lost += [] if by else [patch.stem]
        print(f"{'found' if by else 'LOST ':5}  {patch.stem:30} {by}", flush=True)
    print(f"{len(chosen) - len(lost)} of {len(chosen)} faults were found.")
    return int(bool(lost))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
