"""A visit to a GPU, rehearsed with steps that hang, fail and come too late; no GPU and no torch."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import re
import signal
import sys
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from _evidence import EVIDENCE, script

import hwbench
from hwbench import cli
from hwbench.formats._base import FORWARD

PASSED = '<testsuites><testsuite tests="1"><testcase classname="tests.test_a" name="test_b"/>'
PASSED += "</testsuite></testsuites>"
FAILED = (
    '<testsuites><testsuite tests="2" failures="1" errors="0" skipped="0">'
    '<testcase classname="tests.test_units" name="test_x[1-a]"><failure message="no"/></testcase>'
    '<testcase classname="tests.test_units" name="test_y"/></testsuite></testsuites>'
)


gpu_visit = script("gpu_visit")
Step = gpu_visit.Step


def shell(name: str, words: str, *, limit: float = 30.0, **more: Any) -> Any:
    return Step(name, ("sh", "-c", words), 0.0, 0.0, limit, **more)


@pytest.fixture
def visit(tmp_path: Path) -> Any:
    """A visit of two minutes whose steps have half a second from SIGINT to SIGKILL."""
    return gpu_visit.Visit(
        tmp_path, 120.0, grace=0.5, reserve=1.0, tell=lambda words: None, cache=tmp_path / "cache"
    )


@pytest.fixture
def _deaf() -> Iterator[None]:
    """What is started now ignores SIGINT from its first moment on."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, however the tests were started."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ended(out: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in (out / "facts.jsonl").read_text().splitlines()]
    return {row["step"]: re.sub(r" after .*", "", row["ended"]) for row in rows}


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.usefixtures("_deaf")
def test_a_step_that_hangs_is_killed_with_its_workers_and_the_rest_stands(visit: Any) -> None:
    hangs = "echo whole >{runs}/run.jsonl; setsid sleep 60 & echo $! >{out}/pid; wait; sleep 60"
    well = visit.take([
        shell("first", "echo '{\"a\": 1}'", said=True),
        shell("hangs", hangs, limit=0.8),
        shell("fails", "echo before it failed; exit 5"),
        shell("last", "echo '[2]'", said=True),
    ])  # fmt: skip
    assert not well
    assert ended(visit.out) == {
        "first": "exit 0", "hangs": "killed", "fails": "exit 5", "last": "exit 0"
    }  # fmt: skip
    assert (visit.out / "hangs.jsonl").read_text() == "whole\n"
    assert not alive(int((visit.out / "pid").read_text()))
    assert "before it failed" in (visit.out / "visit.log").read_text()
    facts = (visit.out / "facts.jsonl").read_text().splitlines()
    words = [json.loads(line).get("said") for line in facts]
    assert words == [{"a": 1}, None, None, [2]]


@pytest.mark.heavy
@pytest.mark.usefixtures("_interruptible")
def test_a_step_that_answers_sigint_is_left_the_time_to_write(visit: Any) -> None:
    answers = "trap 'echo kept >{runs}/run.jsonl; exit 130' INT; sleep 60 & wait"
    assert not visit.take([shell("answers", answers, limit=0.8)])
    assert ended(visit.out) == {"answers": "stopped, exit 130,"}
    assert (visit.out / "answers.jsonl").read_text() == "kept\n"


def test_a_step_without_time_left_does_not_begin_and_a_shorter_one_does(visit: Any) -> None:
    visit.seconds = 30.0
    long = replace(shell("long", "echo >{out}/ran"), needs=40.0)
    assert visit.take([long, shell("short", "true")])
    assert not (visit.out / "ran").exists()
    assert re.match(r"skipped: (28|29) s are left, and it needs 40", ended(visit.out)["long"])
    assert ended(visit.out)["short"] == "exit 0"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"skip": "no test is marked cuda"}, "no test is marked cuda"),
        ({"packages": ("no_such_package",)}, "this Python lacks no_such_package"),
        ({"wants": ("same-1.jsonl",)}, "there is no same-1.jsonl"),
    ],
)
def test_a_step_that_can_tell_nothing_says_why(
    visit: Any, more: dict[str, Any], reason: str
) -> None:
    assert visit.take([shell("step", "exit 1", **more)])
    assert ended(visit.out) == {"step": f"skipped: {reason}"}


def test_an_elastic_step_takes_what_no_later_one_is_expected_to_use(
    visit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_visit.time, "monotonic", lambda: visit.begun + 10)
    step = Step("run", (), 5, 20, 30, elastic=True)
    assert visit.left == 120 - 1 - 10
    assert visit.allowed(step, later=50) == 59
    assert visit.allowed(step, later=100) == 30
    assert visit.allowed(replace(step, elastic=False), later=50) == 30
    assert visit.allowed(replace(step, limit=500), later=50) == visit.left


