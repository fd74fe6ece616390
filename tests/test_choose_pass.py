"""``hwbench choose``: what kernels round, encoders by their embeddings, and a pass of the model."""

from __future__ import annotations

import copy
import functools
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _compress
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from _scored import scored, unsupported, workload
from _synthetic import scored_case
from _tiers import sampled
from hwbench_simulated import Fake, duration_seconds
from msgspec.structs import replace

import hwbench as package
from hwbench import checkpoints, quantities
from hwbench.analysis.frames import summary_rows
from hwbench.errors import HwbenchError, SuiteError, UsageError
from hwbench.formats._base import FORWARD
from hwbench.meters.score import Score
from hwbench.records import Case
from hwbench.store import read_run
from hwbench.studies import _choosing, _groups, _question, choose
from hwbench.studies._choosing import Budget, Costs, Layer, Passed
from hwbench.studies._question import Question
from hwbench.workloads import _reading, layer_error, model_pass
from hwbench.workloads._base import BEST, Subject, added, layer_format

pytest.importorskip("transformers")

Call = Callable[..., tuple[int, str, str]]
INT8 = {"name": "quantized"}
TOKENS = 2048  # so many that work, and not launches, is what takes time
GROUP = "model.layers.{0-1}.mlp.up_proj"


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _compress.decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _compress.encoder(tmp_path_factory.mktemp("encoder"))


def judged(model: Path, name: str, sides: tuple[int, int], **options: Any) -> Case:
    """A case of ``layer_error`` of a format without a share."""
    case = scored_case("layer_error", name, sides[1], model=str(model), **options)
    return replace(case, out_features=sides[0], knobs={})


# --- what kernels round ---------------------------------------------------------------------------


def diverged(model: Path, layers: dict[str, dict[str, Any]]) -> float:
    """Nats a token that a model loses with layers converted as users convert them."""
    loaded, _ = _reading.read(str(model), "prose")
    inner = {f"{loaded.PREFIX}{name}": entry for name, entry in layers.items()}
    small = package.convert(loaded, format=inner)
    ids, mask, _ = _reading.last_states(str(model), "prose")
    with torch.no_grad():
        expected, ours = (F.log_softmax(each(ids, mask)[mask], -1) for each in (loaded, small))
    return float((expected.exp() * (expected - ours)).sum(-1).mean())


def test_what_a_kernel_rounds_of_activations_is_lost_too(decoder: Path, tmp_path: Path) -> None:
    names = checkpoints.group_members(GROUP)
    options = {"judged": "kl", "weighting": BEST, "text": "prose"}
    case = judged(decoder, "quantized", (48, 32), layer=GROUP, **options)
    values, exact = scored(case)["score"], diverged(decoder, dict.fromkeys(names, INT8))
    assert values == pytest.approx(exact, rel=0.02)
    loaded, _ = _reading.read(str(decoder), "prose")
    rounded = package.get_format("quantized").from_knobs(48, 32).on("cpu")
    parts = {n: rounded.project(loaded.linears()[n].weight).to_dense() for n in names}
    assert layer_error._lost(str(decoder), "prose", parts) < 0.9 * values
    result = {"model": str(decoder), "shapes": {name: [48, 32] for name in names},
            "layers": dict.fromkeys(names, INT8), "weighting": "best",
            "text": "prose"}  # fmt: skip
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(result))
    whole = judged(decoder, "dense", (48, 32), plan=str(path), **options)
    assert scored(whole)["score"] == pytest.approx(values, rel=1e-6)
    assert all(type(each) is torch.nn.Linear for each in loaded.linears().values())
    assert len(loaded.linears()) == 21


