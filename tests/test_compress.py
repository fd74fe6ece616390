"""The encoder against a reference, and compression of a tiny random one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _scored import scored, unsupported
from _synthetic import scored_case

from hwbench import plugins
from hwbench.checkpoints import layer_plan
from hwbench.devices.cpu import Cpu
from hwbench.errors import SuiteError, UnknownNameError
from hwbench.formats._base import Format
from hwbench.protocol import PlanReply, PlanRequest
from hwbench.records import Case
from hwbench.worker import Worker
from hwbench.workloads import (
    _convert,
    _distill,
    _embeddings,
    _planning,
    _reading,
    _texts,
    _trained,
)
from hwbench.workloads._bert import Bert
from hwbench.workloads.compress import Compress

CONFIG = {
    "model_type": "bert", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "vocab_size": 30522, "max_position_embeddings": 128,
    "type_vocab_size": 2, "layer_norm_eps": 1e-12,
}  # fmt: skip
REFERENCE = [0.063289, 0.040883, 0.039341, 0.013355, 0.060844, 0.054930]
"""The first values that sentence-transformers 6.2.0 gives for the first held-out sentence."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random encoder of two layers in Hugging Face's layout, with the packaged tokenizer."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tokenizer = (_trained.folder() / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    model = Bert(CONFIG)
    source = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=source)
    save_file({f"bert.{name}": value for name, value in model.state_dict().items()},
              folder / "model.safetensors")  # fmt: skip
    return folder


def case(folder: Path | str, name: str = "low_rank", **options: Any) -> Case:
    return scored_case("compress", name, 16, model=str(folder), **options)


def test_the_packaged_encoder_gives_the_reference_embedding() -> None:
    folder = _trained.folder()
    actual = Bert.load(folder)(*Bert.tokens(folder, _texts.held_out()[:1]))
    assert actual[0, :6].tolist() == pytest.approx(REFERENCE, abs=2e-6)
    assert float(actual.norm()) == pytest.approx(1)


def test_sentences_that_mean_the_same_are_nearest() -> None:
    folder, texts = _trained.folder(), _texts.held_out()
    embeddings = Bert.load(folder)(*Bert.tokens(folder, texts))
    alike = (embeddings @ embeddings.T).fill_diagonal_(-2)
    assert alike.argmax(1).tolist() == [i ^ 1 for i in range(len(texts))]


