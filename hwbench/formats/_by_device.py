"""Formats whose kernel computes in another way on another kind of device, at other costs."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar, Self

from hwbench.formats._base import Format


@dataclass(frozen=True, kw_only=True)
class ByDevice(Format):
    """A format whose costs are those on ``device``: a CPU, unless ``on`` made it.

    The device is no part of what the format is: it is neither compared nor a knob.
    """

    device: ClassVar[str] = "cpu"

    def on(self, device: str) -> Self:
        there = copy.copy(self)
        object.__setattr__(there, "device", device)
        return there
