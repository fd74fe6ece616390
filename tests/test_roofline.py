"""The roofline against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
from msgspec.structs import replace

from hwbench.analysis.roofline import (
    COMPUTE,
    LAUNCH,
    MEMORY,
    Level,
    Roof,
    lines,
    place,
    precision,
    raised,
    roof,
)
from hwbench.errors import UsageError
from hwbench.records import Cost, Environment

ROOF = Roof(flops_per_second=1e12, bytes_per_second=1e10)  # ridge at 100 FLOP per byte
CEILINGS = {
    "matmul": {"float32": {"flops_per_second": 1e12, "shape": [64, 64, 64]}},
    "copy": {"bytes_per_second": 1e10, "working_set_bytes": 10},
}


def cost(flops: int, compulsory: int, *, dense: int = 0, between: int = 0) -> Cost:
    return Cost(
        parameters=1,
        stored_bytes=4,
        flops=flops,
        dense_flops=dense or flops,
        compulsory_bytes=compulsory,
        intermediate_bytes=between,
    )


def test_compute_bound_case() -> None:
    placed = place(cost(2_000_000_000, 1_000_000), ROOF, 0.004)
    assert placed.bound == COMPUTE
    assert placed.intensity == 2000
    assert placed.attainable_seconds == placed.compute_seconds == pytest.approx(0.002)
    assert placed.memory_seconds == pytest.approx(1e-4)
    assert placed.flops_per_second == pytest.approx(5e11)
    assert placed.efficiency == pytest.approx(0.5)
    assert placed.note is None


def test_memory_bound_case() -> None:
    placed = place(cost(10_000_000, 1_000_000), ROOF, 2e-4)
    assert placed.bound == MEMORY
    assert placed.intensity == 10
    assert placed.attainable_seconds == pytest.approx(1e-4)
    assert placed.bytes_per_second == pytest.approx(5e9)
    assert placed.efficiency == pytest.approx(0.5)
    assert not placed.in_cache


def test_a_time_below_the_memory_bound_is_cache_residency_and_is_not_clipped() -> None:
    placed = place(cost(10_000_000, 1_000_000), ROOF, 2.5e-5)
    assert placed.in_cache
    assert placed.efficiency == pytest.approx(4.0)
    assert placed.note is not None
    assert "cache" in placed.note


@pytest.mark.parametrize(
    ("share", "cached"), [(1.0, False), (0.94, False), (0.91, False), (0.89, True)]
)
def test_a_kernel_that_reads_faster_than_a_copy_is_not_said_to_be_in_cache(
    share: float, cached: bool
) -> None:
    """Half of what a copy moves is written; a product with one token hardly writes."""
    cost = Cost(parameters=1, stored_bytes=1, flops=1, dense_flops=1, compulsory_bytes=10**8)
    placed = place(cost, ROOF, share * 10**8 / ROOF.bytes_per_second)
    assert placed.in_cache is cached
    assert (placed.note is not None) is cached


def test_a_kernel_above_the_compute_roof_is_not_said_to_be_in_cache() -> None:
    placed = place(cost(2_000_000_000, 1_000_000), ROOF, 0.001)
    assert placed.efficiency == pytest.approx(2.0)
    assert not placed.in_cache


def test_what_is_executed_and_not_needed_earns_no_efficiency() -> None:
    """A weight gradient formed in full, to pick a tenth of it."""
    wasteful = replace(cost(2_000_000_000, 1_000_000), needed_flops=200_000_000)
    placed = place(wasteful, ROOF, 0.004)
    assert placed.flops_per_second == pytest.approx(5e11)
    assert placed.efficiency == pytest.approx(0.05)
    assert place(cost(2_000_000_000, 1_000_000), ROOF, 0.004).efficiency == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("fastest", "roof_after"), [(0.9e12, 1e12), (1.04e12, 1e12), (1.06e12, 1.06e12)]
)
def test_a_case_that_clearly_exceeds_the_roof_raises_it_and_it_says_so(
    fastest: float, roof_after: float
) -> None:
    measured = replace(ROOF, library="MKL")
    actual = raised(measured, [("slow", 1e11), ("packed", fastest), ("no time", 0.0)])
    assert actual.flops_per_second == roof_after
    assert actual.bytes_per_second == measured.bytes_per_second
    if roof_after == 1e12:
        assert actual is measured
        assert actual.note is None
        return
    note = str(actual.note)
    for words in ("packed executed 1.06 TFLOP/s", "the 1.00 TFLOP/s", "by MKL", "raised"):
        assert words in note
    assert raised(measured, []) is measured


def test_both_rates_stand_side_by_side() -> None:
    placed = place(cost(10**9, 10**6, dense=4 * 10**9), ROOF, 0.01)
    assert placed.flops_per_second == pytest.approx(1e11)
    assert placed.dense_flops_per_second == pytest.approx(4e11)


@pytest.mark.parametrize(
    ("parameters", "width", "fused", "unfused"),
    [(4096 * 4096, 0, 683, 683), (8388608, 1024, 512, 455), (8388608, 2 * 65536, 512, 30)],
    ids=["dense", "low_rank rank 1024", "btt 64x64 blocks, permuted"],
)
def test_intensities_of_the_literature(
    parameters: int, width: int, fused: float, unfused: float
) -> None:
    """Bfloat16, 4096×4096, 1024 tokens: FLOP per byte, fused and with what is written between."""
    tokens, side, item = 1024, 4096, 2
    placed = place(
        cost(
            2 * tokens * parameters,
            item * (2 * tokens * side + parameters),
            between=2 * item * tokens * width,
        ),
        ROOF,
        1.0,
    )
    assert placed.intensity == pytest.approx(fused, abs=0.7)
    assert placed.unfused_intensity == pytest.approx(unfused, abs=0.7)
    assert placed.unfused_seconds >= placed.attainable_seconds


def test_the_roof_is_the_lower_of_the_two_and_meets_at_the_ridge() -> None:
    assert ROOF.ridge == 100
    assert ROOF.attainable(10) == 1e11
    assert ROOF.attainable(100) == 1e12
    assert ROOF.attainable(10_000) == 1e12


def test_the_roof_is_read_from_the_ceilings() -> None:
    assert roof(CEILINGS, "float32") == ROOF


@pytest.mark.parametrize(
    "ceilings",
    [
        {},
        {"matmul": CEILINGS["matmul"]},
        {"copy": CEILINGS["copy"]},
        {"matmul": {"float32": {}}, "copy": CEILINGS["copy"]},
        {"matmul": {"float32": {"flops_per_second": 0}}, "copy": CEILINGS["copy"]},
        {"matmul": {"float32": {"flops_per_second": "fast"}}, "copy": CEILINGS["copy"]},
        {"matmul": "none", "copy": CEILINGS["copy"]},
    ],
)
def test_without_a_measured_ceiling_there_is_no_roof(ceilings: dict[str, object]) -> None:
    assert roof(ceilings, "float32") is None


def test_a_dtype_without_a_ceiling_has_no_roof() -> None:
    assert roof(CEILINGS, "float64") is None


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_a_time_that_is_none_has_no_place(seconds: float) -> None:
    with pytest.raises(UsageError, match="no place"):
        place(cost(1, 1), ROOF, seconds)


def test_no_bytes_have_no_place() -> None:
    with pytest.raises(UsageError, match="no place"):
        place(cost(1, 0), ROOF, 1.0)


# --- levels and launch -------------------------------------------------------------------------

LEVELS = Roof(
    flops_per_second=1e12,
    bytes_per_second=1e10,
    launch_seconds=1e-6,
    levels=(
        Level(name="L2", bytes_per_second=1e11, most_bytes=1_000_000.0),
        Level(name="L3", bytes_per_second=5e10, most_bytes=10_000_000.0),
    ),
)


@pytest.mark.parametrize(
    ("moved", "bound", "seconds"),
    [(50_000, LAUNCH, 1e-6), (500_000, "L2", 5e-6), (5_000_000, "L3", 1e-4),
     (50_000_000, MEMORY, 5e-3)],
)  # fmt: skip
def test_a_hot_call_is_bound_by_the_level_that_holds_it(
    moved: int, bound: str, seconds: float
) -> None:
    placed = place(cost(10, moved), LEVELS, 1.0)
    assert placed.bound == bound
    assert placed.attainable_seconds == pytest.approx(seconds)


def test_a_cold_call_is_bound_by_memory() -> None:
    assert place(cost(10, 5_000_000), LEVELS, 1.0, hot=False).bound == MEMORY


def test_what_the_kernel_writes_between_needs_room_in_the_cache_too() -> None:
    assert place(cost(10, 500_000, between=600_000), LEVELS, 1.0).bound == "L3"


def test_cache_residency_is_said_with_the_cache() -> None:
    placed = place(cost(10, 5_000_000), LEVELS, 2e-4)
    assert placed.in_cache
    assert placed.efficiency == pytest.approx(0.5)
    assert placed.note is not None
    assert placed.note.endswith("the operands stayed in cache (L3)")


FULL = {
    **CEILINGS,
    "launch": {"seconds": 2e-6},
    "levels": [
        {"name": "L3", "bytes_per_second": 5e10, "working_set_bytes": [1000, 2000]},
        {"name": "memory", "bytes_per_second": 1e10, "working_set_bytes": [10**8, 2 * 10**8]},
    ],
}


def test_levels_and_launch_are_read_from_the_full_form() -> None:
    read = roof(FULL, "float32")
    assert read is not None
    assert read.launch_seconds == 2e-6
    assert read.levels == (Level(name="L3", bytes_per_second=5e10, most_bytes=2000.0),)
    assert read.level(2000) == read.levels[0]
    assert read.level(2001) is None


@pytest.mark.parametrize("levels", [None, "x", [], [{}], [3, {}], [{"name": "L3"}, {}]])
def test_levels_that_are_none_are_none(levels: object) -> None:
    read = roof({**CEILINGS, "levels": levels}, "float32")
    assert read == ROOF


# --- three roofs -------------------------------------------------------------------------------

A100 = {"name": "NVIDIA A100-SXM4-80GB", "multiprocessors": 108, "memory_bytes": 85_049_475_072}


def of(device: dict[str, object], **settings: object) -> Environment:
    return Environment(fingerprint={"device": device}, settings=settings)


def gpu(dtype: str, clock: float | None = 1.2e9) -> dict[str, object]:
    entry = {"flops_per_second": 2.5e14} | ({"sm_clock_hertz": clock} if clock else {})
    return {"matmul": {dtype: entry}, "copy": {"bytes_per_second": 1.7e12}}


def test_a_processor_has_its_measured_roof_and_its_caches() -> None:
    roof_lines, why = lines(FULL, of({"name": "EPYC", "cores": 2}), "float32")
    assert [(each.source, each.label) for each in roof_lines] == [
        ("measured", "measured"),
        ("cache", "L3"),
    ]
    assert why == "Only NVIDIA devices have peaks in peaks.toml."


def test_a_known_gpu_has_three() -> None:
    roof_lines, why = lines(gpu("bfloat16"), of(A100), "bfloat16")
    assert why == ""
    assert [each.source for each in roof_lines] == ["measured", "datasheet", "formula"]
    measured, datasheet, formula = roof_lines
    assert measured.flops_per_second == 2.5e14
    assert datasheet.flops_per_second == pytest.approx(3.12e14)
    assert datasheet.bytes_per_second == pytest.approx(2.039e12)
    assert formula.flops_per_second == pytest.approx(108 * 1.2e9 * 2048)
    assert formula.label == "formula at 1200 MHz"
    assert datasheet.ridge == pytest.approx(153, abs=0.5)


def test_without_a_clock_there_is_no_formula_and_it_is_said() -> None:
    roof_lines, why = lines(gpu("bfloat16", None), of(A100), "bfloat16")
    assert [each.source for each in roof_lines] == ["measured", "datasheet"]
    assert "clock was not read" in why


def test_an_unknown_variant_keeps_its_measured_roof() -> None:
    roof_lines, why = lines(gpu("bfloat16"), of({**A100, "multiprocessors": 124}), "bfloat16")
    assert [each.source for each in roof_lines] == ["measured"]
    assert "unknown variant" in why


def test_a_dtype_that_the_card_emulates_has_no_peak() -> None:
    v100 = {"name": "Tesla V100-SXM2-16GB", "multiprocessors": 80, "memory_bytes": 16_945_512_448}
    roof_lines, why = lines(gpu("bfloat16"), of(v100), "bfloat16")
    assert [each.source for each in roof_lines] == ["measured"]
    assert "no figure of bfloat16" in why


def test_the_settings_choose_the_roof() -> None:
    assert precision("float32", {}) == "float32"
    assert precision("float32", {"matmul.allow_tf32": True}) == "float32_tf32"
    assert precision("float32", {"matmul.fp32_precision": "tf32"}) == "float32_tf32"
    half = {"matmul.allow_fp16_accumulation": True}
    assert precision("float16", half) == "float16_accumulate_float16"
    assert precision("bfloat16", half) == "bfloat16"
    tf32 = lines(gpu("float32"), of(A100, **{"matmul.allow_tf32": True}), "float32")[0]
    assert tf32[1].flops_per_second == pytest.approx(1.56e14)
    double = lines(gpu("float64"), of(A100), "float64")[0]
    assert double[1].flops_per_second == pytest.approx(1.95e13)
