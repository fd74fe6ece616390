"""``hwbench capture``: what the layers of a model see, in a file that ``run`` scores on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _compress import VOCABULARY, encoder, write

from hwbench.checkpoints import tensors
from hwbench.errors import UsageError
from hwbench.workloads import _models, _own, _reading
from hwbench.workloads._capture import capture

transformers = pytest.importorskip("transformers")

SIDE = 32


@pytest.fixture(scope="module", params=["llama", "bert"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random decoder, and a random encoder whose file has names without what stands before."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": SIDE, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if request.param == "llama":
            config = transformers.LlamaConfig(**sizes, bos_token_id=0, eos_token_id=0)
            model = transformers.LlamaForCausalLM(config)
        else:
            model = transformers.BertModel(transformers.BertConfig(**sizes))
        return write(tmp_path_factory.mktemp(request.param), model)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Twenty lines, more than pass through at once."""
    file = tmp_path / "texts.txt"
    lines = [f"Sentence {number} says something of its own." for number in range(20)]
    file.write_text("\n\n".join(lines), encoding="utf-8")
    return file


def test_activations_stand_under_the_names_of_the_weights(
    folder: Path, texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "acts.safetensors"
    actual = capture(str(folder), texts, out)
    captured, weights = tensors.header(out), tensors.header(folder / "model.safetensors")
    kind = _reading.reader(folder)
    _, mask = kind.tokens(folder, [x for x in texts.read_text().splitlines() if x])
    assert len(actual) == len(kind.shapes(folder))
    for name, shape in actual.items():
        assert shape == (int(mask.sum()), weights[name].shape[1])
        assert tensors.activations(out, weights[name]) == captured[name]


def test_the_rows_are_what_the_layer_sees(folder: Path, texts: Path, tmp_path: Path) -> None:
    """The output of a layer on its rows is what a hook sees it give."""
    out = tmp_path / "acts.safetensors"
    names = capture(str(folder), texts, out, layers="*1*q*")
    assert names
    kind = _reading.reader(folder)
    model = kind.load(folder)
    ids, mask = kind.tokens(folder, [x for x in texts.read_text().splitlines() if x][:16])
    inputs: dict[str, torch.Tensor] = {}
    for ours, linear in model.linears().items():
        linear.register_forward_hook(
            lambda _, __, y, ours=ours: inputs.update({ours: y.flatten(0, -2)[mask.flatten()]})
        )
    model(ids, mask)
    for name in names:
        stored = tensors.header(out)[name]
        rows = torch.from_numpy(tensors.array(stored))[: int(mask.sum())]
        (ours,) = [each for each in inputs if f"{each}.weight".endswith(name)]
        linear = model.linears()[ours]
        y = torch.nn.functional.linear(rows, linear.weight, linear.bias)
        assert torch.allclose(y, inputs[ours], atol=1e-5)


def test_rows_and_layers_are_limited(folder: Path, texts: Path, tmp_path: Path) -> None:
    every = capture(str(folder), texts, tmp_path / "all.safetensors", rows=7)
    assert {rows for rows, _ in every.values()} == {7}
    one = capture(str(folder), texts, tmp_path / "one.safetensors", layers=next(iter(every)))
    assert list(one) == [next(iter(every))]


def test_mistakes_are_said(folder: Path, texts: Path, tmp_path: Path) -> None:
    out, empty = tmp_path / "acts.safetensors", tmp_path / "empty.txt"
    empty.write_text("\n \n")
    for expected, arguments in {
        "There is no folder": (str(tmp_path / "nothing"), texts, out),
        "cannot be read": (str(folder), tmp_path / "nothing", out),
        "holds no text": (str(folder), empty, out),
        "Cannot write": (str(folder), texts, empty / "acts.safetensors"),
    }.items():
        with pytest.raises(UsageError, match=expected):
            capture(*arguments)
    with pytest.raises(UsageError, match="No linear layer matches"):
        capture(str(folder), texts, out, layers="nothing")
    assert not out.exists()


def test_the_command_writes_what_run_scores_on(
    hwbench: Callable[..., tuple[int, str, str]], folder: Path, texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "acts.safetensors"
    code, outcome, _ = hwbench(
        *("capture", "--model", str(folder), "--texts", str(texts), "--out", str(out))
    )
    assert code == 0
    name = next(iter(tensors.header(out)))
    weights = folder / "model.safetensors"
    assert f"--activations {out}" in " ".join(outcome.split())
    options = {**_own.OPTIONS, "weights": str(weights), "tensor": name, "activations": str(out)}
    rows = _own.activations(options)
    assert rows is not None
    assert rows.shape[1] == _own.weight(options).shape[1]


def test_a_line_without_end_is_cut_before_it_is_tokenized(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """128 tokens are read of it; a tokenizer would go through all of its characters first."""
    texts, long = tmp_path / "texts.txt", "word " * 200_000
    texts.write_text(f"{long}\n{long[:5000]}\n")
    kind = _reading.reader(folder)
    given: list[str] = []
    real = kind.tokens

    def tokens(path: Path, lines: Any) -> Any:
        given.extend(lines)
        return real(path, lines)

    monkeypatch.setattr(kind, "tokens", tokens)
    actual = capture(str(folder), texts, tmp_path / "acts.safetensors")
    assert {1 << 14, 5000} <= {len(each) for each in given}
    assert max(map(len, given)) == 1 << 14
    assert actual


# --- names and shapes of what is stored -----------------------------------------------------------


@pytest.mark.parametrize("name", ["consolidated", "model.fp16", "acts"])
def test_another_file_of_the_folder_changes_no_name(
    folder: Path, texts: Path, tmp_path: Path, name: str
) -> None:
    model = shutil.copytree(folder, tmp_path / "model")
    shutil.copy(folder / "model.safetensors", model / f"{name}.safetensors")
    actual = capture(str(model), texts, tmp_path / "acts.safetensors")
    assert actual == capture(str(folder), texts, tmp_path / "expected.safetensors")


def test_a_model_in_several_files_has_the_names_of_all(
    folder: Path, texts: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    expected = capture(str(folder), texts, tmp_path / "expected.safetensors")
    model = shutil.copytree(folder, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    places = {}
    for number in range(2):
        part = f"model-0000{number + 1}-of-00002.safetensors"
        names = [name for place, name in enumerate(weights) if place % 2 == number]
        save_file({name: weights[name] for name in names}, model / part, {"format": "pt"})
        places |= dict.fromkeys(names, part)
    index = {"metadata": {}, "weight_map": places}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert capture(str(model), texts, tmp_path / "acts.safetensors") == expected


@pytest.mark.parametrize("layers", ["*", "*attn.c_proj*", "*mlp*"])
def test_a_weight_that_is_stored_transposed_is_refused(
    texts: Path, tmp_path: Path, layers: str
) -> None:
    """GPT-2 stores (in, out): run would score a square one on inputs of its transpose."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=SIDE, n_layer=1, n_head=2, n_positions=64, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    model, out = write(tmp_path / "gpt2", transformers.GPT2LMHeadModel(config)), tmp_path / "acts"
    with pytest.raises(
        UsageError, match=r"is stored transposed, as in_features×out_features \(\d+×\d+\)"
    ):
        capture(str(model), texts, out, layers=layers)
    assert not out.exists()


def test_a_layer_whose_weight_the_files_do_not_name_is_refused(
    folder: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, out = _reading.reader(folder), tmp_path / "acts.safetensors"
    other = write_other(tmp_path / "other.safetensors")
    monkeypatch.setattr(kind, "weight_files", lambda _: [other])
    with pytest.raises(UsageError, match="hold no tensor that is the weight of"):
        capture(str(folder), texts, out)
    assert not out.exists()


def write_other(path: Path) -> Path:
    from safetensors.torch import save_file

    save_file({"x": torch.ones(2, 2)}, path)
    return path


# --- a folder that is mended while Python goes on -------------------------------------------------


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_that_was_mended_is_read_again(
    folder: Path, texts: Path, tmp_path: Path, file: str
) -> None:
    from safetensors.torch import load_file, save_file

    model, out = shutil.copytree(folder, tmp_path / "model"), tmp_path / "acts.safetensors"
    if file == "model.safetensors":
        weights = load_file(model / file)
        next(iter(weights.values())).fill_(float("nan"))
        save_file(weights, model / file, {"format": "pt"})
    elif file == "config.json":
        config = json.loads((model / file).read_text())
        (model / file).write_text(json.dumps({**config, "intermediate_size": 52}))
    else:
        (model / file).write_text("{}")
    with pytest.raises(UsageError):
        capture(str(model), texts, out)
    shutil.copy(folder / file, model / file)
    assert capture(str(model), texts, out) == capture(str(folder), texts, out)


def test_other_texts_and_weights_of_a_folder_are_other_inputs(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = shutil.copytree(folder, tmp_path / "model")
    first, _ = _reading.read(str(model))
    assert _reading.read(str(model))[0] is first
    states = _reading.last_states(str(model))[2]
    weights = {name: 2 * value for name, value in load_file(model / "model.safetensors").items()}
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    second, _ = _reading.read(str(model))
    name = next(iter(first.linears()))
    assert torch.equal(second.linears()[name].weight, 2 * first.linears()[name].weight)
    assert not torch.equal(_reading.last_states(str(model))[2], states)


def test_only_files_of_the_model_say_that_it_changed(tmp_path: Path) -> None:
    """A run may be written into its folder."""
    model = encoder(tmp_path)
    before = _models.state(model)
    (model / "run.jsonl").write_text("{}")
    assert _models.state(model) == before
    (model / "config.json").write_text((model / "config.json").read_text() + "\n")
    assert _models.state(model) != before
    assert _models.state(tmp_path / "nowhere") == ()
