"""``Meter`` reads one quantity (or one family of them) of a prepared subject."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from hwbench.devices._base import Device
from hwbench.protocol import BUDGET_ENDED
from hwbench.quantities import Quantity
from hwbench.records import Measurement
from hwbench.workloads._base import Subject


class Meter(ABC):
    """Reads quantities of one subject at a time, before anything is timed."""

    QUANTITIES: ClassVar[tuple[Quantity, ...]]
    ORDER: ClassVar[int] = 50  # error 10, score 20, cost 30, memory 40, latency 90
    FIRST_REPLICATE_ONLY: ClassVar[bool] = False
    ON_REQUEST: ClassVar[bool] = False  # read only when the run asks for it by the meter's name
    # Whether it only says that the case is right, which one replicate of a run says for all.
    ONCE_A_RUN: ClassVar[bool] = False
    # Whether a case cannot be timed or scored without it: these are read whatever the time budget.
    NEEDED: ClassVar[bool] = False

    @abstractmethod
    def read(self, subject: Subject, device: Device) -> list[Measurement]:
        """The measurements of one subject; empty where the quantity does not apply to it."""


def left_out(quantity: Quantity) -> Measurement:
    """The measurement of a reading that the time budget had no room for."""
    return Measurement(quantity=quantity.name, unit=quantity.unit, values=[], note=BUDGET_ENDED)
