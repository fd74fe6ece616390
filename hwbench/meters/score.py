"""The score of an accuracy experiment: what a format keeps, for one seed."""

from __future__ import annotations

import math

from hwbench.devices._base import Device
from hwbench.meters._base import Meter
from hwbench.records import Measurement, Quantity
from hwbench.workloads._base import Subject


class Score(Meter):
    """The workload's own score, and the time that it took to make it."""

    QUANTITIES = (
        Quantity(name="score", unit=""),
        Quantity(name="prepare_seconds", unit="s"),
    )

    ORDER = 20

    def read(self, subject: Subject, device: Device) -> list[Measurement]:
        if subject.score is None:
            return []
        start = device.mark()
        value = subject.score()
        taken = device.seconds(start, device.mark())
        if not math.isfinite(value):
            raise ArithmeticError(f"The score is {value}.")
        return [
            Measurement(quantity="score", unit="", values=[value], note=subject.score_name),
            Measurement(
                quantity="prepare_seconds", unit="s", values=[taken], contract=device.contract
            ),
        ]
