"""The tests about the tests: the page that names them, make, the count of processes, the mutations.

And what make runs besides, and whether the source archive holds all that the tests read.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from _faulty import ROOT
from _inline import Workers, died
from _processes import MOST, ProcessCount
from hatchling.builders.sdist import SdistBuilder

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


def made(
    target: str, folder: Path, program: str, script: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """What ``make`` ends with in a folder that holds its rules, and a script as one program.

    The script writes what it is called with into the file ``log``.
    """
    (folder / "tests/simulated").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "tests/simulated/pyproject.toml"):
        shutil.copyfile(ROOT / name, folder / name)
    (folder / "tests/test_page.py").write_text("# pytest.mark.browser", encoding="utf-8")
    tools = folder / ".venv/bin"
    tools.mkdir(parents=True)
    (tools / "python").symlink_to(sys.executable)
    (tools / program).unlink(missing_ok=True)
    (tools / program).write_text(f'#!/bin/sh\necho "$*" >> log\n{script}', encoding="utf-8")
    (tools / program).chmod(0o755)
    for stamp in (".runtime", ".dev"):
        (folder / ".venv" / stamp).touch()
    # Where make runs the tests, its options are not those of this call.
    own = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", target], cwd=folder, env={**own, **environment}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("code", "path", "verbs"),
    [
        (0, "runs/of-now.jsonl", ["run", "show", "report"]),
        (5, "runs/of-now.jsonl", ["run", "show", "report"]),
        (5, "", ["run"]),
        (2, "", ["run"]),
        (0, "", ["run"]),
    ],
)
def test_bench_shows_the_run_that_it_made_and_no_older_one(
    tmp_path: Path, code: int, path: str, verbs: list[str]
) -> None:
    """Exit 5 is a run with failed cases, or one whose machine went away, which prints no path."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/older.jsonl").touch()
    script = f"""
case "$1" in
  run) echo progress >&2; test -z "{path}" || echo "{path}"; exit {code} ;;
  show) echo the answer ;;
esac
"""
    done = made("bench", tmp_path, "hwbench", script)
    calls = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    assert [call.split()[0] for call in calls] == verbs
    assert all(path in call.split() for call in calls[1:])
    assert "progress" in done.stderr
    assert ("the answer\nreport: " in done.stdout) is ("show" in verbs)
    assert (done.returncode == 0) is (code == 0 and path != "")


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("target", "tests", "skipped", "passes"),
    [
        ("test-heavy", 1, 0, True),
        ("test-heavy", 1, 1, False),
        ("test-browser", 41, 1, True),
        ("test-browser", 41, 2, False),
    ],
)
def test_a_browser_that_is_not_there_fails_its_tests(
    tmp_path: Path, target: str, tests: int, skipped: int, passes: bool
) -> None:
    """Where there is no Chromium pytest skips them, and is content."""
    script = f"""
test "$1" = -m || exec {sys.executable} "$@"
case "$*" in
  *--junit-xml*) mkdir -p .pytest_cache; echo "$XML" > .pytest_cache/browser.xml ;;
esac
"""
    suite = f'<testsuites><testsuite tests="{tests}" skipped="{skipped}"/></testsuites>'
    done = made(target, tmp_path, "python", script, XML=suite)
    assert (done.returncode == 0) is passes, done.stderr
    assert ("is there a Chromium?" in done.stderr) is not passes
    further = "(heavy or drawn)" in (tmp_path / "log").read_text(encoding="utf-8")
    assert further is (passes and target == "test-heavy")


def test_the_source_archive_holds_what_the_tests_name() -> None:
    """They are part of it, so what they read of this checkout is too."""
    included = list(SdistBuilder(str(ROOT)).recurse_included_files())
    tops = {Path(each.distribution_path).parts[0] for each in included}
    # The build adds these by itself.
    tops |= {"README.md", "LICENSE", "pyproject.toml"}
    named: set[str] = set()
    for path in sorted((ROOT / "tests").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        named |= set(re.findall(r'\bROOT(?: / |\.r?glob\()f?"([\w.-]+)[/"]', text))
    assert {".github", "Makefile", "docs", "evidence", "reports", "tests"} <= named
    assert named - tops == set()


@pytest.mark.heavy
def test_the_tests_of_the_source_archive_are_collected(tmp_path: Path) -> None:
    builder = SdistBuilder(str(ROOT))
    (built,) = builder.build(directory=str(tmp_path), versions=["standard"])
    with tarfile.open(built) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    usual = ["-q", "-m", "", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", *usual],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]


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
