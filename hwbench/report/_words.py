"""Cases and groups in words, the same in every output."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from hwbench import units
from hwbench.analysis.contested import LOSSLESS
from hwbench.analysis.frames import NEVER_QUIET
from hwbench.analysis.modes import Modes
from hwbench.analysis.roofline import Roof
from hwbench.quantities import Quantity
from hwbench.report._whose import experiment
from hwbench.report.rows import STORED, Row, known, printable, word

DIRECTIONS = {
    "forward": "Forward",
    "backward": "Backward",
    "backward_input": "Backward to the input",
    "backward_weight": "Backward to the weight",
    "step": "Forward and backward",
}
STATUSES = {
    "ok": "ok",
    "unsupported": "unsupported",
    "wrong": "wrong",
    "out_of_memory": "out of memory",
    "timed_out": "timed out",
    "crashed": "crashed",
    "missing": "not measured",
}
FLAGS = {
    "disturbed": "in more than half of its blocks something else took the machine",
    "not_steady": "the time still moved when warm-up ended",
    "launch_bound": "the host takes at least 90 % of the time of a call to launch it",
    "starved": "the device waited for the host, so that a graph’s time is all it has",
    "never_quiet": "the machine was never quiet: a time and no verdict",
    "system_slower": "in a process of its own, whose allocator gives memory back to the system, a "
    "call takes over 10 % longer",
    "recompiled": "torch compiled again while it was timed",
}
"""The meaning of each flag of a case; other packages' meters may set others."""

FAR = 0.1
"""From the asked density: a name has both where they differ by more than this share."""


_PARTS = re.compile(r"(?:\[[^\]]*\]|[^/\[])+")
_IN_BRACKETS = re.compile(r"\[([^\]]*)\]")
_SHAPE = re.compile(r"\d+x\d+")
_TOKENS = re.compile(r"^t(\d+)$")
_LEAST = 2  # parts of an id before its shape: workload and format


def flag(name: str) -> str:
    """A flag as people read it, such as ``launch bound``."""
    return printable(name).replace("_", " ")


def shape(row: Row) -> str:
    """``1024×1024``: out_features × in_features."""
    return f"{row.out_features}×{row.in_features}"


def tokens(row: Row) -> str | None:
    """``256 tokens``; None where the workload has none."""
    count = row.tokens
    return None if count is None else units.count(count, "token")


def direction(row: Row) -> str | None:
    """The direction in words; None where the workload has none."""
    name = row.direction
    return None if name is None else DIRECTIONS.get(name, printable(name))


def workload(row: Row) -> str:
    """The workload and its options, such as ``projection matrix=power_law``."""
    if own := experiment(row):
        return own
    options = json.loads(row.options)
    return printable(" ".join([row.workload, *(f"{k}={word(options[k])}" for k in options)]))


def setting(row: Row) -> list[str]:
    """The unusual parts of a setting: cold caches, a compiled layer."""
    unusual = []
    if row.regime not in (None, "hot"):
        unusual.append("cold caches" if row.regime == "cold" else printable(row.regime))
    if row.mode not in (None, "eager"):
        unusual.append("compiled" if row.mode == "compile" else printable(row.mode))
    return unusual


def machine(row: Row) -> str:
    """The machine of a row, where the rows of several runs are shown together; else nothing."""
    return printable(row.machine)


def group_parts(row: Row) -> list[str]:
    """The parts of a group's title, such as ``Forward``, ``1024×1024``, ``256 tokens``."""
    options = json.loads(row.options)
    workload_words = workload(row) if row.direction is None or options else None
    if workload_words is None and row.workload != "linear":
        workload_words = workload(row)
    first = [part for part in (direction(row), workload_words) if part]
    parts = [*first, shape(row), tokens(row), printable(row.dtype), *setting(row)]
    return [part for part in [*parts, machine(row)] if part]


def group_title(row: Row, *, capital: bool = True) -> str:
    """A group in one line: ``Forward, 1024×1024, 256 tokens, float32``."""
    title = ", ".join(group_parts(row))
    return (title[:1].upper() if capital else title[:1].lower()) + title[1:]


def share(row: Row) -> str:
    """``density 0.5``, or ``0.5 of dense's bytes`` where these were asked for."""
    asked_share = row.density_word
    if asked_share.endswith(STORED):
        return f"{asked_share.removesuffix(STORED)} of dense's bytes"
    return f"density {asked_share}"


def no_interval(rows: Iterable[Row]) -> str:
    """Why none of these rows has an interval."""
    if any(NEVER_QUIET in row.flags.split(",") for row in rows):
        return "the machine was never quiet, so there is no interval"
    return "one replicate gives no interval"


