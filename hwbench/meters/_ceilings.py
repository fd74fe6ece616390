"""The machine's measured ceilings: matrix rate, bandwidth of each memory level, launch latency.

Every figure is what the fastest quarter of several passes through everything reaches: a device that
is slow for some seconds lowers none of them, and one that is fast for a moment raises none. The
short form is what a run needs; the full form sweeps sizes and working sets.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from hwbench import plugins
from hwbench.devices._base import Device
from hwbench.formats._base import Format
from hwbench.meters._libraries import Setting, both, exact, routes
from hwbench.meters._sampling import (
    ENQUEUE_SECONDS,
    MOST_QUEUED,
    enqueue_seconds,
    sample,
    take,
)
from hwbench.protocol import (
    Bandwidth,
    BestProduct,
    Ceilings,
    Launch,
    Moved,
    Product,
)
from hwbench.records import ITEM_BYTES, Case
from hwbench.workloads._arrays import Arrays
from hwbench.workloads._base import Subject, Workload

_PASSES = 10  # through everything
_QUARTER = 4  # one in so many passes is at least as fast as the figure
_SAMPLE_SECONDS = 2e-3  # a sample lasts about this long
_LATE = 1.5  # passes end when so much more than their time went by
_MOST_SAMPLES = 200  # of one size in one pass
_SHORT_SECONDS = 0.4  # for each side of a product
_MATMUL_SECONDS = 5.0  # of the full form, for each way to multiply, shared by its libraries
_LIBRARY_SECONDS = 2.5  # of that, at least, for each library
_SWEEP_SECONDS = 4.0  # of the full form, for copy and for triad
_LARGEST_SECONDS = 1.5  # for the largest copy, and for the largest triad
_LAUNCH_SECONDS = 0.2
_QUEUED, _BEHIND = 16, 4  # products before the clock is read, and while it is read
_GRAPH_CALLS = 100  # of the graph that is replayed to measure the cost of one more kernel
_FREE_SHARE = 0.25  # of the free memory may be swept over
_LINE = 1024  # elements: arrays are multiples of it, so that every thread begins at a cache line


@dataclass
class _Sweep:
    """Subjects by size, and the fastest call of each in every pass."""

    subjects: dict[int, Subject]
    seconds: float  # to spend in all passes together
    setting: Setting = nullcontext
    fastest: dict[int, list[float]] = field(default_factory=dict)  # seconds, pass by pass
    ahead: dict[int, float] = field(default_factory=dict)  # the host's seconds to launch one call

    def seconds_of(self, size: int) -> float:
        """The rate that a quarter of the passes reach."""
        return sorted(self.fastest[size])[len(self.fastest[size]) // _QUARTER]

    def rates(self, amount: Callable[[int], float]) -> dict[int, float]:
        """``amount`` of a size over its seconds."""
        return {size: amount(size) / self.seconds_of(size) for size in self.fastest}


def measure_ceilings(device: Device, dtypes: list[str], *, full: bool = False) -> Ceilings:
    """The best rates seen, in SI units."""
    products: dict[str, dict[str, _Sweep]] = {}
    for dtype in dtypes:
        products |= _products_by_mode(device, dtype, full=full)
    seconds = _SWEEP_SECONDS if full else _LARGEST_SECONDS
    moved = {
        name: _Sweep(_working_sets(device, name, full=full), seconds)
        for name in (("copy", "triad") if full else ("copy",))
    }
    again = [_only_largest(sweep) for sweep in moved.values()] if full else []
    every = [sweep for sweeps in products.values() for sweep in sweeps.values()]
    disturbed = _pass_through(device, [*every, *moved.values(), *again])
    rates = {name: _bandwidth(sweep, full=full) for name, sweep in moved.items()}
    return Ceilings(
        matmul={mode: _best(device, sweeps, full=full) for mode, sweeps in products.items()},
        copy=rates["copy"],
        triad=rates.get("triad"),
        launch=_launch(device),
        disturbed=disturbed,
    )


def _products_by_mode(device: Device, dtype: str, *, full: bool) -> dict[str, dict[str, _Sweep]]:
    """The sweeps of a dtype, by precision mode and by library."""
    ways, modes = routes(device, dtype), device.matmul_modes(dtype)
    subjects = _products(device, dtype, len(ways), full=full)
    ways = exact(ways, subjects.values(), dtype)
    seconds = _matmul_seconds(len(subjects), len(ways), full=full)
    through = {
        way.name: {side: _costed(device, way.on(subject)) for side, subject in subjects.items()}
        for way in ways
    }
    return {
        mode: {
            way.name: _Sweep(through[way.name], seconds, both(modes[mode], way.setting))
            for way in ways
        }
        for mode in (modes if full else (dtype,))
    }


def _matmul_seconds(sides: int, libraries: int, *, full: bool) -> float:
    """The time limit of one library's sweep."""
    if full:
        return max(_LIBRARY_SECONDS, _MATMUL_SECONDS / libraries)
    return _SHORT_SECONDS * sides


