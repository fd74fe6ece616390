"""Every weight stored, one matrix product: the yardstick of all formats."""

from __future__ import annotations

from dataclasses import dataclass

from hwbench.formats._full import FullFormat


@dataclass(frozen=True, kw_only=True)
class Dense(FullFormat):
    """The full matrix, applied by one matrix product."""
