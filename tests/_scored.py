"""One case of a workload that has a score, tried in this process; and a layer that can train."""

from __future__ import annotations

import pytest
import torch
from _formats import describe

from hwbench import plugins
from hwbench.devices.cpu import Cpu
from hwbench.formats._base import STEP, Format, Linear
from hwbench.meters.score import Score
from hwbench.records import Case
from hwbench.workloads._base import Workload


def workload(one: Case) -> Workload:
    return plugins.load("workloads", one.workload, Workload)()


def described(one: Case) -> Format:
    kind = plugins.load("formats", one.format, Format)
    return kind.from_knobs(one.out_features, one.in_features, **one.knobs)


def scored(one: Case, seed: int = 0) -> dict[str, float]:
    """The score of a case, which has the name that was promised, and what stands beside it."""
    device, judged = Cpu(0), workload(one)
    subject = judged.prepare(one, described(one), device, seed)
    promised = judged.quantity(one)
    assert promised is not None
    assert subject.score_name == promised.name
    return {each.quantity: each.values[0] for each in Score().read(subject, device)}


def unsupported(one: Case) -> str | None:
    return workload(one).unsupported(one, described(one), Cpu(0))


def trainable(name: str) -> tuple[Format, Linear]:
    """A format of 64×64, at half density if it can; skips what cannot train on a CPU."""
    kind = plugins.load("formats", name, Format)
    actual = describe(kind, kind.KERNELS[0], (64, 64))
    if actual.unsupported("cpu", torch.float32, STEP):
        pytest.skip("it cannot train here")
    return actual, actual.random(dtype=torch.float32, generator=torch.Generator().manual_seed(0))
