"""The columns of a summary that stand on the roofline, and energy by dense FLOP."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from _synthetic import CEILINGS, linear_case, run_of
from msgspec.structs import replace

import hwbench
from hwbench.analysis.frames import replicate_rows, summary_rows
from hwbench.records import Measurement, Result, Status
from hwbench.report import text
from hwbench.report.rows import report_rows
from hwbench.store import Run, read_run


def test_the_placement_stands_in_the_summary() -> None:
    rows = summary_rows(run_of([linear_case("dense", None), linear_case("low_rank", 0.5)]))
    for row in rows:
        compute = row["flops"] / CEILINGS["matmul"]["float32"]["flops_per_second"]
        memory = row["compulsory_bytes"] / CEILINGS["copy"]["bytes_per_second"]
        assert row["intensity"] == row["flops"] / row["compulsory_bytes"]
        assert row["attainable_seconds"] == pytest.approx(max(compute, memory))
        assert row["bound"] == ("compute" if compute >= memory else "memory")
        assert row["efficiency"] == pytest.approx(row["attainable_seconds"] / row["time_seconds"])
        assert row["in_cache"] is (row["time_seconds"] < 0.9 * memory)
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


def measured(run: Run, name: str, values: list[float]) -> Run:
    """The run with this quantity read in every replicate, one value each."""
    further = [Measurement(quantity=name, unit="", values=[value]) for value in values]
    run.results[:] = [
        replace(result, measurements=[*result.measurements, further[result.replicate]])
        for result in run.results
    ]
    return run


def test_what_no_table_knows_has_columns_of_its_own() -> None:
    path = Path(__file__).parent / "golden" / "runs" / "foreign_quantities.jsonl"
    run, rows, one = read_run(path), hwbench.load_run(path), hwbench.summary(path)
    shown = {row["case"]: row for row in text.rows_json(run)}
    for name in ("zero_share", "counted_flops", "graph_breaks", "compiled_graphs"):
        for (_, row), result in zip(rows.iterrows(), run.results, strict=True):
            assert [row[name]] == result.values(name) or (
                math.isnan(row[name]) and not result.values(name)
            )
        for _, row in one.iterrows():
            values = [v for r in run.results if r.case == row["case"] for v in r.values(name)]
            assert min(values) <= row[name] <= max(values)
            assert shown[row["case"]][name] == row[name]


def test_a_case_above_the_roof_raises_it_for_all_and_the_table_says_so() -> None:
    run = run_of([linear_case("dense", None), linear_case("low_rank", 0.5)])
    product = {**CEILINGS["matmul"]["float32"]}
    run.header = replace(run.header, ceilings={**CEILINGS, "matmul": {"float32": product}})
    before = {row["case"]: row for row in summary_rows(run)}
    fastest = max(row["flops"] / row["time_seconds"] for row in before.values())
    product["flops_per_second"] = fastest / 2
    rows = report_rows(run)
    assert {row.roof.flops_per_second for row in rows if row.roof} == {fastest}
    for row in rows:
        assert row.roofs[0].flops_per_second == fastest
        assert row.placement is not None
        assert row.placement.compute_seconds == pytest.approx(row.flops / fastest)
    notes = text._raised(rows)
    assert len(notes) == 1
    assert "raised" in notes[0]
    product["flops_per_second"] = fastest
    assert text._raised(report_rows(run)) == []


@pytest.mark.parametrize(
    "name", ["status", "case", "flops", "efficiency", "time_low", "ratio", "run", "threads"]
)
def test_a_quantity_that_is_called_like_a_column_takes_none_from_it(name: str) -> None:
    plain = run_of([linear_case("dense", None)])
    run = measured(run_of([linear_case("dense", None)]), name, [5.0, 5.0, 5.0])
    for rows, before in (
        (replicate_rows(run), replicate_rows(plain)),
        (text.rows_json(run), text.rows_json(plain)),
    ):
        for row, old in zip(rows, before, strict=True):
            assert {key: repr(row[key]) for key in old} == {key: repr(old[key]) for key in old}
            assert [row[key] for key in row if key not in old] == [5.0]


def test_a_summary_counts_only_what_was_ok() -> None:
    run = measured(run_of([linear_case("dense", None)]), "zero_share", [0.1, 0.1, 0.9])
    bad = run.results[2]
    run.results[2] = Result(
        case=bad.case, replicate=2, seed=bad.seed, status=Status.WRONG, reason="Wrong.",
        measurements=bad.measurements,
    )  # fmt: skip
    assert [row["zero_share"] for row in text.rows_json(run)] == [0.1]
    assert [row["zero_share"] for row in replicate_rows(run)] == [0.1, 0.1, 0.9]
