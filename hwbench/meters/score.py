"""The score of an accuracy experiment: what a format keeps, for one seed."""

from __future__ import annotations

import math

from hwbench import quantities
from hwbench.devices._base import Device
from hwbench.meters._base import Meter
from hwbench.quantities import Quantity
from hwbench.records import Measurement
from hwbench.workloads._base import Subject


class Score(Meter):
    """The workload's own score, the seconds of making it, and further quantities beside it."""

    QUANTITIES = (quantities.SCORE, quantities.PREPARE)
    ORDER = 20
    NEEDED = True

    def read(self, subject: Subject, device: Device) -> list[Measurement]:
        if subject.score is None:
            return []
        start = device.mark()
        scored = subject.score()
        seconds = device.seconds(start, device.mark())
        values = scored if isinstance(scored, list) else [scored]
        for value in values:
            if not math.isfinite(value):
                raise ArithmeticError(f"The score is {value}.")
        score = Measurement(
            quantity=quantities.SCORE.name, unit="", values=values, note=subject.score_name
        )
        if subject.score_seconds is not None:
            seconds = subject.score_seconds
        prepared = _measurement(quantities.PREPARE, seconds, device)
        further = (
            _measurement(quantities.find(name, subject.declared), beside, device)
            for name, beside in subject.beside.items()
        )
        return [score, prepared, *further]


def _measurement(quantity: Quantity, value: float | list[float], device: Device) -> Measurement:
    contract = device.contract if quantity.unit == "s" else None
    values = value if isinstance(value, list) else [value]
    return Measurement(quantity=quantity.name, unit=quantity.unit, values=values, contract=contract)
