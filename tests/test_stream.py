"""The meters and ``devices/cuda.py`` on a simulated CUDA runtime, whatever its host does.

A kernel is scripted: seconds on the device, seconds that the host needs to launch it. What is
reported must be the device's part, within 1 %, or there must be no number and a reason.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _stream import (
    DEPTH,
    GRAPH_SECONDS,
    HERTZ,
    IDLE_WATTS,
    WATTS,
    Cache,
    Stream,
    hiccups,
    jitter,
    opened,
)
from _synthetic import linear_case

from hwbench import plugins
from hwbench.devices.cuda import Cuda
from hwbench.formats._base import Format
from hwbench.meters import _ceilings, _health, energy, latency
from hwbench.meters._sampling import MOST_QUEUED, Calibration, calibrate, take
from hwbench.records import Direction, Measurement, Plan
from hwbench.workloads._base import Subject
from hwbench.workloads.linear import LinearLayer

PLAN = Plan(budget_seconds=0.1, relative_width=0.02)
US = 1e-6

# Seconds of a call on the device and of its launch: from plain products to steps of many kernels.
CASES = {
    "dense, one token": (6 * US, 8 * US),
    "btt step, one token": (42 * US, 160 * US),
    "blast step, 16 tokens": (70 * US, 200 * US),
    "triton forward, one token": (5 * US, 60 * US),
    "2:4 forward in a custom operator": (12 * US, 70 * US),
    "dense, 4096 tokens": (370 * US, 8 * US),
    "a long step": (8e-3, 400 * US),
}


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> tuple[Cuda, Stream]:
    return opened(monkeypatch)


def measured(
    runtime: tuple[Cuda, Stream],
    monkeypatch: pytest.MonkeyPatch,
    subjects: dict[str, Subject],
    slowness: Callable[[], float] = lambda: 1.0,
) -> tuple[dict[str, latency.Member], dict[str, dict[str, Measurement]]]:
    """Time subjects in rounds anchored on the last; the host is slow once all are calibrated."""
    device, stream = runtime
    rounds = latency._rounds

    def later(*arguments: Any) -> None:
        stream.slowness = slowness
        rounds(*arguments)

    monkeypatch.setattr(latency, "_rounds", later)
    *members, anchor = [latency.Member(id=name, subject=each) for name, each in subjects.items()]
    measurements = latency.measure(members, anchor, device, PLAN, random.Random(0))
    everyone = {member.id: member for member in [*members, anchor]}
    return everyone, {
        case: {each.quantity: each for each in read} for case, read in measurements.items()
    }


def long(stream: Stream) -> Subject:
    """An anchor that no host is too slow for."""
    return stream.kernels(1e-3, 10 * US)


# --- times -------------------------------------------------------------------------------------

HOSTS = {
    "as calibrated": lambda: 1.0,
    "10 % slower": lambda: 1.1,
    "20 % slower": lambda: 1.2,
    "50 % slower": lambda: 1.5,
    "three times as slow": lambda: 3.0,
    "uneven": jitter(1, 0.8),
    "with hiccups": hiccups(2, 2000, 300.0),
}


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", CASES)
def test_a_time_is_the_devices_whatever_the_host_does(
    runtime: tuple[Cuda, Stream], monkeypatch: pytest.MonkeyPatch, name: str, host: str
) -> None:
    _, stream = runtime
    seconds, launch = CASES[name]
    subjects = {"case": stream.kernels(seconds, launch), "dense": long(stream)}
    members, values = measured(runtime, monkeypatch, subjects, HOSTS[host])
    for case, true in (("case", seconds), ("dense", 1e-3)):
        assert "starved" not in members[case].flags
        time = values[case]["time_seconds"]
        assert time.kept() == pytest.approx([true] * len(time.kept()), rel=0.01)
    ratio = values["case"]["relative_time"].kept()
    assert ratio == pytest.approx([seconds / 1e-3] * len(ratio), rel=0.02)
    assert values["case"]["host_seconds"].values == [pytest.approx(launch, rel=0.01)]
    assert ("launch_bound" in members["case"].flags) is (launch >= 0.9 * seconds)


def test_a_case_whose_host_falls_behind_has_no_time_and_a_reason(
    runtime: tuple[Cuda, Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, stream = runtime
    subjects = {"case": stream.kernels(5 * US, 60 * US), "dense": long(stream)}
    members, values = measured(runtime, monkeypatch, subjects, lambda: 6.0)
    assert members["case"].flags == {"launch_bound", "starved"}
    for quantity in ("time_seconds", "relative_time"):
        empty = values["case"][quantity]
        assert empty.kept() == []
        assert empty.samples is None
        assert "The host fell behind the device in" in (empty.note or "")
    graph = values["case"]["graph_seconds"]  # the way to a number that is left
    assert graph.values == pytest.approx([5 * US] * len(graph.values), rel=0.01)
    assert members["dense"].flags == set()
    assert values["dense"]["time_seconds"].values


def test_a_starved_dense_leaves_the_others_their_times_but_no_relative_time(
    runtime: tuple[Cuda, Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, stream = runtime
    subjects = {"case": long(stream), "dense": stream.kernels(5 * US, 60 * US)}
    members, values = measured(runtime, monkeypatch, subjects, lambda: 6.0)
    assert "starved" in members["dense"].flags
    assert "relative_time" not in values["dense"]
    time = values["case"]["time_seconds"]
    assert time.values == pytest.approx([1e-3] * len(time.values), rel=0.01)
    assert values["case"]["relative_time"].values == []
    assert values["case"]["relative_time"].note == latency.NO_ANCHOR


def test_a_starved_case_is_replayed_even_where_it_was_not_launch_bound(
    runtime: tuple[Cuda, Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, stream = runtime
    subjects = {"case": stream.kernels(100 * US, 50 * US), "dense": long(stream)}
    members, values = measured(runtime, monkeypatch, subjects, lambda: 9.0)
    assert members["case"].flags == {"starved"}
    assert values["case"]["graph_seconds"].values


def test_a_sample_that_fell_behind_is_taken_again_with_the_queue_filled_twice_as_long(
    runtime: tuple[Cuda, Stream],
) -> None:
    device, stream = runtime
    subject = stream.kernels(5 * US, 60 * US)
    device.prefill(1e-3)  # finds the rate of the spin
    spun = stream.spun
    assert take(device, subject, 100, enqueue_seconds=60 * US).ahead
    once = stream.spun - spun
    assert once == pytest.approx(2 * 100 * 60 * US, rel=0.01)
    stream.slowness = lambda: 3.0
    assert not take(device, subject, 100, enqueue_seconds=20 * US).ahead
    assert take(device, subject, 100, enqueue_seconds=60 * US).ahead
    assert stream.spun - spun - once == pytest.approx((40 + 80 + 120 + 240) * 100 * US, rel=0.01)


def test_single_samples_that_fell_behind_are_left_out_of_their_block(
    runtime: tuple[Cuda, Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    device, stream = runtime
    member = latency.Member(
        id="case", subject=stream.kernels(5 * US, 60 * US), calls=100, samples=20,
        enqueue_seconds=60 * US,
    )  # fmt: skip
    number = iter(range(1000))
    original = device.run

    def run(step: Any, states: list[Any]) -> None:
        slowness = 9.0 if next(number) in (3, 4) else 1.0
        stream.slowness = lambda: slowness
        original(step, states)

    monkeypatch.setattr(device, "run", run)
    latency._block(member, device, 0)
    assert member.ahead.count(False) == 1
    assert member.blocks == [pytest.approx([5 * US] * 19, rel=0.01)]
    assert member.disturbed == [False]
    stream.slowness, member.ahead = (lambda: 9.0), []
    monkeypatch.setattr(device, "run", original)
    latency._block(member, device, 1)
    assert len(member.blocks[1]) == 20
    assert member.disturbed == [False, True]
    assert member.causes == [latency.FELL_BEHIND]


@pytest.mark.parametrize(
    ("kernels", "starved"), [(1, False), (60, False), (250, False), (2000, True)]
)
def test_a_sample_has_no_more_kernels_than_the_queue_holds(
    runtime: tuple[Cuda, Stream], monkeypatch: pytest.MonkeyPatch, kernels: int, starved: bool
) -> None:
    """A full queue blocks the host, and then no spin helps: fewer calls do."""
    _, stream = runtime
    seconds = max(42 * US, 0.2 * US * kernels)
    subjects = {"case": stream.kernels(seconds, 4 * US * kernels, kernels), "dense": long(stream)}
    members, values = measured(runtime, monkeypatch, subjects)
    time = values["case"]["time_seconds"]
    assert ("starved" in members["case"].flags) is starved
    assert bool(time.kept()) is not starved
    assert time.kept() == pytest.approx([seconds] * len(time.kept()), rel=0.01)
    assert starved or members["case"].calls * kernels < DEPTH


def test_a_host_that_becomes_slow_during_warm_up_is_timed_again(
    runtime: tuple[Cuda, Stream],
) -> None:
    device, stream = runtime
    subject = stream.kernels(5 * US, 60 * US)
    device.prefill(1e-3)
    begun = stream.now
    stream.slowness = lambda: 9.0 if stream.now - begun > 1e-3 else 1.0
    calibration = calibrate(device, subject, 0.2)
    assert calibration.enqueue_seconds == pytest.approx(9 * 60 * US, rel=0.01)
    assert calibration.estimate_seconds == pytest.approx(5 * US, rel=0.01)
    assert calibration.calls in (100, 101)


def test_a_host_that_stays_too_slow_is_no_reason_for_samples_that_the_timer_does_not_resolve(
    runtime: tuple[Cuda, Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    device, stream = runtime
    subject = stream.kernels(5 * US, 60 * US)
    monkeypatch.setattr(device, "ahead", lambda start: False)
    calibration = calibrate(device, subject, 0.2)
    assert calibration.calls * 5 * US >= 4e-4


@pytest.mark.parametrize("name", CASES)
def test_warm_up_settles_on_what_the_device_does(runtime: tuple[Cuda, Stream], name: str) -> None:
    """Windows of calls must be as far ahead as samples, or they time an uneven host."""
    device, stream = runtime
    seconds, launch = CASES[name]
    slow = iter([1.0, 1.9, 1.3, 1.6] * 10**6)  # changes with every window, not within one
    run, factor = device.run, [1.0]

    def changing(step: Any, states: list[Any]) -> None:
        factor[0] = next(slow)
        run(step, states)

    device.run = changing  # type: ignore[method-assign]
    stream.slowness = lambda: factor[0]
    calibration: Calibration = calibrate(device, stream.kernels(seconds, launch), 0.2)
    assert calibration.steady
    assert calibration.estimate_seconds == pytest.approx(seconds, rel=0.01)


# --- graphs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, (k, h) in CASES.items() if h >= 0.9 * k])
def test_a_call_in_a_graph_does_not_pay_for_the_launch_of_the_graph(
    runtime: tuple[Cuda, Stream], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    _, stream = runtime
    seconds, launch = CASES[name]
    subjects = {"case": stream.kernels(seconds, launch), "dense": long(stream)}
    _, values = measured(runtime, monkeypatch, subjects, lambda: 1.2)
    graph = values["case"]["graph_seconds"]
    assert graph.note is None
    assert graph.values == pytest.approx([seconds] * len(graph.values), rel=0.01)
    assert (graph.calls or 0) > 1


def test_a_graph_that_the_host_cannot_launch_in_time_has_a_reason(
    runtime: tuple[Cuda, Stream],
) -> None:
    device, stream = runtime
    member = latency.Member(id="case", subject=stream.kernels(5 * US, 60 * US), calls=3200)
    stream.slowness = iter([1.0] * 300 + [99.0] * 10**7).__next__
    actual = latency.graph_seconds(member, device)
    assert actual.values == []
    assert actual.note == "The host fell behind the device even when it launched graphs."


@pytest.mark.parametrize("direction", list(Direction))
def test_a_graph_of_a_backward_pass_alone_is_not_tried(
    runtime: tuple[Cuda, Stream], monkeypatch: pytest.MonkeyPatch, direction: Direction
) -> None:
    device, stream = runtime
    case = linear_case("dense", None, shape=(8, 8), tokens=2, direction=direction)
    dense = plugins.load("formats", "dense", Format).from_knobs(8, 8)
    subject = LinearLayer().prepare(case, dense, device, 0)
    step, tried = subject.step, []

    def launching(state: Any) -> Any:
        stream.launch(5 * US, 60 * US)
        return step(state)

    def capture(call: Callable[[], object]) -> Callable[[], None] | str:
        tried.append(call)
        return Cuda.capture(device, call)

    subject.step = launching
    monkeypatch.setattr(device, "capture", capture)
    actual = latency.graph_seconds(latency.Member(id="case", subject=subject, calls=4), device)
    alone = direction not in (Direction.FORWARD, Direction.STEP)
    assert bool(tried) is not alone
    if alone:
        assert str(actual.note).startswith("A backward pass alone is not replayed as a graph")
        assert actual.values == []
    else:
        assert actual.note is None
        assert actual.values


# --- energy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [10 * US, 50 * US, 400 * US])
@pytest.mark.parametrize("warm", [False, True])
def test_energy_is_that_of_the_calls_alone(
    runtime: tuple[Cuda, Stream], monkeypatch: pytest.MonkeyPatch, seconds: float, warm: bool
) -> None:
    device, stream = runtime
    monkeypatch.setattr(energy, "WINDOW_SECONDS", 0.3)
    if warm:  # a card that has just woken up takes its time to reach its clock
        stream.hertz = lambda at: HERTZ if at > 0.7 else HERTZ / 1.25
    (readings,) = energy.Energy().read(stream.kernels(seconds, 4 * US), device)
    assert readings.values == [pytest.approx(WATTS * seconds, rel=0.01)]
    assert readings.note is None


def test_energy_of_a_call_that_the_host_cannot_feed_says_that_idle_power_is_in_it(
    runtime: tuple[Cuda, Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    device, stream = runtime
    monkeypatch.setattr(energy, "WINDOW_SECONDS", 0.3)
    (readings,) = energy.Energy().read(stream.kernels(12 * US, 70 * US), device)
    assert readings.values == [pytest.approx(WATTS * 12 * US + IDLE_WATTS * 58 * US, rel=0.01)]
    assert readings.note == energy.NOT_FED.format(host="70.0 µs", device="12.0 µs")


def test_energy_of_a_call_that_is_prepared_says_that_this_is_in_it(
    runtime: tuple[Cuda, Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    device, stream = runtime
    monkeypatch.setattr(energy, "WINDOW_SECONDS", 0.3)
    subject = stream.kernels(100 * US, 4 * US)
    subject.before = lambda: stream.launch(50 * US, 4 * US)
    (readings,) = energy.Energy().read(subject, device)
    assert readings.values == [pytest.approx(WATTS * 150 * US, rel=0.01)]
    assert readings.note == energy.PREPARED


# --- disturbance -------------------------------------------------------------------------------


def test_a_card_at_its_power_cap_is_not_disturbed_and_one_whose_clock_falls_is(
    runtime: tuple[Cuda, Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, stream = runtime
    stream.hertz = lambda at: HERTZ if int(at / 7e-3) % 2 else 0.8 * HERTZ
    subjects = {"case": stream.kernels(370 * US, 8 * US), "dense": long(stream)}
    members, _ = measured(runtime, monkeypatch, subjects)
    assert any("the SM clock went" in cause for cause in members["dense"].causes)
    stream.reasons = lambda at: 0x4
    members, _ = measured(runtime, monkeypatch, subjects)
    assert members["dense"].causes == members["case"].causes == []


# --- caches ------------------------------------------------------------------------------------


def test_eviction_leaves_nothing_behind_that_is_written_back_during_the_call(
    runtime: tuple[Cuda, Stream],
) -> None:
    device, _ = runtime
    size = device._properties.L2_cache_size
    layer = torch.zeros(size // 4)
    for number in (1, 2):
        with Cache(size) as cache:
            layer.add_(1)
            assert (cache.held is layer, cache.dirty_bytes) == (True, size)
            device.evict_caches()
            assert (cache.held is layer, cache.dirty_bytes) == (False, 0)
        assert device._evict is not None
        assert bool((device._evict == number).all())  # all of it was written


# --- ceilings and health -----------------------------------------------------------------------


@pytest.mark.parametrize("slowness", [1.0, 1.5, 3.0])
def test_the_launch_ceiling_is_the_devices_and_fits_in_its_queue(
    runtime: tuple[Cuda, Stream], monkeypatch: pytest.MonkeyPatch, slowness: float
) -> None:
    device, stream = runtime
    queued: list[int] = []
    run = device.run
    monkeypatch.setattr(
        device, "run", lambda step, states: (queued.append(len(states)), run(step, states))
    )
    subject = stream.kernels(1.5 * US, 5 * US)
    monkeypatch.setattr(_ceilings, "subject_of", lambda *_: subject)
    enqueue = _ceilings.enqueue_seconds

    def calibrated(*arguments: Any) -> float:
        stream.slowness = lambda: 1.0
        actual = enqueue(*arguments)
        stream.slowness = lambda: slowness
        return actual

    monkeypatch.setattr(_ceilings, "enqueue_seconds", calibrated)
    actual = _ceilings._launch(device)
    assert max(queued) <= MOST_QUEUED
    assert actual.seconds == pytest.approx(1.5 * US, rel=0.01)
    assert actual.host_seconds == pytest.approx(5 * US, rel=0.01)
    assert actual.graph_seconds == pytest.approx(1.5 * US + GRAPH_SECONDS, rel=0.01)
    assert actual.graph_kernel_seconds == pytest.approx(1.5 * US, rel=0.02)


def test_a_visit_in_which_the_host_fell_behind_counts_as_disturbed(
    runtime: tuple[Cuda, Stream],
) -> None:
    device, stream = runtime
    sweep = _ceilings._Sweep({0: stream.kernels(5 * US, 60 * US)}, 0.01)
    assert _ceilings._pass_through(device, [sweep]) == 0
    stream.slowness = lambda: 20.0
    assert _ceilings._pass_through(device, [sweep]) == 1


def test_the_clock_of_a_ceiling_is_read_under_load(runtime: tuple[Cuda, Stream]) -> None:
    """The cap has lowered the clock by then; the first products still ran at the highest one."""
    device, stream = runtime
    begun = stream.now
    stream.hertz = lambda at: HERTZ if at - begun < 10e-3 else 0.7 * HERTZ
    clock = _ceilings._clock_hertz(device, stream.kernels(1.5e-3, 8 * US))
    assert clock == pytest.approx(0.7 * HERTZ)
    assert stream.now >= stream.free_at  # nothing is left in the queue


def test_the_spread_of_equal_work_is_not_that_of_the_host(
    runtime: tuple[Cuda, Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    device, stream = runtime
    monkeypatch.setattr(_health, "_two_four", lambda device: {})
    monkeypatch.setattr(_health, "subject_of", lambda *_: stream.kernels(7 * US, 10 * US))
    monkeypatch.setattr(_health, "_timer_seconds", lambda: 0.0)
    stream.slowness = jitter(3, 4.0)
    assert _health.examine(device).spread < 0.01


def test_the_smallest_call_is_a_kernel_and_no_transfer(runtime: tuple[Cuda, Stream]) -> None:
    device, _ = runtime
    subject = _ceilings.subject_of(device, "launch", "bfloat16", (1, 1))
    with Cache(1) as cache:
        subject.step(None)
    assert cache.names == ["add_"]
