"""The pages for those who add something: every block of them runs, and every table holds."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import _formats
import msgspec
import pytest
import test_formats
from _check import Call
from _faulty import ROOT
from hwbench_simulated import Effects

import hwbench as package
from hwbench import plugins, suite
from hwbench.devices.cpu import Cpu
from hwbench.errors import HwbenchError, SuiteError
from hwbench.measure.run import with_anchors
from hwbench.meters import allocator
from hwbench.records import PlannedLine, ResultLine
from hwbench.store import read_run
from hwbench.workloads import _planning as planning

sys.path.insert(0, str(ROOT / "docs"))
import make_pages

DOCS = ROOT / "docs"
TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in DOCS.glob("*.md")}
PAGES = ("add-a-format", "add-a-device", "suites", "schema")
STALE = "run `make docs`"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXTS[page], re.MULTILINE | re.DOTALL)


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading."""
    under = TEXTS[page].partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line.strip("| ") for line in under.splitlines() if line.startswith("| ")]
    return [re.split(r" \| ", line) for line in lines[1:]]


FORMAT, KERNEL = blocks("add-a-format", "python")
ENTRY, WORDS = blocks("add-a-format", "toml")
TIED = f"{FORMAT}\n\n{KERNEL}"
CPU_TIME, ZEROS, READING, SPECTRAL, RESIDUAL = blocks("add-a-device", "python")
(MINE,) = blocks("add-a-device", "toml")
(SUITE,) = blocks("suites", "toml")
(LOADING,) = blocks("schema", "python")

