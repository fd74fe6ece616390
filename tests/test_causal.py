"""Causal models: perplexity against transformers' own loss, compression of tiny ones, bad input."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _compress import VOCABULARY, write
from _scored import described, scored, unsupported
from _synthetic import scored_case

from hwbench import checkpoints as models
from hwbench import load_run, summary
from hwbench import suite as suites
from hwbench.cli import _shared
from hwbench.errors import MissingPartError, SuiteError, UsageError
from hwbench.records import Case
from hwbench.store import read_run
from hwbench.workloads import _texts
from hwbench.workloads._causal import Causal
from hwbench.workloads._likelihood import perplexity
from hwbench.workloads.compress import Compress

transformers = pytest.importorskip("transformers")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SIDE = 32
SIZES = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of two layers that has seen the calibration text for a few seconds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            n_embd=SIDE, n_layer=2, n_head=2, n_positions=64,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **SIZES,
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
        folder = write(tmp_path_factory.mktemp("gpt2"), model)
        ids, mask = Causal.tokens(folder, _texts.calibration())
        labels = ids.masked_fill(~mask, -100)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(40):
            loss = model(input_ids=ids, attention_mask=mask.long(), labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of Llama's kind: linear layers without bias, fewer keys than queries."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            hidden_size=SIDE, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=64, **SIZES,
        )  # fmt: skip
        return write(tmp_path_factory.mktemp("llama"), transformers.LlamaForCausalLM(config))


def case(folder: Path | str, name: str = "low_rank", density: float = 0.5, **options: Any) -> Case:
    return scored_case("compress", name, SIDE, density, model=str(folder), **options)


@pytest.mark.heavy
@pytest.mark.parametrize("which", ["gpt2", "llama"])
def test_perplexity_is_that_of_transformers_own_loss(
    which: str, request: pytest.FixtureRequest
) -> None:
    folder, texts = request.getfixturevalue(which), _texts.held_out()[:8]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    total, count = 0.0, 0
    for text in texts:  # one at a time, so that nothing is padded
        ids, _ = Causal.tokens(folder, [text])
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    ids, mask = Causal.tokens(folder, texts)
    assert not mask.all()
    actual = perplexity(Causal.load(folder)(ids, mask), ids, mask)
    assert actual == pytest.approx(math.exp(total / count), rel=1e-5)


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large() -> None:
    ids, mask = torch.randint(50, (3, 7)), torch.ones(3, 7, dtype=torch.bool)
    assert perplexity(torch.zeros(3, 7, 50), ids, mask) == pytest.approx(50)


def test_dense_keeps_everything(gpt2: Path, llama: Path) -> None:
    for folder in (gpt2, llama):
        values = scored(case(folder, "dense"))
        assert values["score"] == pytest.approx(values["original_perplexity"], rel=1e-5)
        assert values["perplexity_ratio"] == pytest.approx(1, rel=1e-5)
    assert scored(case(gpt2, "dense"))["score"] < VOCABULARY / 2  # it has learned something


@pytest.mark.heavy
def test_compression_costs_perplexity_and_healing_brings_some_back(gpt2: Path) -> None:
    rough, fine = (scored(case(gpt2, density=density)) for density in (0.15, 0.8))
    assert rough["perplexity_ratio"] > 1.1 * fine["perplexity_ratio"]
    assert rough["score"] == pytest.approx(rough["original_perplexity"] * rough["perplexity_ratio"])
    healed = scored(case(gpt2, density=0.15, heal=60))
    assert healed["unhealed_perplexity"] == pytest.approx(rough["score"])
    assert healed["score"] < 0.95 * healed["unhealed_perplexity"]


def test_activations_weigh_the_columns(gpt2: Path) -> None:
    assert scored(case(gpt2, weighting="activations"))["score"] != scored(case(gpt2))["score"]


def test_every_linear_layer_but_the_head_is_replaced(gpt2: Path, llama: Path) -> None:
    for folder, each in ((gpt2, 4), (llama, 7)):
        names = list(Causal.load(folder).linears())
        assert len(names) == each * (2 if folder == gpt2 else 1)
        assert not [name for name in names if "lm_head" in name]
    attention, output, up, down = (96, 32), (32, 32), (128, 32), (32, 128)
    assert Causal.shapes(gpt2) == [attention, output, up, down] * 2
    actual = Compress().cost(case(gpt2, "dense"), described(case(gpt2, "dense")))
    assert actual is not None
    assert actual.parameters == 2 * 12 * SIDE * SIDE


def test_the_command_line_stores_the_model_and_its_score(
    hwbench: Callable[..., tuple[int, str, str]],
    gpt2: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(gpt2.parent)
    arguments = ["--suite", "compress", "--model", gpt2.name, "--filter", "weighting=none"]
    arguments += ["--device", "fake", "--format", "low_rank", "--density", "0.15"]
    code, _, error = hwbench("run", *arguments, "--out", str(tmp_path))
    assert code == 0, error
    (path,) = tmp_path.glob("*.jsonl")
    assert {p.case.options["model"] for p in read_run(path).planned.values()} == {str(gpt2)}
    rows = summary(path).dropna(subset="score_name").set_index("format")  # depth is for others
    assert set(rows["score_name"]) == {"perplexity"}
    assert set(rows["better"]) == {"lower"}
    assert set(rows["out_features"]) == {SIDE}
    assert rows.loc["dense", "score"] < rows.loc["low_rank", "score"]
    assert load_run(path).dropna(subset="score")["perplexity_ratio"].notna().all()


def test_a_name_is_read_from_the_cache_at_its_commit(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    home = tmp_path / "models--somebody--tiny"
    shutil.copytree(llama, home / "snapshots" / COMMIT)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert models.fetched("somebody/tiny") == f"somebody/tiny@{COMMIT}"
    assert models.folder(f"somebody/tiny@{COMMIT}") == home / "snapshots" / COMMIT
    assert unsupported(case(f"somebody/tiny@{COMMIT}")) is None
    with pytest.raises(UsageError, match="'somebody/other' is no folder, and as a name it cannot"):
        models.fetched("somebody/other")
    assert "not in the Hub's cache" in str(unsupported(case("somebody/other")))
    with pytest.raises(UsageError, match="'a/b/c' is no folder"):
        models.fetched("a/b/c")


def test_a_folder_that_is_no_model_says_what_it_lacks(gpt2: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no folder"):
        models.fetched(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"holds no config\.json"):
        models.fetched(str(tmp_path))
    for text, words in (("{", "is no JSON"), ("[]", "is no JSON object")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UsageError, match=words):
            models.fetched(str(tmp_path))
    shutil.copy(gpt2 / "config.json", tmp_path)
    with pytest.raises(UsageError, match=r"holds no model\.safetensors"):
        models.fetched(str(tmp_path))
    shutil.copy(gpt2 / "model.safetensors", tmp_path)
    with pytest.raises(UsageError, match=r"holds no tokenizer\.json"):
        models.fetched(str(tmp_path))
    shutil.copy(gpt2 / "tokenizer.json", tmp_path)
    assert models.fetched(str(tmp_path)) == str(tmp_path.resolve())


def test_a_model_that_transformers_does_not_know_is_unsupported(gpt2: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(gpt2, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    own = {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config | own | {"model_type": "mine"}))
    (folder / "evil.py").write_text("raise SystemExit('code of a model was run')")
    assert "transformers cannot read" in str(unsupported(case(folder)))


def test_without_transformers_the_extra_is_named(
    gpt2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPartError, match=r"hwbench-torch\[huggingface\]"):
        models.fetched(str(gpt2))
    assert "transformers is not installed" in str(unsupported(case(gpt2)))
    with pytest.raises(MissingPartError, match="to look it up as a name"):
        models.fetched("somebody/tiny")


def test_a_suite_that_compresses_nothing_has_no_model(gpt2: Path) -> None:
    with pytest.raises(SuiteError, match="projection has no such case"):
        _shared.with_model(suites.read("projection"), str(gpt2))
