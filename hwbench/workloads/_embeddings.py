"""Sentence embeddings, by which encoders of every kind are judged.

A sentence's embedding is the mean of its tokens in the last layer, or its first token where the
model's folder says so, and has length one (Reimers and Gurevych, Sentence-BERT, 2019,
arXiv:1908.10084). Further layers that sentence-transformers would put after that are not applied.
"""

from __future__ import annotations

from statistics import fmean

import torch
import torch.nn.functional as F  # noqa: N812 (the name that everybody knows)
from torch import Tensor

from hwbench import quantities
from hwbench.analysis import blocks
from hwbench.checkpoints import CLS
from hwbench.quantities import RETRIEVAL_AGREEMENT
from hwbench.workloads._models import Model


class Embedder(Model):
    """An encoder; its outputs are sentence embeddings."""

    pooling: str
    """``mean`` or ``cls``, as ``models.pooling`` reads it."""

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Sentence embeddings of length one, (batch, hidden)."""
        return pooled(self.states(ids, mask)[-1], mask, self.pooling)

    def apart(self, ours: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
        """One minus the cosine of the embeddings."""
        embedding, target = (pooled(each, mask, self.pooling) for each in (ours, wanted))
        return F.relu(1 - (embedding * target).sum(-1).mean())

    def judge(self, student: Model, ids: Tensor, mask: Tensor) -> tuple[float, dict[str, float]]:
        """The mean cosine to this model's embeddings, and the agreement of nearest neighbours."""
        embeddings, wanted = student(ids, mask), self(ids, mask)
        cosine = float((embeddings.double() * wanted.double()).sum(-1).mean())
        return cosine, {RETRIEVAL_AGREEMENT.name: agreement(embeddings, wanted)}

    def paired(self, student: Model, ids: Tensor, mask: Tensor) -> dict[str, float | list[float]]:
        """How well the student finds each sentence's partner; no teacher is needed for that."""
        embeddings = student(ids, mask)
        first, ranks = partners(embeddings)
        pairs = [_of_pairs(each) for each in (ranks, leads(embeddings))]
        mrr, lead = (blocks.mean(each) for each in pairs)
        return {
            quantities.PARTNER_TOP1.name: fmean(first),
            quantities.PARTNER_MRR.name: mrr.value,
            quantities.PARTNER_MRR_LOW.name: mrr.low,
            quantities.PARTNER_MRR_HIGH.name: min(1.0, mrr.high),
            quantities.CENTRED_LEAD.name: lead.value,
            quantities.CENTRED_LEAD_LOW.name: lead.low,
            quantities.CENTRED_LEAD_HIGH.name: lead.high,
            quantities.PAIR_MRR.name: pairs[0],
            quantities.PAIR_LEADS.name: pairs[1],
        }


def pooled(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """The mean over the tokens, or the first, of length one: (batch, tokens, h) → (batch, h)."""
    if pooling == CLS:
        return F.normalize(hidden[:, 0], dim=-1)
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    return F.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)


def partners(embeddings: Tensor) -> tuple[list[float], list[float]]:
    """How likely each sentence's partner is found first, and one over the place where it is found.

    Sentences 2k and 2k + 1 are partners. Sentences that are equally near share their places: an
    embedding that is the same for all finds nobody.

    Args:
        embeddings: of length one, (sentences, hidden).
    """
    alike, own = _alike(embeddings)
    others = ~torch.eye(len(alike), dtype=torch.bool, device=alike.device)
    above = ((alike > own) & others).sum(1)
    level = (alike == own).sum(1)  # the partner among them, never the sentence itself
    first = torch.where(above == 0, 1 / level, 0)
    return first.tolist(), (1 / (above + (level + 1) / 2)).tolist()


def leads(embeddings: Tensor) -> list[float]:
    """By how much the cosine to each sentence's partner is above the mean of those to all others.

    The mean of all embeddings is subtracted first: what they share tells sentences apart no better.
    """
    wide = embeddings.double()
    alike, own = _alike(F.normalize(wide - wide.mean(0), dim=-1))
    rest = (alike.clamp_min(-1).sum(1) + 1 - own[:, 0]) / (len(alike) - 2)
    return (own[:, 0] - rest).tolist()


def _alike(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """The cosines between sentences, -2 to themselves, and to the partner of each, (n, 1)."""
    wide = embeddings.double()
    alike = (wide @ wide.T).fill_diagonal_(-2.0)
    places = torch.arange(len(alike), device=alike.device)
    return alike, alike[places, places ^ 1].unsqueeze(1)


def _of_pairs(values: list[float]) -> list[float]:
    """The means of neighbours: the two sentences of a pair are one observation."""
    return [fmean(pair) for pair in zip(values[::2], values[1::2], strict=True)]


def agreement(ours: Tensor, target: Tensor, nearest: int = 3) -> float:
    """How many of the ``nearest`` neighbours of each text are the same in both embeddings.

    Args:
        ours: embeddings of length one, (texts, hidden).
        target: those of the original model.
        nearest: how many neighbours count; the text itself is none.
    """
    sets = []
    for embeddings in (ours, target):
        alike = embeddings @ embeddings.T
        alike.fill_diagonal_(-2.0)
        sets.append(alike.topk(nearest).indices)
    same = (sets[0].unsqueeze(-1) == sets[1].unsqueeze(-2)).any(-1)
    return float(same.float().mean())
