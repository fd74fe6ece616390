"""A BERT encoder in plain torch, read from a folder in Hugging Face's layout; nothing is executed.

Devlin et al., BERT, 2019, arXiv:1810.04805. Sentence embeddings are the mean over the tokens of the
last layer, of length one (Reimers and Gurevych, Sentence-BERT, 2019, arXiv:1908.10084). Modules
have the names of the weights in the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the name that everybody knows)
from torch import Tensor, nn

from hwbench import models
from hwbench.workloads._models import MOST_TOKENS, Model, padded


class Encoder(Model):
    """A BERT encoder; what it gives are sentence embeddings."""

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
        return {n: m for n, m in self.named_modules() if isinstance(m, nn.Linear)}

    def vocabulary(self) -> int:
        return int(self.embeddings["word_embeddings"].num_embeddings)

    def apart(self, ours: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
        """One minus the cosine of the embeddings."""
        cosine = (pooled(ours, mask) * pooled(wanted, mask)).sum(-1).mean()
        return F.relu(1 - cosine)

    def judge(self, student: Model, ids: Tensor, mask: Tensor) -> tuple[float, dict[str, float]]:
        """The mean cosine to this model's embeddings, and the agreement of nearest neighbours."""
        found, wanted = student(ids, mask), self(ids, mask)
        cosine = float((found.double() * wanted.double()).sum(-1).mean())
        return cosine, {"retrieval_agreement": agreement(found, wanted)}


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


def agreement(ours: Tensor, wanted: Tensor, nearest: int = 3) -> float:
    """How many of the ``nearest`` neighbours of each text are the same in both embeddings.

    Args:
        ours: embeddings of length one, (texts, hidden).
        wanted: those of the original model.
        nearest: how many neighbours count; the text itself is none.
    """
    sets = []
    for embeddings in (ours, wanted):
        alike = embeddings @ embeddings.T
        alike.fill_diagonal_(-2.0)
        sets.append(alike.topk(nearest).indices)
    same = (sets[0].unsqueeze(-1) == sets[1].unsqueeze(-2)).any(-1)
    return float(same.float().mean())


def load(folder: Path) -> Encoder:
    """The encoder of a folder with config.json and model.safetensors, in float32."""
    from safetensors.torch import load_file

    model = Encoder(models.config(folder))
    found = load_file(folder / "model.safetensors")
    found = {name.removeprefix("bert."): value for name, value in found.items()}
    wanted = model.state_dict()
    if absent := sorted(set(wanted) - set(found)):
        raise KeyError(f"{folder}/model.safetensors has no {absent[0]}.")
    model.load_state_dict({name: found[name].float() for name in wanted})
    return model.eval().requires_grad_(False)


def shapes(folder: Path) -> list[tuple[int, int]]:
    """(out_features, in_features) of every linear layer, from the configuration alone."""
    known = models.config(folder)
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
    return padded(rows)
