"""The interface of trained models of every kind, for ``compress`` and its siblings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, update_wrapper
from pathlib import Path
from typing import Any, ClassVar, Generic, ParamSpec, Self, TypeVar

import torch
from torch import Tensor, nn

from hwbench import checkpoints as models
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


State = tuple[tuple[str, int, int], ...]
"""Name, bytes and time of the last change, in nanoseconds, of each file of a folder."""


def state(folder: Path) -> State:
    """What a model is read from now; it differs once such a file was written, replaced or removed.

    Other files of the folder, such as a run that is being written there, are no part of it.

    Raises:
        OSError: the folder cannot be read.
    """
    facts = []
    for path in files.listed(folder, *models.FILES):
        if path.is_file():
            about = path.stat()
            facts.append((str(path), about.st_size, about.st_mtime_ns))
    return tuple(facts)


_P = ParamSpec("_P")
_T = TypeVar("_T")


class KeptWhileUnchanged(Generic[_P, _T]):
    """A function of a folder, its last argument, whose results are kept while that is unchanged."""

    def __init__(self, function: Callable[_P, _T], most: int) -> None:
        def of_state(now: State, *args: _P.args, **named: _P.kwargs) -> _T:
            del now  # it is part of the key alone
            return function(*args, **named)

        self._kept: Any = lru_cache(maxsize=most)(of_state)
        update_wrapper(self, function)

    def __call__(self, *args: _P.args, **named: _P.kwargs) -> _T:
        """The result for the folder as it is now."""
        folder = args[-1]
        assert isinstance(folder, Path)
        result: _T = self._kept(state(folder), *args, **named)
        return result

    def cache_clear(self) -> None:
        """Forget every result."""
        self._kept.cache_clear()


def kept_while_unchanged(
    most: int,
) -> Callable[[Callable[_P, _T]], KeptWhileUnchanged[_P, _T]]:
    """Keep the last ``most`` results of a function by its arguments, of which a folder is the last.

    A result is made anew once a file of the folder changed: a notebook outlives many a mistake.
    """
    return lambda function: KeptWhileUnchanged(function, most)


class Model(nn.Module, ABC):
    """Token ids and mask of shape (batch, tokens) → the outputs that the model is judged by.

    A class is a way to read models, too: ask ``unreadable`` before anything else of a folder.
    """

    PREFIX: ClassVar[str] = ""
    """What stands before the name of a layer in this module, and not in the one that users have."""

    transposed: frozenset[str] = frozenset()
    """The layers whose weights stand in the file as (in_features, out_features)."""

    @classmethod
    @abstractmethod
    def unreadable(cls, folder: Path) -> str | None:
        """Why the model of this folder cannot be read, in words; None where it can."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> Self:
        """The model of a folder, in float32."""

    @classmethod
    def weight_files(cls, folder: Path) -> list[Path]:
        """The files that ``load`` reads weights from.

        Raises:
            UsageError: they are not those of a folder in this layout.
        """
        return [folder / models.WEIGHTS]

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
        """The linear layers that a format can stand in for, by the name that users know."""

    def inside(self) -> nn.Module:
        """The module that users have: names of layers are relative to it."""
        return self.get_submodule(self.PREFIX.removesuffix("."))

    def own_names(self, names: Iterable[str]) -> list[str]:
        """Names of layers as ``linears`` has them; one that it has not may be there too.

        Plans and suites of older versions have the prefix of this class before them.
        """
        linears = self.linears()
        return [name if name in linears else name.removeprefix(self.PREFIX) for name in names]

    def shorten(self, depth: float) -> None:
        """Keep the first blocks alone, that share of them.

        Raises:
            UsageError: the class does not know its blocks.
        """
        raise UsageError(f"Models read by {type(self).__name__} keep all of their blocks.")

    @abstractmethod
    def vocabulary(self) -> int:
        """How many tokens there are."""

    def no_outputs(self) -> str | None:
        """Why ``apart`` knows no outputs of the last states, in words; None where it does."""
        return None

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
