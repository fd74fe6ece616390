"""A text that is free for ever: Alice's Adventures in Wonderland (Carroll, 1865), by chapters.

The file is alice29.txt of the Canterbury corpus (Arnold and Bell, 1997), byte for byte as the
source package of Brotli 1.2.1 has it. Projections look at the first six chapters, and scores are
taken on the last six. A number of rounds is chosen on the fifth and sixth, of projections that look
at the first four.
"""

from __future__ import annotations

import hashlib
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import hwbench
from hwbench.errors import UsageError

SHA256 = "7467306ee0feed4971260f3c87421154a05be571d944e9cb021a5713700c38f0"
CHAPTERS = {
    "calibration": range(6),
    "evaluation": range(6, 12),
    "fitting": range(4),  # of the calibration text …
    "choosing": range(4, 6),  # … and the text on which constants of projections are chosen
}
TOKENS = 256
"""The length of a window. Its first token is not scored."""
_LETTERS = 480  # of a passage, at most


def chapters() -> list[str]:
    """The twelve chapters, with their headings.

    Raises:
        UsageError: the file has been changed.
    """
    raw = (Path(str(hwbench.__file__)).parent / "data" / "alice29.txt").read_bytes()
    if hashlib.sha256(raw).hexdigest() != SHA256:
        raise UsageError("hwbench/data/alice29.txt has been changed; install hwbench again.")
    text = raw.decode("ascii").replace("\r\n", "\n").removesuffix("\x1a")
    begins = [match.start() for match in re.finditer(r"^ +CHAPTER [IVX]+$", text, re.MULTILINE)]
    return [text[a:b] for a, b in zip(begins, [*begins[1:], len(text)], strict=True)]


def passages(part: str, count: int) -> list[str]:
    """Passages of whole words, about 120 tokens long, spread over a part of the text.

    Args:
        part: one of ``CHAPTERS``.
        count: how many; none overlaps another.
    """
    texts, pieces = chapters(), list[str]()
    for place in CHAPTERS[part]:
        pieces += textwrap.wrap(texts[place], _LETTERS)
    picked = {round(step * (len(pieces) - 1) / max(1, count - 1)) for step in range(count)}
    return [pieces[place] for place in sorted(picked)]


def windows(encode: Callable[[str], list[int]], part: str, count: int) -> Tensor:
    """Windows of a part of the text, spread over it; none overlaps another.

    Args:
        encode: a text's token ids.
        part: one of ``CHAPTERS``.
        count: how many.

    Returns:
        Token ids, (count, TOKENS).

    Raises:
        UsageError: the part has fewer.
    """
    texts = chapters()
    all_windows = [
        ids[start : start + TOKENS]
        for ids in (encode(texts[place]) for place in CHAPTERS[part])
        for start in range(0, len(ids) - TOKENS + 1, TOKENS)
    ]
    if count > len(all_windows):
        raise UsageError(f"The {part} text has {len(all_windows)} windows; {count} are asked for.")
    picked = torch.linspace(0, len(all_windows) - 1, count).round().int().tolist()
    return torch.tensor([all_windows[place] for place in picked])
