"""A small network trained from scratch with its linear layers in a format: what it learns."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 (the name that everybody knows)
from torch import Tensor, nn

from hwbench.devices._base import Device
from hwbench.errors import SuiteError, UnknownNameError
from hwbench.formats._base import STEP, Format
from hwbench.records import ITEM_BYTES, Case, Cost, Quantity
from hwbench.workloads._base import DTYPES, Subject, Workload, generator, layer_format
from hwbench.workloads._networks import TASKS, Task
from hwbench.workloads._sets import Data

_TEST_BATCH = 1024  # so many at once are looked at, however many there are
_WARM_UP = 0.05  # of the steps, with a rising rate; then it falls to zero along a cosine


class Training(Workload):
    """Train from scratch; the score is the accuracy on the test part at the end.

    Layers begin as their format's ``random`` makes them and learn at the rate of a dense layer
    times the format's ``rate_multipliers``. A seed draws the beginning and the order of the data.
    Beside the score stands ``step_seconds``, the median over the steps of one training step.

    Options: ``task`` (digits: a vision transformer; mnist1d: a perceptron; cifar10: a larger vision
    transformer), ``data`` (the folder of CIFAR-10), ``steps``, ``batch``, ``rate`` (of a dense
    layer) and ``seeds``. The shape is square: the width of the network.
    """

    TIMED = False
    SCORE = Quantity(name="test_accuracy", unit="", better="higher")
    OPTIONS = {"task": "digits", "data": "", "steps": 1000, "batch": 64, "rate": 2e-3, "seeds": 3}  # noqa: RUF012 (declared in the base)
    AXES = ()

    def check(self, case: Case) -> None:
        if case.out_features != case.in_features or case.in_features % 4:
            raise SuiteError("the shape of a training is its width twice, a multiple of 4.")
        task = self._task(case)
        if self._folder(case) != Path() and not task.from_folder:
            raise SuiteError(f"the task {self.options(case)['task']} has no use for data.")

    def cost(self, case: Case, described: Format) -> Cost | None:
        """Parameters and bytes of all layers in the format together, at rest."""
        item = ITEM_BYTES[case.dtype]
        each = [
            layer_format(case, *shape).cost(0, item, "forward")
            for shape in self._task(case).layers(case.in_features)
        ]
        parts = ("parameters", "stored_bytes", "flops", "dense_flops", "compulsory_bytes")
        return Cost(**{part: sum(getattr(cost, part) for cost in each) for part in parts})

    def unsupported(self, case: Case, described: Format, device: Device) -> str | None:
        if reason := self._task(case).missing(self._folder(case)):
            return reason
        return described.unsupported(device.torch_device.type, DTYPES[case.dtype], STEP)

    def prepare(self, case: Case, described: Format, device: Device, seed: int) -> Subject:
        options, task = self.options(case), self._task(case)
        where, dtype = device.torch_device, DTYPES[case.dtype]
        begin, order = (generator(device, seed, stream) for stream in (8, 9))
        rates: dict[int, float] = {}

        def make(out_features: int, in_features: int) -> nn.Module:
            kind = layer_format(case, out_features, in_features)
            layer = kind.random(dtype=torch.float32, generator=begin)
            layer.bias = nn.Parameter(torch.zeros(out_features, device=where))
            multipliers = kind.rate_multipliers()
            rates.update({id(p): multipliers.get(n, 1.0) for n, p in layer.named_parameters()})
            return layer

        network = task.network(case.in_features, make).to(where)
        _begin(network, begin)
        data = Data(*(t.to(where) for t in task.data(self._folder(case))))
        subject = Subject(step=lambda _: None, score_name=self.SCORE.name, module=network)

        def score() -> float:
            optimizer = torch.optim.AdamW(
                [
                    {"params": [p], "rate": float(options["rate"]) * rates.get(id(p), 1.0)}
                    for p in network.parameters()
                ],
                weight_decay=0.01,
            )
            seconds = _train(
                network.to(dtype), data, optimizer, order, device,
                steps=int(options["steps"]), batch=int(options["batch"]),
            )  # fmt: skip
            subject.beside["step_seconds"] = seconds
            return _accuracy(network, data)

        subject.score = score
        return subject

    def _folder(self, case: Case) -> Path:
        return Path(str(self.options(case)["data"])).expanduser()

    def _task(self, case: Case) -> Task:
        name = str(self.options(case)["task"])
        if name not in TASKS:
            raise UnknownNameError("task", name, TASKS)
        return TASKS[name]


def _begin(network: nn.Module, source: torch.Generator) -> None:
    """Draw what is dense from the seed too: uniform, as torch's own layers begin."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            for parameter in (module.weight, module.bias):
                with torch.no_grad():
                    parameter.uniform_(-bound, bound, generator=source)


def _train(
    network: nn.Module,
    data: Data,
    optimizer: torch.optim.Optimizer,
    order: torch.Generator,
    device: Device,
    *,
    steps: int,
    batch: int,
) -> float:
    """Train, and return the median seconds of a step."""
    times: list[float] = []
    waiting = torch.empty(0, dtype=torch.int64, device=data.x.device)
    dtype = next(network.parameters()).dtype
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * _schedule(step / steps)
        if len(waiting) < batch:
            waiting = torch.randperm(len(data.x), generator=order, device=data.x.device)
        picked, waiting = waiting[:batch], waiting[batch:]
        x, y = data.x[picked].to(dtype), data.y[picked]
        start = device.mark()
        loss = F.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(device.seconds(start, device.mark()))
    return statistics.median(times)


def _schedule(done: float) -> float:
    if done < _WARM_UP:
        return (done + 0.01) / (_WARM_UP + 0.01)
    return 0.5 * (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP)))


def _accuracy(network: nn.Module, data: Data) -> float:
    dtype = next(network.parameters()).dtype
    with torch.no_grad():
        each: list[Tensor] = [
            network(x.to(dtype)).argmax(-1) for x in data.x_test.split(_TEST_BATCH)
        ]
    return float((torch.cat(each) == data.y_test).double().mean())
