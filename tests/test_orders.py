"""``evidence/orders.py``: places by each score of stored runs, and where they disagree."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from _evidence import script as evidence_script
from _synthetic import run_of, scored_case
from msgspec.structs import replace

from hwbench.records import Measurement, Status
from hwbench.store import Run


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return evidence_script("orders")


def measured(workload: str, quantity: str, values: dict[str, list[float]], note: str = "") -> Run:
    """A run with one quantity of each format."""
    run = run_of([scored_case(workload, name, 64, weighting="gram") for name in values])
    for place, each in enumerate(run.results):
        actual = values[run.planned[each.case].case.format]
        one = Measurement(quantity=quantity, unit="", values=actual, note=note or None)
        run.results[place] = replace(each, status=Status.OK, reason=None, measurements=[one])
    return run


@pytest.fixture
def found(script: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    error = {"low_rank": [0.5, 0.6, 0.9], "csr": [0.2, 0.2], "btt": [0.9, 0.9], "dense": [0.0, 0.0]}
    runs = {
        "a": measured("projection", "score", error, "output_error"),
        "b": measured("compress_lm", "next_token_divergence",
                      {"low_rank": [2.0], "csr": [1.0], "btt": [3.0]}),
        "c": measured("compress", "partner_mrr", {"low_rank": [0.8], "csr": [0.7], "btt": [0.4]}),
    }  # fmt: skip
    monkeypatch.setattr(script, "read_run", lambda path: runs[str(path)])
    return script.scores([Path(name) for name in runs])


def test_medians_are_of_every_format_but_dense(script: Any, found: Any) -> None:
    assert list(found) == list(script.SCORES)
    errors = {key.format: value for key, value in found["output_error"].items()}
    assert errors == {"low_rank": pytest.approx(0.6), "csr": 0.2, "btt": pytest.approx(0.9)}


def test_the_median_is_over_the_layers_of_all_shapes(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean of the medians of each shape, 0.4, is of no layer."""
    values = {64: [0.1, 0.1, 0.1], 128: [0.1, 0.2, 0.2], 256: [0.9, 0.9, 0.3]}
    cases = [scored_case("projection", "csr", side, weighting="gram") for side in values]
    run = run_of(cases)
    for place, each in enumerate(run.results):
        actual = values[run.planned[each.case].case.out_features]
        one = Measurement(quantity="score", unit="", values=actual, note="output_error")
        run.results[place] = replace(each, status=Status.OK, reason=None, measurements=[one])
    monkeypatch.setattr(script, "read_run", lambda path: run)
    (errors,) = script.scores([Path("a")]).values()
    assert list(errors.values()) == [pytest.approx(0.2)]


def test_the_table_has_the_place_by_each_score(script: Any, found: Any) -> None:
    lines = script.table(found).splitlines()
    assert lines[0] == "| format | output error | KL of the next token | partner retrieval |"
    assert lines[2:] == [
        "| csr density=0.5 gram | 0.2 (1) | 1 (1) | 0.7 (2) |",
        "| low_rank density=0.5 gram | 0.6 (2) | 2 (2) | 0.8 (1) |",
        "| btt density=0.5 gram | 0.9 (3) | 3 (3) | 0.4 (3) |",
    ]


def test_agreement_is_that_of_kendall(script: Any, found: Any) -> None:
    first, second, third = script.agreement(found).splitlines()[2:]
    assert first.startswith("| output error, KL of the next token | 3 | 1.00 |")
    # One of three pairs is the other way round.
    assert second.startswith("| output error, partner retrieval | 3 | 0.33 |")
    assert third.startswith("| KL of the next token, partner retrieval | 3 | 0.33 |")
    del found["partner_mrr"], found["output_error"]
    assert len(script.agreement(found).splitlines()) == 2


def test_few_formats_tell_no_agreement(script: Any, found: Any) -> None:
    for some in found.values():
        some.pop(next(iter(some)))
    assert "too few" in script.agreement(found)


def test_equal_values_share_a_place(script: Any) -> None:
    kinds = [script.Kind(name, "", "none") for name in "abc"]
    values = dict(zip(kinds, (1.0, 1.0, 2.0), strict=True))
    assert list(script.places(values, "output_error").values()) == [1, 1, 3]
    assert list(script.places(values, "partner_mrr").values()) == [2, 2, 1]
