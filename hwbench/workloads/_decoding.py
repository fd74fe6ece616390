"""What a decoder keeps with every inner linear layer in a format, window by window of a text.

The layers are projected one block of the model after the other, by what the original sees there.
The windows are then scored with Ŵ applied as a dense matrix; that the layers' own kernels give the
same logits is proved on the first of them. What does not depend on a format is made once a process:
the model, its G = XᵀX / n of every layer, and its probabilities on the windows that are scored. The
projected blocks are kept until the score is there, see ``_blocks``.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (the name that everybody knows)
from torch import Tensor, nn

from hwbench.devices._base import Device
from hwbench.formats import _onednn
from hwbench.formats._base import Linear
from hwbench.formats._gram import Seen
from hwbench.workloads import _blocks, _own, _prose, _whole
from hwbench.workloads._base import GRAM, NONE
from hwbench.workloads._llama import Llama, encoded

SAME = 1e-3
"""How far the logits of the layers' own kernels may be from those of Ŵ, of their norm."""
_NEAR = 30.0  # … and where a kernel rounds activations: times the tolerance of one layer
_CALLS = 3  # passes; their median is the latency, and the first is the compared one
_TOKENS = 32  # tokens that are scored at once: their logits of a large vocabulary stay in cache

Project = Callable[[Tensor, Seen | None], Linear]
"""A weight and its layer's inputs → the layer in the format."""
Sighted = tuple[str, nn.Linear, Seen | None]
"""A layer's name, the layer, and the inputs that its projection uses."""


class Sight(NamedTuple):
    """The inputs of projections: a word of ``WEIGHTINGS``, and windows of calibration text."""

    weighting: str
    windows: int


class Kept(NamedTuple):
    """The quantities of each window, and of the model as a whole."""

    nats: list[float]  # mean nats a token
    original_nats: list[float]
    divergence: list[float]  # mean nats a token from the original's next-token distribution
    agreement: list[float]  # the part of tokens where both find the same token likeliest
    kernel_error: float
    seconds: float  # one pass of a window by the layers' own kernels
    sizes: dict[str, float]
    score_seconds: float


def kept(
    file: Path,
    project: Project,
    sight: Sight,
    evaluation: int,
    device: Device,
    beside: Path,
    depth: float = 1.0,
) -> Kept:
    """Score SmolLM2 with each inner linear layer projected.

    Args:
        file: the GGUF file.
        project: what becomes of a layer.
        sight: what the projections see.
        evaluation: windows that are scored.
        device: where all of it runs.
        beside: the folder of the blocks that are projected; it is removed with the score.
        depth: the share of the blocks that are kept, the first ones.

    Raises:
        ArithmeticError: a layer's own kernel gives other logits than its matrix, or no numbers.
    """
    begun = time.perf_counter()
    where = device.torch_device
    fast = partial(_onednn.where_float32, where.type)
    original = _original(file, where)
    ids = _windows(file, "evaluation", evaluation, where)
    blocks = _blocks.Kept(beside, where)
    sights = fast(_sights, file, sight, where)
    student, tolerance = fast(_projected, original, project, sights, blocks)
    student.shorten(_whole.shorter(depth, len(original.model["layers"])))
    first, mask = ids[:1], torch.ones_like(ids[:1], dtype=torch.bool)
    own = student(first, mask)
    seconds = _whole.latency(lambda: student(first, mask), device, _CALLS, warm=0)
    sizes = _whole.size(student)
    _made_dense(student)
    error = _apart(own, student(first, mask))
    if not math.isfinite(error):
        raise ArithmeticError("The model's logits are no numbers any more.")
    if error > max(SAME, _NEAR * tolerance):
        raise ArithmeticError(
            f"The layers' own kernels give logits that are {error:.2g} of their norm from those "
            "of the matrices that they stand for."
        )
    rows = fast(_scored, student, ids, fast(_exact, file, evaluation, where))
    nats, exact, divergence, agreement = (list(each) for each in zip(*rows, strict=True))
    took = time.perf_counter() - begun + blocks.earlier
    blocks.remove()
    return Kept(nats, exact, divergence, agreement, error, seconds, sizes, took)


@lru_cache(maxsize=1)
def _original(file: Path, where: torch.device) -> Llama:
    return Llama.load(file).to(where)


@lru_cache(maxsize=1)
def _exact(file: Path, evaluation: int, where: torch.device) -> list[Tensor]:
    """The original's logarithms of the next token's probabilities on each window that is scored.

    1.6 GB for 32 windows of SmolLM2's 49,152 tokens.
    """
    original = _original(file, where)
    ids = _windows(file, "evaluation", evaluation, where)
    mask = torch.ones_like(ids[:1], dtype=torch.bool)
    with torch.no_grad():
        return [_logs(original(window.unsqueeze(0), mask)[0]) for window in ids]


