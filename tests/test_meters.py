"""What is read beside the time: error, memory, FLOPs, energy; each exact where it can be."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable
from functools import partial

import pytest
import torch
from hwbench_simulated import Fake
from torch import Tensor

from hwbench import plugins
from hwbench.devices.cpu import Cpu
from hwbench.formats._base import Format
from hwbench.meters import _compiling, cost, energy, error, latency, memory, score
from hwbench.meters import compile as compile_meter
from hwbench.records import Case, Plan
from hwbench.workloads._base import Subject, Workload


def subject(name: str = "low_rank", direction: str = "step", tokens: int = 8, **knobs) -> Subject:
    case = Case(
        workload="linear", format=name, out_features=32, in_features=48, dtype="float32",
        device="cpu", tokens=tokens, direction=direction, knobs=knobs,
    )  # fmt: skip
    described = plugins.load("formats", name, Format).from_knobs(32, 48, **knobs)
    workload = plugins.load("workloads", "linear", Workload)()
    return workload.prepare(case, described, Cpu(), seed=0)


def readings(meter, made, device=None) -> dict[str, list[float]]:
    return {m.quantity: m.values for m in meter.read(made, device or Cpu())}


def test_memory_of_a_dense_step_is_exact():
    readings_ = readings(memory.Memory(), subject("dense"))
    assert readings_["saved_bytes"] == [8 * 48 * 4]  # x; the weight is the layer's own
    assert readings_["gradient_bytes"] == [(8 * 48 + 32 * 48) * 4]
    assert readings_["peak_bytes"][0] >= readings_["gradient_bytes"][0] + 8 * 32 * 4


def test_memory_of_a_chain_counts_its_intermediate():
    readings_ = readings(memory.Memory(), subject("low_rank", rank=4))
    assert readings_["saved_bytes"] == [(8 * 48 + 8 * 4) * 4]  # x, and x Bᵀ
    assert readings_["gradient_bytes"] == [(8 * 48 + 4 * (32 + 48)) * 4]


def test_a_forward_pass_saves_nothing_and_peaks_at_its_output():
    readings_ = readings(memory.Memory(), subject("dense", "forward"))
    assert "saved_bytes" not in readings_
    assert readings_["peak_bytes"] == [8 * 32 * 4]


def test_flops_are_torchs_own_count_where_torch_counts_right():
    for direction in ("forward", "backward", "step"):
        subject_ = subject("low_rank", direction, rank=4)
        assert readings(cost.CountedCost(), subject_)["counted_flops"] == [subject_.cost.flops]


@pytest.mark.parametrize("part", ["output", "gradient"])
def test_the_error_sees_a_wrong_output_and_a_wrong_gradient(part):
    right = subject("dense")
    assert readings(error.Error(), right)["numerical_error"][0] < 1e-6

    class Off(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y * 1.1 if part == "output" else y.clone()

        @staticmethod
        def backward(ctx, dy):
            return dy * (1.0 if part == "output" else 1.1)

    wrong = subject("dense")
    inner = wrong.module.apply_weight
    wrong.module.apply_weight = lambda x: Off.apply(inner(x))
    assert readings(error.Error(), wrong)["numerical_error"][0] == pytest.approx(0.1, rel=0.01)


def test_a_score_that_is_no_number_is_an_error():
    with pytest.raises(ArithmeticError, match="nan"):
        score.Score().read(Subject(step=lambda _: None, score=lambda: float("nan")), Cpu())


class _Counter(Fake):
    def __init__(self, readings):
        super().__init__()
        self.readings = iter(readings)

    def energy_joules(self):
        return next(self.readings)


@pytest.fixture(autouse=True)
def _short_window(monkeypatch):
    monkeypatch.setattr(energy, "WINDOW_SECONDS", 0.01)
    monkeypatch.setattr(energy, "SETTLE_SECONDS", 0.01)


def test_energy_is_the_counters_difference_over_the_calls():
    device = _Counter([100.0, 101.0, 103.0])
    (readings_,) = energy.Energy().read(subject("dense", "forward"), device)
    assert readings_.values == [pytest.approx(2.0 / readings_.calls)]


@pytest.mark.parametrize(
    ("counter", "words"),
    [
        (["no counter here"], "no counter here"),
        ([1.0, 1.0, 1.0], "did not move"),
        ([1.0, 2.0, "lost"], "lost"),
    ],
)
def test_energy_that_cannot_be_read_has_a_reason_and_no_value(counter, words):
    (readings_,) = energy.Energy().read(subject("dense", "forward"), _Counter(counter))
    assert readings_.values == []
    assert words in readings_.note


def compiled(call: Callable[[Tensor], Tensor], sizes: Iterable[int]) -> Subject:
    """A subject that calls a compiled function, with an input of the next size each time."""
    sized = iter(sizes)
    made = torch.compile(call, backend="eager", dynamic=False)
    return Subject(step=lambda _: made(torch.zeros(next(sized))), compiled=True)


def test_what_compiles_while_it_is_timed_is_flagged():
    steady = compiled(lambda x: x + 1, itertools.repeat(3))
    growing = compiled(lambda x: x + 2, itertools.count(1))
    for made, flagged in ((steady, False), (growing, True)):
        member = latency.Member(id="a", subject=made)
        plan = Plan(budget_seconds=0.001)
        latency.measure([member], None, Cpu(), plan, random.Random(0))
        assert ("recompiled" in member.flags) is flagged


def test_counting_the_flops_of_compiled_code_compiles_nothing():
    weight = torch.ones(8, 8)
    made = compiled(lambda x: x.expand(4, 8) @ weight, itertools.repeat(8))
    made.cost = subject("dense").cost  # its presence says that FLOPs are counted
    _compiling.call(made)
    before = _compiling.compiled()
    assert readings(cost.CountedCost(), made) == {"counted_flops": [512.0]}
    assert _compiling.compiled().since(before) == _compiling.Compiled(0, 0, ())


@pytest.mark.heavy
def test_many_functions_of_the_same_code_are_all_compiled():
    def one(x: Tensor, add: int) -> Tensor:
        return x + add

    for add in range(20):  # torch's own limit is eight
        made = compiled(partial(one, add=add), itertools.repeat(3))
        readings_ = readings(compile_meter.Compile(), made)
        assert readings_["compiled_graphs"] == [1.0]
    subjects = [compiled(partial(one, add=add), itertools.repeat(3)) for add in range(20, 40)]
    before = _compiling.compiled()
    for made in subjects:
        _compiling.call(made)
    assert _compiling.compiled().since(before).graphs == 20
