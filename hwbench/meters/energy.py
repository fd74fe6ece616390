"""Energy of one call, from the device's own counter over a window long enough to mean something."""

from __future__ import annotations

import math
import time

import torch

from hwbench import units
from hwbench.devices._base import Device
from hwbench.meters._base import Meter
from hwbench.meters._sampling import enqueue_seconds, launch_bound, take
from hwbench.quantities import ENERGY
from hwbench.records import Measurement
from hwbench.workloads._base import Subject

WINDOW_SECONDS = 2.0  # counters of GPUs move about every 0.1 s; a shorter window says little
SETTLE_SECONDS = 0.5  # of calls before the window: power, and the clocks, have settled then
_PIECE_SECONDS = 0.05  # of calls at a time, so that backward graphs do not pile up
_TRIAL_CALLS = 20  # to estimate the time of one
PREPARED = (
    "What prepares each call, such as the forward pass before a backward pass, lies within the "
    "window: its energy is part of this number."
)
NOT_FED = (
    "The host needs {host} to launch a call of {device}: the device idled within the window, and "
    "its idle power is part of this number."
)


class Energy(Meter):
    """Joules a call: the counter's difference over two seconds of calls, idle power included.

    The calls follow each other as they do in use: nothing keeps the queue filled, because what
    would do so takes power itself. Where the host cannot feed the device, the note says so.

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
        piece, note = _fed(device, subject)
        _run_for(device, subject, piece, SETTLE_SECONDS)
        before = device.energy_joules()
        calls = _run_for(device, subject, piece, WINDOW_SECONDS)
        after = device.energy_joules()
        if isinstance(after, str) or isinstance(before, str):
            return [_not_measured(str(after))]
        if after <= before:
            return [_not_measured("The energy counter did not move during the window.")]
        joules = (after - before) / calls
        return [
            Measurement(
                quantity=ENERGY.name, unit=ENERGY.unit, values=[joules], calls=calls, note=note
            )
        ]


def _fed(device: Device, subject: Subject) -> tuple[int, str | None]:
    """The calls of one piece, and the other parts of its reading."""
    enqueue = enqueue_seconds(device, subject)
    calls = min(subject.max_calls, _TRIAL_CALLS) if device.asynchronous else 1
    each = take(device, subject, calls, enqueue_seconds=enqueue).seconds
    piece = max(1, min(subject.max_calls, math.ceil(_PIECE_SECONDS / each)))
    notes = [PREPARED] if subject.before is not None else []
    if device.asynchronous and launch_bound(enqueue, each):
        notes.append(NOT_FED.format(host=units.seconds(enqueue), device=units.seconds(each)))
    return piece, " ".join(notes) or None


def _run_for(device: Device, subject: Subject, piece: int, seconds: float) -> int:
    """Run calls for so long, a piece at a time, until the queue is empty; how many they were."""
    calls, begun = 0, time.monotonic()
    while time.monotonic() - begun < seconds:
        states = subject.states(piece)
        with torch.set_grad_enabled(subject.grad):
            device.run(subject.step, states)
        device.synchronize()
        calls += piece
    return calls


def _not_measured(reason: str) -> Measurement:
    return Measurement(quantity=ENERGY.name, unit=ENERGY.unit, values=[], note=reason)
