"""Readers of suites and runs are given what they do not expect: an answer or a sentence, always."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import _fuzz
import _mutants
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ENDS = ("read", "refused")  # what else a reader raises fails the test, as does a long sentence
few = settings(suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "input.toml"


@few
@given(data=st.data())
def test_a_mutilated_suite_is_read_or_refused(file: Path, data: st.DataObject):
    text = data.draw(st.sampled_from(_fuzz.suite_texts()))
    assert _fuzz.read_suite_text(file, data.draw(_fuzz.mutilated(text))) in ENDS


@few
@given(document=_fuzz.documents())
def test_a_suite_with_anything_in_it_is_read_or_refused(document: dict[str, Any]):
    assert _fuzz.read_document(document) in ENDS


@few
@given(data=_fuzz.run_files())
def test_a_mutilated_run_is_read_or_refused(file: Path, data: bytes):
    assert _fuzz.read_run_file(file, data) in ENDS


def test_the_inputs_that_are_not_mutilated_are_read(file: Path):
    assert {_fuzz.read_suite_text(file, text) for text in _fuzz.suite_texts()} == {"read"}
    assert _fuzz.read_run_file(file, b"".join(_fuzz.run_lines())) == "read"


@pytest.mark.parametrize(
    "seeds", [range(4), pytest.param(range(4, 400), marks=pytest.mark.heavy)], ids=["4", "400"]
)
@pytest.mark.parametrize("kind", _mutants.KINDS)
def test_a_file_whose_structure_is_kept_is_answered_or_refused(
    tmp_path: Path, kind: str, seeds: range
):
    assert {_mutants.outcome(kind, seed, tmp_path) for seed in seeds}
