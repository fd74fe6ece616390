"""A size that a format's defaults do not fit is unsupported; a knob that was given is a mistake."""

from __future__ import annotations

import itertools
from contextlib import suppress
from pathlib import Path
from typing import Any

import _compress
import pytest
from _synthetic import linear_case, scored_case
from msgspec.structs import replace

from hwbench import plugins, protocol
from hwbench.devices.cpu import Cpu
from hwbench.errors import KnobError, UnreachableError
from hwbench.formats._base import FORWARD, Format
from hwbench.measure import run as runner
from hwbench.records import Knob, Status
from hwbench.store import read_run
from hwbench.studies._question import Question, document
from hwbench.worker import Worker
from hwbench.workloads._base import fitted

SIZES = [
    (64, 64),
    (312, 312),
    (64, 312),
    (312, 64),
    (2, 64),
    (64, 2),
    (7, 5),
    (30, 30),
    (1, 1),
    (13, 17),
]
FORMATS = plugins.names("formats")


def kind(name: str) -> type[Format]:
    return plugins.load("formats", name, Format)


def mistaken(name: str, size: tuple[int, int], knobs: dict[str, Knob]) -> bool:
    """Whether the format itself refuses these knobs, for another reason than a share."""
    try:
        kind(name).from_knobs(*size, **knobs)
    except UnreachableError:
        return False
    except KnobError:
        return True
    return False


def left_alone(name: str) -> list[dict[str, Knob]]:
    """Ways to ask for a format without a knob that a size may be at odds with."""
    if not kind(name).decided_knobs():
        return [{}, {"kernel": kind(name).KERNELS[-1]}]
    shares: list[dict[str, Knob]] = [{"density": 0.5}, {"stored": 0.4}, {"density": 1.0}]
    return [*shares, {"density": 0.5, "kernel": kind(name).KERNELS[-1]}]


@pytest.mark.parametrize("name", FORMATS)
def test_no_size_makes_a_mistake_of_a_knob_that_nobody_gave(name: str) -> None:
    parameters = []
    for size, knobs in itertools.product(SIZES, left_alone(name)):
        with suppress(UnreachableError):
            parameters.append(fitted(kind(name), *size, 4, knobs).cost(1, 4, FORWARD).parameters)
    assert min(parameters, default=0) > 0


@pytest.mark.parametrize("name", FORMATS)
def test_a_knob_that_was_given_is_a_mistake_wherever_the_defaults_fit(name: str) -> None:
    wrong: list[dict[str, Knob]] = [
        {**left_alone(name)[0], key: value}
        for key, default in kind(name).knob_defaults().items()
        for value in ([-1, 10**6] if type(default) is int else ["nonsense"])
    ]
    if len(kind(name).decided_knobs()) == 1:
        wrong += [{kind(name).decided_knobs()[0]: value} for value in (0, -1, 10**6)]
    assert wrong
    for size, knobs in itertools.product([(64, 64), (312, 312), (2, 64)], wrong):
        try:
            fitted(kind(name), *size, 4, left_alone(name)[0])
        except UnreachableError:
            continue
        if not mistaken(name, size, knobs):  # some formats take every rank
            continue
        with pytest.raises(KnobError) as told:
            fitted(kind(name), *size, 4, knobs)
        assert not isinstance(told.value, UnreachableError), knobs


GIVEN: list[tuple[str, tuple[int, int], dict[str, Knob], bool]] = [
    ("bsr", (312, 312), {"density": 0.5}, True),
    ("bsr", (312, 312), {"density": 0.5, "block_rows": 4}, True),  # block_columns is left alone
    ("bsr", (312, 312), {"density": 0.5, "block_rows": 32}, False),
    ("bsr", (312, 312), {"density": 0.5, "block_columns": 32}, False),
    ("bsr", (312, 312), {"density": 2.0}, False),
    ("bsr", (312, 312), {"density": 0.5, "index_dtype": "int3"}, False),
    ("bsr", (312, 64), {"kept_blocks": 10**5, "block_rows": 4}, False),
    ("monarch", (2, 64), {"density": 0.5}, True),
    ("monarch", (2, 64), {"rank": 1}, True),
    ("monarch", (64, 64), {"rank": 64}, False),
    ("monarch", (64, 64), {"density": 0.5, "blocks": 100}, False),
    ("n_m", (30, 30), {"n": 1}, True),
    ("n_m", (30, 30), {"n": 1, "m": 8}, False),
    ("low_rank", (8, 8), {"rank": 9}, False),
    ("low_rank", (8, 8), {}, False),
    ("semi_structured", (30, 30), {}, True),
]


@pytest.mark.parametrize(("name", "size", "knobs", "default"), GIVEN)
def test_whose_knob_it_is_decides(
    name: str, size: tuple[int, int], knobs: dict[str, Knob], default: bool
) -> None:
    for case in (
        linear_case(name, None, shape=size, knobs=knobs, tokens=4),
        replace(scored_case("projection", name, 8), out_features=size[0], in_features=size[1],
                knobs=knobs),
    ):  # fmt: skip
        reply = Worker(Cpu(0)).plan(protocol.PlanRequest(cases=[case]))
        assert bool(reply.mistakes) is not default
        if default:
            start = f"{name} does not fit {size[0]}×{size[1]} by its defaults: "
            assert str(reply.planned[0].unsupported).startswith(start)


def test_a_layer_of_a_model_that_does_not_fit_is_named(tmp_path: Path) -> None:
    model = _compress.encoder(tmp_path)
    case = scored_case("compress", "bsr", 64, model=str(model))
    (planned,) = Worker(Cpu(0)).plan(protocol.PlanRequest(cases=[case])).planned
    assert "In a layer of 16×16, bsr does not fit 16×16 by its defaults" in str(planned.unsupported)
    given = replace(case, knobs={"density": 0.5, "block_rows": 32, "block_columns": 32})
    assert Worker(Cpu(0)).plan(protocol.PlanRequest(cases=[given])).mistakes


def test_the_suite_of_a_choice_runs_on_a_model_of_any_size(tmp_path: Path) -> None:
    """As ``hwbench choose`` asks for it, but for what reads the model."""
    suite: dict[str, Any] = document(Question(), [("up", 312, 30), ("head", 2, 312)])
    suite["cases"] = [each for each in suite["cases"] if each["workload"] == "linear"]
    suite["plan"] = {"replicates": 1, "budget_seconds": 0.001}
    run = read_run(runner.run(suite, device="fake", out=tmp_path, threads=1))
    assert run.complete
    assert {each.status for each in run.results} == {Status.OK, Status.UNSUPPORTED}
    reasons = {p.case.format: str(p.unsupported) for p in run.planned.values() if p.unsupported}
    assert "by its defaults" in reasons["bsr"]
    assert "by its defaults" in reasons["monarch"]
