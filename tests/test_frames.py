"""The columns of a summary that stand on the roofline, and energy by dense FLOP."""

from __future__ import annotations

import math

import pytest
from _synthetic import CEILINGS, linear_case, run_of
from msgspec.structs import replace

from hwbench.frames import summary_rows
from hwbench.records import Measurement


def test_the_placement_stands_in_the_summary() -> None:
    rows = summary_rows(run_of([linear_case("dense", None), linear_case("low_rank", 0.5)]))
    for row in rows:
        compute = row["flops"] / CEILINGS["matmul"]["float32"]["flops_per_second"]
        memory = row["compulsory_bytes"] / CEILINGS["copy"]["bytes_per_second"]
        assert row["intensity"] == row["flops"] / row["compulsory_bytes"]
        assert row["attainable_seconds"] == pytest.approx(max(compute, memory))
        assert row["bound"] == ("compute" if compute >= memory else "memory")
        assert row["efficiency"] == pytest.approx(row["attainable_seconds"] / row["time_seconds"])
        assert row["in_cache"] is (row["time_seconds"] < memory)
        assert row["bytes_source"] == "model"


def test_without_ceilings_or_a_time_nothing_is_placed() -> None:
    bare = run_of([linear_case("dense", None)], ceilings={})
    unsupported = run_of([linear_case("semi_structured", 0.5)])
    for run in (bare, unsupported):
        row = summary_rows(run)[-1]
        assert row["bound"] is None
        assert math.isnan(row["efficiency"])


def test_energy_is_shared_out_over_the_flops_of_a_dense_layer() -> None:
    run = run_of([linear_case("low_rank", 0.5)])
    joules = Measurement(quantity="energy_joules", unit="J", values=[3.0])
    run.results[:] = [
        replace(result, measurements=[*result.measurements, joules]) for result in run.results
    ]
    row = summary_rows(run)[-1]
    assert row["energy_joules"] == 3.0
    assert row["joules_per_dense_flop"] == pytest.approx(3.0 / row["dense_flops"])
    without = summary_rows(run_of([linear_case("low_rank", 0.5)]))[-1]
    assert math.isnan(without["joules_per_dense_flop"])
