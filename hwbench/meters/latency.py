"""Seconds per call, in shuffled rounds anchored on dense; the one sampling loop of hwbench.

A *sample* is one timed value: calls batched until the timer resolves them. A *block* is
consecutive samples of one case. A *round* visits every case of the chunk once, in a new random
order, and begins and ends with the anchor (dense); a block's *relative time* is its time over the
geometric mean of the anchor's blocks around it. A case stops when the order-statistic interval of
the median over its blocks is narrow enough, or when its budget or the deadline is spent.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import torch

from hwbench.analysis.stats import median_interval
from hwbench.devices._base import Device
from hwbench.errors import first_line
from hwbench.meters._base import Meter, left_out
from hwbench.meters._compiling import call, compiled
from hwbench.meters._sampling import Taken, calibrate, enqueue_seconds, sample, starved, take
from hwbench.quantities import FIRST_CALL, GRAPH, HOST, MINOR_FAULTS, RELATIVE, TIME, Quantity
from hwbench.records import Measurement, Plan, Regime
from hwbench.workloads._base import Subject

MINIMUM_BLOCKS = 6  # the fewest from which the median has an order-statistic interval of 95 %
BUDGET_BLOCKS = 3  # the fewest that a spent budget may leave
REPEATED = 0.3  # share of the blocks that may be repeats of disturbed ones
GRAPH_CALLS = 32  # the most calls of one graph: they share the cost of its launch
FELL_BEHIND = "the host fell behind the device"
NO_TIME = (
    "The host fell behind the device in {late} of {all} samples, so that the time between their "
    "events is partly the host's: there is no time. Read graph_seconds and host_seconds, or give "
    "the host a quieter core."
)
"""Why a starved case has no time; also that of a call of more kernels than a queue holds."""
NO_ANCHOR = (
    "The host fell behind the device in the samples of dense: there is nothing to divide by."
)

NO_REPLAY = (
    "A backward pass alone is not replayed as a graph: each call uses up a forward pass that is "
    "made before it."
)
"""Why a call that an untimed part makes a state for has no time in a graph."""


class Latency(Meter):
    """One call alone, before any round: the first sign that a case runs, and how long it takes.

    The times that count are those of ``measure``, taken in rounds.
    """

    QUANTITIES = (FIRST_CALL, TIME, RELATIVE, GRAPH, HOST, MINOR_FAULTS)
    ORDER = 90
    NEEDED = True

    def read(self, subject: Subject, device: Device) -> list[Measurement]:
        if subject.score is not None:
            return []
        if subject.numerical_error is not None:
            # Where the layer is held to float64 that has called it once already, and where it is
            # not, nothing has: what it prepares in its first call is timed in neither.
            call(subject)
        value = sample(device, subject, 1)
        return [
            Measurement(
                quantity=FIRST_CALL.name, unit="s", values=[value], contract=device.contract
            )
        ]


@dataclass
class Member:
    """One case of a chunk while it is measured."""

    id: str
    subject: Subject
    regime: str = Regime.HOT
    calls: int = 1
    samples: int = 1
    enqueue_seconds: float = 0.0
    blocks: list[list[float]] = field(default_factory=list)
    ahead: list[bool] = field(default_factory=list)  # sample by sample of all blocks
    rounds: list[int] = field(default_factory=list)
    disturbed: list[bool] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)
    faults: list[float] = field(default_factory=list)  # minor page faults a call, block by block
    spent: float = 0.0
    warm_seconds: float = 0.0  # spent in calls that are not timed: warm-up, and after a change
    stopped: str | None = None
    flags: set[str] = field(default_factory=set)

    @property
    def cold(self) -> bool:
        """Whether caches are evicted directly before each timed call."""
        return self.regime == Regime.COLD

    @property
    def starved(self) -> bool:
        """Whether its times are not the device's: the host fell behind too often."""
        return starved(self.ahead)

    def times(self) -> list[float]:
        """One value a block: the median of its samples."""
        return [median(block) for block in self.blocks]


