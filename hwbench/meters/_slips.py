"""Holds what members of other packages gave against what a run file may hold, by its own rules.

A run is refused whole by its reader for one impossible value, so it is not written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from hwbench.quantities import GRAPH, HOST, MINOR_FAULTS, RELATIVE, TIME, Quantity
from hwbench.records import SCHEMA, Environment, Header, Measurement, Plan, Planned, Result
from hwbench.store.sense import Sense

_IN_ROUNDS = {each.name for each in (TIME, RELATIVE, GRAPH, HOST, MINOR_FAULTS)}


def slip(
    planned: Planned, result: Result, read: Sequence[Measurement], declared: Sequence[Quantity]
) -> str | None:
    """Why a run cannot hold what was read of a case, as a clause; None where it can.

    Args:
        planned: the case.
        result: its result so far, with what other meters read of it.
        read: what one meter returned.
        declared: the quantities that the meter, or the workload that it asks, declares.
    """
    names = {each.name for each in declared}
    for each in read:
        if each.quantity not in names:
            return f"{each.quantity} is none of the quantities that it declares"
        if each.quantity in _IN_ROUNDS:
            return f"{each.quantity} is read in rounds, by no meter alone"
        if problem := _unwritable(each):
            return problem
    whole = replace(result, replicate=0, measurements=[*result.measurements, *read])
    sense = _sense(planned.case.device, declared)
    sense.planned[planned.case.id] = planned
    return sense.of_result(whole)


def undeclarable(declared: Sequence[Quantity]) -> str | None:
    """Why a run cannot declare these quantities, as a clause; None where it can."""
    return _sense("", declared).of_header()


class Plannable:
    """Whether a run can hold cases of a workload that declares these quantities."""

    def __init__(self, declared: Sequence[Quantity]) -> None:
        self._declared = declared
        self._senses: dict[str, tuple[Sense, str | None]] = {}  # with what the declarations lack

    def problem(self, planned: Planned) -> str | None:
        """Why a run cannot hold the case, as a clause; None where it can."""
        device = planned.case.device
        if device not in self._senses:
            fresh = _sense(device, self._declared)
            self._senses[device] = fresh, fresh.of_header()
        sense, problem = self._senses[device]
        sense.planned.clear()  # that a case is there twice is no matter of it alone
        return problem or sense.of_case(planned)


def _unwritable(read: Measurement) -> str | None:
    """Says which part of a measurement no line of a run file can hold."""
    for values in (read.values, *(read.samples or ())):
        for value in values:
            if isinstance(value, float) and not math.isfinite(value):
                return f"{read.quantity} cannot be {value:g}"
    try:
        msgspec.json.decode(msgspec.json.encode(read), type=Measurement)
    except (TypeError, ValueError, OverflowError, msgspec.ValidationError) as error:
        return f"{read.quantity} cannot be written ({error})"
    return None


def _sense(device: str, declared: Sequence[Quantity]) -> Sense:
    """The reader's rules for a run on a device, of which only the quantities are known."""
    header = Header(
        schema=SCHEMA, run="", created="", version="", suite="", about="", plan=Plan(), seed=0,
        device=device, environment=Environment(), quantities=list(declared),
    )  # fmt: skip
    return Sense(header)
