"""What disturbs a block, device by device: told in words, and silent where it was quiet."""

from __future__ import annotations

import pytest

from hwbench.devices import _nvml
from hwbench.devices.cpu import Cpu

# --- the processor -----------------------------------------------------------------------------

QUIET_CPU = {
    "involuntary_switches": 10.0,
    "major_faults": 0.0,
    "minor_faults": 900.0,
    "steal_seconds": 5.0,
    "throttled": 3.0,
}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"involuntary_switches": 40.0}, "switches"),
        ({"steal_seconds": 5.01}, "hypervisor"),
        ({"throttled": 4.0}, "quota"),
        ({"major_faults": 1.0}, "faults"),
    ],
)
def test_the_processor_says_what_disturbed_a_block(change: dict[str, float], word: str) -> None:
    causes = Cpu().disturbance(QUIET_CPU, {**QUIET_CPU, **change}, 0.1)
    assert len(causes) == 1
    assert word in causes[0]


def test_a_quiet_block_of_the_processor_is_quiet() -> None:
    assert Cpu().disturbance(QUIET_CPU, {**QUIET_CPU, "involuntary_switches": 12.0}, 0.1) == []
    assert set(Cpu().probe()) == set(QUIET_CPU)


# --- the GPU -----------------------------------------------------------------------------------

QUIET_GPU = {
    "sm_clock_hertz": 1.5e9,
    "memory_clock_hertz": 3.2e9,
    "temperature_celsius": 40.0,
    "event_reasons": float(0x2 | 0x10),
    "sw_thermal_seconds": 2.0,
    "foreign_bytes": 6e8,
}


def test_a_quiet_block_is_quiet_and_so_is_one_that_cannot_be_read() -> None:
    slightly = {**QUIET_GPU, "sm_clock_hertz": 1.45e9, "temperature_celsius": 43.0}
    assert _nvml.disturbances(QUIET_GPU, slightly, 0.1) == []
    assert _nvml.disturbances({}, {}, 0.1) == []
    assert _nvml.disturbances({}, QUIET_GPU, 0.1) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"event_reasons": float(0x40)}, "hardware thermal slowdown"),
        ({"event_reasons": float(0x8)}, "hardware slowdown"),
        ({"event_reasons": float(0x80)}, "power brake"),
        ({"sw_thermal_seconds": 2.05}, "throttled for 0.05 s by heat (software)"),
        ({"sm_clock_hertz": 1.2e9}, "the SM clock went from 1500 to 1200 MHz"),
        ({"memory_clock_hertz": 0.4e9}, "the memory clock went from 3200 to 400 MHz"),
        ({"foreign_bytes": 1.1e9}, "others took 500 MB of its memory"),
        ({"foreign_bytes": 1e8}, "others gave back 500 MB of its memory"),
    ],
)
def test_each_disturbance_is_told_once(change: dict[str, float], words: str) -> None:
    assert _nvml.disturbances(QUIET_GPU, {**QUIET_GPU, **change}, 0.1) == [words]


CLOCKS = {"sm_clock_hertz": (1.98e9, 1.6e9), "memory_clock_hertz": (3.2e9, 0.4e9)}


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("bits", [0x1, 0x2, 0x4, 0x5, 0x10])
@pytest.mark.parametrize("when", ["before", "after", "both"])
def test_a_clock_that_moves_as_the_card_always_does_disturbs_nothing(
    clock: str, bits: int, when: str
) -> None:
    """Idle moves both clocks, the power cap that of the multiprocessors."""
    high, low = CLOCKS[clock]
    probes = [{**QUIET_GPU, clock: high}, {**QUIET_GPU, clock: low}]
    for name, probe in zip(("before", "after"), probes, strict=True):
        probe["event_reasons"] = float(bits if when in (name, "both") else 0)
    own = bits & (0x5 if clock == "sm_clock_hertz" else 0x1)
    for before, after in (probes, probes[::-1]):
        causes = _nvml.disturbances(before, after, 0.025)
        assert bool(causes) is not bool(own)


def test_a_card_that_warms_up_is_not_disturbed_and_one_that_heat_slows_is() -> None:
    warm = {**QUIET_GPU, "temperature_celsius": 60.0}
    assert _nvml.disturbances(QUIET_GPU, warm, 1.0) == []
    for bit in (0x20, 0x40):
        assert _nvml.disturbances(QUIET_GPU, {**warm, "event_reasons": float(bit)}, 1.0)


def test_reasons_are_words_and_unknown_bits_their_number() -> None:
    assert _nvml.words_of(0) == []
    assert _nvml.words_of(0x41) == ["idle", "hardware thermal slowdown"]
    assert _nvml.words_of(0x4 | 0x1000) == ["power cap", "reason 0x1000"]
