"""What ``compress`` asks of a trained model, whatever kind it is of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

MOST_TOKENS = 128
"""Longer texts are cut off."""


class Model(nn.Module, ABC):
    """Token ids and mask of shape (batch, tokens) → what the model is judged by."""

    @abstractmethod
    def states(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """The output of every layer, (batch, tokens, hidden), last one last; mask: is a token."""

    @abstractmethod
    def linears(self) -> dict[str, nn.Linear]:
        """The linear layers that a format can stand in for, by name."""

    @abstractmethod
    def vocabulary(self) -> int:
        """How many tokens there are."""

    @abstractmethod
    def apart(self, ours: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
        """How far apart the outputs of two last states are; healing makes it small."""

    @abstractmethod
    def judge(self, student: Model, ids: Tensor, mask: Tensor) -> tuple[float, dict[str, float]]:
        """The score of a student of this model, and what is found beside it."""


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows of token ids as ids and mask, (texts, tokens), as short as the longest row allows."""
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, values in enumerate(rows):
        ids[row, : len(values)] = torch.tensor(values)
        mask[row, : len(values)] = True
    return ids, mask
