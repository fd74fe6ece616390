"""Layers of the packaged model: which are taken, what is scored, what is kept, what stands in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from _formats import relative
from _scored import described, unsupported, workload
from _synthetic import questions, run_of, scored_case
from msgspec.structs import replace

from hwbench import suite as suites
from hwbench.analysis import compare
from hwbench.analysis.compare import Entry, Reading
from hwbench.devices.cpu import Cpu
from hwbench.errors import SuiteError
from hwbench.formats._base import FORWARD
from hwbench.formats.csr import Csr
from hwbench.formats.quantized import Quantized
from hwbench.meters.score import Score
from hwbench.records import Case, Measurement
from hwbench.report import _whose
from hwbench.report.rows import Row, report_rows
from hwbench.report.text import _score
from hwbench.workloads import _distill, _packaged, _texts, _trained
from hwbench.workloads._base import DTYPES
from hwbench.workloads._bert import Bert

COUNT = 2


def packaged(format_: str = "csr", sides: tuple[int, int] = (384, 384), **options: Any) -> Case:
    options = {"layers": COUNT, **options}
    one = scored_case("projection", format_, 384, matrix="packaged", **options)
    return replace(one, out_features=sides[0], in_features=sides[1])


def measured(one: Case) -> dict[str, Measurement]:
    subject = workload(one).prepare(one, described(one), Cpu(0), 0)
    return {each.quantity: each for each in Score().read(subject, Cpu(0))}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "hwbench" / "scores"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Mapping[str, torch.Tensor]]:
    """Made activations in place of those of the model, which take seconds."""
    source = torch.Generator().manual_seed(0)
    actual = {
        texts: {
            name.removesuffix(".weight"): torch.randn(50, weight.shape[1], generator=source)
            for name, weight in _trained.linears().items()
        }
        for texts in ("calibration", "held_out")
    }
    monkeypatch.setattr(_packaged, "_seen", actual.__getitem__)
    return actual


# --- which layers ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(384, 384), (1536, 384), (384, 1536)])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_the_layers_are_spread_over_depth_and_kinds(shape: tuple[int, int], count: int) -> None:
    names = _packaged.chosen(*shape, count)
    assert len(set(names)) == count
    assert {tuple(_trained.linears()[name].shape) for name in names} == {shape}
    depths = [int(name.split(".")[2]) for name in names]
    assert depths == sorted(depths)
    assert count == 1 or (depths[0], depths[-1]) == (0, 5)
    kinds = {name.split(".", 3)[3] for name in names}
    assert len(kinds) == min(count, 4 if shape == (384, 384) else 1)


def test_what_the_model_has_not_is_said() -> None:
    few, none = packaged(sides=(1536, 384), layers=7), packaged(sides=(96, 64))
    assert unsupported(few) == "all-MiniLM-L6-v2 has 6 layers of 1536×384; 7 are asked for."
    assert "has no layer of 96×64; it has 384×384" in str(unsupported(none))
    assert unsupported(packaged()) is None


@pytest.mark.parametrize("options", [{"seeds": 2}, {"layers": 0}, {"weights": "x"}])
def test_options_that_mean_nothing_are_mistakes(options: dict[str, Any]) -> None:
    one = packaged(**options)
    with pytest.raises(SuiteError):
        workload(one).check(one)


# --- what is scored ----------------------------------------------------------------------------


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("weighting", ["none", "activations", "gram"])
def test_every_layer_has_its_own_errors(seen: Any, weighting: str) -> None:
    one = packaged("low_rank", weighting=weighting)
    values = measured(one)
    assert values["score"].note == "output_error"
    names = _packaged.chosen(384, 384, COUNT)
    for place, name in enumerate(names):
        weight, module = _trained.linears()[name], name.removesuffix(".weight")
        given = seen["calibration"][module]
        layer = described(one).project(weight, activations=given)
        if weighting != "activations":
            layer = described(one).project(weight)
        if weighting == "gram":
            layer = described(one).project_outputs(weight, given)
        lost = layer.to_dense().detach() - weight
        rows = seen["held_out"][module]
        output = torch.linalg.norm(rows @ lost.T) / torch.linalg.norm(rows @ weight.T)
        assert values["score"].values[place] == pytest.approx(float(output), rel=1e-4)
        error = torch.linalg.norm(lost) / torch.linalg.norm(weight)
        assert values["projection_error"].values[place] == pytest.approx(float(error), rel=1e-4)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernel", Quantized.KERNELS)
def test_what_a_kernel_rounds_of_activations_is_counted(seen: Any, kernel: str, dtype: str) -> None:
    one = replace(packaged("quantized"), knobs={"kernel": kernel}, dtype=dtype)
    actual = described(one)
    if reason := actual.unsupported("cpu", DTYPES[dtype], FORWARD):
        pytest.skip(reason)
    values = measured(one)
    for place, name in enumerate(_packaged.chosen(384, 384, COUNT)):
        value, plain = values["score"].values[place], values["projection_error"].values[place]
        weight = _trained.linears()[name].to(DTYPES[dtype])
        layer = actual.project(weight)
        rows = seen["held_out"][name.removesuffix(".weight")].to(weight.dtype)
        exact = rows.double() @ weight.double().mT
        own = relative(layer(rows), exact)
        of_weight = relative(rows.double() @ layer.to_dense().double().mT, exact)
        rounds = layer.tolerance(weight.dtype) > 0
        assert value == pytest.approx(own if rounds else of_weight, rel=1e-4)
        lost = relative(layer.to_dense(), weight)
        if rounds:
            assert plain > (1.1 if actual.activations == "dynamic" else 0.95) * lost
            assert plain == pytest.approx(value, rel=0.1)  # both inputs are normal
        else:
            assert plain == pytest.approx(lost, rel=1e-6)


@pytest.mark.heavy
@pytest.mark.usefixtures("cache")
def test_the_activations_are_those_of_the_sentences() -> None:
    folder, (name, *_) = _trained.folder(), _packaged.chosen(384, 384, 1)
    module = name.removesuffix(".weight")
    rows = _distill.activations(Bert.load(folder), *Bert.tokens(folder, _texts.held_out()))[module]
    weight, one = _trained.linears()[name], packaged(layers=1)
    lost = described(one).project(weight).to_dense().detach() - weight
    output = torch.linalg.norm(rows @ lost.T) / torch.linalg.norm(rows @ weight.T)
    assert measured(one)["score"].values == [pytest.approx(float(output), rel=1e-4)]


# --- what is kept ------------------------------------------------------------------------------


def others() -> list[Case]:
    return [
        packaged("coo"),
        packaged(layers=1),
        packaged(weighting="activations"),
        packaged(weighting="gram"),
        packaged(sides=(1536, 384)),
        replace(packaged(), knobs={"density": 0.25}),
        replace(packaged(), dtype="bfloat16"),
    ]


@pytest.mark.usefixtures("seen")
def test_scores_are_measured_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = measured(packaged())
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(Csr, "project", lambda *_, **__: pytest.fail("it was projected again"))
    assert measured(packaged()) == first
    assert first["prepare_seconds"].values[0] > 0


@pytest.mark.usefixtures("seen")
def test_whatever_else_is_asked_is_measured_by_itself(cache: Path) -> None:
    for number, one in enumerate([packaged(), *others()], 1):
        measured(one)
        assert len(list(cache.iterdir())) == number


@pytest.mark.usefixtures("seen")
@pytest.mark.parametrize("change", ["code", "weights", "torch"])
def test_a_score_follows_from_code_weights_and_torch(
    cache: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    measured(packaged())
    if change == "torch":
        monkeypatch.setattr(torch, "__version__", "9.9")
    else:
        name = "code" if change == "code" else "_hash"
        monkeypatch.setattr(_packaged, name, lambda *_: "another")
    measured(packaged())
    assert len(list(cache.iterdir())) == 2


def test_the_code_that_a_score_follows_from_is_there() -> None:
    root = Path(str(_packaged.__file__)).parents[1]
    for pattern in _packaged.CODE:
        assert list(root.glob(pattern)), pattern


SPOILT = ["", "[]", "{}", '{"output_error": [1]}', "NaN", "\xff"]


@pytest.mark.usefixtures("seen")
@pytest.mark.parametrize("spoilt", [*SPOILT, "nan", "short", "text"])
def test_a_file_that_something_else_wrote_is_measured_again(cache: Path, spoilt: str) -> None:
    first = measured(packaged())
    (file,) = cache.iterdir()
    held = json.loads(file.read_text(encoding="utf-8"))
    wrong = {"nan": [float("nan")] * COUNT, "short": [0.1], "text": ["0.1"] * COUNT}
    if spoilt in wrong:
        held["output_error"] = wrong[spoilt]
        file.write_text(json.dumps(held), encoding="utf-8")
    else:
        file.write_text(spoilt, encoding="latin-1")
    assert measured(packaged())["score"] == first["score"]
    assert json.loads(file.read_text(encoding="utf-8"))["output_error"] == first["score"].values


@pytest.mark.usefixtures("seen")
def test_where_nothing_can_be_kept_it_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(measured(packaged())["score"].values) == COUNT


# --- what stands in ----------------------------------------------------------------------------


def row(score_name: str) -> Row:
    """A row of a report, of three packaged layers."""
    rows = report_rows(run_of(questions()))
    options = json.dumps({"matrix": "packaged", "layers": 3})
    one = next(each for each in rows if each.scored and each.format == "low_rank")
    return replace(
        one, options=options, score_name=score_name, out_features=384, in_features=384,
        values={**one.values, "score": 0.2}, score_low=0.1, score_high=0.3,
    )  # fmt: skip


def test_planning_reads_the_sides_of_the_layers_and_no_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sides = {name: (each.shape[0], each.shape[1]) for name, each in _trained.linears().items()}
    assert _trained.sides() == sides
    assert list(_trained.sides()) == list(sides)

    def refuse() -> None:
        raise AssertionError("the weights were read")

    monkeypatch.setattr(_trained, "linears", refuse)
    assert unsupported(packaged()) is None
    assert "has no layer of 384×385" in (unsupported(packaged(sides=(384, 385))) or "")


def test_without_the_package_a_made_matrix_stands_in_and_is_called_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = replace(packaged(), options={"matrix": "power_law"})
    expected = measured(made)
    monkeypatch.setattr(_packaged, "missing", lambda: "The package is not installed.")
    assert unsupported(packaged()) is None
    values = measured(packaged())
    assert values["score"].values == expected["score"].values
    assert values["score"].note == "projection_error"
    absent, there = row("projection_error"), row("output_error")
    assert _whose.SYNTHETIC in _whose.noted(absent)
    assert "hwbench-torch[models]" in _whose.noted(absent)
    assert _whose.layers(absent) is None
    assert not _whose.synthetic(there)
    assert _whose.noted(there) == (
        "Output error: the median over 3 layers of all-MiniLM-L6-v2, 384×384, on held-out "
        "sentences."
    )
    assert _score(there) == "0.200 (0.100–0.300)"


def test_scores_of_two_kinds_are_not_compared() -> None:
    old, new = (
        Entry(readings={"score": Reading({0: 0.1}, frozenset({name}))})
        for name in ("projection_error", "output_error")
    )
    assert compare.unlike(old, [old], "score") is None
    assert compare.unlike(old, [new], "score") == (
        "The scores output_error and projection_error are not comparable."
    )


# --- which suites ------------------------------------------------------------------------------


def plain_knobs(case: Case) -> str:
    """The knobs that decide what is kept: another kernel, or a gradient, changes no weight."""
    aside = ("kernel", "multiple", "gradient")
    return json.dumps({k: v for k, v in case.knobs.items() if k not in aside}, sort_keys=True)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", ["linear", "crossover", "llm"])
def test_what_is_timed_is_scored_on_trained_layers(name: str, device: str) -> None:
    cases = suites.build(suites.read(name), device).cases
    own = [case for case in cases if case.workload == "projection"]
    assert {case.options["matrix"] for case in own} == {"packaged"}
    scored = {(case.format, plain_knobs(case)) for case in own}
    for case in cases:
        if case.workload == "linear" and case.format != "dense":
            assert (case.format, plain_knobs(case)) in scored, case.id
    for case in own:
        workload(case).check(case)
