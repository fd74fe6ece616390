"""Values that a layer derives from its tensors and keeps as long as these are the same.

Neither an address nor a version names a value: an allocator gives an address out again, a new
tensor begins at version 0, and what is written through ``.data`` or a NumPy array is not counted.
Here a tensor is the one before where it is the same object, in the same memory, which is held so
that nobody else can be given it, at the same version. Unless its layer trusts versions, its
content is compared as well, bit by bit, with a copy.

An optimizer may write around the counters too: torch's fused ones do, and so do those of other
libraries. Where a version is believed, the step of any optimizer is therefore counted here.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Generic, NamedTuple, Self, TypeVar

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.utils.weak import WeakTensorKeyDictionary

from hwbench.formats._kernel import uncompiled

T = TypeVar("T")

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_UNTRACKED = -1  # the version of a tensor that counts none

_believed: Any = WeakTensorKeyDictionary()
"""The tensors whose versions are believed, of those that an optimizer could change."""


class _Mark(NamedTuple):
    """One tensor as it was, and what keeps its memory from being given to another."""

    tensor: weakref.ref[Tensor]
    version: int
    address: int
    dtype: torch.dtype
    shape: torch.Size
    strides: tuple[int, ...]
    copy: Tensor | None
    memory: Tensor


class Derived(Generic[T]):
    """One value, made from tensors. A copy and a pickle of it are empty."""

    def __init__(self) -> None:
        self._marks: list[_Mark] = []
        self._value: T | None = None

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()

    def clear(self) -> None:
        """Forget the value."""
        self._marks, self._value = [], None

    def get(self, sources: Sequence[Tensor], build: Callable[[], T], *, trusting: bool) -> T:
        """The value, made by ``build`` where it was not made from these very tensors.

        While a compiler traces, the value that is there is taken as it is, and compiled code looks
        at nothing: what is derived of parameters is asked for beside it. Indices and codes change
        by a load, which clears this. Every small call waits for this one, so that the tensors are
        looked at here, and not in functions of their own.

        Args:
            sources: the tensors that it is made from.
            build: makes it, of ordinary tensors even where it is first asked for in inference.
            trusting: believe the version counters; the content is otherwise compared.
        """
        value = self._value
        if is_compiling():
            return build() if value is None else value
        if value is None or len(sources) != len(self._marks):
            return self._made(sources, build, trusting)
        for tensor, mark in zip(sources, self._marks, strict=True):
            known, version, address, dtype, shape, strides, copied, _ = mark
            if (
                known() is not tensor
                or (version != _UNTRACKED and tensor._version != version)  # noqa: SLF001
                or tensor.data_ptr() != address
                or tensor.dtype is not dtype
                or tensor.shape != shape
                or tensor.stride() != strides
            ):
                return self._made(sources, build, trusting)
            if trusting and version != _UNTRACKED:
                continue
            if copied is None or not _identical(tensor, copied):
                return self._made(sources, build, trusting)
        return value

    def _made(self, sources: Sequence[Tensor], build: Callable[[], T], trusting: bool) -> T:
        self.clear()  # before building, so that two large values are never there at once
        with torch.inference_mode(False), torch.no_grad():
            marks = [_mark(tensor, trusting) for tensor in sources]
            value = build()
        if all(mark is not None for mark in marks):
            self._marks, self._value = [mark for mark in marks if mark is not None], value
        return value


def _mark(tensor: Tensor, trusting: bool) -> _Mark | None:
    """A key that identifies the tensor; None where it has no memory of its own, as under vmap."""
    try:
        address = tensor.data_ptr()
    except RuntimeError:
        return None
    version = _version(tensor)
    copied = None if trusting and version != _UNTRACKED else tensor.detach().clone()
    if copied is None and tensor.is_floating_point():
        _count_steps()
        _believed[tensor] = None
    layout = tensor.dtype, tensor.shape, tensor.stride()
    return _Mark(weakref.ref(tensor), version, address, *layout, copied, tensor.detach())


def _version(tensor: Tensor) -> int:
    """How often the tensor was written to, where that is counted.

    It is not for data made in inference mode, and a tensor made in it never has a counter.
    """
    try:
        return _UNTRACKED if tensor.is_inference() else tensor._version  # noqa: SLF001
    except RuntimeError:
        return _UNTRACKED


@cache
def _count_steps() -> None:
    """Have the step of every optimizer counted, from the first version on that is believed."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    register_optimizer_step_post_hook(_stepped)


@uncompiled  # also in a step that is compiled, whose fused part is not
def _stepped(optimizer: Any, *_: Any) -> None:
    """Count a step for those of its parameters whose versions are believed."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and parameter in _believed:
                torch.autograd.graph.increment_version(parameter)


def _identical(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one layout hold the same bits, so that NaN is itself.

    On the meta device there are none.
    """
    bits = _BITS[one.element_size()]
    return one.is_meta or torch.equal(one.detach().view(bits), other.view(bits))