def format_name(row: Row) -> str:
    """A format in words: ``low_rank, density 0.5 (mkl)``, ``quantized int8``.

    The name has the type also where bytes were asked for and the type was resolved from them. It
    has a density of 1 where this was asked for.
    """
    knobs, resolved = json.loads(row.knobs), json.loads(row.resolved)
    kind = knobs.pop("type", resolved.get("type"))
    parts = [row.format if kind is None else f"{row.format} {word(kind)}"]
    density, asked_density = row.density, row.asked_density
    whole = row.format in LOSSLESS or (density == 1 and not known(asked_density))
    if known(density) and not whole:
        asked = f" (asked {asked_density:g})" if far_from_asked(row) else ""
        parts.append(f"density {density:.3g}{asked}")
    other_knobs = (knob for knob in sorted(knobs) if knob not in ("density", "kernel"))
    parts += [f"{knob} {word(knobs[knob])}" for knob in other_knobs]
    kernel = f" ({knobs['kernel']})" if "kernel" in knobs else ""
    return printable(", ".join(parts) + kernel)


def far_from_asked(row: Row) -> bool:
    """Whether the density of a row is a tenth off the one that was asked for, or more."""
    density, asked_density = row.density, row.asked_density
    if not (known(density) and known(asked_density)):
        return False
    return bool(abs(density - asked_density) > FAR * asked_density)


def series_name(row: Row) -> str:
    """The series of a row, with its density where that is far from the one asked for.

    Beside others of one asked density, ``btt (density 0.0625)`` has fewer values than these.
    """
    name = printable(row.series)
    return f"{name} (density {row.density:.3g})" if far_from_asked(row) else name


class Parts(NamedTuple):
    """The parts of a case by which a history is narrowed, in words."""

    format: str  # without its knobs
    work: str  # the direction, or the workload of what is scored
    tokens: str  # empty where it has none


def parts(name: str) -> Parts | None:
    """The parts of the id of a case; None of a text that is none."""
    split = _split(name)
    if split is None:
        return None
    work, way, what, axes = split
    tokens = next((_TOKENS.sub(_counted, axis) for axis in axes if _TOKENS.match(axis)), "")
    direction_or_work = DIRECTIONS.get(way[0], way[0]).lower() if way else work
    return Parts(what.partition(" ")[0], direction_or_work, tokens)


def case(name: str) -> str:
    """The id of a case, the format first: ``low_rank density=0.5: forward, 1024×1024, 256 tokens``.

    What is as usual is left out: the workload linear, hot caches, eager. Other texts stay.
    """
    split = _split(name)
    if split is None:
        return printable(name)
    work, way, what, (shape, *rest) = split
    axes = [DIRECTIONS.get(each, each).lower() for each in way]
    axes += [shape.replace("x", "×"), *(_TOKENS.sub(_counted, each) for each in rest)]
    unusual = [axis for axis in axes if axis not in ("hot", "eager")]
    if work != "linear":
        unusual.insert(0, work)
    return f"{what}: {', '.join(unusual)}"


def raised(roof: Roof) -> str:
    """The note on a roof that a case raised, with that case in words; empty without one."""
    note = printable(roof.note or "")
    return note.replace(printable(roof.raised_by), case(roof.raised_by)) if note else ""


def _split(name: str) -> tuple[str, list[str], str, list[str]] | None:
    """Workload, directions, format, and the setting from the shape on but for the device."""
    words = [_IN_BRACKETS.sub(r" \1", part) for part in _PARTS.findall(printable(name))]
    size = next((n for n, word in enumerate(words) if _SHAPE.fullmatch(word)), 0)
    if not _LEAST <= size < len(words) - 1:
        return None
    work, *way, what = words[:size]
    return work, way, what, words[size:-1]


def interval(value: float, low: float, high: float) -> str:
    """``0.412 ±0.003``; by its ends, ``0.412 (0.02–8.5)``, where it is wider than the value."""
    if known(low) and known(high) and high - low > abs(value):
        return f"{units.significant(value)} ({units.significant(low)}–{units.significant(high)})"
    return units.interval(value, low, high)


def _counted(match: re.Match[str]) -> str:
    return f"{match[1]} token{'' if match[1] == '1' else 's'}"


def modes(split: Modes | None) -> str:
    """How often a case took which time, where its replicates fall into two modes; else nothing."""
    if split is None:
        return ""
    return (
        f"ran in two modes: {units.ratio(split.fast)} of dense in {split.counts[0]} of "
        f"{sum(split.counts)} replicates, {units.ratio(split.slow)} in {split.counts[1]}"
    )


def amount(value: Any, quantity: Quantity) -> str:
    """A value in the unit of its quantity: ``1.23 ms``; a dash where it is not known."""
    if not known(value):
        return "–"
    if quantity.unit in ("", "×"):
        return units.significant(float(value), quantity.digits)
    return units.si(value, quantity.unit)


def status(row: Row) -> str:
    """How a case ended, and its flags."""
    name = STATUSES.get(row.status, printable(row.status))
    flags = [flag(each) for each in row.flags.split(",") if each]
    return ", ".join([name, *flags])
