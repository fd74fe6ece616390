"""A causal language model, through ``transformers``."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 (the name that everybody knows)
from torch import Tensor

from hwbench.quantities import ORIGINAL_PERPLEXITY, PERPLEXITY_RATIO
from hwbench.workloads._likelihood import perplexity
from hwbench.workloads._models import Model
from hwbench.workloads._transformers import Pretrained


class Causal(Pretrained):
    """A model that predicts the next token; what it gives are logits, (batch, tokens, vocabulary).

    The layer that makes the logits stays as it is: it mostly shares its weight with the embeddings.
    """

    AUTO = "AutoModelForCausalLM"

    def states(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        found = self.model(
            input_ids=ids, attention_mask=mask.long(), output_hidden_states=True, use_cache=False
        )
        return list(found.hidden_states[1:])

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits, (batch, tokens, vocabulary)."""
        return self.model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits

    def apart(self, ours: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
        """The divergence of the next token's distribution from the wanted one, in nats."""
        head = self.model.get_output_embeddings()
        logs, targets = (F.log_softmax(head(each[mask]), -1) for each in (ours, wanted))
        return F.kl_div(logs, targets, log_target=True, reduction="batchmean")

    def judge(self, student: Model, ids: Tensor, mask: Tensor) -> tuple[float, dict[str, float]]:
        """The student's perplexity; beside it this model's own, and the first over the second."""
        before, after = (perplexity(each(ids, mask), ids, mask) for each in (self, student))
        ratio = after / before
        return after, {ORIGINAL_PERPLEXITY.name: before, PERPLEXITY_RATIO.name: ratio}
