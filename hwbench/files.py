"""The one way in and the one way out for files that other people name.

What is read is a regular file below a size. What is written replaces a file whole, and never one
that holds results. Errors are ``OSError`` with a reason in words, for the caller's sentence.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from hwbench.errors import RunFileError, UsageError, shortened

MOST_OF_A_RUN = 1 << 28  # bytes; some 75,000 results with their samples
MOST_OF_A_DOCUMENT = 1 << 26  # bytes of a suite, a model's config.json, a cache
MOST_OF_A_HEADER = 1 << 24  # bytes of the first line of a run
MOST_OF_MEMORY = 3 << 29  # bytes that a document may take once it is parsed
_SIGNS, _OF_A_SIGN = (b",", b":", b"=", b"[", b"{"), 96  # bytes of an empty table and its place
HEADER_MARK = b'{"line":"header"'
"""How every run file begins."""

_NO_NAME = "it holds a character that no name can hold"
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
"""The error numbers of a file system without hard links."""
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY)


def named(name: str | Path, error: type[UsageError] = UsageError) -> Path:
    """The path that a text names, with ``~`` for a home folder; whether it is there is not asked.

    Raises:
        UsageError: nothing can have that name; of the kind ``error``.
    """
    path = Path(name)
    try:
        path = path.expanduser()
        os.lstat(path)
    except RuntimeError:
        why = "there is no such user"
    except ValueError:  # a zero byte, or half of a character
        why = _NO_NAME
    except OSError as problem:
        if problem.errno != errno.ENAMETOOLONG:
            return path
        why = "it is too long"
    else:
        return path
    raise error(f"{shortened(repr(str(name)))} cannot name a file: {why}.")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A regular file, open to be read; a pipe or a device is refused before it can keep us.

    Raises:
        OSError: there is no such file, it cannot be read, or it is no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:
        raise _no_name(path) from None
    with open(descriptor, "rb") as file:  # noqa: PTH123 (a descriptor, not a path)
        _regular(os.fstat(descriptor), path)
        yield file


def _no_name(path: Path) -> OSError:
    return OSError(errno.EINVAL, f"It cannot name a file: {_NO_NAME}", str(path))


def _regular(status: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "It is not a regular file", str(path))


def regular(path: Path, most: int | None = None) -> Path:
    """The path itself, for a library that opens it, where a regular file of that size lies.

    Raises:
        OSError: there is no such file, it cannot be read, is no regular file, or is larger.
    """
    with opened(path) as file:
        if most is not None and os.fstat(file.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f"It is larger than {most} bytes", str(path))
    return path


def memory(document: bytes) -> int:
    """The bytes of memory that JSON or TOML takes while it is parsed, at most but for wide text.

    Each value but the first has a sign before it, and the smallest of them costs forty times its
    text: an empty table in a list. So a file may be small and its values fill the memory.
    """
    return 2 * len(document) + _OF_A_SIGN * sum(map(document.count, _SIGNS))


def check_memory(path: Path, document: bytes) -> None:
    """Refuse a document whose values would fill the memory, before they are made.

    Raises:
        OSError: it would take more than ``MOST_OF_MEMORY``.
    """
    if memory(document) > MOST_OF_MEMORY:
        raise OSError(errno.EFBIG, "Its values would fill the memory", str(path))


def read(path: Path, most: int) -> bytes:
    """The bytes of a regular file, at most ``most`` of them, if the memory can hold their values.

    Raises:
        OSError: there is no such file, it cannot be read, is no regular file, or is larger.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = b"" if size > most else file.read((size or most) + 1)
        if max(size, len(data)) > most:
            raise OSError(errno.EFBIG, f"It is larger than {most} bytes", str(path))
    check_memory(path, data)
    return data


def read_text(path: Path, most: int = MOST_OF_A_DOCUMENT) -> str:
    """The text of a regular file in UTF-8.

    Raises:
        OSError: as for ``read``.
        UnicodeDecodeError: it is no UTF-8.
    """
    return read(path, most).decode("utf-8")


