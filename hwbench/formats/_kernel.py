"""``Kernel`` is one way to multiply by the weight of a format, with all that is particular to it.

A kernel is one class, and nothing else names it:

    class Slices(Kernel, of=TiedInputs):
        name = "slices"

        def apply(self, layer, x): ...

``of`` offers it to a format, and so to the classes that are derived from that format afterwards;
``default=True`` offers it before the others. A kernel keeps nothing between calls, so that one
object serves every layer; what it derives from a weight lies on the layer. Kernels of several
formats that share a name share a base class here, or beside the pieces that they are made of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])

BATCHED = r"aten::(bmm|baddbmm)$"
"""How a batched product shows."""


def uncompiled(function: F) -> F:
    """Have torch's compiler leave a function, and all that it calls, to Python.

    So does ``torch.compiler.disable``; but that loads the compiler when it decorates, two seconds
    of every worker that starts, and this where the function is first called.
    """
    lazily: Any = torch._disable_dynamo  # type: ignore[attr-defined]  # noqa: SLF001
    decorated: F = lazily(function)
    return decorated


class Kernel:
    """One way to multiply by the weight of a format; the docstring's first sentence says which.

    ``described`` is the format, with this kernel chosen, and ``layer`` its live map. Widths are
    elements a token.
    """

    name: str = ""
    """Its name in ``kernel=`` of a suite."""

    operators: ClassVar[str] = ""
    """An operator that a profile must show, by torch's name, as a regular expression from its
    beginning; "" where nothing is known."""

    device_kernels: ClassVar[str] = ""
    """What the name of a GPU's kernel has in it that a profile must show instead, as a regular
    expression without case."""

    hardware: ClassVar[str] = ""
    """The part of a GPU that ``device_kernels`` run on, in words."""

    materialises: ClassVar[bool] = False
    """Whether it forms a dense tensor of the weight's size."""

    adds_bias: ClassVar[bool] = False
    """Whether ``apply`` adds the layer's ``bias``, where it has one, as part of a product."""

    gives_gradients: ClassVar[bool] = True
    """Whether a call gives the layer's parameters a gradient, if ever so slowly."""

    autocasts: ClassVar[bool] = False
    """Whether ``torch.autocast`` chooses the type that a call computes in; else the layer does."""

    backward_as: ClassVar[type[Kernel] | None] = None
    """The kernel whose backward pass it takes, where it has none of its own."""

    def __init_subclass__(cls, of: Any = None, *, default: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if of is not None:
            of.offer(cls(), default=default)

    def apply(self, layer: Any, x: Tensor) -> Tensor:
        """x Wᵀ for x of shape (tokens, in_features); the result is contiguous."""
        raise NotImplementedError(
            f"{type(layer).__name__} must give apply_weight, or its kernel {self.name} an apply."
        )

    def for_knobs(self, described: Any) -> Kernel:
        """What multiplies a weight of these knobs: itself, unless its name stands for several."""
        del described
        return self

    def refuses(
        self, described: Any, device: str, dtype: torch.dtype, direction: str
    ) -> str | None:
        """Why it cannot run on that kind of device ("cpu", "cuda"), or None where it can."""
        del described, device, dtype, direction
        return None

    def products(self, described: Any) -> tuple[int, ...]:
        """Multiply-adds a token of each factor: its parameters, unless the kernel executes more."""
        stages: tuple[int, ...] = described.stages()
        return stages

    def intermediate_width(self, described: Any) -> int:
        """Elements of all intermediates that it writes between the factors."""
        del described
        return 0

    def copied_width(self, described: Any) -> int:
        """Elements of extra copies that it makes, to lay values out anew."""
        del described
        return 0

    def recomputed(self, described: Any, tokens: int) -> int:
        """Multiply-adds a token that make intermediates again, for the gradients of the weight.

        ``tokens`` is the number of tokens of the call.
        """
        del described, tokens
        return 0

    def recomputed_values(self, described: Any, tokens: int) -> int:
        """Values that are moved to make these intermediates again."""
        del described, tokens
        return 0


class Named(Kernel):
    """A kernel that is known by its name alone."""

    def __init__(self, name: str) -> None:
        self.name = name


class Torch(Kernel):
    """Plain products of torch."""

    name = "torch"
    operators = r"aten::(mm|addmm|linear)$"


class Bmm(Kernel):
    """Batched products of the blocks, with a backward pass of their own."""

    name = "bmm"
    operators = BATCHED


class Einsum(Kernel):
    """The spelling that users write."""

    name = "einsum"
    operators = r"aten::einsum$"


class Spmm(Kernel):
    """The product of torch with a sparse tensor."""

    name = "spmm"
    operators = r"aten::_?sparse_"


class SparseLinear(Kernel):
    """F.linear with a sparse tensor, as users write it."""

    name = "linear"
    operators = r"aten::linear$"
    materialises = True
