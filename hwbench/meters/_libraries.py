"""Every way in which a format may reach the arithmetic of a device: routes of a square product.

A roof is the best that any library reaches. ``torch.mm`` is one library's opinion of a processor:
Intel MKL takes its AVX2 path on AMD's, at less than half of what oneDNN reaches there. So each
dtype is multiplied through every library that a format of hwbench may use, and a route counts only
where its product is as exact as the dtype allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hwbench.devices._base import Device, Step
from hwbench.formats import _packing
from hwbench.formats._base import FORWARD
from hwbench.workloads._base import DTYPES, Subject

Setting = Callable[[], AbstractContextManager[None]]

PLAIN = "torch.mm"
"""The route that every device has; its library, where it is known, stands behind it."""

PACKED: dict[_packing.Library, str] = {
    _packing.OneDnn(): "oneDNN, packed",
    _packing.Mkl(): "MKL, packed",
}
"""The kernels that pack a weight in advance, and the names of their routes."""

TOLERANCE = {"float64": 1e-13, "float32": 1e-6, "bfloat16": 1e-2, "float16": 2e-3}
"""The largest relative error, against float64, of a product that is computed in a dtype.

Inputs rounded to bfloat16 give 2e-3, so that a float32 product computed so is told apart.
"""

_ROWS, _COLUMNS = 8, 64  # the corner of a product that is checked for errors


@dataclass(frozen=True)
class Route:
    """One way to multiply: the settings that it needs, and the step on arrays (A, B, C)."""

    name: str
    step: Callable[[list[Tensor]], Step]
    setting: Setting = nullcontext

    def on(self, subject: Subject) -> Subject:
        """The same product through this route."""
        return replace(subject, step=self.step(subject.inputs))


def routes(device: Device, dtype: str) -> list[Route]:
    """The routes of a dtype on a device, that of ``torch.mm`` as it is set first."""
    available = [
        Route(name, _plain, setting) for name, setting in device.matmul_libraries(dtype).items()
    ]
    kind = device.torch_device.type
    for kernel, name in PACKED.items():
        if device.kind == kind and not kernel.refuses(None, kind, DTYPES[dtype], FORWARD):
            available.append(Route(name, _packed(kernel)))
    return available


def exact(candidates: list[Route], subjects: Iterable[Subject], dtype: str) -> list[Route]:
    """The first route, and every other with products as exact as the dtype allows, at every size.

    A setting of torch may let the first one round; the others may then err by twice as much. A
    switch that leaves ``torch.mm`` as it was, bit for bit, is no route of its own.
    """
    plain, *others = candidates
    errors = {route.name: 0.0 for route in candidates}
    for subject in subjects if others else ():
        for route in candidates:
            errors[route.name] = max(errors[route.name], error(route, subject))
    allowed = max(TOLERANCE[dtype], 2 * errors[plain.name])
    return [
        plain,
        *(
            route
            for route in others
            if errors[route.name] < allowed
            and not (route.step is _plain and errors[route.name] == errors[plain.name])
        ),
    ]


def error(route: Route, subject: Subject) -> float:
    """The relative error (Frobenius) of a corner of a route's product, against float64."""
    left, right, _ = subject.inputs
    with torch.no_grad(), route.setting():
        computed = route.step(subject.inputs)(None)[:_ROWS, :_COLUMNS].double()
    corner = left[:_ROWS].double() @ right[:, :_COLUMNS].double()
    return float((computed - corner).norm() / corner.norm())


def both(first: Setting, second: Setting) -> Setting:
    """Two settings at once."""

    @contextmanager
    def entered() -> Any:
        with ExitStack() as stack:
            stack.enter_context(first())
            stack.enter_context(second())
            yield

    return entered


def _plain(arrays: list[Tensor]) -> Step:
    left, right, out = arrays
    return lambda _: torch.mm(left, right, out=out)


def _packed(kernel: _packing.Library) -> Callable[[list[Tensor]], Step]:
    """A B with Bᵀ packed in advance: at the first call, which is not timed."""

    def step(arrays: list[Tensor]) -> Step:
        left, right, _ = arrays
        packing, weight = _packing.Packing(), right.T.contiguous()

        def product(_: object) -> Tensor:
            layout = packing.layout(kernel, weight, left.shape[0], trusting=True)
            return kernel.multiply(left, layout, weight)

        return product

    return step
