"""The nouns of hwbench: frozen, typed, and JSON both ways.

call → sample → block → replicate → run → series. A *call* is one step; a *sample* one timed value
(calls batched until the timer resolves them); a *block* consecutive samples of one case; a
*replicate* one fresh worker process that visited every case; a *run* one execution of a suite (a
file); a *series* many runs. All quantities are SI base units, and the unit stands in the name.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

import msgspec

from hwbench.quantities import Quantity

__all__ = ["Quantity"]  # where other packages have always found it

SCHEMA = 1
"""The schema number of run files written by this version."""

ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one element of each dtype that a suite may name."""

Knob = bool | int | float | str
"""The type of a knob of a format, or of an option of a workload."""


class Status(StrEnum):
    """How one case ended in one replicate."""

    OK = "ok"
    UNSUPPORTED = "unsupported"
    WRONG = "wrong"
    OUT_OF_MEMORY = "out_of_memory"
    TIMED_OUT = "timed_out"
    CRASHED = "crashed"


ANSWERS = (Status.OK, Status.UNSUPPORTED, Status.OUT_OF_MEMORY)
"""Statuses that answer the question asked; the others are failures (exit code 5)."""


class Direction(StrEnum):
    """The part of a layer's work that is timed; ``step`` is forward and backward."""

    FORWARD = "forward"
    BACKWARD = "backward"
    BACKWARD_INPUT = "backward_input"
    BACKWARD_WEIGHT = "backward_weight"
    STEP = "step"


class Regime(StrEnum):
    """Whether caches are warm (``hot``) or evicted directly before the timed part (``cold``)."""

    HOT = "hot"
    COLD = "cold"


class Mode(StrEnum):
    """How the layer is executed."""

    EAGER = "eager"
    COMPILE = "compile"


class Allocator(StrEnum):
    """What becomes of memory that a worker frees while it measures.

    ``kept``: the process keeps it, so that a call finds the pages of the call before it;
    ``system``: what the system's allocator does by itself, which depends on what it served before.
    """

    KEPT = "kept"
    SYSTEM = "system"