# --- what is shown runs ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The package of the pages as pip would leave it; an environment that finds it and hwbench."""
    home = tmp_path_factory.mktemp("site")
    files = {"tied_inputs": TIED, "cpu_time": CPU_TIME, "zeros": ZEROS}
    files |= {"spectral_error": SPECTRAL, "residual": RESIDUAL}
    for name, text in files.items():
        (home / f"{name}.py").write_text(text, encoding="utf-8")
    project = tomllib.loads(ENTRY)["project"]
    groups = dict(project["entry-points"]) | {
        "hwbench.devices": {"cpu_time": "cpu_time"},
        "hwbench.meters": {"zeros": "zeros"},
        "hwbench.workloads": {"spectral_error": "spectral_error", "residual": "residual"},
    }
    lines = [
        line
        for group, points in groups.items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in points.items()))
    ]
    info = home / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    named = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(named, encoding="utf-8")
    return {**os.environ, "PYTHONPATH": f"{home}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}


def done(environment: dict[str, str], *words: str, cwd: Path = ROOT) -> str:
    command = [sys.executable, "-m", *words]
    ran = subprocess.run(
        command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, f"{ran.stdout[-3000:]}{ran.stderr[-3000:]}"
    return ran.stdout


@pytest.mark.processes
@pytest.mark.heavy
def test_format_and_device_keep_every_promise(elsewhere: dict[str, str]) -> None:
    result = done(
        elsewhere, "pytest", "-q", "-p", "no:cacheprovider", "tests/test_formats.py",
        "tests/test_every_device.py", "-k", "tied_inputs or cpu_time",
    )  # fmt: skip
    passed = re.search(r"(\d+) passed", result)
    assert passed
    assert int(passed[1]) > 80, result
    assert not re.search(r"\d+ (failed|skipped|xfailed)", result), result


def test_a_run_uses_all_of_them(
    elsewhere: dict[str, str], tmp_path: Path, hwbench: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.toml").write_text(MINE, encoding="utf-8")
    monkeypatch.syspath_prepend(elsewhere["PYTHONPATH"].partition(os.pathsep)[0])
    plugins._external.cache_clear()
    try:
        code, outcome, err = hwbench(
            "run", "--suite", "mine.toml", "--device", "cpu_time", "--threads", "1",
            "--format", "tied_inputs,low_rank", "--density", "0.5,0.25", "--json",
        )  # fmt: skip
    finally:
        plugins._external.cache_clear()
    assert (code, err) == (0, "")
    (path,) = (tmp_path / "runs").glob("*.jsonl")
    run = read_run(path)
    assert run.complete
    assert {result.status for result in run.results} == {"ok"}, [r.reason for r in run.results]
    assert {p.case.workload for p in run.planned.values()} == {"residual", "spectral_error"}
    assert {p.case.format for p in run.planned.values()} == {"dense", "low_rank", "tied_inputs"}
    assert set(package.load_run(path)["contract"].dropna()) == {"cpu_time"}
    assert run.header.environment.fingerprint["device"]["name"]
    shown = _read_as_shown(path)
    assert set(shown["residual"]) == {0.0}
    assert all(map(math.isnan, shown["spectral_error"]))
    columns = set(package.summary(path).columns) - {"label"}
    assert columns <= set(json.loads(outcome)[0])


@pytest.mark.heavy
def test_a_kernel_of_one_class_is_listed_planned_and_held_to_the_promises(
    elsewhere: dict[str, str], tmp_path: Path, hwbench: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert KERNEL.count("class ") == 1
    assert "scatter" not in FORMAT.lower()
    monkeypatch.syspath_prepend(elsewhere["PYTHONPATH"].partition(os.pathsep)[0])
    (tmp_path / "mine.toml").write_text(
        'schema = 1\nname = "mine"\n[[cases]]\nworkload = "linear"\nshape = [32, 32]\ntokens = 4\n'
        'format = [{ name = "tied_inputs", density = 0.5, kernel = "scatter" }]\n',
        encoding="utf-8",
    )
    plugins._external.cache_clear()
    try:
        code, outcome, err = hwbench("list", "formats", "--details", "--json")
        assert (code, err) == (0, "")
        (listed,) = [each for each in json.loads(outcome) if each["name"] == "tied_inputs"]
        code, outcome, err = hwbench("run", "--suite", "mine.toml", "--device", "cpu", "--json")
        assert (code, err) == (0, ""), outcome
        monkeypatch.setattr(_formats, "CLASSES", _formats._classes())
        tried = [f for f in _formats.settings(_formats.SHAPES) if f.kernel == "scatter"]
    finally:
        plugins._external.cache_clear()
    assert listed["kernels"] == ["sum", "slices", "scatter"]
    assert listed["by_kernel"]["scatter"]["cpu float32 step"] == ""
    (path,) = (tmp_path / "runs").glob("*.jsonl")
    planned = [p for p in read_run(path).planned.values() if p.case.format == "tied_inputs"]
    assert [(p.kernel, p.unsupported) for p in planned] == [("scatter", None)]
    assert len(tried) == len(_formats.SHAPES)
    for f in tried:
        test_formats.test_forward_equals_dense(f)
        test_formats.test_gradients_equal_float64(f)
        test_formats.test_flops_are_those_of_the_operators(f)
        test_formats.test_dense_weight_is_made_only_where_the_format_says_so(f)


def _read_as_shown(path: Path) -> dict[str, list[float]]:
    """The shares of zeros that the blocks which read a run print, by workload."""
    printed: list[Any] = []
    result: dict[str, Any] = {"path": path, "print": printed.append}
    exec(READING, result)
    (frame,) = printed
    collected: dict[str, list[float]] = {}
    for case, share in zip(frame["case"], frame["zero_share"], strict=True):
        collected.setdefault(re.match(r"\w+", case)[0], []).append(share)
    exec(LOADING, result)
    assert len(result["rows"]) == len(result["run"].results)
    assert len(result["cases"]) == len(result["run"].planned)
    return collected


def test_words_for_formats_toml_hold(elsewhere: dict[str, str]) -> None:
    scope: dict[str, Any] = {"__name__": "tied_inputs"}
    sys.modules["tied_inputs"] = type(sys)("tied_inputs")
    try:
        exec(compile(TIED, "tied_inputs.py", "exec"), scope)
    finally:
        del sys.modules["tied_inputs"]
    f = scope["TiedInputs"].from_knobs(96, 64, density=0.5)
    words = tomllib.loads(WORDS)["tied_inputs"]
    for key, value in {"parameters": f.parameters(), "between": f.intermediate_width()}.items():
        formula = re.sub(r"\bin\b", "in_", words[key]).replace("·", "*")
        assert eval(formula, {"out": 96, "in_": 64, "tie": f.tie}) == value
    assert set(words) == {"order", "maths", "parameters", "between", "wins"}


def test_the_script_of_the_simulated_device_is_one() -> None:
    (script,) = re.findall(r"^HWBENCH_FAKE='(.*)' hwbench", TEXTS["add-a-device"], re.MULTILINE)
    assert msgspec.json.decode(script, type=Effects).slow == {"low_rank": 1.075}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_suite_is_planned(device: str) -> None:
    built = suite.build(tomllib.loads(SUITE), device)
    timed = [case for case in built.cases if case.workload == "linear"]
    assert len(timed) == (2 * 2 * 2 * 7 - 4 if device == "cpu" else 2 * 2 * 3 * 2 * 7 - 8)
    assert len(built.cases) - len(timed) == 8
    assert "52 cases on a CPU. The second is 2 matrices × 4 settings: 8." in TEXTS["suites"]
    assert with_anchors(built.cases) == built.cases
    made: planning.Resolved = {}
    planned = [planning.planned(case, Cpu(), made) for case in built.cases]
    assert [each.unsupported for each in planned] == [None] * len(planned)
    rounded = [p for p in planned if p.case.knobs.get("multiple")]
    assert rounded
    assert all(p.resolved["rank"] % 8 == 0 for p in rounded)


def test_quick_and_filter_of_the_suite_do_what_is_said() -> None:
    document = tomllib.loads(SUITE)
    quick = suite.build(suite.quickened(document), "cpu").cases
    assert len([case for case in quick if case.workload == "projection"]) == 4
    (expression,) = re.findall(r"--suite mine.toml --filter (\S+)", TEXTS["suites"])
    kept = suite.select(suite.build(document, "cpu").cases, expression)
    assert {(case.tokens, case.direction) for case in kept} == {(64, "step")}


# --- what is said holds ------------------------------------------------------------------------


@pytest.mark.parametrize("page", make_pages.PAGES, ids=lambda page: page.stem)
def test_tables_are_those_of_the_code(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<!-- begin" in text
    assert make_pages.filled(text) == text, f"{page.name} is stale: {STALE}"


def test_every_table_stands_on_a_page() -> None:
    text = re.findall(r"^<!-- begin (\w+): ", "\n".join(TEXTS.values()), re.MULTILINE)
    assert sorted(text) == sorted(make_pages.tables())


def test_every_test_of_formats_is_explained() -> None:
    code = (ROOT / "tests/test_formats.py").read_text(encoding="utf-8")
    tests = set(re.findall(r"^def (test_\w+)", code, re.MULTILINE))
    assert tests == set(re.findall(r"`(test_\w+)`", TEXTS["add-a-format"]))


def test_every_flag_is_explained() -> None:
    code = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "hwbench").rglob("*.py"))
    flags = {*re.findall(r'flags\.add\("(\w+)"\)', code), allocator.SLOWER}
    assert flags == set(make_pages.WORDS["flags"])


def test_figures_are_headings_of_the_report() -> None:
    template = (ROOT / "hwbench/report/templates/page.html.j2").read_text(encoding="utf-8")
    headings = set(re.findall(r"<h[23][^>]*>([^<{]+)</h[23]>", template))
    for _, figures in make_pages.WORDS["suites"].values():
        assert set(figures.split("; ")) <= headings


def test_members_of_a_device_are_those_of_the_base() -> None:
    names = {n for row in rows("add-a-device", "A device") for n in re.findall(r"`(\w+)", row[0])}
    public = {name for name in vars(package.Device) if not name.startswith("_")}
    instance = {"torch_device", "resolution_seconds", "index", "kind", "contract"}
    assert names | {"kind", "index"} == public | instance


BASE = {"schema": 1, "name": "base", "source": "m.toml"}
BLOCK = {"workload": "linear", "shape": [64, 64], "tokens": 8, "format": [{"name": "dense"}]}
MISTAKES = [(row[0].strip("`"), row[1]) for row in rows("suites", "Mistakes that it names")]


@pytest.mark.parametrize(("written", "told"), MISTAKES, ids=[written for written, _ in MISTAKES])
def test_mistake_is_told_as_the_page_says(written: str, told: str) -> None:
    changes = tomllib.loads(written)
    plan = changes.pop("plan", {})
    document = {**BASE, "plan": plan, "cases": [{**BLOCK, **changes}]}
    with pytest.raises(HwbenchError) as caught:
        [planning.planned(case, Cpu(), {}) for case in suite.build(document, "cpu").cases]
    assert told in str(caught.value)
    if isinstance(caught.value, SuiteError) and "option" not in told:
        assert str(caught.value).startswith("m.toml: ")


def test_a_word_without_a_column_or_a_field_is_noticed() -> None:
    """pages.toml holds no words of what is gone."""
    text = "\n".join(TEXTS[page] for page in PAGES)
    for kind in ("quantities", "columns", "effects", "statuses", "flags", "check", "changes"):
        for name in make_pages.WORDS[kind]:
            assert f"| `{name}` |" in text, f"[{kind}] {name} is shown nowhere"


LINK = r"\]\(([^)#:]+)(?:#([^)]+))?\)"


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head).lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", [*sorted(TEXTS), "../README", "../CONTRIBUTING"])
def test_links_lead_somewhere(page: str) -> None:
    path = DOCS / f"{page}.md"
    links = re.findall(LINK, path.read_text(encoding="utf-8"))
    assert links
    for target, anchor in links:
        there = path.parent / target
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), f"{target}#{anchor}"


def test_every_page_is_in_the_index() -> None:
    listed = {target for target, _ in re.findall(LINK, TEXTS["README"])}
    assert {f"{page}.md" for page in TEXTS} - {"README.md"} <= listed


def test_each_of_twenty_questions_names_the_page_that_answers_it() -> None:
    matches = re.findall(r"^(\d+)\. ([^?\n]+\?)\s+\[[^]]+" + LINK, TEXTS["questions"], re.MULTILINE)
    assert [int(number) for number, *_ in matches] == list(range(1, 21))
    assert len({question for _, question, *_ in matches}) == 20


def test_the_tour_is_short_enough_to_read_at_a_sitting() -> None:
    files = [DOCS / target for target, _ in re.findall(LINK, TEXTS["tour"]) if ".py" in target]
    assert len(files) == len(set(files)) == TEXTS["tour"].count("\n**[hwbench/")
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files) < 4700


def test_a_reader_ignores_fields_that_it_does_not_know(tmp_path: Path) -> None:
    run = make_pages.example()
    lines = [run.header, *(PlannedLine(id=i, planned=p) for i, p in run.planned.items())]
    lines += [ResultLine(result=result) for result in run.results]
    written = [{**msgspec.to_builtins(line), "of tomorrow": 1} for line in lines]
    path = tmp_path / "run.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in written), encoding="utf-8")
    run_ = read_run(path)
    assert (run_.planned, run_.results) == (run.planned, run.results)
