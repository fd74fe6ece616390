"""What devices/cuda.py does without asking a GPU, on a device that only pretends to have one."""

from __future__ import annotations

import io
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hwbench_simulated import Fake

from hwbench import protocol, worker
from hwbench.devices.cuda import Cuda
from hwbench.measure.replicate import Replicate
from hwbench.measure.transports._base import Worker
from hwbench.records import Case, Plan, Result, Status


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """A device without a GPU, of which single methods can be tried."""
    for name in ("Stream", "current_stream", "set_sync_debug_mode"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: SimpleNamespace(wait_stream=lambda _: 0))
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    device = Cuda.__new__(Cuda)
    device.torch_device, device._cycles_per_second = torch.device("cuda", 0), None
    return device


def test_a_clock_that_rises_slowly_is_waited_for(
    pretended: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def spin(cycles: int) -> None:
        now[0] += cycles / (345e6 if now[0] < 0.15 else 1980e6)

    monkeypatch.setattr(torch.cuda, "_sleep", spin)
    monkeypatch.setattr(pretended, "mark", lambda: now[0])
    monkeypatch.setattr(pretended, "seconds", lambda start, end: end - start)
    pretended.prefill(0.05)
    begun = now[0]
    pretended.prefill(0.05)
    assert now[0] - begun == pytest.approx(0.05)


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, AssertionError])
def test_whatever_a_call_raises_is_why_it_cannot_be_captured(
    pretended: Cuda, kind: type[Exception]
) -> None:
    def call() -> None:
        raise kind("not divisible")

    assert pretended.capture(call) == "It cannot be captured as a graph: not divisible."


@pytest.mark.parametrize(
    "words",
    ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublas`"],
)
def test_libraries_that_find_no_memory_ran_out_of_memory(words: str) -> None:
    assert worker._is_out_of_memory(RuntimeError(words))
    assert not worker._is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))


class _Direct(Worker):
    """A worker in this process."""

    def __init__(self, device: Fake) -> None:
        self.device, self.closed = device, False

    def exchange(self, line: bytes, timeout_seconds: float) -> bytes:
        replies = io.BytesIO()
        worker.serve(self.device, [line], replies)
        return replies.getvalue()

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("when", ["never", "in the rounds", "alone"])
def test_a_worker_whose_device_is_lost_is_replaced(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Fake()
    started: list[_Direct] = []

    def start() -> Worker:
        started.append(_Direct(device))
        return started[-1]

    def lost(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def measure(*arguments: Any) -> Any:
        values = measured(*arguments)
        if when == "in the rounds":
            monkeypatch.setattr(device, "synchronize", lost)
        return values

    measured = worker.latency.measure
    monkeypatch.setattr(worker.latency, "measure", measure)
    if when == "alone":
        monkeypatch.setattr(device, "synchronize", lost)
    case = Case(
        workload="linear", format="dense", out_features=8, in_features=8, dtype="float32",
        device="fake", tokens=2, direction="forward",
    )  # fmt: skip
    members = worker.Worker(device).plan(protocol.PlanRequest(cases=[case])).planned
    kept: list[Result] = []
    plan = Plan(budget_seconds=0.01, replicates=1)

    def keep(result: Result, seconds: float | None) -> None:
        assert seconds is not None
        kept.append(result)

    Replicate(number=0, seed=0, plan=plan, start=start, keep=keep).time_group(members, {case.id})
    assert [each.closed for each in started] == [when != "never"]
    (result,) = kept
    assert result.status is (Status.CRASHED if when == "alone" else Status.OK)
    assert bool(result.values("time_seconds")) is (when != "alone")
    assert ("illegal memory access" in (result.reason or "")) is (when == "alone")
