"""The language model of the size of GPT-2 small: its form, its data, and what it learns."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _formats import normal, random_layer
from _scored import described, scored, trainable, unsupported
from _synthetic import scored_case
from _tiers import sampled
from msgspec.structs import replace
from torch import nn

import hwbench
from hwbench import plugins
from hwbench import suite as suites
from hwbench.analysis.frames import summary_rows
from hwbench.cli._shared import with_data
from hwbench.devices.cpu import Cpu
from hwbench.errors import SuiteError
from hwbench.formats import _quantize
from hwbench.formats._base import Linear
from hwbench.formats.quantized_low_rank import QuantizedLowRank
from hwbench.protocol import PlanRequest
from hwbench.records import Case
from hwbench.report._scores import named
from hwbench.store import read_run
from hwbench.worker import Worker
from hwbench.workloads import _language
from hwbench.workloads._tasks import TASKS, Settings
from hwbench.workloads.training import Training, _scale

SMALL = {"context": 16, "depth": 1, "heads": 2}


def story(sentences: int, seed: int) -> str:
    """Sentences of four words from small lists: much of each letter follows from those before."""
    source = np.random.default_rng(seed)
    lists = [["the", "a"], ["cat", "dog", "bird"], ["sees", "hears"], ["rain.", "snow.", "wind."]]
    return " ".join(str(source.choice(words)) for _ in range(sentences) for words in lists) + "\n"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "train.txt").write_text(story(500, 0))
    (tmp_path / "val.txt").write_text(story(60, 1))
    return tmp_path


def tokens(folder: Path, train: list[int], validation: list[int]) -> Path:
    """Files as nanoGPT's prepare.py writes them."""
    for name, ids in (("train.bin", train), ("val.bin", validation)):
        np.array(ids, dtype="<u2").tofile(folder / name)
    return folder


def case(name: str = "dense", width: int = 32, **options: Any) -> Case:
    return scored_case("training", name, width, **{"task": "gpt2", **SMALL, **options})


def reason(**options: Any) -> str:
    return str(unsupported(case(**options)))


def test_the_score_is_the_loss() -> None:
    assert Training().quantity(case()).name == "validation_loss"


def unigram_entropy(text: bytes) -> float:
    """Nats a byte of the best guess that does not look at what came before."""
    return -sum(n / len(text) * math.log(n / len(text)) for n in Counter(text).values())


def model(**sizes: int) -> _language.Language:
    usual = {"vocabulary": 50257, "context": 1024, "depth": 12, "heads": 12}
    width = sizes.pop("width", 768)
    return _language.Language(width, lambda o, i: nn.Linear(i, o), **{**usual, **sizes})


def test_it_has_as_many_parameters_as_gpt2_small() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in model().parameters()) == 124_439_808


def test_without_options_the_task_is_gpt2_small() -> None:
    one = scored_case("training", "dense", 768, task="gpt2")
    cost = Training().cost(one, described(one))
    assert cost is not None
    assert cost.parameters == 12 * 12 * 768**2  # the matrices of its blocks


