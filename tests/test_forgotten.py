"""A case that is scored leaves nothing behind: what it held is free for the next one."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _compress
import pytest
from _synthetic import linear_case, scored_case
from torch import nn

from hwbench import plugins, protocol
from hwbench.devices.cpu import Cpu
from hwbench.records import Case, Status
from hwbench.worker import Worker
from hwbench.workloads._base import Subject, Workload
from hwbench.workloads._reading import read


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _compress.encoder(tmp_path_factory.mktemp("encoder"))


def cases(model: Path) -> dict[str, Case]:
    """A case of each workload that scores, as small as it can be."""
    layer = next(
        name for name, each in read(str(model))[0].linears().items() if each.out_features == 16
    )
    options: dict[str, dict[str, Any]] = {
        "projection": {"matrix": "gaussian"},
        "image": {},
        "training": {"task": "digits", "steps": 2},
        "compress": {"model": str(model)},
        "model_pass": {"model": str(model), "length": 8},
        "layer_error": {"model": str(model), "layer": layer},
    }
    named = {name: scored_case(name, "dense", 16, **each) for name, each in options.items()}
    return named | {"image": scored_case("image", "low_rank", 16)}


SCORED = ("projection", "image", "training", "compress", "model_pass", "layer_error")


def test_every_workload_that_scores_is_looked_at() -> None:
    """All but the one whose model is too large for this tier, which does as ``compress``."""
    loaded = {
        name: plugins.load("workloads", name, Workload) for name in plugins.names("workloads")
    }
    assert {n for n, each in loaded.items() if each.SCORE} == {*SCORED, "compress_lm"}


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[weakref.ref[Any]]]:
    """Weak references to every subject that is prepared, its score, and the models in it."""
    references: list[weakref.ref[Any]] = []
    prepared = Worker._prepared

    def remembering(self: Worker, *arguments: Any) -> Subject:
        subject = prepared(self, *arguments)
        cells = getattr(subject.score, "__closure__", None) or ()
        inside = [cell.cell_contents for cell in cells]
        own = [each for each in inside if isinstance(each, nn.Module)]
        if arguments[0].case.workload in ("model_pass", "layer_error"):
            own = []  # the model is shared by all cases, on purpose
        references.extend(map(weakref.ref, [subject, subject.score, *own]))
        return subject

    monkeypatch.setattr(Worker, "_prepared", remembering)
    yield references
    gc.enable()


@pytest.mark.parametrize("name", SCORED)
def test_what_was_scored_is_forgotten(
    encoder: Path, held: list[weakref.ref[Any]], name: str
) -> None:
    case = cases(encoder)[name]
    worker = Worker(Cpu(0))
    (planned,) = worker.plan(protocol.PlanRequest(cases=[case])).planned
    if planned.unsupported:
        pytest.skip(planned.unsupported)
    gc.collect()
    gc.disable()  # what is free is freed by the worker, not by chance
    reply = worker.solo(protocol.SoloRequest(planned=planned, replicate=0, seed=0))
    assert reply.result.status is Status.OK, reply.result.reason
    assert len(held) >= 2
    assert [reference() for reference in held] == [None] * len(held)
    assert worker.live == {}


@pytest.mark.parametrize("error", [MemoryError("out of memory"), ValueError("broken")])
def test_what_failed_is_forgotten_too(
    encoder: Path, held: list[weakref.ref[Any]], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from hwbench.workloads import _distill

    def fail(*_: Any) -> None:
        raise type(error)(str(error))

    monkeypatch.setattr(_distill, "compressed", fail)
    worker = Worker(Cpu(0))
    (planned,) = worker.plan(protocol.PlanRequest(cases=[cases(encoder)["compress"]])).planned
    gc.collect()
    gc.disable()
    reply = worker.solo(protocol.SoloRequest(planned=planned, replicate=0, seed=0))
    assert reply.result.status in (Status.OUT_OF_MEMORY, Status.CRASHED)
    assert [reference() for reference in held] == [None] * len(held)


def test_what_is_yet_to_be_timed_is_kept() -> None:
    worker, case = Worker(Cpu(0)), linear_case("dense", None, shape=(16, 16), tokens=4)
    (planned,) = worker.plan(protocol.PlanRequest(cases=[case])).planned
    worker.solo(protocol.SoloRequest(planned=planned, replicate=0, seed=0))
    assert list(worker.live) == [case.id]
