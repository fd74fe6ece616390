"""Tensors of a safetensors or GGUF file: read by their bytes, checked, and never executed.

The format of safetensors is eight bytes with the length of a header, the header as JSON, and the
bytes of the tensors (https://github.com/huggingface/safetensors); ``gguf_file`` reads that of GGUF.
Whatever stands in a file is data; a pickle is recognised by its first bytes and left alone. Pure:
torch is not needed to read a header.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwbench import files
from hwbench.checkpoints import gguf_file, smollm2
from hwbench.errors import UsageError, shortened

MOST = 64
"""Matrices that one run takes from a file."""
_HEADER_LIMIT = 100_000_000  # bytes, as safetensors itself has it
_CHUNK = 2**22  # elements that are looked at at once
_READ = {
    "F64": ("<f8", "float64"),
    "F32": ("<f4", "float32"),
    "F16": ("<f2", "float16"),
    "BF16": ("<u2", "bfloat16"),
}
_OTHER = {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8}
_PICKLE = (
    "a pickle, which is never loaded because loading it runs code; write the tensors with "
    "safetensors.torch.save_file"
)
_LFS = "is the pointer of a Git LFS file, not the file; git lfs pull brings it"
_MAGIC = (
    (b"version https://git-lfs", _LFS),
    (b"PK\x03\x04", f"is what torch.save writes, {_PICKLE}"),
    (b"\x80", f"is {_PICKLE}"),
)


@dataclass(frozen=True)
class Stored:
    """One tensor of a file: the place, type and shape of its bytes."""

    path: Path
    name: str
    kind: str  # as the file writes it: F32, BF16, I64 …
    shape: tuple[int, ...]
    start: int  # the first byte in the file
    block: tuple[int, int] = (0, 0)  # numbers and bytes of a block of a quantised type
    heads: int = 0  # of GGUF: rows come in pairs, head by head

    @property
    def dtype(self) -> str:
        """The name of its type in torch, such as ``bfloat16``."""
        return _READ[self.kind][1] if self.kind in _READ else self.kind

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{shortened(self.name)} of {shortened(self.path.name)}"


def split(text: str) -> tuple[Path, str | None]:
    """``FILE[:TENSOR]`` as the path and the name or pattern; None without one.

    A colon may stand in either: the shortest beginning that is there is the file.
    """
    if _there(text, Path.exists):
        return Path(text), None
    for place, character in enumerate(text):
        if character == ":" and _there(text[:place], Path.is_file):
            return Path(text[:place]), text[place + 1 :]
    before, colon, after = text.partition(":")
    return Path(before), after if colon else None


def _there(path: str, test: Callable[[Path], bool]) -> bool:
    """Whether the path passes the test; False where the text is no path at all."""
    try:
        return test(Path(path).expanduser())
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, ~ of nobody
        return False


def header(path: Path) -> Mapping[str, Stored]:
    """The tensors of a file by name.

    Raises:
        MissingPartError: it is of GGUF, and the package that reads its types is not installed.
        UsageError: the file is not there, or is of another kind; the sentence says what it is.
    """
    try:
        file = path.expanduser().resolve()
        if file.is_dir():
            raise UsageError(
                f"{shortened(str(path))} is a folder; give the .safetensors file in it that holds "
                "the tensor."
            )
        if file.exists() and not file.is_file():
            raise UsageError(f"{shortened(str(path))} is not a file.")
        state = file.stat()
        return _header(file, state.st_size, state.st_mtime_ns)
    except (OSError, ValueError, RuntimeError) as error:  # as in _there
        why = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"Cannot read {shortened(str(path))}: {shortened(why)}.") from error


@lru_cache(maxsize=16)
def _header(path: Path, size: int, changed: int) -> Mapping[str, Stored]:
    del changed  # it is part of the key alone
    printed = shortened(str(path))
    with files.opened(path) as file:
        first = file.read(64)
        if not first:
            raise UsageError(f"{printed} is empty.")
        if first.startswith(gguf_file.MAGIC):
            entries = gguf_file.header(path, size)
            return {each.name: Stored(path, *each) for each in entries}
        for magic, what in _MAGIC:
            if first.startswith(magic) and not _plausible(first, size):
                raise UsageError(f"{printed} {what}.")
        if not _plausible(first, size):
            raise UsageError(f"{printed} is neither a safetensors nor a GGUF file.")
        length = struct.unpack("<Q", first[:8])[0]
        file.seek(8)
        header = file.read(length)
    files.check_memory(path, header)
    try:
        table = json.loads(header)
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise UsageError(f"{printed} is no safetensors file: its header is no JSON object.")
    table.pop("__metadata__", None)
    return {name: _stored(path, name, entry, 8 + length, size) for name, entry in table.items()}


def _plausible(first: bytes, size: int) -> bool:
    """Whether a file begins as one of safetensors: the length of a header, and its bracket."""
    if len(first) < 9:
        return False
    length = struct.unpack("<Q", first[:8])[0]
    return bool(2 <= length <= min(_HEADER_LIMIT, size - 8) and first[8:9] == b"{")


def _stored(path: Path, name: str, entry: Any, begin: int, size: int) -> Stored:
    """One entry of the header, held against the size of the file."""
    printed = shortened(str(path))
    entry = entry if isinstance(entry, dict) else {}
    kind, shape, ends = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not (isinstance(kind, str) and _sizes(shape) and _sizes(ends) and len(ends) == 2):
        raise UsageError(f"{printed} is damaged: its header does not describe {shortened(name)!r}.")
    item = np.dtype(_READ[kind][0]).itemsize if kind in _READ else _OTHER.get(kind)
    if item is not None and ends[1] - ends[0] != item * math.prod(shape):
        raise UsageError(
            f"{printed} is damaged: the bytes of {shortened(name)!r} are not those of its shape."
        )
    if begin + ends[1] > size:
        raise UsageError(f"{printed} is cut off: {shortened(name)!r} ends after the file does.")
    return Stored(path, name, kind, tuple(shape), begin + ends[0])


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and each >= 0 for each in value)


def matrices(path: Path, pattern: str | None) -> list[Stored]:
    """The matrices of floating-point numbers that a name or a glob pattern means, in their order.

    A pattern passes over what is no such matrix (a bias, a norm); a name does not. Without either,
    the only matrix of the file.

    Raises:
        UsageError: there are none, or more than ``MOST``, or the file cannot be read.
    """
    stored = header(path)
    if pattern in stored:
        return [_matrix(stored[str(pattern)])]
    usable = [each for each in stored.values() if not _unusable(each)]
    if pattern is None:
        if len(usable) == 1:
            return usable
        raise UsageError(
            f"{shortened(str(path))} holds {_count(len(usable))}; "
            + (f"name one as FILE:TENSOR, {_some(usable)}." if usable else f"{_some(stored)}.")
        )
    matching = [name for name in stored if fnmatch.fnmatchcase(name, pattern)]
    matched = [each for each in usable if each.name in matching]
    if not matching:
        raise UsageError(
            f"{shortened(str(path))} has no tensor {shortened(pattern)!r}; "
            f"{_near(pattern, stored)}."
        )
    if not matched:
        raise UsageError(
            f"{shortened(pattern)!r} matches {len(matching)} tensors of {shortened(str(path))}, "
            f"and none is a matrix of floating-point numbers: {_unusable(stored[matching[0]])}."
        )
    if len(matched) > MOST:
        raise UsageError(
            f"{shortened(pattern)!r} matches {len(matched)} matrices of {shortened(str(path))}; "
            f"{MOST} are the most of one run."
        )
    return matched


def matrix(path: Path, name: str) -> Stored:
    """The matrix of exactly that name.

    Raises:
        UsageError: there is none, it is no matrix, or the file cannot be read.
    """
    tensors = header(path)
    if name not in tensors:
        raise UsageError(
            f"{shortened(str(path))} has no tensor {shortened(name)!r}; {_near(name, tensors)}."
        )
    return _matrix(tensors[name])


def _near(name: str, names: Mapping[str, Stored]) -> str:
    """The names of a file that are nearest to a name, in words."""
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.3) or sorted(names)[:3]
    return f"the nearest are {_list(near)}" if near else "it holds none"


def activations(path: Path, weight: Stored) -> Stored:
    """The activations of a weight: the tensor of its name, else the only one of the file.

    Raises:
        UsageError: there are none, they have another width, or the file cannot be read.
    """
    tensors = header(path)
    if weight.name not in tensors and len(tensors) != 1:
        raise UsageError(
            f"{shortened(str(path))} holds no activations of {shortened(weight.name)!r}; "
            f"{_near(weight.name, tensors)}."
        )
    stored = _matrix(tensors.get(weight.name) or next(iter(tensors.values())))
    rows, width = stored.shape
    if width != weight.shape[1]:
        raise UsageError(
            f"The activations {stored} have {width} columns, and {weight} takes "
            f"{weight.shape[1]} inputs; they are rows × in_features."
        )
    if rows < 2:
        raise UsageError(
            f"The activations {stored} are one row; two are the fewest, one half of the rows to "
            "project by and the other to score by."
        )
    return stored


def _matrix(stored: Stored) -> Stored:
    """The tensor itself, which a matrix of floating-point numbers is.

    Raises:
        UsageError: it is none; the sentence says what it is.
    """
    if reason := _unusable(stored):
        raise UsageError(f"{shortened(str(stored.path))}: {reason}.")
    return stored


def _unusable(stored: Stored) -> str | None:
    """Why a tensor is no matrix that can be taken, in words; None where it is one."""
    name, sides = repr(shortened(stored.name)), "×".join(map(str, stored.shape)) or "no sides"
    if stored.kind in _OTHER:
        return f"{name} holds whole numbers ({stored.kind}), not a weight"
    if stored.block[0] and not gguf_file.readable(stored.kind):
        return f"{name} is {stored.kind}, which the installed gguf cannot turn into numbers"
    if stored.kind not in _READ and not stored.block[0]:
        kinds = ", ".join(each for _, each in _READ.values())
        return f"{name} is {shortened(stored.kind)}; {kinds} are read"
    if len(stored.shape) != 2:
        return f"{name} has the shape {shortened(sides)}; a matrix has two sides"
    if not stored.elements:
        return f"{name} is {shortened(sides)}: it holds no number"
    if not stored.name.isprintable() or not stored.name:
        return f"{name} is no name that can be written in one line"
    return None


def checked(stored: Stored) -> str:
    """Look at every number once; the content hash of the tensor.

    Returns:
        16 hexadecimal digits of the SHA-256 of its type, shape and bytes.

    Raises:
        UsageError: a number is not finite in float32, or all are zero.
    """
    digest = hashlib.sha256(f"{stored.kind} {stored.shape} ".encode())
    something = False
    for raw in _chunks(stored):
        values = _float32(raw, stored)
        if not np.isfinite(values).all():
            raise UsageError(
                f"{stored} holds numbers that are not finite in float32; an error of it would "
                "mean nothing."
            )
        something = something or bool(values.any())
        digest.update(raw.tobytes())
    if not something:
        raise UsageError(f"{stored} is all zeros: there is no error relative to it.")
    return digest.hexdigest()[:16]


def content(stored: Stored) -> str:
    """The content hash alone, as ``checked`` returns it; kept while the file is not written to."""
    state = stored.path.stat()
    return _content(stored, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=512)
def _content(stored: Stored, size: int, changed: int) -> str:
    del size, changed
    return checked(stored)


def array(stored: Stored) -> NDArray[np.float32]:
    """The numbers as float32, of the tensor's shape, in memory of their own."""
    whole = np.empty(stored.elements, dtype=np.float32)
    done = 0
    for raw in _chunks(stored):
        values = _float32(raw, stored)
        whole[done : done + values.size] = values
        done += values.size
    tensor = whole.reshape(stored.shape)
    return smollm2.halves(tensor, stored.heads) if stored.heads else tensor