def measure(
    members: list[Member],
    anchor: Member | None,
    device: Device,
    plan: Plan,
    rng: random.Random,
    deadline: float = math.inf,
) -> dict[str, list[Measurement]]:
    """Time all members (and the anchor) in rounds; the measurements by member id.

    ``deadline`` is a host time (``time.monotonic``) after which every case stops that has a block.
    """
    everyone = members if anchor is None else [*members, anchor]
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for member in everyone:
            _warm_up(member, device, plan)
        _rounds(members, anchor, device, plan, rng, deadline)
    finally:
        if collecting:
            gc.enable()
    measurements = {member.id: _measurements(member, anchor, device) for member in everyone}
    for member in everyone:
        if member.flags & {"launch_bound", "starved"}:
            late = time.monotonic() >= deadline
            measurements[member.id].append(
                left_out(GRAPH) if late else graph_seconds(member, device)
            )
    return measurements


def _rounds(
    members: list[Member],
    anchor: Member | None,
    device: Device,
    plan: Plan,
    rng: random.Random,
    deadline: float,
) -> None:
    active = list(members)
    number = 0
    if anchor is not None:
        _block(anchor, device, number)
    while active or (anchor is not None and anchor.stopped is None):
        order = rng.sample(active, len(active))
        for member in order:
            _block(member, device, number)
        number += 1
        if anchor is not None:
            _block(anchor, device, number)
            anchor.stopped = _stop(anchor, plan, deadline)
        for member in active:
            member.stopped = _stop(member, plan, deadline)
        active = [member for member in active if member.stopped is None]
    if anchor is not None and anchor.stopped is None:
        anchor.stopped = "rounds"


def _block(member: Member, device: Device, number: int) -> None:
    """Take one block: the first calls after a change of case stay untimed when hot."""
    subject, begun = member.subject, time.monotonic()
    if not member.cold:
        sample(device, subject, max(1, min(member.calls, subject.max_calls, 3)))
    member.warm_seconds += time.monotonic() - begun
    graphs = compiled().graphs if subject.compiled else 0
    before = device.probe()
    samples = [
        take(
            device, subject, member.calls,
            cold=member.cold, enqueue_seconds=member.enqueue_seconds,
        )
        for _ in range(member.samples)
    ]  # fmt: skip
    sampled = sum(each.seconds for each in samples) * member.calls
    after = device.probe()
    causes = device.disturbance(before, after, sampled)
    if MINOR_FAULTS.name in after:
        faults = after[MINOR_FAULTS.name] - before[MINOR_FAULTS.name]
        member.faults.append(faults / (member.samples * member.calls))
    values = _counted(samples)
    if not values:
        values, causes = [each.seconds for each in samples], [*causes, FELL_BEHIND]
    member.blocks.append(values)
    member.ahead += [each.ahead for each in samples]
    member.rounds.append(number)
    member.disturbed.append(bool(causes))
    member.causes += causes
    if subject.compiled and compiled().graphs > graphs:
        member.flags.add("recompiled")
    member.spent += max(time.monotonic() - begun, sampled)  # a simulated clock runs ahead


def _counted(samples: list[Taken]) -> list[float]:
    """The samples that hold nothing of the host."""
    return [each.seconds for each in samples if each.ahead]


def _warm_up(member: Member, device: Device, plan: Plan) -> None:
    """Warm up, then fix calls a sample and samples a block."""
    begun = time.monotonic()
    if member.subject.compiled:
        call(member.subject)  # the case that was compiled after it has cleared the compiler
    calibration = calibrate(device, member.subject, plan.budget_seconds, cold=member.cold)
    member.warm_seconds += time.monotonic() - begun
    member.calls, member.samples = calibration.calls, calibration.samples
    member.enqueue_seconds = calibration.enqueue_seconds
    if device.asynchronous and calibration.launch_bound:
        member.flags.add("launch_bound")
    if not calibration.steady:
        member.flags.add("not_steady")


def _stop(member: Member, plan: Plan, deadline: float) -> str | None:
    """Why the case may stop now: precision, budget, deadline; None where it may not."""
    times = member.times()
    quiet = [value for value, bad in zip(times, member.disturbed, strict=True) if not bad]
    if len(quiet) < MINIMUM_BLOCKS and len(times) >= MINIMUM_BLOCKS / (1 - REPEATED):
        quiet = times  # repeated enough: keep them, flagged
    interval = median_interval(quiet)
    if interval and interval[1] - interval[0] <= plan.relative_width * median(quiet):
        return "precision"
    if len(member.blocks) >= BUDGET_BLOCKS and member.spent >= plan.budget_seconds:
        return "budget"
    return "deadline" if time.monotonic() >= deadline else None


