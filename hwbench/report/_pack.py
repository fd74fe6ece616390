"""All rows as columns of JSON that may stand inside a page: small, and inert whatever they hold."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Callable, Iterable
from operator import attrgetter, methodcaller
from typing import Any

from hwbench.report import _heat, _samples
from hwbench.report.rows import Row

PLAIN_LIMIT = 400_000
"""Characters of data up to which it stands in the page as readable JSON; above, it is gzipped."""

TEXT = (
    "case",
    "format",
    "label",
    "series",
    "kernel",
    "knobs",
    "resolved",
    "workload",
    "options",
    "dtype",
    "direction",
    "regime",
    "mode",
    "status",
    "reason",
    "flags",
    "contract",
    "score_name",
    "bound",
    "density_word",
    "shade",
    "level",
    "explained",
)
"""The columns of text."""
NUMBERS = (
    "run",
    "group_number",
    "out_features",
    "in_features",
    "tokens",
    "asked_density",
    "density",
    "replicates",
    "parameters",
    "stored_bytes",
    "dense_bytes",
    "flops",
    "dense_flops",
    "compulsory_bytes",
    "intermediate_bytes",
    "time_low",
    "time_high",
    "graph_low",
    "graph_high",
    "relative_low",
    "relative_high",
    "intensity",
    "unfused_intensity",
    "efficiency",
    "best",
    "against_dense",
    "base_seconds",
    "ratio",
    "ratio_low",
    "ratio_high",
    "ratio_roofs",
    *_samples.columns(),
)
"""The columns of numbers beside the quantities."""

_READ: dict[str, Callable[[Row], Any]] = {
    "shade": _heat.shade,
    "best": lambda row: int(row.best),
    "against_dense": lambda row: int(row.against_dense),
    "base_seconds": lambda row: row.against.base_seconds,
    "ratio": lambda row: row.against.ratio,
    "ratio_low": lambda row: row.against.low,
    "ratio_high": lambda row: row.against.high,
    "ratio_roofs": lambda row: row.against.roofs,
    "explained": lambda row: row.against.explained,
    **_samples.columns(),
}
"""How a column is read from a row, where that has no attribute of its name."""
_DIGITS = 5
_LEVEL = 7  # of gzip: 9 takes twice as long and saves a hundredth
BOUND_DIGITS = 4  # of the ends of intervals


def columns(rows: list[Row], measured: Iterable[str] = ()) -> dict[str, Any]:
    """The rows by column; empty columns are left out, repeated values are replaced by numbers.

    ``measured`` are the names of the quantities that the rows hold.
    """
    read = {name: _READ.get(name, attrgetter(name)) for name in (*TEXT, *NUMBERS)}
    read |= {name: methodcaller("value", name) for name in measured}
    packed = {}
    for name, value_of in read.items():
        digits = BOUND_DIGITS if name.endswith(("_low", "_high")) else _DIGITS
        values = [value_of(row) for row in rows]
        if any(map(_holds, values)):
            packed[name] = _column([_plain(value, digits) for value in values])
    return packed


def _holds(value: Any) -> bool:
    return value is not None and (not isinstance(value, float) or math.isfinite(value))


def _plain(value: Any, digits: int) -> Any:
    """The value as JSON can hold it; floats rounded to so many significant digits."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        if value.is_integer() and abs(value) < 2**53:
            return int(value)
        return float(f"{value:.{digits}g}")
    return value


def _column(values: list[Any]) -> dict[str, Any]:
    places = {value: number for number, value in enumerate(dict.fromkeys(values))}
    if len(places) * 3 > len(values) > 30:
        return {"values": values}
    return {"words": list(places), "at": [places[value] for value in values]}


def unpacked(packed: dict[str, Any], name: str) -> list[Any]:
    """A column as the page's script reads it."""
    column = packed[name]
    if "values" in column:
        return list(column["values"])
    return [column["words"][number] for number in column["at"]]


def embedded(data: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end it or open another."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    escapes = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028"}
    for character, escape in {**escapes, "\u2029": "\\u2029"}.items():
        text = text.replace(character, escape)
    return text.encode("utf-8", "backslashreplace").decode()


def squeezed(text: str) -> str:
    """Text gzipped in base64, the same bytes for the same text."""
    return base64.b64encode(gzip.compress(text.encode(), _LEVEL, mtime=0)).decode("ascii")
