"""Cases as tests of pytest-benchmark, files for its tools, and both read back by the gate."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from _check import CASES, FACTS, kept, made, one_sentence
from _faulty import ROOT, install, uninstall
from _synthetic import linear_case, projection_case
from pytest_benchmark.session import PerformanceRegression

from hwbench.errors import RunFileError
from hwbench.records import Result, Status
from hwbench.report import pytest_benchmark
from hwbench.store import read_run

PLUGINS = ("-p", "benchmark", "-p", "hwbench.pytest_plugin")
"""By name, because an installed hwbench may be another one than this."""

SUITE = (
    'schema = 1\nname = "tiny"\n[[cases]]\nworkload = "linear"\n'
    'direction = ["forward", "backward"]\nshape = [64, 64]\ntokens = 16\n'
    'format = [{ name = "dense" }, { name = "semi_structured" }, '
    '{ name = "low_rank", density = 0.5 }]\n'
    '[[cases]]\nworkload = "projection"\nshape = [64, 64]\n'
    'format = [{ name = "low_rank", density = 0.5 }]\n'
)
OWN = """
import sys

def test_own(request):
    if not request.config.getoption("hwbench_suite"):
        ours = {n for n in sys.modules if n.split(".")[0] in ("hwbench", "torch")}
        assert ours == {"hwbench", "hwbench.pytest_plugin"}
"""
SHORT = ("--benchmark-max-time", "0.002", "--benchmark-min-rounds", "3", "--benchmark-quiet")
Run = Callable[..., "Ran"]


@dataclass(frozen=True)
class Ran:
    """How a session of pytest ended."""

    returncode: int
    stdout: str


@pytest.fixture
def tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A session of pytest with the plug-in in a folder with a small suite and a test of its own."""
    folder(tmp_path, monkeypatch)
    for name in [name for name in os.environ if name.startswith("PYTEST")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setattr("cpuinfo.get_cpu_info", dict)  # it starts a dozen programs
    monkeypatch.setattr("platform.architecture", lambda: ("64bit", "ELF"))  # it starts `file`

    def call(*arguments: str) -> Ran:
        result = io.StringIO()
        with contextlib.redirect_stdout(result), contextlib.redirect_stderr(result):
            try:
                code = int(pytest.main([*PLUGINS, "--import-mode=importlib", *arguments]))
            except PerformanceRegression as error:  # with which a process ends
                result.write(f"{error}\n")
                code = 1
        return Ran(code, result.getvalue())

    return call


def folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path)
    Path("tiny.toml").write_text(SUITE)
    Path("pytest.ini").write_text("[pytest]\n")
    Path("test_own.py").write_text(OWN)


@pytest.mark.processes
def test_nothing_of_ours_is_imported_until_the_option_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path, monkeypatch)
    done = subprocess.run(  # the test itself looks at what is imported
        [sys.executable, "-m", "pytest", *PLUGINS, "-q"],
        capture_output=True, text=True, check=False,
        env={
            **{key: os.environ[key] for key in os.environ if not key.startswith("PYTEST")},
            "PYTHONPATH": str(ROOT),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_the_entry_point_is_the_plug_in() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"hwbench": "hwbench.pytest_plugin"}


def test_a_suite_is_collected_where_the_tests_have_a_conftest_of_their_own(tests: Run) -> None:
    """pytest then asks each plug-in of a file's hooks whether it is left out, by its hash."""
    Path("pytest.ini").write_text("[pytest]\ntestpaths = own\n")
    Path("own").mkdir()
    Path("own/conftest.py").write_text("")
    done = tests("--hwbench-suite", "tiny.toml", "--hwbench-device", "abacus", "--collect-only")
    assert "Unknown device 'abacus'" in done.stdout  # it was collected, and is planned
    assert "TypeError" not in done.stdout


def test_what_stops_a_suite_is_told_where_warnings_are_errors_as_here(tests: Run) -> None:
    """pytest-benchmark warns that it saves nothing, before pytest has said why."""
    import tomllib

    ours = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]
    lines = "".join(f"\n    {each}" for each in ours["ini_options"]["filterwarnings"])
    Path("pytest.ini").write_text(f"[pytest]\nfilterwarnings ={lines}\n")
    suite = ("--hwbench-suite", "tiny.toml", "--hwbench-device", "abacus")
    done = tests(*suite, "--benchmark-save", "nightly")
    assert "Unknown device 'abacus'" in done.stdout


