"""The house keeps its promises: who knows whom, what loads torch, what the wheel holds."""

from __future__ import annotations

import ast
import keyword
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import grimp
import pytest

from hwbench.plugins import KINDS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hwbench"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONTRACTS = {c["id"]: c for c in PROJECT["tool"]["importlinter"]["contracts"]}

FILES = sorted(PACKAGE.rglob("*.py"))
OPEN_SETS = [
    "formats",
    "devices",
    "meters",
    "workloads",
]  # a member's file name is its registration
TORCH_SIDE = {"formats", "devices", "workloads", "meters", "planning", "worker"}


def layered() -> tuple[set[str], set[str]]:
    """The top-level modules that the layers name: those that must exist, and those that may."""
    names = [name.strip() for layer in CONTRACTS["layers"]["layers"] for name in layer.split("|")]
    optional = {name.strip("()") for name in names if name.startswith("(")}
    return {name.strip("()") for name in names} - optional, optional


def top_level() -> set[str]:
    """The top-level modules and packages that exist."""
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    return files | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def test_the_map_in_contributing_has_every_module_and_no_other() -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listing = contributing.partition("### The map of the packages")[2].split("```")[1]
    inside = listing.partition("hwbench/\n")[2].partition("\nsuites/")[0]
    files = set(re.findall(r"\b(\w+)\.py\b", inside))
    folders = set(re.findall(r"── (\w+)/", inside))
    assert files | folders == top_level()


def test_every_file_opens_with_a_sentence() -> None:
    assert FILES
    for path in FILES:
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        first = doc.split("\n\n")[0].strip()
        assert first.endswith((".", "?", ":")), (
            f"{path.relative_to(ROOT)} says not what it is: {first!r}"
        )


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in FILES}), ids=lambda path: path.name
)
def test_every_file_name_is_an_identifier(folder: Path) -> None:
    assert (folder / "__init__.py").exists(), f"{folder.name} is no package"
    stems = [path.stem for path in folder.glob("*.py")]
    assert [
        s for s in stems if not s.isidentifier() or keyword.iskeyword(s) or s.lower() != s
    ] == []


def test_the_layers_name_exactly_the_modules_there_are() -> None:
    required, optional = layered()
    assert top_level() - optional == required


def test_the_torch_contract_names_every_other_module() -> None:
    required, optional = layered()
    listed = {name.removeprefix("*.") for name in CONTRACTS["torch"]["source_modules"]}
    assert listed == ((required | optional) - TORCH_SIDE) | {"__main__"}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Who imports whom in hwbench, with imports inside functions."""
    return grimp.build_graph("hwbench", cache_dir=None)


@pytest.mark.parametrize("kind", KINDS)
def test_members_of_an_open_set_do_not_know_each_other(graph: grimp.ImportGraph, kind: str) -> None:
    home = f"hwbench.{kind}"
    members = {
        name for name in graph.find_children(home) if not name.rpartition(".")[2].startswith("_")
    }
    assert members, f"nothing was found in {home}"
    known = {
        (importer, member)
        for importer in graph.find_children(home)  # shared pieces know no member either
        for member in graph.find_modules_directly_imported_by(importer) & members
    }
    assert known == set()


_LIGHT = {
    "hwbench by itself": "import hwbench; hwbench.__version__",
    "the sampling loop": """
from hwbench.analysis.stats import median, median_interval, relative_width
values = [float(i) for i in range(20)]
median(values), median_interval(values), relative_width(values)
""",
    "comparing": "import hwbench.analysis.compare",
    "names and summaries": """
from hwbench import plugins
for kind in plugins.KINDS:
    for name in plugins.names(kind):
        plugins.summary(kind, name)
""",
    "the environment and NVML": """
import hwbench.environment, hwbench.devices._nvml as nvml
nvml.Nvml("none")
""",
    "the fixtures of all tests": "import sys; sys.path[:0] = ['tests']; import conftest",
}
_WORKER = """
import hwbench.worker
from hwbench import plugins
for name in plugins.names("formats"):
    plugins.load("formats", name, hwbench.formats._base.Format)
from hwbench import protocol, suite
worker = hwbench.worker.Worker(hwbench.worker.open_device("cpu"))
layers = {"workload": "linear", "direction": ["forward", "step"], "shape": [32, 32], "tokens": 8,
          "format": [{"name": "dense"}]}
cases = suite.build({"schema": 1, "name": "two", "cases": [layers]}, "cpu").cases
for planned in worker.plan(protocol.PlanRequest(cases=cases)).planned:
    alone = worker.solo(protocol.SoloRequest(planned=planned, replicate=0, seed=0))
    assert alone.result.status == "ok", alone.result.reason
