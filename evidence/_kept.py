"""Rows that a script keeps in a file, each with what it was measured by.

A line of the file holds a row, the settings that decide it, and the code that made it: a digest of
hwbench's files and of the script's, and the version of torch. ``rows`` reads those of the same
settings and the same code alone. The others stay in the file, and are measured again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

import hwbench

Row = dict[str, Any]


@cache
def code(script: str) -> str:
    """A digest of hwbench's files, of the script's and this one's, and of torch's version."""
    package = Path(hwbench.__file__).parent
    files = [file for file in package.rglob("*") if "__pycache__" not in file.parts]
    digest = hashlib.sha256(torch.__version__.encode())
    for file in sorted(filter(Path.is_file, files)):
        digest.update(f"\0{file.relative_to(package)}\0".encode())
        digest.update(file.read_bytes())
    for own in (Path(script), Path(__file__)):
        digest.update(f"\0{own.name}\0".encode())
        digest.update(own.read_bytes())
    return digest.hexdigest()[:32]


def rows(file: Path, script: str, settings: Mapping[str, Any]) -> list[Row]:
    """The rows of a file that this code measured with these settings; none where it is absent.

    Args:
        file: where they are kept.
        script: the path of the script that measures them, its ``__file__``.
        settings: all that decides a row and is not in it.

    Raises:
        SystemExit: the file holds something else, or ends in the middle of a line.
    """
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    if not text.endswith("\n") and text:
        raise SystemExit(f"{file} ends in the middle of a line: take that line out of it.")
    wanted = _by(script, settings)
    found = []
    for number, words in enumerate(text.splitlines(), start=1):
        try:
            line = json.loads(words)
        except ValueError as error:
            raise SystemExit(f"Line {number} of {file} is not JSON ({error}).") from error
        # A line without this key is of a script that did not note what it measured by.
        if isinstance(line, dict) and line.get("by") == wanted:
            found.append(line["row"])
    return found


def keep(file: Path, script: str, settings: Mapping[str, Any], new: Iterable[Row]) -> None:
    """Add rows to a file, with what they were measured by."""
    by = _by(script, settings)
    text = "".join(f"{json.dumps({'by': by, 'row': row})}\n" for row in new)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(text)


def told(file: Path, there: int, wanted: int) -> str:
    """A sentence on how many of the wanted rows needed no measurement."""
    return f"{there} of {wanted} were there already in {file}, by the same settings and code."


def _by(script: str, settings: Mapping[str, Any]) -> Row:
    # Through JSON, as the file has it: a tuple becomes a list.
    return json.loads(json.dumps({"code": code(script), "settings": dict(settings)}))
