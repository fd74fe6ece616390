"""A machine whose time moves only when told: for the tests of hwbench, never for results.

It is the device ``fake`` of the package hwbench-simulated, which development environments have.

What disturbs a real machine is scripted, by the constructor or, for whole runs, as JSON in the
environment variable ``HWBENCH_FAKE``, for instance
``HWBENCH_FAKE='{"seed": 1, "noise": 0.02, "slow": {"low_rank": 1.075}}'``.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any
from weakref import WeakKeyDictionary, WeakSet

import msgspec

from hwbench.devices._base import Device, Mark, Probe, Step
from hwbench.errors import UsageError
from hwbench.records import Cost

FAKE_VARIABLE = "HWBENCH_FAKE"
"""The environment variable that scripts the effects of a whole run."""

FLOPS_PER_SECOND = 1e11
BYTES_PER_SECOND = 2e10
LAUNCH_SECONDS = 5e-6
DEFAULT_SECONDS = 1e-5  # of a step that tells no cost
FREE_BYTES = 4_000_000_000
PEAK_BYTES = 1_000_000

_TICKS = 10**12  # the clock counts picoseconds, so that it moves exactly as told

_NotNegative = Annotated[float, msgspec.Meta(ge=0)]
_Positive = Annotated[float, msgspec.Meta(gt=0)]
_Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Correlation = Annotated[float, msgspec.Meta(gt=-1, lt=1)]


class _Scripted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of what may stand in the script: unknown keys are mistakes."""


class Spikes(_Scripted, frozen=True):
    """A timed run lasts ``factor`` times as long with this probability."""

    probability: _Probability
    factor: _Positive


class TwoModes(_Scripted, frozen=True):
    """The machine is in one of two modes; in the second everything lasts ``factor`` as long.

    A process begins in either with the same probability, and may switch before each timed run.
    """

    factor: _Positive
    switch_probability: _Probability


class Throttle(_Scripted, frozen=True):
    """From this simulated second on everything lasts ``factor`` times as long."""

    start_seconds: _NotNegative
    factor: _Positive


class Effects(_Scripted, frozen=True):
    """What happens on the machine; every effect is a factor on the duration, and 1 by default.

    ``noise``, ``spikes`` and ``two_modes`` are drawn once a timed run, ``replicate_noise`` once a
    process, ``case_noise`` once a case in a process; the sd is that of the logarithm. ``ar1`` is
    the correlation of the noise of consecutive timed runs, ``drift`` the relative change a
    simulated second (compounding), ``slow`` a factor for every case whose id contains the key.
    Everything follows from ``seed`` and ``replicate`` (this process's number unless given).
    """

    seed: int = 0
    replicate: int | str | None = None
    noise: _NotNegative = 0.0
    ar1: _Correlation = 0.0
    replicate_noise: _NotNegative = 0.0
    case_noise: _NotNegative = 0.0
    drift: float = 0.0
    spikes: Spikes | None = None
    two_modes: TwoModes | None = None
    throttle: Throttle | None = None
    slow: dict[str, _Positive] = {}
    disturb_probability: _Probability = 0.0


def _effects(script: Mapping[str, Any] | None) -> Effects:
    """The effects as given, or as the environment scripts them.

    Raises:
        UsageError: the script is no JSON, has an unknown key or a value out of range.
    """
    text, where = os.environ.get(FAKE_VARIABLE), FAKE_VARIABLE
    try:
        if script is not None:
            where = "The script of the fake device"
            return msgspec.convert(dict(script), Effects)
        return msgspec.json.decode(text, type=Effects) if text else Effects()
    except msgspec.MsgspecError as error:
        raise UsageError(f"{where} cannot be understood: {error}.") from None


class _Told(msgspec.Struct):
    """What the device was told of a step."""

    case: str = ""
    cost: Cost | None = None
    added_seconds: float = 0.0


