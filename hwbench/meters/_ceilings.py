"""The machine's measured ceilings: matrix rate, bandwidth of each memory level, launch latency.

Every figure is the best over several passes through all sizes, so that what disturbs one pass does
not lower it. The short form is what a run needs; the full form sweeps sizes and working sets.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

from hwbench import plugins
from hwbench.devices._base import Device
from hwbench.formats._base import Format
from hwbench.meters._plateaus import Plateau, named, plateaus
from hwbench.meters._sampling import ENQUEUE_SECONDS, enqueue_seconds, sample
from hwbench.records import ITEM_BYTES, Case
from hwbench.workloads._base import Subject, Workload

_PASSES = 4  # through all sizes
_SAMPLE_SECONDS = 2e-3  # a sample lasts about this long
_LATE = 1.5  # passes end when so much more than the budget went by
_MOST_SAMPLES = 200  # of one size in one pass
_SHORT_SECONDS = 0.4  # for each size, and for the copy
_MATMUL_SECONDS = 5.0  # of the full form, for each dtype
_SWEEP_SECONDS = 5.0  # of the full form, for copy and for triad
_LAUNCH_SECONDS = 0.2
_QUEUED = 20  # products in the queue while the clock is read
_GRAPH_CALLS = 100  # in the graph whose replay tells what one more kernel costs
_FREE_SHARE = 0.25  # of the free memory may be swept over
_ARRAYS = {"copy": 2, "triad": 3}

Key = TypeVar("Key", bound=Hashable)


def measure_ceilings(device: Device, dtypes: list[str], *, full: bool = False) -> dict[str, Any]:
    """The best rates seen, in SI units.

    ``matmul`` holds one entry a dtype, as torch is set, and in full form one for every other way
    in which the device may compute it; ``copy`` (and ``triad``) the rate of the largest working
    set; ``levels`` the plateaus of the copy; ``launch`` what a call of one element takes.
    """
    found: dict[str, Any] = {"matmul": {}}
    for dtype in dtypes:
        for mode, setting in device.matmul_modes(dtype).items():
            if mode == dtype or full:
                with setting():
                    found["matmul"][mode] = _matmul(device, dtype, full=full)
    found["copy"] = _moved(device, "copy", full=full)
    if full:
        found["triad"] = _moved(device, "triad", full=True)
        found["levels"] = _levels(device, found["copy"]["sweep"])
    found["launch"] = _launch(device)
    return found


def _matmul(device: Device, dtype: str, *, full: bool) -> dict[str, Any]:
    """Square products of growing size, as far as the time allows; the best is named."""
    sides = device.matmul_sweep if full else device.matmul_sides
    budget = _MATMUL_SECONDS if full else _SHORT_SECONDS * len(sides)
    subjects: dict[int, Subject] = {}
    rate = 0.0
    room = _FREE_SHARE * device.free_bytes()
    for side in sides:
        too_slow = subjects and 2 * side**3 / rate * _PASSES > budget / 2
        if too_slow or (subjects and 3 * side**2 * ITEM_BYTES[dtype] > room):
            break
        subject = subject_of(device, "matmul", dtype, (side, side), tokens=side)
        rate = max(rate, 2 * side**3 / min(sample(device, subject, 1) for _ in range(2)))
        subjects[side] = subject
    rates = {
        side: 2 * side**3 / seconds for side, seconds in _fastest(device, subjects, budget).items()
    }
    best = max(rates, key=lambda side: rates[side])
    entry: dict[str, Any] = {"flops_per_second": rates[best], "shape": [best, best, best]}
    if clock := _clock_hertz(device, subjects[best]):
        entry["sm_clock_hertz"] = clock
    if full:
        entry["sweep"] = [
            {"shape": [side] * 3, "flops_per_second": rate} for side, rate in rates.items()
        ]
    return entry


def _clock_hertz(device: Device, subject: Subject) -> float | None:
    """The clock while products are computed, read before the queue is empty; None on a CPU."""
    if not device.asynchronous:
        return None
    device.run(subject.step, subject.states(_QUEUED))
    clock = device.probe().get("sm_clock_hertz")
    device.synchronize()
    return clock


def _moved(device: Device, workload: str, *, full: bool) -> dict[str, Any]:
    """Bytes a second, by working set; the largest counts, which no cache holds."""
    most = min(device.copy_bytes, int(_FREE_SHARE * device.free_bytes()))
    sizes = [most]
    if full:
        steps = max(0, math.floor(2 * math.log2(most / device.least_copy_bytes)))
        sizes = [int(most / 2 ** (step / 2)) for step in range(steps, -1, -1)]
    subjects = {}
    for size in sizes:
        elements = max(1, size // 4 // _ARRAYS[workload])
        subject = subject_of(device, workload, "float32", (1, elements))
        assert subject.cost is not None
        subjects[subject.cost.compulsory_bytes] = subject
    budget = _SWEEP_SECONDS if full else _SHORT_SECONDS
    fastest = _fastest(device, subjects, budget)
    rates = {size: size / seconds for size, seconds in fastest.items()}
    largest = max(rates)
    entry: dict[str, Any] = {"bytes_per_second": rates[largest], "working_set_bytes": largest}
    if full:
        entry["sweep"] = [
            {"working_set_bytes": size, "bytes_per_second": rate} for size, rate in rates.items()
        ]
    return entry


def _levels(device: Device, sweep: list[dict[str, float]]) -> list[dict[str, Any]]:
    """The memory levels that the sweep shows, the fastest first; the last is beyond all caches."""
    points = [(at["working_set_bytes"], at["bytes_per_second"]) for at in sweep]
    found, largest = plateaus(points), max(points)
    if not found or found[-1].most_bytes < largest[0]:
        found.append(Plateau(largest[0], largest[0], largest[1]))
    told = device.cache_bytes()
    return [
        {
            "name": "memory" if level is found[-1] else named(level, told),
            "bytes_per_second": level.bytes_per_second,
            "working_set_bytes": [level.least_bytes, level.most_bytes],
        }
        for level in found
    ]


def _launch(device: Device) -> dict[str, Any]:
    """Seconds of the smallest call: on the device, on the host, and replayed from a graph."""
    subject = subject_of(device, "launch", "float32", (1, 1))
    found: dict[str, Any] = {"seconds": _fastest(device, {0: subject}, _LAUNCH_SECONDS)[0]}
    if device.asynchronous:
        found["host_seconds"] = min(enqueue_seconds(device, subject) for _ in range(_PASSES))
    for calls, name in ((1, "graph_seconds"), (_GRAPH_CALLS, "graph_kernel_seconds")):
        replay = device.capture(_repeated(subject, calls))
        if isinstance(replay, str):
            found["graph"] = replay
            break
        again = Subject(step=_ignoring_state(replay))
        found[name] = _fastest(device, {0: again}, _LAUNCH_SECONDS)[0] / calls
    return found


def _repeated(subject: Subject, calls: int) -> Callable[[], None]:
    def call() -> None:
        for _ in range(calls):
            subject.step(None)

    return call


def _ignoring_state(replay: Callable[[], None]) -> Callable[[Any], None]:
    return lambda _: replay()


def _fastest(device: Device, subjects: Mapping[Key, Subject], budget: float) -> dict[Key, float]:
    """Seconds a call of each, the least of several passes through all; ``budget`` is for all."""
    share = budget / len(subjects) / _PASSES
    found = dict.fromkeys(subjects, math.inf)
    ahead = dict.fromkeys(subjects, ENQUEUE_SECONDS)
    begun = time.monotonic()
    for number in range(_PASSES):
        for key, subject in subjects.items():
            if number and time.monotonic() - begun > _LATE * budget:
                return found  # a busy machine: the passes so far must do
            if number == 0:
                found[key] = min(sample(device, subject, 1) for _ in range(2))
                if device.asynchronous:  # a queue that runs dry would time the host
                    ahead[key] = max(ENQUEUE_SECONDS, 2 * enqueue_seconds(device, subject))
            calls = max(1, math.ceil(_SAMPLE_SECONDS / found[key]))
            spent, samples = 0.0, 0
            while samples == 0 or (spent < share and samples < _MOST_SAMPLES):
                seconds = sample(device, subject, calls, enqueue_seconds=ahead[key])
                found[key] = min(found[key], seconds)
                spent, samples = spent + seconds * calls, samples + 1
    return found


def subject_of(
    device: Device, workload: str, dtype: str, shape: tuple[int, int], tokens: int | None = None
) -> Subject:
    """A workload prepared on the device, ready to be sampled."""
    case = Case(
        workload=workload,
        format="dense",
        out_features=shape[0],
        in_features=shape[1],
        dtype=dtype,
        device=device.kind,
        tokens=tokens,
    )
    dense = plugins.load("formats", "dense", Format).from_knobs(*shape)
    subject = plugins.load("workloads", workload, Workload)().prepare(case, dense, device, seed=0)
    subject.step.cost = subject.cost  # type: ignore[attr-defined]
    return subject
