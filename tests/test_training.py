"""Training from scratch: it learns, it repeats itself, and the rates are the format's."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from _scored import described, scored, trainable
from _synthetic import scored_case
from msgspec.structs import replace
from torch import Tensor, nn

import hwbench
from hwbench import plugins
from hwbench import suite as suites
from hwbench.cli._shared import with_data
from hwbench.devices.cpu import Cpu
from hwbench.errors import SuiteError, UnknownNameError
from hwbench.formats._base import Format
from hwbench.measure.run import resume
from hwbench.protocol import PlanRequest
from hwbench.records import Case
from hwbench.store import read_run
from hwbench.worker import Worker
from hwbench.workloads import _sets
from hwbench.workloads._networks import Vision
from hwbench.workloads.training import Training


def case(name: str = "low_rank", width: int = 16, **options: Any) -> Case:
    return scored_case("training", name, width, **{"steps": 150, **options})


TRAINED = [
    (task, least, name)
    for task, least in (("digits", 0.2), ("mnist1d", 0.15))
    for name in ("dense", "low_rank", "btt", "blast")
]


@pytest.mark.heavy
@pytest.mark.parametrize(("task", "least", "name"), TRAINED)
def test_a_short_training_is_better_than_chance(task: str, least: float, name: str) -> None:
    values = scored(case(name, task=task))
    assert least < values["score"] <= 1
    assert values["step_seconds"] > 0


@pytest.mark.heavy
def test_a_seed_repeats_itself_and_another_differs() -> None:
    first, again, other = (scored(case(steps=40), seed)["score"] for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.heavy
def test_more_steps_learn_more() -> None:
    assert scored(case(steps=150))["score"] > scored(case(steps=5))["score"] + 0.1


def test_the_rates_of_btt_are_those_of_the_paper() -> None:
    kind = plugins.load("formats", "btt", Format)
    multipliers = kind.from_knobs(144, 96, rank=2, in_blocks=12, out_blocks=12).rate_multipliers()
    assert multipliers == {"first": 6.0, "second": 2.0}


@pytest.mark.parametrize("name", plugins.names("formats"))
def test_rates_are_named_after_parameters(name: str) -> None:
    actual, layer = trainable(name)
    assert set(actual.rate_multipliers()) <= {each for each, _ in layer.named_parameters()}


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """CIFAR-10's binary version in small: ten brightnesses with noise, a label each."""
    source = torch.Generator().manual_seed(0)
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    for name in names:
        labels = torch.arange(40) % 10
        noise = torch.randint(20, (40, 3072), generator=source)
        records = torch.cat([labels[:, None], labels[:, None] * 25 + noise], 1)
        (tmp_path / name).write_bytes(records.to(torch.uint8).numpy().tobytes())
    return tmp_path


