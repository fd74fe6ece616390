"""``Workload`` prepares a ``Subject``: what is timed, what is checked, and what is scored."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hwbench import plugins
from hwbench.devices._base import Device, Step
from hwbench.errors import (
    KnobError,
    SuiteError,
    UnknownNameError,
    UnreachableError,
    UsageError,
    shortened,
)
from hwbench.formats._base import FORWARD, Format, Linear
from hwbench.formats._gram import Seen
from hwbench.quantities import Quantity
from hwbench.records import ITEM_BYTES, Case, Cost, Knob, Measurement

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


MOST_SEEDS = 100_000
MANY = 10**9
"""The most of what nothing else bounds: steps, windows, tokens."""

_EASY = 20_160
"""Features that a whole number of blocks of every usual size has: 2⁶ · 3² · 5 · 7."""


@dataclass
class Subject:
    """One prepared case, ready to be read by the meters."""

    step: Step
    cost: Cost | None = None
    before: Callable[[], Any] | None = None  # untimed, once a call: makes the state of the step
    grad: bool = False  # whether autograd records during step and before
    compiled: bool = False  # whether the step runs code that torch.compile made
    max_calls: int = 1_000_000  # the most states that may exist at once
    numerical_error: Callable[[], float] | None = None  # relative, against float64
    tolerance: float = 0.0
    score: Callable[[], float | list[float]] | None = None  # a list: one a layer
    score_name: str | None = None
    # Further quantities that scoring measured, by their names; the workload declares them.
    beside: dict[str, float | list[float]] = field(default_factory=dict)
    # Seconds of making the score, where it is read from a file and not made now.
    score_seconds: float | None = None
    declared: tuple[Quantity, ...] = ()
    # Reads the case in a fresh process with the system's allocator, or says why it could not.
    in_own_process: Callable[[], list[Measurement] | str] | None = None
    module: nn.Module | None = None  # at rest: its bytes are not "saved for backward"
    inputs: list[Tensor] = field(default_factory=list)

    def states(self, calls: int) -> list[Any]:
        """The states of ``calls`` steps, made by the untimed part; Nones where there is none."""
        if self.before is None:
            return [None] * calls
        with torch.set_grad_enabled(self.grad):
            return [self.before() for _ in range(calls)]

    def nbytes(self) -> int:
        """Bytes that the subject holds: module, inputs, and one state."""
        tensors = list(self.inputs)
        if self.module is not None:
            tensors += [*self.module.parameters(), *self.module.buffers()]
        return sum(t.numel() * t.element_size() for t in tensors if t.layout == torch.strided)


class Workload(ABC):
    """A task that a layer in a format does.

    Workloads with a ``SCORE`` are run once a seed; the others are timed, in rounds anchored on
    dense where they have tokens, and repeated in every replicate. ``OPTIONS`` are the keys that a
    suite may give beside the axes, with their defaults; ``LIMITS`` the least and the most of those
    that are numbers: a whole number may be either, any other has to be above the least. ``AXES``
    are the axes that mean something. ``QUANTITIES`` declare what a score finds beside it, the
    values of ``Subject.beside``.
    """

    SCORE: ClassVar[Quantity | None] = None
    QUANTITIES: ClassVar[tuple[Quantity, ...]] = ()
    OPTIONS: ClassVar[Mapping[str, Knob]] = {}
    LIMITS: ClassVar[Mapping[str, tuple[float, float]]] = {}
    AXES: ClassVar[tuple[str, ...]] = ("tokens", "direction", "regime", "mode")

    def options(self, case: Case) -> dict[str, Knob]:
        """The case's options over the defaults.

        Raises:
            UnknownNameError: the workload has no such option.
            SuiteError: an option has another type than its default, or lies beyond its limits.
        """
        merged = dict(self.OPTIONS)
        for key, value in case.options.items():
            if key not in merged:
                raise UnknownNameError(f"option of workload {case.workload}", key, merged)
            if isinstance(value, bool) or type(value) is not type(merged[key]):
                expected = type(merged[key]).__name__
                raise SuiteError(f"{key} of workload {case.workload} must be a {expected}.")
            self._check_limits(case, key, value)
            merged[key] = value
        return merged

    def _check_limits(self, case: Case, key: str, value: Knob) -> None:
        if isinstance(value, str):
            return
        least, most = {"seeds": (1, MOST_SEEDS), **self.LIMITS}.get(key, (-math.inf, math.inf))
        if isinstance(value, int):
            fits, words = least <= value <= most, f"from {least} to {most}"
        else:
            fits = least < value <= most and math.isfinite(value)
            words = f"above {least} and at most {most}"
        if not fits:
            words = words if math.isfinite(most) else "a finite number"
            what = shortened(repr(value))
            raise SuiteError(f"{key} of workload {case.workload} must be {words}, not {what}.")

    def check(self, case: Case) -> None:
        """Refuse a case that is a mistake in every format.

        Raises:
            UsageError: an option has no such value, or the shape is none that the workload has.
        """
        self.options(case)

    def quantity(self, case: Case) -> Quantity | None:
        """The quantity of a case's score; None for workloads without one."""
        del case
        return self.SCORE

    def seeds(self, case: Case) -> int | None:
        """How many seeds a scored case runs; None for timed workloads."""
        return int(self.options(case).get("seeds", 1)) if self.SCORE else None

    def density(self, case: Case, described: Format) -> float:
        """The part of dense's parameters that a case keeps: that of its format, if no less."""
        del case
        return described.density()

    @abstractmethod
    def cost(self, case: Case, described: Format) -> Cost | None:
        """The exact cost of one step, where it has one.

        Raises:
            UnreachableError: a layer of the case cannot have the density that it asks for.
        """

    def unsupported(self, case: Case, described: Format, device: Device) -> str | None:
        """Why the case cannot run there, in words; None where it can."""
        del case, described, device
        return None

    @abstractmethod
    def prepare(self, case: Case, described: Format, device: Device, seed: int) -> Subject:
        """Make the subject of one case on the device; the same seed makes the same data."""


