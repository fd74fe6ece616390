"""``Linear`` is the live map of a format: a module that stores a weight and multiplies by it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch._C import _is_any_autocast_enabled  # of one device type it asks ten times as long
from torch.nn import functional

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

    _stores_weight: bool = False  # whether a parameter weight was ever registered
    weight_is_inner: ClassVar[bool] = False
    """Whether a parameter ``weight`` is another matrix than W, see ``InnerWeight``."""

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

    @property
    def weight(self) -> Tensor:
        """W as ``nn.Linear`` has it, for what reads it beside a call: ``to_dense``.

        It is formed anew at each look, unless the layer stores it: the parameter ``weight``, where
        there is one, is W itself, or else the layer is an ``InnerWeight``.
        """
        if not self._stores_weight:
            return self.to_dense()
        own = self._stored_weight()
        return self.to_dense() if self.weight_is_inner else own

    @weight.setter
    def weight(self, value: Tensor) -> None:
        """A parameter never comes here, as ``nn.Module`` registers it.

        Where one is stored, torch's weight_norm and others put a tensor in its place.
        """
        if self._stores_weight:
            vars(self)["weight"] = value
            return
        raise TypeError(
            f"The weight of {type(self).__name__} is formed from what it stores and cannot be set "
            f"to a {type(value).__name__}: set a parameter of the layer, or project anew."
        )

    def _stored_weight(self) -> Tensor:
        """The parameter ``weight``, or the tensor that stands in its place.

        Raises:
            AttributeError: it was taken away, as while torch parametrises it.
        """
        own = self._parameters.get("weight")
        own = vars(self).get("weight") if own is None else own
        if own is None:
            raise AttributeError(f"The parameter weight of {type(self).__name__} was taken away.")
        return own

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As ``nn.Module`` does, which would first form the weight to see whether there is one."""
        if name == "weight" and param is not None:
            vars(self).pop(name, None)
            self._parameters[name] = param
            self._stores_weight = True
        else:
            super().register_parameter(name, param)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the map to x of shape (…, in_features).

        Under ``torch.autocast`` it computes in the type that it stores, and returns autocast's.

        Raises:
            RuntimeError: x has another width, as ``nn.Linear`` raises it.
        """
        shape = x.shape
        if not shape or shape[-1] != self.in_features:
            raise RuntimeError(
                f"The input of a layer of {self.in_features} inputs has the shape {tuple(shape)}: "
                f"its last side must be {self.in_features}."
            )
        if _is_any_autocast_enabled() and not self.kernel.autocasts:
            kind = x.device.type
            if torch.is_autocast_enabled(kind):
                with torch.autocast(kind, enabled=False):
                    y = self.forward(x.to(self._stored_dtype()))
                return y.to(torch.get_autocast_dtype(kind))
        rows = x if len(shape) == 2 else x.reshape(-1, self.in_features)
        if rows.shape[0] == 0:
            y = functional.linear(rows, self.to_dense(), self.bias)  # kernels need a token
            return y.reshape(*shape[:-1], self.out_features)
        y = self.apply_weight(rows)
        if rows is not x:
            y = y.reshape(*shape[:-1], self.out_features)
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

    def _stored_dtype(self) -> torch.dtype:
        """The type that it computes in: float32 where it stores any, as beside codes."""
        kinds = {each.dtype for each in self.stored_tensors() if each.is_floating_point()}
        return torch.float32 if torch.float32 in kinds or not kinds else min(kinds, key=str)

    def forget(self) -> None:
        """Drop what was derived from parameters and buffers and kept beside them.

        Called where the layer moves, changes its dtype or is loaded.
        """

    def trust_versions(self) -> Self:
        """Believe the version counters of the tensors from now on; returns the layer.

        Some layers keep a packed weight, or an order of their indices. By default each call
        compares the tensors with a copy, bit by bit, before it uses what was made from them, which
        may cost as much as it saves. With this, only a change that is counted is seen: an in-place
        operation, an optimizer's step, another tensor in place of this one, a load. Who writes
        around the counters, through ``.data`` or a NumPy array, owes a call of ``forget``. hwbench
        times layers like this.
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


class InnerWeight(Linear):
    """A layer whose parameter ``weight`` is not W: who looks at ``.weight`` sees W all the same."""

    weight_is_inner = True

    @property
    def inner(self) -> Tensor:
        """The parameter that is stored as ``weight``."""
        return self._stored_weight()
