"""The tests about the tests: the page that names them, the count of processes, the mutations."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from _faulty import ROOT
from _inline import Workers, died
from _processes import MOST, ProcessCount

from hwbench.measure import run as runner
from hwbench.protocol import SoloRequest
from hwbench.store import read_run

PAGE = (ROOT / "docs/testing.md").read_text(encoding="utf-8")
PATCHES = sorted((ROOT / "tests/mutations").glob("*.patch"))
sys.path.insert(0, str(ROOT / "tests/mutations"))
import run as mutations  # noqa: E402 (it is found from here on)


def test_every_test_that_the_page_names_is_there() -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE)
    assert len(named) > 15
    for file, test in named:
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert f"def {test}(" in text, f"{file}::{test}"


def test_the_example_on_the_page_passes(tmp_path: Path, workers: Workers) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    held: dict[str, Any] = {"died": died, "SoloRequest": SoloRequest}
    held |= {"read_run": read_run, "runner": runner}
    exec(example, held)
    (test,) = (value for name, value in held.items() if name.startswith("test_"))
    test(tmp_path, workers)


def test_every_target_that_the_page_names_is_one() -> None:
    make = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^make ([a-z-]+) ", PAGE, re.MULTILINE))
    assert targets == {"test", "test-all", "test-heavy", "test-browser", "mutations"}
    for target in targets:
        assert re.search(rf"^{target}: .*## ", make, re.MULTILINE), target


def test_six_faults_in_each_area_are_kept() -> None:
    areas = Counter(mutations.header(patch)["Area"] for patch in PATCHES)
    mutated = PAGE.partition("## Mutations")[2]
    assert f"are {len(PATCHES)} faults" in mutated
    told = re.findall(r"(\d+) in (?:what measures\s+on )?(?:the )?(\w+)", mutated)
    assert {area: str(n) for area, n in areas.items()} == {name.lower(): n for n, name in told}
    assert areas.pop("cuda") == 20
    assert set(areas) == {"scheduling", "resume", "gate", "statistics", "formats"}
    assert min(areas.values()) == 6
    for patch in PATCHES:
        result = mutations.header(patch)
        assert {"Undoes", "Seeds"} & set(result), patch.name
        for word in result["Tests"].split():
            assert not word.endswith(".py") or (ROOT / word).exists(), f"{patch.name}: {word}"


@pytest.mark.heavy
def test_every_fault_can_be_put_back() -> None:
    for patch in PATCHES:
        command = ["git", "apply", "--check", str(patch)]
        tried = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert tried.returncode == 0, f"{patch.name}: {tried.stderr}"


class Session:
    """What the count asks of a session of pytest."""

    def __init__(self) -> None:
        self.config = self
        self.exitstatus = pytest.ExitCode.OK


@pytest.mark.parametrize("tests", [MOST, MOST + 1])
def test_a_test_more_that_starts_a_process_fails_the_session(
    tests: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, name in ((subprocess.Popen, "__init__"), (BaseProcess, "start")):
        monkeypatch.setattr(kind, name, getattr(kind, name))  # put back after the test
    count, session = ProcessCount(), Session()
    for number in range(tests):
        count._test = f"test {number}"
        count.started([sys.executable, "-m", "hwbench.worker"])
        count.started(["git", "log"])
    count._test = ""  # between two tests, and in the second tier
    count.started([sys.executable])
    assert count.counts == {f"test {number}": 1 for number in range(tests)}
    count.pytest_sessionfinish(session)  # type: ignore[arg-type]
    assert session.exitstatus == (0 if tests == MOST else 1)
