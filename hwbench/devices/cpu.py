"""The processor: a monotonic clock, and noise told by the kernel's own counters."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.autograd.profiler import profile

from hwbench import environment
from hwbench.devices import _allocator
from hwbench.devices._base import Device, Mark, Probe
from hwbench.records import Allocator

_SWITCHES_PER_SECOND = 100.0  # more involuntary switches than this in a block disturb it
_UNKNOWN_CACHE_BYTES = 128_000_000  # assumed for eviction where the system hides its caches
_SMALLEST_NORMAL = torch.tensor(torch.finfo(torch.float32).tiny)
_MINIMUM_SWITCHES = 2  # one preemption may be the block's own start


class Cpu(Device):
    """The processor that this process may use; marks are host nanoseconds."""

    kind = "cpu"
    contract = "wall"

    def __init__(self, index: int = 0) -> None:
        super().__init__(index)
        self.resolution_seconds = time.get_clock_info("perf_counter").resolution
        self.copy_bytes = max(self.copy_bytes, 4 * environment.last_level_cache_bytes())
        self.keeps_memory = False
        self._evict: torch.Tensor | None = None
        self._foreign: torch.Tensor  # made with it: read after each eviction

    @classmethod
    def count(cls) -> int:
        return 1

    def mark(self) -> Mark:
        return time.perf_counter_ns()

    def seconds(self, start: Mark, end: Mark) -> float:
        return float(end - start) * 1e-9

    def evict_caches(self) -> None:
        if self._evict is None:  # twice the last-level cache, read and written
            last_level = environment.last_level_cache_bytes() or _UNKNOWN_CACHE_BYTES
            self._evict = torch.ones(2 * last_level // 4, dtype=torch.float32)
            # Of zeros that nobody wrote Linux would keep a single page, whatever is read of them.
            self._foreign = torch.ones_like(self._evict)
        self._evict.add_(1.0)
        # What the write left in the caches would be written back during the timed call.
        self._foreign.sum()

    def info(self) -> dict[str, Any]:
        return {
            **environment.cpu_facts(),
            "capability": torch.backends.cpu.get_cpu_capability(),
        }

    def probe(self) -> Probe:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "involuntary_switches": float(usage.ru_nivcsw),
            "major_faults": float(usage.ru_majflt),
            "minor_faults": float(usage.ru_minflt),
            "steal_seconds": environment.steal_seconds(),
            "throttled": environment.throttled_periods(),
        }

    def disturbance(self, before: Probe, after: Probe, seconds: float) -> list[str]:
        change = {key: after[key] - before[key] for key in after}
        allowed = max(_MINIMUM_SWITCHES, _SWITCHES_PER_SECOND * seconds)
        causes = []
        if change["involuntary_switches"] > allowed:
            causes.append(f"{change['involuntary_switches']:.0f} involuntary context switches")
        if change["steal_seconds"] > 0.01 * seconds:
            causes.append(f"{change['steal_seconds']:.2f} s stolen by the hypervisor")
        if change["throttled"]:
            causes.append("throttled by the container's quota")
        if change["major_faults"]:
            causes.append(f"{change['major_faults']:.0f} major page faults")
        return causes

    def state(self) -> dict[str, Any]:
        return environment.machine_state()

    def settings(self) -> dict[str, Any]:
        return {
            "threads": torch.get_num_threads(),
            "interop_threads": torch.get_num_interop_threads(),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "mkldnn": torch.backends.mkldnn.enabled,
            "denormals": "flushed to zero" if float(_SMALLEST_NORMAL / 2) == 0 else "kept",
            "allowed_cores": environment.core_list(),
            **{
                name: os.environ[name]
                for name in environment.THREAD_VARIABLES
                if name in os.environ
            },
        }

    def allocators(self) -> dict[str, str]:
        return {**super().allocators(), Allocator.KEPT.value: _allocator.refusal()}

    def use_allocator(self, name: str) -> None:
        super().use_allocator(name)
        if name == Allocator.KEPT and not self.keeps_memory:
            _allocator.keep()
            self.keeps_memory = True

    def release_memory(self) -> None:
        if self.keeps_memory:
            _allocator.trim()

    def free_bytes(self) -> int:
        return environment.memory_available_bytes()

    def peak_bytes(self, call: Callable[[], object]) -> int:
        # torch.profiler would import torch's compiler first, which takes seconds.
        with profile(profile_memory=True, use_kineto=True) as profiler:
            call()
        held_bytes = peak = 0
        for event in profiler.kineto_results.events():
            if event.name() == "[memory]":
                held_bytes += event.nbytes()
                peak = max(peak, held_bytes)
        return peak

    def matmul_libraries(self, dtype: str) -> dict[str, Callable[[], AbstractContextManager[None]]]:
        """Intel MKL where torch was built with it, and oneDNN where torch can be set to it.

        The setting lets oneDNN round float32 to fewer bits, so that what it does has to be tried.
        """
        by_mkl = dtype in ("float32", "float64") and torch.backends.mkl.is_available()
        libraries: dict[str, Callable[[], AbstractContextManager[None]]] = {
            "torch.mm (MKL)" if by_mkl else "torch.mm": nullcontext
        }
        if dtype == "float32" and torch.backends.mkldnn.is_available():
            libraries["torch.mm (oneDNN)"] = partial(_precision, "medium")
        return libraries

    def cache_bytes(self) -> dict[str, int]:
        return environment.cache_totals()

    def energy_joules(self) -> float | str:
        return environment.rapl_joules()


@contextmanager
def _precision(name: str) -> Iterator[None]:
    """The precision of float32 products set to a name, and as it was afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