@pytest.mark.usefixtures("_interruptible")
def test_an_interrupted_visit_ends_its_step_and_keeps_what_is_there(visit: Any) -> None:
    interrupts = f"echo cut >{{runs}}/run.jsonl; kill -INT {os.getpid()}; sleep 60"
    with pytest.raises(KeyboardInterrupt):
        visit.take([shell("linear", interrupts), shell("never", "true")])
    visit.finish(("echo", "the table"))
    assert sorted(file.name for file in visit.out.iterdir()) == ["linear.jsonl", "visit.log"]
    assert (visit.out / "visit.log").read_text().endswith("the table\n")


# --- the steps themselves ---------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [480, 150])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_steps_fit_into_their_visit(seconds: float, device: str) -> None:
    actual = gpu_visit.steps(gpu_visit.Asked(device), seconds)
    reserve = gpu_visit.GRACE_SECONDS + gpu_visit.TABLE_SECONDS
    assert sum(step.expects for step in actual) + reserve <= seconds
    assert all(0 < step.needs <= step.expects <= step.limit for step in actual)
    assert len({step.name for step in actual}) == len(actual)


@pytest.mark.parametrize("seconds", [pytest.param(480, marks=pytest.mark.heavy), 150])
def test_at_most_eight_plain_files_are_left(visit: Any, seconds: float, tmp_path: Path) -> None:
    """Every step of a visit played by a shell that writes what the real one writes."""
    before = tmp_path.parent / f"{tmp_path.name}-before"
    before.mkdir()
    (before / "tests.xml").write_text(FAILED)
    planned = gpu_visit.steps(gpu_visit.Asked("cuda", before=before), seconds)
    played = []
    for step in planned:
        words = ["echo '{}'"]
        words += ["echo {} >{runs}/20260102-linear.jsonl"] * ("{runs}" in step.command)
        words += [f"echo '{PASSED}' >{{junit}}"] * ("{junit}" in step.command)
        words += [f"echo '{{}}' >>{part}" for part in step.command if part.startswith("{out}/")]
        played.append(replace(step, command=("sh", "-c", "\n".join(words)), packages=()))
    visit.seconds = seconds
    assert visit.take(played)
    visit.finish(("echo", "done"))
    files = sorted(file.name for file in visit.out.rglob("*"))
    assert "tests.xml" in files
    assert {"visit.log", "facts.jsonl", "contract.jsonl"} < set(files)
    assert len(files) <= 8
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in files)


COMING: set[str] = set()
"""Options of a step that no verb has yet."""


@pytest.mark.parametrize("seconds", [480, 150])
def test_every_option_of_a_step_is_one_of_its_verb(seconds: float) -> None:
    """A step that is refused for its options costs a visit its answer."""
    asked, lacking = 0, set()
    commands = typer.main.get_command(cli.app).commands
    for step in gpu_visit.steps(gpu_visit.Asked("cuda"), seconds):
        if "hwbench" not in step.command:
            continue
        verb, *words = step.command[step.command.index("hwbench") + 1 :]
        known = {name for each in commands[verb].params for name in each.opts}
        options = {word for word in words if word.startswith("--")}
        asked += len(options)
        lacking |= options - known
    assert asked
    assert lacking == COMING


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_profile_of_a_visit_is_of_a_format_with_all_its_knobs(device: str) -> None:
    steps = {step.name: step for step in gpu_visit.steps(gpu_visit.Asked(device), 150)}
    words = list(steps["profile"].command)
    value = {a: b for a, b in itertools.pairwise(words) if a.startswith("--")}
    out_features, in_features = map(int, value["--shape"].split("x"))
    kind = hwbench.get_format(value["--format"])
    described = kind.from_knobs(out_features, in_features, density=float(value["--density"]))
    assert described.cost(1, 4, FORWARD).parameters <= out_features * in_features


@pytest.mark.parametrize("seconds", [480, 150])
def test_every_run_of_a_visit_has_cases_on_a_gpu(seconds: float) -> None:
    from hwbench import suite

    runs = 0
    for step in gpu_visit.steps(gpu_visit.Asked("cuda"), seconds):
        if "run" not in step.command:
            continue
        words = list(step.command[step.command.index("run") + 1 :])
        value = {a: b for a, b in itertools.pairwise(words) if a.startswith("--")}
        shape = [[int(side) for side in value["--shape"].split("x")]] if "--shape" in value else []
        document = suite.override(
            suite.read(value["--suite"]),
            shape=shape,
            tokens=[int(count) for count in value.get("--tokens", "").split(",") if count],
            dtype=[name for name in [value.get("--dtype")] if name],
            density=[float(share) for share in [value.get("--density")] if share],
            formats=[name for name in value.get("--format", "").split(",") if name],
        )
        cases = suite.build(document, "cuda").cases
        selected = suite.select(cases, value.get("--filter", "*"))
        timed = [case for case in selected if case.workload == "linear"]
        assert {case.format for case in timed} > {"dense"}
        assert {case.tokens for case in timed}
        runs += 1
    assert runs == (4 if seconds == 480 else 2)


