"""A simulated CUDA runtime: the real ``Cuda`` and the real meters run on it, with scripted kernels.

Time is the host's clock, and moves only when the host does something or waits. The device works
through one queue in order. A queue that is full blocks the host, as that of CUDA does. Every
cost of the host is multiplied by ``slowness``, which a test changes as it likes.
"""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from hwbench.devices import _nvml, cuda
from hwbench.devices.cuda import Cuda
from hwbench.meters import _ceilings, _health, _sampling, energy, latency
from hwbench.workloads._base import Subject

DEPTH = 1024  # entries that wait, at most
HERTZ = 1.98e9  # of the SM clock, unless it is scripted
RESOLUTION = 0.5e-6  # s, of the time between two events
MARK_SECONDS = 0.5e-6  # of the host, to record an event
GRAPH_SECONDS = 1.5e-6  # of the device, to begin a graph
GRAPH_LAUNCH_SECONDS = 8e-6  # of the host, to launch a graph
IDLE_WATTS, SPIN_WATTS, WATTS = 80.0, 150.0, 400.0
TIMED = (_sampling, latency, energy, _ceilings, _health)  # they read the host's clock


class Stream:
    """The host's clock and the device's queue; durations in seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slowness: Callable[[], float] = lambda: 1.0
        self.hertz: Callable[[float], float] = lambda at: HERTZ
        self.reasons: Callable[[float], int] = lambda at: 0
        self.free_at = 0.0  # when the device has done all that was asked of it
        self.spun = 0.0  # seconds of spinning in all
        self.captured: list[float] | None = None  # the kernels of the graph that is captured
        self._waiting: deque[float] = deque()  # when each entry of the queue will be done
        self._spans: deque[tuple[float, float, float]] = deque()  # begin, end, watts above idle
        self._joules = 0.0  # above idle, of the spans that ended

    def host(self, seconds: float) -> None:
        """The host works."""
        self.now += seconds * self.slowness()

    def launch(self, seconds: float, host_seconds: float, watts: float = WATTS) -> float:
        """Queue one kernel of so long a time at ``HERTZ``; returns when it will be done."""
        self.host(host_seconds)
        if self.captured is not None:
            self.captured.append(seconds)
            return self.free_at
        while self._waiting and self._waiting[0] <= self.now:
            self._waiting.popleft()
        if len(self._waiting) >= DEPTH:
            self.now = self._waiting.popleft()
        begin = max(self.now, self.free_at)
        self.free_at = begin + seconds * HERTZ / self.hertz(begin)
        self._waiting.append(self.free_at)
        if seconds:
            self._spans.append((begin, self.free_at, watts - IDLE_WATTS))
        return self.free_at

    def spin(self, cycles: int) -> None:
        """``torch.cuda._sleep``."""
        self.spun += cycles / HERTZ
        self.launch(cycles / HERTZ, 5e-6, SPIN_WATTS)

    def wait(self, until: float) -> None:
        """The host waits."""
        self.now = max(self.now, until)

    def joules(self) -> float:
        """What the card has used until now."""
        while self._spans and self._spans[0][1] <= self.now:
            begin, end, watts = self._spans.popleft()
            self._joules += (end - begin) * watts
        running = sum(max(0.0, self.now - begin) * watts for begin, _, watts in self._spans)
        return IDLE_WATTS * self.now + self._joules + running

    def kernels(self, seconds: float, host_seconds: float, kernels: int = 1) -> Subject:
        """A subject whose call is so many equal kernels: device and host seconds of all of them."""

        def step(_: object) -> None:
            for _ in range(kernels):
                self.launch(seconds / kernels, host_seconds / kernels)

        return Subject(step=step)


class _Event:
    """``torch.cuda.Event``; ``at`` is when the queue reaches it."""

    stream: Stream

    def __init__(self, *, enable_timing: bool) -> None:
        self.at = float("inf")

    def record(self, stream: Any) -> None:
        self.at = self.stream.launch(0.0, MARK_SECONDS)

    def query(self) -> bool:
        return self.at <= self.stream.now

    def synchronize(self) -> None:
        self.stream.wait(self.at)

    def elapsed_time(self, end: _Event) -> float:
        return round((end.at - self.at) / RESOLUTION) * RESOLUTION * 1e3  # ms


class _Graph:
    """``torch.cuda.CUDAGraph``: its kernels follow each other without the host."""

    stream: Stream

    def __init__(self) -> None:
        self.kernels: list[float] = []

    def replay(self) -> None:
        self.stream.launch(GRAPH_SECONDS + sum(self.kernels), GRAPH_LAUNCH_SECONDS)


class _Nvml:
    """The readings of NVML that a block is judged by, and the energy counter."""

    missing = None

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def probe(self) -> dict[str, float]:
        at = self._stream.now
        clock, bits = self._stream.hertz(at), float(self._stream.reasons(at))
        return {"sm_clock_hertz": clock, "event_reasons": bits}

    def energy_joules(self) -> float:
        return self._stream.joules()


class Cache(TorchFunctionMode):
    """A last-level cache of ``size`` bytes: what it holds, and how much of it is not yet written.

    It sees what torch is asked for; a tensor as large as the cache displaces the rest.
    ``names`` are the operators in their order.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.dirty_bytes = size, 0
        self.held: torch.Tensor | None = None
        self.names: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.append(func.__name__)
        written = func.__name__.endswith("_")
        with torch._C.DisableTorchFunction():
            for each in (each for each in args if isinstance(each, torch.Tensor)):
                if each.nbytes >= self.size:
                    if written or each is not self.held:  # lines of its own may stay unwritten
                        self.dirty_bytes = self.size if written else 0
                    self.held = each
            return func(*args, **(kwargs or {}))


