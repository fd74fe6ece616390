"""The export for Bencher: its metric format, as bencher.dev documents it."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from _check import Call
from _golden import FOLDER
from _synthetic import linear_case, questions, run_of

from hwbench.report import bencher
from hwbench.report.export import export
from hwbench.report.rows import known, report_rows
from hwbench.store import read_run

METRIC = {
    "type": "object",
    "properties": {name: {"type": "number"} for name in ("value", "lower_value", "upper_value")},
    "required": ["value"],
    "additionalProperties": False,
}
# Names have at most 1024 characters, slugs of measures at most 64.
SCHEMA = {
    "type": "object",
    "minProperties": 1,
    "propertyNames": {"minLength": 1, "maxLength": 1024},
    "additionalProperties": {
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"pattern": "^[a-z0-9]+(-[a-z0-9]+)*$", "maxLength": 64},
        "additionalProperties": METRIC,
    },
}


def written(run: object, path: Path) -> bencher.Metrics:
    export(run, "bencher", path)  # type: ignore[arg-type]
    found: bencher.Metrics = json.loads(path.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("path", sorted(FOLDER.glob("runs/*.jsonl")), ids=lambda path: path.stem)
def test_every_stored_run_is_in_the_documented_format(path: Path, tmp_path: Path) -> None:
    run = read_run(path)
    found = written(run, tmp_path / "metrics.json")
    valued = [r.case for r in report_rows(run) if any(map(known, r.values.values()))]
    assert set(valued) == set(found)
    if found:
        jsonschema.validate(found, SCHEMA)
    for measures in found.values():
        for metric in measures.values():
            if "lower_value" in metric:
                assert metric["lower_value"] <= metric["value"] <= metric["upper_value"]


def test_values_are_those_of_the_rows_and_time_is_in_nanoseconds() -> None:
    run = run_of(questions())
    found = bencher.metrics(run)
    timed = [row for row in report_rows(run) if known(row.time_seconds)]
    assert timed
    for row in timed:
        latency = found[row.case]["latency"]
        assert latency["value"] == pytest.approx(row.time_seconds * 1e9)
        assert latency["lower_value"] == pytest.approx(row.time_low * 1e9)
        assert latency["upper_value"] == pytest.approx(row.time_high * 1e9)
        if known(row.relative_time):
            told = found[row.case]["relative-time"]
            assert told["value"] == row.relative_time
            assert (told["lower_value"], told["upper_value"]) == (
                row.relative_low, row.relative_high,
            )  # fmt: skip


def test_a_score_is_a_measure_of_its_own_name() -> None:
    found = bencher.metrics(run_of(questions()))
    names = {name for measures in found.values() for name in measures}
    assert "projection-error" in names
    assert "score" not in names


def test_one_replicate_has_a_value_and_no_ends() -> None:
    run = run_of(questions(projection=False), replicates=1)
    latencies = [each["latency"] for each in bencher.metrics(run).values()]
    assert latencies
    assert all(list(latency) == ["value"] for latency in latencies)


def test_what_has_no_value_is_left_out() -> None:
    run = run_of([linear_case("dense", None), linear_case("low_rank", 0.5)])
    run.results = [result for result in run.results if "low_rank" not in result.case]
    timed = [case for case, measures in bencher.metrics(run).items() if "latency" in measures]
    assert timed == [next(iter(run.planned))]


def test_a_name_too_long_for_bencher_stays_its_own() -> None:
    ends = [f"low_rank_{'x' * 1100}_{end}" for end in "ab"]
    run = run_of([linear_case("dense", None), *(linear_case(end, 0.5) for end in ends)])
    found = bencher.metrics(run)
    assert len(found) == 3
    jsonschema.validate(found, SCHEMA)


def test_the_verb_writes_it(hwbench: Call, tmp_path: Path) -> None:
    run = next(iter(sorted(FOLDER.glob("runs/*.jsonl"))))
    target = tmp_path / "bmf.json"
    assert hwbench("export", str(run), "--to", "bencher", "--out", str(target))[0] == 0
    jsonschema.validate(json.loads(target.read_text(encoding="utf-8")), SCHEMA)
