"""Choosing for models, runs and plans that are not the usual ones."""

from __future__ import annotations

import copy
import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import _compress
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from _compress import VOCABULARY
from _scored import described, scored, unsupported
from _synthetic import scored_case
from msgspec.structs import replace
from torch import nn

import hwbench as package
from hwbench import checkpoints
from hwbench.errors import CasesFailedError, UsageError
from hwbench.formats._base import Linear
from hwbench.records import Case, Planned, Status
from hwbench.store import Run, read_run
from hwbench.studies import _layers, choose
from hwbench.workloads import _apply, _own, _reading
from hwbench.workloads._base import BEST, project_seeing
from hwbench.workloads._causal import Causal
from hwbench.workloads._distill import compressed, heal

transformers = pytest.importorskip("transformers")

Call = Callable[..., tuple[int, str, str]]
KL = {"judged": "kl", "weighting": BEST, "text": "prose"}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _compress.decoder(tmp_path_factory.mktemp("decoder"))


# --- logits of the last states --------------------------------------------------------------------

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": 1,
}  # fmt: skip
STEPS: dict[str, tuple[dict[str, Any], str]] = {
    "Granite": ({"logits_scaling": 8.0}, "model.layers.1.mlp.up_proj"),
    "Cohere": ({"logit_scale": 0.0625}, "model.layers.1.mlp.up_proj"),
    "Cohere2": ({"logit_scale": 0.0625, "head_dim": 16}, "model.layers.1.mlp.up_proj"),
    "Gemma2": (
        {"final_logit_softcapping": 2.0, "head_dim": 16, "num_key_value_heads": 1},
        "model.layers.1.mlp.up_proj",
    ),
    "Bert": ({"is_decoder": True}, "bert.encoder.layer.1.intermediate.dense"),
    "OPT": ({"word_embed_proj_dim": 16, "ffn_dim": 48}, "model.decoder.layers.1.fc1"),
}
"""What each type does beside its head, and the name of a layer of 48×32."""


