"""What devices/cuda.py does without asking a GPU, on a device that only pretends to have one."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from hwbench import worker
from hwbench.devices.cuda import Cuda


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