def _logs(logits: Tensor) -> Tensor:
    """(tokens, vocabulary) → (tokens − 1, vocabulary): no token follows the last one."""
    return F.log_softmax(logits[:-1].float(), -1)


def _windows(file: Path, part: str, count: int, where: torch.device) -> Tensor:
    return _prose.windows(partial(encoded, file), part, count).to(where)


def _sights(file: Path, sight: Sight, where: torch.device) -> Iterator[Sighted]:
    """Every layer with the inputs of its projection; neighbours with the same inputs share them."""
    original = _original(file, where)
    if sight.weighting == NONE:
        return ((name, linear, None) for name, linear in original.linears().items())
    if sight.weighting == GRAM:
        return _by_gram(original, _grams(file, sight.windows, where))
    return _by_rows(original, _windows(file, "calibration", sight.windows, where))


def _by_rows(original: Llama, ids: Tensor) -> Iterator[Sighted]:
    shared: Seen | None = None
    for name, linear, rows in original.visited(ids):
        if shared is None or shared.rows is not rows:
            shared = Seen(rows)
        yield name, linear, shared


def _by_gram(original: Llama, grams: dict[str, Tensor]) -> Iterator[Sighted]:
    shared: Seen | None = None
    for name, linear in original.linears().items():
        if shared is None or shared.gram is not grams[name]:
            shared = Seen.of_gram(grams[name])
        yield name, linear, shared


@lru_cache(maxsize=1)
def _grams(file: Path, calibration: int, where: torch.device) -> dict[str, Tensor]:
    """G of every layer by its name, one tensor for layers that see the same: 0.8 GB for SmolLM2."""
    ids = _windows(file, "calibration", calibration, where)
    with torch.no_grad():
        sighted = _by_rows(_original(file, where), ids)
        return {name: shared.gram for name, _, shared in sighted if shared is not None}


def _projected(
    original: Llama, project: Project, sights: Iterator[Sighted], blocks: _blocks.Kept
) -> tuple[Llama, float]:
    """A copy with each layer projected, and how far the kernel of a layer may miss at most."""
    student, tolerance = copy.deepcopy(original), 0.0
    for block, some in groupby(sights, key=lambda each: each[0].split(".")[2]):
        own = list(some)
        for name, layer in blocks.block(block, partial(_block, project, own)).items():
            tolerance = max(tolerance, layer.tolerance(own[0][1].weight.dtype))
            student.set_submodule(name, layer)
    return student.requires_grad_(False), tolerance


def _block(project: Project, own: list[Sighted]) -> dict[str, Linear]:
    return {name: project(linear.weight.detach(), inputs) for name, linear, inputs in own}


def _made_dense(model: Llama) -> None:
    """Put a plain linear layer of the same matrix in the place of each projected one."""
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, Linear)]
    for name, layer in layers:
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(layer.to_dense().detach().contiguous(), requires_grad=False)
        model.set_submodule(name, plain)


def _apart(ours: Tensor, target: Tensor) -> float:
    exact = target.double()
    return _own.apart(ours.double() - exact, exact)


def _scored(
    student: Llama, ids: Tensor, exact: list[Tensor]
) -> list[tuple[float, float, float, float]]:
    """What ``_window`` says of each window (tokens,) of ``ids``."""
    mask = torch.ones_like(ids[:1], dtype=torch.bool)
    return [
        _window(logs, student(window.unsqueeze(0), mask)[0], window)
        for window, logs in zip(ids, exact, strict=True)
    ]


def _window(exact: Tensor, approximate: Tensor, ids: Tensor) -> tuple[float, float, float, float]:
    """Nats of both, the divergence, and the agreement of one window.

    Args:
        exact: of the original, as ``_logs`` gives it.
        approximate: logits of the student, (tokens, vocabulary).
        ids: (tokens,).
    """
    sums = torch.zeros(4, dtype=torch.float64, device=ids.device)
    parts = (exact, approximate[:-1], ids[1:].unsqueeze(1))
    for logs, logits, after in zip(*(each.split(_TOKENS) for each in parts), strict=True):
        ours = F.log_softmax(logits.float(), -1)
        each = (
            *(-ours.gather(1, after), -logs.gather(1, after)),
            (logs.exp() * (logs - ours)).sum(-1),
            logs.argmax(-1) == ours.argmax(-1),
        )
        sums += torch.stack([values.double().sum() for values in each])
    nats, before, divergence, same = (sums / len(exact)).tolist()
    return nats, before, max(0.0, divergence), same
