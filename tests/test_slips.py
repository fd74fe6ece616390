"""What a meter or a workload of another package gives wrong costs its case, and never the run."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _check import Call

from hwbench import plugins, protocol
from hwbench.devices.cpu import Cpu
from hwbench.measure import run as runner
from hwbench.records import Case, Status
from hwbench.store import Run, read_run
from hwbench.worker import Worker
from hwbench.workloads import _planning

METER = '''
"""Meters that slip."""

import math

import numpy

from hwbench.meters._base import Meter
from hwbench.quantities import Quantity
from hwbench.records import Measurement


def of(quantity="grip", unit="N", values=(1.0,), **more):
    return Measurement(quantity=quantity, unit=unit, values=list(values), **more)


class Slippery(Meter):
    """Reads how firmly a case is held."""

    QUANTITIES = (Quantity(name="grip", unit="N"), Quantity(name="held", unit="B"))
    FIRST_REPLICATE_ONLY = FIRST_ONLY

    def read(self, subject, device):
        return RETURNED
'''

WORKLOAD = '''
"""A workload that slips."""

import math

from hwbench.quantities import Quantity
from hwbench.workloads._base import Subject, Workload


class Judged(Workload):
    """Scores every format one half."""

    SCORE = Quantity(name="judgement")
    QUANTITIES = (Quantity(name="doubt", unit="B"),)
    AXES = ()

    def cost(self, case, described):
        return None

    def prepare(self, case, described, device, seed):
        subject = Subject(step=lambda _: None, score_name="judgement", score=lambda: 0.5)
        subject.beside = BESIDE
        return subject
'''

SLIPS = {
    "another unit": ('[of(unit="kN")]', "grip is in 'kN', not 'N'"),
    "not declared": ('[of("grasp")]', "grasp is none of the quantities that it declares"),
    "of the rounds": ('[of("time_seconds", "s")]', "time_seconds is none of the quantities"),
    "twice": ("[of(), of()]", "grip is there twice"),
    "twice, with another's": ('[of("held", "B"), of("held", "B")]', "held is there twice"),
    "not a number": ("[of(values=[math.nan])]", "grip cannot be nan"),
    "not a number among others": ("[of(values=[1.0, math.nan])]", "grip cannot be nan"),
    "infinite": ("[of(values=[-math.inf])]", "grip cannot be -inf"),
    "an infinite sample": ("[of(samples=[[math.inf]])]", "grip cannot be inf"),
    "negative bytes": ('[of("held", "B", [-1.0])]', "held cannot be -1"),
    "beyond all machines": ('[of("held", "B", [1e40])]', "held cannot be 1e+40"),
    "too few samples": ("[of(values=[1.0, 2.0], samples=[[1.0]])]", "grip has too few blocks"),
    "of another type": ("[of(values=[numpy.float32(1)])]", "grip cannot be written"),
    "words": ('[of(values=["firm"])]', "grip cannot be written"),
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose modules are members of another package, as pip would leave it."""
    folder = tmp_path / "site"
    info = folder / "slippery-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slippery\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    monkeypatch.undo()
    forget()


def install(site: Path, kind: str, source: str, **words: str) -> None:
    """A module of one member, with words of it replaced."""
    for name, text in words.items():
        source = source.replace(name, text)
    (site / "slippery.py").write_text(source)
    points = f"[hwbench.{kind}]\nslippery = slippery\n"
    (site / "slippery-1.0.dist-info" / "entry_points.txt").write_text(points)
    forget()


def forget() -> None:
    """Have members looked up anew."""
    plugins._external.cache_clear()
    _planning._members.cache_clear()
    sys.modules.pop("slippery", None)


def measured(tmp_path: Path, **block: Any) -> Run:
    """A run of two formats; that it can be read says that no case of it is lost."""
    cases = {
        "workload": "linear", "direction": "forward", "shape": [16, 16], "tokens": 4,
        "format": [{"name": "dense"}, {"name": "low_rank", "rank": 2}], **block,
    }  # fmt: skip
    plan = {"replicates": 2, "budget_seconds": 0.005}
    cases = {key: value for key, value in cases.items() if value is not None}
    document = {"schema": 1, "name": "slips", "plan": plan, "cases": [cases]}
    return read_run(runner.run(document, device="fake", out=tmp_path / "runs", threads=1))


@pytest.mark.parametrize("slip", SLIPS)
def test_a_meter_that_slips_makes_its_cases_wrong_and_is_named(
    site: Path, tmp_path: Path, slip: str
) -> None:
    returned, words = SLIPS[slip]
    install(site, "meters", METER, RETURNED=returned, FIRST_ONLY="False")
    run = measured(tmp_path)
    assert run.complete
    assert {each.status for each in run.results} == {Status.WRONG}
    for each in run.results:
        assert str(each.reason).startswith("The meter slippery returned what no run can hold: ")
        assert words in str(each.reason)
        assert each.measurements == []


