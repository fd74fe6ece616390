"""A BERT encoder in plain torch, read from a folder in Hugging Face's layout; nothing is executed.

Devlin et al., BERT, 2019, arXiv:1810.04805. Modules have the names of the weights in the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F  # noqa: N812 (the name that everybody knows)
from torch import Tensor, nn

from hwbench import checkpoints as models
from hwbench import files
from hwbench.errors import UsageError, shortened
from hwbench.workloads import _whole
from hwbench.workloads._embeddings import Embedder
from hwbench.workloads._models import (
    MOST_TOKENS,
    check_tokens,
    kept_while_unchanged,
    not_finite,
    padded,
    quantised,
)

_WORDS = "embeddings.word_embeddings.weight"


class Bert(Embedder):
    """A BERT encoder without its pooler."""

    def __init__(self, config: dict[str, Any], pooling: str = models.MEAN) -> None:
        super().__init__()
        self.pooling = pooling
        hidden, eps = int(config["hidden_size"]), float(config["layer_norm_eps"])
        self.embeddings: Any = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(int(config["vocab_size"]), hidden),
                "position_embeddings": nn.Embedding(int(config["max_position_embeddings"]), hidden),
                "token_type_embeddings": nn.Embedding(int(config["type_vocab_size"]), hidden),
                "LayerNorm": nn.LayerNorm(hidden, eps),
            }
        )
        layers = [_Layer(config) for _ in range(int(config["num_hidden_layers"]))]
        self.encoder: Any = nn.ModuleDict({"layer": nn.ModuleList(layers)})

    def states(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        e = self.embeddings
        places = torch.arange(ids.shape[1], device=ids.device)
        x = e["word_embeddings"](ids) + e["position_embeddings"](places)
        x = e["LayerNorm"](x + e["token_type_embeddings"].weight[0])
        outputs = []
        for layer in self.encoder["layer"]:
            x = layer(x, mask)
            outputs.append(x)
        return outputs

    def shorten(self, depth: float) -> None:
        layers = self.encoder["layer"]
        self.encoder["layer"] = layers[: _whole.shorter(depth, len(layers))]

    def linears(self) -> dict[str, nn.Linear]:
        return {n: m for n, m in self.named_modules() if isinstance(m, nn.Linear)}

    def vocabulary(self) -> int:
        return int(self.embeddings["word_embeddings"].num_embeddings)

    @classmethod
    def unreadable(cls, folder: Path) -> str | None:
        return _unreadable(folder)

    @classmethod
    def load(cls, folder: Path) -> Self:
        from safetensors.torch import load_file

        model = cls(models.config(folder), models.pooling(folder))
        tensors = load_file(files.regular(folder / "model.safetensors"))
        ours = _own(tensors)
        tensors = {ours[name]: value for name, value in tensors.items()}
        model.load_state_dict({name: tensors[name].float() for name in model.state_dict()})
        return model.eval().requires_grad_(False)

    @classmethod
    def shapes(cls, folder: Path) -> list[tuple[int, int]]:
        config = models.config(folder)
        hidden, inner = int(config["hidden_size"]), int(config["intermediate_size"])
        each = [(hidden, hidden)] * 4 + [(inner, hidden), (hidden, inner)]
        return each * int(config["num_hidden_layers"])

    @classmethod
    def tokens(cls, folder: Path, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_padding()
        places = int(models.config(folder)["max_position_embeddings"])
        tokenizer.enable_truncation(min(MOST_TOKENS, places))
        rows = [each.ids for each in tokenizer.encode_batch(list(texts))]
        return padded(rows)


class _Layer(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden, inner = int(config["hidden_size"]), int(config["intermediate_size"])
        eps = float(config["layer_norm_eps"])
        self.heads = int(config["num_attention_heads"])
        self.attention: Any = nn.ModuleDict(
            {
                "self": nn.ModuleDict(
                    {name: nn.Linear(hidden, hidden) for name in ("query", "key", "value")}
                ),
                "output": _closing(hidden, hidden, eps),
            }
        )
        self.intermediate: Any = nn.ModuleDict({"dense": nn.Linear(hidden, inner)})
        self.output: Any = _closing(inner, hidden, eps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        parts = self.attention["self"]
        q, k, v = (
            parts[name](x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        out = self.attention["output"]
        x = out["LayerNorm"](out["dense"](attended.transpose(1, 2).flatten(2)) + x)
        inner = F.gelu(self.intermediate["dense"](x))
        return self.output["LayerNorm"](self.output["dense"](inner) + x)


def _closing(inputs: int, hidden: int, eps: float) -> nn.ModuleDict:
    return nn.ModuleDict(
        {"dense": nn.Linear(inputs, hidden), "LayerNorm": nn.LayerNorm(hidden, eps)}
    )


@kept_while_unchanged(4)
def _unreadable(folder: Path) -> str | None:
    try:
        if reason := _impossible(models.config(folder)):
            return f"{folder / 'config.json'} {reason}."
        with torch.device("meta"):
            model = Bert(models.config(folder))
        check_tokens(Bert, folder, model.vocabulary())
        shapes = _held(folder)
    except UsageError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 (the boundary: others' code reads others' files)
        why = shortened(f"{type(error).__name__}: {error}", 160)
        return f"{folder} holds no BERT that can be read ({why})."
    for name, value in model.state_dict().items():
        if shapes.get(name) != list(value.shape):
            return f"{folder}/model.safetensors has no {name} of shape {list(value.shape)}."
    return quantised(folder / "model.safetensors") or not_finite(folder / "model.safetensors")


_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
    "max_position_embeddings", "type_vocab_size",
)  # fmt: skip


def _impossible(config: dict[str, Any]) -> str | None:
    """Says which size no BERT can have; None where there is none."""
    for name in _SIZES:
        if int(config[name]) < 1:
            return f"gives {name} {int(config[name])}, where 1 is the least"
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    if hidden % heads:
        return f"cuts a hidden_size of {hidden} into {heads} heads, which is no whole number each"
    return None


def _held(folder: Path) -> dict[str, list[int]]:
    """The shapes of the weights of a folder by the names that modules have."""
    from safetensors import safe_open

    with safe_open(files.regular(folder / "model.safetensors"), framework="pt") as file:
        ours = _own(file.keys())
        return {ours[name]: file.get_slice(name).get_shape() for name in ours}


def _own(names: Iterable[str]) -> dict[str, str]:
    """The names that our modules have for those of a checkpoint.

    What stands before the embeddings stands before all (``bert.``, ``model.``), and the first
    checkpoints call weight and bias of a layer norm ``gamma`` and ``beta``, as TensorFlow does.
    """
    stored = list(names)
    before = next((n.removesuffix(_WORDS) for n in stored if n.endswith(_WORDS)), "")
    old = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    renamed = {}
    for name in stored:
        ours = name.removeprefix(before)
        for ending, today in old.items():
            if ours.endswith(ending):
                ours = ours.removesuffix(ending) + today
        renamed[name] = ours
    return renamed
