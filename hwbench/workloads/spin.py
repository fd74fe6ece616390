"""A step of known duration that touches no layer: what the sampling loop is worth."""

from __future__ import annotations

from hwbench.devices._base import Device
from hwbench.formats._base import Format
from hwbench.records import Case, Cost
from hwbench.workloads._base import Subject, Workload


class Spin(Workload):
    """Keep the device busy for ``microseconds``; a time that is reported otherwise is wrong."""

    OPTIONS = {"microseconds": 200}  # noqa: RUF012 (declared in the base)
    LIMITS = {"microseconds": (1, 10**6)}  # noqa: RUF012 (declared in the base)
    AXES = ()

    def cost(self, case: Case, described: Format) -> Cost | None:
        del case, described
        return None

    def prepare(self, case: Case, described: Format, device: Device, seed: int) -> Subject:
        del described, seed
        seconds = float(self.options(case)["microseconds"]) * 1e-6
        return Subject(step=lambda _: device.occupy(seconds))
