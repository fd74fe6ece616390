"""Encoders of types that only transformers knows: tiny random ones, compressed, healed, refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _compress import VOCABULARY, encoder, write
from _scored import described, scored, unsupported
from _synthetic import scored_case
from _tiers import sampled

from hwbench import checkpoints as models
from hwbench import summary
from hwbench.formats._base import Linear
from hwbench.records import Case
from hwbench.store import read_run
from hwbench.workloads import _distill, _reading, _texts, _trained
from hwbench.workloads._bert import Bert
from hwbench.workloads._causal import Causal
from hwbench.workloads._encoder import Encoder
from hwbench.workloads.compress import Compress

transformers = pytest.importorskip("transformers")

SIDE, INNER, PLACES = 32, 48, 64
USUAL = {
    "vocab_size": VOCABULARY, "hidden_size": SIDE, "intermediate_size": INNER,
    "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": PLACES,
}  # fmt: skip
SHIFTED = {**USUAL, "max_position_embeddings": PLACES + 2, "pad_token_id": 1}  # places from 2 on
TYPES: dict[str, tuple[str, dict[str, Any]]] = {
    "distilbert": (
        "DistilBert",
        {
            "vocab_size": VOCABULARY, "dim": SIDE, "hidden_dim": INNER, "n_layers": 2,
            "n_heads": 2, "max_position_embeddings": PLACES,
        },
    ),
    "roberta": ("Roberta", SHIFTED),
    "xlm-roberta": ("XLMRoberta", SHIFTED),
    "mpnet": ("MPNet", SHIFTED),
    "electra": ("Electra", {**USUAL, "embedding_size": 16}),
    "albert": ("Albert", {**USUAL, "embedding_size": 16}),
    "deberta-v2": (
        "DebertaV2",
        {
            **USUAL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True, "position_buckets": 16,
        },
    ),
    "modernbert": (
        "ModernBert",
        USUAL | dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
    ),
    "nomic_bert": ("NomicBert", USUAL),
}  # fmt: skip
LAYERS = {"albert": 1 + 6, "electra": 1 + 2 * 6, "modernbert": 2 * 4, "nomic_bert": 2 * 7}
"""Where it is not six in each of two layers; the layers of albert share theirs."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A random encoder of a type, with weights large enough that they matter."""
    collected: dict[str, Path] = {}

    def build(kind: str) -> Path:
        if kind not in collected:
            name, options = TYPES[kind]
            config = getattr(transformers, f"{name}Config")(**options)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = transformers.AutoModel.from_config(config)
                for each in model.modules():
                    if isinstance(each, torch.nn.Linear | torch.nn.Embedding):
                        torch.nn.init.normal_(each.weight, std=0.3)
            folder = tmp_path_factory.mktemp("model") / kind
            collected[kind] = write(folder, model, "<s> $A </s>")
        return collected[kind]

    return build


@pytest.fixture(params=["distilbert", "roberta", "albert"])
def folder(request: pytest.FixtureRequest, built: Callable[[str], Path]) -> Path:
    return built(request.param)


def case(folder: Path | str, name: str = "low_rank", density: float = 0.5, **options: Any) -> Case:
    return scored_case("compress", name, SIDE, density, model=str(folder), **options)


