"""The machine's measured ceilings in short form: matrix rate by dtype, and copy bandwidth."""

from __future__ import annotations

from typing import Any

from hwbench import plugins
from hwbench.devices._base import Device
from hwbench.formats._base import Format
from hwbench.meters._sampling import calibrate, sample
from hwbench.records import Case
from hwbench.workloads._base import Subject, Workload

_BUDGET_SECONDS = 0.4  # for each size


def measure_ceilings(device: Device, dtypes: list[str]) -> dict[str, Any]:
    """The best rate seen of a matrix product of each dtype, and of a large copy."""
    return {
        "matmul": {dtype: _matmul(device, dtype) for dtype in dtypes},
        "copy": _copy(device),
    }


def _matmul(device: Device, dtype: str) -> dict[str, Any]:
    best: dict[str, Any] = {"flops_per_second": 0.0}
    for side in device.matmul_sides:
        subject = _subject(device, "matmul", dtype, (side, side), tokens=side)
        assert subject.cost is not None
        rate = subject.cost.flops / _fastest(device, subject)
        if rate > best["flops_per_second"]:
            best = {"flops_per_second": rate, "shape": [side, side, side]}
    return best


def _copy(device: Device) -> dict[str, Any]:
    side = int((device.copy_bytes / 4) ** 0.5)
    subject = _subject(device, "copy", "float32", (side, side))
    assert subject.cost is not None
    moved = subject.cost.compulsory_bytes
    return {
        "bytes_per_second": moved / _fastest(device, subject),
        "working_set_bytes": moved,
    }


def _subject(
    device: Device, workload: str, dtype: str, shape: tuple[int, int], tokens: int | None = None
) -> Subject:
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


def _fastest(device: Device, subject: Subject) -> float:
    found = calibrate(device, subject, _BUDGET_SECONDS)
    rounds = max(3, found.samples * 4)
    return min(sample(device, subject, found.calls) for _ in range(rounds))
