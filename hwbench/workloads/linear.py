"""One linear layer: forward, backward, or both, on random tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hwbench.devices._base import Device
from hwbench.formats._base import Format, Linear
from hwbench.records import ITEM_BYTES, Case, Cost, Direction
from hwbench.workloads._base import DTYPES, Subject, Workload, generator, import_for_backward

TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 3e-2, "float16": 4e-3}
"""Largest relative Frobenius error of output and gradients that counts as right."""

_MAX_GRAPHS = 8  # forward graphs kept alive at once when only the backward pass is timed


class LinearLayer(Workload):
    """y = layer(x) for x of shape (tokens, in_features), x and the output gradient standard normal.

    The backward pass is timed by ``torch.autograd.grad`` on a fresh graph each call: no retained
    graph, nothing accumulated, and the forward that made the graph lies outside the timed part.
    """

    def cost(self, case: Case, described: Format) -> Cost:
        return described.cost(
            case.tokens or 1, ITEM_BYTES[case.dtype], case.direction or Direction.FORWARD
        )

    def unsupported(self, case: Case, described: Format, device: Device) -> str | None:
        direction = case.direction or Direction.FORWARD
        return described.unsupported(device.torch_device.type, DTYPES[case.dtype], direction)

    def prepare(self, case: Case, described: Format, device: Device, seed: int) -> Subject:
        dtype, tokens = DTYPES[case.dtype], case.tokens or 1
        layer = described.random(dtype=dtype, generator=generator(device, seed, 1))
        layer.trust_versions()
        x = _normal((tokens, case.in_features), dtype, generator(device, seed, 2))
        dy = _normal((tokens, case.out_features), dtype, generator(device, seed, 3))
        direction = Direction(case.direction or Direction.FORWARD)
        if direction is not Direction.FORWARD:
            import_for_backward()
        layer.requires_grad_(direction not in (Direction.FORWARD, Direction.BACKWARD_INPUT))
        x.requires_grad_(direction not in (Direction.FORWARD, Direction.BACKWARD_WEIGHT))
        call: nn.Module = layer
        if case.mode == "compile":
            with torch.no_grad():
                layer(x)  # the compiler must not trace the preparation in a layer's first call
            call = torch.compile(layer, dynamic=False)  # type: ignore[assignment]
        subject = _subject(call, layer, x, dy, direction)
        subject.cost = self.cost(case, described)
        subject.module, subject.inputs = layer, [x, dy]
        subject.compiled = case.mode == "compile"
        subject.tolerance = TOLERANCE[case.dtype] + layer.tolerance(dtype)
        subject.numerical_error = lambda: _numerical_error(call, layer, x, dy)
        return subject


def _normal(shape: Sequence[int], dtype: torch.dtype, source: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=source, device=source.device).to(dtype)


def _differentiated(layer: nn.Module, x: Tensor) -> list[Tensor]:
    return [t for t in (x, *layer.parameters()) if t.requires_grad]


def _subject(
    call: nn.Module, layer: nn.Module, x: Tensor, dy: Tensor, direction: Direction
) -> Subject:
    tensors = _differentiated(layer, x)

    def forward(_: Any) -> Tensor:
        return call(x)

    def backward(y: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, tensors, dy)

    def step(_: Any) -> tuple[Tensor, ...]:
        return torch.autograd.grad(call(x), tensors, dy)

    if direction is Direction.FORWARD:
        return Subject(step=forward)
    if direction is Direction.STEP:
        return Subject(step=step, grad=True)
    before: Callable[[], Tensor] = lambda: call(x)  # noqa: E731 (read beside the step it feeds)
    return Subject(step=backward, before=before, grad=True, max_calls=_MAX_GRAPHS)


def _numerical_error(call: nn.Module, layer: Linear, x: Tensor, dy: Tensor) -> float:
    """The largest relative error of the output and of every wanted gradient, against float64."""
    exact = copy.deepcopy(layer).double()
    x64 = x.detach().double().requires_grad_(x.requires_grad)
    tensors, tensors64 = _differentiated(layer, x), _differentiated(exact, x64)
    with torch.set_grad_enabled(bool(tensors)):
        y, y64 = call(x), x64 @ exact.to_dense().mT
    pairs = [(y.detach(), y64.detach())]
    if tensors:
        pairs += zip(
            torch.autograd.grad(y, tensors, dy),
            torch.autograd.grad(y64, tensors64, dy.double()),
            strict=True,
        )
    if any(a.shape != b.shape for a, b in pairs) or y.dtype != x.dtype:
        return float("inf")
    return max(_relative(ours, reference) for ours, reference in pairs)


def _relative(ours: Tensor, reference: Tensor) -> float:
    error = torch.linalg.vector_norm(ours.double() - reference)
    norm = torch.linalg.vector_norm(reference)
    value = float(error / norm) if norm > 0 else float(error)
    return value if value == value else float("inf")
