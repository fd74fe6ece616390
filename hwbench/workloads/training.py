"""A small network trained from scratch with its linear layers in a format: what it learns."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 (the name that everybody knows)
from torch import nn

from hwbench import files
from hwbench.devices._base import Device
from hwbench.errors import SuiteError, UnknownNameError
from hwbench.formats._base import STEP, Format, Linear
from hwbench.quantities import STEP_SECONDS, TEST_ACCURACY, Quantity
from hwbench.records import Case, Cost
from hwbench.workloads._base import (
    DTYPES,
    MANY,
    Subject,
    Workload,
    generator,
    layer_format,
    layers_cost,
)
from hwbench.workloads._networks import Block
from hwbench.workloads._tasks import TASKS, Lesson, Settings, Task

_SIZES = {"context": 2**20, "depth": 1000, "heads": 1000}  # of some tasks alone; and the most
_SAME = 1e-3  # relative: two matrices that differ by no more are the same
_WARM_UP = 0.05  # of the steps, with a rising rate; then it falls to zero along a cosine


class Training(Workload):
    """Train from scratch; the score is taken at the end, on data that was not trained on.

    It is the accuracy; for ``gpt2`` the loss in nats a token, on the same windows every time.
    Layers begin as their format's ``random`` makes them and learn at the rate of a dense layer
    times the format's ``rate_multipliers``. A seed draws the beginning and the order of the data.
    Beside the score stands ``step_seconds``, the median over the steps of one training step.

    Options: ``task`` (digits: a vision transformer; mnist1d: a perceptron; cifar10: a larger vision
    transformer; gpt2: a language model), ``data`` (the folder of CIFAR-10 or of a text), ``steps``,
    ``batch``, ``rate`` (of a dense layer) and ``seeds``; for gpt2 also ``context`` (tokens that it
    sees), ``depth`` (blocks) and ``heads``. The shape is square: the width of the network; without
    further options gpt2 of width 768 is GPT-2 small.
    """

    SCORE = TEST_ACCURACY
    QUANTITIES = (STEP_SECONDS,)
    OPTIONS = {  # noqa: RUF012 (declared in the base)
        "task": "digits", "data": "", "steps": 1000, "batch": 64, "rate": 2e-3, "seeds": 3,
        "context": 1024, "depth": 12, "heads": 12,
    }  # fmt: skip
    LIMITS = {  # noqa: RUF012 (declared in the base)
        "steps": (1, MANY), "batch": (1, MANY), "rate": (0, MANY),
        **{name: (1, most) for name, most in _SIZES.items()},
    }  # fmt: skip
    AXES = ()

    def check(self, case: Case) -> None:
        task, name = self._task(case), self.options(case)["task"]
        for option in ("data", *_SIZES):
            if option in case.options and option not in task.uses:
                raise SuiteError(f"the task {name} has no use for {option}.")
        settings = self._settings(case)
        multiple = task.multiple(settings)
        if case.out_features != case.in_features or case.in_features % multiple:
            raise SuiteError(
                f"the shape of a training is its width twice, a multiple of {multiple}."
            )

    def quantity(self, case: Case) -> Quantity:
        return self._task(case).score

    def cost(self, case: Case, described: Format) -> Cost | None:
        """Parameters and bytes of all layers in the format together, at rest."""
        return layers_cost(case, self._task(case).layers(self._settings(case)))

    def unsupported(self, case: Case, described: Format, device: Device) -> str | None:
        options, task, settings = self.options(case), self._task(case), self._settings(case)
        if reason := task.missing(settings):
            return reason
        if task.inputs and (most := task.inputs(settings)) < int(options["batch"]):
            return (
                f"A batch of {options['batch']} is more than the {most} inputs that the task "
                f"{options['task']} learns from."
            )
        return described.unsupported(device.torch_device.type, DTYPES[case.dtype], STEP)

    def prepare(self, case: Case, described: Format, device: Device, seed: int) -> Subject:
        options, task, settings = self.options(case), self._task(case), self._settings(case)
        where, dtype = device.torch_device, DTYPES[case.dtype]
        begin, order = (generator(device, seed, stream) for stream in (8, 9))
        rates: dict[int, float] = {}

        def make(out_features: int, in_features: int) -> nn.Module:
            kind = layer_format(case, out_features, in_features)
            layer = kind.random(dtype=torch.float32, generator=begin).trust_versions()
            layer.bias = nn.Parameter(torch.zeros(out_features, device=where))
            multipliers = kind.rate_multipliers()
            rates.update({id(p): multipliers.get(n, 1.0) for n, p in layer.named_parameters()})
            return layer

        network = task.network(settings, make).to(where)
        _begin(network, begin)
        lesson = task.lesson(settings, where)
        subject = Subject(step=lambda _: None, score_name=task.score.name, module=network)

        def score() -> float:
            optimizer = torch.optim.AdamW(
                [
                    {"params": [p], "rate": float(options["rate"]) * rates.get(id(p), 1.0)}
                    for p in network.parameters()
                ],
                weight_decay=0.01,
            )
            seconds = _train(
                network.to(dtype), lesson, optimizer, order, device,
                steps=int(options["steps"]), batch=int(options["batch"]),
            )  # fmt: skip
            subject.beside[STEP_SECONDS.name] = seconds
            return lesson.score(network)

        subject.score = score
        return subject

    def _settings(self, case: Case) -> Settings:
        """The options that describe the network and its data; ``check`` looks at them first."""
        options = self.options(case)
        folder = files.named(str(options["data"]))
        return Settings(case.in_features, folder, *(int(options[name]) for name in _SIZES))

    def _task(self, case: Case) -> Task:
        name = str(self.options(case)["task"])
        if name not in TASKS:
            raise UnknownNameError("task", name, TASKS)
        return TASKS[name]


@torch.no_grad()
def _begin(network: nn.Module, source: torch.Generator) -> None:
    """Draw the dense parts from the seed too: layers as in torch, embeddings as in GPT-2.

    The part that a block adds to its input is scaled by the block's ``scale``.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            for parameter in (module.weight, module.bias):
                parameter.uniform_(-bound, bound, generator=source)
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(std=0.02, generator=source)
        elif isinstance(module, Block) and module.scale != 1:
            for layer in (module.out, module.down):
                _scale(cast(Linear, layer), module.scale)  # what make makes


