"""A causal language model of a folder in Hugging Face's layout, through ``transformers``.

Weights are read by safetensors, code of the folder is never run, and nothing is downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the name that everybody knows)
from torch import Tensor, nn

from hwbench.errors import shortened
from hwbench.workloads._models import MOST_TOKENS, Model, padded

_LOCAL = {"local_files_only": True, "trust_remote_code": False}


class Causal(Model):
    """A model that predicts the next token; what it gives are logits, (batch, tokens, vocabulary).

    The layer that makes the logits stays as it is: it mostly shares its weight with the embeddings.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        _make_linear(model)

    def states(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        found = self.model(
            input_ids=ids, attention_mask=mask.long(), output_hidden_states=True, use_cache=False
        )
        return list(found.hidden_states[1:])

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits, (batch, tokens, vocabulary)."""
        return self.model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits

    def linears(self) -> dict[str, nn.Linear]:
        head = self.model.get_output_embeddings()
        return {
            name: each
            for name, each in self.named_modules()
            if isinstance(each, nn.Linear) and each is not head
        }

    def vocabulary(self) -> int:
        return int(self.model.config.vocab_size)

    def apart(self, ours: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
        """The divergence of the next token's distribution from the wanted one, in nats."""
        head = self.model.get_output_embeddings()
        logs, targets = (F.log_softmax(head(each[mask]), -1) for each in (ours, wanted))
        return F.kl_div(logs, targets, log_target=True, reduction="batchmean")

    def judge(self, student: Model, ids: Tensor, mask: Tensor) -> tuple[float, dict[str, float]]:
        """The student's perplexity; beside it this model's own, and the first over the second."""
        before, after = (perplexity(each(ids, mask), ids, mask) for each in (self, student))
        return after, {"original_perplexity": before, "perplexity_ratio": after / before}


def perplexity(logits: Tensor, ids: Tensor, mask: Tensor) -> float:
    """exp of the mean negative log-likelihood of each token after the first of its text.

    Args:
        logits: (texts, tokens, vocabulary).
        ids: (texts, tokens).
        mask: (texts, tokens), True at tokens; padding is on the right.
    """
    scored = mask[:, 1:]
    likely = F.log_softmax(logits[:, :-1][scored].float(), -1)
    own = likely.gather(-1, ids[:, 1:][scored].unsqueeze(-1))
    return math.exp(-float(own.double().mean()))


def _make_linear(model: nn.Module) -> None:
    """Put torch's Linear in the place of transformers' Conv1D, whose weight lies transposed."""
    from transformers.pytorch_utils import Conv1D

    for name, each in list(model.named_modules()):
        if isinstance(each, Conv1D):
            rows, columns = each.weight.shape[1], each.weight.shape[0]
            linear = nn.Linear(columns, rows, device="meta")
            linear.weight = nn.Parameter(each.weight.detach().t().contiguous())
            linear.bias = nn.Parameter(each.bias.detach())
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, linear)


def load(folder: Path) -> Causal:
    """The model of a folder, in float32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, use_safetensors=True, dtype=torch.float32, **_LOCAL
    )
    return Causal(model).eval().requires_grad_(False)


@lru_cache(maxsize=4)
def shapes(folder: Path) -> list[tuple[int, int]]:
    """(out_features, in_features) of every linear layer, from the configuration alone."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, **_LOCAL))
    return [(each.out_features, each.in_features) for each in Causal(model).linears().values()]


def unreadable(folder: Path) -> str | None:
    """Why ``transformers`` cannot make the model of this folder, in words; None where it can."""
    try:
        found = shapes(folder)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ImportError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        return f"transformers cannot read {folder}: {shortened(why, 160)}"
    return None if found else f"{folder} holds a model without linear layers."


def tokens(folder: Path, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask, (texts, tokens), as short as the longest text allows."""
    from transformers import AutoConfig, AutoTokenizer

    known = AutoConfig.from_pretrained(folder, **_LOCAL)
    most = min(MOST_TOKENS, getattr(known, "max_position_embeddings", MOST_TOKENS))
    tokenizer = AutoTokenizer.from_pretrained(folder, **_LOCAL)
    return padded([row[:most] for row in tokenizer(list(texts))["input_ids"]])