@pytest.mark.heavy
def test_a_folder_of_cifar10_is_read_and_learned(photographs: Path) -> None:
    actual = _sets.cifar10(photographs)
    assert actual.x.shape == (200, 3, 32, 32)
    assert actual.x_test.shape == (40, 3, 32, 32)
    assert actual.y[:12].tolist() == [*range(10), 0, 1]
    assert torch.equal(actual.x[3, 1].long() // 25, torch.full((32, 32), 3))
    one = case("low_rank", task="cifar10", data=str(photographs), steps=60, batch=32)
    assert Training().unsupported(one, described(one), Cpu(0)) is None
    assert scored(one)["score"] > 0.3


def test_a_picture_is_cut_into_patches_of_all_channels() -> None:
    network = Vision(4, nn.Linear, side=4, channels=2, patch=2, depth=0)
    recorded: list[Tensor] = []
    network.embed.register_forward_pre_hook(lambda _, inputs: recorded.append(inputs[0]))
    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    network(x)
    assert recorded[0].shape == (1, 4, 8)
    assert recorded[0][0, 1].tolist() == [2, 3, 6, 7, 18, 19, 22, 23]  # above right, both channels


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_every_case_of_the_suite_can_be_planned_where_the_data_is(
    photographs: Path, kind: str
) -> None:
    document = with_data(suites.read("training_cifar10"), photographs)
    cases = [replace(each, device="cpu") for each in suites.build(document, kind).cases]
    planned = Worker(Cpu(0)).plan(PlanRequest(cases=cases))
    assert planned.mistakes == []
    assert {p.case.format for p in planned.planned if p.unsupported} == {"two_four_training"}
    assert {p.case.options["data"] for p in planned.planned} == {str(photographs)}


def test_what_is_no_cifar10_is_unsupported_with_the_reason(photographs: Path) -> None:
    def reason(**options: Any) -> str:
        one = case(**{"task": "cifar10", **options})
        return str(Training().unsupported(one, described(one), Cpu(0)))

    assert "given with --data" in reason()
    assert "holds no data_batch_1.bin" in reason(data=str(photographs / "nowhere"))
    (photographs / "test_batch.bin").write_bytes(bytes(3000))
    assert "3000 bytes are no whole records" in reason(data=str(photographs))
    (photographs / "test_batch.bin").write_bytes(bytes([11]) + bytes(3072))
    with pytest.raises(ValueError, match="has the label 11"):
        _sets.cifar10(photographs)
    with pytest.raises(SuiteError, match="digits has no use for data"):
        Training().check(case(task="digits", data="x"))


def test_without_the_data_it_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    one = case(task="mnist1d")
    assert "mnist1d is not installed" in str(Training().unsupported(one, described(one), Cpu(0)))


@pytest.mark.parametrize(("task", "count"), [("digits", 1438), ("mnist1d", 4000)])
def test_a_batch_is_whole_or_cannot_be(task: str, count: int) -> None:
    """A smaller one than was asked for would be trained without a word."""
    data = {"digits": _sets.digits, "mnist1d": _sets.mnist1d}[task]()
    assert len(data.x) == count
    for batch, words in ((count, None), (count + 1, f"A batch of {count + 1} is more than the")):
        one = case(task=task, batch=batch)
        reason = Training().unsupported(one, described(one), Cpu(0))
        assert (reason is None) if words is None else (words in str(reason))
    source = torch.Generator().manual_seed(0)
    for size in (count, 1000):
        batches = data.batches(size, source)
        assert {len(next(batches)[0]) for _ in range(6)} == {size}
    with pytest.raises(ValueError, match="cannot be taken of"):
        next(data.batches(count + 1, source))


def test_a_batch_of_more_pictures_than_there_are_is_unsupported(photographs: Path) -> None:
    count = len(_sets.cifar10(photographs).x)
    for batch in (count, count + 1):
        one = case(task="cifar10", data=str(photographs), batch=batch)
        reason = Training().unsupported(one, described(one), Cpu(0))
        assert (reason is None) == (batch == count)


def test_a_wrong_width_or_task_is_said() -> None:
    with pytest.raises(SuiteError, match="width twice"):
        Training().check(case(width=18))
    with pytest.raises(UnknownNameError, match="task"):
        Training().check(case(task="digit"))


def test_quick_shortens_the_trainings_of_the_suite() -> None:
    document = suites.read("training")
    full, quick = (
        {(c.options["task"], c.options["steps"]) for c in suites.build(d, "cpu").cases}
        for d in (document, suites.quickened(document))
    )
    assert full == {("digits", 1500), ("mnist1d", 3000)}
    assert quick == {("digits", 200), ("mnist1d", 400)}
    with pytest.raises(UnknownNameError, match="quick"):
        suites.quickened({"cases": [{"workload": "training", "quick": {"step": 1}}]})


def test_an_interrupted_run_goes_on_at_the_last_finished_seed(tmp_path: Path) -> None:
    block = {"workload": "training", "shape": [[16, 16]], "steps": 5, "seeds": 3}
    document = {"schema": 1, "name": "t", "cases": [{**block, "format": [{"name": "dense"}]}]}
    path = hwbench.run(document, device="cpu", out=tmp_path)
    whole = read_run(path)
    lines = path.read_text().splitlines()
    cut = [line for line in lines if '"line":"footer"' not in line and '"replicate":2' not in line]
    assert len(cut) == len(lines) - 2
    path.write_text("\n".join(cut) + "\n")
    finished = read_run(resume(path))
    assert finished.complete
    assert [r.values("score") for r in finished.results] == [
        r.values("score") for r in whole.results
    ]
    assert path.read_text().splitlines()[: len(cut)] == cut  # nothing was trained again