def test_padding_changes_nothing(tiny: Path) -> None:
    texts = _texts.held_out()[:6]
    model = Bert.load(tiny)
    together = model(*Bert.tokens(tiny, texts))
    alone = torch.cat([model(*Bert.tokens(tiny, [text])) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_texts_are_not_shared() -> None:
    assert not set(_texts.calibration()) & set(_texts.held_out())
    assert len(set(_texts.held_out())) == len(_texts.held_out()) == 60


def test_dense_keeps_everything(tiny: Path) -> None:
    values = scored(case(tiny, "dense"))
    assert values["score"] == pytest.approx(1, abs=1e-6)
    assert values["retrieval_agreement"] == 1
    assert values["model_parameters"] == sum(p.numel() for p in Bert(CONFIG).parameters())
    assert values["model_seconds"] > 0


@pytest.mark.parametrize("name", ["dense", "low_rank"])
def test_partners_are_found_on_all_held_out_sentences(tiny: Path, name: str) -> None:
    actual, other = (scored(case(tiny, name), seed) for seed in (0, 1))
    texts = _texts.held_out()
    for quantity in ("partner_top1", "partner_mrr", "centred_lead"):
        assert actual[quantity] == other[quantity]  # a seed draws none of them
    assert actual["partner_mrr_low"] < actual["partner_mrr"] < actual["partner_mrr_high"] <= 1
    assert actual["centred_lead_low"] < actual["centred_lead"] < actual["centred_lead_high"]
    if name == "dense":
        embeddings = Bert.load(tiny)(*Bert.tokens(tiny, texts)).double()
        alike = (embeddings @ embeddings.T).fill_diagonal_(-2)
        places = alike.argsort(1, descending=True).tolist()
        ranks = [row.index(i ^ 1) + 1 for i, row in enumerate(places)]
        assert actual["partner_top1"] == pytest.approx(sum(r == 1 for r in ranks) / len(ranks))
        assert actual["partner_mrr"] == pytest.approx(sum(1 / r for r in ranks) / len(ranks))


def test_an_embedding_that_is_the_same_for_all_finds_nobody() -> None:
    same = torch.nn.functional.normalize(torch.ones(60, 8), dim=-1)
    first, ranks = _embeddings.partners(same)
    assert first == pytest.approx([1 / 59] * 60)
    assert ranks == pytest.approx([1 / 30] * 60)
    assert _embeddings.leads(same) == pytest.approx([0.0] * 60)


def test_embeddings_that_are_apart_find_their_partners() -> None:
    pairs = torch.eye(30).repeat_interleave(2, 0)
    assert _embeddings.partners(pairs) == ([1.0] * 60, [1.0] * 60)
    assert _embeddings.leads(pairs) == pytest.approx([1 + 1 / 29] * 60)
    shared = torch.cat([pairs, torch.full((60, 1), 3.0)], 1)  # what all share tells nothing
    shared = torch.nn.functional.normalize(shared, dim=-1)
    assert _embeddings.leads(shared) == pytest.approx([1 + 1 / 29] * 60)


def test_a_seed_draws_its_texts_and_says_the_same_twice(tiny: Path) -> None:
    first, again, other = (scored(case(tiny), seed)["score"] for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_healing_brings_back_what_projection_lost(tiny: Path) -> None:
    values = scored(case(tiny, heal=60))
    assert values["unhealed_score"] == pytest.approx(scored(case(tiny))["score"])
    assert values["score"] > values["unhealed_score"] + 0.01


def test_where_nothing_was_lost_healing_breaks_nothing(tiny: Path) -> None:
    values = scored(case(tiny, "dense", heal=5))
    assert values["score"] == pytest.approx(values["unhealed_score"], abs=1e-6)
    assert values["score"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "csr",
        *(
            pytest.param(n, marks=pytest.mark.heavy)
            for n in ("low_rank_light", "kronecker", "monarch")
        ),
    ],
)
def test_healing_helps_formats_of_every_kind(tiny: Path, name: str) -> None:
    values = scored(case(tiny, name, heal=60, weighting="activations"))
    assert values["score"] > values["unhealed_score"]


def test_a_parameter_learns_at_the_rate_at_which_it_moves_the_matrix() -> None:
    source = torch.Generator().manual_seed(0)

    def rates(name: str, scale: float) -> list[float]:
        kind = plugins.load("formats", name, Format)
        knobs = {} if name == "dense" else {"density": 0.5}
        layer = kind.from_knobs(64, 64, **knobs).random(dtype=torch.float32, generator=source)
        first, *_ = layer.parameters()
        first.data.mul_(scale)
        return [group["lr"] for group in _distill._at_rates(layer, source)]

    assert rates("dense", 7.0) == pytest.approx([_distill.RATE])
    left, right = rates("low_rank", 1.0)
    scaled_left, scaled_right = rates("low_rank", 8.0)
    assert scaled_left == pytest.approx(left, rel=0.2)
    assert scaled_right == pytest.approx(right / 8, rel=0.2)


def test_after_healing_a_layer_runs_its_own_kernel_again() -> None:
    kind = plugins.load("formats", "low_rank", Format)
    source = torch.Generator().manual_seed(0)
    layer = kind.from_knobs(16, 16, density=0.5).random(dtype=torch.float32, generator=source)
    x = torch.randn(3, 16)
    expected = layer(x)
    with _distill._through_dense([layer]):
        assert "forward" in vars(layer)
        torch.testing.assert_close(layer(x), expected)
    assert "forward" not in vars(layer)


def test_activations_weigh_the_columns(tiny: Path) -> None:
    assert scored(case(tiny, weighting="activations"))["score"] != scored(case(tiny))["score"]


def test_agreement_counts_shared_neighbours() -> None:
    same = torch.nn.functional.normalize(torch.randn(9, 4), dim=-1)
    assert _embeddings.agreement(same, same) == 1
    plane = torch.eye(4)  # all as far from each other: only the order of places decides
    assert 0 <= _embeddings.agreement(same[:4], plane, nearest=1) <= 1


def test_a_smaller_dense_model_is_the_first_layers_and_counts_them_alone(tiny: Path) -> None:
    whole, half = case(tiny, "dense"), case(tiny, "dense", depth=0.5)
    original = Bert.load(tiny)
    values, all_of_it = scored(half), scored(whole)
    shorter = Bert.load(tiny)
    shorter.encoder["layer"] = shorter.encoder["layer"][: len(original.encoder["layer"]) // 2]
    ids, mask = Bert.tokens(tiny, _reading.drawn(_texts.held_out(), 0))
    expected, _ = original.judge(shorter, ids, mask)
    assert values["score"] == pytest.approx(expected)
    assert values["score"] < all_of_it["score"]
    assert values["model_parameters"] < all_of_it["model_parameters"]
    planned = _planning.planned(half, Cpu(0), {})
    assert planned.density == pytest.approx(0.5)


def test_depth_is_for_dense_models_of_known_blocks(tiny: Path) -> None:
    mistakes: list[dict[str, Any]] = [{"name": "csr"}, {"name": "dense", "heal": 1}]
    for options in mistakes:
        with pytest.raises(SuiteError, match="depth"):
            Compress().check(case(tiny, depth=0.5, **options))


def test_cost_is_that_of_all_layers(tiny: Path) -> None:
    one = case(tiny)
    described = plugins.load("formats", "low_rank", Format).from_knobs(16, 16, density=0.5)
    actual = Compress().cost(one, described)
    assert actual is not None
    layer = 4 * 4 * (16 + 16) + 2 * 5 * (16 + 32)  # ranks 4 and 5 at density one half
    assert actual.parameters == 2 * layer


@pytest.fixture
def plan(tiny: Path, tmp_path: Path) -> Callable[[str, str], Path]:
    """A function that writes a plan: every other layer in low rank, projected in that way."""

    def write(weighting: str, text: str) -> Path:
        linears = Bert.load(tiny).linears()
        document = {
            "model": str(tiny), "weighting": weighting, "text": text,
            "shapes": {n: [each.out_features, each.in_features] for n, each in linears.items()},
            "layers": {n: {"name": "low_rank", "rank": 3} for n in list(linears)[::2]},
        }  # fmt: skip
        path = tmp_path / "plan.json"
        path.write_text(json.dumps(document))
        return path

    return write


@pytest.mark.parametrize("text", ["sentences", "prose"])
@pytest.mark.parametrize("weighting", ["activations", "best"])
def test_the_layers_of_a_plan_are_projected_as_the_plan_says(
    tiny: Path, plan: Callable[[str, str], Path], weighting: str, text: str
) -> None:
    path = plan(weighting, text)
    original = Bert.load(tiny)
    lines = _reading.drawn(_texts.calibration(text), 0)
    inputs = _distill.activations(original, *Bert.tokens(tiny, lines))
    chosen = [each for each in _convert.planned(original, layer_plan(path).entries())
              if each.described]  # fmt: skip
    student = _convert.swapped(original, {
        each.name: _convert.projected(each, inputs[each.name], weighting) for each in chosen
    })  # fmt: skip
    assert isinstance(student, Bert)
    ids, mask = Bert.tokens(tiny, _reading.drawn(_texts.held_out(), 0))
    with torch.no_grad():
        expected, _ = original.judge(student, ids, mask)
    for own in ("none", "activations"):
        actual = scored(case(tiny, "dense", plan=str(path), weighting=own))
        assert actual["score"] == pytest.approx(expected, abs=1e-6)


def test_the_density_of_a_plan_is_that_of_its_layers(
    tiny: Path, plan: Callable[[str, str], Path]
) -> None:
    planned = _planning.planned(case(tiny, "dense", plan=str(plan("best", "prose"))), Cpu(0), {})
    linears = list(Bert.load(tiny).linears().values())
    dense = [each.out_features * each.in_features for each in linears]
    low = sum(3 * (each.out_features + each.in_features) for each in linears[::2])
    assert planned.cost is not None
    assert planned.cost.parameters == low + sum(dense[1::2])
    assert planned.density == pytest.approx((low + sum(dense[1::2])) / sum(dense))


def test_what_cannot_be_read_is_unsupported_with_the_reason(tiny: Path, tmp_path: Path) -> None:
    assert "holds no config.json" in str(unsupported(case(tmp_path)))
    folder = shutil.copytree(tiny, tmp_path / "model")
    (folder / "model.safetensors").write_text("{}")
    assert "holds no BERT that can be read" in str(unsupported(case(folder)))
    small = shutil.copytree(tiny, tmp_path / "small")
    (small / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": 99}))
    assert "the model has 99" in str(unsupported(case(small)))
    with pytest.raises(UnknownNameError, match="weighting"):
        Compress().check(case(tiny, weighting="activation"))


@pytest.mark.parametrize("side", [16, 64])
def test_a_layer_that_cannot_have_the_density_is_named(tiny: Path, side: int) -> None:
    def plan(**options: Any) -> PlanReply:
        one = scored_case("compress", "low_rank", side, 0.07, model=str(tiny), **options)
        return Worker(Cpu(0)).plan(PlanRequest(cases=[one]))

    (planned,) = plan(seeds=2).planned
    words = "low_rank cannot reach density 0.07; rank 1 has density 0.125."
    assert planned.unsupported == ("" if side == 16 else "In a layer of 16×16, ") + words
    assert (planned.density, planned.cost, planned.seeds) == (None, None, 2)
    (mistake,) = plan(weighting="activation").mistakes
    assert "did you mean 'activations'?" in mistake


@pytest.mark.parametrize("wrong", ["absent", "narrow"])
def test_a_weight_that_is_not_there_is_never_made_up(
    tiny: Path, tmp_path: Path, wrong: str
) -> None:
    from safetensors.torch import load_file, save_file

    folder, name = shutil.copytree(tiny, tmp_path / "model"), "encoder.layer.1.output.dense.bias"
    weights = load_file(folder / "model.safetensors")
    value = weights.pop(f"bert.{name}")
    if wrong == "narrow":
        weights[name] = value[1:].clone()
    save_file(weights, folder / "model.safetensors")
    assert f"has no {name} of shape [16]" in str(unsupported(case(folder)))


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["mean"]}, "mean"),
        ({"embedding_dimension": 16}, "mean"),
    ],
)
def test_an_embedding_is_pooled_as_the_folder_says(
    tiny: Path, tmp_path: Path, told: dict[str, Any], found: str
) -> None:
    folder = pooling(tiny, tmp_path, told)
    ids, mask = Bert.tokens(folder, _texts.held_out()[:2])
    last = Bert.load(folder).states(ids, mask)[-1]
    one = last[1, 0] if found == "cls" else last[1, mask[1]].mean(0)
    embedding = Bert.load(folder)(ids, mask)[1]
    torch.testing.assert_close(embedding, torch.nn.functional.normalize(one, dim=-1))
    assert scored(case(folder, "dense", heal=1))["score"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    "told",
    [
        {"pooling_mode": "lasttoken"},
        {"pooling_mode_max_tokens": True},
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
        {"pooling_mode": {}},
    ],
)
def test_another_pooling_is_not_taken_for_the_mean(
    tiny: Path, tmp_path: Path, told: dict[str, Any]
) -> None:
    assert "mean and cls are known" in str(unsupported(case(pooling(tiny, tmp_path, told))))


def pooling(tiny: Path, tmp_path: Path, told: dict[str, Any]) -> Path:
    folder = shutil.copytree(tiny, tmp_path / "model")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(told))
    return folder


def test_what_cannot_be_trained_is_not_healed(tiny: Path) -> None:
    assert unsupported(case(tiny, heal=5)) is None
    kind = plugins.load("formats", "semi_structured", Format)
    described = kind.from_knobs(16, 16)
    assert Compress().unsupported(case(tiny, heal=5), described, Cpu(0))