class Verdict(StrEnum):
    """The verdict on one case when two runs are compared."""

    REGRESSED = "regressed"
    IMPROVED = "improved"
    EQUIVALENT = "equivalent"
    UNDECIDED = "undecided"
    INCOMPARABLE = "incomparable"
    NEW = "new"
    GONE = "gone"
    INVALID = "invalid"


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The base of all records: immutable, keyword-only, JSON both ways."""


class Cost(Record):
    """Exact integers for one call of one case, from the format's formulas.

    A multiply-add is two FLOPs. ``flops`` are those that the kernel executes; ``needed_flops``
    those that the format's own values need, None where these are all: a gradient that is computed
    for entries that are thrown away, padding, and what is computed twice are not needed.
    ``compulsory_bytes`` counts every operand once (a fused kernel's
    traffic); ``intermediate_bytes`` is what the kernel used writes and reads beside that.
    """

    parameters: int
    stored_bytes: int
    flops: int
    dense_flops: int
    compulsory_bytes: int
    intermediate_bytes: int = 0
    needed_flops: int | None = None

    @property
    def useful_flops(self) -> int:
        """The FLOPs that are needed."""
        return self.flops if self.needed_flops is None else self.needed_flops


class Case(Record):
    """One question: format × workload × shape × tokens × dtype × direction × regime × mode.

    ``knobs`` are as the suite wrote them (``density`` among them); what they resolved to stands in
    ``Planned``. ``tokens`` is batch × sequence; it and ``direction`` are None where a workload has
    no use for them. ``count`` is how many such layers a token passes through in the model that the
    suite is of; it is no part of the question.
    """

    workload: str
    format: str
    out_features: int
    in_features: int
    dtype: str
    device: str
    knobs: dict[str, Knob] = {}
    options: dict[str, Knob] = {}
    tokens: int | None = None
    direction: str | None = None
    regime: str | None = None
    mode: str | None = None
    count: int = 1

    @property
    def id(self) -> str:
        """A stable, readable name: the same for the same question, whatever the order of keys."""
        parts = (
            _with(self.workload, self.options),
            self.direction,
            _with(self.format, self.knobs),
            f"{self.out_features}x{self.in_features}",
            None if self.tokens is None else f"t{self.tokens}",
            self.dtype,
            self.regime,
            self.mode,
            self.device,
        )
        return "/".join([part for part in parts if part is not None])

    @property
    def group(self) -> tuple[Any, ...]:
        """What the members that are timed together, in the same rounds as dense, have in common."""
        return (
            self.workload,
            tuple(sorted((key, _text(value)) for key, value in self.options.items())),
            self.out_features,
            self.in_features,
            self.tokens or 0,
            self.dtype,
            self.direction or "",
            self.regime or "",
            self.mode or "",
            self.device,
        )

    @property
    def among(self) -> str:
        """The id without the format: one name for all members of a group."""
        return msgspec.structs.replace(self, format="", knobs={}).id.replace("//", "/")

    @property
    def label(self) -> str:
        """The format and its knobs, such as ``low_rank density=0.5``."""
        return " ".join([self.format, *(f"{k}={_text(v)}" for k, v in sorted(self.knobs.items()))])

    @property
    def facts(self) -> dict[str, Any]:
        """All that a filter or a rule of ``exclude`` may ask of it, by key; the shape is a list."""
        return {
            **self.options,
            **self.knobs,
            "workload": self.workload,
            "format": self.format,
            "shape": [self.out_features, self.in_features],
            "tokens": self.tokens,
            "dtype": self.dtype,
            "direction": self.direction,
            "regime": self.regime,
            "mode": self.mode,
            "count": self.count,
        }


def _with(name: str, settings: dict[str, Knob]) -> str:
    """A name with its settings, such as ``blast[blocks=16,density=0.5]``."""
    if not settings:
        return name
    return f"{name}[{','.join([f'{k}={_text(v)}' for k, v in sorted(settings.items())])}]"


def _text(value: Knob) -> str:
    if isinstance(value, str):
        return value
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return repr(value)  # which is what JSON writes of it, and quicker
    return json.dumps(value)


class Planned(Record):
    """A case with what only the planning worker could know of it."""

    case: Case
    resolved: dict[str, Knob] = {}
    revision: int = 1
    kernel: str = ""
    density: float | None = None  # parameters over the dense layer's
    cost: Cost | None = None
    unsupported: str | None = None  # the reason, in words
    better: str = "lower"  # or "higher": which way the workload's score is better
    seeds: int | None = None  # workloads with a score: a replicate is a seed, and there are so many
    added_seconds: float = 0.0  # a known delay after each call, for hwbench selftest alone


class Measurement(Record):
    """All samples of one quantity of one case in one replicate, and how they arose.

    ``values`` holds one value a block for timings (the block's median, seconds per call), in the
    order of the rounds; one value in all for quantities that are read once, or one a layer where a
    score looks at several.
    """

    quantity: str
    unit: str
    values: list[float]
    contract: str | None = None  # wall, event, graph, pytest: never compared with one another
    calls: int | None = None  # calls in each sample
    samples: list[list[float]] | None = None  # the raw samples of each block
    stopped: str | None = None  # precision, budget, deadline
    disturbed: list[bool] | None = None  # block by block
    rounds: list[int] | None = None  # which round each block belongs to
    note: str | None = None

    def kept(self) -> list[float]:
        """The values that count: those of quiet blocks, or all where most were disturbed."""
        if self.disturbed is None or 2 * sum(self.disturbed) > len(self.values):
            return self.values
        return [v for v, bad in zip(self.values, self.disturbed, strict=True) if not bad]


class Result(Record):
    """How one case ended in one replicate, and what was measured."""

    case: str
    replicate: int
    seed: int
    status: Status
    reason: str | None = None
    flags: list[str] = []
    measurements: list[Measurement] = []

    def values(self, quantity: str) -> list[float]:
        """The values of one quantity that count; empty when it was not measured."""
        for measurement in self.measurements:
            if measurement.quantity == quantity:
                return measurement.kept()
        return []


class Reference(Record):
    """The time of dense in one group on a quiet machine."""

    seconds: float
    deviation: float = 0.0  # of its replicates on a quiet machine, on logs
    runs: int = 0  # of the machine that it comes from


class Plan(Record):
    """How hard to measure."""

    replicates: int = 5
    replicates_most: int | None = None  # until so many are quiet; None: three times replicates
    regime: str | list[str] = "hot"
    mode: str | list[str] = "eager"
    relative_width: float = 0.02
    budget_seconds: float = 0.2
    timeout_seconds: float = 60.0
    allocator: str = Allocator.SYSTEM.value  # as runs were made before it was stored

    @property
    def most(self) -> int:
        """How many replicates there may be. One alone tells no spread, and stays alone."""
        if self.replicates == 1:
            return 1
        return max(self.replicates, self.replicates_most or 3 * self.replicates)

    def seeds(self, planned: Planned) -> int:
        """How many results a case shall have."""
        return self.replicates if planned.seeds is None else planned.seeds


class Suite(Record):
    """A named question: the plan, and the cases as written for one kind of device."""

    name: str
    about: str = ""
    plan: Plan = msgspec.field(default_factory=Plan)
    cases: list[Case] = []
    source: str = ""


class Environment(Record):
    """What the machine was: ``fingerprint`` must agree to compare, ``state`` may differ."""

    fingerprint: dict[str, Any] = {}
    state: dict[str, Any] = {}
    settings: dict[str, Any] = {}


CONFIRMS = "confirms"
"""The argument in the header of a run that measured some cases of another one again."""
SLOWER = "slower"
"""The argument in the header of a run whose calls were delayed on purpose."""
PAIRED = "pair"
"""The argument in the header of a side of ``hwbench ab``."""
_PURPOSES = {
    CONFIRMS: "measured cases of another run again",
    SLOWER: "slowed on purpose",
    PAIRED: "a side of hwbench ab",
}


class Header(Record, tag="header", tag_field="line"):
    """The first line of a run file."""

    schema: int
    run: str
    created: str
    version: str
    suite: str
    about: str
    plan: Plan
    seed: int
    device: str
    environment: Environment
    ceilings: dict[str, Any] = {}
    references: dict[str, Reference] = {}  # of dense by group, as this machine keeps them
    arguments: dict[str, Any] = {}
    quantities: list[Quantity] = []  # those that other packages declare

    @property
    def machine(self) -> str:
        """The device as it calls itself, such as ``NVIDIA H200``; its kind where it has no name."""
        return str(self.device_facts.get("name") or self.device)

    @property
    def device_facts(self) -> Mapping[str, Any]:
        """What the device says of itself, such as name, family and cores; empty where nothing."""
        facts = self.environment.fingerprint.get("device")
        return facts if isinstance(facts, Mapping) else {}

    @property
    def purpose(self) -> str | None:
        """What the run was made for, in words; None where it is a measurement of its own."""
        return next((_PURPOSES[name] for name in _PURPOSES if name in self.arguments), None)

    @property
    def resumable(self) -> bool:
        """Whether the run can be gone on with by itself; a side of ``hwbench ab`` cannot."""
        return PAIRED not in self.arguments


class PlannedLine(Record, tag="case", tag_field="line"):
    """A line that describes one case of the run; results name it by its id."""

    id: str
    planned: Planned


class ResultLine(Record, tag="result", tag_field="line"):
    """A line that holds one result."""

    result: Result


class Footer(Record, tag="footer", tag_field="line"):
    """The last line of a run file that is complete."""

    finished: str
    wall_seconds: float
    state: dict[str, Any] = {}


Line = Header | PlannedLine | ResultLine | Footer


class Estimate(Record):
    """A value with its interval."""

    value: float
    low: float
    high: float
    count: int
    level: float = 0.95


class Ratio(Record):
    """A quotient of two estimates with its interval; above one means the second side is larger."""

    value: float
    low: float
    high: float
    counts: tuple[int, int]
    level: float = 0.95


class Change(Record):
    """A pair of matched cases with its verdict."""

    case: str
    metric: str
    verdict: Verdict
    ratio: Ratio | None = None
    reason: str | None = None
    replicates_needed: int | None = None
    base: float | None = None  # the median over the baseline's replicates, where it was judged
    new: float | None = None  # … and over those of the new run


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """No cycles are looked for: among millions of records that takes longer than reading them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