print("a worker", [m for m in sys.modules if m in ("torch._dynamo", "pandas", "matplotlib")])
"""
"""A worker that has every format, and reads two cases with every meter: it loads no compiler, which
takes as long as torch."""

_LOADED = "[m for m in sys.modules if m in ('torch', 'pandas', 'numpy', 'scipy')]"


def test_what_needs_no_torch_and_no_tables_loads_none() -> None:
    """One process does one thing after the other, and is asked what it loaded after each."""
    steps = [f"{code}\nprint({about!r}, {_LOADED})" for about, code in _LIGHT.items()]
    steps.append(_WORKER)
    steps.insert(4, "print('members', [m for m in sys.modules if m.startswith('hwbench.formats')])")
    process = subprocess.check_output(
        [sys.executable, "-c", "\n".join(["import sys", *steps])], cwd=ROOT, text=True
    )
    assert process.splitlines() == [*(f"{about} []" for about in [*list(_LIGHT)[:4], "members"]),
                                 *(f"{about} []" for about in list(_LIGHT)[4:]),
                                 "a worker []"]  # fmt: skip


# the report's row is a record, and its group has names


_TABLE = re.compile(r"(dict|Dict|Mapping|MutableMapping)\[str, (Any|object)\]")
_ROWS = re.compile(r"(^|_)(rows?|members|have)$")


def _name(node: ast.expr) -> str:
    """The last name of an expression: ``group`` of ``group``, ``row.group``, ``row["group"]``."""
    match node:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
        case ast.Subscript(slice=ast.Constant(value=str(name))):
            return name
    return ""


def _is_place(index: ast.expr) -> bool:
    if isinstance(index, ast.UnaryOp):
        index = index.operand
    return isinstance(index, ast.Slice) or (
        isinstance(index, ast.Constant) and isinstance(index.value, int)
    )


def taken_by_place(tree: ast.AST) -> list[int]:
    """The lines that take a group apart by places, not by the names of its fields."""
    lines = []
    for node in ast.walk(tree):
        value: ast.expr
        match node:
            case ast.Subscript(value=value, slice=index) if _name(value) in ("group", "key"):
                actual = _is_place(index)
            case ast.Starred(value=value):
                actual = _name(value) in ("group", "key")
            case ast.For(iter=value) | ast.comprehension(iter=value):
                arguments = value.args if isinstance(value, ast.Call) else [value]
                actual = any(_name(each) == "group" for each in arguments)
            case ast.Assign(targets=[ast.Tuple() | ast.List()], value=value):
                actual = _name(value) == "group"
            case _:
                continue
        if actual:
            lines.append(value.lineno)
    return lines


def rows_without_type(tree: ast.Module) -> list[int]:
    """The lines that make a row a table of strings: an alias, or what a function is given."""
    lines = []
    for node in tree.body:
        if isinstance(node, ast.Assign) and _TABLE.fullmatch(ast.unparse(node.value)):
            lines.append(node.lineno)
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            alias = ast.unparse(node.annotation).endswith("TypeAlias")
            if alias and _TABLE.search(ast.unparse(node.value)):
                lines.append(node.lineno)
    for node in ast.walk(tree):
        match node:
            case ast.arg(arg=name, annotation=ast.expr() as annotation):
                pass
            case ast.AnnAssign(target=target, annotation=annotation):
                name = _name(target)
            case _:
                continue
        words = ast.unparse(annotation)
        several = isinstance(node, ast.arg) and re.search(r"\[" + _TABLE.pattern, words)
        if several or (_ROWS.search(name) and _TABLE.search(words)):
            lines.append(node.lineno)
    return lines


def test_no_group_is_taken_apart_by_places() -> None:
    actual = {path: taken_by_place(ast.parse(path.read_text("utf-8"))) for path in FILES}
    assert {name: lines for name, lines in actual.items() if lines} == {}


def test_no_row_of_the_report_is_a_table_of_strings() -> None:
    paths = sorted((PACKAGE / "report").glob("*.py"))
    actual = {path.name: rows_without_type(ast.parse(path.read_text("utf-8"))) for path in paths}
    assert "rows.py" in actual
    assert {name: lines for name, lines in actual.items() if lines} == {}


@pytest.mark.parametrize(
    "code",
    [
        "key = row['group'][:2]",
        "name = row.group[3]",
        "last = key[-1]",
        "longer = (run, *row.group)",
        "rest = [part for part in group if part != direction]",
        "rest = tuple(part for place, part in enumerate(row['group']) if place != 4)",
        "run, workload = row.group",
        "for part in row.group: print(part)",
    ],
)
def test_a_group_that_is_taken_apart_by_places_is_seen(code: str) -> None:
    assert taken_by_place(ast.parse(code)) == [1]


@pytest.mark.parametrize(
    "code",
    [
        "Row = dict[str, Any]",
        "Seen = Mapping[str, Any]",
        "Row: TypeAlias = dict[str, Any]",
        "def shape(row: dict[str, Any]) -> str: ...",
        "def mark(rows: list[dict[str, Any]]) -> None: ...",
        "def mark(found: Sequence[Mapping[str, Any]]) -> None: ...",
        "def mark() -> None:\n    rows: list[dict[str, Any]] = []",
    ],
)
def test_a_row_that_is_a_table_of_strings_is_seen(code: str) -> None:
    assert len(rows_without_type(ast.parse(code))) == 1


def test_there_is_one_version() -> None:
    version = PROJECT["project"]["version"]
    init = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    stated = [
        node.value.value
        for node in init.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id == "__version__"
        and isinstance(node.value, ast.Constant)
    ]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert stated == [version]
    assert f"\nversion: {version}\n" in citation


@pytest.mark.processes
@pytest.mark.heavy
def test_the_wheel_holds_the_package_and_the_suites(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {str(path.relative_to(ROOT)) for path in FILES}
    suites = {f"hwbench/suites/{path.name}" for path in (ROOT / "suites").glob("*.toml")}
    assert "hwbench/suites/linear.toml" in suites
    assert modules | suites | {"hwbench/py.typed", "hwbench/analysis/peaks.toml"} <= names
    assert {name.split("/")[0] for name in names} == {"hwbench"}