@pytest.mark.parametrize("name", ["quantized", "packed_dense"])
def test_the_error_of_a_layer_is_that_of_the_layer_itself(encoder: Path, name: str) -> None:
    layer = "encoder.layer.0.output.dense"
    values = scored(judged(encoder, name, (16, 32), layer=layer))["score"]
    model, inputs = _reading.read(str(encoder))
    weight, x = model.linears()[layer].weight.detach(), inputs[layer][1::2]
    layer_ = package.get_format(name).from_knobs(16, 32).on("cpu").project(weight)
    exact = x.double() @ weight.double().mT
    lost = torch.linalg.norm(layer_(x).detach().double() - exact) / torch.linalg.norm(exact)
    assert values == pytest.approx(float(lost), rel=1e-4, abs=1e-6)
    assert (values == 0) == (name == "packed_dense")


def test_what_changes_no_weight_is_not_run(decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_reading, "last_states", lambda *_: pytest.fail("a pass was made"))
    options = {"judged": "kl", "weighting": BEST, "text": "prose"}
    assert scored(judged(decoder, "packed_dense", (48, 32), layer=GROUP, **options))["score"] == 0.0


def test_the_states_of_a_decoder_need_no_logits(decoder: Path) -> None:
    loaded, _ = _reading.read(str(decoder), "prose")
    head, made = loaded.model.get_output_embeddings(), list[int]()
    hook = head.register_forward_hook(lambda *_: made.append(1))
    ids, mask = type(loaded).tokens(decoder, ["a few words"])
    states = loaded.states(ids, mask)
    assert not made
    with torch.no_grad():
        assert torch.equal(head(states[-1]), loaded(ids, mask))
    assert len(made) == 2
    hook.remove()


# --- encoders -------------------------------------------------------------------------------------


def test_the_loss_of_an_encoder_is_one_minus_the_cosine(encoder: Path) -> None:
    layer = "encoder.layer.0.output.dense"
    case = scored_case("layer_error", "low_rank", 32, model=str(encoder), layer=layer,
                       judged="cosine", weighting=BEST)  # fmt: skip
    case = replace(case, out_features=16)
    assert unsupported(case) is None
    values = scored(case)["score"]
    assert workload(case).quantity(case).name == "embedding_distance"
    model, inputs = _reading.read(str(encoder))
    ids, mask, _ = _reading.last_states(str(encoder))
    near = layer_format(case, 16, 32)
    weight = model.linears()[layer].weight
    saved = weight.detach().clone()
    with torch.no_grad():
        expected = model(ids, mask)
        weight.copy_(near.project_outputs(saved, inputs[layer]).to_dense())
        ours = model(ids, mask)
        weight.copy_(saved)
    assert values == pytest.approx(1 - float((ours * expected).sum(-1).mean()), rel=1e-3)
    assert values > 1e-5


def test_each_kind_of_model_is_judged_by_what_it_gives(decoder: Path, encoder: Path) -> None:
    one = judged(decoder, "quantized", (48, 32), layer=GROUP, judged="cosine")
    assert "needs an encoder" in str(unsupported(one))
    name = "encoder.layer.0.output.dense"
    one = judged(encoder, "quantized", (16, 32), layer=name, judged="kl")
    assert "needs a model that predicts" in str(unsupported(one))
    with pytest.raises(HwbenchError, match='judged by "kl" or "cosine"'):
        workload(one).check(judged(encoder, "dense", (16, 32), plan="x.json", judged="output"))


