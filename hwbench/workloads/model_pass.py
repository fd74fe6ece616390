"""A pass of a whole trained model, and what its linear layers take of it."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from msgspec.structs import replace
from torch import Tensor, nn

from hwbench import checkpoints
from hwbench.devices._base import Device
from hwbench.errors import SuiteError, UsageError
from hwbench.formats._base import FORWARD, Format
from hwbench.quantities import DENSE_PASS_SECONDS, LINEAR_SECONDS, PASS_SECONDS
from hwbench.records import ITEM_BYTES, Case, Cost
from hwbench.workloads import _planned, _reading, _texts
from hwbench.workloads._base import (
    DTYPES,
    MANY,
    Subject,
    Workload,
    added,
    layer_format,
    layers_cost,
)
from hwbench.workloads._models import Model, kept_while_unchanged

ROUNDS = 9
"""How often each time is taken at least; the median counts."""

MOST_ROUNDS = 45
"""How often it is taken at most: a model whose pass is short."""

SECONDS = 20.0
"""How long passes go on between these two numbers of rounds.

Where neighbours slow the machine, medians of nine rounds differ by 3 % of a dense pass.
"""

_WARM = 2  # passes before them
_EMPTY = 200  # empty calls; their median is the cost of taking a time


class ModelPass(Workload):
    """Time one pass of a trained model; the score is its seconds.

    Beside it stands ``linear_seconds``: what all linear layers of the case's shape take inside a
    pass. What a pass takes beyond the layers of all shapes is the rest of the model: embeddings,
    attention, norms, the layer that makes the logits. Both are medians over rounds, in which passes
    with and without marks around the layers take turns; what a pair of marks takes is taken off,
    and one measurement serves every shape of a model. With a ``plan`` the model is in the formats
    of that plan, and ``dense_pass_seconds`` is the pass of the model as it was, which takes turns
    with it.

    Options: ``model`` (a folder, or NAME@COMMIT; empty for all-MiniLM-L6-v2), ``plan`` (the file of
    a plan of ``hwbench choose``; empty for none), ``length`` (the tokens of a pass; more than the
    model reads at once are several texts of equal length, at least half of what it reads) and
    ``seeds``.
    """

    SCORE = PASS_SECONDS
    QUANTITIES = (LINEAR_SECONDS, DENSE_PASS_SECONDS)
    OPTIONS = {"model": "", "plan": "", "length": 128, "seeds": 1}  # noqa: RUF012 (as the base has)
    LIMITS = {"length": (1, MANY)}  # noqa: RUF012 (as the base has)
    AXES = ()

    def check(self, case: Case) -> None:
        options = self.options(case)
        model, length = str(options["model"]), int(options["length"])
        if not _reading.unreadable(model):
            _width(length, _most(model))

    def cost(self, case: Case, described: Format) -> Cost | None:
        """Parameters and bytes at rest of all linear layers together, before a plan."""
        del described
        model = str(self.options(case)["model"])
        if _reading.unreadable(model):
            return None
        folder = _reading.folder(model)
        return layers_cost(case, _reading.reader(folder).shapes(folder))

    def unsupported(self, case: Case, described: Format, device: Device) -> str | None:
        options = self.options(case)
        if reason := _reading.unreadable(str(options["model"])):
            return reason
        try:
            if options["plan"]:
                checkpoints.layer_plan(Path(str(options["plan"])))
        except UsageError as error:
            return str(error)
        return None

    def prepare(self, case: Case, described: Format, device: Device, seed: int) -> Subject:
        options = self.options(case)
        name, plan, length = str(options["model"]), str(options["plan"]), int(options["length"])
        original = _on(_reading.loaded(name), device, DTYPES[case.dtype])
        batch = [each.to(device.torch_device) for each in _batch(name, length)]
        costs = {
            layer: layer_format(case, each.out_features, each.in_features).cost(
                batch[0].numel(), ITEM_BYTES[case.dtype], FORWARD
            )
            for layer, each in original.linears().items()
        }
        subject = Subject(
            step=lambda _: original(*batch),
            score_name=PASS_SECONDS.name,
            cost=added([*costs.values()]),
        )

        def score() -> float:
            with torch.no_grad():
                if plan:
                    student, cost = _as_planned(original, case, Path(plan), batch[0].numel())

                    def planned(_: Any) -> Tensor:
                        return student(*batch)

                    device.describe(planned, case=case.id, cost=cost)
                    steps = [subject.step, planned]
                    subject.beside[DENSE_PASS_SECONDS.name], after = _in_turn(steps, device)
                    return after
                key = (name, _reading.now(name), length, case.dtype, device)
                if key not in _TIMED:
                    _TIMED.clear()
                    _TIMED[key] = _apart(original, costs, subject.step, device)
                whole, inside = _TIMED[key]
                shape = (case.out_features, case.in_features)
                subject.beside[LINEAR_SECONDS.name] = inside.get(shape, 0.0)
                return whole

        subject.score = score
        return subject


_Inside = dict[tuple[int, int], float]  # seconds of all layers of a shape
_TIMED: dict[tuple[Any, ...], tuple[float, _Inside]] = {}  # the last model


def _on(loaded: Model, device: Device, dtype: torch.dtype) -> Model:
    """The model there; itself where it is there already."""
    if device.torch_device.type == "cpu" and dtype is torch.float32:
        return loaded
    return copy.deepcopy(loaded).to(device.torch_device, dtype)


def _batch(model: str, length: int) -> tuple[Tensor, Tensor]:
    """Ids and mask of so many tokens of prose in texts of one length, (texts, tokens)."""
    ids = _tokens(model)
    width = _width(length, _most(model))
    row = ids[:, :width].expand(length // width, width).contiguous()
    return row, torch.ones_like(row, dtype=torch.bool)


def _tokens(model: str) -> Tensor:
    """As many tokens of prose as the model reads at once, (1, tokens)."""
    return _tokens_of(_reading.folder(model))


@kept_while_unchanged(1)
def _tokens_of(directory: Path) -> Tensor:
    text = " ".join(_texts.judged(_texts.PROSE))
    ids, mask = _reading.reader(directory).tokens(directory, [text])
    return ids[:, : int(mask.sum())]


def _most(model: str) -> int:
    """The most tokens of one text."""
    return _tokens(model).shape[1]


def _width(length: int, most: int) -> int:
    """The tokens of each text of a pass: as many as can be, of ``most`` at most.

    Raises:
        SuiteError: so many tokens are no whole number of texts, unless of short ones.
    """
    if length <= most:
        return length
    least = -(-most // 2)
    width = next((each for each in range(most, least - 1, -1) if length % each == 0), None)
    if width is None:
        texts = -(-length // most)
        less, more = (texts * each for each in (length // texts, -(-length // texts)))
        raise SuiteError(
            f"A pass of {length} tokens is no whole number of texts of {least} to {most} tokens, "
            f"of which the model reads {most} at once; {less} or {more} tokens would be."
        )
    return width


def _as_planned(original: Model, case: Case, path: Path, tokens: int) -> tuple[Model, Cost]:
    """A copy of the model with each layer in its planned format, and the cost of its layers."""
    plan = checkpoints.layer_plan(path)
    _, inputs = _reading.read(plan.model, plan.text)
    student = _planned.converted(original, plan, inputs)
    costs = [
        layer_format(replace(case, format=each.format, knobs=each.knobs), *each.shape).cost(
            tokens, ITEM_BYTES[case.dtype], FORWARD
        )
        for each in plan.layers
    ]
    return student, added(costs)


# --- times ----------------------------------------------------------------------------------------


def _taken(device: Device, step: Callable[[Any], Any]) -> float:
    start = device.mark()
    device.run(step, [None])
    return device.seconds(start, device.mark())


def _in_turn(steps: list[Callable[[Any], Any]], device: Device) -> list[float]:
    """The median seconds of each, which take turns."""
    for step in [*steps] * _WARM:
        _taken(device, step)
    times: list[list[float]] = [[] for _ in steps]
    while not _enough(len(times[0]), sum(map(sum, times))):
        for own, step in zip(times, steps, strict=True):
            own.append(_taken(device, step))
    return [median(own) for own in times]


def _enough(rounds: int, seconds: float) -> bool:
    """Whether so many rounds, which took so long, suffice for a median."""
    return rounds >= MOST_ROUNDS or (rounds >= ROUNDS and seconds >= SECONDS)


def _apart(
    model: Model, costs: Mapping[str, Cost], step: Callable[[Any], Any], device: Device
) -> tuple[float, _Inside]:
    """Seconds of a pass, and of the layers of each shape inside one.

    They take turns; the time of the marks around a layer is measured and taken off.
    """
    whole: list[float] = []
    inside: dict[tuple[int, int], list[float]] = {}
    linears, empty = model.linears(), _of_marks(device)

    def marked() -> dict[str, list[tuple[Any, Any]]]:
        marks: dict[str, list[tuple[Any, Any]]] = {name: [] for name in linears}
        with _marked(linears, device, marks, costs):
            step(None)
        return marks

    for _ in range(_WARM):
        _taken(device, step)
        marked()
    while not _enough(len(whole), 2 * sum(whole)):  # a round is two passes
        whole.append(_taken(device, step))
        total: _Inside = defaultdict(float)
        for name, pairs in marked().items():
            shape = (linears[name].out_features, linears[name].in_features)
            total[shape] += sum(max(0.0, device.seconds(*pair) - empty) for pair in pairs)
        for shape, seconds in total.items():
            inside.setdefault(shape, []).append(seconds)
    return median(whole), {shape: median(times) for shape, times in inside.items()}


@contextmanager
def _marked(
    linears: Mapping[str, nn.Linear],
    device: Device,
    marks: Mapping[str, list[tuple[Any, Any]]],
    costs: Mapping[str, Cost],
) -> Iterator[None]:
    """Within it each of these layers notes a mark before and after each of its calls."""
    with ExitStack() as stack:
        for name, linear in linears.items():
            noting = _noting(linear, device, marks[name], costs[name])
            linear.forward = noting  # type: ignore[assignment,method-assign]
            stack.callback(linear.__dict__.pop, "forward")
        yield


def _noting(
    linear: nn.Linear, device: Device, marks: list[tuple[Any, Any]], cost: Cost
) -> Callable[[Tensor], Tensor]:
    """The forward pass of a layer between two marks."""
    whole, outputs = type(linear).forward, list[Tensor]()

    def step(x: Tensor) -> None:
        outputs[:] = [whole(linear, x)]

    device.describe(step, cost=cost)

    def forward(x: Tensor) -> Tensor:
        start = device.mark()
        device.run(step, [x])
        marks.append((start, device.mark()))
        return outputs[-1]  # a simulated device runs a step once

    return forward


def _of_marks(device: Device) -> float:
    """Seconds of an empty pair of marks."""
    times = []
    for _ in range(_EMPTY):
        start = device.mark()
        device.run(lambda _: None, [])
        times.append(device.seconds(start, device.mark()))
    return median(times)