def _measurements(member: Member, anchor: Member | None, device: Device) -> list[Measurement]:
    host = [_host_seconds(member)] if device.asynchronous else []
    host += [_minor_faults(member)] if member.faults else []
    if member.starved:
        member.flags.add("starved")
        return [*_without_times(member, anchor, device), *host]
    if sum(member.disturbed) > len(member.disturbed) / 2:
        member.flags.add("disturbed")
    shared = {
        "contract": device.contract,
        "calls": member.calls,
        "disturbed": member.disturbed if any(member.disturbed) else None,
        "rounds": member.rounds,
        "stopped": member.stopped,
    }
    measurements = [
        Measurement(
            quantity=TIME.name,
            unit="s",
            values=member.times(),
            samples=member.blocks,
            note="; ".join(dict.fromkeys(member.causes)) or None,
            **shared,  # type: ignore[arg-type]
        )
    ]
    if anchor is not None and anchor is not member:
        if anchor.starved:
            return [*measurements, _without(RELATIVE, NO_ANCHOR, device), *host]
        values = relative_times(member, anchor)
        measurements.append(
            Measurement(quantity=RELATIVE.name, unit="×", values=values, **shared)  # type: ignore[arg-type]
        )
    return [*measurements, *host]


def _without_times(member: Member, anchor: Member | None, device: Device) -> list[Measurement]:
    """The measurement in place of a starved case's times, with the reason."""
    reason = NO_TIME.format(late=member.ahead.count(False), all=len(member.ahead))
    quantities_ = [TIME, *([RELATIVE] if anchor is not None and anchor is not member else [])]
    return [_without(quantity, reason, device) for quantity in quantities_]


def _without(quantity: Quantity, reason: str, device: Device) -> Measurement:
    return Measurement(
        quantity=quantity.name, unit=quantity.unit, values=[], note=reason, contract=device.contract
    )


def _host_seconds(member: Member) -> Measurement:
    """The host's time to launch one call, as it was calibrated."""
    return Measurement(
        quantity=HOST.name, unit=HOST.unit, values=[member.enqueue_seconds], contract="wall"
    )


def _minor_faults(member: Member) -> Measurement:
    """Minor page faults a call in each block: pages that the system had to give anew."""
    return Measurement(
        quantity=MINOR_FAULTS.name, unit=MINOR_FAULTS.unit, values=member.faults,
        disturbed=member.disturbed if any(member.disturbed) else None, rounds=member.rounds,
    )  # fmt: skip


def relative_times(member: Member, anchor: Member) -> list[float]:
    """Each block over the geometric mean of the anchor's blocks before and after its round."""
    anchors = anchor.times()
    return [
        value / math.sqrt(anchors[number] * anchors[number + 1])
        for value, number in zip(member.times(), member.rounds, strict=True)
    ]


def graph_seconds(member: Member, device: Device) -> Measurement:
    """Seconds per call when calls are replayed as a graph; a note, no value, where they cannot.

    Whatever goes wrong here, the times that were taken before it stand.
    """
    try:
        replayed = _replayed(member, device)
    except Exception as error:  # noqa: BLE001 (the boundary: it becomes the note)
        replayed = f"Its graph failed: {first_line(error)}."
    if isinstance(replayed, str):
        return Measurement(quantity=GRAPH.name, unit="s", values=[], note=replayed)
    return replayed


def _replayed(member: Member, device: Device) -> Measurement | str:
    """The samples of a graph of several calls, or the reason why there is none.

    Launching a graph costs the device some microseconds, which are no part of a call: a user has
    many calls in one graph.
    """
    if member.subject.before is not None:
        return NO_REPLAY
    calls = max(1, min(member.calls, GRAPH_CALLS))
    replay = device.capture(_bound(member.subject, calls))
    if isinstance(replay, str):
        return replay
    replaying = Subject(step=lambda _: replay())
    replays = math.ceil(member.calls / calls)
    enqueue = enqueue_seconds(device, replaying)
    samples = [
        take(device, replaying, replays, enqueue_seconds=enqueue)
        for _ in range(max(3, member.samples))
    ]
    if starved(each.ahead for each in samples):
        return "The host fell behind the device even when it launched graphs."
    values = [seconds / calls for seconds in _counted(samples)]
    return Measurement(
        quantity=GRAPH.name, unit="s", values=values, contract="graph", calls=replays * calls
    )


def _bound(subject: Subject, calls: int) -> Callable[[], None]:
    states = subject.states(calls)

    def bound() -> None:
        with torch.set_grad_enabled(subject.grad):
            for state in states:
                subject.step(state)

    return bound
