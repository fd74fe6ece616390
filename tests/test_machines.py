"""The folder of shared runs, and the page that compares the machines in it."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

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


def made(
    folder: Path, day: int, machine: str, suite: str = "linear", threads: int = 2, **processor: Any
) -> Run:
    run = run_of(CASES, name=f"2026010{day}-030405-{suite}-cpu")
    environment = run.header.environment
    device = {**environment.fingerprint.get("device", {}), "name": machine, **processor}
    fingerprint = {**environment.fingerprint, "device": device, "threads": threads}
    run.header = replace(
        run.header, suite=suite, created=f"2026-01-0{day}T03:04:05Z",
        environment=replace(environment, fingerprint=fingerprint),
    )  # fmt: skip
    kept(run, folder / f"2026-01-0{day}-{machine}")
    return run


def days(runs: list[Run]) -> list[int]:
    return [int(run.header.run[7]) for run in runs]


def test_the_newest_finished_run_of_each_machine_is_compared(tmp_path: Path) -> None:
    for day, machine in ((1, "old"), (3, "old"), (2, "new")):
        made(tmp_path, day, machine)
    made(tmp_path, 4, "new", suite="crossover")
    assert days(make_machines.chosen(tmp_path)) == [2, 3]


def test_processors_of_one_name_are_machines_of_their_own(tmp_path: Path) -> None:
    """Three generations of processors call themselves AMD EPYC."""
    for day, family, model, cores in (
        (1, "25", "1", 2),
        (2, "25", "17", 2),
        (3, "26", "2", 2),
        (4, "26", "2", 8),
        (5, "25", "1", 2),
    ):
        made(tmp_path, day, "AMD EPYC", family=family, model=model, cores=cores)
    made(tmp_path, 6, "Accelerator X")
    runs = make_machines.chosen(tmp_path)
    assert days(runs) == [5, 2, 3, 4, 6]
    page = Page(make_machines.page(runs))
    names = [run["machine"] for run in page.data["runs"]]
    assert len(set(names)) == len(runs)
    for name in names:
        assert name in page.shown


def test_memory_and_fewer_threads_make_no_other_machine(tmp_path: Path) -> None:
    """A machine reports a little more or less memory from day to day, and may use fewer cores."""
    made(tmp_path, 1, "One", memory_bytes=25276510208)
    made(tmp_path, 2, "One", memory_bytes=25325268992)
    made(tmp_path, 3, "One", threads=1)
    assert days(make_machines.chosen(tmp_path)) == [2]


def test_a_folder_without_such_a_run_is_a_sentence(tmp_path: Path) -> None:
    made(tmp_path, 1, "old", suite="crossover")
    with pytest.raises(SystemExit, match="no finished run of the suite linear"):
        make_machines.chosen(tmp_path)


def test_the_page_that_is_kept_has_every_machine() -> None:
    page = Page(make_machines.PAGE.read_text(encoding="utf-8"))
    runs = make_machines.chosen(make_machines.REPORTS)
    for run in runs:
        assert run.header.machine in page.shown, STALE
        assert run.header.run in page.shown, STALE
    assert len({run["machine"] for run in page.data["runs"]}) == len(runs), STALE


def test_three_generations_of_one_name_are_on_the_page() -> None:
    kinds = [
        make_machines.machine(run.header) for run in make_machines.chosen(make_machines.REPORTS)
    ]
    assert len(kinds) == len(set(kinds)) >= 4
    assert Counter(name for name, *_ in kinds)["AMD EPYC"] >= 3


@pytest.mark.heavy
def test_the_page_is_built_anew_and_stands_alone() -> None:
    runs = make_machines.chosen(make_machines.REPORTS)
    built = Page(make_machines.page(runs))
    shipped = Page(make_machines.PAGE.read_text(encoding="utf-8"))
    cases = [page.data["columns"]["case"] for page in (built, shipped)]
    assert cases[0] == cases[1], STALE
    for page in (built, shipped):
        for kind, attributes in page.elements:
            # Who follows a link asked for it.
            for name in ("src",) if kind == "a" else ("src", "href"):
                assert not re.match(r"(https?:)?//", attributes.get(name) or "")
    for run in runs:
        assert run.header.machine in built.shown
