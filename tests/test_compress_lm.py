"""Perplexity of a decoder in a format: windows of a text, intervals over them, what is kept."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (the name that everybody knows)
from _evidence import script as evidence_script
from _formats import CLASSES, describe
from _scored import described, scored, unsupported, workload
from _synthetic import run_of, scored_case
from msgspec.structs import replace

from hwbench import suite as suites
from hwbench.analysis import blocks
from hwbench.checkpoints import smollm2
from hwbench.devices.cpu import Cpu
from hwbench.errors import SuiteError, UnknownNameError, UsageError
from hwbench.formats import _gram, _onednn
from hwbench.formats._base import Format, Linear
from hwbench.records import Case
from hwbench.report.rows import report_rows
from hwbench.report.text import _score
from hwbench.workloads import _blocks, _decoding, _planning, _prose, _whole, compress_lm
from hwbench.workloads._base import project_seeing
from hwbench.workloads._likelihood import perplexity
from hwbench.workloads._llama import Llama

RATIO = ("perplexity_ratio", "perplexity_ratio_low", "perplexity_ratio_high")
CONFIG = smollm2.Config(60, 32, 64, 2, 4, 2, 64, 1e-5, 10000.0)
WINDOWS, CALIBRATION = 8, 4


# --- intervals over blocks ---------------------------------------------------------------------


def test_what_makes_a_block_hard_for_both_falls_out() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(3, 2, 32)
    plain = blocks.log_ratio((hard + 0.3).tolist(), hard.tolist())
    assert plain.value == pytest.approx(0.3)
    assert plain.high - plain.low < 1e-6
    noisy = blocks.log_ratio((hard + rng.normal(0.3, 0.1, 32)).tolist(), hard.tolist())
    assert 0.02 < noisy.high - noisy.low < 0.12


def test_the_interval_is_that_of_the_other_model_turned_round() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = rng.gamma(2, 1, 20).tolist(), rng.gamma(2, 1, 20).tolist()
    first, second = blocks.log_ratio(ours, theirs), blocks.log_ratio(theirs, ours)
    assert (first.low, first.high) == pytest.approx((-second.high, -second.low))


def test_intervals_over_few_skewed_blocks_hold_their_level() -> None:
    rng, inside = np.random.default_rng(2), 0
    zero = [0.0] * 32
    for _ in range(200):
        actual = blocks.log_ratio(rng.exponential(1.0, 32).tolist(), zero)
        inside += actual.low <= 1.0 <= actual.high
    assert 180 <= inside <= 199


@pytest.mark.parametrize(("ours", "theirs"), [([1.0] * 9, [1.0] * 8), ([1.0] * 7, [1.0] * 7)])
def test_blocks_that_tell_nothing_are_refused(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(UsageError, match="blocks"):
        blocks.log_ratio(ours, theirs)


# --- the text ----------------------------------------------------------------------------------


def encode(text: str) -> list[int]:
    """A word of five letters on the average is a token."""
    return [ord(letter) % 60 for letter in text[::4]]


def test_twelve_chapters_of_which_no_text_is_in_both_parts() -> None:
    chapters = _prose.chapters()
    assert len(chapters) == 12
    assert "Down the Rabbit-Hole" in chapters[0][:100]
    assert chapters[-1].rstrip().endswith("THE END")
    assert not set(_prose.CHAPTERS["calibration"]) & set(_prose.CHAPTERS["evaluation"])


def test_windows_are_spread_and_do_not_overlap() -> None:
    actual = _prose.windows(encode, "evaluation", 8)
    assert actual.shape == (8, _prose.TOKENS)
    whole = _prose.windows(encode, "evaluation", 40)
    assert torch.equal(actual[0], whole[0])
    assert torch.equal(actual[-1], whole[-1])
    assert len({tuple(row.tolist()) for row in whole}) == 40
    with pytest.raises(UsageError, match="are asked for"):
        _prose.windows(encode, "evaluation", 100_000)


def test_a_changed_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_prose, "SHA256", "0" * 64)
    with pytest.raises(UsageError, match="has been changed"):
        _prose.chapters()


# --- the scores --------------------------------------------------------------------------------


@pytest.fixture
def small(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Llama:
    """A small Llama with random weights in SmolLM2's place, and windows of 40 tokens."""
    source, config = torch.Generator().manual_seed(0), getattr(request, "param", CONFIG)
    model = Llama(config).eval().requires_grad_(False)
    for value in model.parameters():
        value.normal_(0.5 if value.dim() == 1 else 0.0, 0.3, generator=source)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"the small one")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(smollm2, "missing", lambda: None)
    monkeypatch.setattr(smollm2, "path", lambda: file)
    monkeypatch.setattr(Llama, "unreadable", classmethod(lambda cls, _: None))
    shapes = [(m.out_features, m.in_features) for m in model.linears().values()]
    monkeypatch.setattr(Llama, "shapes", classmethod(lambda cls, _: shapes))
    blocks = config.num_hidden_layers
    monkeypatch.setattr(Llama, "blocks", classmethod(lambda cls, _: blocks))
    monkeypatch.setattr(_decoding, "_original", lambda *_: model)
    monkeypatch.setattr(_decoding, "encoded", lambda _, text: encode(text))
    monkeypatch.setattr(_prose, "TOKENS", 40)
    return model


