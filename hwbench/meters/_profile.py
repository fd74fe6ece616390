"""One case under torch.profiler: what ran, how long, and whether it is what the format claims."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # exported since torch 1.8
from torch.profiler import ProfilerActivity, profile

from hwbench.devices._base import Device
from hwbench.records import Planned
from hwbench.workloads._base import Subject

_WARM_CALLS = 3  # before the profiler starts: workspaces, packing, code that is made at first use
_OPERATORS = {
    "torch": r"aten::(mm|addmm|linear)$",
    "linear": r"aten::linear$",
    "addmm": r"aten::addmm$",
    "matmul": r"aten::(mm|bmm|matmul)$",
    "bmm": r"aten::(bmm|baddbmm)$",
    "views": r"aten::(bmm|baddbmm)$",
    "addcmul": r"aten::addcmul_?$",
    "multiply_sum": r"aten::sum$",
    "einsum": r"aten::einsum$",
    "gather": r"aten::_?(embedding_bag|index_select|index)",
    "naive": r"aten::index$",
    "spmm": r"aten::_?sparse_",
    "cusparselt": r"aten::_cslt_sparse_mm",
    "cutlass": r"aten::_sparse_semi_structured_",
}
"""By a format's kernel: an operator that must have run, as torch names it."""

_SPARSE_CORES = re.compile(
    r"sparse.*gemm|gemm.*sparse|spmma|cusparselt|sptensorop|spgemm", re.IGNORECASE
)
_NEED_SPARSE_CORES = ("semi_structured", "two_four_training")


def profile_case(
    device: Device, subject: Subject, planned: Planned, calls: int, trace: str
) -> dict[str, Any]:
    """Profile so many calls, write the Chrome trace, and check the claim.

    ``rows`` have name, calls (in all), seconds and share of the time in all, the longest first: the
    kernels of a GPU, the operators of a CPU (their own time, without what they call).
    """
    device.run(subject.step, subject.states(_WARM_CALLS))
    device.synchronize()
    states = subject.states(calls)
    gpu = device.torch_device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with torch.set_grad_enabled(subject.grad), profile(activities=activities) as profiler:
        device.run(subject.step, states)
        device.synchronize()
    profiler.export_chrome_trace(trace)
    events = profiler.key_averages()
    operators = {event.key for event in events if event.device_type == DeviceType.CPU}
    shown = [event for event in events if gpu == (event.device_type == DeviceType.CUDA)]
    rows = [
        {
            "name": event.key,
            "calls": event.count,
            "seconds": 1e-6
            * float(event.self_device_time_total if gpu else event.self_cpu_time_total),
        }
        for event in shown
    ]
    total = sum(row["seconds"] for row in rows)
    for row in rows:
        row["share"] = row["seconds"] / total if total else 0.0
    rows.sort(key=lambda row: -row["seconds"])
    kernels = {row["name"] for row in rows} if gpu else set()
    verdict, says = claim(planned.case.format, planned.kernel, operators, kernels)
    return {
        "rows": rows,
        "calls": calls,
        "seconds": total,
        "verdict": verdict,
        "says": says,
        "trace": str(Path(trace).resolve()),
    }


def claim(format_name: str, kernel: str, operators: set[str], kernels: set[str]) -> tuple[str, str]:
    """Whether what ran is what the format claims: confirmed, contradicted, or unchecked."""
    if format_name in _NEED_SPARSE_CORES:
        found = sorted(name for name in kernels if _SPARSE_CORES.search(name))
        if not found:
            return "contradicted", "no kernel of the sparse tensor cores ran"
        return "confirmed", f"the sparse tensor cores ran: {found[0]}"
    pattern = _OPERATORS.get(kernel)
    if pattern is None:
        return "unchecked", f"nothing is known of how the kernel {kernel} shows"
    found = sorted(name for name in operators if re.match(pattern, name))
    if not found:
        return "contradicted", f"{kernel} was claimed, and no operator like {pattern} ran"
    return "confirmed", f"{kernel} was claimed, and {found[0]} ran"
