"""A language model of GPT-2's form, and the tokens of somebody's own files; no downloads."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the name that everybody knows)
from numpy.typing import NDArray
from torch import Tensor, nn

from hwbench import files
from hwbench.workloads._networks import Block, Make

_VOCABULARY = 50257  # of GPT-2's tokens
_BYTES = 256
_FILES = {"bin": ("train.bin", "val.bin"), "txt": ("train.txt", "val.txt")}
_WANTED = "train.bin and val.bin (GPT-2's tokens as uint16) or train.txt and val.txt"
_SCORED = 2**17  # tokens of the validation file, or all that it has
_AT_ONCE = 4096  # tokens at a time in scoring: the logits of all of them exist at once


class Language(nn.Module):
    """(batch, tokens) of token ids → (batch, tokens, vocabulary): logits of each next token.

    GPT-2's form (Radford et al., Language Models are Unsupervised Multitask Learners, 2019):
    learned positions, normalisation before each part of a block, GELU, a feed-forward part four
    times as wide, and a head that shares the weight of the embeddings. What a block adds begins
    smaller by the root of the number of such sums. Queries, keys and values are three layers, and
    there is no dropout.
    """

    def __init__(
        self, width: int, make: Make, *, vocabulary: int, context: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(
            [
                Block(width, make, heads, wider=4, causal=True, scale=(2 * depth) ** -0.5)
                for _ in range(depth)
            ]
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits."""
        x = self.tokens(ids) + self.places.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


class Tokens(NamedTuple):
    """Token ids of two files, which stay on the disk; training draws windows of them."""

    train: NDArray[np.unsignedinteger]
    validation: NDArray[np.unsignedinteger]
    context: int
    where: torch.device

    def batches(self, size: int, source: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Windows from random places, without end: ids and the id after each, (size, context)."""
        places = len(self.train) - self.context
        while True:
            begins = torch.randint(places, (size,), generator=source, device=source.device)
            yield self._windows(self.train, begins.tolist())

    def score(self, network: nn.Module) -> float:
        """Mean nats a token on the same windows every time, spread over the validation file."""
        begins, total, count = self.scored(), 0.0, 0
        step = max(1, _AT_ONCE // self.context)
        with torch.no_grad():
            for first in range(0, len(begins), step):
                ids, after = self._windows(self.validation, begins[first : first + step])
                logits = network(ids).flatten(0, 1).float()
                total += float(F.cross_entropy(logits, after.flatten(), reduction="sum"))
                count += after.numel()
        return total / count

    def scored(self) -> list[int]:
        """Where the windows begin that are scored; none overlaps another."""
        whole = (len(self.validation) - 1) // self.context
        picked = np.linspace(0, whole - 1, min(whole, max(1, _SCORED // self.context)))
        return [round(place) * self.context for place in picked.tolist()]

    def _windows(
        self, ids: NDArray[np.unsignedinteger], begins: list[int]
    ) -> tuple[Tensor, Tensor]:
        cut = np.stack([ids[begin : begin + self.context + 1] for begin in begins])
        both = torch.from_numpy(cut.astype(np.int64)).to(self.where)
        return both[:, :-1], both[:, 1:]


def no_tokens(folder: Path, context: int) -> str | None:
    """Why the folder has no text to learn from, in words; None where it does."""
    if folder == Path():
        return f"Text is read from a folder of yours, given with --data: {_WANTED}."
    for name in _FILES[_kind(folder)]:
        if not (folder / name).is_file():
            return f"{folder} holds no {name}; it should hold {_WANTED}."
        size, item = (folder / name).stat().st_size, _dtype(folder).itemsize
        if size % item:
            return f"{folder / name} is damaged: {size} bytes are no whole tokens of {item}."
        if size // item <= context:
            return (
                f"{folder / name} is too short: {size // item} tokens, "
                f"where a context of {context} needs {context + 1}."
            )
        if reason := _strange(folder, name):
            return reason
    facts = (train := folder / _FILES[_kind(folder)][0]).stat()
    return _too_plain(train, _dtype(folder), facts.st_size, facts.st_mtime_ns)


def vocabulary(folder: Path) -> int:
    """How many tokens there are: GPT-2's, or one for each byte where the folder holds text."""
    return _VOCABULARY if _kind(folder) == "bin" else _BYTES


def tokens(folder: Path, context: int, where: torch.device) -> Tokens:
    """The two files of a folder: ``.bin`` as nanoGPT prepares them, or text byte by byte.

    A ``.bin`` is a row of uint16 in the byte order of little-endian machines. Ask ``no_tokens``
    first.

    Raises:
        ValueError: a token is not one of GPT-2's.
    """
    train, validation = (_ids(folder, name) for name in _FILES[_kind(folder)])
    return Tokens(train, validation, context, where)


def _ids(folder: Path, name: str) -> NDArray[np.unsignedinteger]:
    if reason := _strange(folder, name):
        raise ValueError(reason)
    return np.memmap(files.regular(folder / name), dtype=_dtype(folder), mode="r")


def _strange(folder: Path, name: str) -> str | None:
    """Says that a file holds a number that is no token; None where it does not."""
    facts = (folder / name).stat()
    largest = _largest(folder / name, _dtype(folder), facts.st_size, facts.st_mtime_ns)
    if largest < vocabulary(folder):
        return None
    return f"{folder / name} has the token {largest}; GPT-2 has 0 to {_VOCABULARY - 1}."


@lru_cache(maxsize=8)
def _largest(path: Path, dtype: np.dtype[np.unsignedinteger], size: int, changed: int) -> int:
    """The largest token of a file as it was at that time; a long one is read once a process."""
    del size, changed
    return int(np.memmap(files.regular(path), dtype=dtype, mode="r").max())


@lru_cache(maxsize=8)
def _too_plain(
    path: Path, dtype: np.dtype[np.unsignedinteger], size: int, changed: int
) -> str | None:
    """Whether the values of a file are too few to be those of a text, in words."""
    del size, changed
    ids = np.memmap(files.regular(path), dtype=dtype, mode="r")
    if int(ids.min()) == int(ids.max()):
        return f"{path} holds one token again and again, which is no text."
    if dtype.itemsize == 2 and not ids[1::2].any():
        return f"{path} holds tokens of 32 bits; write them as uint16, as nanoGPT does."
    return None


def _kind(folder: Path) -> str:
    """``txt`` where the folder holds text and nothing of tokens, else ``bin``."""
    there = {kind: any((folder / n).exists() for n in names) for kind, names in _FILES.items()}
    return "txt" if there["txt"] and not there["bin"] else "bin"


def _dtype(folder: Path) -> np.dtype[np.unsignedinteger]:
    return np.dtype("<u2" if _kind(folder) == "bin" else np.uint8)