def case(name: str = "csr", density: float | None = 0.5, **options: Any) -> Case:
    options = {"windows": WINDOWS, "calibration": CALIBRATION, **options}
    return scored_case("compress_lm", name, 32, density, **options)


def test_dense_loses_nothing_and_its_perplexity_is_that_of_the_model(small: Llama) -> None:
    values = scored(case("dense", None))
    ids = _prose.windows(encode, "evaluation", WINDOWS)
    mask = torch.ones_like(ids, dtype=torch.bool)
    expected = perplexity(small(ids, mask), ids, mask)
    assert values["score"] == pytest.approx(expected, rel=1e-5)
    assert values["original_perplexity"] == pytest.approx(expected, rel=1e-5)
    assert values["perplexity_ratio"] == pytest.approx(1, abs=1e-6)
    assert values["top1_agreement"] == 1
    assert values["next_token_divergence"] == pytest.approx(0, abs=1e-5)
    assert values["kernel_logits_error"] < 1e-6


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["csr", "low_rank", "n_m", "monarch"])
@pytest.mark.parametrize("weighting", ["none", "activations", "gram"])
def test_what_is_found_of_a_format(name: str, weighting: str) -> None:
    values = scored(case(name, weighting=weighting))
    assert values["perplexity_ratio"] == pytest.approx(
        values["score"] / values["original_perplexity"]
    )
    low, high = values["perplexity_ratio_low"], values["perplexity_ratio_high"]
    assert low < values["perplexity_ratio"] < high
    assert values["next_token_divergence"] > 1e-3
    assert 0 <= values["top1_agreement"] < 1
    assert values["kernel_logits_error"] < _decoding.SAME
    assert values["model_seconds"] > 0


def test_a_smaller_dense_model_is_the_first_blocks_and_counts_them_alone(small: Llama) -> None:
    one = case("dense", None, depth=0.5)
    values = scored(one)
    ids = _prose.windows(encode, "evaluation", WINDOWS)
    mask = torch.ones_like(ids, dtype=torch.bool)
    states = small.states(ids, mask)
    assert len(states) == CONFIG.num_hidden_layers == 2
    assert values["score"] == pytest.approx(
        perplexity(small.logits(states[0]), ids, mask), rel=1e-5
    )
    whole = scored(case("dense", None))
    assert values["original_perplexity"] == pytest.approx(whole["score"], rel=1e-5)
    inner = sum(each.weight.numel() for each in small.linears().values())
    norms = 2 * CONFIG.hidden_size
    lost = whole["model_parameters"] - values["model_parameters"]
    assert lost == inner / 2 + norms
    planned = _planning.planned(one, Cpu(0), {})
    assert planned.density == 0.5
    assert planned.cost is not None
    assert planned.cost.parameters == inner / 2


@pytest.mark.usefixtures("small")
def test_projections_that_see_the_text_diverge_less() -> None:
    lost = {
        weighting: scored(case("low_rank", 0.8, weighting=weighting))["next_token_divergence"]
        for weighting in ("none", "gram")
    }
    assert lost["gram"] < lost["none"]


