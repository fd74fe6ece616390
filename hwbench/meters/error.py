"""Output and gradients against a dense reference in float64: correct before fast."""

from __future__ import annotations

from hwbench.devices._base import Device
from hwbench.meters._base import Meter
from hwbench.quantities import NUMERICAL_ERROR
from hwbench.records import Measurement
from hwbench.workloads._base import Subject


class Error(Meter):
    """The largest relative Frobenius error of the output and of every gradient, read once a run."""

    QUANTITIES = (NUMERICAL_ERROR,)

    ORDER = 10
    NEEDED = True
    ONCE_A_RUN = True

    def read(self, subject: Subject, device: Device) -> list[Measurement]:
        if subject.numerical_error is None:
            return []
        value = subject.numerical_error()
        device.synchronize()
        return [Measurement(quantity=NUMERICAL_ERROR.name, unit="", values=[value])]