def test_the_tests_that_need_a_gpu_are_found_and_those_of_its_clock_stand_alone() -> None:
    alone, together = gpu_visit.cuda_tests()
    assert alone == ["tests/test_devices_cuda.py"]
    assert {"tests/test_formats.py", "tests/test_fused.py"} <= set(together)


def test_what_failed_before_is_what_is_tested_again(tmp_path: Path) -> None:
    (tmp_path / "tests.xml").write_text(FAILED)
    assert gpu_visit.failed_tests(tmp_path / "tests.xml") == ["tests/test_units.py::test_x[1-a]"]
    assert gpu_visit.failed_tests(tmp_path / "none.xml") == []
    steps = {s.name: s for s in gpu_visit.steps(gpu_visit.Asked("cuda", before=tmp_path), 150)}
    assert "tests/test_units.py::test_x[1-a]" in steps["tests"].command
    assert not steps["tests"].skip


def test_why_there_is_nothing_to_test_again(tmp_path: Path) -> None:
    def reason(before: Path | None) -> str:
        steps = gpu_visit.steps(gpu_visit.Asked("cuda", before=before), 150)
        return str(next(step.skip for step in steps if step.name == "tests"))

    assert reason(None) == "no earlier visit was named"
    assert reason(tmp_path) == f"there is no {tmp_path / 'tests.xml'}"
    (tmp_path / "tests.xml").write_text(PASSED)
    assert reason(tmp_path) == f"{tmp_path / 'tests.xml'} has no failed test"


def test_an_earlier_visit_that_is_not_there_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words = ["gpu_visit.py", "--out", str(out), "--before", str(tmp_path / "vist")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match="There is no folder .*vist: name an earlier visit's OUT"):
        gpu_visit.main()
    assert not out.exists()


# --- files and packages -----------------------------------------------------------------------


def test_results_of_two_calls_of_pytest_become_one_file(tmp_path: Path) -> None:
    whole, more = tmp_path / "tests.xml", tmp_path / "more.xml"
    for text in (PASSED, FAILED):
        more.write_text(text)
        gpu_visit.join_results(whole, more)
    cases = ET.parse(whole).getroot().iter("testcase")  # noqa: S314 (written just now)
    assert len(list(cases)) == 3


def test_a_file_that_is_too_large_is_made_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_visit, "FILE_BYTES", 1000)
    monkeypatch.setattr(gpu_visit, "_LOG_ENDS", 100)
    log, run, small = (tmp_path / name for name in ("visit.log", "linear.jsonl", "a.jsonl"))
    log.write_text("a" * 5000 + "z")
    run.write_text("{}\n" * 500)
    small.write_text("{}\n")
    for file in (log, run, small):
        gpu_visit.shrink(file)
    assert log.read_text()[:100] + log.read_text()[-1] == "a" * 100 + "z"
    assert "4801 bytes are left out" in log.read_text()
    assert gzip.decompress((tmp_path / "linear.jsonl.gz").read_bytes()) == b"{}\n" * 500
    assert not run.exists()
    assert small.read_text() == "{}\n"


def test_a_wheel_is_unpacked_where_the_interpreter_lacks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_visit, "NEEDED", ("json", "no_such_package"))
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "no_such_package-1.0-py3-none-any.whl", "w") as packed:
        packed.writestr("no_such_package.py", "")
    with zipfile.ZipFile(wheels / "json-1.0-py3-none-any.whl", "w") as packed:
        packed.writestr("json.py", "")
    variables = gpu_visit.prepare(tmp_path / "cache", [wheels])
    site = tmp_path / "cache" / "site"
    assert [file.name for file in site.iterdir()] == ["no_such_package.py"]
    paths = variables["PYTHONPATH"].split(os.pathsep)
    assert paths[:2] == [str(EVIDENCE.parent), str(site)]
    written = ("CUDA_CACHE_PATH", "PYTHONPYCACHEPREFIX", "TMPDIR", "TRITON_CACHE_DIR")
    for name in (*written, "XDG_CACHE_HOME"):
        assert Path(variables[name]).is_relative_to(tmp_path / "cache")


def test_a_package_that_is_nowhere_is_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_visit, "NEEDED", ("json", "no_such_package"))
    with pytest.raises(SystemExit, match="lacks no_such_package: install it there, or put"):
        gpu_visit.prepare(tmp_path / "cache", [tmp_path])


def test_wheels_of_other_machines_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_visit.platform, "machine", lambda: "x86_64")
    own = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert gpu_visit.fits(f"msgspec-0.22.0-{own}-{own}-manylinux2014_x86_64.whl")
    assert gpu_visit.fits("typer-0.15-py3-none-any.whl")
    assert not gpu_visit.fits(f"msgspec-0.22.0-{own}-{own}-manylinux2014_aarch64.whl")
    assert not gpu_visit.fits("msgspec-0.22.0-cp27-cp27m-manylinux2014_x86_64.whl")


def test_git_ignores_the_caches_of_a_visit() -> None:
    ignored = (EVIDENCE.parent / ".gitignore").read_text().splitlines()
    assert f"/{gpu_visit.CACHE.name}/" in ignored