def without(folder: Path, to: Path, *names: str) -> Path:
    """A copy of a model that lacks these weights."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, to)
    weights = load_file(to / "model.safetensors")
    for name in names:
        del weights[name]
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    return to


@pytest.mark.parametrize("kind", sampled(TYPES, 2))
def test_embeddings_are_those_of_the_automatic_class(
    kind: str, built: Callable[[str], Path]
) -> None:
    folder, texts = built(kind), _texts.held_out()[:6]
    assert models.kind(folder) == models.ENCODER
    assert unsupported(case(folder)) is None
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
    expected = []
    for text in texts:  # one at a time, so that nothing is padded
        ids, _ = Encoder.tokens(folder, [text])
        with torch.no_grad():
            last = model(input_ids=ids).last_hidden_state[0]
        expected.append(torch.nn.functional.normalize(last.mean(0), dim=-1))
    ids, mask = Encoder.tokens(folder, texts)
    assert not mask.all()
    actual = Encoder.load(folder)(ids, mask)
    torch.testing.assert_close(actual, torch.stack(expected), atol=1e-5, rtol=0)
    assert (actual[0] - actual[1]).norm() > 0.01  # … and they tell texts apart


@pytest.mark.heavy  # of 90 MB
def test_the_packaged_encoder_is_the_same_either_way() -> None:
    folder, texts = _trained.folder(), _texts.held_out()
    assert Encoder.unreadable(folder) is None
    own, other = (each.load(folder)(*each.tokens(folder, texts)) for each in (Bert, Encoder))
    torch.testing.assert_close(own, other, atol=1e-5, rtol=0)
    assert Encoder.shapes(folder) == Bert.shapes(folder)


@pytest.mark.parametrize("kind", TYPES)
def test_every_linear_layer_is_replaced_but_the_pooler(
    kind: str, built: Callable[[str], Path]
) -> None:
    model = Encoder.load(built(kind))
    assert len(model.linears()) == LAYERS.get(kind, 12)
    assert Encoder.shapes(built(kind)) == [
        (each.out_features, each.in_features) for each in model.linears().values()
    ]
    layer = described(case("", "low_rank"))
    ids, mask = Encoder.tokens(built(kind), _texts.calibration()[:8])
    inputs = _distill.activations(model, ids, mask)
    assert set(inputs) == set(model.linears())
    rows = {len(each) for each in inputs.values()}
    assert rows == {int(mask.sum())}

    def project(weight: torch.Tensor, activations: torch.Tensor | None) -> Linear:
        return (
            type(layer)
            .from_knobs(*weight.shape, density=0.5)
            .project(weight, activations=activations)
        )

    student = _distill.compressed(model, project, inputs)
    assert not [each for each in student.modules() if isinstance(each, torch.nn.Linear)]
    assert not torch.allclose(student(ids, mask), model(ids, mask), atol=1e-3)


def test_dense_keeps_everything_and_compression_does_not(folder: Path) -> None:
    dense = scored(case(folder, "dense"))
    assert dense["score"] == pytest.approx(1, abs=1e-6)
    assert dense["retrieval_agreement"] == 1
    assert dense["model_seconds"] > 0
    assert dense["model_parameters"] == sum(p.numel() for p in Encoder.load(folder).parameters())
    rough, fine = (scored(case(folder, "coo", density))["score"] for density in (0.3, 0.95))
    assert rough < fine < 1 - 1e-4


@pytest.mark.heavy
def test_activations_weigh_the_columns_and_healing_brings_some_back(folder: Path) -> None:
    plain, weighted = scored(case(folder)), scored(case(folder, weighting="activations"))
    assert plain["score"] != weighted["score"]
    healed = scored(case(folder, heal=40))
    assert healed["unhealed_score"] == pytest.approx(plain["score"])
    assert healed["score"] > healed["unhealed_score"] + 0.01


def test_cost_is_that_of_all_layers(built: Callable[[str], Path]) -> None:
    one = case(built("distilbert"), "dense")
    actual = Compress().cost(one, described(one))
    assert actual is not None
    assert actual.parameters == 2 * (4 * SIDE * SIDE + 2 * SIDE * INNER)


def test_a_text_is_cut_to_the_places_there_are(built: Callable[[str], Path]) -> None:
    text = " ".join(_texts.held_out())
    for kind in ("distilbert", "roberta", "mpnet"):
        ids, mask = Encoder.tokens(built(kind), [text])
        assert ids.shape == (1, PLACES)
        assert (int(ids[0, 0]), int(ids[0, -1])) == (0, 2)  # <s> and </s> stay
        assert Encoder.load(built(kind))(ids, mask).isfinite().all()


def test_the_first_token_stands_for_the_text_where_the_folder_says_so(
    built: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(built("roberta"), tmp_path / "model")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    ids, mask = Encoder.tokens(folder, _texts.held_out()[:2])
    model = Encoder.load(folder)
    first = torch.nn.functional.normalize(model.states(ids, mask)[-1][:, 0], dim=-1)
    torch.testing.assert_close(model(ids, mask), first)


def test_a_bert_that_is_not_as_published_is_read_by_transformers(
    built: Callable[[str], Path], tmp_path: Path
) -> None:
    config = transformers.BertConfig(**USUAL, hidden_act="relu")
    folder = write(tmp_path / "relu", transformers.BertModel(config))
    assert models.kind(folder) == models.ENCODER
    assert scored(case(folder, "dense"))["score"] == pytest.approx(1, abs=1e-6)
    result = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(result | {"hidden_act": "gelu"}))
    assert models.kind(folder) == models.BERT


@pytest.mark.parametrize("kind", [pytest.param("roberta", marks=pytest.mark.heavy), "albert"])
def test_a_pooler_may_be_absent_and_nothing_else(
    kind: str, built: Callable[[str], Path], tmp_path: Path
) -> None:
    from safetensors import safe_open

    with safe_open(built(kind) / "model.safetensors", framework="pt") as file:
        names = sorted(file.keys())
    poolers = [name for name in names if name.startswith("pooler.")]
    assert len(poolers) == 2
    folder = without(built(kind), tmp_path / "no-pooler", *poolers)
    assert unsupported(case(folder)) is None
    without_it, with_it = (scored(case(each)) for each in (folder, built(kind)))
    for quantity in ("score", "retrieval_agreement", "model_parameters", "model_bytes"):
        assert without_it[quantity] == with_it[quantity]
    for number, name in enumerate(names):
        if name not in poolers:
            lacking = without(built(kind), tmp_path / str(number), name)
            assert f"The weights in {lacking} lack {name}." in str(unsupported(case(lacking)))


def test_a_head_may_be_absent_only_where_it_is_tied(tmp_path: Path) -> None:
    options = {"n_embd": SIDE, "n_layer": 1, "n_head": 2, "n_positions": PLACES}
    for tied in (True, False):
        config = transformers.GPT2Config(
            vocab_size=VOCABULARY, tie_word_embeddings=tied, bos_token_id=0, eos_token_id=0,
            **options,
        )  # fmt: skip
        whole = write(tmp_path / f"tied-{tied}", transformers.GPT2LMHeadModel(config))
        assert unsupported(case(whole)) is None
        if not tied:
            lacking = without(whole, tmp_path / "no-head", "lm_head.weight")
            assert "lack lm_head.weight" in str(unsupported(case(lacking)))
            with pytest.raises(models.UsageError, match=r"lack lm_head\.weight"):
                Causal.load(lacking)


def told(folder: Path, to: Path, **changes: Any) -> Path:
    """A copy of a model whose config.json says something else."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | changes))
    return to


