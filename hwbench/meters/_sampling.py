"""The one place where time is taken: a sample, and how many calls and samples are worth taking."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from statistics import median

import torch

from hwbench.devices._base import Device
from hwbench.workloads._base import Subject

SAMPLE_SECONDS = 2e-4  # a sample lasts at least this long, so that the timer resolves it
RESOLUTION_MULTIPLE = 1000  # … and at least so many times the timer's resolution
BLOCKS = 10  # the budget of a case is meant to hold so many blocks
SAMPLES = 64  # the most samples of one block
STEADY = 0.05  # warm-up ends when two windows of calls differ by less
WARM_SHARE = 0.15  # … or when this share of the case's budget is spent: not steady
ENQUEUE_SECONDS = 2e-5  # a call's share of the pre-filled queue, until its own is measured
ENQUEUE_CALLS = 10  # calls over which the host's share is measured
ENQUEUE_FEWEST, ENQUEUE_MOST_SECONDS = 3, 0.05  # … fewer of them where calls take long
LAUNCH_BOUND = 0.9  # the host takes at least this share of a call's own time to launch it


@dataclass(frozen=True)
class Calibration:
    """How a case is sampled: calls in a sample, samples in a block, and whether it was steady."""

    calls: int
    samples: int
    estimate_seconds: float  # per call
    steady: bool
    enqueue_seconds: float = 0.0  # the host's time to launch one call, where the device has a queue

    @property
    def launch_bound(self) -> bool:
        """Whether the host cannot keep up with the device."""
        return self.enqueue_seconds >= LAUNCH_BOUND * self.estimate_seconds


def sample(
    device: Device,
    subject: Subject,
    calls: int,
    *,
    cold: bool = False,
    enqueue_seconds: float = ENQUEUE_SECONDS,
) -> float:
    """Seconds per call of one sample: the untimed part, then ``calls`` steps between two marks."""
    states = subject.states(calls)
    with torch.set_grad_enabled(subject.grad):
        if cold:
            device.evict_caches()
        device.prefill(calls * enqueue_seconds)
        start = device.mark()
        device.run(subject.step, states)
        end = device.mark()
    return device.seconds(start, end) / calls


def calibrate(
    device: Device, subject: Subject, budget_seconds: float, *, cold: bool = False
) -> Calibration:
    """Call until two windows agree, then choose calls a sample and samples a block."""
    allowed = WARM_SHARE * budget_seconds
    begun = time.monotonic()
    before, now = math.inf, sample(device, subject, 1)
    steady = True
    while abs(now - before) > STEADY * now:
        if time.monotonic() - begun > allowed:
            steady = False
            break
        window = max(1, min(subject.max_calls, math.ceil(allowed / 20 / max(now, 1e-9))))
        before, now = now, sample(device, subject, window, cold=cold)
    enqueue = enqueue_seconds(device, subject) if device.asynchronous else 0.0
    if enqueue > ENQUEUE_SECONDS:  # the pre-filled queue was too short: this is the device's time
        now = sample(device, subject, 1, cold=cold, enqueue_seconds=enqueue)
    shortest = max(SAMPLE_SECONDS, RESOLUTION_MULTIPLE * device.resolution_seconds)
    calls = 1 if cold else max(1, min(subject.max_calls, math.ceil(shortest / now)))
    each = (now + enqueue) * calls  # the queue stays occupied while the host fills it
    samples = max(1, min(SAMPLES, round(budget_seconds / BLOCKS / each)))
    return Calibration(
        calls=calls,
        samples=samples,
        estimate_seconds=now,
        steady=steady,
        enqueue_seconds=enqueue,
    )


def enqueue_seconds(device: Device, subject: Subject) -> float:
    """The host's time to launch one call into an empty queue; the median of a few."""
    taken: list[float] = []
    enough = time.perf_counter() + ENQUEUE_MOST_SECONDS
    while len(taken) < ENQUEUE_CALLS:
        if len(taken) >= ENQUEUE_FEWEST and time.perf_counter() > enough:
            break
        states = subject.states(1)
        device.synchronize()
        with torch.set_grad_enabled(subject.grad):
            begun = time.perf_counter()
            device.run(subject.step, states)
            taken.append(time.perf_counter() - begun)
    device.synchronize()
    return median(taken)
