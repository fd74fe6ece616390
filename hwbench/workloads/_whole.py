"""A whole model: how long a pass takes, and how large it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from hwbench import quantities
from hwbench.devices._base import Device
from hwbench.errors import SuiteError
from hwbench.formats._base import Linear
from hwbench.records import Case


def latency(step: Callable[[], Any], device: Device, calls: int, warm: int) -> float:
    """Seconds of one step: the median of so many calls, after some that do not count."""
    times = []
    for _ in range(calls + warm):
        start = device.mark()
        step()
        times.append(device.seconds(start, device.mark()))
    return sorted(times[warm:])[calls // 2]


def shorter(depth: float, blocks: int) -> int:
    """How many blocks a share of them is: rounded down, and one at least."""
    return max(1, math.floor(depth * blocks + 1e-9))


def check_depth(case: Case, depth: float) -> None:
    """Whether a case may drop blocks: the rest of its model is dense.

    Raises:
        SuiteError: it may not.
    """
    if depth < 1 and case.format != "dense":
        raise SuiteError(
            f"depth drops whole blocks of a dense model; {case.format} keeps them all."
        )


def size(model: nn.Module) -> dict[str, float]:
    """Parameters and bytes of the whole model, embeddings included."""
    coded = sum(m.coded_weights() for m in model.modules() if isinstance(m, Linear))
    tensors = [*model.parameters(), *model.buffers()]
    return {
        quantities.MODEL_PARAMETERS.name: float(sum(p.numel() for p in model.parameters()) + coded),
        quantities.MODEL_BYTES.name: float(sum(t.numel() * t.element_size() for t in tensors)),
    }
