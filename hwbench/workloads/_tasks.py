"""The tasks of training: a network, its data and its score, by the name of the task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from hwbench.checkpoints import no_package
from hwbench.quantities import TEST_ACCURACY, VALIDATION_LOSS, Quantity
from hwbench.workloads import _language, _sets
from hwbench.workloads._networks import Make, Perceptron, Photographs, Vision


class Settings(NamedTuple):
    """A case's settings of network and data; a task uses those that it names."""

    width: int
    data: Path = Path()  # the folder; Path() for none
    context: int = 1024
    depth: int = 12
    heads: int = 12


class Lesson(Protocol):
    """Data that a network learns and is scored on."""

    def batches(self, size: int, source: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and the classes wanted, without end, in an order that ``source`` draws."""

    def score(self, network: nn.Module) -> float:
        """The score on the part that is not trained on, the same part for every seed."""


class Task(NamedTuple):
    """A network, the shapes of its layers in the format, its data, and its score's quantity."""

    network: Callable[[Settings, Make], nn.Module]
    layers: Callable[[Settings], list[tuple[int, int]]]
    lesson: Callable[[Settings, torch.device], Lesson]
    missing: Callable[[Settings], str | None]  # why there is no data here, in words
    score: Quantity = TEST_ACCURACY
    uses: tuple[str, ...] = ()  # options that mean something, beside those of every task
    multiple: Callable[[Settings], int] = lambda _: 4  # the width must be a multiple of it
    inputs: Callable[[Settings], int] | None = None  # of its data; None where any number is drawn


def _transformer(width: int, depth: int, wider: int) -> list[tuple[int, int]]:
    each = [(width, width)] * 4 + [(wider * width, width), (width, wider * width)]
    return each * depth


def _packaged(data: Callable[[], _sets.Data], package: str, inputs: int) -> dict[str, Any]:
    return {
        "lesson": lambda _, where: data().to(where),
        "missing": lambda _: no_package(package),
        "inputs": lambda _: inputs,
    }


def _gpt2(s: Settings, make: Make) -> nn.Module:
    words = _language.vocabulary(s.data)
    return _language.Language(
        s.width, make, vocabulary=words, context=s.context, depth=s.depth, heads=s.heads
    )


TASKS = {
    "digits": Task(
        network=lambda s, make: Vision(s.width, make),
        layers=lambda s: _transformer(s.width, 2, 2),
        **_packaged(_sets.digits, "sklearn", _sets.DIGITS),
    ),
    "mnist1d": Task(
        network=lambda s, make: Perceptron(s.width, make),
        layers=lambda s: [(s.width, s.width)] * 3,
        **_packaged(_sets.mnist1d, "mnist1d", _sets.MNIST1D),
    ),
    "cifar10": Task(
        network=lambda s, make: Photographs(s.width, make),
        layers=lambda s: _transformer(s.width, 4, 2),
        lesson=lambda s, where: _sets.cifar10(s.data).to(where),
        missing=lambda s: _sets.no_cifar10(s.data),
        inputs=lambda s: _sets.pictures(s.data),
        uses=("data",),
    ),
    "gpt2": Task(
        network=_gpt2,
        layers=lambda s: _transformer(s.width, s.depth, 4),
        lesson=lambda s, where: _language.tokens(s.data, s.context, where),
        missing=lambda s: _language.no_tokens(s.data, s.context),
        score=VALIDATION_LOSS,
        uses=("data", "context", "depth", "heads"),
        multiple=lambda s: s.heads,
    ),
}
"""``digits`` and ``cifar10``: vision transformers; ``mnist1d``: a perceptron; ``gpt2``: GPT-2."""
