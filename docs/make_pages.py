"""Write the tables of suites.md, schema.md, add-a-device.md and install.md from the code.

A table stands between ``<!-- begin NAME … -->`` and ``<!-- end NAME -->``; the rest of a page is
written by hand. Names, types, units, defaults and counts come from the code, words from
docs/pages.toml. Run it as ``.venv/bin/python docs/make_pages.py``.
"""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from hwbench_simulated import Effects

from hwbench import plugins, records, suite
from hwbench.analysis import frames, outcome
from hwbench.measure import run as runner
from hwbench.meters._base import Meter
from hwbench.quantities import MEASURED
from hwbench.store import Run
from hwbench.workloads._base import Workload

HERE = Path(__file__).parent
PAGES = [HERE / name for name in ("suites.md", "schema.md", "add-a-device.md", "install.md")]
WORDS: dict[str, Any] = tomllib.loads((HERE / "pages.toml").read_text(encoding="utf-8"))
NOTE = "written by docs/make_pages.py"
RECORDS = [
    *(records.Header, records.Reference, records.Environment, records.PlannedLine, records.Planned),
    *(records.Case, records.Cost, records.ResultLine, records.Result, records.Measurement),
    records.Footer,
]
UNITS = {"seconds": "s", "bytes": "B", "flops": "FLOP", "joules": "J", "microseconds": "µs"}
_TEXT = "text"


def main() -> None:
    """Write every table into its page."""
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


def filled(text: str) -> str:
    """The text of a page with every table of it written anew."""
    for name, lines in tables().items():
        begin, end = f"<!-- begin {name}: {NOTE} -->", f"<!-- end {name} -->"
        pattern = re.compile(re.escape(begin) + r".*?" + re.escape(end), re.DOTALL)
        whole = "\n".join([begin, "", *lines, "", end])
        text = pattern.sub(lambda _, whole=whole: whole, text)
    return text


def tables() -> dict[str, list[str]]:
    """Every table by its name, line by line."""
    return {
        "suites": suites(),
        "plan": plan(),
        "options": options(),
        "effects": effects(),
        **{each.__name__.lower(): fields(each) for each in RECORDS},
        "statuses": table(["status", "meaning"], listed("statuses", records.Status)),
        "flags": table(["flag", "meaning"], listed("flags", WORDS["flags"])),
        "quantities": quantities(),
        **columns(),
        **check(),
        **packages(),
    }


