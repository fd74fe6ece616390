"""Reads a case in a process of its own, with the system's allocator unchanged."""

from __future__ import annotations

import time
from collections.abc import Iterable

from hwbench.devices._base import Device
from hwbench.meters._base import Meter
from hwbench.meters._sampling import calibrate, sample
from hwbench.quantities import SYSTEM_FAULTS, SYSTEM_RELATIVE, Quantity
from hwbench.records import Allocator, Measurement
from hwbench.workloads._base import Subject

SLOWER = "system_slower"
"""The flag of a case that takes over ``LIMIT`` times as long in a process of its own."""

LIMIT = 1.1

DISTURBED = (
    "In its own process it took longer by more than page faults can: something else disturbed it."
)

_FAULTS = "minor_faults"  # of a device's probe
_FAULT_SECONDS = 5e-6  # the most that one takes: the page is found, cleared and mapped
_TRIES = 2
_WARM_CALLS = 12  # before glibc has adapted its limits to the blocks of the case
_BUDGET_SECONDS = 0.3  # of a side, as ``calibrate`` takes it for its warm-up
_CALLS, _SECONDS = 8, 0.03  # that are timed: at least so many, and so long
_FEWEST, _LONG_SECONDS = 3, 1.0  # long calls: so many suffice once they took so long


class SystemAllocator(Meter):
    """Time with the system's allocator over time with memory kept, and page faults a call.

    glibc gives large blocks back to the system, and from which size on depends on what the process
    has freed before. A user's process that runs this layer alone has not freed what the other cases
    of a run have, so a fresh process that prepares this case alone is asked: it calls the case with
    the allocator as it is, then with memory kept, one right after the other. Where its page faults
    cannot cost ``LIMIT``, there is nothing to compare.
    """

    QUANTITIES = (SYSTEM_FAULTS, SYSTEM_RELATIVE)
    ORDER = 96
    FIRST_REPLICATE_ONLY = True

    def read(self, subject: Subject, device: Device) -> list[Measurement]:
        if subject.score is not None or subject.in_own_process is None:
            return []
        measurements: list[Measurement] | str = []
        for _ in range(_TRIES):
            measurements = subject.in_own_process()
            if isinstance(measurements, str) or all(each.note is None for each in measurements):
                break
        if isinstance(measurements, str):
            return [_measurement(quantity, note=measurements) for quantity in self.QUANTITIES]
        return measurements


def compared(subject: Subject, device: Device) -> list[Measurement]:
    """Read the case in this process of its own; afterwards the process keeps its memory."""
    samples, faults = _warmed(device, subject)
    if not _matters(faults, min(samples)):
        return [_measurement(SYSTEM_FAULTS, faults)]
    seconds, faults = _timed(device, subject, sum(samples))
    measurements = [_measurement(SYSTEM_FAULTS, faults)]
    if not _matters(faults, seconds):
        return measurements
    device.use_allocator(Allocator.KEPT)
    samples, _ = _warmed(device, subject)
    kept_seconds, _ = _timed(device, subject, sum(samples))
    if seconds - kept_seconds > _FAULT_SECONDS * faults:
        return [*measurements, _measurement(SYSTEM_RELATIVE, note=DISTURBED)]
    return [*measurements, _measurement(SYSTEM_RELATIVE, seconds / kept_seconds)]


def flags(measurements: Iterable[Measurement]) -> list[str]:
    """``SLOWER`` where a case is slower by more than the limit."""
    ratios = [v for m in measurements if m.quantity == SYSTEM_RELATIVE.name for v in m.values]
    return [SLOWER] if ratios and max(ratios) > LIMIT else []


def _matters(faults: float, seconds: float) -> bool:
    """Whether this many faults can slow down a call of these seconds by more than the limit."""
    return faults >= 1 and _FAULT_SECONDS * faults > (1 - 1 / LIMIT) * seconds


def _warmed(device: Device, subject: Subject) -> tuple[list[float], float]:
    """Seconds of single calls once they are warm, and minor page faults a call."""
    begun = time.monotonic()
    for _ in range(_WARM_CALLS):
        sample(device, subject, 1)
        if time.monotonic() - begun > _BUDGET_SECONDS:
            break
    return _sampled(device, subject, 0.0)


def _timed(device: Device, subject: Subject, warmed: float) -> tuple[float, float]:
    """Seconds of a call, and minor page faults a call.

    The seconds are the lower quartile, or the least where fewer than ``_CALLS`` calls suffice.
    Calls are calibrated unless the ones that warmed them took ``_LONG_SECONDS``.
    """
    if warmed < _LONG_SECONDS:
        calibrate(device, subject, _BUDGET_SECONDS)
    samples, faults = _sampled(device, subject, _SECONDS)
    return sorted(samples)[len(samples) // 4 if len(samples) >= _CALLS else 0], faults


def _sampled(device: Device, subject: Subject, least: float) -> tuple[list[float], float]:
    """Seconds of single calls, and minor page faults a call; the calls go on for ``least`` s."""
    before, begun = device.probe()[_FAULTS], time.monotonic()
    samples, spent = list[float](), 0.0
    while (len(samples) < _CALLS or spent < least) and (
        len(samples) < _FEWEST or spent < _LONG_SECONDS
    ):
        samples.append(sample(device, subject, 1))
        spent = time.monotonic() - begun
    return samples, (device.probe()[_FAULTS] - before) / len(samples)


def _measurement(quantity: Quantity, *values: float, note: str | None = None) -> Measurement:
    return Measurement(
        quantity=quantity.name, unit=quantity.unit, values=list(values), contract="wall", note=note
    )