def test_layers_that_share_a_weight_are_one_sentence(
    hwbench: Call, decoder: Path, place: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, inputs = _reading.read(str(decoder))
    shared = copy.deepcopy(loaded)
    first, second = (shared.get_submodule(f"model.model.layers.{n}.mlp.up_proj") for n in (0, 2))
    second.weight = first.weight
    monkeypatch.setattr(_reading, "read", lambda *_: (shared, inputs))
    code, _, error = hwbench("choose", "--model", str(decoder), *place, "--budget", "bytes=50%")
    assert code == 2
    result = error.rpartition("hwbench: ")[2]  # transformers tells that it read the model
    assert "cannot be converted: shares its weight with model.layers" in result
    assert result.count("\n") == 1


@pytest.fixture
def place(tmp_path: Path) -> list[str]:
    return [
        "--device", "fake", "--replicates", "1", "--runs", str(tmp_path / "runs"),
        "--out", str(tmp_path / "plan.json"),
    ]  # fmt: skip


def test_a_plan_of_an_encoder_is_never_worse_than_a_single_format(
    hwbench: Call, encoder: Path, place: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "DENSITIES", (0.3,))  # beside the share of the budget
    arguments = ["choose", "--model", str(encoder), "--format", "low_rank,csr", *place]
    code, outcome, error = hwbench(*arguments, "--budget", "bytes=60%")
    assert code == 0, error
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["objective"] == "cosine"
    assert {"low_rank stored=0.6", "csr stored=0.6"} <= set(plan["measured"])
    assert plan["measured"][plan["kept"]] == min(plan["measured"].values())
    assert plan["predicted"]["bytes"] <= 0.6 * plan["dense"]["bytes"]
    assert "1 − cosine of embeddings" in outcome
    assert "dense is float32; the formats are csr, low_rank" in outcome
    code, again, error = hwbench("choose", "--plan", str(tmp_path / "plan.json"), "--json")
    assert code == 0, error
    assert json.loads(again)["layers"] == plan["layers"]


# --- shares of bytes ------------------------------------------------------------------------------


def test_a_budget_of_bytes_asks_for_shares_of_bytes() -> None:
    layers = [("a.0.up", 8, 8), ("a.1.up", 8, 8)]
    question = Question(formats=("csr", "quantized"), densities=(0.5, 0.2), share="stored")
    result = _question.document(question, layers, ["quantized"])
    (timed,) = (block for block in result["cases"] if block["workload"] == "linear")
    assert timed["format"] == [
        {"name": "dense"},
        {"name": "csr", "stored": [0.5, 0.2]},
        {"name": "quantized"},
        {"name": "quantized", "stored": [0.5, 0.2]},
    ]


@pytest.mark.parametrize(
    ("formats", "wanted"),
    [
        (("csr", "bsr"), [{"name": "csr", "density": 0.5}]),
        (("csr", "quantized"), [{"name": "csr", "density": 0.5}, {"name": "quantized"}]),
        (("quantized", "packed_dense"), [{"name": "quantized"}, {"name": "packed_dense"}]),
        ((), [{"name": "dense"}]),
    ],
)
def test_what_has_no_share_is_measured_in_its_own_right(formats, wanted) -> None:
    question = Question(formats=formats, densities=(0.9, 0.5), objective="kl")
    result = _question.document(question, [("a.0.up", 8, 8)], ["quantized", "packed_dense"])
    (block,) = (each for each in result["cases"] if each.get("judged") == "kl")
    assert block["format"] == wanted


# --- a pass of the model --------------------------------------------------------------------------


def passed(model: Path, sides: tuple[int, int], device: Fake, **options: Any) -> dict[str, float]:
    """What the workload reads on the simulated device, by quantity."""
    case = replace(judged(model, "dense", sides), workload="model_pass",
                   options={"model": str(model), **options})  # fmt: skip
    made = workload(case)
    assert made.unsupported(case, layer_format(case, *sides), device) is None
    subject: Subject = made.prepare(case, layer_format(case, *sides), device, 0)
    device.describe(subject.step, case=case.id, cost=subject.cost)
    return {each.quantity: each.values[0] for each in Score().read(subject, device)}


def test_a_pass_is_its_layers_and_the_rest(decoder: Path) -> None:
    device = Fake(effects={"slow": {"model_pass": 3.0}})
    sides = {(32, 32): 6, (16, 32): 6, (48, 32): 6, (32, 48): 3}
    actual = {shape: passed(decoder, shape, device, length=512) for shape in sides}
    case = judged(decoder, "dense", (32, 32))
    costs = {shape: layer_format(case, *shape).cost(512, 4, FORWARD) for shape in sides}
    for shape, count in sides.items():
        inside = actual[shape][quantities.LINEAR_SECONDS.name]
        assert inside == pytest.approx(count * duration_seconds(costs[shape]))
    every = [costs[shape] for shape, count in sides.items() for _ in range(count)]
    assert actual[32, 32]["score"] == pytest.approx(3 * duration_seconds(added(every)))
    assert len({each["score"] for each in actual.values()}) == 1


@pytest.mark.parametrize(
    ("seconds", "rounds"), [(0.0, 45), (1e-3, 45), (0.2, 45), (0.5, 20), (1.0, 10), (60.0, 9)]
)
def test_short_passes_are_timed_more_often(seconds: float, rounds: int) -> None:
    """Two models take turns; what they take before they are warm does not count."""
    device, called = Fake(), list[str]()
    device.run = lambda step, states: called.append(step(None))  # type: ignore[method-assign]
    device.seconds = lambda start, end: (  # type: ignore[method-assign]
        100.0 if len(called) <= 2 * model_pass._WARM else seconds
    )
    steps = [lambda _: "dense", lambda _: "planned"]
    assert model_pass._in_turn(steps, device) == [seconds, seconds]
    assert called == ["dense", "planned"] * (rounds + model_pass._WARM)


@pytest.mark.parametrize(
    ("length", "shape"),
    [(1, (1, 1)), (48, (1, 48)), (64, (1, 64)), (128, (2, 64)), (96, (2, 48)), (129, (3, 43))],
)
def test_a_pass_has_as_many_tokens_as_asked_for(decoder: Path, length: int, shape) -> None:
    ids, mask = model_pass._batch(str(decoder), length)
    assert ids.shape == mask.shape == shape
    assert bool(mask.all())


@pytest.mark.parametrize("most", [1, 2, 7, 64, 127, 128, 512])
def test_a_pass_is_of_whole_texts_of_at_least_half_of_what_is_read(most: int) -> None:
    for length in range(1, 5 * most):
        try:
            width = model_pass._width(length, most)
        except SuiteError as error:
            said = re.findall(r"(\d+) or (\d+) tokens would be", str(error))
            less, more = (int(each) for each in said[0])
            assert less < length < more
            assert all(each % model_pass._width(each, most) == 0 for each in (less, more))
            continue
        assert length % width == 0
        assert width == length or most / 2 <= width <= most


def test_a_pass_that_would_be_of_single_tokens_is_a_mistake(decoder: Path) -> None:
    case = replace(judged(decoder, "dense", (32, 32)), workload="model_pass",
                   options={"model": str(decoder), "length": 131})  # fmt: skip
    with pytest.raises(SuiteError, match="32 to 64 tokens, .* 129 or 132 tokens would be"):
        workload(case).check(case)


def layers_in(seed: int) -> list[Layer]:
    rng = random.Random(seed)
    return [
        Layer(str(n), (8, 8), {"dense": Costs(1.0, 100, 25, 0)} | {
            f"csr density={d}": Costs(d * (0.5 + rng.random()), 100 * d, 25 * d, rng.random())
            for d in (0.2, 0.4, 0.8)
        })
        for n in range(6)
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_a_budget_of_time_is_of_the_layers_and_the_rest(seed: int) -> None:
    rest = random.Random(-seed).uniform(0.0, 6.0)
    for share in (0.95, 0.8, 0.6):
        budget, layers = Budget("time", share), layers_in(seed)
        least = sum(min(c.time_seconds for c in each.options.values()) for each in layers)
        if least + rest > share * (6 + rest):
            with pytest.raises(UsageError, match="a pass of the model needs at least"):
                choose.choose(layers, budget, rest)
            continue
        choice = choose.choose(layers, budget, rest)
        assert choice.planned.time_seconds + rest <= share * (6 + rest) * (1 + 1e-6)
        for picked in _choosing.candidates(choice).values():
            spent = _choosing.total(layers, picked).time_seconds + rest
            assert spent <= share * (6 + rest) * (1 + 1e-6)
        same = choose.choose(layers, Budget("bytes", share), rest)
        assert same.picked == choose.choose(layers, Budget("bytes", share)).picked


@pytest.fixture
def timed(decoder: Path, place: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(_groups, "grouped", functools.partial(_groups.grouped, depths=2))
    return [
        "choose", "--model", str(decoder), "--format", "low_rank,quantized", "--density",
        "0.4", "--tokens", str(TOKENS), *place,
    ]  # fmt: skip


def test_a_plan_within_a_time_is_passed_and_made_again(
    hwbench: Call, timed: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    code, outcome, error = hwbench(*timed, "--budget", "time=-20%")
    assert code == 0, error
    plan = json.loads(path.read_text())
    assert plan["formats"] == ["low_rank", "quantized"]
    rest, before, after = (
        plan["rest_seconds"], plan["dense"]["time_seconds"], plan["predicted"]["time_seconds"],
    )  # fmt: skip
    assert after + rest <= 0.8 * (before + rest) * (1 + 1e-6)
    layer_plan = checkpoints.layer_plan(path)
    costs = [
        package.get_format(each.format)
        .from_knobs(*each.shape, **each.knobs)
        .cost(TOKENS, 4, FORWARD)
        for each in layer_plan.layers
    ]
    assert plan["passed"]["planned_seconds"] == pytest.approx(duration_seconds(added(costs)))
    assert plan["passed"]["planned_seconds"] < plan["passed"]["dense_seconds"]
    assert "time=80% of a pass of 2048 tokens" in outcome
    assert "measured: a pass takes" in outcome
    run = read_run(Path(plan["run"]))
    rows = [row for row in summary_rows(run) if row["workload"] == "model_pass"]
    inside = sum(row[quantities.LINEAR_SECONDS.name] for row in rows)
    assert before == pytest.approx(inside)

    code, again, error = hwbench("choose", "--plan", str(path), "--json")
    assert code == 0, error
    assert json.loads(again) == {**plan, "plan": str(path)}
    older = tmp_path / "older.jsonl"
    lines = Path(plan["run"]).read_text(encoding="utf-8").splitlines(keepends=True)
    older.write_text("".join(each for each in lines if "model_pass" not in each), encoding="utf-8")
    with pytest.raises(UsageError, match="holds no pass of the model"):
        choose.chosen(read_run(older), Budget("time", 0.9))
    assert choose.chosen(read_run(older), Budget("params", 0.9)).rest_seconds == 0.0
    for wrong in ({"dense_seconds": 1}, {"dense_seconds": 1, "planned_seconds": -1}, "soon"):
        path.write_text(json.dumps({**plan, "passed": wrong}))
        with pytest.raises(UsageError, match="something else than the seconds of a pass"):
            choose.again(path)
    path.write_text(json.dumps({**plan, "missed_seconds": -1.0}))
    with pytest.raises(UsageError, match="something else than the seconds that a pass missed by"):
        choose.again(path)


@pytest.mark.parametrize(
    ("slower", "corrected", "met"),
    sampled([(1.1, True, True), (1.0, False, True), (3.0, False, False)], 3),
)
def test_a_plan_whose_pass_exceeds_the_budget_is_made_anew(
    hwbench: Call, timed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    slower: float, corrected: bool, met: bool,
) -> None:  # fmt: skip
    path, shares = tmp_path / "plan.json", []

    def passed(path: Path, tokens: int, **where: Any) -> Passed:
        plan = json.loads(path.read_text())
        rest = plan["rest_seconds"]
        before, after = (plan[k]["time_seconds"] + rest for k in ("dense", "predicted"))
        shares.append(slower * after / before)
        return Passed(before, slower * after)

    monkeypatch.setattr(choose, "passed", passed)
    code, outcome, error = hwbench(*timed, "--budget", "time=-10%")
    assert code == 0, error
    plan = json.loads(path.read_text())
    assert (len(shares) > 1) is corrected
    assert (shares[-1] <= (1 + _choosing.TOLERANCE) * 0.9) is met
    assert ("missed_seconds" in plan) is corrected
    assert ("less than it." in outcome) is corrected
    code, again, error = hwbench("choose", "--plan", str(path), "--json")
    assert code == 0, error
    assert json.loads(again)["layers"] == plan["layers"]
