"""The texts that numbers become, and the durations that texts become."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from contextlib import suppress
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hwbench import units
from hwbench.errors import UsageError

FINITE = st.floats(allow_nan=False, allow_infinity=False)
PREFIXES = {"p": 1e-12, "n": 1e-9, "µ": 1e-6, "m": 1e-3, "": 1.0}
PREFIXES |= {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00123, "1.23 ms"),
        (1.0, "1.00 s"),
        (999.4, "999 s"),
        (999.6, "1.00 ks"),
        (9.999, "10.0 s"),
        (99.96, "100 s"),
        (1e-3, "1.00 ms"),
        (0.9999, "1.00 s"),
        (12.5e-6, "12.5 µs"),
        (3.4e-9, "3.40 ns"),
        (2.5e-12, "2.50 ps"),
        (-0.0456, "-45.6 ms"),
        (0.0, "0 s"),
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "–"),
    ],
)
def test_seconds(value: float | None, text: str) -> None:
    assert units.seconds(value) == text


@pytest.mark.parametrize(
    ("make", "value", "text"),
    [
        (units.nbytes, 4_194_304, "4.19 MB"),
        (units.nbytes, 512, "512 B"),
        (units.nbytes, 1.41e11, "141 GB"),
        (units.flops_per_second, 7.88e14, "788 TFLOP/s"),
        (units.flops_per_second, 1.2e18, "1200 PFLOP/s"),
        (units.percent, 0.031, "3.1 %"),
        (units.percent, -0.5, "-50.0 %"),
        (units.percent, None, "–"),
        (units.percent, math.inf, "–"),
        (units.ratio, 0.4117, "0.412×"),
        (units.ratio, 12.0, "12.0×"),
        (units.ratio, math.nan, "–"),
        (units.significant, 0, "0"),
        (units.significant, 0.000234, "0.000234"),
        (units.significant, 0.0000234, "2.34e-05"),
        (units.significant, 123456.0, "123456"),
        (units.significant, 1234567.0, "1.23e+06"),
        (units.significant, 0.99999, "1.00"),
        (units.clock, 65.2, "1:05"),
        (units.clock, 7209, "2:00:09"),
        (units.clock, 59.6, "1:00"),
        (units.clock, -3, "0:00"),
    ],
)
def test_golden_texts(make: Callable[[float | None], str], value: float | None, text: str) -> None:
    assert make(value) == text


def test_si_without_unit_has_no_space_at_the_end() -> None:
    assert units.si(0, "") == "0"
    assert units.si(5.0, "") == "5.00"
    assert units.si(2e6, "") == "2.00 M"


def test_percent_has_the_digits_asked_for() -> None:
    assert units.percent(0.03149, digits=2) == "3.15 %"
    assert units.percent(0.03149, digits=0) == "3 %"


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        ((0.412, 0.409, 0.415), "0.412 ±0.003"),
        ((1.5, 1.25, 1.75), "1.50 ±0.25"),
        ((123.0, 120.0, 126.0), "123 ±3"),
        ((0.0, -1.0, 1.0), "0 ±1.00"),
        ((0.482, 0.4817, 0.4823), "0.482 ±0.0003"),
        ((0.482, 0.48198, 0.48202), "0.482 ±2e-05"),
        ((0.482, 0.482, 0.482), "0.482 ±0"),
        ((1.5, None, 1.75), "1.50"),
        ((1.5, 1.25, math.inf), "1.50"),
        ((None, 1.0, 2.0), "–"),
        ((math.nan, 1.0, 2.0), "–"),
    ],
)
def test_interval(estimate: tuple[float | None, float | None, float | None], text: str) -> None:
    assert units.interval(*estimate) == text


@given(st.floats(1e-3, 1e3), st.floats(1e-12, 0.1))
def test_no_interval_is_printed_as_certain(value: float, share: float) -> None:
    half = value * share
    words = units.interval(value, value - half, value + half).partition("±")[2]
    assert float(words) > 0


@given(FINITE, FINITE, FINITE)
def test_every_finite_number_has_a_text(value: float, low: float, high: float) -> None:
    one = (units.seconds, units.nbytes, units.flops_per_second, units.percent, units.ratio)
    for make in (*one, units.significant, units.clock):
        assert re.fullmatch(r"\S+( \S+)?", make(value)), make
    assert units.interval(value, low, high).startswith(units.significant(value))


@given(st.floats(1e-12, 9.99e17), st.sampled_from([1, -1]))
@example(999.5, 1)
@example(0.9994999, -1)
def test_si_says_the_number_to_three_digits(size: float, sign: int) -> None:
    mantissa, _, prefix = units.si(sign * size, "").partition(" ")
    assert float(mantissa) * PREFIXES[prefix] == pytest.approx(sign * size, rel=0.00501)
    assert 1 <= abs(float(mantissa)) < 1000
    assert len(mantissa.removeprefix("-").replace(".", "")) == 3


@given(st.floats(1e-4, 9.99e5))
def test_significant_rounds_to_the_nearest(value: float) -> None:
    assert float(units.significant(value)) == pytest.approx(value, rel=0.00501)
    assert float(units.significant(value, digits=5)) == pytest.approx(value, rel=0.0000501)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("90", 90),
        ("2m", 120),
        ("2 min", 120),
        ("1.5h", 5400),
        ("200ms", 0.2),
        (" 0.5 s ", 0.5),
    ],
)
def test_parse_seconds(text: str, seconds: float) -> None:
    assert units.parse_seconds(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    ["", "s", "0", "0s", "-5s", "1e3", "5 d", "5 s s", "1,5h", "nan", "inf", "5.s", "9" * 400],
)
def test_parse_seconds_refuses_in_words(text: str) -> None:
    with pytest.raises(UsageError, match="is not a duration; write for example 90s"):
        units.parse_seconds(text)


@given(st.text() | st.from_regex(r"[0-9]{1,5}(\.[0-9]{1,3})?(ms|s|m|min|h)?", fullmatch=True))
def test_parse_seconds_gives_a_duration_or_a_usage_error(text: str) -> None:
    with suppress(UsageError):
        assert 0 < units.parse_seconds(text) < math.inf


def test_one_of_a_thing_is_no_plural() -> None:
    assert [units.count(number, "case") for number in (0, 1, 2)] == ["0 cases", "1 case", "2 cases"]


@given(st.integers(-(2**20), 2**20).filter(bool), st.integers(0, 20))
def test_a_tie_is_rounded_away_from_zero_as_a_page_does(numerator: int, power: int) -> None:
    """Python's own way, to even, would write 5/16 as 0.312 where the page's script has 0.313."""
    value = numerator / 2**power
    for text, whole in ((units.significant(value), value), (units.percent(value, 0), 100 * value)):
        number = text.removesuffix(" %")
        if "e" in number:
            continue
        places = len(number.partition(".")[2])
        exact = Decimal(whole).quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP)
        assert Decimal(number) == exact, (value, text)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_numbers_of_numpy_are_numbers(kind: Any) -> None:
    assert (units.significant(kind(0.5)), units.percent(kind(0.125), 0)) == ("0.500", "13 %")
