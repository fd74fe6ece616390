"""``hwbench shapes``: the linear layers of published models, from their configurations."""

from __future__ import annotations

import itertools
import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hwbench import suite
from hwbench.errors import SuiteError, UsageError
from hwbench.records import Case
from hwbench.studies import _architectures, shapes

CONFIGS = Path(__file__).with_name("configs")
NAMES = sorted(path.stem for path in CONFIGS.glob("*.json"))

# Parameters of the whole model as its publisher states them, and how far below it the linear layers
# and the embeddings may be: normalisation, biases, positions and convolutions are not counted.
PUBLISHED = {
    "llama_3_1_8b": (8_030_261_248, 1e-4),
    "llama_3_1_70b": (70_553_706_496, 1e-4),
    "qwen3_0_6b": (596_049_920, 2e-4),
    "qwen3_8b": (8_190_735_360, 1e-4),
    "qwen3_32b": (32_762_123_264, 1e-4),
    "qwen3_30b_a3b": (30_532_122_624, 1e-4),
    "mistral_7b": (7_248_023_552, 1e-4),
    "smollm2_135m": (134_515_008, 4e-4),
    "gpt_oss_20b": (20_914_757_184, 3e-3),
    "deepseek_v3": (671e9, 2e-3),
    "vit_b_16": (86_567_656, 0.03),
    "whisper_large_v3": (1_543_490_560, 0.02),
    "dit_xl_2": (675e6, 0.02),
}


def told(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))


def found(name: str) -> list[_architectures.Layer]:
    return _architectures.layers(told(name))


def expert_factor(name: str, layer: _architectures.Layer) -> float:
    """How many of such layers stand in the model for each that a token passes through."""
    config = told(name)
    used = config.get("num_experts_per_tok", 1)
    held = config.get("num_experts") or config.get("num_local_experts")
    held = held or config.get("n_routed_experts") or used
    if not any(part.startswith("experts.") for part in layer.names):
        return 1.0
    shared = config.get("n_shared_experts", 0)
    return (held + shared) / (used + shared)


def parameters(name: str) -> float:
    """Of the linear layers as stored, and of the embeddings."""
    config = {**told(name), **told(name).get("text_config", {})}
    total = 0.0
    for layer in found(name):
        density = shapes.shipped_density(layer) if layer.shipped else 1.0
        each = layer.out_features * layer.in_features * density
        total += each * layer.count * expert_factor(name, layer)
    if "vocab_size" in config and not config.get("tie_word_embeddings", config.get("d_model")):
        total += config["vocab_size"] * config["hidden_size"]
    return total


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_says_where_it_is_published(name):
    assert told(name)["source"].startswith("https://huggingface.co/")


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_layers_add_up_to_the_published_size(name):
    size, below = PUBLISHED[name]
    assert (1 - below) * size <= parameters(name) <= 1.001 * size