def _products(device: Device, dtype: str, libraries: int, *, full: bool) -> dict[int, Subject]:
    """Square products of growing side, as far as the memory and the time allow."""
    room = _FREE_SHARE * device.free_bytes()
    least, *larger = device.matmul_sweep if full else device.matmul_sides
    sides = [least, *(side for side in larger if 3 * side**2 * ITEM_BYTES[dtype] <= room)]
    seconds = _matmul_seconds(len(sides), libraries, full=full)
    subjects: dict[int, Subject] = {}
    rate = 0.0
    for side, subject in _sharing(device, "matmul", dtype, {side: (side, side) for side in sides}):
        if subjects and 2 * side**3 / rate * _PASSES > seconds / 2:
            break
        rate = max(rate, 2 * side**3 / min(sample(device, subject, 1) for _ in range(2)))
        subjects[side] = subject
    return subjects


def _best(device: Device, sweeps: dict[str, _Sweep], *, full: bool) -> BestProduct:
    """The product of the fastest library, with the products of all libraries beside it."""
    products = {name: _fastest_product(sweep) for name, sweep in sweeps.items()}
    best = max(products, key=lambda name: products[name].flops_per_second)
    sweep, product = sweeps[best], products[best]
    with sweep.setting():
        clock = _clock_hertz(device, sweep.subjects[product.shape[0]])
    return BestProduct(
        flops_per_second=product.flops_per_second,
        shape=product.shape,
        library=best,
        libraries=products,
        sm_clock_hertz=clock or None,
        sweep=_square_products(sweep) if full else [],
    )


def _square_products(sweep: _Sweep) -> list[Product]:
    """The rate of every side of a sweep."""
    rates = sweep.rates(lambda side: 2 * side**3)
    return [Product(flops_per_second=rate, shape=[side] * 3) for side, rate in rates.items()]


def _fastest_product(sweep: _Sweep) -> Product:
    """The best side of a sweep of square products."""
    return max(_square_products(sweep), key=lambda product: product.flops_per_second)


def _clock_hertz(device: Device, subject: Subject) -> float | None:
    """The clock while products are computed, near the end of the queue; None on a CPU.

    The first products still run at the clock of a card that has just woken up.
    """
    if not device.asynchronous:
        return None
    device.run(subject.step, subject.states(_QUEUED))
    reached = device.mark()
    device.run(subject.step, subject.states(_BEHIND))
    device.seconds(reached, reached)  # waits for the mark
    clock = device.probe().get("sm_clock_hertz")
    device.synchronize()
    return clock


