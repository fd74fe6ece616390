"""Weights laid out in advance for the matrix products of a CPU library.

A product on a CPU first copies the weight into the layout that its inner loops read, in every call.
A layer whose weight does not change can have that done once:

* ``onednn``: a blocked layout of oneDNN; float32, bfloat16 and float16;
* ``mkl``: the packed layout of Intel MKL's ``cblas_sgemm_pack``; float32.

Both layouts are made for a number of tokens, and both libraries come with PyTorch, whose compiler
uses the same operators for weights that are frozen. Forward only: a training step changes the
weight, so that every step would pack anew.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from hwbench.errors import UsageError
from hwbench.formats._base import FORWARD
from hwbench.formats._blocks import needs_grad
from hwbench.formats._derived import Derived

ONEDNN, MKL = "onednn", "mkl"
KERNELS = (ONEDNN, MKL)

_LAYOUTS_KEPT = 4  # numbers of tokens for which one weight stays packed


def unsupported(kernel: str, device: str, dtype: torch.dtype, direction: str) -> str | None:
    """Why a kernel cannot run in that direction, or None where it can; for ``Format``.

    A kernel that packs nothing runs everywhere.
    """
    if kernel not in KERNELS:
        return None
    if device != "cpu":
        return f"{kernel} packs weights for the matrix products of CPUs."
    if direction != FORWARD:
        return f"{kernel} packs a weight that stays as it is, and every training step changes it."
    if kernel == MKL:
        if not torch.backends.mkl.is_available():
            return "mkl does not run here: PyTorch was built without it."
        return None if dtype == torch.float32 else "MKL packs weights in float32 only."
    return _onednn_lacks(dtype)


def _onednn_lacks(dtype: torch.dtype) -> str | None:
    if not torch.backends.mkldnn.is_available():
        return "onednn does not run here: PyTorch was built without it."
    narrow: dict[torch.dtype, Any] = {
        torch.bfloat16: _onednn()._is_mkldnn_bf16_supported,  # noqa: SLF001
        torch.float16: _onednn()._is_mkldnn_fp16_supported,  # noqa: SLF001
    }
    if dtype in narrow:
        name = str(dtype).removeprefix("torch.")
        return None if narrow[dtype]() else f"onednn does not run here: no product in {name}."
    return None if dtype == torch.float32 else "oneDNN packs no weights in float64."


class Packing:
    """What a kernel has packed of one weight: working memory, and no part of a layer's state.

    A copy and a pickle of it are empty.
    """

    def __init__(self, kernel: str) -> None:
        self.kernel = kernel
        # By the number of tokens, the oldest first.
        self._layouts = Derived[dict[int, Tensor]]()

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        return type(self), (self.kernel,)

    def clear(self) -> None:
        """Forget every layout."""
        self._layouts.clear()

    def product(self, x: Tensor, weight: Tensor, *, trusting: bool) -> Tensor:
        """x Wᵀ for x of (tokens, in) and W of (out, in), which is packed when it first is needed.

        Where gradients are recorded and for kernels that pack nothing it is the plain product.
        ``trusting`` is that of the layer.

        Raises:
            UsageError: the kernel cannot pack a weight of that dtype, or on that device.
        """
        if self.kernel not in KERNELS or x.shape[0] == 0 or needs_grad(x, weight):
            return functional.linear(x, weight)
        if torch.compiler.is_compiling():
            return self._uncompiled(x, weight, trusting)
        return self._product(x, weight, trusting)

    def _product(self, x: Tensor, weight: Tensor, trusting: bool) -> Tensor:
        tokens = x.shape[0]
        layout = self._layout(weight, tokens, trusting)
        if self.kernel == MKL:
            y: Tensor = _mkl()._mkl_linear(x.contiguous(), layout, weight, None, tokens)  # noqa: SLF001
        else:
            y = _onednn()._linear_pointwise(x.contiguous(), layout, None, "none", [], "")  # noqa: SLF001
        return y

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _uncompiled(self, x: Tensor, weight: Tensor, trusting: bool) -> Tensor:
        """The product beside what is compiled: the compiler reads no layout but its own."""
        return self._product(x, weight, trusting)

    def _layout(self, weight: Tensor, tokens: int, trusting: bool) -> Tensor:
        layouts = self._layouts.get((weight,), dict, trusting=trusting)
        if tokens not in layouts:
            if len(layouts) == _LAYOUTS_KEPT:
                del layouts[next(iter(layouts))]
            with torch.inference_mode(False), torch.no_grad():  # it outlives the call
                layouts[tokens] = _packed(self.kernel, weight.detach(), tokens)
        return layouts[tokens]


def _packed(kernel: str, weight: Tensor, tokens: int) -> Tensor:
    if reason := unsupported(kernel, weight.device.type, weight.dtype, FORWARD):
        raise UsageError(reason)
    pack = _mkl()._mkl_reorder_linear_weight if kernel == MKL else _onednn()._reorder_linear_weight  # noqa: SLF001
    layout: Tensor = pack(weight.contiguous(), tokens)
    return layout


def _mkl() -> Any:
    return torch.ops.mkl


def _onednn() -> Any:
    return torch.ops.mkldnn