@pytest.mark.usefixtures("small")
def test_layers_that_see_the_same_share_its_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    created, real = [], _gram.moments
    monkeypatch.setattr(_gram, "moments", lambda rows: created.append(rows.shape) or real(rows))
    scored(case("low_rank", 0.8, weighting="gram"))
    # Of the seven layers of a block, q, k and v see the same, and so do gate and up.
    assert len(created) == 4 * CONFIG.num_hidden_layers


def test_the_windows_of_the_original_run_once(
    small: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, real = [], Llama.states
    monkeypatch.setattr(Llama, "states", lambda *given: runs.append(given[0]) or real(*given))
    for name in ("csr", "low_rank"):
        scored(case(name))
    assert sum(model is small for model in runs) == WINDOWS


@pytest.mark.usefixtures("small")
def test_the_calibration_text_is_seen_once_by_all_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    created, real = [], _gram.moments
    monkeypatch.setattr(_gram, "moments", lambda rows: created.append(rows.shape) or real(rows))
    for name in ("csr", "low_rank", "monarch"):
        scored(case(name, 0.8, weighting="gram"))
    assert len(created) == 4 * CONFIG.num_hidden_layers


def test_a_projection_that_sees_nothing_runs_no_calibration(
    small: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Llama, "visited", lambda *_: pytest.fail("the text was run"))
    assert scored(case("low_rank"))["score"] > 0
    assert small.config is CONFIG


@pytest.mark.parametrize("tokens", [2, 32, 33, 34, 77])
def test_a_window_that_is_scored_in_parts_has_the_values_of_the_whole(tokens: int) -> None:
    source = torch.Generator().manual_seed(tokens)
    before, after = (5 * torch.randn(tokens, 50, generator=source) for _ in range(2))
    ids = torch.randint(50, (tokens,), generator=source)
    logs, ours = (F.log_softmax(each[:-1].double(), -1) for each in (before, after))
    target = ids[1:]
    values = _decoding._window(logs.float(), after, ids)
    expected = (
        F.nll_loss(ours, target),
        F.nll_loss(logs, target),
        F.kl_div(ours, logs, log_target=True, reduction="batchmean"),
        (logs.argmax(-1) == ours.argmax(-1)).double().mean(),
    )
    assert values == pytest.approx([float(each) for each in expected], rel=1e-5)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("float32", [True, False])
def test_products_go_by_onednn_where_that_is_float32_but_for_the_passes_that_are_timed(
    float32: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    routes: dict[str, set[bool]] = {"projected": set(), "scored": set(), "timed": set()}
    monkeypatch.setattr(_onednn, "_refusal_here", lambda: None if float32 else "It rounds.")

    def watched(place: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            routes[place].add(_onednn._selection.here)
            return real(*given, **named)

        return call

    monkeypatch.setattr(compress_lm, "project_seeing", watched("projected", project_seeing))
    monkeypatch.setattr(_decoding, "_window", watched("scored", _decoding._window))
    monkeypatch.setattr(_whole, "latency", watched("timed", _whole.latency))
    scored(case("low_rank", weighting="gram"))
    assert routes == {"projected": {float32}, "scored": {float32}, "timed": {False}}


# --- a case that is cut off --------------------------------------------------------------------


def kept_blocks(tmp_path: Path) -> list[str]:
    """The names of the blocks that lie in the cache folder."""
    return sorted(
        each.name for each in (tmp_path / "hwbench" / "projections").rglob("*.safetensors")
    )


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("weighting", ["none", "activations", "gram"])
def test_what_was_projected_before_a_cut_is_not_projected_again(
    weighting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scored(case("low_rank", weighting=weighting, windows=9))
    created, real = [], compress_lm.project_seeing

    def until(*given: Any, cut: int) -> Linear:
        if len(created) == cut:
            raise KeyboardInterrupt
        created.append(given[1].shape)
        return real(*given)

    # Seven layers make a block: the cut is in the middle of the second.
    monkeypatch.setattr(compress_lm, "project_seeing", partial(until, cut=10))
    with pytest.raises(KeyboardInterrupt):
        scored(case("low_rank", weighting=weighting))
    assert kept_blocks(tmp_path) == ["0.safetensors"]
    created.clear()
    monkeypatch.setattr(compress_lm, "project_seeing", partial(until, cut=-1))
    values = scored(case("low_rank", weighting=weighting))
    assert len(created) == 7 * (CONFIG.num_hidden_layers - 1)
    assert kept_blocks(tmp_path) == []
    monkeypatch.setattr(compress_lm, "project_seeing", real)
    (tmp_path / "hwbench" / "scores").rename(tmp_path / "away")
    again = scored(case("low_rank", weighting=weighting))
    assert values["score"] == again["score"] != whole["score"]


def small_formats() -> list[Format]:
    return [describe(cls, cls.KERNELS[0], (96, 64)) for cls in CLASSES.values()]


@pytest.mark.parametrize("kind", small_formats(), ids=lambda each: each.name())
def test_a_kept_block_is_the_block_that_was_made(kind: Format, tmp_path: Path) -> None:
    weight = torch.randn(96, 64, generator=torch.Generator().manual_seed(0))
    layers = {"model.layers.0.a": kind.project(weight).trust_versions().requires_grad_(False)}
    _blocks.Kept(tmp_path / "x", torch.device("cpu")).block("0", lambda: layers)
    store = _blocks.Kept(tmp_path / "x", torch.device("cpu"))
    actual = store.block("0", lambda: pytest.fail("it was projected again"))
    assert store.earlier > 0
    (ours,), (theirs,) = layers.values(), actual.values()
    assert type(ours) is type(theirs)
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    assert ours.described == theirs.described
    for mine, other in zip(ours.stored_tensors(), theirs.stored_tensors(), strict=True):
        assert (mine.dtype, mine.shape) == (other.dtype, other.shape)


@pytest.mark.parametrize("damage", [b"", b"no archive", b"PK\x03\x04 and no more"])
def test_a_damaged_block_is_projected_again(damage: bytes, tmp_path: Path) -> None:
    created = []

    def make() -> dict[str, Linear]:
        created.append(1)
        return {"a": CLASSES["csr"].from_knobs(8, 8, density=0.5).project(torch.eye(8))}

    for _ in range(2):
        store = _blocks.Kept(tmp_path / "x", torch.device("cpu"))
        store.block("0", make)
    assert len(created) == 1
    (tmp_path / "x" / "0.safetensors").write_bytes(damage)
    store.block("0", make)
    assert len(created) == 2


def test_blocks_of_cases_that_nobody_came_back_to_are_removed(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / str(number)).mkdir()
        os.utime(tmp_path / str(number), (number, number))
    _blocks.Kept(tmp_path / "0", torch.device("cpu"))
    left = sorted(each.name for each in tmp_path.iterdir())
    assert left == ["0", "6", "7", "8"]


@pytest.mark.usefixtures("small")
def test_a_kernel_that_gives_other_logits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Linear.forward
    monkeypatch.setattr(Linear, "forward", lambda self, x: 1.01 * real(self, x))
    with pytest.raises(ArithmeticError, match="own kernels give logits"):
        scored(case())


@pytest.mark.usefixtures("small")
def test_scores_are_kept_by_what_they_follow_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = scored(case())
    cache = tmp_path / "hwbench" / "scores"
    assert len(list(cache.iterdir())) == 1
    measured = _decoding.kept
    monkeypatch.setattr(_decoding, "kept", lambda *_: pytest.fail("it was measured again"))
    assert scored(case()) == first
    monkeypatch.setattr(_decoding, "kept", measured)
    for number, other in enumerate(
        [case("csr", 0.4), case("low_rank"), case(weighting="gram"), case(windows=9)], start=2
    ):
        scored(other)
        assert len(list(cache.iterdir())) == number
    for file in cache.iterdir():
        file.write_text('{"nats": [1, 2]}')
    assert scored(case())["score"] == first["score"]


def test_the_code_that_a_score_follows_from_is_there() -> None:
    root = Path(str(compress_lm.__file__)).parents[1]
    for pattern in compress_lm.CODE:
        assert list(root.glob(pattern)), pattern


@pytest.mark.parametrize(
    ("options", "error"),
    [({"weighting": "all"}, UnknownNameError), ({"windows": 7}, SuiteError),
     ({"windows": 65}, SuiteError), ({"calibration": 0}, SuiteError),
     ({"depth": 0.0}, SuiteError), ({"depth": 1.5}, SuiteError), ({"depth": 0.5}, SuiteError)],
)  # fmt: skip
def test_mistakes_in_options_are_refused(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        workload(case(**options)).check(case(**options))


@pytest.mark.usefixtures("small")
def test_what_cannot_be_scored_says_so() -> None:
    assert "cannot be projected by outputs" in str(
        unsupported(scored_case("compress_lm", "quantized", 32, None, weighting="gram"))
    )
    cost = workload(case()).cost(case(), described(case()))
    assert cost is not None
    assert cost.parameters > 0


def test_without_the_package_the_line_that_brings_it_is_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(smollm2, "missing", lambda: f"It is not there; {smollm2.INSTALL}.")
    assert smollm2.INSTALL in str(unsupported(case()))
    assert workload(case()).cost(case(), described(case())) is None


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, "31.4"),
        ({"perplexity_ratio": 2.24}, "31.4"),
        (dict(zip(RATIO, (2.24, 2.1, 2.4), strict=True)), "31.4, 2.24× (2.10–2.40)"),
        (dict(zip(RATIO, (10.5, 9.9, 11.0), strict=True)), "31.4, collapsed"),
    ],
)
def test_the_row_says_how_many_times_the_original_or_that_it_collapsed(
    values: dict[str, float], text: str
) -> None:
    run = run_of([case("csr")])
    (row,) = report_rows(run)
    assert _score(replace(row, score_low=math.nan, values={"score": 31.4, **values})) == text


def test_collapse_begins_above_ten() -> None:
    assert [blocks.collapsed(ratio) for ratio in (9.9, 10.0, 10.1, math.inf)] == [
        *(False, False, True, True),
    ]


@pytest.mark.parametrize("name", ["compress_lm", "compress_lm_full"])
def test_the_suites_can_be_read(name: str) -> None:
    readings = suites.build(suites.read(name), "cpu").cases
    assert len(readings) == (12 if name == "compress_lm" else 31)
    assert {each.workload for each in readings} == {"compress_lm"}


@pytest.mark.heavy
def test_transformers_finds_the_same_perplexity(small: Llama) -> None:
    pytest.importorskip("transformers")
    script = evidence_script("perplexity")
    ids = _prose.windows(encode, "evaluation", WINDOWS)
    half = {
        name: linear.weight.masked_fill(linear.weight.abs() < 0.2, 0)
        for name, linear in small.linears().items()
    }
    for matrices in ({}, half):
        student = copy.deepcopy(small)
        for name, matrix in matrices.items():
            student.get_submodule(name).weight.data = matrix
        ours = perplexity(student(ids, torch.ones_like(ids, dtype=torch.bool)), ids, ids >= 0)
        theirs = script.transformers_nats(small, matrices, ids)
        assert ours == pytest.approx(math.exp(fmean(theirs)), rel=script.AGREED / 10)


WIDE = smollm2.Config(60, 128, 256, 2, 4, 2, 64, 1e-5, 10000.0)


def cases_of_both() -> list[Case]:
    """Every case of both suites at the width of a small model, each once."""
    collected: dict[str, Case] = {}
    for name in ("compress_lm", "compress_lm_full"):
        for each in suites.build(suites.read(name), "cpu").cases:
            few = {**each.options, "windows": WINDOWS, "calibration": CALIBRATION}
            one = replace(each, out_features=128, in_features=128, options=few)
            collected[one.id] = one
    return list(collected.values())


@pytest.mark.heavy
@pytest.mark.parametrize("small", [WIDE], indirect=True)
@pytest.mark.parametrize("one", cases_of_both(), ids=lambda one: one.id)
def test_every_case_of_the_suites_runs_on_a_small_model(small: Llama, one: Case) -> None:
    assert _planning.planned(one, Cpu(0), {}).unsupported is None
    values = scored(one)
    assert math.isfinite(values["score"])
    assert values["perplexity_ratio"] > 0
    assert small.config is WIDE
