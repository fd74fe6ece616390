"""Energy of one call, from the device's own counter over a window long enough to mean something."""

from __future__ import annotations

import math
import time

from hwbench.devices._base import Device
from hwbench.meters._base import Meter
from hwbench.meters._sampling import sample
from hwbench.quantities import ENERGY
from hwbench.records import Measurement
from hwbench.workloads._base import Subject

WINDOW_SECONDS = 2.0  # counters of GPUs move about every 0.1 s; a shorter window says little
_PIECE_SECONDS = 0.05  # of calls at a time, so that backward graphs do not pile up


class Energy(Meter):
    """Joules a call: the counter's difference over two seconds of calls, idle power included.

    Read only when it is asked for (``--energy``). Where the device has no counter, or the counter
    did not move, there is no value, and the note says why.
    """

    QUANTITIES = (ENERGY,)
    ORDER = 95
    FIRST_REPLICATE_ONLY = True
    ON_REQUEST = True

    def read(self, subject: Subject, device: Device) -> list[Measurement]:
        if subject.score is not None:
            return []
        before = device.energy_joules()
        if isinstance(before, str):
            return [_not_measured(before)]
        each = sample(device, subject, 1)
        piece = max(1, min(subject.max_calls, math.ceil(_PIECE_SECONDS / each)))
        calls, begun = 0, time.monotonic()
        before = device.energy_joules()
        while time.monotonic() - begun < WINDOW_SECONDS:
            sample(device, subject, piece)
            calls += piece
        device.synchronize()
        after = device.energy_joules()
        if isinstance(after, str) or isinstance(before, str):
            return [_not_measured(str(after))]
        if after <= before:
            return [_not_measured("The energy counter did not move during the window.")]
        joules = (after - before) / calls
        return [Measurement(quantity=ENERGY.name, unit=ENERGY.unit, values=[joules], calls=calls)]


def _not_measured(reason: str) -> Measurement:
    return Measurement(quantity=ENERGY.name, unit=ENERGY.unit, values=[], note=reason)