def test_a_meter_that_returns_what_it_declares_is_kept(site: Path, tmp_path: Path) -> None:
    returned = '[of(values=[1, 2.5]), of("held", "B", [0.0])]'
    install(site, "meters", METER, RETURNED=returned, FIRST_ONLY="False")
    run = measured(tmp_path)
    assert {each.status for each in run.results} == {Status.OK}
    assert all(each.values("grip") == [1, 2.5] for each in run.results)


def test_what_is_timed_in_rounds_is_read_by_no_meter(site: Path, tmp_path: Path) -> None:
    source = METER.replace('name="grip", unit="N"', 'name="time_seconds", unit="s"')
    install(site, "meters", source, RETURNED='[of("time_seconds", "s")]', FIRST_ONLY="False")
    run = measured(tmp_path)
    assert {each.status for each in run.results} == {Status.WRONG}
    assert "time_seconds is read in rounds" in str(run.results[0].reason)


def test_a_reading_that_is_left_out_is_held_to_the_same(site: Path) -> None:
    source = METER.replace('name="held", unit="B"', 'name="energy_joules", unit="kJ"')
    install(site, "meters", source, RETURNED="[of()]", FIRST_ONLY="False")
    worker, case = Worker(Cpu(0)), Case(**CASE)
    (planned,) = worker.plan(protocol.PlanRequest(cases=[case])).planned
    request = protocol.SoloRequest(planned=planned, replicate=0, seed=0, deadline_seconds=0.0)
    result = worker.solo(request).result
    assert result.status is Status.WRONG
    assert "energy_joules is in 'kJ', not 'J'" in str(result.reason)


CASE: dict[str, Any] = {
    "workload": "linear", "format": "dense", "out_features": 8, "in_features": 8,
    "dtype": "float32", "device": "cpu", "tokens": 2, "direction": "forward",
}  # fmt: skip


def test_a_meter_that_declares_the_impossible_is_left_out(site: Path) -> None:
    source = METER.replace('name="grip", unit="N"', 'name="grip", unit="N", better="up"')
    install(site, "meters", source, RETURNED="[of()]", FIRST_ONLY="False")
    worker = Worker(Cpu(0))
    assert "slippery" not in {name for name, _ in worker.meters}
    assert "grip is better neither lower nor higher" in worker.left_out["slippery"]


BESIDE = {
    "not declared": ('{"belief": 1.0}', "belief is none of the quantities"),
    "not a number": ('{"doubt": math.nan}', "doubt cannot be nan"),
    "negative bytes": ('{"doubt": [1.0, -2.0]}', "doubt cannot be -2"),
    "of the rounds": ('{"time_seconds": 1.0}', "time_seconds is none of the quantities"),
}


@pytest.mark.parametrize("slip", BESIDE)
def test_a_workload_that_slips_makes_its_cases_wrong_and_is_named(
    site: Path, tmp_path: Path, slip: str
) -> None:
    beside, words = BESIDE[slip]
    install(site, "workloads", WORKLOAD, BESIDE=beside)
    run = measured(tmp_path, workload="slippery", tokens=None, direction=None)
    assert {each.status for each in run.results} == {Status.WRONG}
    for each in run.results:
        assert str(each.reason).startswith("The workload slippery returned what no run can hold: ")
        assert words in str(each.reason)


METHOD = "    def cost("
PLANS = {
    "a score that is better upwards": (
        'name="judgement"', 'name="judgement", better="up"', "judgement is better neither",
    ),
    "a quantity that is better upwards": ('unit="B"', 'unit="B", better="up"', "doubt is better"),
    "no seeds": (
        METHOD, f"    def seeds(self, case):\n        return 0\n\n{METHOD}", "it has 0 seeds",
    ),
    "a negative density": (
        METHOD, f"    def density(self, case, described):\n        return -1.0\n\n{METHOD}",
        "its density is -1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("slip", PLANS)
def test_a_plan_that_no_run_can_hold_is_a_mistake_before_anything_is_measured(
    site: Path, slip: str
) -> None:
    before, after, words = PLANS[slip]
    install(site, "workloads", WORKLOAD.replace(before, after, 1), BESIDE="{}")
    case = Case(**{**CASE, "workload": "slippery", "tokens": None, "direction": None})
    (mistake,) = Worker(Cpu(0)).plan(protocol.PlanRequest(cases=[case])).mistakes
    assert words in mistake
    assert re.search(r"[^.]\.$", mistake)


def test_the_run_of_a_meter_that_slips_ends_as_one_with_wrong_cases(
    site: Path, tmp_path: Path, hwbench: Call
) -> None:
    install(site, "meters", METER, RETURNED="[of(values=[math.nan])]", FIRST_ONLY="True")
    (tmp_path / "s.toml").write_text(
        'schema = 1\nname = "slips"\n[plan]\nreplicates = 1\nbudget_seconds = 0.005\n[[cases]]\n'
        'workload = "linear"\ndirection = "forward"\nshape = [16, 16]\ntokens = 4\n'
        'format = [{ name = "dense" }]\n'
    )
    code, out, err = hwbench("run", "--suite", str(tmp_path / "s.toml"), "--device", "fake")
    assert code == 5, err
    assert "The meter slippery returned" in out + err
