"""Checks a device by a second of equal work: its spread, and its disturbances."""

from __future__ import annotations

import itertools
import math
import time
from statistics import quantiles

import torch

from hwbench import plugins
from hwbench.devices import _nvml
from hwbench.devices._base import Device
from hwbench.errors import HwbenchError
from hwbench.formats._base import FORWARD, Format
from hwbench.meters._ceilings import subject_of
from hwbench.meters._sampling import MOST_QUEUED, sample, take
from hwbench.protocol import Health
from hwbench.workloads._base import Subject

_SECONDS = 1.0  # of equal work
_SAMPLE_SECONDS = 5e-3
_FEWEST, _MOST = 20, 400  # samples
_SIDE = 512  # of the products that are the work
_TWO_FOUR = "semi_structured"
_TIMER_LOOKS = 1000


def examine(device: Device, side: int = 0) -> Health:
    """Do a second of equal work; a float32 product of ``side`` is timed where it is not 0."""
    subject = subject_of(device, "matmul", "float32", (_SIDE, _SIDE))
    calls = _calls(device, subject)
    before, begun, samples = device.probe(), time.monotonic(), [take(device, subject, calls)]
    while len(samples) < _MOST and (len(samples) < _FEWEST or time.monotonic() - begun < _SECONDS):
        samples.append(take(device, subject, calls))
    seconds = time.monotonic() - begun
    tenths = quantiles([each.seconds for each in samples], n=10)
    return Health(
        disturbances=device.disturbance(before, device.probe(), seconds),
        seconds=seconds,
        spread=tenths[-1] / tenths[0] - 1,
        flops_per_second=2 * side**3 / _product_seconds(device, side) if side else None,
        timer_seconds=_timer_seconds(),
        resolution_seconds=device.resolution_seconds,
        two_four=_two_four(device),
        retired_package=_nvml.retired_package() or "",
    )


def _product_seconds(device: Device, side: int) -> float:
    """The rate that a quarter of the samples of a product reach, as for the ceilings."""
    subject = subject_of(device, "matmul", "float32", (side, side))
    calls = _calls(device, subject)
    return sorted(take(device, subject, calls).seconds for _ in range(_FEWEST))[_FEWEST // 4]


def _calls(device: Device, subject: Subject) -> int:
    """Calls that make a sample of ``_SAMPLE_SECONDS``, as far as a queue holds them."""
    first = min(sample(device, subject, 1) for _ in range(3))
    calls = max(1, math.ceil(_SAMPLE_SECONDS / first))
    return min(calls, MOST_QUEUED) if device.asynchronous else calls


def _timer_seconds() -> float:
    """The smallest step of the host's clock that was seen."""
    looks = [time.perf_counter_ns() for _ in range(_TIMER_LOOKS)]
    steps = [b - a for a, b in itertools.pairwise(looks) if b > a]
    return min(steps, default=0) * 1e-9


def _two_four(device: Device) -> dict[str, str]:
    """Each kernel of 2:4 tried with a small product; the reason where it does not run."""
    format_class = plugins.load("formats", _TWO_FOUR, Format)
    reasons = {}
    for kernel in format_class.KERNELS:
        try:
            example = format_class.from_knobs(256, 256, kernel=kernel)
            reasons[kernel] = (
                example.unsupported(device.torch_device.type, torch.bfloat16, FORWARD) or ""
            )
        except HwbenchError as error:
            reasons[kernel] = str(error)
    return reasons
