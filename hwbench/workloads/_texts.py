"""The packaged texts: one sentence a line, written for hwbench, and passages of a book.

Held-out lines come in pairs.
"""

from __future__ import annotations

from pathlib import Path

import hwbench
from hwbench.workloads import _prose

SENTENCES, PROSE = "sentences", "prose"
TEXTS = (SENTENCES, PROSE)
"""The packaged sentences, or passages of a book, which are longer."""

_SEEN, _SCORED = 24, 16  # passages of either part of the book
_EVERY = 3  # one text of so many judges


def calibration(text: str = SENTENCES) -> list[str]:
    """Texts to read activations from, and to heal on."""
    if text == PROSE:
        every = _prose.passages("calibration", _SEEN)
        return [each for place, each in enumerate(every) if place % _EVERY != 1]
    return _lines("calibration")


def judged(text: str = SENTENCES) -> list[str]:
    """Texts by which layers and plans are chosen; of the book, others than ``calibration``'s."""
    if text == PROSE:
        return _prose.passages("calibration", _SEEN)[1::_EVERY]
    return _lines("calibration")


def held_out(text: str = SENTENCES) -> list[str]:
    """Texts that are only scored; the sentences 2k and 2k + 1 mean about the same."""
    if text == PROSE:
        return _prose.passages("evaluation", _SCORED)
    return _lines("held_out")


def _lines(name: str) -> list[str]:
    path = Path(str(hwbench.__file__)).parent / "data" / f"{name}.txt"
    return path.read_text(encoding="utf-8").splitlines()
