"""Where a case stands against the machine's roofline: cost × ceilings × time, and nothing else.

The roofline says that no call can be faster than its FLOPs at the machine's best arithmetic rate,
nor than its bytes at the machine's best copy rate. Both rates are *measured* by the run itself
(``Header.ceilings``), so a case may stand above a roof: efficiency is never clipped at one, and a
case faster than its bytes could come from memory is said to have stayed in cache.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hwbench.errors import UsageError
from hwbench.records import Cost, Record

COMPUTE = "compute"
MEMORY = "memory"

IN_CACHE = (
    "faster than its bytes could come from memory at the measured copy rate: "
    "the operands stayed in cache"
)
"""What is said of a case whose time lies below its memory bound."""


class Roof(Record):
    """The measured ceilings of one machine for one dtype."""

    flops_per_second: float
    bytes_per_second: float

    @property
    def ridge(self) -> float:
        """The intensity, in FLOP per byte, at which the two roofs meet."""
        return self.flops_per_second / self.bytes_per_second

    def attainable(self, intensity: float) -> float:
        """The best rate, in FLOP per second, that the roofs allow at an intensity."""
        return min(self.flops_per_second, intensity * self.bytes_per_second)


class Placement(Record):
    """Where one case stands.

    ``intensity`` counts every operand once, as a fused kernel would move them;
    ``unfused_intensity`` adds what the kernel used writes and reads beside that. ``efficiency`` is
    the attainable time of the fused kernel over the measured time; it exceeds one where the
    operands stayed in cache or a kernel beat the measured roof.
    """

    intensity: float
    unfused_intensity: float
    bound: str  # which roof is the lower one here: compute or memory
    compute_seconds: float  # the executed FLOPs at the measured arithmetic rate
    memory_seconds: float  # the compulsory bytes at the measured copy rate
    attainable_seconds: float  # the larger of the two
    unfused_seconds: float  # the same with the intermediate bytes of the kernel used
    flops_per_second: float  # executed
    dense_flops_per_second: float  # what a dense layer would have had to execute in that time
    bytes_per_second: float  # compulsory
    efficiency: float
    in_cache: bool

    @property
    def note(self) -> str | None:
        """What must be said beside the efficiency, if anything."""
        return IN_CACHE if self.in_cache else None


def roof(ceilings: Mapping[str, Any], dtype: str) -> Roof | None:
    """The measured roof for a dtype; None where the run measured none.

    ``ceilings`` is that of a run's header:
    ``{"matmul": {dtype: {"flops_per_second": …}}, "copy": {"bytes_per_second": …}}``.
    """
    compute = _rate(_entry(ceilings, "matmul", dtype), "flops_per_second")
    memory = _rate(_entry(ceilings, "copy"), "bytes_per_second")
    if compute is None or memory is None:
        return None
    return Roof(flops_per_second=compute, bytes_per_second=memory)


def place(cost: Cost, ceiling: Roof, seconds: float) -> Placement:
    """Place one call, given its exact cost, the machine's roof and the measured time.

    Raises:
        UsageError: the time or the bytes are not above zero, so that there is nothing to place.
    """
    if not (seconds > 0 and math.isfinite(seconds)) or cost.compulsory_bytes <= 0:
        raise UsageError(
            f"A case of {cost.compulsory_bytes} bytes in {seconds} s has no place on a roofline."
        )
    unfused_bytes = cost.compulsory_bytes + cost.intermediate_bytes
    compute_seconds = cost.flops / ceiling.flops_per_second
    memory_seconds = cost.compulsory_bytes / ceiling.bytes_per_second
    attainable = max(compute_seconds, memory_seconds)
    return Placement(
        intensity=cost.flops / cost.compulsory_bytes,
        unfused_intensity=cost.flops / unfused_bytes,
        bound=COMPUTE if compute_seconds >= memory_seconds else MEMORY,
        compute_seconds=compute_seconds,
        memory_seconds=memory_seconds,
        attainable_seconds=attainable,
        unfused_seconds=max(compute_seconds, unfused_bytes / ceiling.bytes_per_second),
        flops_per_second=cost.flops / seconds,
        dense_flops_per_second=cost.dense_flops / seconds,
        bytes_per_second=cost.compulsory_bytes / seconds,
        efficiency=attainable / seconds,
        in_cache=seconds < memory_seconds,
    )


def _entry(ceilings: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    found: Any = ceilings
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _rate(entry: Mapping[str, Any], name: str) -> float | None:
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if value > 0 and math.isfinite(value) else None
