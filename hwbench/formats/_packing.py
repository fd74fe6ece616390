"""Weights laid out in advance for the matrix products of a CPU library.

A product on a CPU first copies the weight into the layout that its inner loops read, in every call.
A layer whose weight does not change can have that done once:

* ``onednn``: a blocked layout of oneDNN; float32, bfloat16 and float16;
* ``mkl``: the packed layout of Intel MKL's ``cblas_sgemm_pack``; float32.

Both layouts are made for a number of tokens, and both libraries come with PyTorch, whose compiler
uses the same operators for weights that are frozen. A training step changes the weight, so that
every step would pack anew: there ``mkl`` refuses, and ``onednn`` multiplies plainly by its library.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from hwbench.errors import UsageError
from hwbench.formats import _onednn
from hwbench.formats._base import FORWARD, Format, Linear
from hwbench.formats._block_matmul import needs_grad
from hwbench.formats._derived import Derived
from hwbench.formats._kernel import Kernel, Torch, uncompiled

_LAYOUTS_KEPT = 4  # numbers of tokens for which one weight stays packed

Chain: TypeAlias = "tuple[tuple[Tensor, Packing], ...]"
"""Each weight (out, in) in the order in which x meets them, and what is packed of it."""


class Packable(Format):
    """A format that is a chain of products by weights that may be packed."""


class PackableMap(Linear):
    """The live map of such a format."""

    @abstractmethod
    def chain(self) -> Chain:
        """Each weight (out, in) in the order in which x meets them, and what is packed of it."""

    def forget(self) -> None:
        for _, packing in self.chain():
            packing.clear()


class Plain(Torch):
    """Plain products of torch, for which nothing is packed."""

    adds_bias = True

    def apply(self, layer: PackableMap, x: Tensor) -> Tensor:
        *first, (last, _) = layer.chain()
        for weight, _ in first:
            x = functional.linear(x, weight)
        return functional.linear(x, last, layer.bias)


class Library(Kernel, ABC):
    """Products of a CPU library with weights that are packed for it, forward only."""

    def apply(self, layer: PackableMap, x: Tensor) -> Tensor:
        """x Wᵀ, with a layout of each weight made when it first is needed.

        Where gradients are recorded it is the plain product.

        Raises:
            UsageError: the kernel cannot pack a weight of that dtype, or on that device.
        """
        chain = layer.chain()
        if torch.compiler.is_compiling() and not needs_grad(x, *(weight for weight, _ in chain)):
            return self._uncompiled(chain, x, layer.trusting)
        return self._products(chain, x, layer.trusting)

    def _products(self, chain: Chain, x: Tensor, trusting: bool) -> Tensor:
        for weight, packing in chain:
            if needs_grad(x, weight):
                x = self.unpacked(x, weight)
            else:
                layout = packing.layout(self, weight, x.shape[0], trusting)
                x = self.multiply(x.contiguous(), layout, weight)
        return x

    @uncompiled
    def _uncompiled(self, chain: Chain, x: Tensor, trusting: bool) -> Tensor:
        """All products beside what is compiled: the compiler reads no layout but its own.

        A call of this in a loop would have the compiler take up what is called here again.
        """
        return self._products(chain, x, trusting)

    def unpacked(self, x: Tensor, weight: Tensor) -> Tensor:
        """x Wᵀ where nothing may be packed."""
        return functional.linear(x, weight)

    @abstractmethod
    def multiply(self, x: Tensor, layout: Tensor, weight: Tensor) -> Tensor:
        """x Wᵀ from the layout of W, for contiguous x."""

    @abstractmethod
    def pack(self, weight: Tensor, tokens: int) -> Tensor:
        """The layout of a contiguous weight for this number of tokens."""

    @abstractmethod
    def lacks(self, dtype: torch.dtype) -> str | None:
        """Why the library packs nothing in that dtype here, or None where it does."""

    def refuses(
        self, described: Any, device: str, dtype: torch.dtype, direction: str
    ) -> str | None:
        if device != "cpu":
            return f"{self.name} packs weights for the matrix products of CPUs."
        if direction != FORWARD:
            return (
                f"{self.name} packs a weight that stays as it is, and every training step changes "
                f"it."
            )
        return self.lacks(dtype)


class OneDnn(Library, of=Packable):
    """A product with the weight in a blocked layout of oneDNN.

    In a training step, in float32, it is the plain product by oneDNN, with nothing packed.
    """

    name = "onednn"
    operators = r"mkldnn::_linear_pointwise$"

    def multiply(self, x: Tensor, layout: Tensor, weight: Tensor) -> Tensor:
        y: Tensor = _mkldnn()._linear_pointwise(x, layout, None, "none", [], "")  # noqa: SLF001
        return y

    def unpacked(self, x: Tensor, weight: Tensor) -> Tensor:
        return _onednn.linear_where_float32(x, weight)

    def refuses(
        self, described: Any, device: str, dtype: torch.dtype, direction: str
    ) -> str | None:
        if device != "cpu" or direction == FORWARD or dtype != torch.float32:
            return super().refuses(described, device, dtype, direction)
        return _onednn.refusal(device, dtype)

    def pack(self, weight: Tensor, tokens: int) -> Tensor:
        layout: Tensor = _mkldnn()._reorder_linear_weight(weight, tokens)  # noqa: SLF001
        return layout

    def lacks(self, dtype: torch.dtype) -> str | None:
        if not torch.backends.mkldnn.is_available():
            return "onednn does not run here: PyTorch was built without it."
        narrow: dict[torch.dtype, Any] = {
            torch.bfloat16: _mkldnn()._is_mkldnn_bf16_supported,  # noqa: SLF001
            torch.float16: _mkldnn()._is_mkldnn_fp16_supported,  # noqa: SLF001
        }
        if dtype in narrow:
            name = str(dtype).removeprefix("torch.")
            return None if narrow[dtype]() else f"onednn does not run here: no product in {name}."
        return None if dtype == torch.float32 else "oneDNN packs no weights in float64."


class Mkl(Library, of=Packable):
    """A product with the weight in the packed layout of Intel MKL, forward only."""

    name = "mkl"
    operators = r"mkl::_mkl_linear$"

    def multiply(self, x: Tensor, layout: Tensor, weight: Tensor) -> Tensor:
        y: Tensor = _mkl()._mkl_linear(x, layout, weight, None, x.shape[0])  # noqa: SLF001
        return y

    def pack(self, weight: Tensor, tokens: int) -> Tensor:
        layout: Tensor = _mkl()._mkl_reorder_linear_weight(weight, tokens)  # noqa: SLF001
        return layout

    def lacks(self, dtype: torch.dtype) -> str | None:
        if not torch.backends.mkl.is_available():
            return "mkl does not run here: PyTorch was built without it."
        return None if dtype == torch.float32 else "MKL packs weights in float32 only."


class Packing:
    """What a kernel has packed of one weight: working memory, and no part of a layer's state.

    A copy and a pickle of it are empty.
    """

    def __init__(self) -> None:
        # By the number of tokens, the oldest first.
        self._layouts = Derived[dict[int, Tensor]]()

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()

    def clear(self) -> None:
        """Forget every layout."""
        self._layouts.clear()

    def layout(self, kernel: Library, weight: Tensor, tokens: int, trusting: bool) -> Tensor:
        """What the kernel has packed of the weight for so many tokens, made if it is not there.

        Raises:
            UsageError: the kernel cannot pack a weight of that dtype, or on that device.
        """
        layouts = self._layouts.get((weight,), dict, trusting=trusting)
        layout = layouts.get(tokens)
        if layout is None:
            if reason := kernel.refuses(None, weight.device.type, weight.dtype, FORWARD):
                raise UsageError(reason)
            if len(layouts) == _LAYOUTS_KEPT:
                del layouts[next(iter(layouts))]
            with torch.inference_mode(False), torch.no_grad():  # it outlives the call
                layout = layouts[tokens] = kernel.pack(weight.detach().contiguous(), tokens)
        return layout


def _mkl() -> Any:
    return torch.ops.mkl


def _mkldnn() -> Any:
    return torch.ops.mkldnn
