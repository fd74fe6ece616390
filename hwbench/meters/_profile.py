"""Runs one case under torch.profiler, and compares what ran with the kernel's claim."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # exported since torch 1.8
from torch.profiler import ProfilerActivity, profile

from hwbench import files
from hwbench.devices._base import Device
from hwbench.errors import UsageError
from hwbench.formats._kernel import Kernel
from hwbench.protocol import Profile, Ran
from hwbench.records import Planned
from hwbench.workloads import _planning
from hwbench.workloads._base import Subject

_END_BYTES = 64  # of a trace: the first and the last hold a sign beside white space
_WARM_CALLS = 3  # before the profiler starts: workspaces, packing, code that is made at first use


def profile_case(
    device: Device, subject: Subject, planned: Planned, calls: int, trace: str
) -> Profile:
    """Profile some calls, write a Chrome trace where a file is named, and check the claim."""
    device.run(subject.step, subject.states(_WARM_CALLS))
    device.synchronize()
    states = subject.states(calls)
    gpu = device.torch_device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with torch.set_grad_enabled(subject.grad), profile(activities=activities) as profiler:
        device.run(subject.step, states)
        device.synchronize()
    if trace:
        _write_trace(profiler, Path(trace))
    events = profiler.key_averages()
    operators = {event.key for event in events if event.device_type == DeviceType.CPU}
    counted = [event for event in events if gpu == (event.device_type == DeviceType.CUDA)]
    spent = [
        1e-6 * float(event.self_device_time_total if gpu else event.self_cpu_time_total)
        for event in counted
    ]
    total = sum(spent)
    rows = [
        Ran(
            name=event.key,
            calls=event.count,
            seconds=seconds,
            share=seconds / total if total else 0.0,
        )
        for event, seconds in zip(counted, spent, strict=True)
    ]
    rows.sort(key=lambda row: -row.seconds)
    kernels = {row.name for row in rows} if gpu else set()
    _, described = _planning.described(planned.case, planned.resolved)
    verdict, says = claim(described.implementation, operators, kernels)
    return Profile(
        rows=rows, calls=calls, seconds=total, verdict=verdict, says=says,
        trace=str(Path(trace).resolve()) if trace else "",
    )  # fmt: skip


def _write_trace(profiler: profile, trace: Path) -> None:
    """Write a Chrome trace. The profiler says nothing of a disk that is full, so that is looked at.

    Raises:
        UsageError: the file does not hold a whole trace.
    """
    profiler.export_chrome_trace(str(trace))
    if not _is_whole(trace):
        raise UsageError(
            f"The profiler could not write all of its trace to {trace}; free some space there."
        )


def _is_whole(trace: Path) -> bool:
    """Whether a file begins and ends as an object of JSON does."""
    if not trace.is_file():
        return False
    with files.opened(trace) as file:
        begun = file.read(_END_BYTES).lstrip().startswith(b"{")
        file.seek(max(0, trace.stat().st_size - _END_BYTES))
        return begun and file.read().rstrip().endswith(b"}")


def claim(kernel: Kernel, operators: set[str], device_kernels: set[str]) -> tuple[str, str]:
    """Check a kernel's claim against what ran: a verdict, and a clause with the reason.

    Args:
        kernel: that of the format.
        operators: the names of the operators that ran, as torch has them.
        device_kernels: the names of the kernels that ran on a GPU.

    Returns:
        confirmed, contradicted or unchecked; and the name that was found or missing.
    """
    if kernel.device_kernels:
        pattern = re.compile(kernel.device_kernels, re.IGNORECASE)
        matching = sorted(name for name in device_kernels if pattern.search(name))
        if not matching:
            return "contradicted", f"no kernel of {kernel.hardware} ran"
        return "confirmed", f"{kernel.hardware} ran: {matching[0]}"
    if not kernel.operators:
        return "unchecked", f"nothing is known of how the kernel {kernel.name} shows"
    matching = sorted(name for name in operators if re.match(kernel.operators, name))
    if not matching:
        message = f"{kernel.name} was claimed, and no operator like {kernel.operators} ran"
        return "contradicted", message
    return "confirmed", f"{kernel.name} was claimed, and {matching[0]} ran"