def _scale(layer: Linear, factor: float) -> None:
    """Multiply the layer's matrix, in the fewest tensors in which it is linear.

    Raises:
        ValueError: doubling no set of its tensors doubles the matrix.
    """
    tensors = layer.scalable_tensors()
    once = layer.to_dense().clone()
    for count in range(1, len(tensors) + 1):
        for subset in itertools.combinations(tensors, count):
            for tensor in subset:
                tensor.mul_(2.0)
            linear = (layer.to_dense() - 2 * once).norm() <= _SAME * once.norm()
            for tensor in subset:
                tensor.mul_(factor / 2 if linear else 0.5)
            if linear:
                return
    raise ValueError("no set of its tensors scales the layer's matrix.")


def _train(
    network: nn.Module,
    lesson: Lesson,
    optimizer: torch.optim.Optimizer,
    order: torch.Generator,
    device: Device,
    *,
    steps: int,
    batch: int,
) -> float:
    """Train, and return the median seconds of a step."""
    times: list[float] = []
    batches = lesson.batches(batch, order)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * _schedule(step / steps)
        x, y = next(batches)
        start = device.mark()
        loss = F.cross_entropy(network(x).flatten(0, -2), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(device.seconds(start, device.mark()))
    return statistics.median(times)


def _schedule(done: float) -> float:
    if done < _WARM_UP:
        return (done + 0.01) / (_WARM_UP + 0.01)
    return 0.5 * (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP)))