def listed(folder: Path, *patterns: str) -> list[Path]:
    """The files and folders whose names fit one of the patterns, sorted, each once.

    Hidden ones are left out: they are still being written, here or by another process (``beside``),
    were left by one that was killed, or belong to the file system, as ``._name`` of macOS does.
    """
    return sorted(
        path
        for path in {each for pattern in patterns for each in folder.glob(pattern)}
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def beside(path: Path) -> Path:
    """A hidden name in the same folder that cannot be guessed; open it with ``x``."""
    return path.with_name(f".{secrets.token_hex(8)}{path.suffix}")


def place(written: Path, path: Path) -> None:
    """Give a file that was written beside ``path`` that name, if nothing has it.

    Raises:
        FileExistsError: something has it, if only since a moment ago.
        OSError: the folder cannot be written.
    """
    try:
        os.link(written, path)  # unlike a rename it replaces nothing
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    else:
        written.unlink()
        return
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    written.replace(path)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, beside ``path``; at the end of the block it takes the place of it.

    A reader finds the file of before or the new one, never a part; an error leaves the one of
    before. The name beside it cannot be guessed and is made by us alone. Links are followed. A
    device such as /dev/stdout, and a file in a folder that takes no other, are written in place.

    Raises:
        RunFileError: the file holds a run.
        OSError: the file or its folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    before = _before(path)
    if before is not None and not stat.S_ISREG(before.st_mode):
        yield path
        return
    target = Path(os.path.realpath(path))
    written = beside(target)
    mode = 0o666 if before is None else stat.S_IMODE(before.st_mode)
    try:
        os.close(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode))
    except OSError as error:
        if before is None or error.errno not in _REFUSED:
            raise
        yield path
        return
    try:
        yield written
        written.replace(target)
    finally:
        written.unlink(missing_ok=True)


def _before(path: Path) -> os.stat_result | None:
    """Return the status of the file that would be overwritten; None where there is none.

    Raises:
        RunFileError: it is a run.
        OSError: it is a folder, or cannot be looked at.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    except ValueError:
        raise _no_name(path) from None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if stat.S_ISREG(status.st_mode) and os.access(path, os.R_OK):
        with opened(path) as file:
            if file.read(len(HEADER_MARK)) == HEADER_MARK:
                raise RunFileError(
                    f"{path} holds a run, and results are not written over; choose another file."
                )
    return status


def check_replaceable(path: Path, what: str = "") -> None:
    """Whether a file may be written here, for those who would know before they work for it.

    ``what`` it is may stand in the error.

    Raises:
        RunFileError: a run is there, a folder, or what cannot be looked at.
    """
    try:
        _before(path)
    except OSError as error:
        raise RunFileError(f"Cannot write {what}{path}: {error.strerror}.") from error


def write_text(path: Path, text: str, what: str = "") -> None:
    """Write a text file whole, in UTF-8; ``what`` it is may stand in the error.

    Raises:
        RunFileError: it cannot be written, or holds a run.
    """
    write(path, text.encode("utf-8", errors="backslashreplace"), what)


def write(path: Path, data: bytes, what: str = "") -> None:
    """Write a file whole; ``what`` it is may stand in the error.

    Raises:
        RunFileError: it cannot be written, or holds a run.
    """
    try:
        with whole(path) as written:
            written.write_bytes(data)
    except OSError as error:
        raise RunFileError(f"Cannot write {what}{path}: {error.strerror}.") from error


def refuse_inputs(outputs: Iterable[Path | None], inputs: Iterable[Path]) -> None:
    """Nothing that is read may be written over; a folder stands for the files in it.

    Raises:
        UsageError: an output is one of the inputs.
    """
    written = [each for each in outputs if each is not None and each.is_file()]
    for source in inputs if written else []:
        for path in [*source.iterdir()] if source.is_dir() else [source]:
            for each in written:
                if path.is_file() and path.samefile(each):
                    raise UsageError(f"{each} is one of the inputs; write to another file.")
