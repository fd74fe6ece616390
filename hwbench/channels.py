"""Text from anywhere, made safe for where it goes; the only place that knows what steers what.

A terminal obeys control characters. A log of GitHub Actions obeys a line that begins with ``::``
after blanks, and the older form ``##[command]`` anywhere in a line; Azure Pipelines obeys
``##vso[command]``. A spreadsheet runs a cell that begins with a sign of a formula. What a name or
a reason holds of these is written out, so that it is read and not obeyed.

``guarded`` watches every line that a process writes, whoever writes it; names are made visible
before they are put into a sentence (``visible``) or a cell (``line``), because only there a line
break inside of a name can still be told from the end of a line.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

_COMMAND = re.compile(r"^([^\S\n]*:)(:)|(##[A-Za-z]*)(\[)", re.MULTILINE)
_SEQUENCE = re.compile(r"(\x1b\[[0-9;?]*[A-Za-z])")  # how rich colours text and moves a bar
_FORMULA = tuple("=+-@\t\r\n")
_LAYOUT = "\n\t"  # what lays text out


def visible(text: str) -> str:
    """Text with every control character written out, line breaks too: one line stays one."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _written(c) for c in text)


def line(text: object) -> str:
    """Text in one line: line breaks and runs of blanks are one blank, the rest as ``visible``."""
    return visible(" ".join(str(text).split()))


def inert(text: str) -> str:
    """Text in which no line is a command of a CI system: a blank stands inside its mark."""
    return _COMMAND.sub(lambda match: " ".join(filter(None, match.groups())), text)


def cell(text: str) -> str:
    """Text as a cell of a table that a spreadsheet may open: an apostrophe before a formula.

    A carriage return, which writers of CSV leave without quotes, is written out.
    """
    return (f"'{text}" if text.startswith(_FORMULA) else text).replace("\r", r"\r")


def plain_json(text: str) -> str:
    """JSON in which strings hold nothing that steers; its values are what they were.

    Signs that the encoding of stdout lacks are written as escapes, which mean the same.
    """
    text = text.replace("##", r"#\u0023")
    whole = _encodable(text, getattr(sys.stdout, "encoding", None) or "utf-8")
    if whole and text.isprintable():
        return text
    return "".join(
        c if (whole or c.isascii()) and (c.isprintable() or c in "\n ") else json.dumps(c)[1:-1]
        for c in text
    )


def _encodable(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _written(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _printable_text(text: str, allowed: str) -> str:
    """Text of several lines for a stream: what lays it out is kept, the rest as ``visible``."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c in allowed or _blank(c) else _written(c) for c in text)


def _blank(character: str) -> bool:
    """A blank that only takes room, such as the narrow one before a unit."""
    return character.isspace() and ord(character) >= 0xA0 and character not in "\u2028\u2029"


class Guarded:
    """A text stream on which no line is a command, and nothing but rich's own colours steers."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._begun = ""  # the line that has no end yet, as it was written

    def write(self, text: str) -> int:
        """Write text; its length, as the caller gave it."""
        if self._stream.isatty():  # a bar goes back to the begin of its line
            parts = _SEQUENCE.split(text)
            printed = "".join(
                p if n % 2 else _printable_text(p, _LAYOUT + "\r") for n, p in enumerate(parts)
            )
        else:
            printed = _printable_text(text, _LAYOUT)
        whole = inert(self._begun + printed)
        self._stream.write(whole[len(self._begun) :])
        self._begun = whole.rpartition("\n")[2]
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write texts, one after the other."""
        for each in lines:
            self.write(each)

    def command(self, text: str) -> None:
        """Write a line that is meant as a command; what it quotes was made safe by its writer."""
        self._stream.write(f"{text}\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def guarded() -> Iterator[None]:
    """Watch stdout and stderr of this process, where it has them."""
    watched: list[tuple[str, TextIO, Guarded]] = []
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, Guarded):
            watched.append((name, stream, Guarded(stream)))
            setattr(sys, name, watched[-1][2])
    try:
        yield
    finally:
        for name, stream, guard in watched:
            if getattr(sys, name) is guard:  # nobody put another in its place meanwhile
                setattr(sys, name, stream)


def command(text: str) -> None:
    """Write a workflow command to stdout: the only lines that may be one."""
    stream: Any = sys.stdout
    if isinstance(stream, Guarded):
        stream.command(text)
    else:
        stream.write(f"{text}\n")
