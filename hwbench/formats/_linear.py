"""``Linear`` is the live map of a format: a module that stores a weight and multiplies by it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor, nn

from hwbench.formats._kernel import Kernel, Torch

if TYPE_CHECKING:
    import torch


class Linear(nn.Module, ABC):
    """The live map: y = x Wᵀ + bias, for x of shape (…, in_features).

    A subclass stores W in its own way and gives ``to_dense``, and either sets ``kernel``, which
    multiplies, or gives ``apply_weight``. Parameters that training would change are
    ``nn.Parameter``; indices and masks are buffers.
    """

    kernel: Kernel = Torch()

    def __init__(self, out_features: int, in_features: int, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features = out_features
        self.in_features = in_features
        self.trusting = False
        self.described: Any = None  # the Format that a projection made it of, if one did
        self.bias = None if bias is None else nn.Parameter(bias)

    def apply_weight(self, x: Tensor) -> Tensor:
        """x Wᵀ for x of shape (tokens, in_features), by the kernel; the result is contiguous."""
        return self.kernel.apply(self, x)

    @abstractmethod
    def to_dense(self) -> Tensor:
        """W as a dense tensor of shape (out_features, in_features), differentiable."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the map to x of shape (…, in_features)."""
        if x.dim() == 2:
            y = self.apply_weight(x)
        else:
            y = self.apply_weight(x.reshape(-1, self.in_features))
            y = y.reshape(*x.shape[:-1], self.out_features)
        bias = self.bias
        return y if bias is None or self.kernel.adds_bias else y + bias

    def tolerance(self, dtype: torch.dtype) -> float:
        """The relative error by which its own rounding may miss ``to_dense``, beside the dtype's.

        Above 0 for a kernel that rounds activations; what it really misses is measured.
        """
        del dtype
        return 0.0

    def coded_weights(self) -> int:
        """How many weights it stores as codes, which are no parameters of the module."""
        return 0

    def scalable_tensors(self) -> list[Tensor]:
        """Tensors of which some, multiplied by a factor, multiply the weight by it."""
        return [parameter for name, parameter in self.named_parameters() if name != "bias"]

    def stored_tensors(self) -> list[Tensor]:
        """Everything that is stored for the weight: parameters and buffers, without the bias."""
        return [
            tensor
            for source in (self.named_parameters(), self.named_buffers())
            for name, tensor in source
            if name != "bias"
        ]

    def forget(self) -> None:
        """Drop what was derived from parameters and buffers and kept beside them.

        Called where the layer moves, changes its dtype or is loaded.
        """

    def trust_versions(self) -> Self:
        """Believe the version counters of the tensors from now on; returns the layer.

        Some layers keep a packed weight, or an order of their indices. By default each call
        compares the tensors with a copy, bit by bit, before it uses what was made from them, which
        may cost as much as it saves. With this, only a change that PyTorch counts is seen: an
        in-place operation, an optimizer's step, another tensor in place of this one, a load. Who
        writes around the counters, through ``.data`` or a NumPy array, owes a call of ``forget``.
        hwbench times layers like this.
        """
        self.trusting = True
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self.forget()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.forget()
        super()._load_from_state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        return f"out_features={self.out_features}, in_features={self.in_features}"
