"""The sampling loop on the simulated machine: times exact, rounds anchored, reasons recorded."""

from __future__ import annotations

import random
import time
from statistics import median

import pytest
import torch
from hwbench_simulated import Fake

from hwbench.meters import latency
from hwbench.meters._sampling import BLOCKS, calibrate, enqueue_seconds, sample
from hwbench.records import Cost, Plan
from hwbench.workloads._base import Subject

PLAN = Plan(budget_seconds=2.0, relative_width=0.02)  # a slow host must not spend it


def subject(device: Fake, flops: int) -> Subject:
    def step(_: object) -> None:
        return None

    cost = Cost(parameters=1, stored_bytes=4, flops=flops, dense_flops=flops, compulsory_bytes=0)
    device.describe(step, cost=cost)
    return Subject(step=step, cost=cost)


def members(device: Fake, count: int = 3) -> tuple[list[latency.Member], latency.Member]:
    actual = [
        latency.Member(id=f"m{i}", subject=subject(device, 10**8 * (i + 1))) for i in range(count)
    ]
    return actual, latency.Member(id="dense", subject=subject(device, 4 * 10**8))


def measured(device: Fake, plan: Plan = PLAN, seed: int = 0, **kwargs):
    members_, anchor = members(device)
    result = latency.measure(members_, anchor, device, plan, random.Random(seed), **kwargs)
    return members_, anchor, result


def test_durations_are_reported_exactly():
    device = Fake()
    values, anchor, result = measured(device)
    for member in [*values, anchor]:
        time = result[member.id][0]
        assert time.quantity == "time_seconds"
        assert time.contract == "wall"
        assert time.values == pytest.approx(
            [device.step_seconds(member.subject.step)] * len(time.values)
        )


def test_relative_time_is_taken_against_the_dense_blocks_around_each_block():
    values, anchor, _ = measured(
        Fake(effects={"replicate": 0, "seed": 1, "noise": 0.1, "drift": 0.5}),
        Plan(budget_seconds=0.2),
    )
    anchors = anchor.times()
    assert (
        len(anchors) == max(max(m.rounds) for m in values) + 2
    )  # one before, one after each round
    for member in values:
        expected = [
            t / (anchors[r] * anchors[r + 1]) ** 0.5
            for t, r in zip(member.times(), member.rounds, strict=True)
        ]
        assert latency.relative_times(member, anchor) == pytest.approx(expected)


def test_relative_time_cancels_a_drift_that_the_absolute_time_shows():
    drifting = Fake(effects={"replicate": 0, "drift": 0.5})
    _, _, result = measured(drifting, Plan(budget_seconds=0.2, relative_width=1e-9))
    times, relative = (m.values for m in result["m0"])
    assert max(times) / min(times) > 1.3
    assert max(relative) / min(relative) < 1.06


def test_every_round_visits_every_member_once_in_a_new_order():
    device = Fake(effects={"replicate": 0, "seed": 3, "noise": 0.3})
    order: list[str] = []
    members_, anchor = members(device, 5)
    for member in [*members_, anchor]:
        inner = member.subject.states
        member.subject.states = (  # type: ignore[method-assign]
            lambda calls, inner=inner, name=member.id: (order.append(name), inner(calls))[1]
        )
    latency.measure(members_, anchor, device, PLAN, random.Random(0))
    visits = [n for i, n in enumerate(order) if i == 0 or n != order[i - 1]]
    visits = visits[visits.index("dense", len(members_)) :]  # after the warm-up
    rounds = " ".join(visits).split("dense")[1:4]
    assert all(sorted(r.split()) == [f"m{i}" for i in range(5)] for r in rounds)
    assert len({tuple(r.split()) for r in rounds}) > 1


def test_a_quiet_case_stops_at_the_asked_precision():
    _, _, result = measured(Fake())
    assert {m.stopped for each in result.values() for m in each} == {"precision"}
    assert all(len(each[0].values) >= latency.MINIMUM_BLOCKS for each in result.values())


def test_a_noisy_case_stops_at_its_budget():
    plan = Plan(budget_seconds=0.05, relative_width=1e-6)
    _, _, result = measured(Fake(effects={"replicate": 0, "seed": 2, "noise": 0.5}), plan)
    assert {m.stopped for each in result.values() for m in each} <= {"budget", "rounds"}
    assert result["m0"][0].stopped == "budget"
    assert len(result["m0"][0].values) >= latency.BUDGET_BLOCKS


def test_a_deadline_still_gives_every_case_a_block():
    _, _, result = measured(Fake(), deadline=0.0)
    assert all(len(each[0].values) >= 1 for each in result.values())
    assert result["m0"][0].stopped == "deadline"


def test_two_modes_are_not_declared_precise_too_early():
    """A spread measure that ignores the rarer mode would stop at once; order statistics do not."""
    device = Fake(
        effects={"replicate": 0, "seed": 5, "two_modes": {"factor": 1.5, "switch_probability": 0.5}}
    )
    _, _, result = measured(device, Plan(budget_seconds=0.02, relative_width=0.02))
    assert result["m0"][0].stopped == "budget"


def test_disturbed_blocks_are_repeated_then_flagged():
    calm = measured(Fake())[2]
    assert all(values[0].disturbed is None for values in calm.values())
    script = {"replicate": 0, "seed": 1, "disturb_probability": 0.2}
    some = [values[0] for values in measured(Fake(effects=script))[2].values()]
    assert any(m.disturbed for m in some)
    for m in some:
        bad = sum(m.disturbed or [])
        most = latency.MINIMUM_BLOCKS / (1 - latency.REPEATED)
        assert len(m.values) - bad >= latency.MINIMUM_BLOCKS or len(m.values) >= most
        mostly = 2 * bad > len(m.values)  # then all of them count
        assert len(m.kept()) == len(m.values) - (0 if mostly else bad)
    values, _, result = measured(Fake(effects={"disturb_probability": 1.0}))
    assert all("disturbed" in member.flags for member in values)
    assert result["m0"][0].note == "a scripted disturbance"