def table(heads: list[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A Markdown table."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]


def listed(kind: str, names: Iterable[str]) -> list[list[str]]:
    """Names with their words, in the order of the code."""
    return [[f"`{name}`", WORDS[kind][str(name)]] for name in names]


def unit(name: str) -> str:
    """The unit that stands in a name; empty where there is none."""
    if name.endswith("per_dense_flop"):
        return "J/FLOP"
    ends = re.search(r"(?:^|_)(microseconds|seconds|bytes|flops|joules)$", name)
    if name.startswith(("time_", "graph_")) and name.endswith(("_low", "_high")):
        return "s"
    return UNITS[ends[1]] if ends else ""


def shown(value: object) -> str:
    """A default as TOML would have it."""
    if value is None:
        return "null"
    if value is msgspec.NODEFAULT:
        return "required"
    return f"`{value!r}`".replace("'", '"')


# --- suites.md ---------------------------------------------------------------------------------


def suites() -> list[str]:
    """The question of each shipped suite, its number of cases, and where its answer stands."""
    rows = []
    for name in suite.names():
        document = suite.read(name)
        cpu, cuda = (runner.case_count(document, kind) for kind in ("cpu", "cuda"))
        cases = f"{cpu}" if cpu == cuda else f"{cpu}, {cuda} on CUDA"
        needs, figure = WORDS["suites"][name]
        link = f"[{name}](../suites/{name}.toml)"
        rows.append([link, str(document["about"]), cases, needs, figure])
    return table(["suite", "asks", "cases", "needs", "figure"], rows)


def plan() -> list[str]:
    """The keys of [plan] with their units and defaults."""
    return table(
        ["key", "default", "unit", "meaning"],
        (
            [f"`{field.name}`", shown(suite.PLAN.get(field.name, field.default)), unit(field.name),
             WORDS["fields"]["Plan"][field.name]]
            for field in msgspec.structs.fields(records.Plan)
        ),
    )  # fmt: skip


def options() -> list[str]:
    """The options of each workload with their defaults."""
    rows = []
    for name in own("workloads"):
        own_options = plugins.load("workloads", name, Workload).OPTIONS
        if not own_options:
            rows.append([f"`{name}`", "none", "", ""])
        for option, default in own_options.items():
            words = WORDS["options"][name][option]
            rows.append([f"`{name}`", f"`{option}`", shown(default), words])
    return table(["workload", "option", "default", "meaning"], rows)


def own(kind: str) -> list[str]:
    """The members of this repository: others may be installed where the page is made."""
    folder = HERE.parent / "hwbench" / kind
    return [name for name in plugins.names(kind) if (folder / f"{name}.py").exists()]


# --- add-a-device.md ---------------------------------------------------------------------------


def effects() -> list[str]:
    """The effects that may be scripted on the simulated device."""
    rows = (
        [f"`{field.name}`", _default(field), WORDS["effects"][field.name]]
        for field in msgspec.structs.fields(Effects)
    )
    return table(["key", "default", "what happens"], rows)


# --- schema.md ---------------------------------------------------------------------------------


def fields(record: type[records.Record]) -> list[str]:
    """The fields of one record."""
    rows = []
    for field in msgspec.structs.fields(record):
        words, written = WORDS["fields"][record.__name__][field.name], _written(record, field.name)
        rows.append([f"`{field.name}`", written, unit(field.name), _default(field), words])
    return table(["field", "type", "unit", "left out where it is", "meaning"], rows)


def _default(field: Any) -> str:
    factory = field.default_factory
    return shown(field.default if factory is msgspec.NODEFAULT else factory())


def _written(record: type, name: str) -> str:
    """The type of a field, as JSON has it."""
    annotations = [inspect.get_annotations(base) for base in record.__mro__]
    return readable(next(str(own[name]) for own in annotations if name in own))


def readable(annotation: str) -> str:
    """A Python annotation in words."""
    words = {
        "str": _TEXT, "int": "whole number", "float": "number", "bool": "boolean",
        "Any": "anything", "Knob": "value", "None": "null", "Status": _TEXT, "dict": "object",
        **{record.__name__: record.__name__.lower() for record in (*RECORDS, records.Plan)},
    }  # fmt: skip
    annotation = re.sub(r"dict\[str, (.*?)\]", r"object of \1", annotation)
    annotation = re.sub(r"list\[list\[(.*?)\]\]", r"lists of lists of \1", annotation)
    annotation = re.sub(r"list\[(.*?)\]", r"list of \1", annotation)
    annotation = annotation.replace(" | None", " or null").replace(" | ", " or ")
    return re.sub(r"\w+", lambda word: words.get(word[0], word[0]), annotation)


def quantities() -> list[str]:
    """Every quantity that a meter reads, and what the scores of workloads find beside them."""
    members: list[tuple[str, str, type[Meter] | type[Workload]]] = [
        (kind, name, plugins.load(f"{kind}s", name, base))
        for kind, base in (("meter", Meter), ("workload", Workload))
        for name in own(f"{kind}s")
    ]
    rows = [
        [f"`{each.name}`", each.unit, f"{kind} `{name}`", WORDS["quantities"][each.name]]
        for kind, name, member in members
        for each in member.QUANTITIES
    ]
    return table(["quantity", "unit", "read by", "meaning"], rows)


def columns() -> dict[str, list[str]]:
    """The columns of ``load_run``, and those that ``summary`` has beside them."""
    run = example()
    (row,), (one,) = frames.replicate_rows(run), frames.summary_rows(run)
    new = {name: value for name, value in one.items() if name not in row}
    gone = ", ".join(f"`{name}`" for name in row if name not in one)
    tables = {"load_run": _columns(row), "summary": _columns(new)}
    return {**tables, "only_load_run": [f"Columns of `load_run` that `summary` has not: {gone}."]}


def _columns(row: dict[str, Any]) -> list[str]:
    rows = [[f"`{name}`", _type(value), unit(name), _column(name)] for name, value in row.items()]
    return table(["column", "type", "unit", "meaning"], rows)


def _type(value: object) -> str:
    return readable(type(value).__name__)


def _column(name: str) -> str:
    """The words of a column: its own, those of a quantity, or those of a field."""
    places = ("Cost", "Case", "Planned", "Result")
    for words in (WORDS["columns"], WORDS["quantities"], *(WORDS["fields"][p] for p in places)):
        if name in words:
            return str(words[name])
    raise KeyError(f"docs/pages.toml has no words for the column {name!r}.")


def example() -> Run:
    """A run of one case in which every column has a value."""
    case = records.Case(
        workload="linear", format="dense", out_features=2, in_features=2, dtype="float32",
        device="cpu", knobs={"density": 0.5, "stored": 0.5}, tokens=1, direction="forward",
        regime="hot", mode="eager",
    )  # fmt: skip
    cost = records.Cost(parameters=2, stored_bytes=8, flops=4, dense_flops=8, compulsory_bytes=24)
    planned = records.Planned(case=case, kernel="torch", density=0.5, cost=cost)
    read = [
        records.Measurement(
            quantity=each.name, unit=each.unit, values=[1.0], contract="wall", note=_TEXT
        )
        for each in MEASURED
    ]
    result = records.Result(
        case=case.id, replicate=0, seed=0, status=records.Status.OK, reason=_TEXT,
        measurements=read,
    )  # fmt: skip
    roofs = {
        "matmul": {"float32": {"flops_per_second": 1e9, "shape": [2, 2, 2]}},
        "copy": {"bytes_per_second": 1e9, "working_set_bytes": 24},
    }
    header = records.Header(
        schema=records.SCHEMA, run="run", created="", version="", suite="", about="",
        plan=records.Plan(), seed=0, device="cpu", environment=records.Environment(),
        ceilings=roofs,
    )  # fmt: skip
    return Run(Path("run.jsonl"), header, {case.id: planned}, [result])


def check() -> dict[str, list[str]]:
    """The keys of ``check --json``, and those of one of its changes."""
    ratio = records.Ratio(value=1.0, low=1.0, high=1.0, counts=(1, 1))
    verdict = records.Verdict.EQUIVALENT
    change = records.Change(case="case", metric="relative", verdict=verdict, ratio=ratio)
    document = outcome.plain(
        outcome.Outcome(run="run", suite="suite", machine="", changes=[change])
    )
    heads = ["key", "meaning"]
    return {
        "check": table(heads, listed("check", document)),
        "changes": table(heads, listed("changes", document["changes"][0])),
    }


# --- install.md ---------------------------------------------------------------------------------


def requirements() -> dict[str, list[str]]:
    """The packages that pyproject.toml names, by extra; what is always installed under ""."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {"": project["dependencies"], **project["optional-dependencies"]}
    found = {
        extra: [re.split(r"[^\w.-]", each)[0] for each in listed] for extra, listed in named.items()
    }
    return {extra: [n for n in names if n != project["name"]] for extra, names in found.items()}


def packages() -> dict[str, list[str]]:
    """What each package is for, its size, and the verbs that load it."""
    named = requirements()
    always, dev = named.pop(""), named.pop("dev")
    heads = ["package", "size", "what for"]
    return {
        "packages": table(
            [*heads, "loaded by"], ([*_package(each), _loaded(each)] for each in always)
        ),
        "extras": table(
            ["extra", *heads],
            ([f"`{extra}`", *_package(each)] for extra, names in named.items() for each in names),
        ),
        "development": table(heads, map(_package, dev)),
    }


def _package(name: str) -> list[str]:
    words = WORDS["packages"][name]
    return [f"`{name}`", f"{words['megabytes']} MB", words["why"]]


def _loaded(name: str) -> str:
    """The verbs that load a package: those that a test runs, then others in words."""
    words = WORDS["packages"][name]
    verbs = [f"`{verb}`" for verb in words["loaded"]]
    return ", ".join([*verbs, *([words["also"]] if "also" in words else [])])


if __name__ == "__main__":
    main()