def _working_sets(device: Device, name: str, *, full: bool) -> dict[int, Subject]:
    """Copies or triads by the bytes that they move, up to a working set that no cache holds."""
    most = min(device.copy_bytes, int(_FREE_SHARE * device.free_bytes()))
    steps = max(0, math.floor(2 * math.log2(most / device.least_copy_bytes))) if full else 0
    arrays = len(_arrays(name).shapes(_case(device, name, "float32", (1, 1))))
    lines = [int(most / 2 ** (step / 2)) // (4 * arrays * _LINE) for step in range(steps, -1, -1)]
    shapes = {4 * arrays * _LINE * max(1, line): (max(1, line), _LINE) for line in lines}
    return dict(_sharing(device, name, "float32", shapes))


def _only_largest(sweep: _Sweep) -> _Sweep:
    """More of the largest working set, as it is the one that counts."""
    largest = max(sweep.subjects)
    subjects = {largest: sweep.subjects[largest]}
    return _Sweep(subjects, _LARGEST_SECONDS, fastest=sweep.fastest, ahead=sweep.ahead)


def _bandwidth(sweep: _Sweep, *, full: bool) -> Bandwidth:
    """The rate of the largest working set, which no cache holds."""
    rates = sweep.rates(lambda size: size)
    largest = max(rates)
    every = [Moved(working_set_bytes=size, bytes_per_second=rate) for size, rate in rates.items()]
    return Bandwidth(
        bytes_per_second=rates[largest], working_set_bytes=largest, sweep=every if full else []
    )


def _launch(device: Device) -> Launch:
    """The seconds of the smallest call."""
    subject = subject_of(device, "launch", "float32", (1, 1))
    seconds, host = _fastest(device, subject), None
    if device.asynchronous:
        host = min(enqueue_seconds(device, subject) for _ in range(_PASSES))
    replayed: list[float] = []
    refused = None
    for calls in (1, _GRAPH_CALLS):
        replay = device.capture(_repeated(subject, calls))
        if isinstance(replay, str):
            refused = replay
            break
        replayed.append(_fastest(device, Subject(step=_ignoring_state(replay))) / calls)
    one, many = (*replayed, None, None)[:2]
    return Launch(
        seconds=seconds,
        host_seconds=host,
        graph_seconds=one,
        graph_kernel_seconds=many,
        graph=refused,
    )


def _repeated(subject: Subject, calls: int) -> Callable[[], None]:
    def call() -> None:
        for _ in range(calls):
            subject.step(None)

    return call


def _ignoring_state(replay: Callable[[], None]) -> Callable[[Any], None]:
    return lambda _: replay()


def _fastest(device: Device, subject: Subject) -> float:
    sweep = _Sweep({0: subject}, _LAUNCH_SECONDS)
    _pass_through(device, [sweep])
    return sweep.seconds_of(0)


def _pass_through(device: Device, sweeps: Sequence[_Sweep]) -> float:
    """Visit every sweep once a pass; the share of the visits that something disturbed.

    On a machine so busy that passes take much longer than they should, the first ones must do.
    """
    limit = time.monotonic() + _LATE * sum(sweep.seconds for sweep in sweeps)
    visits = disturbed = 0
    for number in range(_PASSES):
        for sweep in sweeps:
            if number and time.monotonic() > limit:
                break
            before, begun = device.probe(), time.monotonic()
            with sweep.setting():
                ahead = _visit(device, sweep)
            seconds = time.monotonic() - begun
            visits += 1
            disturbed += bool(device.disturbance(before, device.probe(), seconds)) or not ahead
    return disturbed / visits


def _visit(device: Device, sweep: _Sweep) -> bool:
    """Sample every subject for its share of the time of one pass.

    Returns whether the host was ahead of the device in a sample of each: those alone count where
    there are some.
    """
    always = True
    share = sweep.seconds / len(sweep.subjects) / _PASSES
    for size, subject in sweep.subjects.items():
        if size not in sweep.fastest:
            sweep.fastest[size] = []
            ahead = enqueue_seconds(device, subject)
            sweep.ahead[size] = max(ENQUEUE_SECONDS, ahead)
        first = take(device, subject, 1, enqueue_seconds=sweep.ahead[size])
        calls = max(1, math.ceil(_SAMPLE_SECONDS / first.seconds))
        if device.asynchronous:
            calls = min(calls, MOST_QUEUED)
        spent, samples = first.seconds, [first]
        while len(samples) == 1 or (spent < share and len(samples) <= _MOST_SAMPLES):
            samples.append(take(device, subject, calls, enqueue_seconds=sweep.ahead[size]))
            spent += samples[-1].seconds * calls
        good = [each.seconds for each in samples if each.ahead]
        sweep.fastest[size].append(min(good or [each.seconds for each in samples]))
        always = always and bool(good)
    return always


def _sharing(
    device: Device, name: str, dtype: str, shapes: dict[int, tuple[int, int]]
) -> Iterator[tuple[int, Subject]]:
    """The subject of each shape, by its key: all lie in the arrays of the last, the largest."""
    *_, largest = shapes.values()
    whole = subject_of(device, name, dtype, largest)
    workload, described = _arrays(name), _dense(largest)
    for key, shape in shapes.items():
        smaller = workload.within(whole, _case(device, name, dtype, shape), described)
        yield key, _costed(device, smaller)


def subject_of(device: Device, name: str, dtype: str, shape: tuple[int, int]) -> Subject:
    """A workload prepared on the device, ready to be sampled; tokens of a product are its rows."""
    workload = plugins.load("workloads", name, Workload)()
    case = _case(device, name, dtype, shape)
    return _costed(device, workload.prepare(case, _dense(shape), device, seed=0))


def _costed(device: Device, subject: Subject) -> Subject:
    """The subject; the device knows the cost of one call."""
    device.describe(subject.step, cost=subject.cost)
    return subject


def _arrays(name: str) -> Arrays:
    return plugins.load("workloads", name, Arrays)()


def _dense(shape: tuple[int, int]) -> Format:
    return plugins.load("formats", "dense", Format).from_knobs(*shape)


def _case(device: Device, name: str, dtype: str, shape: tuple[int, int]) -> Case:
    return Case(
        workload=name,
        format="dense",
        out_features=shape[0],
        in_features=shape[1],
        dtype=dtype,
        device=device.kind,
        tokens=shape[0] if name == "matmul" else None,
    )
