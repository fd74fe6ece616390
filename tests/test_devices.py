"""The processor and the simulated machine: marks, memory, noise, and what disturbs them."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from typing import Any

import hwbench_simulated as fake
import msgspec
import pytest
import torch
from hwbench_simulated import Fake

from hwbench import environment
from hwbench.devices.cpu import Cpu
from hwbench.errors import UsageError
from hwbench.measure.run import resolve_device
from hwbench.records import Cost

# --- the processor -----------------------------------------------------------------------------


def test_marks_of_the_processor_are_in_order_and_measure_a_wait() -> None:
    device = Cpu()
    marks = [device.mark() for _ in range(100)]
    assert marks == sorted(marks)
    start = device.mark()
    while device.mark() - start < 5_000_000:
        pass
    assert 0.005 <= device.seconds(start, device.mark()) < 5.0


def test_the_processor_calls_the_step_once_a_state() -> None:
    recorded: list[int] = []
    Cpu().run(recorded.append, [1, 2, 3])
    assert recorded == [1, 2, 3]


@pytest.mark.parametrize(("tokens", "out"), [(8, 16), (128, 256)])
def test_peak_of_a_dense_linear_is_its_output_exactly(tokens: int, out: int) -> None:
    weight, x = torch.ones(out, 64), torch.ones(tokens, 64)
    call = lambda: torch.nn.functional.linear(x, weight)  # noqa: E731
    assert Cpu().peak_bytes(call) == 4 * tokens * out


def test_peak_counts_what_is_alive_at_the_same_time() -> None:
    x = torch.ones(1000)
    assert Cpu().peak_bytes(lambda: x.neg().exp()) == 2 * 4000
    assert Cpu().peak_bytes(x.neg_) == 0

    def one_after_the_other() -> None:
        for _ in range(3):
            x.clone()

    assert Cpu().peak_bytes(one_after_the_other) == 4000


def test_eviction_writes_twice_the_last_level_cache_then_reads_as_much_that_nobody_writes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = Cpu()
    device.evict_caches()
    written, read = device._evict, device._foreign
    assert written is not None
    for buffer in (written, read):
        assert buffer.nbytes >= 2 * max(environment.cpu_caches().values(), default=1)
    recorded: list[str] = []
    for name in ("add_", "sum"):
        real = getattr(torch.Tensor, name)

        def call(self: torch.Tensor, *given: Any, real: Any = real) -> Any:
            recorded.append("read" if self is read else "written")
            return real(self, *given)

        monkeypatch.setattr(torch.Tensor, name, call)
    device.evict_caches()
    assert device._evict is written
    assert recorded == ["written", "read"]
    assert written.min() == written.max() == 3.0
    assert read.min() == read.max() == 1.0


def test_free_bytes_are_some_and_not_more_than_there_are() -> None:
    assert 0 < Cpu().free_bytes() <= environment.memory_total_bytes()


# --- the simulated machine: time ---------------------------------------------------------------

SECOND = Cost(
    parameters=1, stored_bytes=1, flops=10**11, dense_flops=10**11, compulsory_bytes=10**10
)


def step_of() -> Any:
    def step(_: Any) -> None:
        return None

    return step


def timed(device: Fake, step: Any, calls: int = 1, case: str | None = None) -> float:
    """Seconds per call of one timed run."""
    device.describe(step, case=case)
    start = device.mark()
    device.run(step, [None] * calls)
    return device.seconds(start, device.mark()) / calls


def scripted(**effects: Any) -> Fake:
    return Fake(effects={"replicate": 0, **effects})


def test_simulated_time_moves_only_when_told() -> None:
    device = Fake(effects={})
    start = device.mark()
    device.evict_caches()
    device.prefill(1.0)
    device.synchronize()
    device.probe()
    device.run(step_of(), [])
    assert device.seconds(start, device.mark()) == 0.0
    device.advance(0.25)
    assert device.now_seconds == device.seconds(start, device.mark()) == 0.25


@pytest.mark.parametrize("calls", [1, 7, 1000])
def test_a_quiet_run_lasts_exactly_its_duration(calls: int) -> None:
    device = Fake(effects={})
    device.advance(3.3)
    start = device.mark()
    device.run(step_of(), [None] * calls)
    assert device.seconds(start, device.mark()) == calls * 10 / 1e6


def test_the_duration_is_a_roofline_of_the_cost_and_a_launch() -> None:
    assert fake.duration_seconds(SECOND) == 1.0 + 5e-6
    moved = msgspec.structs.replace(SECOND, intermediate_bytes=3 * 10**10)
    assert fake.duration_seconds(moved) == 2.0 + 5e-6
    assert fake.duration_seconds(None) == 1e-5


def test_what_is_told_of_a_step_is_kept_until_it_is_told_anew() -> None:
    device, step = Fake(effects={}), step_of()
    assert device.step_seconds(step) == 1e-5
    device.describe(step, added_seconds=0.5)
    device.describe(step, cost=SECOND)
    assert device.step_seconds(step) == 1.5 + 5e-6
    device.describe(step, case="a", added_seconds=0.0)
    assert device.step_seconds(step) == 1.0 + 5e-6
    assert device.step_seconds(step_of()) == 1e-5
    assert vars(step) == {}  # it is told to the device, and nothing is hung on the step


def test_a_step_is_real_once_and_simulated_after_that() -> None:
    device, recorded = Fake(effects={}), []
    step, other = (
        (lambda state: recorded.append(("a", state))),
        (lambda state: recorded.append(("b", state))),
    )
    device.run(step, [1, 2, 3])
    device.run(step, [4])
    device.run(other, [5])
    assert recorded == [("a", 1), ("b", 5)]
    assert device.now_seconds == 5e-5


def test_a_step_that_fails_fails_every_time_and_takes_no_time() -> None:
    device = Fake(effects={})

    def step(_: Any) -> None:
        raise ValueError("broken")

    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            device.run(step, [None])
    assert device.now_seconds == 0.0


def test_memory_of_the_simulated_machine_is_constant_and_its_call_is_real() -> None:
    device, recorded = Fake(effects={}), []
    assert device.peak_bytes(lambda: recorded.append(1)) == fake.PEAK_BYTES
    assert device.free_bytes() == fake.FREE_BYTES
    assert recorded == [1]


# --- the simulated machine: effects ------------------------------------------------------------


def times(device: Fake, count: int, step: Any = None) -> list[float]:
    step = step or step_of()
    return [timed(device, step) for _ in range(count)]


def logs(values: list[float]) -> list[float]:
    return [math.log(value / 1e-5) for value in values]


def test_noise_has_the_scripted_sd_and_is_reproduced_by_its_seed() -> None:
    first = times(scripted(seed=1, noise=0.05), 4000)
    assert first == times(scripted(seed=1, noise=0.05), 4000)
    assert first != times(scripted(seed=2, noise=0.05), 4000)
    assert first != times(scripted(seed=1, noise=0.05, replicate=1), 4000)
    assert statistics.stdev(logs(first)) == pytest.approx(0.05, rel=0.1)
    assert statistics.median(first) == pytest.approx(1e-5, rel=0.01)


def test_noise_is_that_of_a_timed_run_however_many_calls_it_has() -> None:
    device, step = scripted(noise=0.05), step_of()
    values = [timed(device, step, calls=100) for _ in range(2000)]
    assert statistics.stdev(logs(values)) == pytest.approx(0.05, rel=0.1)


def test_correlated_noise_keeps_its_sd() -> None:
    values = logs(times(scripted(noise=0.05, ar1=0.8), 20_000))
    assert statistics.correlation(values[:-1], values[1:]) == pytest.approx(0.8, abs=0.05)
    assert statistics.stdev(values) == pytest.approx(0.05, rel=0.1)
    plain = logs(times(scripted(noise=0.05), 20_000))
    assert statistics.correlation(plain[:-1], plain[1:]) == pytest.approx(0.0, abs=0.03)


def test_replicate_noise_is_drawn_once_a_process() -> None:
    processes = [times(scripted(replicate_noise=0.1, replicate=i), 3) for i in range(400)]
    assert all(len(set(map(repr, values))) == 1 for values in processes)
    spread = logs([values[0] for values in processes])
    assert statistics.stdev(spread) == pytest.approx(0.1, rel=0.15)


def test_the_process_is_its_number_unless_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    collected = []
    for number in (11, 12, 11):
        monkeypatch.setattr(fake.os, "getpid", lambda number=number: number)
        collected += times(Fake(effects={"replicate_noise": 0.1}), 1)
    assert collected[0] == collected[2] != collected[1]


def test_case_noise_is_drawn_once_a_case_in_a_process() -> None:
    device = scripted(case_noise=0.1)
    a, b = step_of(), step_of()
    actual = [timed(device, step, case=case) for step, case in 2 * [(a, "a"), (b, "b")]]
    assert actual[0] == actual[2] != actual[1] == actual[3]
    assert timed(scripted(case_noise=0.1, replicate=1), a, case="a") != actual[0]


def test_drift_compounds_with_simulated_time() -> None:
    device, step = scripted(drift=0.01), step_of()
    assert timed(device, step) == 1e-5
    device.advance(100.0 - device.now_seconds)
    assert timed(device, step) == pytest.approx(1e-5 * math.e, rel=1e-6)


def test_spikes_come_as_often_and_as_large_as_scripted() -> None:
    values = times(scripted(spikes={"probability": 0.1, "factor": 5.0}), 4000)
    assert set(values) == {1e-5, 5e-5}
    assert values.count(5e-5) / 4000 == pytest.approx(0.1, abs=0.02)


def test_two_modes_begin_at_random_and_switch() -> None:
    modes = {"factor": 1.5, "switch_probability": 0.0}
    processes = [times(scripted(two_modes=modes, replicate=i), 5) for i in range(200)]
    assert all(len(set(values)) == 1 for values in processes)
    slow = sum(values[0] == 1.5e-5 for values in processes)
    assert 60 < slow < 140
    switching = times(scripted(two_modes={"factor": 1.5, "switch_probability": 0.1}), 2000)
    switches = sum(a != b for a, b in itertools.pairwise(switching))
    assert switches / 2000 == pytest.approx(0.1, abs=0.03)


def test_throttling_begins_when_scripted() -> None:
    device, step = scripted(throttle={"start_seconds": 1.0, "factor": 2.0}), step_of()
    assert timed(device, step) == 1e-5
    device.advance(1.0)
    assert timed(device, step) == 2e-5


def test_slow_cases_are_found_by_a_part_of_their_id() -> None:
    device = scripted(slow={"low_rank": 1.25, "t16": 2.0})
    for case, expected in (
        ("x/low_rank/t8", 1.25e-5),
        ("x/low_rank/t16", 2.5e-5),
        ("x/dense", 1e-5),
    ):
        assert timed(device, step_of(), case=case) == pytest.approx(expected, rel=1e-6)


def test_one_effect_leaves_the_random_numbers_of_the_others_alone() -> None:
    plain = times(scripted(noise=0.05), 50)
    spiked = times(scripted(noise=0.05, spikes={"probability": 0.0, "factor": 9.0}), 50)
    assert plain == spiked


def test_disturbances_happen_as_often_as_scripted() -> None:
    def share(probability: float) -> float:
        device = scripted(disturb_probability=probability)
        return sum(bool(device.disturbance({}, {}, 0.1)) for _ in range(2000)) / 2000

    assert share(0.0) == 0.0
    assert share(1.0) == 1.0
    assert share(0.3) == pytest.approx(0.3, abs=0.04)


def test_the_machine_is_the_same_whatever_is_scripted() -> None:
    assert scripted(slow={"a": 2.0}).info() == scripted().info()
    assert scripted(slow={"a": 2.0}).state() != scripted().state()


# --- the simulated machine: its script ---------------------------------------------------------


def test_the_environment_scripts_whole_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    script = {"seed": 3, "replicate": 1, "noise": 0.1, "slow": {"a": 2}}
    monkeypatch.setenv(fake.FAKE_VARIABLE, json.dumps(script))
    assert times(Fake(), 20) == times(Fake(effects=script), 20)
    assert times(Fake(effects={}), 1) == [1e-5]
    monkeypatch.delenv(fake.FAKE_VARIABLE)
    assert times(Fake(), 1) == [1e-5]


@pytest.mark.parametrize(
    "script",
    [
        "not json",
        "[]",
        '{"nose": 1}',
        '{"noise": -0.1}',
        '{"noise": "much"}',
        '{"ar1": 1}',
        '{"spikes": {"probability": 2, "factor": 3}}',
        '{"spikes": {"probability": 0.5}}',
        '{"two_modes": {"factor": 0, "switch_probability": 0.5}}',
        '{"throttle": {"start_seconds": 1, "factor": 2, "end_seconds": 3}}',
        '{"slow": {"a": 0}}',
        '{"disturb_probability": 1.5}',
    ],
)
def test_a_mistake_in_the_script_is_a_usage_error(
    script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(fake.FAKE_VARIABLE, script)
    with pytest.raises(UsageError, match=r"^HWBENCH_FAKE cannot be understood: .+\.$"):
        Fake()


def test_a_mistake_in_the_argument_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="unknown field `nose`"):
        Fake(effects={"nose": 1})


@pytest.mark.parametrize(("present", "chosen"), [(0, "cpu"), (1, "cuda")])
def test_auto_never_chooses_the_simulated_machine(
    monkeypatch: pytest.MonkeyPatch, present: int, chosen: str
) -> None:
    monkeypatch.setattr(environment, "nvidia_devices", lambda: present)
    assert resolve_device("auto") == chosen
    assert resolve_device("fake") == "fake"
