"""The folder of shared runs, and the page that compares the machines in it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from _check import kept
from _faulty import ROOT
from _synthetic import linear_case, run_of
from msgspec.structs import replace
from test_html import Page

from hwbench.store import Run, read_run
from hwbench.studies import share

sys.path.insert(0, str(ROOT / "docs"))
import make_machines

STORED = sorted(ROOT.glob("reports/*/*.jsonl"))
CASES = [linear_case("dense", None), linear_case("low_rank", 0.5)]
STALE = "docs/machines.html is stale: run `make docs`."


@pytest.mark.parametrize("path", STORED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_stored_run_is_clean_finished_and_in_the_list(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").splitlines():
        assert share._cleaned(json.loads(line)) == json.loads(line), "write it by `hwbench share`"
    assert read_run(path).complete
    listed = (ROOT / "reports/README.md").read_text(encoding="utf-8")
    assert f"`{path.parent.name}/{path.name}`" in listed
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-[a-z0-9-]+", path.parent.name)


def made(folder: Path, day: int, machine: str, suite: str = "linear") -> Run:
    run = run_of(CASES, name=f"2026010{day}-030405-{suite}-cpu")
    environment = run.header.environment
    device = {**environment.fingerprint.get("device", {}), "name": machine}
    run.header = replace(
        run.header, suite=suite, created=f"2026-01-0{day}T03:04:05Z",
        environment=replace(environment, fingerprint={**environment.fingerprint, "device": device}),
    )  # fmt: skip
    kept(run, folder / f"2026-01-0{day}-{machine}")
    return run


def test_the_newest_finished_run_of_each_machine_is_compared(tmp_path: Path) -> None:
    for day, machine in ((1, "old"), (3, "old"), (2, "new")):
        made(tmp_path, day, machine)
    made(tmp_path, 4, "new", suite="crossover")
    runs = make_machines.chosen(tmp_path)
    assert [run.header.run[:8] for run in runs] == ["20260102", "20260103"]


def test_a_folder_without_such_a_run_is_a_sentence(tmp_path: Path) -> None:
    made(tmp_path, 1, "old", suite="crossover")
    with pytest.raises(SystemExit, match="no finished run of the suite linear"):
        make_machines.chosen(tmp_path)


def test_the_page_that_is_kept_has_every_machine() -> None:
    page = Page(make_machines.PAGE.read_text(encoding="utf-8"))
    for run in make_machines.chosen(make_machines.REPORTS):
        assert run.header.machine in page.shown, STALE
        assert run.header.run in page.shown, STALE


@pytest.mark.heavy
def test_the_page_is_built_anew_and_stands_alone() -> None:
    runs = make_machines.chosen(make_machines.REPORTS)
    built = Page(make_machines.page(runs))
    shipped = Page(make_machines.PAGE.read_text(encoding="utf-8"))
    cases = [page.data["columns"]["case"] for page in (built, shipped)]
    assert cases[0] == cases[1], STALE
    for page in (built, shipped):
        for _, attributes in page.elements:
            for name in ("src", "href"):
                value = attributes.get(name) or ""
                assert name == "href" or not re.match(r"(https?:)?//", value)
    for run in runs:
        assert run.header.machine in built.shown
