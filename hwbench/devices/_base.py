"""``Device``: a place to run, its clock and its own facts. A mark is a point in its queue."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch

from hwbench.errors import DeviceError
from hwbench.records import Allocator, Cost

Mark = Any
"""A point in a device's queue: an event on CUDA, host nanoseconds on a CPU."""

Probe = dict[str, float]
"""Counters and readings that tell, before and after a block, whether something disturbed it."""

Step = Callable[[Any], Any]
"""One call of a workload; it takes the state that the untimed part before it made."""


class Device(ABC):
    """One device, opened by its index; everything that is timed goes through its marks."""

    kind: ClassVar[str]
    contract: ClassVar[str]  # what its times mean: wall, event
    asynchronous: ClassVar[bool] = False  # whether calls return before their work is done
    matmul_sides: ClassVar[tuple[int, ...]] = (512, 1024, 2048)  # tried for the matrix ceiling
    matmul_sweep: ClassVar[tuple[int, ...]] = (256, 512, 768, 1024, 1536, 2048, 3072, 4096)
    least_copy_bytes: ClassVar[int] = 65_536  # where the sweep of working sets begins
    copy_bytes: int = 256_000_000  # the working set of the bandwidth ceiling: no cache holds it
    resolution_seconds: float  # the smallest span that its marks resolve

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self.torch_device = torch.device("cpu")

    @classmethod
    @abstractmethod
    def count(cls) -> int:
        """How many devices of this kind are present."""

    @classmethod
    def missing(cls) -> str:
        """One sentence that says why there is none, for when ``count`` is 0."""
        return f"This machine has no {cls.kind} device."

    @abstractmethod
    def mark(self) -> Mark:
        """Place a mark in the queue; never waits."""

    @abstractmethod
    def seconds(self, start: Mark, end: Mark) -> float:
        """The time between two marks; waits until both are reached."""

    @abstractmethod
    def evict_caches(self) -> None:
        """Push what a layer left in the last-level cache out of it."""

    @abstractmethod
    def info(self) -> dict[str, Any]:
        """Facts that must agree for two runs to be compared: name, memory, caches, limits."""

    @abstractmethod
    def free_bytes(self) -> int:
        """Bytes that could still be allocated."""

    @abstractmethod
    def peak_bytes(self, call: Callable[[], object]) -> int:
        """The most bytes that tensors took during one call above what they took before it."""

    def describe(
        self,
        step: Step,
        *,
        case: str | None = None,
        cost: Cost | None = None,
        added_seconds: float | None = None,
    ) -> None:
        """Take note of what a step is before it first runs; what is None stays as it was told.

        A real device needs to know none of it. A simulated one makes the duration of a call of it:
        ``cost`` is that of one call, ``added_seconds`` a delay that each call has beside it.
        """

    def run(self, step: Step, states: Sequence[Any]) -> None:
        """Call ``step`` once for each state: the timed part of every sample."""
        for state in states:
            step(state)

    def prefill(self, seconds: float) -> None:
        """Occupy the queue for about ``seconds``, so that the host is ahead when timing starts."""

    def ahead(self, start: Mark) -> bool:
        """Whether the queue has yet to reach ``start``; asked when all calls behind it are queued.

        Where it is so, the host was ahead of the device the whole time. Without a queue it is True.
        """
        del start
        return True

    def occupy(self, seconds: float) -> None:
        """Keep the device busy for that long: a step of known duration."""
        end = time.perf_counter_ns() + round(seconds * 1e9)
        while time.perf_counter_ns() < end:
            pass

    def synchronize(self) -> None:
        """Wait until the queue is empty."""

    def probe(self) -> Probe:
        """Read the disturbance counters; costs little and is never called while time is taken."""
        return {}

    def disturbance(self, before: Probe, after: Probe, seconds: float) -> list[str]:
        """Name what disturbed a block of that many seconds; empty when the machine was quiet."""
        del before, after, seconds
        return []

    def state(self) -> dict[str, Any]:
        """Return the state that may differ between runs: clocks, load, temperature."""
        return {}

    def settings(self) -> dict[str, Any]:
        """Switches of torch that change times or results, as they stand."""
        return {"threads": torch.get_num_threads()}

    def allocators(self) -> dict[str, str]:
        """Return the ways to treat freed memory, by ``records.Allocator``.

        "" stands for what can be had, a sentence says why not; what has no meaning here is absent.
        """
        return {Allocator.SYSTEM.value: ""}

    def use_allocator(self, name: str) -> None:
        """Treat memory so from now on, as long as the process lives.

        Raises:
            DeviceError: this cannot be had here; ``allocators`` says why.
        """
        if why := self.allocators().get(name, f"{self.kind} has no allocator {name}."):
            raise DeviceError(why)

    def release_memory(self) -> None:
        """Give what the process keeps of freed memory back: a case is closed."""

    def capture(self, call: Callable[[], object]) -> Callable[[], None] | str:
        """A function that replays ``call`` as a graph, or the reason why that is not possible."""
        del call
        return f"{self.kind} has no graphs."

    def matmul_modes(self, dtype: str) -> dict[str, Callable[[], AbstractContextManager[None]]]:
        """The ways to multiply matrices of a dtype; the dtype alone is the way torch is set."""
        return {dtype: nullcontext}

    def matmul_libraries(self, dtype: str) -> dict[str, Callable[[], AbstractContextManager[None]]]:
        """The libraries that ``torch.mm`` may go through, by name: that of torch as set first."""
        del dtype
        return {"torch.mm": nullcontext}

    def cache_bytes(self) -> dict[str, int]:
        """Bytes of each level of data caches in all, as the system tells; empty where it hides."""
        return {}

    def energy_joules(self) -> float | str:
        """The reading of the energy counter, or the reason why there is none."""
        return f"{self.kind} has no energy counter that hwbench can read."
