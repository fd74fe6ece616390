"""What ``torch.compile`` did before anything is timed: seconds, graph breaks and graphs."""

from __future__ import annotations

import time

import torch

from hwbench.devices._base import Device
from hwbench.meters._base import Meter
from hwbench.records import Measurement, Quantity
from hwbench.workloads._base import Subject

_CALLS = 2  # the second shows whether the first compiled everything


class Compile(Meter):
    """Compiles a subject whose mode is ``compile``, apart from every timing.

    ``compile_seconds`` is the time of the first calls, compilation included; ``graph_breaks`` and
    ``compiled_graphs`` are torch's own counts. A layer with breaks runs partly as in eager mode.
    """

    QUANTITIES = (
        Quantity(name="compile_seconds", unit="s"),
        Quantity(name="graph_breaks", unit=""),
        Quantity(name="compiled_graphs", unit=""),
    )
    ORDER = 5

    def read(self, subject: Subject, device: Device) -> list[Measurement]:
        if not subject.compiled:
            return []
        from torch._dynamo.utils import counters  # takes seconds; only compiled cases need it

        torch.compiler.reset()
        counters.clear()
        begun = time.perf_counter()
        for _ in range(_CALLS):
            states = subject.states(1)
            with torch.set_grad_enabled(subject.grad):
                subject.step(states[0])
        device.synchronize()
        readings = {
            "compile_seconds": time.perf_counter() - begun,
            "graph_breaks": float(sum(counters["graph_break"].values())),
            "compiled_graphs": float(counters["stats"]["unique_graphs"]),
        }
        breaks = "; ".join(counters["graph_break"]) or None
        return [
            Measurement(
                quantity=name, unit="s" if name == "compile_seconds" else "", values=[value],
                note=breaks if name == "graph_breaks" else None,
            )
            for name, value in readings.items()
        ]  # fmt: skip
