"""Checks that the values in a file are possible; ``records`` checks their shape.

Everything that is read from a run, a file of pytest-benchmark or the cache of ceilings passes here
once, so that whatever shows or compares numbers may trust them. Problems are returned in words.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hwbench import quantities
from hwbench.errors import shortened
from hwbench.quantities import Quantity
from hwbench.records import (
    ITEM_BYTES,
    Case,
    Direction,
    Header,
    Measurement,
    Mode,
    Planned,
    Regime,
    Result,
)

MOST_REPLICATES = 1000
"""A plan asks for at most so many replicates."""
MOST_ADDED = 3
"""A run that is made longer has at most so many times the replicates of its plan."""

_TIME = (1e-12, 1e9)  # seconds of one call
_AMOUNTS = ("s", "B", "J", "FLOP", "×")  # units that nothing has less than none of
_LARGEST = 1e30  # of any amount: its square is a number still
_RANGES = {
    quantities.TIME.name: _TIME,
    quantities.GRAPH.name: _TIME,
    quantities.RELATIVE.name: (1e-12, 1e12),
}
_WORDS: dict[str, Iterable[str]] = {
    "dtype": tuple(ITEM_BYTES),
    "direction": tuple(Direction),
    "regime": tuple(Regime),
    "mode": tuple(Mode),
}
_BETTER = ("lower", "higher")
_ROOFS = {
    "flops_per_second": (1.0, 1e20),
    "bytes_per_second": (1.0, 1e18),
    "seconds": (1e-12, 1e4),
    "disturbed": (0.0, 1.0),
}
_DURATION = "_seconds", (0.0, 1e4)
"""The least and the most of a ceiling with that name, or with that ending."""


def _bounds(name: Any) -> tuple[float, float]:
    """The least and the most of a number of that name; zeros where anything may be."""
    if not isinstance(name, str):
        return 0.0, 0.0
    ending, duration = _DURATION
    return duration if name.endswith(ending) else _ROOFS.get(name, (0.0, 0.0))


@dataclass
class Sense:
    """The lines of one file, each held against those before it."""

    header: Header
    planned: dict[str, Planned] = field(default_factory=dict)
    _seen: set[tuple[str, int]] = field(default_factory=set)
    _contracts: dict[tuple[str, str], str] = field(default_factory=dict)
    _declared: dict[tuple[str, str], Quantity] = field(default_factory=dict)

    def of_header(self) -> str | None:
        """Names an impossible value of the header."""
        plan = self.header.plan
        if self.header.schema < 1:
            return f"there is no schema {self.header.schema}"
        if not all(0 < each < _LARGEST for each in (plan.relative_width, plan.timeout_seconds)):
            return "its plan has no width or no time-out above zero"
        if not 0 <= plan.budget_seconds < _LARGEST:
            return "its plan has a budget below zero"
        if bad := next((q for q in self.header.quantities if q.better not in _BETTER), None):
            return f"{shortened(bad.name)} is better neither lower nor higher"
        return impossible(self.header.ceilings)

    def of_case(self, planned: Planned) -> str | None:
        """Names an impossible value of a planned case, and remembers the case."""
        case = planned.case
        if case.id in self.planned:
            return "the case is described twice"
        self.planned[case.id] = planned
        if min(case.out_features, case.in_features) < 1:
            return "a layer has no features"
        if case.tokens is not None and case.tokens < 1:
            return "it has no tokens"
        kind = self.header.device.partition(":")[0]
        if case.device != kind:
            return f"it is a case of the device {shortened(case.device)} in a run of {kind}"
        return _unknown_word(case) or _impossible_plan(planned)

    def of_result(self, result: Result) -> str | None:
        """Names an impossible value of a result, and remembers its replicate."""
        planned = self.planned[result.case]
        key = result.case, result.replicate
        if key in self._seen:
            return f"replicate {result.replicate} of the case is there twice"
        self._seen.add(key)
        replicates = max(self.header.plan.replicates, planned.seeds or 0)
        most = max(MOST_ADDED * replicates, min(self.header.plan.most, MOST_REPLICATES))
        if not 0 <= result.replicate < most:
            return f"replicate {result.replicate} is none of {replicates}"
        names = set()
        for read in result.measurements:
            if read.quantity in names:
                return f"{shortened(read.quantity)} is there twice"
            names.add(read.quantity)
            if problem := self._of_measurement(result.case, read):
                return problem
        return None

    def _of_measurement(self, case: str, read: Measurement) -> str | None:
        key = read.quantity, read.unit
        if key not in self._declared:
            self._declared[key] = quantities.find(read.quantity, self.header.quantities, read.unit)
        declared = self._declared[key]
        if read.unit != declared.unit:
            name, unit = shortened(read.quantity), shortened(repr(read.unit))
            return f"{name} is in {unit}, not {declared.unit!r}"
        if read.values and read.contract is not None:
            first = self._contracts.setdefault((case, read.quantity), read.contract)
            if first != read.contract:
                name = shortened(read.quantity)
                return f"{name} of the case has two contracts, {first} and {read.contract}"
        for beside in (read.disturbed, read.samples, read.rounds):
            if beside is not None and len(beside) != len(read.values):
                return f"{shortened(read.quantity)} has too few blocks"
        return _impossible_values(read, declared.unit)


def _unknown_word(case: Case) -> str | None:
    """A word that a newer hwbench may know."""
    for key, allowed in _WORDS.items():
        word = getattr(case, key)
        if word is not None and word not in allowed:
            return f"{key} {shortened(repr(word))} is unknown to this hwbench"
    return None


def _impossible_plan(planned: Planned) -> str | None:
    cost = planned.cost
    if planned.better not in _BETTER:
        return f"{shortened(repr(planned.better))} is neither lower nor higher"
    if planned.seeds is not None and not 1 <= planned.seeds <= 100_000:
        return f"it has {planned.seeds} seeds"
    if not 0 <= planned.added_seconds < _TIME[1]:
        return "its delay is below zero"
    if planned.density is not None and not 0 <= planned.density < _LARGEST:
        return f"its density is {planned.density:g}"
    if cost is not None:
        counts = (cost.parameters, cost.stored_bytes, cost.flops, cost.dense_flops,
                  cost.compulsory_bytes, cost.intermediate_bytes)  # fmt: skip
        if not all(0 <= count < _LARGEST for count in counts):
            return "its costs are below zero or beyond all machines"
    return None


def _impossible_values(read: Measurement, unit: str) -> str | None:
    """A value, or a raw sample, that its quantity cannot have."""
    least, most = _RANGES.get(read.quantity, (0.0 if unit in _AMOUNTS else -math.inf, math.inf))
    if read.quantity not in _RANGES and unit in _AMOUNTS:
        most = _LARGEST
    for values in (read.values, *(read.samples or ())):
        if values and not least <= min(values) <= max(values) <= most:
            wrong = next(v for v in values if not least <= v <= most)
            return f"{shortened(read.quantity)} cannot be {wrong:g}"
    return None


def impossible(ceilings: Any) -> str | None:
    """Names a ceiling that no machine has; None where all are plausible, or absent."""
    if not isinstance(ceilings, Mapping):
        return "the ceilings are no table"
    for name, rate in (("copy", "bytes_per_second"), ("launch", "seconds")):
        entry = ceilings.get(name, {rate: 1e6 if rate == "bytes_per_second" else 1.0})
        if not isinstance(entry, Mapping) or rate not in entry:
            return f"the ceiling {name} has no {rate}"
    products = ceilings.get("matmul", {})
    if not isinstance(products, Mapping):
        return "the ceilings of products are no table"
    for dtype, product in products.items():
        if not isinstance(product, Mapping) or "flops_per_second" not in product:
            return f"the ceiling of {shortened(str(dtype))} has no flops_per_second"
    return _out_of_range(ceilings)


def _out_of_range(value: Any) -> str | None:
    """The first number of a name that we know that is none, or out of its range."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            least, most = _bounds(name)
            if most and not (_number(inner) and least <= inner <= most):
                return f"the ceilings say {name} = {shortened(repr(inner))}"
            if problem := _out_of_range(inner):
                return problem
    elif isinstance(value, list):
        return next(filter(None, map(_out_of_range, value)), None)
    return None


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
