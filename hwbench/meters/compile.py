"""What ``torch.compile`` did before anything is timed: seconds, graph breaks and graphs."""

from __future__ import annotations

import time

import torch

from hwbench.devices._base import Device
from hwbench.meters._base import Meter
from hwbench.meters._compiling import call, compiled, never_fall_back
from hwbench.quantities import COMPILE, COMPILED_GRAPHS, GRAPH_BREAKS
from hwbench.records import Measurement
from hwbench.workloads._base import Subject

_CALLS = 2  # the second shows whether the first compiled everything


class Compile(Meter):
    """Compiles a subject whose mode is ``compile``, apart from every timing.

    ``compile_seconds`` is the time of the first calls, compilation included (torch keeps compiled
    code on disk, so a later process may find it there); ``graph_breaks`` and ``compiled_graphs``
    are torch's own counts. A layer with breaks runs partly as in eager mode. What is compiled
    while the case is timed sets its flag ``recompiled``, see ``latency``.
    """

    QUANTITIES = (COMPILE, GRAPH_BREAKS, COMPILED_GRAPHS)
    ORDER = 5
    NEEDED = True

    def read(self, subject: Subject, device: Device) -> list[Measurement]:
        if not subject.compiled:
            return []
        never_fall_back()
        torch.compiler.reset()  # or code compiled by another case would make this one look cheap
        before = compiled()
        begun = time.perf_counter()
        for _ in range(_CALLS):
            call(subject)
        device.synchronize()
        seconds = time.perf_counter() - begun
        done = compiled().since(before)
        breaks = "; ".join(done.reasons) or None
        return [
            Measurement(quantity=COMPILE.name, unit="s", values=[seconds]),
            Measurement(
                quantity=GRAPH_BREAKS.name, unit="", values=[float(done.breaks)], note=breaks
            ),
            Measurement(quantity=COMPILED_GRAPHS.name, unit="", values=[float(done.graphs)]),
        ]