def test_what_cannot_be_read_is_refused_with_the_reason(
    built: Callable[[str], Path], tmp_path: Path
) -> None:
    roberta = built("roberta")
    for name, changes, words in (
        ("wide", {"intermediate_size": 64}, "in another shape, and 5 more are like that"),
        ("small", {"vocab_size": 99}, "the model has 99"),
        ("unknown", {"model_type": "mine"}, "transformers cannot read"),
        ("wrong", {"num_attention_heads": 5}, "transformers cannot read"),
        ("quantised", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised"),
        ("other", {"model_type": "distilbert"}, "The weights in"),
    ):
        folder = told(roberta, tmp_path / name, **changes)
        assert words in str(unsupported(case(folder)))
    broken = shutil.copytree(roberta, tmp_path / "tokenizer")
    (broken / "tokenizer.json").write_text("{}")
    assert "transformers cannot read" in str(unsupported(case(broken)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_attention_heads": 5}, "cuts a hidden_size of 16 into 5 heads"),
        ({"num_attention_heads": 0}, "gives num_attention_heads 0, where 1 is the least"),
        ({"num_hidden_layers": 0}, "gives num_hidden_layers 0, where 1 is the least"),
        ({"num_hidden_layers": -1}, "gives num_hidden_layers -1"),
        ({"type_vocab_size": 0}, "gives type_vocab_size 0"),
        ({"max_position_embeddings": 0}, "gives max_position_embeddings 0"),
        ({"num_attention_heads": None}, "holds no BERT that can be read"),
    ],
)
def test_a_bert_of_sizes_that_none_can_have_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    folder = encoder(tmp_path)
    assert _reading.unreadable(str(folder)) is None
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    assert words in str(_reading.unreadable(str(folder)))


@pytest.mark.parametrize("name", ["T5", "Bart"])
def test_an_encoder_decoder_is_refused(tmp_path: Path, name: str) -> None:
    sizes: dict[str, dict[str, Any]] = {
        "T5": {"d_kv": 16, "d_ff": INNER, "num_layers": 1, "num_heads": 2},
        "Bart": {"encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": PLACES},
    }
    config = getattr(transformers, f"{name}Config")(
        vocab_size=VOCABULARY, d_model=SIDE, **sizes[name]
    )
    folder = write(tmp_path, transformers.AutoModelForSeq2SeqLM.from_config(config))
    assert f"an encoder-decoder of type '{name.lower()}'" in str(unsupported(case(folder)))


def test_the_command_line_scores_an_encoder_and_refuses_before_it_measures(
    hwbench: Callable[..., tuple[int, str, str]],
    built: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["run", "--suite", "compress", "--device", "fake", "--filter", "weighting=none"]
    arguments += ["--format", "low_rank", "--density", "0.15", "--out", str(tmp_path / "runs")]
    lacking = without(built("mpnet"), tmp_path / "lacking", "encoder.layer.0.attention.attn.q.bias")
    capsys.readouterr()  # what transformers printed while the model was written
    code, _, error = hwbench(*arguments, "--model", str(lacking))
    assert (code, error.count("\n")) == (2, 1)
    assert "lack encoder.layer.0.attention.attn.q.bias." in error
    assert not (tmp_path / "runs").exists()
    code, _, error = hwbench(*arguments, "--model", str(built("mpnet")))
    assert code == 0, error
    (path,) = (tmp_path / "runs").glob("*.jsonl")
    assert {p.case.options["model"] for p in read_run(path).planned.values()} == {
        str(built("mpnet"))
    }
    rows = summary(path).dropna(subset="score_name").set_index("format")  # depth is for others
    assert set(rows["score_name"]) == {"embedding_cosine"}
    assert rows.loc["dense", "score"] == pytest.approx(1, abs=1e-6)
    assert rows.loc["low_rank", "score"] < 0.99