class Fake(Device):
    """A machine of 1e11 FLOP/s and 2e10 bytes/s that only advances its own clock.

    A step is called for real when it first runs, so that its results and errors are real; after
    that its runs only take simulated time. The duration comes from the cost that ``describe`` told.
    """

    kind = "fake"
    contract = "wall"
    matmul_sides = (64,)
    matmul_sweep = (32, 64)
    copy_bytes = 4_000_000
    resolution_seconds = 1e-9

    def __init__(self, index: int = 0, *, effects: Mapping[str, Any] | None = None) -> None:
        super().__init__(index)
        self.effects = _effects(effects)
        self._now = 0
        self._called: WeakSet[Step] = WeakSet()
        self._told: WeakKeyDictionary[Step, _Told] = WeakKeyDictionary()
        self._replicate_factor = math.exp(
            self.effects.replicate_noise * self._random("replicate").gauss(0.0, 1.0)
        )
        self._noise = self._random("noise")
        self._spikes = self._random("spikes")
        self._modes = self._random("modes")
        self._disturbances = self._random("disturbances")
        self._deviate = self._noise.gauss(0.0, 1.0)  # of the last timed run, for ar1
        self._second_mode = self._modes.random() < 0.5

    @classmethod
    def count(cls) -> int:
        return 2  # equal ones, which a list of devices may share a run on

    @property
    def now_seconds(self) -> float:
        """The simulated time since this device was opened."""
        return self._now / _TICKS

    def advance(self, seconds: float) -> None:
        """Let simulated time pass."""
        self._now += round(seconds * _TICKS)

    def mark(self) -> Mark:
        return self._now

    def seconds(self, start: Mark, end: Mark) -> float:
        return float((end - start) / _TICKS)

    def describe(
        self,
        step: Step,
        *,
        case: str | None = None,
        cost: Cost | None = None,
        added_seconds: float | None = None,
    ) -> None:
        told = self._told.setdefault(step, _Told())
        told.case = told.case if case is None else case
        told.cost = told.cost if cost is None else cost
        told.added_seconds = told.added_seconds if added_seconds is None else added_seconds

    def step_seconds(self, step: Step) -> float:
        """Seconds of one undisturbed call: a roofline of its cost and a launch, or the default."""
        told = self._told.get(step, _Told())
        return duration_seconds(told.cost, told.added_seconds)

    def run(self, step: Step, states: Sequence[Any]) -> None:
        if not states:
            return
        if step not in self._called:
            step(states[0])
            self._called.add(step)
        self.advance(len(states) * self.step_seconds(step) * self._factor(step))

    def evict_caches(self) -> None:
        """Nothing to evict; takes no time."""

    def info(self) -> dict[str, Any]:
        return {
            "name": "simulated machine",
            "cores": 1,
            "memory_bytes": FREE_BYTES,
            "flops_per_second": FLOPS_PER_SECOND,
            "bytes_per_second": BYTES_PER_SECOND,
        }

    def probe(self) -> Probe:
        return {"simulated_seconds": self.now_seconds}

    def disturbance(self, before: Probe, after: Probe, seconds: float) -> list[str]:
        happens = self._disturbances.random() < self.effects.disturb_probability
        return ["a scripted disturbance"] if happens else []

    def state(self) -> dict[str, Any]:
        return {
            "simulated_seconds": self.now_seconds,
            "effects": msgspec.to_builtins(self.effects),
        }

    def free_bytes(self) -> int:
        return FREE_BYTES

    def peak_bytes(self, call: Callable[[], object]) -> int:
        call()
        return PEAK_BYTES

    def _random(self, stream: str) -> random.Random:
        """One stream of random numbers an effect, so that scripting one leaves the others alone."""
        replicate = self.effects.replicate
        process = os.getpid() if replicate is None else replicate
        return random.Random(f"{self.effects.seed}/{process}/{stream}")

    def _factor(self, step: Step) -> float:
        """What all effects together make of the next timed run."""
        effects, case = self.effects, self._told.get(step, _Told()).case
        fresh = math.sqrt(1.0 - effects.ar1**2) * self._noise.gauss(0.0, 1.0)
        self._deviate = effects.ar1 * self._deviate + fresh
        factor = self._replicate_factor * math.exp(effects.noise * self._deviate)
        if effects.case_noise:
            factor *= math.exp(effects.case_noise * self._random(f"case {case}").gauss(0.0, 1.0))
        for part, slower in effects.slow.items():
            factor *= slower if part in case else 1.0
        return factor * self._scheduled() * math.exp(effects.drift * self.now_seconds)

    def _scheduled(self) -> float:
        """The factor of what comes and goes: spikes, modes, throttling."""
        effects, factor = self.effects, 1.0
        if effects.spikes and self._spikes.random() < effects.spikes.probability:
            factor *= effects.spikes.factor
        if effects.two_modes:
            if self._modes.random() < effects.two_modes.switch_probability:
                self._second_mode = not self._second_mode
            factor *= effects.two_modes.factor if self._second_mode else 1.0
        if effects.throttle and self.now_seconds >= effects.throttle.start_seconds:
            factor *= effects.throttle.factor
        return factor


def duration_seconds(cost: Cost | None, added_seconds: float = 0.0) -> float:
    """Seconds of one undisturbed call: a roofline of its cost and a launch, or the default."""
    if cost is None:
        return DEFAULT_SECONDS + added_seconds
    moved = cost.compulsory_bytes + cost.intermediate_bytes
    bound = max(cost.flops / FLOPS_PER_SECOND, moved / BYTES_PER_SECOND)
    return bound + LAUNCH_SECONDS + added_seconds
