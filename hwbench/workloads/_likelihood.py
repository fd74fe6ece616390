"""How likely a language model finds the tokens of a text."""

from __future__ import annotations

import math

import torch.nn.functional as F  # noqa: N812 (the name that everybody knows)
from torch import Tensor

WORST = 1e30
"""The largest perplexity: far beyond that of any guess, and its square is a number still."""


def perplexity(logits: Tensor, ids: Tensor, mask: Tensor) -> float:
    """exp of the mean negative log-likelihood of each token after the first of its text.

    A model that is destroyed, so that its logits are no numbers or its perplexity is beyond
    ``WORST``, has ``WORST``: that a format destroys a model is an answer.

    Args:
        logits: (texts, tokens, vocabulary).
        ids: (texts, tokens).
        mask: (texts, tokens), True at tokens; padding is on the right.
    """
    scored = mask[:, 1:]
    likely = F.log_softmax(logits[:, :-1][scored].float(), -1)
    own = likely.gather(-1, ids[:, 1:][scored].unsqueeze(-1))
    return of_nats(-float(own.double().mean()))


def of_nats(lost: float) -> float:
    """The perplexity of that many nats a token; ``WORST`` where it is beyond that, or no number."""
    return math.exp(lost) if lost < math.log(WORST) else WORST  # NaN is not less
