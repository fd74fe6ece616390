"""The header of a GGUF file: which tensors it holds, and where. Pure; nothing is executed.

The format is a magic word, a version, metadata as pairs of key and value, and a table of tensors,
whose bytes follow (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). Every length in it
is held against the size of the file before it is believed. What the blocks of a quantised type mean
is left to the package ``gguf``.
"""

from __future__ import annotations

import importlib.util
import math
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hwbench import files
from hwbench.errors import MissingPartError, UsageError, shortened

MAGIC = b"GGUF"
INSTALL = "pip install gguf"
_VERSIONS = (2, 3)
_PLAIN = ("F64", "F32", "F16", "BF16", "I8", "I16", "I32", "I64")
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32  # bytes, where the file says no other
_SIDES = 4  # of a tensor at most


class Entry(NamedTuple):
    """One tensor: its sides as NumPy has them, and where its bytes lie."""

    name: str
    kind: str  # F32, BF16, I32 … as safetensors writes them, or a quantised type such as Q4_K
    shape: tuple[int, ...]
    start: int
    block: tuple[int, int]  # numbers and bytes of a block; (0, 0) of a plain type
    heads: int  # of a Llama's q or k, whose rows come in pairs, head by head; 0 for any other


class _Bytes:
    """A file that is read from its beginning, and never past its end."""

    def __init__(self, file: BinaryIO, size: int, printed: str) -> None:
        self.file, self.left, self.printed = file, size, printed

    def take(self, count: int) -> bytes:
        self.skip(count, move=False)
        return self.file.read(count)

    def skip(self, count: int, *, move: bool = True) -> None:
        if count > self.left:
            raise UsageError(f"{self.printed} is cut off: its header ends after the file does.")
        self.left -= count
        if move:
            self.file.seek(count, 1)

    def number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", errors="replace")


def header(path: Path, size: int) -> list[Entry]:
    """The tensors of a file, in its order.

    Raises:
        MissingPartError: the package ``gguf`` is not installed.
        UsageError: the file is damaged, or of another version.
    """
    printed = shortened(str(path))
    if importlib.util.find_spec("gguf") is None:
        raise MissingPartError(f"{printed} is a GGUF file; {INSTALL} brings what reads it.")
    with files.opened(path) as file:
        read = _Bytes(file, size, printed)
        read.skip(len(MAGIC))
        if (version := read.number("I")) not in _VERSIONS:
            raise UsageError(f"{printed} is a GGUF file of version {version}; 2 and 3 are read.")
        tensors, pairs = read.number("Q"), read.number("Q")
        metadata = dict(_pair(read) for _ in range(_held(read, pairs, 12)))
        entries = [_table(read) for _ in range(_held(read, tensors, 24))]
        step = metadata.get("general.alignment", _ALIGNMENT)
        if not (type(step) is int and step > 0):
            raise UsageError(f"{printed} is damaged: its alignment is no number of bytes.")
        begin = -(-(size - read.left) // step) * step
    return [_entry(printed, metadata, entry, begin, size) for entry in entries]


def _held(read: _Bytes, count: int, least: int) -> int:
    """A count that the rest of the file can hold, at so many bytes each at least."""
    if count * least > read.left:
        raise UsageError(f"{read.printed} is damaged: it counts more entries than it can hold.")
    return count


def _pair(read: _Bytes) -> tuple[str, Any]:
    return read.text(), _value(read, read.number("I"))


def _value(read: _Bytes, kind: int) -> Any:
    """A value of the metadata; None of an array, which is passed over."""
    if kind == _STRING:
        return read.text()
    if kind in _SCALARS:
        return read.number(_SCALARS[kind])
    if kind == _ARRAY:
        inner, count = read.number("I"), read.number("Q")
        if inner in _SCALARS:
            read.skip(count * struct.calcsize(f"<{_SCALARS[inner]}"))
            return None
        if inner == _STRING:
            for _ in range(_held(read, count, 8)):
                read.skip(read.number("Q"))
            return None
    raise UsageError(f"{read.printed} is damaged: its metadata hold a value of no known type.")


def _table(read: _Bytes) -> tuple[str, list[int], int, int]:
    """Name, sides (the fastest first), type and offset of a tensor."""
    name, count = read.text(), read.number("I")
    if count > _SIDES:
        raise UsageError(f"{read.printed} is damaged: {shortened(name)!r} has {count} sides.")
    sides = [read.number("Q") for _ in range(count)]
    return name, sides, read.number("I"), read.number("Q")


def _entry(
    printed: str,
    metadata: dict[str, Any],
    entry: tuple[str, list[int], int, int],
    begin: int,
    size: int,
) -> Entry:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    name, sides, number, offset = entry
    try:
        kind = GGMLQuantizationType(number)
    except ValueError:
        raise UsageError(
            f"{printed} holds {shortened(name)!r} in type {number}, which the installed gguf does "
            "not know."
        ) from None
    numbers, nbytes = GGML_QUANT_SIZES[kind]
    elements, shape = math.prod(sides), tuple(reversed(sides))
    if sides and sides[0] % numbers:
        raise UsageError(
            f"{printed} is damaged: the rows of {shortened(name)!r} are no whole blocks."
        )
    if begin + offset + elements // numbers * nbytes > size:
        raise UsageError(f"{printed} is cut off: {shortened(name)!r} ends after the file does.")
    block = (0, 0) if kind.name in _PLAIN else (numbers, nbytes)
    return Entry(name, kind.name, shape, begin + offset, block, _heads(metadata, name, shape))


def _heads(metadata: dict[str, Any], name: str, shape: tuple[int, ...]) -> int:
    """The number of heads of a Llama's q or k tensor; 0 for any other tensor."""
    parts = name.split(".")
    key = {"attn_q": "head_count", "attn_k": "head_count_kv"}.get(parts[-2] if parts[1:] else "")
    if metadata.get("general.architecture") != "llama" or key is None or parts[-1] != "weight":
        return 0
    heads = metadata.get(f"llama.attention.{key}", metadata.get("llama.attention.head_count"))
    if type(heads) is not int or heads < 1 or len(shape) != 2 or shape[0] % (2 * heads):
        return 0
    return heads


@lru_cache(maxsize=64)
def readable(kind: str) -> bool:
    """Whether the package turns blocks of a quantised type into numbers."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        numbers(np.zeros(GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1], np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def numbers(raw: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    """Whole blocks of a quantised type as float32, one after the other."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    # The caller looks for numbers that are not finite.
    with np.errstate(all="ignore"):
        values: NDArray[np.float32] = dequantize(raw.reshape(1, -1), GGMLQuantizationType[kind])
    return values.astype(np.float32, copy=False).ravel()
