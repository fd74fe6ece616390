"""The score of an accuracy experiment: what a format keeps, for one seed."""

from __future__ import annotations

import math

from hwbench.devices._base import Device
from hwbench.meters._base import Meter
from hwbench.records import Measurement, Quantity
from hwbench.workloads._base import Subject


class Score(Meter):
    """The workload's own score, the time that it took to make it, and what was found on the way."""

    QUANTITIES = (
        Quantity(name="score", unit=""),
        Quantity(name="prepare_seconds", unit="s"),
        Quantity(name="unhealed_score", unit="", better="higher"),
        Quantity(name="retrieval_agreement", unit="", better="higher"),
        Quantity(name="unhealed_perplexity", unit=""),
        Quantity(name="original_perplexity", unit=""),
        Quantity(name="perplexity_ratio", unit=""),
        Quantity(name="model_seconds", unit="s"),
        Quantity(name="model_bytes", unit="B"),
        Quantity(name="model_parameters", unit=""),
        Quantity(name="step_seconds", unit="s"),
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
            *(_beside(name, found, device) for name, found in subject.beside.items()),
        ]


def _beside(name: str, value: float, device: Device) -> Measurement:
    unit = next((each.unit for each in Score.QUANTITIES if each.name == name), "")
    contract = device.contract if unit == "s" else None
    return Measurement(quantity=name, unit=unit, values=[value], contract=contract)