@pytest.fixture(scope="module")
def stepped(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A random decoder of a type, with weights large enough to matter."""
    made: dict[str, Path] = {}

    def build(kind: str) -> Path:
        if kind not in made:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(0)
                config = getattr(transformers, f"{kind}Config")(**SIZES, **STEPS[kind][0])
                model = transformers.AutoModelForCausalLM.from_config(config)
                for value in model.parameters():
                    value.mul_(4.0)
                made[kind] = _compress.write(tmp_path_factory.mktemp(kind), model)
        return made[kind]

    return build


def judged(folder: Path, layer: str, **options: Any) -> Case:
    case = scored_case("layer_error", "low_rank", 32, model=str(folder), layer=layer, **options)
    return replace(case, out_features=48)


@pytest.mark.parametrize("kind", STEPS)
def test_the_divergence_is_that_of_the_logits_that_the_model_gives(
    stepped: Callable[[str], Path], kind: str
) -> None:
    folder, layer = stepped(kind), STEPS[kind][1]
    case = judged(folder, layer, **KL)
    assert unsupported(case) is None
    loaded, inputs = _reading.read(str(folder), "prose")
    ids, mask, _ = _reading.last_states(str(folder), "prose")
    student = copy.deepcopy(loaded)
    linear = student.linears()[layer]
    near = project_seeing(described(case), linear.weight.detach(), inputs[layer], BEST)
    linear.weight.data = near.to_dense()
    with torch.no_grad():
        expected, ours = (F.log_softmax(each(ids, mask)[mask], -1) for each in (loaded, student))
    exact = float((expected.exp() * (expected - ours)).sum(-1).mean())
    assert exact > 1e-5
    assert scored(case)["score"] == pytest.approx(exact, rel=1e-2)


def test_a_layer_that_the_states_do_not_pass_is_none_to_choose_for(
    stepped: Callable[[str], Path],
) -> None:
    """It stands between the last states and the logits, so it would seem to lose nothing."""
    names = [name for name, *_ in _apply.layers(str(stepped("Bert")))]
    assert len(names) == 12
    assert not [name for name in names if name.startswith("cls.")]


def test_healing_follows_the_logits_that_the_model_gives(stepped: Callable[[str], Path]) -> None:
    folder = stepped("Gemma2")
    teacher, inputs = _reading.read(str(folder))
    case, (ids, mask) = judged(folder, ""), Causal.tokens(folder, ["some words of a text"] * 4)
    kind = type(described(case))

    def project(weight: torch.Tensor, seen: torch.Tensor | None) -> Linear:
        return kind.from_knobs(*weight.shape, density=0.5).project(weight).trust_versions()

    student = compressed(teacher, project, inputs)
    before = teacher.judge(student, ids, mask)[1]["next_token_divergence"]
    heal(student, teacher, ids, mask, 10, torch.Generator().manual_seed(0))
    assert teacher.judge(student, ids, mask)[1]["next_token_divergence"] < before
    with torch.no_grad():
        states = teacher.states(ids, mask)[-1]
        assert torch.allclose(teacher.logits(states[mask]), teacher(ids, mask)[mask], atol=1e-5)


def test_where_logits_cannot_be_had_from_the_states_it_is_said(
    decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Causal.states
    monkeypatch.setattr(Causal, "states", lambda *args: [2 * each + 1 for each in real(*args)])
    folder = shutil.copytree(decoder, tmp_path / "other")
    layer = "model.layers.1.mlp.up_proj"
    words = "cannot be had from its last states alone"
    assert words in str(unsupported(judged(folder, layer, **KL)))
    healed = scored_case("compress", "low_rank", 32, model=str(folder), heal=2)
    assert words in str(unsupported(healed))
    for fine in (judged(folder, layer, judged="output"), replace(healed, options={
        "model": str(folder)})):  # fmt: skip
        assert unsupported(fine) is None


# --- names ----------------------------------------------------------------------------------------


def chosen(hwbench: Call, decoder: Path, tmp_path: Path) -> dict[str, Any]:
    """The plan of a choice for a decoder, by the error of its layers."""
    path = tmp_path / "plan.json"
    code, _, error = hwbench(
        "choose", "--model", str(decoder), "--format", "low_rank", "--density", "0.5", "--device",
        "fake", "--replicates", "1", "--runs", str(tmp_path / "runs"), "--out", str(path),
        "--objective", "error", "--budget", "params=80%",
    )  # fmt: skip
    assert code == 0, error
    plan: dict[str, Any] = json.loads(path.read_text())
    return plan


def test_a_plan_is_what_convert_takes_for_the_model_of_the_automatic_class(
    hwbench: Call, decoder: Path, tmp_path: Path
) -> None:
    plan = chosen(hwbench, decoder, tmp_path)
    assert plan["layers"]
    model = transformers.AutoModelForCausalLM.from_pretrained(decoder).eval()
    small = package.convert(model, format=plan["layers"])
    ours = {name for name, each in small.named_modules() if isinstance(each, Linear)}
    assert ours == set(plan["layers"])
    own = {name for name, each in model.named_modules() if isinstance(each, nn.Linear)}
    assert set(plan["shapes"]) == own - {"lm_head"}
    code, table, _ = hwbench("show", plan["run"])
    assert code == 0
    assert "model.model." not in table


def test_an_encoders_layers_have_the_names_of_the_automatic_class(tmp_path: Path) -> None:
    sizes = {**SIZES, "num_hidden_layers": 1}
    config = transformers.RobertaConfig(**sizes)
    folder = _compress.write(tmp_path, transformers.AutoModel.from_config(config), "<s> $A </s>")
    model = transformers.AutoModel.from_pretrained(folder)
    own = {name for name, each in model.named_modules() if isinstance(each, nn.Linear)}
    assert {name for name, *_ in _apply.layers(str(folder))} == own - {"pooler.dense"}


def test_plans_and_groups_of_older_versions_are_still_read(decoder: Path, tmp_path: Path) -> None:
    names = ["model.layers.1.mlp.up_proj", "model.layers.2.mlp.up_proj"]
    scores = []
    for prefix in ("", "model."):
        entries = {f"{prefix}{name}": {"name": "low_rank", "density": 0.5} for name in names}
        path = tmp_path / f"{prefix}plan.json"
        path.write_text(json.dumps(document(decoder, entries)))
        whole = scored_case("layer_error", "dense", 32, model=str(decoder), plan=str(path), **KL)
        group = judged(decoder, f"{prefix}model.layers.{{1-2}}.mlp.up_proj", **KL)
        alone = judged(decoder, f"{prefix}{names[0]}")
        assert [unsupported(each) for each in (whole, group, alone)] == [None] * 3
        scores.append([scored(each)["score"] for each in (whole, group, alone)])
        out = _apply.apply(str(path), str(tmp_path / f"{prefix}out"))
        blank = transformers.AutoModelForCausalLM.from_pretrained(decoder)
        small = package.load_converted(out, blank)
        assert isinstance(small.get_submodule(names[0]), Linear)
    assert scores[0] == pytest.approx(scores[1])
    assert scores[0][0] == pytest.approx(scores[0][1], rel=1e-4)


# --- plans that were written by hand --------------------------------------------------------------


def document(folder: Path | str, entries: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"schema": 1, "model": str(folder), "shapes": {name: [48, 32] for name in entries},
            "layers": entries, "weighting": "best", "text": "prose", **changes}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shapes": {}}, "gives the shape of no layer"),
        ({"shapes": {}, "layers": {}}, "gives the shape of no layer"),
        ({"shapes": {"b": [2, 2]}}, "gives 'a' a format and no shape"),
        ({"shapes": {"a": [0, 2]}}, "gives 'a' no shape"),
    ],
)
def test_a_plan_whose_layers_have_no_shape_is_one_sentence(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document("", {"a": {"name": "dense"}}, **changes)))
    with pytest.raises(UsageError, match=words):
        checkpoints.layer_plan(path)


@pytest.mark.parametrize(
    ("name", "entry", "words"),
    [
        ("model.layers.1.mlp.up_proj", {"name": "low_rank", "rank": 4000}, "cannot have: rank"),
        ("model.layers.1.mlp.upproj", {"name": "low_rank", "rank": 4}, "did you mean"),
        ("lm_head", {"name": "low_rank", "rank": 4}, "Unknown layer 'lm_head'"),
    ],
)
def test_what_a_planned_layer_cannot_be_is_said_and_not_left_dense(
    decoder: Path, tmp_path: Path, name: str, entry: dict[str, Any], words: str
) -> None:
    path, out = tmp_path / "plan.json", tmp_path / "out"
    entries = {"model.layers.0.mlp.up_proj": {"name": "low_rank", "rank": 4}, name: entry}
    path.write_text(json.dumps(document(decoder, entries)))
    with pytest.raises(UsageError, match=words):
        _apply.apply(str(path), str(out))
    assert not out.exists()
    options = {"model": str(decoder), "plan": str(path)}
    for case in (
        scored_case("layer_error", "dense", 32, **options, **KL),
        scored_case("compress", "dense", 32, **options),
        scored_case("model_pass", "dense", 32, **options),
    ):
        with pytest.raises(UsageError, match=words):
            scored(case)


# --- what goes with the weights -------------------------------------------------------------------


def test_every_file_that_a_model_is_read_with_goes_with_it(decoder: Path, tmp_path: Path) -> None:
    folder, out = shutil.copytree(decoder, tmp_path / "model"), tmp_path / "out"
    names = ("spiece.model", "sentencepiece.bpe.model", "spm.model", "1_Pooling/config.json")
    (folder / "1_Pooling").mkdir()
    for name in names:
        (folder / name).write_text("{}")
    (folder / "tokenizer").mkdir()  # what some keep beside their model
    entries = {"model.layers.1.mlp.up_proj": {"name": "low_rank", "rank": 4}}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document(folder, entries)))
    _apply.apply(str(path), str(out))
    for name in (*names, "config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    assert not (out / "tokenizer").exists()


# --- runs that lack something ---------------------------------------------------------------------


@pytest.fixture
def run(hwbench: Call, decoder: Path, tmp_path: Path) -> Run:
    """The run that a plan of a decoder is made from."""
    return read_run(Path(chosen(hwbench, decoder, tmp_path)["run"]))


@pytest.mark.parametrize("lines", [-1, -4])
def test_a_run_that_is_not_finished_is_no_ground_for_a_plan(
    hwbench: Call, run: Run, tmp_path: Path, lines: int
) -> None:
    begun = tmp_path / "begun.jsonl"
    begun.write_text("".join(run.path.read_text().splitlines(keepends=True)[:lines]))
    for budget in ("params=80%", "time=95%"):
        code, _, error = hwbench("choose", "--from", str(begun), "--budget", budget)
        assert code == 2
        assert f"is not finished; go on with: hwbench run --resume {begun}" in error
    for read in (choose.layers_of, _layers.pass_of):
        with pytest.raises(UsageError, match="is not finished"):
            read(read_run(begun))


@pytest.mark.parametrize("change", ["failed", "absent", "unsupported"])
def test_a_pass_that_was_not_measured_is_told(run: Run, change: str) -> None:
    (_, *some) = [each.case.id for each in run.planned.values()
                  if each.case.workload == "model_pass"]  # fmt: skip
    assert some
    kept = [each for each in run.results if each.case not in some]
    own = [each for each in run.results if each.case in some]
    if change == "failed":
        own = [replace(each, status=Status.CRASHED, measurements=[], reason="x") for each in own]
        kept += own
    planned: dict[str, Planned] = {
        name: replace(each, unsupported="no data") if name in some else each
        for name, each in run.planned.items()
    }
    lacking = changed(
        run, results=kept, planned=planned if change == "unsupported" else run.planned
    )
    with pytest.raises(CasesFailedError, match="A pass of the model was not measured"):
        _layers.pass_of(lacking)


# --- layers that lose nothing ---------------------------------------------------------------------


def lost(measured: dict[str, float], asked: list[str]) -> _layers._Lost:
    shared = {label for label in asked if "density" in label}
    return _layers._Lost(
        {}, defaultdict(dict, {"g": measured}), defaultdict(list, {"g": asked}), shared
    )


def test_a_reference_that_changes_nothing_is_no_failure() -> None:
    csr, codes, rank = "csr density=0.5", "quantized", "low_rank density=0.5"
    errors = {csr: 0.0, codes: 0.01, rank: 0.25}
    of_csr = lost({csr: 0.0}, [csr])
    assert _layers._sensitivity("g", of_csr, errors) == _layers.LEAST
    of_both = lost({csr: 0.0, codes: 0.03}, [csr, codes])
    assert _layers._sensitivity("g", of_both, errors) == pytest.approx(3.0)
    of_rank = lost({rank: 0.5, codes: 0.03}, [rank, codes])
    assert _layers._sensitivity("g", of_rank, errors) == pytest.approx(2.0)
    for measured, asked in (({}, [csr]), ({codes: 0.03}, [rank, codes]), ({}, [])):
        with pytest.raises(CasesFailedError, match="was not measured"):
            _layers._sensitivity("g", lost(measured, asked), errors)


def test_a_pruned_model_can_be_chosen_for(hwbench: Call, decoder: Path, tmp_path: Path) -> None:
    """The sparse format in which groups are measured changes nothing of it."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(decoder, tmp_path / "pruned")
    values = load_file(folder / "model.safetensors")
    for name, value in values.items():
        if "_proj" in name:
            least = value.abs().flatten().kthvalue(value.numel() * 6 // 10).values
            value[value.abs() <= least] = 0
    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})
    code, _, error = hwbench(
        "choose", "--model", str(folder), "--format", "csr", "--density", "0.5,0.1", "--device",
        "fake", "--replicates", "1", "--runs", str(tmp_path / "runs"),
        "--out", str(tmp_path / "plan.json"), "--budget", "params=80%",
    )  # fmt: skip
    assert code == 0, error
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["measured"][plan["kept"]] < 1e-9


