"""The one place where time is taken: a sample, and how many calls and samples are worth taking."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
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
MARGIN = 2.0  # the queue is filled for so many times the host's time to launch the calls
MOST_QUEUED = 512  # calls of a sample: a full queue (about 1,024 kernels on CUDA) blocks the host
_LEAST_SHARE = 8  # a sample of fewer calls than the queue holds lasts at least 1/8 as long
STARVED = 0.1  # of a case's samples: where the host was not ahead in more, there is no time


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
        return launch_bound(self.enqueue_seconds, self.estimate_seconds)


@dataclass(frozen=True)
class Taken:
    """One sample: seconds per call, and whether nothing of the host is in them."""

    seconds: float
    ahead: bool


def launch_bound(enqueue: float, each: float) -> bool:
    """Whether the host needs nearly as long to launch a call as the device to carry it out."""
    return enqueue >= LAUNCH_BOUND * each


def starved(ahead: Iterable[bool]) -> bool:
    """Whether the host was not ahead in too many samples for their times to be the device's."""
    looks = list(ahead)
    return looks.count(False) > STARVED * len(looks)


def sample(
    device: Device,
    subject: Subject,
    calls: int,
    *,
    cold: bool = False,
    enqueue_seconds: float = ENQUEUE_SECONDS,
) -> float:
    """Seconds per call of one sample, whether or not the host was ahead of the device."""
    return _take(device, subject, calls, cold, queued_seconds(calls, enqueue_seconds)).seconds


def take(
    device: Device,
    subject: Subject,
    calls: int,
    *,
    cold: bool = False,
    enqueue_seconds: float = ENQUEUE_SECONDS,
) -> Taken:
    """One sample; taken again, with the queue filled twice as long, where the host fell behind."""
    queued = queued_seconds(calls, enqueue_seconds)
    first = _take(device, subject, calls, cold, queued)
    return first if first.ahead else _take(device, subject, calls, cold, 2 * queued)


def queued_seconds(calls: int, enqueue_seconds: float) -> float:
    """How long the queue is occupied before a sample, so that the host is ahead when it begins."""
    return MARGIN * max(calls * enqueue_seconds, ENQUEUE_SECONDS)


def _take(device: Device, subject: Subject, calls: int, cold: bool, queued: float) -> Taken:
    """The untimed part, then ``calls`` steps between two marks, behind a queue that is filled.

    The device writes both marks. While the first has yet to be reached when the last is placed,
    every call is queued before the first one begins: the host has no part in the time.
    """
    states = subject.states(calls)
    with torch.set_grad_enabled(subject.grad):
        if cold:
            device.evict_caches()
        device.prefill(queued)
        start = device.mark()
        device.run(subject.step, states)
        end = device.mark()
    ahead = device.ahead(start)
    return Taken(seconds=device.seconds(start, end) / calls, ahead=ahead)


def calibrate(
    device: Device, subject: Subject, budget_seconds: float, *, cold: bool = False
) -> Calibration:
    """Call until two windows agree, then choose calls a sample and samples a block."""
    allowed = WARM_SHARE * budget_seconds
    most, enqueue = subject.max_calls, 0.0
    if device.asynchronous:
        most, enqueue = min(most, MOST_QUEUED), enqueue_seconds(device, subject)
        device.prefill(ENQUEUE_SECONDS)  # the first of a process finds out how fast it spins
    queued = most  # as many as the queue held
    begun = time.monotonic()
    sample_ = take(device, subject, 1, enqueue_seconds=enqueue)
    before, now = math.inf, sample_.seconds
    steady = True
    while abs(now - before) > STEADY * now:
        if time.monotonic() - begun > allowed:
            steady = False
            break
        window = max(1, min(queued, math.ceil(allowed / 20 / max(now + MARGIN * enqueue, 1e-9))))
        sample_ = take(device, subject, window, cold=cold, enqueue_seconds=enqueue)
        before, now = now, sample_.seconds
        if not sample_.ahead:  # the queue was full, or the host has become slower: this is no time
            before, queued = math.inf, max(1, window // 2)
            enqueue = max(enqueue, enqueue_seconds(device, subject))
    if not sample_.ahead:
        now = take(device, subject, 1, cold=cold, enqueue_seconds=enqueue).seconds
    shortest = max(SAMPLE_SECONDS, RESOLUTION_MULTIPLE * device.resolution_seconds)
    calls = 1 if cold else max(1, min(most, math.ceil(shortest / now)))
    one = now * calls
    if device.asynchronous:
        calls = _fitting(device, subject, calls, shortest / _LEAST_SHARE / now, enqueue)
        one = now * calls + queued_seconds(calls, enqueue)  # it is occupied while the host fills it
    samples = max(1, min(SAMPLES, round(budget_seconds / BLOCKS / one)))
    return Calibration(
        calls=calls,
        samples=samples,
        estimate_seconds=now,
        steady=steady,
        enqueue_seconds=enqueue,
    )


def _fitting(
    device: Device, subject: Subject, calls: int, fewest: float, enqueue_seconds: float
) -> int:
    """So many of the calls as the queue holds: a host that waits for a full one is not ahead.

    All of them where even the fewest that the timer resolves do not fit.
    """
    fitting = calls
    while fitting > 1 and not take(device, subject, fitting, enqueue_seconds=enqueue_seconds).ahead:
        fitting //= 2
        if fitting < fewest:
            return calls
    return fitting


def enqueue_seconds(device: Device, subject: Subject) -> float:
    """The host's time to launch a call into an empty queue; 0 on a device without a queue."""
    if not device.asynchronous:
        return 0.0
    seconds: list[float] = []
    enough = time.perf_counter() + ENQUEUE_MOST_SECONDS
    while len(seconds) < ENQUEUE_CALLS:
        if len(seconds) >= ENQUEUE_FEWEST and time.perf_counter() > enough:
            break
        states = subject.states(1)
        device.synchronize()
        with torch.set_grad_enabled(subject.grad):
            begun = time.perf_counter()
            device.run(subject.step, states)
            seconds.append(time.perf_counter() - begun)
    device.synchronize()
    return median(seconds)