def test_a_later_token_changes_nothing_before_it() -> None:
    torch.manual_seed(0)
    network = model(width=16, vocabulary=50, context=12, depth=2, heads=2)
    ids = torch.randint(50, (2, 12))
    changed = ids.clone()
    changed[:, 7] = (ids[:, 7] + 1) % 50
    before, after = network(ids), network(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert bool((before[:, 7:] != after[:, 7:]).any(-1).all())


@pytest.mark.parametrize("name", sampled(["low_rank", "dense", "monarch"], 3))
def test_it_learns_more_than_how_often_each_letter_stands(texts: Path, name: str) -> None:
    entropy = unigram_entropy((texts / "val.txt").read_bytes())
    one = case(name, data=str(texts), steps=150, batch=16, rate=1e-2)
    values = scored(one)
    assert 0 < values["score"] < 0.8 * entropy
    assert values["step_seconds"] > 0
    untrained = scored(replace(one, options={**one.options, "steps": 1}))["score"]
    assert untrained > entropy


def test_the_loss_is_that_of_the_whole_validation_text(texts: Path) -> None:
    """Against a loop over single windows; the last, unfinished window is left out."""
    torch.manual_seed(0)
    network = model(width=16, vocabulary=256, context=16, depth=1, heads=2)
    lesson = TASKS["gpt2"].lesson(Settings(16, texts, **SMALL), torch.device("cpu"))
    ids = torch.tensor(list((texts / "val.txt").read_bytes()))
    each = []
    for begin in range(0, (len(ids) - 1) // 16 * 16, 16):
        likely = network(ids[None, begin : begin + 16]).log_softmax(-1)[0]
        each += [-likely[i, ids[begin + i + 1]].item() for i in range(16)]
    assert lesson.score(network) == pytest.approx(sum(each) / len(each), rel=1e-5)


def test_of_a_long_file_the_same_windows_are_scored_everywhere_in_it(tmp_path: Path) -> None:
    folder = tokens(tmp_path, [5] * 100, [7] * 1_000_000)
    begins = _language.tokens(folder, 64, torch.device("cpu")).scored()
    assert len(begins) == len(set(begins)) == 2**17 // 64
    assert begins[0] == 0
    assert 1_000_000 - 2 * 64 <= begins[-1] < 1_000_000 - 64
    assert min(b - a for a, b in pairwise(begins)) >= 64


def test_a_window_is_followed_by_its_next_token(tmp_path: Path) -> None:
    lesson = _language.tokens(tokens(tmp_path, list(range(50)), [1] * 9), 8, torch.device("cpu"))
    batches = lesson.batches(64, torch.Generator().manual_seed(0))
    ids, after = next(batches)
    assert ids.shape == after.shape == (64, 8)
    assert torch.equal(ids + 1, after)
    begins = {int(each) for _ in range(20) for each in next(batches)[0][:, 0]}
    assert begins == set(range(42))  # the first and the last place among them


def test_token_files_have_gpt2s_vocabulary_and_go_before_text(texts: Path) -> None:
    assert _language.vocabulary(texts) == 256
    assert _language.vocabulary(tokens(texts, [0, 50256] * 20, [3] * 40)) == 50257
    assert reason(data=str(texts)) == "None"
    values = scored(case(data=str(texts), steps=2, batch=2))["score"]
    assert values == pytest.approx(math.log(50257), rel=0.05)


def test_what_is_missing_damaged_or_too_short_is_said(tmp_path: Path) -> None:
    assert "given with --data" in reason()
    assert "holds no train.bin; it should hold" in reason(data=str(tmp_path))
    (tmp_path / "train.txt").write_text("the cat sees rain")
    assert "holds no val.txt" in reason(data=str(tmp_path))
    (tmp_path / "val.txt").write_text("the cat sees ra")
    assert "val.txt is too short: 15 tokens" in reason(data=str(tmp_path))
    assert "context of 16 needs 17" in reason(data=str(tmp_path))
    (tmp_path / "train.bin").write_bytes(bytes(101))
    assert "train.bin is damaged: 101 bytes" in reason(data=str(tmp_path))
    (tmp_path / "train.bin").write_bytes(b"")
    assert "train.bin is too short: 0 tokens" in reason(data=str(tmp_path))
    folder = tokens(tmp_path, [50257] * 40, [3] * 40)
    assert "train.bin has the token 50257" in reason(data=str(folder))
    with pytest.raises(ValueError, match="has the token 50257; GPT-2 has 0 to 50256"):
        TASKS["gpt2"].lesson(Settings(32, folder, 16), torch.device("cpu"))


def test_options_that_do_not_fit_are_said() -> None:
    with pytest.raises(SuiteError, match="a multiple of 3"):
        Training().check(case(heads=3))
    with pytest.raises(
        SuiteError, match="depth of workload training must be from 1 to 1000, not 0"
    ):
        Training().check(case(depth=0))
    with pytest.raises(SuiteError, match="context of workload training must be from 1 to"):
        Training().check(case(context=2**40))
    with pytest.raises(SuiteError, match="mnist1d has no use for context"):
        Training().check(case(task="mnist1d"))


@pytest.mark.parametrize("task", TASKS)
def test_the_layers_that_are_counted_are_those_that_are_made(task: str, texts: Path) -> None:
    created: list[tuple[int, int]] = []

    def make(out_features: int, in_features: int) -> nn.Module:
        created.append((out_features, in_features))
        return nn.Linear(in_features, out_features)

    settings = Settings(24, texts, depth=3, heads=2)
    TASKS[task].network(settings, make)
    assert TASKS[task].layers(settings) == created


@pytest.mark.parametrize("name", plugins.names("formats"))
def test_a_layer_of_any_format_can_begin_smaller(name: str) -> None:
    _, layer = trainable(name)
    with torch.no_grad():
        before = layer.to_dense().clone()
        _scale(layer, 0.2)
        torch.testing.assert_close(layer.to_dense(), 0.2 * before)


@pytest.mark.parametrize("kind", _quantize.TYPES)
def test_a_layer_of_codes_and_factors_can_begin_smaller(kind: str) -> None:
    f = QuantizedLowRank(out_features=32, in_features=64, type=kind)
    layer = random_layer(f, torch.float32)  # its factors are not zero
    with torch.no_grad():
        before, x = layer.to_dense().clone(), normal(4, 64)
        outputs = layer(x)  # what the kernel derived must not stay
        _scale(layer, 0.25)
        torch.testing.assert_close(layer.to_dense(), 0.25 * before)
        torch.testing.assert_close(layer(x), 0.25 * outputs)


def test_what_a_block_adds_begins_smaller(texts: Path) -> None:
    one = case(data=str(texts), depth=8)
    network = Training().prepare(one, described(one), Cpu(0), 0).module
    assert isinstance(network, _language.Language)
    spread = {
        name: layer.weight.std().item() * math.sqrt(3 * layer.in_features)
        for name, layer in network.blocks[0].named_children()
        if isinstance(layer, Linear)
    }
    for name in ("query", "key", "value", "up"):
        assert spread[name] == pytest.approx(1, rel=0.1)
    for name in ("out", "down"):
        assert spread[name] == pytest.approx(0.25, rel=0.1)
    assert network.tokens.weight.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_every_case_of_the_suite_can_be_planned_where_the_text_is(texts: Path, kind: str) -> None:
    document = with_data(suites.read("training_gpt2"), texts)
    cases = [replace(each, device="cpu") for each in suites.build(document, kind).cases]
    planned = Worker(Cpu(0)).plan(PlanRequest(cases=cases))
    assert planned.mistakes == []
    assert {p.case.format for p in planned.planned if p.unsupported} == {"two_four_training"}
    assert {p.better for p in planned.planned} == {"lower"}
    assert {p.case.in_features for p in planned.planned} == {768 if kind == "cuda" else 192}


def test_the_suite_runs_with_quick_and_the_score_has_its_name(texts: Path, tmp_path: Path) -> None:
    document = suites.quickened(with_data(suites.read("training_gpt2"), texts))
    (block,) = document["cases"]
    block |= {"shape": [[24, 24]], "steps": 2, "batch": 2, "seeds": 2, "context": 16}
    block["format"] = block["format"][:2]
    run = read_run(hwbench.run(document, device="cpu", out=tmp_path / "runs"))
    rows = summary_rows(run)
    assert [row["format"] for row in rows] == ["dense", "low_rank"]
    for row in rows:
        assert (
            named(row["score_name"], better=row["better"]).axis
            == "validation loss (nats/token), lower is better"
        )
        assert 0 < row["score_low"] < row["score"] < row["score_high"]
