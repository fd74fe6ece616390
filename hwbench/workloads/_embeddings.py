"""Sentence embeddings: what encoders are judged by, however they are read.

A sentence's embedding is the mean of its tokens in the last layer, or its first token where the
model's folder says so, and has length one (Reimers and Gurevych, Sentence-BERT, 2019,
arXiv:1908.10084). Further layers that sentence-transformers would put after that are not applied.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 (the name that everybody knows)
from torch import Tensor

from hwbench.checkpoints import CLS
from hwbench.quantities import RETRIEVAL_AGREEMENT
from hwbench.workloads._models import Model


class Embedder(Model):
    """An encoder; what it gives are sentence embeddings."""

    pooling: str
    """``mean`` or ``cls``, as ``models.pooling`` reads it."""

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Sentence embeddings of length one, (batch, hidden)."""
        return pooled(self.states(ids, mask)[-1], mask, self.pooling)

    def apart(self, ours: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
        """One minus the cosine of the embeddings."""
        found, target = (pooled(each, mask, self.pooling) for each in (ours, wanted))
        return F.relu(1 - (found * target).sum(-1).mean())

    def judge(self, student: Model, ids: Tensor, mask: Tensor) -> tuple[float, dict[str, float]]:
        """The mean cosine to this model's embeddings, and the agreement of nearest neighbours."""
        found, wanted = student(ids, mask), self(ids, mask)
        cosine = float((found.double() * wanted.double()).sum(-1).mean())
        return cosine, {RETRIEVAL_AGREEMENT.name: agreement(found, wanted)}


def pooled(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """The mean over the tokens, or the first, of length one: (batch, tokens, h) → (batch, h)."""
    if pooling == CLS:
        return F.normalize(hidden[:, 0], dim=-1)
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
