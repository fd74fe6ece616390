"""Two sides in pairs: what is paired, what is found, and what is refused in one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _inline import Workers

import hwbench as package
from hwbench import protocol
from hwbench.analysis.compare import Entry, Reading, Side
from hwbench.analysis.pairs import judge_pairs
from hwbench.analysis.stats import Rule
from hwbench.errors import RunFileError, SuiteError, UsageError
from hwbench.measure.schedule import Progress, State
from hwbench.records import Header, ResultLine, Verdict
from hwbench.store import RunWriter, read_header, read_run
from hwbench.studies import _sides
from hwbench.studies import ab as study

SUITE = (
    'schema = 1\nname = "tiny"\n[plan]\nreplicates = 3\nbudget_seconds = 0.005\n'
    '[[cases]]\nworkload = "linear"\ndirection = "forward"\nshape = [64, 64]\n'
    'tokens = 512\nformat = [{ name = "dense" }, { name = "low_rank", density = 0.5 }]\n'
)
RULE = Rule(threshold=0.03, margin=0.03)
WALL = frozenset(["wall"])


@pytest.fixture
def hwbench(
    hwbench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Any]:
    """The command line, in a folder with a suite and with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("tiny.toml").write_text(SUITE)
    return hwbench


def git(*words: str) -> str:
    who = ["-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *who, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


# Verdicts on pairs


def sides(first: np.ndarray, second: np.ndarray) -> tuple[Side, Side]:
    made = [
        Side(
            {
                f"case {n}": Entry("linear", readings={"relative_time": reading(row)})
                for n, row in enumerate(values.tolist())
            }
        )
        for values in (first, second)
    ]
    return made[0], made[1]


def reading(values: list[float]) -> Reading:
    return Reading(dict(enumerate(values)), WALL)


def counts(first: np.ndarray, second: np.ndarray) -> dict[Verdict, int]:
    changes = [change.verdict for change in judge_pairs(*sides(first, second), RULE)]
    return {verdict: changes.count(verdict) for verdict in set(changes)}


def test_what_both_sides_share_is_no_change_and_what_they_do_not_is_found() -> None:
    rng = np.random.default_rng(1)
    false, actual, equal = 0, 0, 0
    for _ in range(40):
        drift = rng.normal(0, 0.10, (200, 5))  # shared by the two of a pair
        first = np.exp(drift + rng.normal(0, 0.01, drift.shape))
        same = np.exp(drift + rng.normal(0, 0.01, drift.shape))
        result = counts(first, same)
        false += Verdict.REGRESSED in result or Verdict.IMPROVED in result
        equal += result.get(Verdict.EQUIVALENT, 0)
        actual += counts(first, 1.05 * same).get(Verdict.REGRESSED, 0)
    assert false <= 1  # of 40 comparisons of 200 cases
    assert actual >= 0.95 * 40 * 200
    assert equal >= 0.75 * 40 * 200


def test_a_case_of_many_needs_more_than_its_own_interval() -> None:
    rng = np.random.default_rng(2)
    first = np.exp(rng.normal(0, 0.02, (400, 5)))
    second = np.exp(rng.normal(0, 0.02, (400, 5)))
    changes = judge_pairs(*sides(first, second), RULE)
    assert {change.verdict for change in changes} <= {Verdict.UNDECIDED, Verdict.EQUIVALENT}
    assert any("Among so many cases it takes" in str(change.reason) for change in changes)


# The command line


def test_where_one_file_cannot_be_begun_the_other_is_taken_away(
    hwbench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    create = RunWriter.create

    def first_only(folder: Path, header: Header, planned: Any) -> RunWriter:
        if header.arguments["pair"] == "b":
            raise RunFileError("There is no room for it.")
        return create(folder, header, planned)

    monkeypatch.setattr(RunWriter, "create", first_only)
    sides = ("--a", sys.executable, "--b", sys.executable)
    code, _, err = hwbench("ab", *sides, "-s", "tiny.toml", "-d", "fake", "--threads", "1")
    assert (code, err) == (2, "hwbench: There is no room for it.\n")
    assert not list(Path("runs").iterdir())


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_side_that_was_cut_off_is_not_gone_on_with(
    hwbench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    """Resumed alone, it would hold replicates of other code, without their partners."""
    write = RunWriter._write

    def until(self: RunWriter, *lines: Any) -> None:
        if isinstance(lines[0], ResultLine) and lines[0].result.replicate == 1:
            raise stop
        write(self, *lines)

    monkeypatch.setattr(RunWriter, "_write", until)
    sides = ("--a", sys.executable, "--b", sys.executable)
    code, _, err = hwbench("ab", *sides, "-s", "tiny.toml", "-d", "fake", "--threads", "1")
    assert code == (130 if isinstance(stop, KeyboardInterrupt) else 2)
    assert "start it again" in err or "start again" in err
    assert "--resume" not in err
    monkeypatch.setattr(RunWriter, "_write", write)
    paths = list(Path("runs").glob("*.jsonl"))
    assert len(paths) == 2
    for path in paths:
        before = path.read_bytes()
        code, _, err = hwbench("run", "--resume", str(path))
        assert (code, "is a side of hwbench ab" in err) == (2, True)
        assert path.read_bytes() == before
        assert "--resume" not in hwbench("show", str(path))[1]


@pytest.mark.parametrize("replicates", [0, 1001, 2.5, True, "3"])
def test_so_many_pairs_or_replicates_cannot_be_made(tmp_path: Path, replicates: Any) -> None:
    suite = tomllib.loads(SUITE)
    how = {"device": "fake", "out": tmp_path, "threads": 1, "replicates": replicates}
    with pytest.raises(SuiteError, match=r"\[plan\]"):
        study.ab(sys.executable, sys.executable, suite, **how)
    with pytest.raises(SuiteError, match=r"\[plan\]"):
        package.run(suite, **how)
    assert not list(tmp_path.iterdir())


def test_the_time_left_is_that_of_both_sides(
    tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Progress] = []
    states: list[State] = []
    open_ = study._opened
    monkeypatch.setattr(study, "_opened", lambda *each: states.append(open_(*each)) or states[-1])
    monkeypatch.setattr(State, "seconds_left", lambda state: lefts[states.index(state)])
    lefts: list[float | None] = [None, None]
    known = [(None, None), (3.0, None), (3.0, 4.0), (0.0, 4.0), (0.0, 0.0)]

    def hear(progress: Progress) -> None:
        heard.append(progress)
        lefts[:] = known[min(len(heard), len(known) - 1)]

    how: dict[str, Any] = {"device": "fake", "out": tmp_path, "threads": 1, "replicates": 1}
    study.ab(sys.executable, sys.executable, tomllib.loads(SUITE), listener=hear, **how)
    assert [each.left for each in heard[:4]] == [None, None, 7.0, 4.0]
    assert (heard[-1].done, heard[-1].total) == (len(heard), len(heard))
    assert [len(state.pace.starts) for state in states] == [1, 1]  # one worker each


def test_a_field_that_no_plan_has_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Unknown key of \\[plan\\] 'replicate'"):
        package.run(tomllib.loads(SUITE), device="fake", out=tmp_path, replicate=3)


def test_an_interpreter_against_itself(
    hwbench: Callable[..., Any], monkeypatch: Any, workers: Workers
) -> None:
    monkeypatch.setenv("HWBENCH_FAKE", json.dumps({"seed": 1, "noise": 0.002}))
    code, out, err = hwbench(
        "ab", "--a", sys.executable, "--b", sys.executable, "-s", "tiny.toml", "-d", "fake",
        "--threads", "1", "--json", "--markdown", "ab.md",
    )  # fmt: skip
    assert code == 0
    assert "No regression" in err
    assert sys.executable in json.loads(out)["baseline"][0]
    assert "hwbench check" in Path("ab.md").read_text(encoding="utf-8")
    a, b = (read_run(path) for path in sorted(Path("runs").glob("*.jsonl")))
    assert len(workers.started) == 2 + 2 * 3  # a planner and a worker a replicate of each side
    assert {python for _, _, python in workers.started} == {sys.executable}
    assert (a.header.arguments["pair"], b.header.arguments["pair"]) == ("a", "b")
    assert a.complete
    assert b.complete
    assert [(r.case, r.replicate, r.seed) for r in sorted(a.results, key=str)] == [
        (r.case, r.replicate, r.seed) for r in sorted(b.results, key=str)
    ]
    code, _, err = hwbench("baseline", "promote", str(a.path))
    assert code == 2
    assert "side of hwbench ab" in err


@pytest.mark.processes
@pytest.mark.heavy
def test_a_revision_is_installed_once_and_its_code_is_what_runs(
    hwbench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Path("repo/shop").mkdir(parents=True)
    monkeypatch.chdir("repo")
    Path("tiny.toml").write_text(SUITE)
    Path("pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "shop"\nversion = "1"\n'
        '[tool.hatch.build.targets.wheel]\npackages = ["shop"]\n'
    )
    Path("shop/__init__.py").write_text("PRICE = 1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    Path("shop/__init__.py").write_text("PRICE = 2\n")
    git("commit", "-qam", "two")
    monkeypatch.setenv("HWBENCH_FAKE", json.dumps({"seed": 1, "noise": 0.002}))
    words = (
        "ab", "--a", "HEAD~1", "--b", "HEAD", "-s", "tiny.toml", "-d", "fake", "--threads", "1",
    )  # fmt: skip
    code, out, err = hwbench(*words, "-r", "1")
    assert code == 0, err
    assert "HEAD~1 (" in out
    headers = [read_header(path) for path in sorted(Path("runs").glob("*.jsonl"))]
    assert [h.environment.state["commit"] for h in headers] == [
        git("rev-parse", "HEAD~1"),
        git("rev-parse", "HEAD"),
    ]
    for header, price in zip(headers, ("1", "2"), strict=True):
        python = str(header.arguments["python"])
        process = subprocess.run(
            [python, "-c", "import shop, torch; print(shop.PRICE)"],
            capture_output=True, text=True, check=True, cwd=tmp_path,
        )  # fmt: skip
        assert process.stdout.strip() == price  # with the torch of this interpreter
    monkeypatch.setattr(_sides, "_make", lambda *_: pytest.fail("it is there already"))
    assert hwbench(*words, "-r", "1")[0] == 0


def worker_that_says(folder: Path, hello: dict[str, Any]) -> Path:
    """An interpreter whose worker opens with these words, and ends."""
    script = folder / "worker.py"
    script.write_text(
        "import os, sys\n"
        "pipe = int(sys.argv[sys.argv.index('--write') + 1])\n"
        f"os.write(pipe, {json.dumps(hello)!r}.encode() + b'\\n')\n"
    )
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {script} "$@"\n')
    python.chmod(0o755)
    return python


@pytest.mark.processes
def test_another_protocol_is_refused(hwbench: Callable[..., Any], tmp_path: Path) -> None:
    hello = {"say": "hello", "protocol": protocol.PROTOCOL + 1, "version": "9", "pid": 1}
    python = worker_that_says(tmp_path, hello)
    code, out, err = hwbench("ab", "--a", str(python), "--b", str(python), "-s", "tiny.toml")
    assert (code, out) == (2, "")
    assert f"speaks protocol {protocol.PROTOCOL + 1}" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.processes
def test_an_interpreter_without_torch_is_refused(
    hwbench: Callable[..., Any], tmp_path: Path
) -> None:
    python = tmp_path / "bare"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    code, out, err = hwbench("ab", "--a", str(python), "--b", str(python), "-s", "tiny.toml")
    assert (code, out) == (2, "")
    assert "it needs torch and msgspec" in err
    assert "ModuleNotFoundError" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--a", "nowhere", "--b", "x"], "this folder is in no git repository"),
        (["--a", "tiny.toml", "--b", "x"], "is no program that can be started"),
        (["--a", "python9.9", "--b", "x"], "is no program that can be started"),
        (["--a", sys.executable], "Missing option '--b'"),
        (["--a", sys.executable, "--b", "x", "--install", "some"], "Unknown install 'some'"),
        (["--a", sys.executable, "--b", sys.executable, "--metric", "tiem"], "did you mean 'time'"),
        (["--a", sys.executable, "--b", "x", "-s", "tny"], "Unknown suite 'tny'"),
    ],
)
def test_a_mistake_is_one_sentence_and_2(hwbench, monkeypatch, arguments, words) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(Path.cwd().parent))
    rest = [] if "-s" in arguments else ["-s", "tiny.toml"]
    code, out, err = hwbench("ab", *arguments, *rest)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.strip().splitlines()) == 1


def test_what_cannot_be_installed_is_said(hwbench: Callable[..., Any], tmp_path: Path) -> None:
    git("init", "-q")
    Path("notes.txt").write_text("x")
    git("add", "notes.txt")
    git("commit", "-qm", "one")
    with pytest.raises(UsageError, match=r"neither pyproject\.toml nor setup\.py"):
        _sides.resolve("--a", "HEAD", "shared", tmp_path)
    with pytest.raises(UsageError, match="no interpreter, and no revision of"):
        _sides.resolve("--a", "HEAD~7", "shared", tmp_path)
    with pytest.raises(UsageError, match="no interpreter, and no revision of"):
        _sides.resolve("--a", "--output=x", "shared", tmp_path)


def test_a_branch_may_be_called_like_a_folder(hwbench: Callable[..., Any], tmp_path: Path) -> None:
    git("init", "-q")
    Path("docs").mkdir()
    Path("docs/notes.txt").write_text("x")
    git("add", "docs")
    git("commit", "-qm", "one")
    git("branch", "docs")
    with pytest.raises(UsageError, match=r"neither pyproject\.toml nor setup\.py"):
        _sides.resolve("--b", "docs", "shared", tmp_path)  # so it was found to be a revision


def test_a_revision_of_hwbench_runs_its_own_worker(
    hwbench: Callable[..., Any], tmp_path: Path
) -> None:
    git("init", "-q")
    Path("hwbench").mkdir()
    Path("hwbench/worker.py").write_text("# another one\n")
    git("add", "hwbench")
    git("commit", "-qm", "one")
    actual = _sides.resolve("--a", "HEAD", "shared", tmp_path)
    assert actual.python == sys.executable
    (path,) = actual.paths
    assert (Path(path) / "hwbench/worker.py").read_text() == "# another one\n"


def test_an_interpreter_finds_this_worker_and_nothing_else_of_ours(tmp_path: Path) -> None:
    folder = _sides.worker_folder(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["hwbench"]
    assert (folder / "hwbench" / "worker.py").samefile(Path(package.__file__).parent / "worker.py")