def test_cases_are_tests_that_save_and_compare_and_fail(
    tests: Run, hwbench: Callable[..., tuple[int, str, str]]
) -> None:
    suite = ("--hwbench-suite", "tiny.toml", "--hwbench-device", "cpu", *SHORT, "-rs")
    done = tests(*suite, "--benchmark-save", "first")
    assert done.returncode == 0, done.stdout
    assert "4 passed, 2 skipped" in done.stdout  # timed cases only, and no test of the folder
    assert "unsupported: 2:4 kernels exist for CUDA" in done.stdout
    (first,) = Path(".benchmarks").rglob("0001_first.json")
    document = json.loads(first.read_text())
    names = [each["name"] for each in document["benchmarks"]]
    assert names == [
        each["fullname"].removeprefix("tiny.toml::") for each in document["benchmarks"]
    ]
    assert [name.split("/")[1:3] for name in names] == [
        ["forward", "dense"],
        ["forward", "low_rank[density=0.5]"],
        ["backward", "dense"],
        ["backward", "low_rank[density=0.5]"],
    ]
    assert {each["group"].split("/")[1] for each in document["benchmarks"]} == {
        "forward",
        "backward",
    }

    fast = document | {"benchmarks": [_scaled(each, 1e-3) for each in document["benchmarks"]]}
    first.with_name("0002_fast.json").write_text(json.dumps(fast))
    slow = document | {"benchmarks": [_scaled(each, 1e3) for each in document["benchmarks"]]}
    first.with_name("0003_slow.json").write_text(json.dumps(slow))
    failing = ("--benchmark-compare-fail", "median:50%")
    done = tests(*suite, *failing, "--benchmark-compare", "0002")
    assert done.returncode == 1, done.stdout
    assert "Performance has regressed" in done.stdout
    assert tests(*suite, *failing, "--benchmark-compare", "0003").returncode == 0

    run = pytest_benchmark.read(first)
    assert {m.contract for r in run.results for m in r.measurements} == {"pytest"}
    assert {r.status for r in run.results} == {Status.OK, Status.UNSUPPORTED}
    code, out, _ = hwbench("check", str(first), "-b", ".benchmarks", "--json")
    assert code == 6  # all there is is the run itself
    assert "3 the run itself" in json.loads(out)["sentence"]


def _scaled(benchmark: dict[str, Any], factor: float) -> dict[str, Any]:
    stats = {
        key: factor * value if key in ("min", "max", "mean", "median") else value
        for key, value in benchmark["stats"].items()
    }
    return benchmark | {"stats": stats}


def test_named_paths_are_tested_too_and_one_case_can_be_named(tests: Run) -> None:
    suite = ("--hwbench-suite", "tiny.toml", "--hwbench-device", "cpu", *SHORT, "-q")
    assert "5 passed, 2 skipped" in tests("test_own.py", *suite).stdout
    one = "tiny.toml::linear/backward/dense/64x64/t16/float32/hot/eager/cpu"
    assert "1 passed" in tests(one, *suite).stdout
    assert "2 passed" in tests(*suite, "-k", "low_rank").stdout


