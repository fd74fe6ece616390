"""Places a case under the machine's roofline, from cost, ceilings and time alone.

By the roofline no call can be faster than its FLOPs at the machine's best arithmetic rate, than its
bytes at the rate of the memory that holds them, nor than the smallest call there is (Williams,
Waterman and Patterson, 2009). The rates are *measured* (``Header.ceilings``), so a case may lie
above a roof: efficiency is never clipped at one, and a case clearly faster than memory could
deliver its bytes is marked as having stayed in cache.

On a GPU two more roofs are drawn: the maker's datasheet, and the maker's formula at the observed
clock (``hwbench.analysis.peaks``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec.structs import replace

from hwbench import units
from hwbench.analysis import peaks
from hwbench.errors import UsageError
from hwbench.records import Cost, Environment, Record

COMPUTE = "compute"
MEMORY = "memory"
LAUNCH = "launch"

MODEL = "model"
"""The source of bytes that are counted by formulas; hardware counters would be ``counter``."""

IN_CACHE = (
    "faster than its bytes could come from memory at the measured copy rate: "
    "the operands stayed in cache"
)
"""The note on a case with a time clearly below its memory bound."""


CLEARLY = 0.9
"""Below this share of the memory bound a time counts as that of a cache.

The bound comes from a copy, half of which writes. A kernel that mostly reads beats it by some per
cent with every byte from memory.
"""


class Level(Record):
    """A cache, as measured by the sweep of working sets."""

    name: str
    bytes_per_second: float
    most_bytes: float  # the largest working set that moved at that rate


RAISED = 1.05
"""Above this multiple of the measured rate a case shows that the roof is too low."""


class Roof(Record):
    """The measured ceilings of one machine for one dtype."""

    flops_per_second: float  # of the best library, or of the case that raised it
    bytes_per_second: float  # of memory, beyond all caches
    launch_seconds: float = 0.0  # of the smallest call; 0 where it was not measured
    levels: tuple[Level, ...] = ()  # caches, the fastest first; none in the short form
    library: str = ""  # the library of the product, where the run names it
    raised_by: str = ""  # the case that executed over ``RAISED`` times the measured rate
    measured_flops_per_second: float = 0.0  # where a case raised it

    @property
    def note(self) -> str | None:
        """The note on a roof that a case raised."""
        if not self.raised_by:
            return None
        product = f"a product by {self.library}" if self.library else "a product"
        measured = units.flops_per_second(self.measured_flops_per_second)
        return (
            f"{self.raised_by} executed {units.flops_per_second(self.flops_per_second)}, more than "
            f"the {measured} that {product} was measured to reach: the roof is raised to it, and "
            "hwbench ceilings measures it again."
        )

    @property
    def ridge(self) -> float:
        """The intensity, in FLOP per byte, at which the two roofs meet."""
        return self.flops_per_second / self.bytes_per_second

    def attainable(self, intensity: float) -> float:
        """The best rate, in FLOP per second, that the roofs allow at an intensity."""
        return min(self.flops_per_second, intensity * self.bytes_per_second)

    def level(self, working_set_bytes: float) -> Level | None:
        """The fastest measured cache that holds so much; None where only memory does."""
        return next((each for each in self.levels if working_set_bytes <= each.most_bytes), None)


class Line(Record):
    """One roof as it is drawn: where it comes from, and its two rates."""

    source: str  # measured, cache (measured as well), datasheet, formula
    label: str
    flops_per_second: float
    bytes_per_second: float

    @property
    def ridge(self) -> float:
        """The intensity, in FLOP per byte, at which its slope meets its top."""
        return self.flops_per_second / self.bytes_per_second


class Placement(Record):
    """Where one case stands.

    ``intensity`` counts every operand once, as a fused kernel would move them;
    ``unfused_intensity`` adds what the kernel used writes and reads beside that. ``efficiency`` is
    the attainable time of the fused kernel, for the FLOPs that are needed, over the measured time;
    it exceeds one where the operands stayed in a cache that was not measured, or a kernel beat the
    measured roof.
    """

    intensity: float
    unfused_intensity: float
    bound: str  # the longest part: compute, memory or the cache's name, launch
    compute_seconds: float  # the needed FLOPs at the measured arithmetic rate
    memory_seconds: float  # the compulsory bytes at the rate of memory
    attainable_seconds: float  # the longest of compute, the level that holds the bytes, launch
    unfused_seconds: float  # the same with the intermediate bytes of the kernel used
    flops_per_second: float  # executed
    dense_flops_per_second: float  # the FLOPs of a dense layer over this case's time
    bytes_per_second: float  # compulsory
    efficiency: float
    in_cache: bool
    level: str = MEMORY  # the level that held the working set, by the sweep
    bytes_source: str = MODEL

    @property
    def note(self) -> str | None:
        """The note beside the efficiency, if any."""
        if not self.in_cache:
            return None
        return IN_CACHE if self.level == MEMORY else f"{IN_CACHE} ({self.level})"


def roof(ceilings: Mapping[str, Any], dtype: str) -> Roof | None:
    """The measured roof for a dtype; None where the run measured none.

    ``ceilings`` is that of a run's header, in short or full form.
    """
    compute = _rate(_entry(ceilings, "matmul", dtype), "flops_per_second")
    memory = _rate(_entry(ceilings, "copy"), "bytes_per_second")
    if compute is None or memory is None:
        return None
    library = _entry(ceilings, "matmul", dtype).get("library")
    return Roof(
        library=library if isinstance(library, str) else "",
        flops_per_second=compute,
        bytes_per_second=memory,
        launch_seconds=_rate(_entry(ceilings, "launch"), "seconds") or 0.0,
        levels=tuple(_levels(ceilings)),
    )


def raised(ceiling: Roof, rates: Iterable[tuple[str, float]]) -> Roof:
    """The roof, raised to the fastest case where that clearly exceeds it.

    Args:
        ceiling: as it was measured.
        rates: the name of each case, and the FLOPs that it executes a second.
    """
    case, rate = max(rates, key=lambda each: each[1], default=("", 0.0))
    if not (math.isfinite(rate) and rate > RAISED * ceiling.flops_per_second):
        return ceiling
    measured = ceiling.flops_per_second
    return replace(
        ceiling, flops_per_second=rate, raised_by=case, measured_flops_per_second=measured
    )


def place(cost: Cost, ceiling: Roof, seconds: float, *, hot: bool = True) -> Placement:
    """Place one call, given its exact cost, the machine's roof and the measured time.

    A hot call whose working set fits in a measured cache is bound by that cache; a cold one by
    memory.

    Raises:
        UsageError: the time or the bytes are not above zero, so that there is nothing to place.
    """
    if not (seconds > 0 and math.isfinite(seconds)) or cost.compulsory_bytes <= 0:
        raise UsageError(
            f"A case of {cost.compulsory_bytes} bytes in {seconds} s has no place on a roofline."
        )
    unfused_bytes = cost.compulsory_bytes + cost.intermediate_bytes
    compute_seconds = cost.useful_flops / ceiling.flops_per_second
    memory_seconds = cost.compulsory_bytes / ceiling.bytes_per_second
    level = ceiling.level(unfused_bytes) if hot else None
    name, rate = (level.name, level.bytes_per_second) if level else (MEMORY, None)
    rate = rate or ceiling.bytes_per_second
    bounds = {
        COMPUTE: compute_seconds,
        name: cost.compulsory_bytes / rate,
        LAUNCH: ceiling.launch_seconds,
    }
    bound = max(bounds, key=lambda each: bounds[each])
    attainable = bounds[bound]
    return Placement(
        intensity=cost.flops / cost.compulsory_bytes,
        unfused_intensity=cost.flops / unfused_bytes,
        bound=bound,
        compute_seconds=compute_seconds,
        memory_seconds=memory_seconds,
        attainable_seconds=attainable,
        unfused_seconds=max(attainable, unfused_bytes / rate),
        flops_per_second=cost.flops / seconds,
        dense_flops_per_second=cost.dense_flops / seconds,
        bytes_per_second=cost.compulsory_bytes / seconds,
        efficiency=attainable / seconds,
        in_cache=seconds < CLEARLY * memory_seconds,
        level=name,
    )


def precision(dtype: str, settings: Mapping[str, Any]) -> str:
    """The precision of a dtype's products under torch's settings, as ``peaks.toml`` names it."""
    if dtype == "float32":
        tf32 = settings.get("matmul.fp32_precision") == "tf32"
        if tf32 or settings.get("matmul.allow_tf32") is True:
            return "float32_tf32"
    if dtype == "float16" and settings.get("matmul.allow_fp16_accumulation") is True:
        return "float16_accumulate_float16"
    return dtype


def lines(
    ceilings: Mapping[str, Any],
    environment: Environment,
    dtype: str,
    shown: Roof | None = None,
) -> tuple[list[Line], str]:
    """The roofs to draw, the measured one first, and why others are missing ("" where none is).

    Three on a GPU that ``peaks.toml`` knows: measured, the maker's datasheet, and the maker's rule
    at the clock that was observed while the matrix ceiling was measured. The caches of a full sweep
    have slopes of their own. ``shown`` is the measured roof where a case raised it.
    """
    roofs = []
    measured = shown or roof(ceilings, dtype)
    if measured is not None:
        slopes = [("measured", "measured", measured.bytes_per_second)]
        slopes += [("cache", each.name, each.bytes_per_second) for each in measured.levels]
        roofs = [
            Line(source=source, label=label, bytes_per_second=rate,
                 flops_per_second=measured.flops_per_second)
            for source, label, rate in slopes
        ]  # fmt: skip
    peak = peaks.of_device(environment.fingerprint.get("device"))
    if isinstance(peak, str):
        return roofs, peak
    how = precision(dtype, environment.settings)
    if how == "float64" and "float64_tensor" in peak.flops_per_clock:
        how = "float64_tensor"  # a matrix product of float64 uses these units there
    if peak.bytes_per_second is None:
        return roofs, f"No bandwidth of {peak.name} with a source was found."
    clock = _rate(_entry(ceilings, "matmul", dtype), "sm_clock_hertz")
    rates = [("datasheet", "datasheet", peak.flops_per_second(how))]
    if clock is not None:
        label = f"formula at {clock / 1e6:.0f} MHz"
        rates.append(("formula", label, peak.formula(how, clock)))
    roofs += [
        Line(source=source, label=label, flops_per_second=rate,
             bytes_per_second=peak.bytes_per_second)
        for source, label, rate in rates if rate is not None
    ]  # fmt: skip
    missing = [label for _, label, rate in rates if rate is None]
    if missing:
        return roofs, f"{peak.name} has no figure of {how} for: {', '.join(missing)}."
    return roofs, "" if clock else "The clock was not read while the ceiling was measured."


def _levels(ceilings: Mapping[str, Any]) -> list[Level]:
    """The caches among the measured levels; the last level is memory itself."""
    entries = ceilings.get("levels")
    levels = []
    for entry in entries[:-1] if isinstance(entries, list) else []:
        sizes = entry.get("working_set_bytes") if isinstance(entry, Mapping) else None
        rate = _rate(entry, "bytes_per_second") if isinstance(entry, Mapping) else None
        if rate is not None and isinstance(sizes, list) and sizes:
            name = str(entry.get("name"))
            levels.append(Level(name=name, bytes_per_second=rate, most_bytes=float(max(sizes))))
    return levels


def _entry(ceilings: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    entry: Any = ceilings
    for name in names:
        entry = entry.get(name) if isinstance(entry, Mapping) else None
    return entry if isinstance(entry, Mapping) else {}


def _rate(entry: Mapping[str, Any], name: str) -> float | None:
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if value > 0 and math.isfinite(value) else None