def jitter(seed: int, share: float) -> Callable[[], float]:
    """Costs of the host that differ from call to call: up to ``share`` more, evenly drawn."""
    rng = random.Random(seed)
    return lambda: 1.0 + share * rng.random()


def hiccups(seed: int, every: int, factor: float) -> Callable[[], float]:
    """One launch in so many takes ``factor`` times as long."""
    rng = random.Random(seed)
    return lambda: factor if rng.randrange(every) == 0 else 1.0


def opened(monkeypatch: pytest.MonkeyPatch) -> tuple[Cuda, Stream]:
    """The real device over a simulated runtime, and that runtime; tensors stay on the CPU."""
    stream = Stream()
    clock = SimpleNamespace(
        perf_counter=lambda: stream.now,
        monotonic=lambda: stream.now,
        perf_counter_ns=lambda: round(stream.now * 1e9),
    )
    for module in TIMED:
        monkeypatch.setattr(module, "time", clock)
    plain = SimpleNamespace(wait_stream=lambda other: None)
    generator = SimpleNamespace(clone_state=lambda: 0, graphsafe_set_state=lambda state: None)
    facts = SimpleNamespace(L2_cache_size=4096, total_memory=80_000_000_000)

    @contextlib.contextmanager
    def capturing(graph: _Graph, **_: Any) -> Iterator[None]:
        stream.captured = graph.kernels
        try:
            yield
        finally:
            stream.captured = None

    put = {
        "set_device": lambda device: None,
        "synchronize": lambda device=None: stream.wait(stream.free_at),
        "get_device_properties": lambda device: facts,
        "Event": type("Event", (_Event,), {"stream": stream}),
        "Stream": lambda device: plain,
        "current_stream": lambda device=None: plain,
        "set_stream": lambda stream: None,
        "stream": lambda stream: contextlib.nullcontext(),
        "_sleep": stream.spin,
        "CUDAGraph": type("CUDAGraph", (_Graph,), {"stream": stream}),
        "graph": capturing,
        "graph_pool_handle": lambda: (0, 0),
        "default_generators": [generator],
        "get_sync_debug_mode": lambda: 0,
        "set_sync_debug_mode": lambda mode: None,
        "mem_get_info": lambda device: (40_000_000_000, 80_000_000_000),
        "memory_reserved": lambda device: 0,
        "memory_allocated": lambda device: 0,
    }
    for name, stand_in in put.items():
        monkeypatch.setattr(torch.cuda, name, stand_in, raising=False)
    monkeypatch.setattr(_nvml, "Nvml", lambda *_: _Nvml(stream))
    monkeypatch.setattr(cuda, "_EVICT_BYTES", 8192)
    device = Cuda()
    device.torch_device = torch.device("cpu")
    return device, stream
