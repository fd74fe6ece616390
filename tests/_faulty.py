"""Installs the misbehaving formats of ``tests/faulty`` as a third-party package would be."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hwbench import plugins

FORMATS = (
    "Tame Segfault LateDeath Hang Wrong NotANumber WrongShape WrongDtype Memory OomPrepare "
    "OomBackward Exits Leaks Settings NoGrad Raises RaisesLate Chatty"
).split()
ROOT = Path(__file__).parents[1]


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put the package on the path of this process and of the workers; return that path."""
    info = folder / "hwbench_faulty-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hwbench-faulty\nVersion: 1.0\n")
    points = "".join(f"{name.lower()} = hwbench_faulty:{name}\n" for name in FORMATS)
    (info / "entry_points.txt").write_text(f"[hwbench.formats]\n{points}")
    source = Path(__file__).parent / "faulty" / "hwbench_faulty.py"
    (folder / "hwbench_faulty.py").write_text(source.read_text(encoding="utf-8"))
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{ROOT}")
    monkeypatch.syspath_prepend(str(folder))
    plugins._external.cache_clear()
    return f"{folder}:{ROOT}"


def uninstall() -> None:
    """Forget the package again."""
    plugins._external.cache_clear()
    sys.modules.pop("hwbench_faulty", None)
