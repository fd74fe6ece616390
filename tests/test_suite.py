"""Suites: axes multiply, mistakes name file and key, the command line's changes hold."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from hwbench import plugins, suite
from hwbench.errors import SuiteError, UnknownNameError
from hwbench.records import Case

BASE = {
    "schema": 1,
    "name": "tiny",
    "cases": [
        {
            "workload": "linear",
            "direction": ["forward", "step"],
            "shape": [[8, 4], [4, 8]],
            "tokens": [1, 2, 3],
            "dtype": "float32",
            "format": [{"name": "dense"}, {"name": "low_rank", "density": [0.9, 0.8]}],
        }
    ],
}


def document(**changes):
    made = copy.deepcopy(BASE)
    made["cases"][0] |= changes
    return made


def test_a_list_multiplies_and_a_scalar_does_not():
    cases = suite.build(BASE, "cpu").cases
    assert len(cases) == 2 * 2 * 3 * 3
    assert len({case.id for case in cases}) == len(cases)
    assert {case.regime for case in cases} == {"hot"}


def test_one_shape_need_not_be_a_list_of_shapes():
    assert len(suite.build(document(shape=[8, 4]), "cpu").cases) == 2 * 3 * 3


def test_exclude_removes_what_matches_all_of_its_keys():
    whole = suite.build(BASE, "cpu").cases
    made = document(exclude=[{"format": "low_rank", "tokens": [1, 2], "density": 0.9}])
    kept = suite.build(made, "cpu").cases
    gone = {c.id for c in whole} - {c.id for c in kept}
    assert len(gone) == 2 * 2 * 2
    assert all("low_rank[density=0.9]" in case for case in gone)


def test_axes_are_replaced_on_a_kind_of_device():
    made = document(on={"cuda": {"tokens": [512], "format": [{"name": "dense"}]}})
    assert len(suite.build(made, "cuda").cases) == 2 * 2
    assert len(suite.build(made, "cpu").cases) == 2 * 2 * 3 * 3


def test_a_block_without_tokens_has_only_shape_and_dtype():
    made = document(workload="projection", matrix=["gaussian", "power_law"])
    for axis in ("tokens", "direction"):
        del made["cases"][0][axis]
    cases = suite.build(made, "cpu").cases
    assert len(cases) == 2 * 2 * 3
    assert all(c.tokens is None and c.direction is None and c.regime is None for c in cases)


@pytest.mark.parametrize("key", ["merge", "source"])
def test_a_file_cannot_set_what_hwbench_adds_to_its_document(key, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(f'schema = 1\nname = "mine"\n{key} = true\n', encoding="utf-8")
    with pytest.raises(SuiteError, match=rf"mine\.toml: Unknown key '{key}'"):
        suite.read(str(path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"directoin": "forward"}, None),  # becomes an option: the planner refuses it
        ({"direction": "forwards"}, "did you mean 'forward'?"),
        ({"dtype": "float23"}, "did you mean 'float32'?"),
        ({"tokens": 0}, "tokens must be a whole number"),
        ({"tokens": -3}, "tokens must be a whole number"),
        ({"tokens": True}, "tokens must be a whole number"),
        ({"tokens": []}, "tokens is an empty list"),
        ({"shape": [[8]]}, "a shape is [out_features, in_features]"),
        ({"shape": [[8, 0]]}, "shape must be a whole number"),
        ({"shape": [[8, 2**40]]}, "shape must be a whole number"),
        ({"shape": 8}, "a shape is [out_features, in_features]"),
        ({"format": []}, "format must be a list"),
        ({"format": ["dense"]}, "a format is a table with a name"),
        ({"format": [{"name": "densee"}]}, "did you mean 'dense'?"),
        ({"format": [{"name": "low_rank", "rank": {}}]}, "rank must be a number"),
        *(
            ({"format": [{"name": "low_rank", knob: number}]}, f"{knob} must be a finite number")
            for knob in ("density", "stored", "rank")
            for number in (float("nan"), float("inf"), [0.5, -float("inf")])
        ),
        ({"scale": float("nan")}, "scale must be a finite number, not nan"),
        ({"on": {"cpu": {"format": [{"name": "csr", "density": float("nan")}]}}}, "finite number"),
        ({"workload": "liner"}, "did you mean 'linear'?"),
        ({"on": {"cpuu": {}}}, "did you mean 'cpu'?"),
        ({"on": {"cpu": {"token": 3}}}, "did you mean 'tokens'?"),
        ({"exclude": [{"fromat": "dense"}]}, "did you mean 'format'?"),
        ({"exclude": [{"format": ["dense", "low_rank"]}]}, "no case is left"),
        ({"format": [{"name": "dense"}, {"name": "dense"}]}, "is asked for twice"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_file(changes, words):
    made = document(**changes) | {"source": "my.toml"}
    if words is None:
        assert suite.build(made, "cpu").cases[0].options
        return
    with pytest.raises(SuiteError, match=r"^my\.toml: ") as caught:
        suite.build(made, "cpu")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("top", "words"),
    [
        ({"schema": 2}, "schema must be 1"),
        ({"name": "../evil"}, "name must be letters"),
        ({"plna": {}}, "did you mean 'plan'?"),
        ({"plan": {"replicate": 3}}, "did you mean 'replicates'?"),
        ({"plan": {"replicates": 0}}, "between 1 and 1000"),
        ({"plan": {"budget_seconds": -1}}, "above zero"),
        ({"plan": {"budget_seconds": float("nan")}}, "above zero"),
        ({"plan": {"replicates": "many"}}, "[plan] is wrong"),
        ({"plan": {"regime": "warm"}}, "Unknown regime"),
        ({"cases": []}, "no [[cases]] block"),
        ({"cases": ["x"]}, "must be a table"),
    ],
)
def test_a_mistake_at_the_top_is_named_too(top, words):
    with pytest.raises(SuiteError) as caught:
        suite.build({**BASE, **top}, "cpu")
    assert words in str(caught.value)


def test_a_file_that_is_not_toml_says_where(tmp_path: Path):
    path = tmp_path / "bad.toml"
    path.write_text("schema = = 1")
    with pytest.raises(SuiteError, match=r"bad\.toml is not valid TOML: .*line 1"):
        suite.read(str(path))


def test_an_unknown_suite_names_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'linear'"):
        suite.read("linaer")


@pytest.mark.parametrize("name", suite.names())
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_shipped_suites_load_and_name_only_known_things(name, device):
    built = suite.build(suite.read(name), device)
    assert built.name == name
    assert built.about
    assert built.cases


def test_the_command_line_replaces_axes_densities_and_formats():
    request = suite.override(
        suite.read("linear"),
        shape=[[64, 32]],
        tokens=[7],
        dtype=["bfloat16"],
        density=[0.25],
        formats=["low_rank"],
    )
    for kind in ("cpu", "cuda"):
        timed = [c for c in suite.build(request, kind).cases if c.tokens]
        assert {(c.out_features, c.in_features, c.tokens, c.dtype) for c in timed} == {
            (64, 32, 7, "bfloat16")
        }
        assert {c.format for c in timed} == {"dense", "low_rank"}
        assert {c.knobs.get("density") for c in timed} == {None, 0.25}


@pytest.mark.parametrize("misspelt", ["denstiy", "format", "Tokens", "shapes"])
def test_an_axis_that_is_misspelt_is_refused(misspelt):
    with pytest.raises(TypeError, match=misspelt):
        suite.override(document(), **{misspelt: [0.5]})


@pytest.mark.parametrize("shipped", suite.names())
def test_any_format_can_be_asked_of_any_suite(shipped):
    for name in plugins.names("formats"):
        request = suite.override(suite.read(shipped), formats=[name])
        for kind in ("cpu", "cuda"):
            actual = {case.format for case in suite.build(request, kind).cases}
            assert name in actual, f"{name} on {kind}"


def test_a_block_of_dense_alone_beside_others_stays_what_it_is():
    mixed, control = (
        document()["cases"][0],
        {**document()["cases"][0], "format": [{"name": "dense"}]},
    )
    both = {**document(), "cases": [mixed, control]}
    request = suite.override(both, formats=["monarch"], density=[0.25])
    assert [entry["name"] for entry in request["cases"][1]["format"]] == ["dense"]
    assert "monarch" in [entry["name"] for entry in request["cases"][0]["format"]]
    alone = suite.override({**document(), "cases": [control]}, formats=["monarch"])
    assert [entry["name"] for entry in alone["cases"][0]["format"]] == ["dense", "monarch"]


def test_an_exclusion_by_a_knob_that_is_gone_goes_with_it():
    rules = [{"rank": 1}, {"tokens": 1}]
    formats = [{"name": "dense"}, {"name": "low_rank", "rank": [1, 2]}]
    request = suite.override(document(format=formats, exclude=rules), formats=["dense"])
    assert request["cases"][0]["exclude"] == [{"tokens": 1}]
    with pytest.raises(SuiteError, match="'rnk'"):
        suite.build(document(format=formats, exclude=[{"rnk": 1}]), "cpu")


def test_filter_takes_keys_and_parts_of_ids():
    cases = suite.build(BASE, "cpu").cases
    assert {c.tokens for c in suite.select(cases, "tokens=2,direction=step")} == {2}
    assert {c.format for c in suite.select(cases, "low_rank[density=0.9")} == {"low_rank"}
    assert {(c.out_features, c.in_features) for c in suite.select(cases, "shape=8x4")} == {(8, 4)}
    with pytest.raises(SuiteError, match="leaves no case"):
        suite.select(cases, "tokens=99")


@pytest.mark.parametrize("word", ["plain", "a,b", "[x]*?", " padded ", "x[1],y", "16"])
def test_a_term_of_the_filter_keeps_its_value_and_no_other(word: str) -> None:
    words = ["plain", "a,b", "ab", "[x]*?", "x", " padded ", "padded", "x[1],y", "x1,y", "16", "1"]
    cases = [
        Case(workload="linear", format="f", out_features=1, in_features=1, dtype="float32",
             device="cpu", options={"given": each})
        for each in words
    ]  # fmt: skip
    kept = suite.select(cases, suite.term("given", word))
    assert [case.options["given"] for case in kept] == [word]
    with pytest.raises(UnknownNameError, match="did you mean 'tokens'"):
        suite.select(cases, "token=1")


def test_a_whole_density_is_the_same_case_however_it_is_written():
    ids = [
        suite.build(document(format=[{"name": "low_rank", "density": one}]), "cpu").cases[0].id
        for one in (1, 1.0)
    ]
    assert ids[0] == ids[1]


@pytest.mark.parametrize(
    ("only", "devices"), [("cuda", {"cuda"}), (["cpu", "cuda"], {"cpu", "cuda"})]
)
def test_a_block_may_be_for_some_kinds_of_device_only(only: Any, devices: set[str]) -> None:
    block = {"workload": "linear", "tokens": 4, "shape": [8, 8], "format": [{"name": "dense"}]}
    document = {
        "schema": 1,
        "name": "only",
        "cases": [block, {**block, "tokens": 8, "only": only}],
    }
    for device in ("cpu", "cuda", "fake"):
        tokens = [case.tokens for case in suite.build(document, device).cases]
        assert tokens == ([4, 8] if device in devices else [4])
    with pytest.raises(SuiteError, match="cuda"):
        suite.build({**document, "cases": [{**block, "only": "cudo"}]}, "cpu")


def test_linear_compiles_on_cuda_alone() -> None:
    for device, modes in (("cpu", {"eager"}), ("cuda", {"eager", "compile"})):
        cases = suite.build(suite.read("linear"), device).cases
        assert {case.mode for case in cases if case.tokens} == modes


@pytest.mark.parametrize("read", [suite.override, suite.quickened])
def test_cases_in_single_brackets_are_a_mistake_in_words(read: Any) -> None:
    document = {"schema": 1, "name": "x", "cases": {"workload": "linear", "format": []}}
    with pytest.raises(SuiteError, match="two brackets"):
        read(document)