def layer_format(case: Case, out_features: int, in_features: int) -> Format:
    """The format of one layer of a model, resolved from the knobs as they were written.

    Raises:
        UnreachableError: a layer of that size cannot have the density, or does not fit what the
            case leaves to the format.
    """
    kind = plugins.load("formats", case.format, Format)
    try:
        return fitted(kind, out_features, in_features, ITEM_BYTES[case.dtype], case.knobs)
    except UnreachableError as error:
        raise UnreachableError(f"In a layer of {out_features}×{in_features}, {error}") from error


def fitted(
    kind: type[Format],
    out_features: int,
    in_features: int,
    item_bytes: int,
    knobs: Mapping[str, Knob],
) -> Format:
    """The format of one layer; a default that does not fit its size is no mistake of the caller's.

    Raises:
        UnreachableError: the share cannot be reached, or the size does not fit the knobs that the
            caller leaves to the format.
        KnobError: a knob that was given has a value that it cannot take.
    """
    try:
        return kind.from_knobs(out_features, in_features, item_bytes=item_bytes, **knobs)
    except UnreachableError:
        raise
    except KnobError as error:
        if _is_of_defaults(kind, (out_features, in_features), knobs):
            size = f"{out_features}×{in_features}"
            raise UnreachableError(
                f"{kind.name()} does not fit {size} by its defaults: {error}"
            ) from error
        raise


def _is_of_defaults(kind: type[Format], sides: tuple[int, int], knobs: Mapping[str, Knob]) -> bool:
    """Whether a size is at odds with what the knobs leave to the format, and not with the knobs."""
    defaults, decided = kind.knob_defaults(), kind.decided_knobs()
    altered = {key: value for key, value in knobs.items() if key in defaults}
    whole: dict[str, Knob] = {"density": 1.0} if decided else {}
    if _takes(kind, sides, {**whole, **altered}):
        return False  # what a share decides in its place was given, and is too large
    if all(type(value) is not int for value in altered.values()):
        return _takes(kind, (_EASY, _EASY), knobs)  # no name and no switch is at odds with a size
    ones = {key: 1 for key, value in defaults.items() if type(value) is int and key not in knobs}
    return bool(ones) and _takes(kind, sides, {**ones, **knobs})


def _takes(kind: type[Format], sides: tuple[int, int], knobs: Mapping[str, Knob]) -> bool:
    """Whether a layer of that size has these knobs, be it at another share."""
    try:
        kind.from_knobs(sides[0], sides[1], **dict[str, Any](knobs))
    except UnreachableError:
        return True
    except UsageError:
        return False
    return True


def layers_cost(case: Case, shapes: Iterable[tuple[int, int]]) -> Cost:
    """Parameters and bytes at rest of all layers of a model together, by their shapes.

    Raises:
        UnreachableError: one of them cannot have the density.
    """
    shapes, item = list(shapes), ITEM_BYTES[case.dtype]
    # A model has many layers of few shapes, and a density is searched for.
    costs = {
        shape: layer_format(case, *shape).cost(0, item, FORWARD) for shape in dict.fromkeys(shapes)
    }
    return added([costs[shape] for shape in shapes])


def added(each: Sequence[Cost]) -> Cost:
    """The costs of several layers together."""
    parts = ("parameters", "stored_bytes", "flops", "dense_flops", "compulsory_bytes",
             "intermediate_bytes")  # fmt: skip
    needed = None if all(cost.needed_flops is None for cost in each) else 0
    if needed is not None:
        needed = sum(cost.useful_flops for cost in each)
    return Cost(
        **{part: sum(getattr(cost, part) for cost in each) for part in parts}, needed_flops=needed
    )


NONE, ACTIVATIONS, GRAM = "none", "activations", "gram"
WEIGHTINGS = (NONE, ACTIVATIONS, GRAM)
"""The statistic of a layer's inputs that a projection uses: none, the size of each, or XᵀX."""
BEST = "best"
"""``gram`` for formats of a given rank, which have a closed form, else ``activations``."""


def project_seeing(
    described: Format, weight: Tensor, activations: Tensor | Seen | None, weighting: str
) -> Linear:
    """Project a weight, using the statistic ``weighting`` of the inputs, where these are given."""
    if activations is None or weighting == NONE:
        return described.project(weight)
    if weighting == ACTIVATIONS or (weighting == BEST and described.OUTPUTS != "rank"):
        rows = activations.rows if isinstance(activations, Seen) else activations
        return described.project(weight, activations=rows.to(weight.dtype))
    return described.project_outputs(weight, activations)


def blind(described: Format, weighting: str) -> str | None:
    """Why a format cannot be projected with that weighting, in words; None where it can."""
    if weighting == GRAM and not described.OUTPUTS:
        return f"{described.name()} cannot be projected by outputs (weighting = {GRAM!r})."
    return None


def import_for_backward() -> None:
    """Import what torch imports in the first backward pass of a process: no case pays for it."""
    import_module("torch.fx.experimental.symbolic_shapes")


def generator(device: Device, seed: int, stream: int) -> torch.Generator:
    """A generator on the device for one stream of data of one seed."""
    return torch.Generator(device.torch_device).manual_seed((seed * 1_000_003 + stream) % 2**63)
