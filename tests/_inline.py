"""Workers in this process: what a test of scheduling, pairing or resuming starts in their place.

``InlineWorker`` answers encoded lines with encoded lines, as the child process behind a
``LocalWorker`` does, by the very code that runs there. Starting one takes a millisecond instead of
an import of torch. What a worker may do to a run is acted out: a death, a time-out, memory that
there is not, a machine that goes away, Ctrl-C. What only a real process shows is in
``test_processes.py``.
"""

from __future__ import annotations

import contextlib
import gc
import io
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import msgspec
import pytest

from hwbench import protocol
from hwbench.errors import HwbenchError, UsageError
from hwbench.measure import schedule
from hwbench.measure.transports._base import (
    SeatLostError,
    Worker,
    WorkerDiedError,
    WorkerTimedOutError,
)

_ONE_AT_A_TIME = threading.Lock()
"""Settings of torch and the error stream belong to the whole process."""


def ten_seconds_a_replicate(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Each replicate takes ten seconds of a clock that nothing else moves: the one returned."""
    now, measure = [0.0], schedule.measure

    def ten_seconds(*args: Any) -> dict[str, float]:
        spans = measure(*args)
        now[0] += 10.0
        return spans

    monkeypatch.setattr(schedule, "measure", ten_seconds)
    monkeypatch.setattr(schedule, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def died(how: str = "signal 9, SIGKILL") -> Callable[[], BaseException]:
    """The worker process ends in the middle of a request."""
    return lambda: WorkerDiedError(f"The worker process died ({how}).")


def hangs() -> BaseException:
    """The worker never answers: it is killed when its time is over."""
    return WorkerTimedOutError("It did not end in time and was stopped.")


def machine_lost() -> BaseException:
    """The machine goes away with the worker."""
    return SeatLostError("The machine went away.")


def no_memory() -> BaseException:
    """What torch raises inside the worker where there is no room."""
    return MemoryError("[enforce fail] DefaultCPUAllocator: can't allocate memory")


@dataclass
class Fault:
    """What happens to the requests that match, after so many of them, so many times."""

    make: Callable[[], BaseException]
    request: type[Any] | tuple[type[Any], ...] | None = None  # SoloRequest …; any where None
    case: str = ""  # a part of the id of a case that the request names
    after: int = 0
    times: int = 1

    def happens(self, request: protocol.Request) -> bool:
        """Whether it is this request's turn."""
        if self.times <= 0:
            return False
        if self.request is not None and not isinstance(request, self.request):
            return False
        if not any(self.case in case for case in cases_of(request)) and self.case:
            return False
        if self.after:
            self.after -= 1
            return False
        self.times -= 1
        return True


def cases_of(request: protocol.Request) -> list[str]:
    """The ids of the cases that a request is about."""
    match request:
        case protocol.SoloRequest(planned=planned) | protocol.ProfileRequest(planned=planned):
            return [planned.case.id]
        case protocol.ChunkRequest():
            return [planned.case.id for planned in request.members]
    return []


class InlineWorker(Worker):
    """A worker of this process. Scripted ``faults`` happen to its requests."""

    def __init__(self, device: str, number: int = 0, faults: Sequence[Fault] = ()) -> None:
        from hwbench import worker

        self._answered = worker.answered
        self._worker = worker.Worker(_opened(device, number))
        self._faults = faults
        self._ended = ""

    def exchange(self, line: bytes, timeout_seconds: float) -> bytes:
        if self._ended:
            raise WorkerDiedError(self._ended)
        request = protocol.decode_request(line)
        for fault in self._faults:
            if fault.happens(request):
                error = fault.make()
                if isinstance(error, MemoryError):
                    return self._without_memory(line, error)
                self._ended = "The worker process died (it was not there any more)."
                raise error
        return self._reply(line)

    def _reply(self, line: bytes) -> bytes:
        device = self._worker.device
        with _ONE_AT_A_TIME, _as_in_a_fresh_process(), _clock_of(device):
            try:
                return self._answered(self._worker, line)
            except SystemExit as error:
                self._ended = f"The worker process died (exit code {error.code or 0})."
                raise WorkerDiedError(self._ended) from None

    def _without_memory(self, line: bytes, error: MemoryError) -> bytes:
        """Answer a request during which the device has no room."""

        def run(step: Any, states: Any) -> None:
            raise error

        device: Any = self._worker.device
        device.run = run
        try:
            return self._reply(line)
        finally:
            del device.run

    def close(self) -> None:
        self._ended = "The worker process died (it was closed)."

    kill = close


@contextlib.contextmanager
def _as_in_a_fresh_process() -> Iterator[None]:
    """Nothing of the tests is there for a measurement to collect; errors are told to nobody."""
    gc.freeze()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def _clock_of(device: Any) -> Iterator[None]:
    """Warming up and budgets go by a simulated device's clock: a busy host changes no sample."""
    from hwbench_simulated import Fake

    from hwbench.meters import _sampling, latency

    if not isinstance(device, Fake):
        yield
        return
    begun = time.monotonic() - device.now_seconds
    clock = SimpleNamespace(
        monotonic=lambda: begun + device.now_seconds, perf_counter=time.perf_counter
    )
    with mock.patch.object(_sampling, "time", clock), mock.patch.object(latency, "time", clock):
        yield


def _opened(device: str, number: int) -> Any:
    """The device; a simulated one draws its noise by process, so here by the worker's number."""
    from hwbench_simulated import Fake

    from hwbench import worker

    opened = worker.open_device(device)
    if isinstance(opened, Fake) and opened.effects.replicate is None:
        script = msgspec.to_builtins(opened.effects)
        return Fake(opened.index, effects={**script, "replicate": number})
    return opened


@dataclass
class Workers:
    """Stands where ``LocalWorker`` stands, and counts what was started with which arguments."""

    faults: list[Fault] = field(default_factory=list)
    started: list[tuple[str, int, str]] = field(default_factory=list)  # device, threads, python

    def __call__(
        self,
        device: str,
        threads: int,
        python: str = sys.executable,
        paths: Sequence[str] | None = None,
    ) -> InlineWorker:
        self.started.append((device, threads, python))
        try:
            return InlineWorker(device, len(self.started), self.faults)
        except HwbenchError as error:  # it comes through the protocol, as a sentence
            raise UsageError(str(error)) from None

    def act_out(self, make: Callable[[], BaseException], **when: Any) -> None:
        """Have something happen to later requests, see ``Fault``."""
        self.faults.append(Fault(make, **when))
