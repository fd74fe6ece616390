"""Output that cannot change an exit code: readers go away, disks fill up, encodings lack signs.

While a verb runs, these streams stand where ``sys.stdout`` and ``sys.stderr`` stand. They never
raise: what cannot be written is dropped, and the reason kept. So the exit code is that of what was
found, whatever became of the text.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

_LIKE = str.maketrans(
    {
        **dict.fromkeys("–—─━", "-"),
        **dict.fromkeys("│┃", "|"),
        "×": "x",
        "µ": "u",
        "±": "+-",
        "…": "...",
        "→": "->",
        "≤": "<=",
        "≥": ">=",
        "’": "'",
        "“": '"',
        "”": '"',
    }
)
"""Replacements for the signs of our own sentences, in an encoding that lacks them."""


class Steady(io.TextIOBase):
    """A text stream over another one, or over none, that never raises when it is written to."""

    def __init__(self, under: TextIO | None) -> None:
        self._under = under
        self.lost: str | None = None  # why text was dropped that someone waits for

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the stream below; UTF-8 where it has none."""
        return getattr(self._under, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        """No sign is refused."""
        return "backslashreplace"

    def writable(self) -> bool:
        """Always true: text that nobody reads is dropped."""
        return True

    def isatty(self) -> bool:
        """Whether a terminal shows it."""
        try:
            return self._under is not None and self._under.isatty()
        except ValueError:  # it was closed
            return False

    def fileno(self) -> int:
        """The file descriptor below, where there is one."""
        if self._under is None:
            raise io.UnsupportedOperation("fileno")
        return self._under.fileno()

    def write(self, text: str) -> int:
        """Write text; signs that the encoding lacks are replaced."""
        if not isinstance(text, str):
            raise TypeError(f"a text stream takes text, not {type(text).__name__}")
        if self._under is not None:
            with self._storing_reason():
                self._under.write(_encodable(text, self.encoding))
        return len(text)

    def flush(self) -> None:
        """Hand on the written text."""
        if self._under is not None:
            with self._storing_reason():
                self._under.flush()

    @contextlib.contextmanager
    def _storing_reason(self) -> Iterator[None]:
        """Stop writing at the first error and store its reason; a closed pipe is no error."""
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            self._under = None
            if isinstance(error, OSError) and error.errno != errno.EPIPE:
                self.lost = error.strerror or type(error).__name__


def _encodable(text: str, encoding: str) -> str:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        alike = text.translate(_LIKE)
        return alike.encode(encoding, "backslashreplace").decode(encoding)
    except LookupError:  # an encoding that Python does not know; the stream below knows its own
        return text
    return text


@contextlib.contextmanager
def steady() -> Iterator[tuple[Steady, Steady]]:
    """Steady streams in the place of standard output and standard error."""
    before = sys.stdout, sys.stderr
    streams = Steady(sys.stdout), Steady(sys.stderr)
    sys.stdout, sys.stderr = streams
    try:
        yield streams
    finally:
        sys.stdout, sys.stderr = before


def opened() -> None:
    """Give the three standard descriptors a place where they have none.

    Otherwise the next file that is opened takes the number, and somebody's words land in it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it takes the lowest number that is free


def hushed() -> None:
    """Let nothing that is left in a buffer change the exit code while the interpreter ends."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
