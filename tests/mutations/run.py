"""Put known faults back into a copy of this checkout, one by one: a test has to find each.

A patch beside this file is a fault: the undoing of a mend of the history, or a change of a line
that matters. Its header says what it is, which area it belongs to, and which tests have to find it:

    Area: resume
    Tests: tests/test_store.py
    Undoes: 5464abd A run file that cannot be begun is taken away again

Run it as ``make mutations``, or with parts of file names as arguments.

The exit code is 1 where a fault was lost: nobody found it. A patch that does not apply is an error.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NEEDED = ("hwbench", "suites", "tests", "docs", "pyproject.toml", "README.md", "CHANGELOG.md",
          "CONTRIBUTING.md", "CITATION.cff", "constraints.txt", "Makefile")  # fmt: skip
FIRST_TIER = "not cuda and not browser and not heavy"
SECONDS = 900
_NO_TEST_FAILED, _A_TEST_FAILED = 0, 1  # exit codes of pytest


def header(patch: Path) -> dict[str, str]:
    """What a patch says of itself, before its first file."""
    about = patch.read_text(encoding="utf-8").partition("\n--- ")[0]
    return dict(re.findall(r"^(\w+): (.*)$", about, re.MULTILINE))


def found(patch: Path, copy: Path) -> tuple[bool, str]:
    """Whether a test found the fault, and which did."""
    applied = subprocess.run(
        ["git", "apply", "--whitespace=nowarn", str(patch)],
        cwd=copy, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if applied.returncode:
        raise SystemExit(f"{patch.name} does not apply: write it anew. {applied.stderr.strip()}")
    options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", FIRST_TIER]
    tests = header(patch)["Tests"].split()
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=copy, capture_output=True, text=True, check=False, timeout=SECONDS,
        env={**os.environ, "PYTHONPATH": str(copy)},
    )  # fmt: skip
    if ran.returncode not in (_NO_TEST_FAILED, _A_TEST_FAILED):
        raise SystemExit(f"{patch.name}: pytest ended with {ran.returncode}.\n{ran.stdout[-2000:]}")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", ran.stdout, re.MULTILINE)
    return ran.returncode == _A_TEST_FAILED, failed[1] if failed else ""


def main(parts: list[str]) -> int:
    """Try every fault, or those whose file names contain one of the parts."""
    patches = sorted(HERE.glob("*.patch"))
    chosen = [p for p in patches if not parts or any(part in p.name for part in parts)]
    lost = []
    for patch in chosen:
        with tempfile.TemporaryDirectory(prefix="hwbench-mutation-") as folder:
            copy = Path(folder)
            for name in NEEDED:
                source, target = ROOT / name, copy / name
                if source.is_dir():
                    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(source, target)
            was_found, by = found(patch, copy)
        lost += [] if was_found else [patch.stem]
        print(f"{'found' if was_found else 'LOST ':5}  {patch.stem:30} {by}", flush=True)
    print(f"{len(chosen) - len(lost)} of {len(chosen)} faults were found.")
    return int(bool(lost) or not chosen)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