def test_every_configuration_has_its_suite_and_every_suite_its_configuration():
    assert suite.model_names() == [f"models/{name}" for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_suite_is_what_shapes_derives(name):
    derived = shapes.of(str(CONFIGS / f"{name}.json"))
    assert derived == (suite.folder() / "models" / f"{name}.toml").read_text(encoding="utf-8")
    assert derived == shapes.of(name) == shapes.of(f"models/{name}")


@pytest.mark.parametrize("name", suite.model_names())
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_model_s_suite_has_each_layer_with_its_count(name, device):
    built = suite.build(suite.read(name), device)
    request = {(c.out_features, c.in_features, c.count, c.tokens) for c in built.cases}
    for layer in found(built.name):
        for tokens in layer.tokens.values():
            for each in tokens:
                assert (layer.out_features, layer.in_features, layer.count, each) in request
    steps = {case.tokens for case in built.cases if case.direction == "step"}
    assert steps == {t for layer in found(built.name) for t in layer.tokens["train"]}


def test_known_layers_of_deepseek_are_asked_for_as_shipped():
    cases = suite.build(suite.read("models/deepseek_v4_flash"), "cpu").cases
    labels = {c.label for c in cases if (c.out_features, c.in_features) == (4096, 32768)}
    assert "block_dense blocks=8 rank=1024" in labels
    assert {"dense", "low_rank density=0.5", "monarch density=0.5"} <= labels
    v3 = {(x.out_features, x.in_features): x for x in found("deepseek_v3")}
    assert v3[24576, 7168].shipped == {"name": "low_rank", "rank": 1536}
    assert shapes.shipped_density(v3[24576, 7168]) == pytest.approx(0.277, abs=5e-4)
    assert shapes.shipped_density(v3[32768, 7168]) == pytest.approx(0.087, abs=5e-4)


@pytest.mark.parametrize("name", ["deepseek_v3", "deepseek_v4_flash"])
def test_what_is_at_equal_bytes_is_not_above_what_is_shipped(name):
    from hwbench.workloads._base import layer_format

    for layer in found(name):
        if layer.shipped is None:
            continue
        cases = [
            case
            for case in suite.build(suite.read(f"models/{name}"), "cpu").cases
            if (case.out_features, case.in_features) == (layer.out_features, layer.in_features)
            and case.tokens == 1
        ]
        own = layer_format(
            next(c for c in cases if "rank" in c.knobs), layer.out_features, layer.in_features
        )
        assert own.density() == pytest.approx(shapes.shipped_density(layer))
        for case in cases:
            if case.format not in ("dense", own.name()):
                rival = layer_format(case, layer.out_features, layer.in_features)
                assert 0.8 * own.stored_bytes(4) < rival.stored_bytes(4) <= own.stored_bytes(4)


# --- against transformers' own models -------------------------------------------------------------

_BY_TYPE = {told(name)["model_type"]: name for name in NAMES if "model_type" in told(name)}
_PARTS = {  # of published products, as transformers' modules have them
    "q_a_proj · q_b_proj": lambda x, r, b: [(r, x.in_features), (x.out_features, r)],
    "o_a_proj · o_b_proj": lambda x, r, b: [(b * r, x.in_features // b), (x.out_features, b * r)],
}


def _derived(name: str, config: dict[str, Any]) -> Counter[tuple[int, int]]:
    """Shapes and counts, products as their factors, without experts and what they share a shape."""
    counts: Counter[tuple[int, int]] = Counter()
    for layer in _architectures.layers(config):
        if layer.shipped and layer.names[0] in _PARTS:
            rank, blocks = layer.shipped["rank"], layer.shipped.get("blocks", 1)
            for each in _PARTS[layer.names[0]](layer, rank, blocks):
                counts[each] += layer.count
        elif layer.shipped:  # of DeepSeek-V3: positions and the low-rank part are one layer
            turned, rank = config["qk_rope_head_dim"], layer.shipped["rank"]
            counts[rank + turned, layer.in_features] += layer.count
            counts[layer.out_features, rank] += layer.count
        elif "kv_a_proj, the part of positions" not in layer.names and "router" not in layer.names:
            counts[layer.out_features, layer.in_features] += layer.count
    used = config.get("num_experts_per_tok", 0)
    for layer in _architectures.layers(config):
        if any(part.startswith("experts.") for part in layer.names):
            routed = sum(part.startswith("experts.") for part in layer.names) * used
            shared = sum(part.startswith("shared_experts.") for part in layer.names)
            gone = layer.count * routed // (routed + shared)
            counts[layer.out_features, layer.in_features] -= gone
    return +counts


@pytest.mark.parametrize("kind", sorted(_BY_TYPE))
def test_the_shapes_are_those_of_the_modules_that_transformers_builds(kind):
    transformers = pytest.importorskip("transformers")
    import torch
    from torch import nn

    config = {key: value for key, value in told(_BY_TYPE[kind]).items() if key != "source"}
    if kind == "gemma3":
        given = config["text_config"]
        config = {**given, "model_type": "gemma3_text"}
    depths = [k for k in config if k in ("num_hidden_layers", "encoder_layers", "decoder_layers")]
    config |= dict.fromkeys(depths, 4)
    kwargs = {k: v for k, v in config.items() if k != "model_type"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = transformers.AutoConfig.for_model(config["model_type"], **kwargs)
        automatic = {
            "vit": "AutoModel", "bert": "AutoModel", "whisper": "AutoModelForSpeechSeq2Seq",
        }.get(kind, "AutoModelForCausalLM")  # fmt: skip
        with torch.device("meta"):
            model = getattr(transformers, automatic).from_config(result)
    left_out = ("compressor", "indexer", "pooler", "router", "gate.weight")
    built = Counter(
        tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not any(part in name for part in left_out)
    )
    assert built == _derived(_BY_TYPE[kind], config)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "lama"}, "did you mean 'llama'"),
        ({"model_type": "xyzzy"}, "Unknown architecture"),
        ({}, "names no model_type"),
        ({"model_type": 3}, "names no model_type"),
        ({"model_type": "llama"}, "does not say hidden_size"),
        ({"model_type": "gemma3"}, "holds no text_config"),
        ({"model_type": "llama", "hidden_size": -1}, "hidden_size in .* must be a whole number"),
        ({"model_type": "llama", "hidden_size": "8"}, "hidden_size in .* must be a whole number"),
        ({"model_type": "llama", "hidden_size": True}, "hidden_size in .* must be a whole number"),
    ],
)
def test_a_configuration_that_says_too_little_is_one_sentence(config, words, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=words) as caught:
        shapes.of(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", NAMES)
def test_every_value_that_is_asked_for_is_named_when_it_is_wrong(name):
    """Each whole number of a configuration either plays no part or is refused when it is a word."""
    whole = [key for key, value in told(name).items() if isinstance(value, int)]
    recorded = {}
    for key in whole:
        try:
            _architectures.layers({**told(name), key: "many"})
        except UsageError as error:
            recorded[key] = str(error)
    assert recorded or "text_config" in told(name)
    assert all(key in sentence for key, sentence in recorded.items())


@pytest.mark.parametrize("model", ["./nowhere", "nowhere.json", "/nowhere/config.json"])
def test_a_path_that_is_not_there_is_said(model):
    with pytest.raises(UsageError, match="There is no file or folder"):
        shapes.of(model)


def test_no_json_and_an_unknown_regime_are_said(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match="is no JSON"):
        shapes.of(str(tmp_path / "config.json"))
    with pytest.raises(UsageError, match="did you mean 'decode'"):
        shapes.of(str(CONFIGS / "minilm_l6.json"), ["decod"])
    with pytest.raises(UsageError, match="has one of the regimes"):
        shapes.of(str(CONFIGS / "minilm_l6.json"), ["decode"])


# --- count ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, -1, 1.5, "two", True])
def test_a_count_is_a_whole_number(count):
    document = suite.read("models/minilm_l6")
    document["cases"][0]["count"] = count
    with pytest.raises(SuiteError, match="count must be a whole number"):
        suite.build(document, "cpu")


def test_a_count_is_no_part_of_the_question_and_is_left_out_where_it_is_one():
    document = suite.read("models/minilm_l6")
    case = suite.build(document, "cpu").cases[0]
    assert case.count > 1
    once = msgspec.structs.replace(case, count=1)
    assert (once.id, once.group) == (case.id, case.group)
    assert b"count" not in msgspec.json.encode(once)
    assert msgspec.json.decode(msgspec.json.encode(case), type=Case) == case


def test_another_shape_has_no_count():
    request = suite.override(suite.read("models/minilm_l6"), shape=[[8, 8]])
    assert {case.count for case in suite.build(request, "cpu").cases} == {1}


# --- the command line -----------------------------------------------------------------------------


def test_the_command_prints_a_suite_or_writes_it(hwbench, tmp_path):
    config = str(CONFIGS / "smollm2_135m.json")
    code, outcome, error = hwbench("shapes", config, "--regime", "decode")
    assert (code, error) == (0, "")
    (tmp_path / "mine.toml").write_text(outcome, encoding="utf-8")
    built = suite.build(suite.read(str(tmp_path / "mine.toml")), "cpu")
    assert {(case.tokens, case.direction) for case in built.cases} == {
        (1, "forward"), (8, "forward"), (64, "forward"),
    }  # fmt: skip
    code, outcome, _ = hwbench("shapes", config, "--out", str(tmp_path / "whole.toml"))
    assert code == 0
    assert "hwbench run --suite" in outcome
    assert (tmp_path / "whole.toml").read_text(encoding="utf-8") == shapes.of("smollm2_135m")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no_such_model_anywhere"], "is no config.json"),
        (["./nowhere"], "There is no file or folder"),
        (["llama_3_1_8b", "--regime", "decode"], "that hwbench ships with all regimes"),
        (["llama_3_1_8b", "--out", "/dev/null/folder.toml"], "Cannot write"),
    ],
)
def test_what_the_command_cannot_do_is_one_sentence(hwbench, monkeypatch, arguments, words):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, _, error = hwbench("shapes", *arguments)
    assert code == 2
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", NAMES)
def test_whatever_a_value_is_the_layers_have_sides_or_a_sentence_says_why(name):
    """Parts that a model may do without, such as shared experts, are zero or empty."""
    given = told(name)
    given |= given.get("text_config", {})
    given |= {"text_config": dict(given)} if "text_config" in given else {}
    refused = []
    keys = [key for key, each in given.items() if isinstance(each, int | list)]
    for key, value in itertools.product(keys, [0, 3, {}, {"a": 1}, [1.5], ["all"], [True], [0]]):
        changed = {**given, key: value}
        changed |= {"text_config": changed} if "text_config" in given else {}
        try:
            found = _architectures.layers(changed)
        except UsageError as error:
            refused.append((key, str(error)))
        else:
            assert all(min(x.out_features, x.in_features, x.count) > 0 for x in found)
    assert refused
    assert all(key in sentence for key, sentence in refused)


@pytest.mark.parametrize("key", ["first_k_dense_replace", "n_shared_experts", "mlp_only_layers"])
def test_a_model_may_do_without_a_part(key):
    name = "qwen3_30b_a3b" if key == "mlp_only_layers" else "deepseek_v3"
    without = _architectures.layers({**told(name), key: [] if key == "mlp_only_layers" else 0})
    assert sum(x.count for x in without) > 0
