"""The packaged texts: one sentence a line, written for hwbench. Held-out lines come in pairs."""

from __future__ import annotations

from pathlib import Path

import hwbench


def calibration() -> list[str]:
    """Sentences to read activations from, and to heal on."""
    return _lines("calibration")


def held_out() -> list[str]:
    """Sentences that are only scored; lines 2k and 2k + 1 mean about the same."""
    return _lines("held_out")


def _lines(name: str) -> list[str]:
    path = Path(str(hwbench.__file__)).parent / "data" / f"{name}.txt"
    return path.read_text(encoding="utf-8").splitlines()
