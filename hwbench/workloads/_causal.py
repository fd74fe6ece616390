"""A causal language model, through ``transformers``."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 (the name that everybody knows)
from torch import Tensor

from hwbench.quantities import NEXT_TOKEN_DIVERGENCE, ORIGINAL_PERPLEXITY, PERPLEXITY_RATIO
from hwbench.workloads._likelihood import WORST, perplexity
from hwbench.workloads._models import Model
from hwbench.workloads._transformers import Pretrained

_AT_ONCE = 4  # texts at a time: the logits of two models exist for each


class Causal(Pretrained):
    """A model that predicts the next token; its outputs are logits, (batch, tokens, vocabulary).

    The layer that makes the logits stays as it is: it mostly shares its weight with the embeddings.
    """

    AUTO = "AutoModelForCausalLM"

    def states(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        output = (
            self.model.base_model(  # without the logits, which are most of a small model's work
                input_ids=ids,
                attention_mask=mask.long(),
                output_hidden_states=True,
                use_cache=False,
            )
        )
        return list(output.hidden_states[1:])

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits, (batch, tokens, vocabulary)."""
        return self.model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits

    def apart(self, ours: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """The divergence of the next token's distribution from the wanted one, in nats."""
        head = self.model.get_output_embeddings()
        logs, targets = (F.log_softmax(head(each[mask]), -1) for each in (ours, target))
        return F.kl_div(logs, targets, log_target=True, reduction="batchmean")

    def judge(self, student: Model, ids: Tensor, mask: Tensor) -> tuple[float, dict[str, float]]:
        """The student's perplexity; beside it this model's own, their ratio, and the divergence.

        The divergence is of the next token's distribution from this model's, in nats a token.
        """
        before, after = (perplexity(each(ids, mask), ids, mask) for each in (self, student))
        return after, {
            ORIGINAL_PERPLEXITY.name: before,
            PERPLEXITY_RATIO.name: after / before,
            NEXT_TOKEN_DIVERGENCE.name: self._diverged(student, ids, mask),
        }

    def _diverged(self, student: Model, ids: Tensor, mask: Tensor) -> float:
        total = 0.0
        for some, own in zip(ids.split(_AT_ONCE), mask.split(_AT_ONCE), strict=True):
            target, obtained = (F.log_softmax(each(some, own)[own], -1) for each in (self, student))
            lost = F.kl_div(obtained, target, reduction="sum", log_target=True)
            total += float(lost.nan_to_num(WORST, WORST))
        return max(0.0, total / int(mask.sum()))