def _chunks(stored: Stored) -> Iterator[NDArray[Any]]:
    """The numbers as they are stored, some at a time: whole blocks of bytes where they have any."""
    if stored.block[0]:
        dtype = np.dtype(np.uint8)
        numbers, nbytes = stored.block
        left = stored.elements // numbers * nbytes
        most = max(1, _CHUNK // numbers) * nbytes
    else:
        dtype, left, most = np.dtype(_READ[stored.kind][0]), stored.elements, _CHUNK
    with files.opened(stored.path) as file:
        file.seek(stored.start)
        while left:
            count = min(left, most)
            data = file.read(count * dtype.itemsize)
            if len(data) < count * dtype.itemsize:
                raise UsageError(f"{shortened(str(stored.path))} became shorter while it was read.")
            yield np.frombuffer(data, dtype=dtype)
            left -= count


def _float32(raw: NDArray[Any], stored: Stored) -> NDArray[np.float32]:
    """The numbers in float32; bfloat16 is its upper half."""
    if stored.block[0]:
        return gguf_file.numbers(raw, stored.kind)
    if stored.kind == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        return raw.astype(np.float32)


def _count(number: int) -> str:
    return f"{number} {'matrix' if number == 1 else 'matrices'} of floating-point numbers"


def _some(tensors: Mapping[str, Stored] | list[Stored]) -> str:
    """A few of the names that a file holds."""
    if not tensors:
        return "it is empty"
    if isinstance(tensors, list):
        return f"such as {_list([each.name for each in tensors[:3]])}, or a pattern"
    return _unusable(next(iter(tensors.values()))) or ""


def _list(names: list[str]) -> str:
    return ", ".join(shortened(name) for name in names)
