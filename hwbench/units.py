"""The only place where a number becomes text: SI units, three significant digits."""

from __future__ import annotations

import math
import re
from decimal import ROUND_HALF_UP, Decimal

from hwbench.errors import UsageError

_PREFIXES = {-12: "p", -9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P"}
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|min|h)?\s*")
_DURATION_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, None: 1.0}


def si(value: float | None, unit: str) -> str:
    """``value`` with an SI prefix: ``si(0.00123, "s")`` is ``"1.23 ms"``; ``None`` is a dash."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return f"0 {unit}".rstrip()
    exponent = min(15, max(-12, 3 * math.floor(math.log10(abs(value)) / 3)))
    scaled = value / 10.0**exponent
    if abs(scaled) >= 999.5 and exponent < 15:
        exponent, scaled = exponent + 3, scaled / 1000
    return f"{significant(scaled)} {_PREFIXES[exponent]}{unit}".rstrip()


def significant(value: float, digits: int = 3) -> str:
    """``value`` rounded to ``digits`` significant digits, never in exponent form up to 1e6."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = fixed(value, places)
    if abs(float(text)) >= 10.0 ** (digits - places) and places:  # rounding added a digit
        text = fixed(value, places - 1)
    return text


def fixed(value: float, places: int) -> str:
    """``value`` with so many decimals; a tie goes away from zero, as in the page's script.

    ``format`` would write 5/16, which is a tie of 0.312 and 0.313, as the even one.
    """
    if places < 10 and abs(value) < 2**53 and (2 * value * 10.0**places).is_integer():
        up = Decimal(float(value)).quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP)
        return f"{up:f}"
    return f"{value:.{places}f}"


def seconds(value: float | None) -> str:
    """A duration, such as ``1.23 ms``."""
    return si(value, "s")


def nbytes(value: float | None) -> str:
    """A size in bytes, with decimal prefixes (1 MB is 10^6 bytes)."""
    return si(value, "B")


def flops_per_second(value: float | None) -> str:
    """A rate of floating-point operations."""
    return si(value, "FLOP/s")


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as per cent: ``percent(0.031)`` is ``"3.1 %"``."""
    return "–" if value is None or not math.isfinite(value) else f"{fixed(100 * value, digits)} %"


def ratio(value: float | None) -> str:
    """A quotient, such as ``0.412×``."""
    return "–" if value is None or not math.isfinite(value) else f"{significant(value)}×"


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """A value with half the width of its interval: ``0.412 ±0.003``, ``0.412 ±0.0002``."""
    if value is None or not math.isfinite(value):
        return "–"
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return significant(value)
    half = (high - low) / 2
    places = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 2
    # A half width that the value's digits would round to nothing has a digit of its own.
    digits = fixed(half, places)
    return f"{significant(value)} ±{digits if float(digits) else significant(half, 1)}"


def count(number: int, noun: str) -> str:
    """A number of things: ``1 case`` or ``0 cases``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def clock(value: float) -> str:
    """A span as a clock shows it: ``1:05`` or ``2:00:09``."""
    whole = max(0, round(value))
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


def parse_seconds(text: str) -> float:
    """Read ``90s``, ``2m``, ``1.5h``, ``200ms`` or a bare number of seconds.

    Raises:
        UsageError: the text is not a positive duration.
    """
    match = _DURATION.fullmatch(text)
    value = float(match[1]) * _DURATION_SECONDS[match[2]] if match else 0.0
    if not 0 < value < math.inf:
        raise UsageError(f"{text!r} is not a duration; write for example 90s, 5m or 1h.")
    return value
