"""Output and gradients against a dense reference in float64: correct before fast."""

from __future__ import annotations

from hwbench.devices._base import Device
from hwbench.meters._base import Meter
from hwbench.records import Measurement, Quantity
from hwbench.workloads._base import Subject


class Error(Meter):
    """The largest relative Frobenius error of the output and of every gradient."""

    QUANTITIES = (Quantity(name="numerical_error", unit=""),)

    ORDER = 10

    def read(self, subject: Subject, device: Device) -> list[Measurement]:
        if subject.numerical_error is None:
            return []
        value = subject.numerical_error()
        device.synchronize()
        return [Measurement(quantity="numerical_error", unit="", values=[value])]