def test_a_shipped_suite_is_found_by_name(tests: Run) -> None:
    done = tests("--hwbench-suite", "smoke", "--hwbench-device", "cpu", "--collect-only", "-q")
    assert done.returncode == 0, done.stdout
    assert "linear/step/blast[density=0.5]/96x64/t16/float32/hot/eager/cpu" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--hwbench-suite", "tny"], "Unknown suite 'tny'"),
        (["--hwbench-suite", "none.toml"], "Cannot read the suite none.toml"),
        (["--hwbench-suite", "tiny.toml", "--hwbench-device", "gpu"], "Unknown device 'gpu'"),
        pytest.param(
            ["--hwbench-suite", "bad.toml"],
            "Unknown format 'dens'; did you mean 'dense'?",
            marks=pytest.mark.heavy,
        ),
        (["--hwbench-suite", "tiny.toml", "-p", "no:benchmark"], "needs pytest-benchmark"),
    ],
)
def test_mistakes_are_sentences(tests: Run, arguments: list[str], words: str) -> None:
    Path("bad.toml").write_text(SUITE.replace('"dense"', '"dens"'))
    done = tests(*arguments, "-q")
    assert done.returncode in (2, 4)
    assert words in done.stdout
    assert "Traceback" not in done.stdout


AUTOUSE = """
import pytest

@pytest.fixture(autouse=True, scope="{scope}")
def around(request):
    {use}
    yield
"""


MORE_SCOPES = ("class", "module", "package", "session")


@pytest.mark.parametrize(
    "scope",
    ["function", *(pytest.param(e, marks=pytest.mark.heavy) for e in MORE_SCOPES)],
)
def test_cases_take_part_in_fixtures_of_every_scope(tests: Run, scope: str) -> None:
    use = "request.module.__name__" if scope in ("function", "module") else "pass"
    Path("conftest.py").write_text(AUTOUSE.format(scope=scope, use=use))
    done = tests("--hwbench-suite", "tiny.toml", "--hwbench-device", "cpu", *SHORT, "-q",
                 "-k", "dense")  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
    assert "error" not in done.stdout


def test_a_wrong_format_fails_and_is_not_timed(
    tests: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch)
    Path("faulty.toml").write_text(
        SUITE.replace('"semi_structured"', '"wrong"').replace("tiny", "faulty")
    )
    try:
        done = tests(
            "--hwbench-suite", "faulty.toml", "--hwbench-device", "cpu", *SHORT, "-q",
            "--benchmark-json", "out.json",
        )  # fmt: skip
    finally:
        uninstall()
    assert done.returncode == 1
    assert "wrong: Its relative error against float64 is" in done.stdout
    assert "2 failed, 4 passed" in done.stdout
    document = json.loads(Path("out.json").read_text())
    assert not any("/wrong/" in each["name"] for each in document["benchmarks"])
    assert Status.WRONG in {r.status for r in pytest_benchmark.read(Path("out.json")).results}


# Exported files


def exported(run: str, hwbench: Callable[..., tuple[int, str, str]], folder: str) -> str:
    target = f"{folder}/{Path(run).stem}.json"
    assert hwbench("export", run, "--to", "pytest-benchmark", "--out", target)[0] == 0
    return target


