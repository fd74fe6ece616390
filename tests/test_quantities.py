"""A quantity is declared once; every reader knows it from its declaration."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import pytest
from _synthetic import linear_case, run_of, scored_case

from hwbench import quantities
from hwbench.analysis.compare import compare, side
from hwbench.analysis.frames import replicate_rows, summary_rows
from hwbench.errors import UnknownNameError
from hwbench.quantities import Quantity
from hwbench.records import Measurement, Result, Status, Verdict
from hwbench.report import export, html, text
from hwbench.store import Run

PACKAGE = Path(__file__).parents[1] / "hwbench"
WARMTH = Quantity(name="warmth_kelvin", unit="K", better="higher", title="warmth")
PAGES = Quantity(name="page_count", exact=True, shown=("page",))
GRASP = Quantity(name="grasp_share", unit="%", better="higher", title="grasp", levels=(90, 50))


def foreign_run(warmth: float = 300.0, pages: float = 4.0, *, declared: bool = True) -> Run:
    """A timed run in which the meter and the scored workload of another package took part."""
    cases = [linear_case("dense", None), linear_case("csr", 0.5), linear_case("btt", 0.5)]
    run = run_of(cases, replicates=4)
    for number, result in enumerate(run.results):
        noise = 1 + 0.001 * (number % 4)
        result.measurements.append(measured(WARMTH, warmth * noise))
        result.measurements.append(measured(PAGES, pages))
    for number, name in enumerate(("dense", "csr")):
        case = scored_case("grasping", name, 1024, seeds=1)
        planned = next(iter(run.planned.values()))
        run.planned[case.id] = msgspec.structs.replace(
            planned, case=case, better="higher", seeds=1, cost=None
        )
        score = Measurement(quantity="score", unit="", values=[99.0 - 12 * number], note=GRASP.name)
        run.results.append(
            Result(case=case.id, replicate=0, seed=7, status=Status.OK, measurements=[score])
        )
    if declared:
        run.header = msgspec.structs.replace(run.header, quantities=[WARMTH, PAGES, GRASP])
    return run


def measured(quantity: Quantity, value: float) -> Measurement:
    return Measurement(quantity=quantity.name, unit=quantity.unit, values=[value])


def terminal(run: Run) -> str:
    from rich.console import Console

    console = Console(width=200, file=io.StringIO())
    for part in text.table(run, 200):
        console.print(part)
    return console.file.getvalue()


def page_data(page: str) -> dict[str, Any]:
    match = re.search(r'id="hw-data"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert match
    return dict(json.loads(match[1]))


# --- another package's quantity is seen by every reader -----------------------------------------


def test_load_run_and_summary_have_a_column_of_it():
    run = foreign_run()
    rows, summary = replicate_rows(run), summary_rows(run)
    assert {row["warmth_kelvin"] for row in rows if row["workload"] == "linear"} == {
        300.0 * (1 + 0.001 * number) for number in range(4)
    }
    assert summary[0]["warmth_kelvin"] == pytest.approx(300.45, abs=0.5)
    assert summary[0]["page_count"] == 4


def test_the_terminal_shows_it_where_its_declaration_says():
    shown = terminal(foreign_run())
    assert "warmth" in shown
    assert re.search(r"300 K", shown)
    assert "page count" not in shown
    assert "grasp (%)" in shown


def test_the_page_has_its_column_its_chart_and_the_words_of_the_score():
    page = html.render([foreign_run()])
    data = page_data(page)
    columns = {each["name"]: each["column"] for each in data["quantities"]}
    assert columns["warmth_kelvin"] == "warmth"
    assert columns["page_count"] == "page count"
    assert {"warmth_kelvin", "page_count"} <= data["columns"].keys()
    kinds = [figure["kind"] for figures in data["figures"].values() for figure in figures]
    assert "reading warmth_kelvin" in kinds
    assert "reading page_count" not in kinds
    assert data["specifications"]["reading warmth_kelvin"]
    assert data["scores"]["grasp_share"] == {"title": "grasp", "unit": "%"}


def test_csv_has_it(tmp_path):
    export.export(foreign_run(), "csv", tmp_path / "run.csv")
    with (tmp_path / "run.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["warmth_kelvin"] == "300.0"


def test_what_nobody_declared_is_shown_by_its_name():
    shown = terminal(foreign_run(declared=False))
    assert "warmth kelvin" in shown
    assert "300 K" in shown


def verdicts(metric: str, before: Run, after: Run) -> dict[str, Verdict]:
    sides = [side(run.header, run.planned, run.results) for run in (before, after)]
    changes = compare([sides[0]], [sides[1]], metric=metric)
    return {each.case: each.verdict for each in changes if each.case.startswith("linear")}


def test_the_gate_judges_it_in_the_direction_that_it_declares():
    colder = verdicts("warmth_kelvin", foreign_run(300), foreign_run(200))
    warmer = verdicts("warmth_kelvin", foreign_run(300), foreign_run(400))
    assert set(colder.values()) == {Verdict.REGRESSED}
    assert set(warmer.values()) == {Verdict.IMPROVED}


def test_the_gate_compares_an_exact_quantity_exactly():
    assert set(verdicts("page_count", foreign_run(pages=4), foreign_run(pages=5)).values()) == {
        Verdict.REGRESSED
    }
    assert set(verdicts("page_count", foreign_run(pages=4), foreign_run(pages=3)).values()) == {
        Verdict.IMPROVED
    }
    assert set(verdicts("page_count", foreign_run(pages=4), foreign_run(pages=4)).values()) == {
        Verdict.EQUIVALENT
    }


def test_a_metric_that_no_run_holds_is_refused_by_name():
    with pytest.raises(UnknownNameError, match="warmth_kelvin"):
        verdicts("warmth_kelvim", foreign_run(), foreign_run())


@pytest.mark.parametrize("name", ["case", "status", "flops", "time_low", "efficiency"])
def test_a_quantity_with_the_name_of_another_column_gets_one_of_its_own(name):
    run = foreign_run()
    before = summary_rows(run)[0][name]
    for result in run.results:
        result.measurements.append(Measurement(quantity=name, unit="", values=[0.125]))
    row = summary_rows(run)[0]
    assert row[name] == before or before != before
    assert row[f"measured_{name}"] == 0.125


def test_every_other_column_is_a_name_that_no_quantity_may_have():
    from hwbench.analysis import frames
    from hwbench.analysis.frames import COLUMNS
    from hwbench.report import _pack, html

    run = foreign_run()
    own = {each.name for each in (*quantities.MEASURED, WARMTH, PAGES)}
    rows = [*replicate_rows(run), *summary_rows(run)]
    assert {name for row in rows for name in row} - own == COLUMNS
    script = (html._TEMPLATES / "data.js").read_text(encoding="utf-8")
    enriched = set(re.findall(r"^  row\.(\w+) =", script, re.MULTILINE))
    assert {"relative", "flops_per_second"} <= enriched
    assert {*_pack.TEXT, *_pack.NUMBERS, *frames._origin(run), *enriched} <= frames.TAKEN


# --- the worker declares what hwbench does not --------------------------------------------------


def test_the_worker_tells_what_meters_and_workloads_of_other_packages_declare(monkeypatch):
    from hwbench_simulated import Fake

    from hwbench import protocol
    from hwbench.worker import Worker
    from hwbench.workloads import _planning as planning

    class Thermometer:
        QUANTITIES = (WARMTH, quantities.ENERGY)

    worker = Worker(Fake())
    worker.meters.append(("thermometer", Thermometer()))
    monkeypatch.setattr(planning, "quantities", lambda name: [GRASP] if name == "linear" else [])
    case = linear_case("dense", None)
    reply = worker.plan(protocol.PlanRequest(cases=[case]))
    assert reply.quantities == [WARMTH, GRASP]


# --- and a fact stands in one place -------------------------------------------------------------


def test_no_name_of_a_quantity_stands_in_more_than_three_files():
    free = {"time_seconds", "relative_time", "score"}
    names = {each.name for each in (*quantities.MEASURED, *quantities.SCORES)} - free
    files = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in names:
                files[node.value].add(path.name)
    for path in PACKAGE.rglob("*.js"):
        for name in names & set(re.findall(r"\w+", path.read_text(encoding="utf-8"))):
            files[name].add(path.name)
    assert files.keys() == names
    assert {name: sorted(where) for name, where in files.items() if len(where) > 3} == {}
