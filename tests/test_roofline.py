"""The roofline against numbers worked by hand."""

from __future__ import annotations

import math

import pytest

from hwbench.errors import UsageError
from hwbench.records import Cost
from hwbench.roofline import COMPUTE, MEMORY, Roof, place, roof

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


def test_a_kernel_above_the_compute_roof_is_not_said_to_be_in_cache() -> None:
    placed = place(cost(2_000_000_000, 1_000_000), ROOF, 0.001)
    assert placed.efficiency == pytest.approx(2.0)
    assert not placed.in_cache


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