def test_an_exported_run_comes_back(
    hwbench: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    run = made(9, [*CASES, linear_case("semi_structured", None), projection_case("btt", 0.5)])
    run.results += [
        Result(case=CASES[2].id, replicate=9, seed=9, status=Status.CRASHED, reason="signal 11")
    ]
    back = pytest_benchmark.read(Path(exported(kept(run), hwbench, "ex")))
    assert back.header == run.header
    assert set(back.planned) == {*(c.id for c in CASES), linear_case("semi_structured", None).id}
    before = {(r.case, r.replicate): r for r in run.results if r.case == CASES[1].id}
    for result in back.results:
        if result.case == CASES[1].id:
            known = before[result.case, result.replicate]
            assert result.values("relative_time") == known.values("relative_time")[:1]
            assert result.values("time_seconds") == known.values("time_seconds")[:1]
    assert [r.reason for r in back.results if r.case == CASES[2].id] == ["signal 11"]


def test_an_exported_run_that_was_not_finished_is_none_that_was(
    hwbench: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    run = made(9, CASES)
    run.footer = None
    path = Path(exported(kept(run), hwbench, "ex"))
    assert not pytest_benchmark.read(path).complete
    run = made(8, CASES)
    assert pytest_benchmark.read(Path(exported(kept(run), hwbench, "other"))).complete


def test_the_gate_reads_exported_files(
    hwbench: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    for day in range(1, 6):
        exported(kept(made(day)), hwbench, "nights")
    Path("nights/check.json").write_text('{"exit": 0}')
    same = exported(kept(made(9)), hwbench, "new")
    slower = exported(kept(made(10, slower=1.1)), hwbench, "new")
    code, out, _ = hwbench("check", same, "-b", "nights", "--json")
    assert code == 0
    assert len(json.loads(out)["baseline"]) == 5
    assert json.loads(out)["notes"] == ["Runs in nights that are left out: 1 cannot be read."]
    code, out, _ = hwbench("check", slower, "-b", "nights", "--json")
    assert code == 1
    assert json.loads(out)["changes"][0]["ratio"] == pytest.approx(1.1, rel=0.02)
    assert json.loads(out)["changes"][0]["metric"] == "relative"
    assert (
        hwbench("check", same, "-b", kept(made(1), "own"))[0] == 0
    )  # the same contract: comparable
    code, _, err = hwbench("check", same, "-b", "nights", "--confirm")
    assert code == 2
    assert "cannot be measured again" in one_sentence(err)


def test_times_of_pytest_are_not_compared_with_ours(
    hwbench: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    old = kept(made(1))
    new = Path(exported(kept(made(9)), hwbench, "new"))
    new.write_text(new.read_text().replace('"contract": "wall"', '"contract": "pytest"'))
    code, out, err = hwbench("check", str(new), "-b", old)
    assert code == 6
    assert "The timing contracts pytest and wall are not comparable" in one_sentence(err)
    assert "incomparable" in out


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a file of pytest-benchmark"),
        (b"[]", "is not a file of pytest-benchmark"),
        (b'{"benchmarks": [', "is not a file of pytest-benchmark"),
        (b'{"benchmarks": [{"stats": {"median": "x"}}]}', "is not a file of pytest-benchmark"),
        (b'{"benchmarks": []}', "holds no cases of hwbench"),
        (b'{"benchmarks": [], "hwbench": {}}', "is not a file of pytest-benchmark"),
    ],
)
def test_other_json_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(RunFileError, match=words):
        pytest_benchmark.read(path)


def test_a_newer_schema_and_an_unknown_case_are_refused(tmp_path: Path) -> None:
    document = pytest_benchmark.document(made(1))
    path = tmp_path / "x.json"
    newer = json.loads(json.dumps(document))
    newer["hwbench"]["header"]["schema"] = 99
    path.write_text(json.dumps(newer))
    with pytest.raises(RunFileError, match="has schema 99"):
        pytest_benchmark.read(path)
    document["hwbench"]["cases"].pop()
    path.write_text(json.dumps(document))
    with pytest.raises(RunFileError, match="which it does not have"):
        pytest_benchmark.read(path)


@pytest.mark.processes
def test_pytest_benchmark_compares_exported_files(
    hwbench: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    files = [exported(kept(made(day)), hwbench, "ex") for day in (1, 2)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", "compare", *files, "--csv", "out.csv"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = Path("out.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * len(CASES)
    times = [
        r.values("time_seconds")[0]
        for r in read_run(Path(f"{made(1).header.run}.jsonl")).results
        if r.case == CASES[0].id
    ]
    column = rows[0].split(",").index("max")
    assert any(float(row.split(",")[column]) == max(times) for row in rows[1:])


def test_an_exported_file_has_what_other_tools_read() -> None:
    """Of each benchmark github-action-benchmark and Bencher read name, times and their spread."""
    result = pytest_benchmark.document(made(1))
    assert {"machine_info", "commit_info", "benchmarks", "datetime", "version"} <= set(result)
    assert result["machine_info"]["name"] == FACTS["name"]
    for each in result["benchmarks"]:
        assert isinstance(each["fullname"], str)
        stats = each["stats"]
        assert stats["min"] <= stats["median"] <= stats["max"]
        assert stats["ops"] == pytest.approx(1 / stats["mean"])
        assert stats["rounds"] == 5 == len(stats["data"])
        assert stats["stddev"] > 0
    json.dumps(result, allow_nan=False)
