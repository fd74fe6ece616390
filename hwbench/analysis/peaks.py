"""The rates in the maker's datasheet of a device: ``peaks.toml``, looked up by name and checked.

A name alone is not enough: variants share names, and slices of a card carry the card's. What does
not agree in multiprocessors and memory is said to be unknown, and nothing is ever assumed.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from msgspec import Struct

_FILE = Path(__file__).with_name("peaks.toml")
_MEMORY_SHARE = (0.93, 1.09)  # of the decimal gigabytes on the box: ECC takes, binary units give
_SLICE = re.compile(r"\bMIG\b|-\d+[ABCQ]$|^GRID ", re.IGNORECASE)
_AT_TENSOR_CLOCK = re.compile(r"float16|bfloat16|float32_tf32")


class Peak(Struct, frozen=True, kw_only=True):
    """One device of ``peaks.toml``, in SI units.

    ``flops_per_clock`` is per multiprocessor, ``datasheet`` in FLOP/s; both by precision: a dtype,
    with ``_tf32``, ``_tensor`` or ``_accumulate_float16`` where it can be done in several ways. The
    plain 16-bit rates accumulate in float32. None is a figure without a source.
    """

    name: str
    multiprocessors: int
    memory_bytes: tuple[float, ...]  # of each card that has the name
    flops_per_clock: dict[str, int]
    datasheet: dict[str, float]
    clock_hertz: float | None
    tensor_clock_hertz: float | None
    bytes_per_second: float | None
    l2_bytes: float | None
    watts: float | None
    note: str
    sources: tuple[str, ...]
    exact: bool = True  # False: found by the beginning of its name

    def formula(self, precision: str, clock_hertz: float | None = None) -> float | None:
        """FLOP/s as multiprocessors × clock × FLOP per clock; None where one is not known.

        The clock is the maker's, or the one that was observed.
        """
        each = self.flops_per_clock.get(precision)
        tensor = _AT_TENSOR_CLOCK.match(precision) and self.tensor_clock_hertz
        clock = clock_hertz or tensor or self.clock_hertz
        return None if each is None or clock is None else self.multiprocessors * clock * each

    def flops_per_second(self, precision: str) -> float | None:
        """The datasheet's figure, or the formula's at the maker's clock; None without either."""
        return self.datasheet.get(precision) or self.formula(precision)


@cache
def table() -> dict[str, Peak]:
    """All devices by their normalised name."""
    document = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    classes = {
        name: {key: value for key, value in entry.items() if key != "source"}
        for name, entry in document["classes"].items()
    }
    by_name = {}
    for entry in document["devices"]:
        by_name[_plain(entry["name"])] = _peak(entry, classes.get(entry.get("class"), {}))
    return by_name


def find(
    name: str, multiprocessors: int | None, memory_bytes: float | None, *, mig: bool = False
) -> Peak | str:
    """The device of that name, if the driver's facts agree with it; else the reason in words.

    The exact name counts first, then the longest name of the table that it begins with, at the end
    of a word.
    """
    if mig or _SLICE.search(name):
        return f"{name} is a slice of a card; what a slice reaches is no datasheet's figure."
    plain = _plain(name)
    matches = [key for key in table() if plain == key or plain.startswith(f"{key} ")]
    if not matches:
        return f"{name} is not in peaks.toml."
    key = max(matches, key=len)
    peak = table()[key]
    if multiprocessors is None or memory_bytes is None:
        return f"{name}: multiprocessors and memory are not known, so its peak is not either."
    if multiprocessors != peak.multiprocessors:
        return (
            f"{name} with {multiprocessors} multiprocessors is an unknown variant of {peak.name}, "
            f"which has {peak.multiprocessors}."
        )
    low, high = _MEMORY_SHARE
    if not any(low * size <= memory_bytes <= high * size for size in peak.memory_bytes):
        sizes = " or ".join(f"{size / 1e9:g}" for size in peak.memory_bytes)
        return (
            f"{name} with {memory_bytes / 1e9:.4g} GB of memory is an unknown variant of "
            f"{peak.name}, which has {sizes}."
        )
    return peak if plain == key else _by_prefix(peak)


def of_device(facts: Any) -> Peak | str:
    """``find`` for the facts that a run's fingerprint holds of its device."""
    if not isinstance(facts, dict) or "multiprocessors" not in facts:
        return "Only NVIDIA devices have peaks in peaks.toml."
    sizes = [facts.get("multiprocessors"), facts.get("memory_bytes")]
    units, memory = (value if isinstance(value, int) else None for value in sizes)
    return find(str(facts.get("name", "")), units, memory, mig=facts.get("mig") is True)


def _by_prefix(peak: Peak) -> Peak:
    from msgspec.structs import replace

    return replace(peak, exact=False)


def _plain(name: str) -> str:
    """A name as it is compared: drivers of before 2021 leave out the maker."""
    return " ".join(name.split()).casefold().removeprefix("nvidia ")


def _peak(entry: dict[str, Any], per_clock: dict[str, int]) -> Peak:
    def scaled(key: str, scale: float) -> float | None:
        return entry[key] * scale if key in entry else None

    return Peak(
        name=entry["name"],
        multiprocessors=entry["multiprocessors"],
        memory_bytes=tuple(size * 1e9 for size in entry["memory_gigabytes"]),
        flops_per_clock=per_clock,
        datasheet={key: value * 1e12 for key, value in entry.get("datasheet", {}).items()},
        clock_hertz=scaled("clock_megahertz", 1e6),
        tensor_clock_hertz=scaled("tensor_clock_megahertz", 1e6),
        bytes_per_second=scaled("gigabytes_per_second", 1e9),
        l2_bytes=scaled("l2_megabytes", 1e6),
        watts=scaled("watts", 1.0),
        note=entry.get("note", ""),
        sources=tuple(entry["sources"]),
    )