def test_calls_are_batched_until_the_timer_resolves_them():
    device = Fake()
    short = calibrate(device, subject(device, 0), 0.2)  # 5 µs a call
    assert short.calls * 5e-6 >= 2e-4
    assert calibrate(device, subject(device, 10**10), 0.2).calls == 1
    assert calibrate(device, subject(device, 0), 0.2, cold=True).calls == 1


def test_cold_evicts_before_every_timed_call_and_hot_never():
    evictions: list[int] = []
    device = Fake()
    device.evict_caches = lambda: evictions.append(1)  # type: ignore[method-assign]
    sample(device, subject(device, 10**8), 1)
    assert not evictions
    sample(device, subject(device, 10**8), 1, cold=True)
    assert len(evictions) == 1


class _Canary(torch.autograd.Function):
    calls = 0

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        _Canary.calls += 1
        return grad * 2


def test_one_backward_a_call_on_a_fresh_graph_and_nothing_accumulates():
    from hwbench.devices.cpu import Cpu
    from hwbench.records import Direction
    from hwbench.workloads.linear import _subject

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(4, 4))
            self.forwards = 0

        def forward(self, x):
            self.forwards += 1
            return _Canary.apply(x @ self.weight.T)

    for direction in (Direction.BACKWARD, Direction.STEP):
        layer, x = Layer(), torch.randn(2, 4, requires_grad=True)
        subject_ = _subject(layer, layer, x, torch.randn(2, 4), direction)
        _Canary.calls = 0
        sample(Cpu(), subject_, 5)
        assert _Canary.calls == 5
        assert layer.forwards == 5  # a fresh graph for each
        assert layer.weight.grad is None
        assert x.grad is None


def test_the_median_block_is_not_moved_by_a_spike():
    device = Fake(
        effects={"replicate": 0, "seed": 4, "spikes": {"probability": 0.05, "factor": 20}}
    )
    values, _, result = measured(device)
    expected = device.step_seconds(values[0].subject.step)
    assert median(result["m0"][0].values) == pytest.approx(expected)


class _Queue(Fake):
    """A simulated device with a queue, whose host takes real time to launch."""

    asynchronous = True

    def __init__(self, reason: str | None = None) -> None:
        super().__init__()
        self.reason = reason
        self.prefilled: list[float] = []

    def prefill(self, seconds: float) -> None:
        self.prefilled.append(seconds)

    def run(self, step, states):
        end = time.perf_counter() + 2e-4 * len(states)
        while time.perf_counter() < end:
            pass
        super().run(step, states)

    def capture(self, call):
        return self.reason or (lambda: None)


def launched(reason: str | None = None):
    device = _Queue(reason)
    long = latency.Member(id="long", subject=subject(device, 10**9))  # 10 ms a call
    short = latency.Member(id="short", subject=subject(device, 10**6))  # 15 µs a call
    return device, latency.measure([long, short], None, device, PLAN, random.Random(0)), long, short


def test_a_case_that_the_host_cannot_feed_is_also_replayed_as_a_graph():
    device, result, long, short = launched()
    assert "launch_bound" in short.flags
    assert "launch_bound" not in long.flags
    assert {m.quantity for m in result["long"]} == {"time_seconds", "host_seconds"}
    graph = next(m for m in result["short"] if m.quantity == "graph_seconds")
    assert graph.contract == "graph"
    calls = min(short.calls, latency.GRAPH_CALLS)  # in the graph, whose replay lasts 10 µs
    assert graph.values == pytest.approx([1e-5 / calls] * len(graph.values))
    assert graph.calls % calls == 0
    assert max(device.prefilled) >= 2e-4  # so long that the host is ahead


def test_a_block_of_a_launch_bound_case_counts_the_time_of_the_host():
    device, plan = _Queue(), Plan(budget_seconds=0.4)
    calibration = calibrate(
        device, subject(device, 10**6), plan.budget_seconds
    )  # 15 µs, and 200 µs to launch
    assert calibration.calls > 1
    block = (
        calibration.samples
        * calibration.calls
        * (calibration.estimate_seconds + calibration.enqueue_seconds)
    )
    assert block <= 2 * plan.budget_seconds / BLOCKS


def test_slow_calls_are_launched_only_a_few_times_to_time_the_host():
    launched = []

    def step(_: object) -> None:
        launched.append(time.sleep(0.03))

    device = _Queue()
    device.run = lambda step, states: [step(state) for state in states]  # type: ignore[method-assign]
    assert enqueue_seconds(device, Subject(step=step)) == pytest.approx(0.03, rel=0.5)
    assert len(launched) == 3


def test_a_graph_that_fails_leaves_the_times_that_were_taken():
    device = _Queue()

    def replay() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    device.capture = lambda call: replay  # type: ignore[method-assign]
    short = latency.Member(id="short", subject=subject(device, 10**6))
    measurements = latency.measure([short], None, device, PLAN, random.Random(0))["short"]
    assert measurements[0].quantity == "time_seconds"
    assert measurements[0].values
    expected = "Its graph failed: CUDA error: an illegal memory access was encountered."
    assert (measurements[-1].quantity, measurements[-1].note) == ("graph_seconds", expected)


def test_a_graph_that_cannot_be_captured_leaves_its_reason():
    _, result, _, _ = launched("It cannot be captured as a graph: it waits.")
    graph = next(m for m in result["short"] if m.quantity == "graph_seconds")
    assert graph.values == []
    assert graph.note == "It cannot be captured as a graph: it waits."
