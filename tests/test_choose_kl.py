"""``hwbench choose --objective kl``: groups, their sensitivities, and whole candidates measured."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _compress
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from _scored import described, scored, unsupported, workload
from _synthetic import scored_case
from msgspec.structs import replace

import hwbench as package
from hwbench import checkpoints
from hwbench.analysis.frames import summary_rows
from hwbench.errors import HwbenchError, UsageError
from hwbench.store import read_run
from hwbench.studies import _choosing, _groups, choose
from hwbench.studies._choosing import VARIANTS, Budget, Costs, Layer
from hwbench.workloads import _reading, layer_error
from hwbench.workloads._base import BEST, project_seeing

transformers = pytest.importorskip("transformers")

Call = Callable[..., tuple[int, str, str]]
GROUP = "model.layers.{0-1}.mlp.up_proj"

# --- groups ---------------------------------------------------------------------------------------


def models() -> list[list[_groups.Named]]:
    """Layers of models of many depths: plain, with kinds at some depths only, with odd shapes."""
    rng, collected = random.Random(4), []
    for depth in (1, 2, 5, 12, 31):
        layers: list[_groups.Named] = [("embed.proj", 8, 8)]
        for place in range(depth):
            for kind, side in (("attn.q", 8), ("attn.v", 4), ("mlp.experts.0.up", 16)):
                if rng.random() < 0.8:
                    layers.append((f"m.layers.{place}.{kind}", side * rng.choice((1, 1, 2)), 8))
        collected.append(layers)
    return collected


@pytest.mark.parametrize("layers", models(), ids=len)
def test_every_layer_is_in_one_group_whose_name_says_which(layers: list[_groups.Named]) -> None:
    groups = _groups.grouped(layers)
    assert sorted(itertools.chain(*(group.members for group in groups))) == sorted(
        name for name, *_ in layers
    )
    shapes = {name: tuple(sides) for name, *sides in layers}
    for group in groups:
        assert _groups.of_name(group.name) == group.members
        assert {shapes[name] for name in group.members} == {group.shape}
        assert group.middle in group.members
    for name in ("attn.q", "attn.v"):
        count = sum(name in group.name for group in groups)
        assert count >= min(1, sum(name in layer for layer, *_ in layers))


def test_a_kind_is_cut_into_parts_of_the_depth() -> None:
    layers = [(f"layers.{place}.up", 4, 4) for place in range(30)]
    groups = _groups.grouped([("0", 4, 4), *layers[1:]], depths=3)
    assert [each.name for each in groups] == [
        "0", *(f"layers.{{{a}-{b}}}.up" for a, b in ((1, 10), (11, 20), (21, 29))),
    ]  # fmt: skip


# --- candidates -----------------------------------------------------------------------------------


def grouped_layers(seed: int) -> list[Layer]:
    rng = random.Random(seed)
    layers = []
    for group in range(4):
        s, losses = 10 ** rng.uniform(-3, 1), [rng.random() for _ in range(4)]
        labels = [f"{name} density={d}" for name in ("low_rank", "csr") for d in (0.4, 0.8)]
        options = {
            label: Costs(1.0, 100 * float(label[-3:]), 25, s * loss)
            for label, loss in zip(labels, losses, strict=True)
        } | {"dense": Costs(4, 100, 25, 0)}
        layers += [
            Layer(f"{group}.{n}", (8, 8), options, group=f"g{group}", sensitivity=s)
            for n in range(2)
        ]
    return layers


@pytest.mark.parametrize("seed", range(5))
def test_candidates_meet_the_budget_and_hold_every_format_alone(seed: int) -> None:
    budget = Budget("bytes", 0.8)
    choice = choose.choose(grouped_layers(seed), budget)
    candidates = _choosing.candidates(choice)
    for picked in candidates.values():
        costs = _choosing.total(choice.layers, picked)
        assert costs.bytes <= 0.8 * choice.dense.bytes * (1 + 1e-6)
        for group in range(4):
            assert len({picked[f"{group}.{n}"] for n in range(2)}) == 1
    alone = [
        set(picked.values()).pop() for picked in candidates.values() if len({*picked.values()}) == 1
    ]
    assert {label.split()[0] for label in alone} == {"low_rank", "csr"}
    values = list(map(json.dumps, candidates.values()))
    assert len(set(values)) == len(values)


def test_the_variants_are_believed_as_they_say() -> None:
    layer = Layer("a", (8, 8), {"q": Costs(1, 1, 1, 4 * 0.25)}, group="g", sensitivity=4.0)
    for trust, power in VARIANTS.values():
        got = _choosing._believed(layer, trust, power).options["q"].loss
        assert got == pytest.approx(4.0**trust * 0.25**power)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_kept_is_never_worse_than_a_single_format(seed: int) -> None:
    choice = choose.choose(grouped_layers(seed), Budget("bytes", 0.8))
    every, rng = _choosing.candidates(choice), random.Random(seed)
    lost = {name: rng.random() for name in every}
    result = _choosing.decided(choice, lost)
    assert lost[result.kept] == min(lost.values())
    assert result.picked == every[result.kept]
    singles = {name: lost[name] for name in every if len({*every[name].values()}) == 1}
    assert result.single == min(singles, key=singles.__getitem__)
    lost[result.single] = 0.0
    assert _choosing.decided(choice, lost).wins_everywhere == result.single
    with pytest.raises(UsageError, match="None of the candidates"):
        _choosing.decided(choice, {"x": 1.0})


# --- a small decoder ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _compress.decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture
def asked(decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(_groups, "grouped", functools.partial(_groups.grouped, depths=2))
    return [
        "choose", "--model", str(decoder), "--format", "low_rank", "--density", "0.8,0.4",
        "--device", "fake", "--replicates", "1", "--runs", str(tmp_path / "runs"),
        "--out", str(tmp_path / "plan.json"),
    ]  # fmt: skip


def test_a_plan_of_a_decoder_is_measured_against_single_formats_and_made_again(
    hwbench: Call, asked: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    code, outcome, error = hwbench(*asked, "--budget", "params=80%")
    assert code == 0, error
    plan = json.loads(path.read_text())
    assert plan["objective"] == "kl"
    assert "low_rank density=0.8" in plan["measured"]
    assert plan["best_single"] == "low_rank density=0.8"
    assert plan["measured"][plan["kept"]] == min(plan["measured"].values())
    assert f"{plan['kept']}" in outcome
    assert "Whole candidates" in outcome
    assert plan["predicted"]["parameters"] <= 0.8 * plan["dense"]["parameters"] * (1 + 1e-6)

    code, again, error = hwbench("choose", "--plan", str(path), "--json")
    assert code == 0, error
    assert json.loads(again)["layers"] == plan["layers"]
    other = max(plan["measured"], key=lambda name: plan["measured"][name])
    plan["measured"][other] = 0.0
    path.write_text(json.dumps(plan))
    with pytest.raises(UsageError, match="it was changed"):
        choose.again(path)
    plan["measured"] = {"plan": "little"}
    path.write_text(json.dumps(plan))
    with pytest.raises(UsageError, match="something else than a divergence"):
        choose.again(path)


@pytest.mark.heavy
def test_a_plan_applied_from_its_file_is_the_model_that_was_measured(
    hwbench: Call, asked: list[str], decoder: Path, tmp_path: Path
) -> None:
    path, out = tmp_path / "plan.json", tmp_path / "small"
    assert hwbench(*asked, "--budget", "params=90%")[0] == 0
    again = ["choose", "--plan", str(path), "--apply", str(out), "--device", "fake"]
    code, outcome, error = hwbench(*again, "--runs", str(tmp_path / "runs"))
    assert code == 0, error
    assert "KL in nats a token" in outcome
    plan = json.loads(path.read_text())
    blank = transformers.AutoModelForCausalLM.from_pretrained(decoder).eval()
    small = package.load_converted(out, blank)
    ids, mask, _ = _reading.last_states(str(decoder), "prose")
    loaded = _reading.read(str(decoder), "prose")[0]
    with torch.no_grad():
        expected = F.log_softmax(loaded(ids, mask)[mask], -1)
        ours = F.log_softmax(small(input_ids=ids, attention_mask=mask.long()).logits[mask], -1)
    exact = float((expected.exp() * (expected - ours)).sum(-1).mean())
    measured = {f"{value:.3g}" for value in plan["measured"].values()}
    assert f"{exact:.3g}" in measured


def test_the_losses_of_a_run_are_sensitivities_times_errors(
    hwbench: Call, asked: list[str], tmp_path: Path
) -> None:
    assert hwbench(*asked, "--budget", "params=90%")[0] == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    run = read_run(Path(plan["run"]))
    layers = {each.name: each for each in choose.layers_of(run)}
    assert len(layers) == 21
    measured = {
        (options["layer"], options["judged"], row["label"]): row["score"]
        for row in summary_rows(run)
        if row["workload"] == "layer_error"
        for options in [json.loads(row["options"])]
    }
    own = [layers[name] for name in _groups.of_name(GROUP)]
    divergence = measured[GROUP, "kl", "low_rank density=0.4"]  # the one that is nearer to a half
    assert divergence > 0
    reference = measured["model.layers.1.mlp.up_proj", "layer", "low_rank density=0.4"]
    for layer in own:
        assert layer.group == GROUP
        assert layer.sensitivity == pytest.approx(divergence / reference**2)
        assert layer.options["low_rank density=0.4"].loss == pytest.approx(divergence / 2)
        assert 0 < layer.options["low_rank density=0.8"].loss < divergence / 2
        assert layer.options["dense"].loss < 1e-9


def test_the_divergence_of_a_group_is_that_of_the_model_with_its_layers_changed(
    decoder: Path,
) -> None:
    options = {"model": str(decoder), "judged": "kl", "weighting": BEST, "text": "prose"}
    case = scored_case("layer_error", "low_rank", 32, layer=GROUP, **options)
    case = replace(case, out_features=48)
    assert unsupported(case) is None
    values = scored(case)["score"]
    loaded, inputs = _reading.read(str(decoder), "prose")
    ids, mask, _ = _reading.last_states(str(decoder), "prose")
    changed = copy.deepcopy(loaded)
    for name in checkpoints.group_members(GROUP):
        linear = changed.linears()[name]
        layer = project_seeing(described(case), linear.weight.detach(), inputs[name], BEST)
        linear.weight.data = layer.to_dense()
    with torch.no_grad():
        expected, ours = (F.log_softmax(each(ids, mask)[mask], -1) for each in (loaded, changed))
    exact = float((expected.exp() * (expected - ours)).sum(-1).mean())
    assert values == pytest.approx(exact, rel=1e-3)
    assert values > 1e-4
    assert workload(case).quantity(case).name == "next_token_divergence"


def test_a_plan_is_judged_as_it_is_converted(decoder: Path, tmp_path: Path) -> None:
    layers = {"model.layers.1.mlp.down_proj": {"name": "low_rank", "density": 0.5}}
    shapes = {name: [32, 48] for name in layers}
    path = tmp_path / "plan.json"
    result = {"model": str(decoder), "shapes": shapes, "layers": layers,
            "weighting": "best", "text": "prose"}  # fmt: skip
    path.write_text(json.dumps(result))
    options = {"model": str(decoder), "judged": "kl", "weighting": BEST, "text": "prose"}
    whole = scored_case("layer_error", "dense", 32, plan=str(path), **options)
    assert unsupported(whole) is None
    values = scored(whole)["score"]
    alone = scored_case("layer_error", "low_rank", 32, layer=next(iter(layers)), **options)
    alone = replace(alone, in_features=48)
    assert values == pytest.approx(scored(alone)["score"], rel=1e-4)
    result["layers"] = {}
    path.write_text(json.dumps(result))
    assert scored(whole)["score"] < 1e-6
    assert not layer_error._PARTS
    path.write_text("{}")
    assert "is no plan" in str(unsupported(whole))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layer": "x", "judged": "klx"}, "Unknown judged"),
        ({"layer": "x", "text": "book"}, "Unknown text"),
        ({"layer": "x", "weighting": "gram"}, "Unknown weighting"),
        ({"plan": "x.json"}, 'judged by "kl"'),
    ],
)
def test_a_mistake_in_an_option_is_refused(options: dict[str, Any], words: str) -> None:
    case = scored_case("layer_error", "low_rank", 32, **options)
    with pytest.raises(HwbenchError, match=words):
        workload(case).check(case)


def test_what_groups_cannot_be_judged_by_is_said(decoder: Path) -> None:
    case = scored_case("layer_error", "low_rank", 32, model=str(decoder), layer=GROUP)
    assert "takes groups" in str(unsupported(case))
    nowhere = scored_case("layer_error", "low_rank", 32, model=str(decoder), layer="a.{0-3}.b")
    assert "Unknown layer" in str(unsupported(nowhere))


# --- models that cannot be chosen for -------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "unheard_of"}, "model type `unheard_of`"),
        ({"model_type": "vit", "vocab_size": None, "architectures": ["ViTModel"]}, "reads no text"),
        ({"model_type": "t5", "architectures": ["T5Model"], "d_model": 32, "num_heads": 2},
         "encoder-decoder"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
         "quantised weights"),
        ({"num_hidden_layers": 10**9}, "more than 10000 layers"),
        ({"hidden_size": None}, "gives none of hidden_size"),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else None,
)  # fmt: skip
def test_a_model_that_cannot_be_read_is_one_sentence(
    hwbench: Call, asked: list[str], decoder: Path, tmp_path: Path,
    changes: dict[str, Any], words: str,
) -> None:  # fmt: skip
    folder = tmp_path / "other"
    shutil.copytree(decoder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    asked[asked.index(str(decoder))] = str(folder)
    code, outcome, error = hwbench(*asked, "--budget", "params=80%")
    assert code == 2, outcome
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda name, value: {} if "up_proj" in name else {name: value}, "lack "),
        (lambda name, value: {name: value.to(torch.int8)}, "as I8, which is quantised"),
    ],
    ids=["another architecture", "quantised"],
)
def test_weights_that_cannot_be_projected_are_one_sentence(
    hwbench: Call, asked: list[str], decoder: Path, tmp_path: Path, spoil: Any, words: str
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "other"
    shutil.copytree(decoder, folder)
    asked[asked.index(str(decoder))] = str(folder)
    values: dict[str, torch.Tensor] = {}
    for name, value in load_file(folder / "model.safetensors").items():
        values |= spoil(name, value)
    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})
    code, outcome, error = hwbench(*asked, "--budget", "params=80%")
    assert code == 2, outcome
    assert words in error
    assert error.count("\n") == 1


def test_a_budget_that_no_candidate_meets_says_what_can_be(hwbench: Call, asked: list[str]) -> None:
    code, _, error = hwbench(*asked, "--budget", "params=5%")
    assert code == 2
    assert "cannot be met: " in error
    assert "at least" in error