@pytest.mark.parametrize("what", ["weight", "inputs"])
@pytest.mark.parametrize("name", ["low_rank", "csr", "dense"])
def test_a_layer_of_which_nothing_can_be_lost_loses_nothing(
    decoder: Path, tmp_path: Path, name: str, what: str
) -> None:
    from safetensors.torch import load_file, save_file

    folder, layer = shutil.copytree(decoder, tmp_path / "zeros"), "model.layers.1.mlp.up_proj"
    values = load_file(folder / "model.safetensors")
    zero = "mlp.up_proj" if what == "weight" else "post_attention_layernorm"
    values[f"model.layers.1.{zero}.weight"].zero_()
    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})
    for how in ({}, {"judged": "output"}, KL):
        case = judged(folder, layer, **how)
        case = replace(case, format=name, knobs={} if name == "dense" else case.knobs)
        assert unsupported(case) is None
        assert scored(case)["score"] == 0.0


def test_the_error_of_a_layer_follows_weights_that_were_written_anew(
    decoder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder, layer = shutil.copytree(decoder, tmp_path / "anew"), "model.layers.1.mlp.up_proj"
    case = judged(folder, layer)
    before = scored(case)["score"]
    values = load_file(folder / "model.safetensors")
    values[f"{layer}.weight"].mul_(8.0)
    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})
    assert scored(case)["score"] == pytest.approx(before, rel=1e-3)


def test_what_is_lost_of_nothing_is_infinite() -> None:
    assert _own.relative(0.0, 0.0) == 0.0
    assert _own.relative(1.0, 0.0) == float("inf")
    assert _own.relative(1.0, 2.0) == 0.5
