"""float32 products of torch by oneDNN, which is chosen by a setting of the whole process.

torch multiplies float32 on x86 by MKL, whose code for processors of other makers uses half of what
their vector registers hold. Where ``torch.backends.mkldnn.matmul.fp32_precision`` is "bf16", torch
gives the same products to oneDNN, which may then round to bfloat16 inside: it does on processors
with AMX, and computes in float32 on those with AVX-512 alone. So it is tried first, on two small
products; the setting is in force during a call, its backward pass included, and put back in it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from hwbench.errors import UsageError
from hwbench.formats import _kernel

FEWEST_TOKENS = 16
"""Below this many rows of x oneDNN's start costs more than its product saves."""

LIMIT = 1e-6
"""The largest relative error against float64 that counts as float32; bfloat16 has above 1e-3."""

F = TypeVar("F", bound=type[torch.autograd.Function])
T = TypeVar("T")


_BACKEND: Any = torch.backends.mkldnn


class _Chosen(threading.local):
    """Whether this thread is within ``by_onednn``."""

    here = False


class _ByOneDnn:
    """The context in which oneDNN multiplies; threads may be in it at once."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, ""

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = _BACKEND.matmul.fp32_precision
                _BACKEND.matmul.fp32_precision = "bf16"
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                _BACKEND.matmul.fp32_precision = self._before


_by_onednn = _ByOneDnn()
_selection = _Chosen()


def by_onednn(call: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``call`` with its float32 products by oneDNN; the setting is restored afterwards."""
    before, _selection.here = _selection.here, True
    try:
        with _by_onednn:
            return call(*arguments)
    finally:
        _selection.here = before


def remembered(function: F) -> F:
    """Have the backward pass of a Function multiply as its forward pass did."""
    forward, backward = function.forward, function.backward

    @wraps(forward)
    def first(ctx: Any, *arguments: Any) -> Any:
        ctx.onednn = not torch.compiler.is_compiling() and _selection.here
        return forward(ctx, *arguments)

    @wraps(backward)
    def second(ctx: Any, *arguments: Any) -> Any:
        return by_onednn(backward, ctx, *arguments) if ctx.onednn else backward(ctx, *arguments)

    function.forward, function.backward = staticmethod(first), staticmethod(second)  # type: ignore[method-assign]
    return function


def linear_where_float32(x: Tensor, weight: Tensor) -> Tensor:
    """x Wᵀ by oneDNN, and its gradients, where it is float32; else the plain product."""
    if refusal(x.device.type, x.dtype):
        return functional.linear(x, weight)
    y: Tensor = by_onednn(linear, x, weight)
    return y


def where_float32(device: str, call: Callable[..., T], *arguments: Any) -> T:
    """Call ``call`` with its float32 products by oneDNN where they stay float32, else plainly."""
    if refusal(device, torch.float32):
        return call(*arguments)
    result: T = by_onednn(call, *arguments)
    return result


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x Wᵀ, whose backward pass multiplies as the forward pass did."""
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        y: Tensor = _Linear.apply(x, weight)  # type: ignore[no-untyped-call]
        return y
    return functional.linear(x, weight)


@remembered
class _Linear(torch.autograd.Function):
    """One product forward and two backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return functional.linear(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        x_needs, weight_needs = ctx.needs_input_grad
        return dy @ weight if x_needs else None, dy.mT @ x if weight_needs else None


def refusal(device: str, dtype: torch.dtype) -> str | None:
    """Why oneDNN multiplies no such values there in float32, or None where it does."""
    if device != "cpu":
        return "oneDNN multiplies on CPUs."
    if dtype != torch.float32:
        name = str(dtype).removeprefix("torch.")
        return f"torch is set to a library for products in float32 only, not in {name}."
    return _refusal_here()


@cache
def _refusal_here() -> str | None:
    if not torch.backends.mkldnn.is_available():
        return "oneDNN does not run here: PyTorch was built without it."
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # noqa: SLF001
        return (
            "torch.mm by oneDNN does not run here: torch gives it float32 products on processors "
            "with AVX-512 or bfloat16 only."
        )
    error = _error()
    if error <= LIMIT:
        return None
    return (
        f"oneDNN does not run here in float32: it rounds to fewer bits, its relative error is "
        f"{error:.2g}."
    )


def _error() -> float:
    """The largest relative error of two small products by oneDNN, against float64."""
    source = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 128, 128, generator=source, device=source.device) for _ in range(2))
    worst = 0.0
    for product, left, right in ((torch.bmm, a, b), (torch.mm, a[0], b[0])):
        exact = product(left.double(), right.double())
        product_ = by_onednn(product, left, right).double()
        worst = max(worst, float((product_ - exact).norm() / exact.norm()))
    return worst


def _demanded(call: Callable[..., Any], *arguments: Any) -> Any:
    """``by_onednn`` in float32 on a CPU.

    Raises:
        UsageError: oneDNN would round to fewer bits, or is not there.
    """
    if reason := _refusal_here():
        raise UsageError(reason)
    return by_onednn(call, *arguments)


# beside what is compiled, as the compiler reads settings when it compiles
_beside_compiled = _kernel.uncompiled(_demanded)


class OneDnn(_kernel.Kernel):
    """Products by oneDNN in float32, from 16 tokens on: what is mixed into another kernel.

    The class it stands before in the bases gives ``apply``, the Functions of which are
    ``remembered``.
    """

    name = "onednn"

    def apply(self, layer: Any, x: Tensor) -> Tensor:
        """x Wᵀ; the plain product below 16 tokens, and of what is not float32 on a CPU.

        Raises:
            UsageError: oneDNN would round to fewer bits, or is not there.
        """
        if not (x.is_cpu and x.dtype == torch.float32 and x.shape[0] >= FEWEST_TOKENS):
            return super().apply(layer, x)
        call = _beside_compiled if torch.compiler.is_compiling() else _demanded
        product: Tensor = call(super().apply, layer, x)
        return product

    def refuses(
        self, described: Any, device: str, dtype: torch.dtype, direction: str
    ) -> str | None:
        return refusal(device, dtype) or super().refuses(described, device, dtype, direction)
