"""The interface of trained models of every kind, for ``compress`` and its siblings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from hwbench import files
from hwbench.errors import UsageError, shortened
from hwbench.workloads import _texts

_WHOLE = ("F64", "F32", "F16", "BF16")  # as safetensors names them
MOST_TOKENS = 128
"""Longer texts are cut off."""


def quantised(*paths: Path) -> str | None:
    """Name a stored weight that holds codes; None where all hold floating-point numbers.

    Codes would be read as if they were values. No value is read.
    """
    from safetensors import safe_open

    for path in paths:
        with safe_open(files.regular(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                dtype = str(file.get_slice(name).get_dtype())
                # Masks that models keep as buffers are bytes too, and no weights.
                if name.endswith(".weight") and dtype not in _WHOLE:
                    return (
                        f"{path} holds {shortened(name)} as {dtype}, which is quantised; weights "
                        "of a whole precision can be read."
                    )
    return None


def not_finite(*paths: Path) -> str | None:
    """Name the stored weights that hold NaN or infinity; None where all are finite.

    Every value is read, one tensor at a time.
    """
    from safetensors import safe_open

    for path in paths:
        with safe_open(files.regular(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                value = file.get_tensor(name)
                if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                    return f"{path} holds values in {shortened(name)} that are no numbers."
    return None


class Model(nn.Module, ABC):
    """Token ids and mask of shape (batch, tokens) → the outputs that the model is judged by.

    A class is a way to read models, too: ask ``unreadable`` before anything else of a folder.
    """

    @classmethod
    @abstractmethod
    def unreadable(cls, folder: Path) -> str | None:
        """Why the model of this folder cannot be read, in words; None where it can."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> Self:
        """The model of a folder, in float32."""

    @classmethod
    @abstractmethod
    def shapes(cls, folder: Path) -> list[tuple[int, int]]:
        """(out_features, in_features) of every linear layer, from the configuration alone."""

    @classmethod
    @abstractmethod
    def tokens(cls, folder: Path, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask, (texts, tokens), as short as the longest text allows."""

    @abstractmethod
    def states(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """The output of every layer, (batch, tokens, hidden), last one last; mask: is a token."""

    @abstractmethod
    def linears(self) -> dict[str, nn.Linear]:
        """The linear layers that a format can stand in for, by name."""

    def shorten(self, depth: float) -> None:
        """Keep the first blocks alone, that share of them.

        Raises:
            UsageError: the class does not know its blocks.
        """
        raise UsageError(f"Models read by {type(self).__name__} keep all of their blocks.")

    @abstractmethod
    def vocabulary(self) -> int:
        """How many tokens there are."""

    @abstractmethod
    def apart(self, ours: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """How far apart the outputs of two last states are; healing makes it small."""

    @abstractmethod
    def judge(self, student: Model, ids: Tensor, mask: Tensor) -> tuple[float, dict[str, float]]:
        """The score of a student of this model, and further quantities beside it."""

    def paired(self, student: Model, ids: Tensor, mask: Tensor) -> dict[str, float | list[float]]:
        """Further quantities of a student, from sentences in pairs (each with the next one)."""
        del student, ids, mask
        return {}


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows of token ids as ids and mask, (texts, tokens), as short as the longest row allows."""
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, values in enumerate(rows):
        ids[row, : len(values)] = torch.tensor(values)
        mask[row, : len(values)] = True
    return ids, mask


def check_tokens(kind: type[Model], folder: Path, vocabulary: int) -> None:
    """Whether the tokenizer of a folder makes tokens that the model has, of every packaged text.

    Raises:
        UsageError: it does not.
    """
    ids, mask = kind.tokens(folder, [*_texts.calibration(), *_texts.held_out()])
    if not bool(mask.any(1).all()):
        raise UsageError(f"The tokenizer in {folder} makes no tokens of a text.")
    if int(ids.max()) >= vocabulary:
        raise UsageError(
            f"The tokenizer in {folder} makes token {int(ids.max())}; the model has {vocabulary}."
        )
