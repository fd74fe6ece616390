"""A BERT encoder in plain torch, read from a folder in Hugging Face's layout; nothing is executed.

Devlin et al., BERT, 2019, arXiv:1810.04805. Sentence embeddings are the mean over the tokens of the
last layer, of length one (Reimers and Gurevych, Sentence-BERT, 2019, arXiv:1908.10084). Modules
have the names of the weights in the file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the name that everybody knows)
from torch import Tensor, nn

MOST_TOKENS = 128
"""Longer texts are cut off."""


class Encoder(nn.Module):
    """Token ids and mask of shape (batch, tokens) → hidden states (batch, tokens, hidden)."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
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
        """The output of every layer, the last one last; mask is True at tokens."""
        e = self.embeddings
        places = torch.arange(ids.shape[1], device=ids.device)
        x = e["word_embeddings"](ids) + e["position_embeddings"](places)
        x = e["LayerNorm"](x + e["token_type_embeddings"].weight[0])
        found = []
        for layer in self.encoder["layer"]:
            x = layer(x, mask)
            found.append(x)
        return found

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Sentence embeddings of length one, (batch, hidden)."""
        return pooled(self.states(ids, mask)[-1], mask)

    def linears(self) -> dict[str, nn.Linear]:
        """The linear layers by name."""
        return {n: m for n, m in self.named_modules() if isinstance(m, nn.Linear)}


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
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        out = self.attention["output"]
        x = out["LayerNorm"](out["dense"](seen.transpose(1, 2).flatten(2)) + x)
        inner = F.gelu(self.intermediate["dense"](x))
        return self.output["LayerNorm"](self.output["dense"](inner) + x)


def _closing(inputs: int, hidden: int, eps: float) -> nn.ModuleDict:
    return nn.ModuleDict(
        {"dense": nn.Linear(inputs, hidden), "LayerNorm": nn.LayerNorm(hidden, eps)}
    )


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean over the tokens, of length one: (batch, tokens, h) → (batch, h)."""
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    return F.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)


def unreadable(folder: Path) -> str | None:
    """Why a folder holds no encoder that can be read, in words; None where it does."""
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            return f"{folder} holds no {name}."
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind != "bert":
        return f"{folder} holds a model of type {kind!r}; encoders of type 'bert' can be read."
    return None


def config(folder: Path) -> dict[str, Any]:
    """The configuration of the encoder in a folder."""
    return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def load(folder: Path) -> Encoder:
    """The encoder of a folder with config.json and model.safetensors, in float32."""
    from safetensors.torch import load_file

    model = Encoder(config(folder))
    found = load_file(folder / "model.safetensors")
    found = {name.removeprefix("bert."): value for name, value in found.items()}
    wanted = model.state_dict()
    if absent := sorted(set(wanted) - set(found)):
        raise KeyError(f"{folder}/model.safetensors has no {absent[0]}.")
    model.load_state_dict({name: found[name].float() for name in wanted})
    return model.eval().requires_grad_(False)


def shapes(folder: Path) -> list[tuple[int, int]]:
    """(out_features, in_features) of every linear layer, from the configuration alone."""
    known = config(folder)
    hidden, inner = int(known["hidden_size"]), int(known["intermediate_size"])
    each = [(hidden, hidden)] * 4 + [(inner, hidden), (hidden, inner)]
    return each * int(known["num_hidden_layers"])


def tokens(folder: Path, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask, (texts, tokens), as short as the longest text allows."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MOST_TOKENS)
    rows = [each.ids for each in tokenizer.encode_batch(list(texts))]
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, values in enumerate(rows):
        ids[row, : len(values)] = torch.tensor(values)
        mask[row, : len(values)] = True
    return ids, mask
