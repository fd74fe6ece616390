"""Which operators a layer calls on CUDA, seen on tensors without memory.

A layer on the device ``meta`` takes the way of a GPU: whatever is not the CPU. Three kinds of
kernels cannot be seen there. Triton's are replaced by calls that make a result of the right shape;
2:4 products by the stand-ins of ``_two_four``; all of these are noted under their own names. The
products of torch's sparse tensors, and torchao's, are left out: what exists of them is asked of the
device itself before a case is measured (``_probe``).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import _two_four
import pytest
import torch
from _formats import generator, hidden_tensors, normal, observe, wanted
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from hwbench.formats import _gather, _probe, _triton, semi_structured, two_four_training
from hwbench.formats._base import STEP, Format, Linear
from hwbench.formats._derived import Derived

Found = set[tuple[str, str]]
"""Operators with the dtypes that they are called in, as the table of CUDA names them."""

ALLOCATES = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
LIBRARIES = ("spmm", "linear", "torchao")  # kernels that multiply tensors of another class


class Operators(TorchDispatchMode):
    """The operators that ran a kernel, with the dtypes of what they read or wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Found = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        views = [
            r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns
        ]
        if not any(views) and func.overloadpacket.__name__ not in ALLOCATES:
            self.note(func._schema.name, (args, kwargs, result))
        return result

    def note(self, name: str, values: Any) -> None:
        dtypes = {leaf.dtype for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}
        floating = {dtype for dtype in dtypes if dtype.is_floating_point}
        for dtype in floating or dtypes:  # indices beside values do not choose the kernel
            self.found.add((name, str(dtype).removeprefix("torch.")))

    def noted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, noted under that name and in the dtype of its first tensor."""

        def kernel(*args: Any, **kwargs: Any) -> Any:
            self.note(name, args[0])
            return call(*args, **kwargs)

        return kernel


def pretend(monkeypatch: pytest.MonkeyPatch, seen: Operators) -> None:
    """Let every kernel be chosen as on CUDA, and note what cannot be seen on ``meta``."""
    library, packed = _two_four.pretend(monkeypatch, "2.11"), _two_four.Packed
    names = {
        "_cslt_sparse_mm": library.product,
        "_cslt_sparse_mm_search": library.search,
        "_sparse_semi_structured_apply_dense": torch.mul,
    }
    for name, call in names.items():
        monkeypatch.setattr(torch, name, seen.noted(f"aten::{name}", call))
    pack = seen.noted("aten::_cslt_compress", packed.from_dense)
    prune = seen.noted("aten::_sparse_semi_structured_tile", packed.prune_dense_static_sort)
    monkeypatch.setattr(semi_structured, "to_sparse_semi_structured", pack)
    kind = SimpleNamespace(from_dense=pack, prune_dense_static_sort=prune)
    monkeypatch.setattr(two_four_training, "SparseSemiStructuredTensorCUSPARSELT", kind)
    for module in (semi_structured, two_four_training):
        monkeypatch.setattr(module, "_refusal", lambda *_: None)
    monkeypatch.setattr(_probe, "_trial", lambda *_: None)
    fused = {name: seen.noted(f"hwbench::{name}", call) for name, call in FUSED.items()}
    stand_in = SimpleNamespace(refusal=lambda _: None, **fused)
    monkeypatch.setattr(_triton, "fused", lambda: stand_in)
    monkeypatch.setattr(_triton, "find_spec", lambda _: True)


def _enter_grouped(x: Tensor, first: Tensor, groups: int, turn: bool) -> Tensor:
    width = first.shape[0] * first.shape[1] // groups
    shape = (groups, width, x.shape[0]) if turn else (groups, x.shape[0], width)
    return x.new_empty(shape).mT if turn else x.new_empty(shape)


FUSED: dict[str, Callable[..., Tensor]] = {
    "two_stage": lambda x, first, second, width, *_: x.new_empty(x.shape[0], width),
    "enter_grouped": _enter_grouped,
    "leave_coupled": lambda z, couplings, bases, width: z.new_empty(z.shape[1], width),
}


def on_meta(f: Format, dtype: torch.dtype) -> Linear:
    """A layer without memory, with all that it derives from its state at its first calls."""
    layer = f.random(dtype=dtype, generator=generator()).trust_versions()
    if f.unsupported("cpu", dtype, STEP) is None:
        x = normal(1, f.in_features).to(dtype)
        by = wanted(layer, x, STEP)
        torch.autograd.grad(layer(x).sum(), list(by.values()))
    pattern = getattr(getattr(layer, "_pattern", None), "_value", None)
    if isinstance(pattern, _gather.Pattern):
        _ = pattern.blocks, pattern.places  # which the way of the CPU may not have asked for
    moved = {
        name: _moved(value)
        for name, value in vars(layer).items()
        if name not in ("_parameters", "_buffers") and list(hidden_tensors([value]))
    }
    layer = layer.to("meta")
    for name, value in moved.items():
        setattr(layer, name, value)
    return layer


class _Kept:
    """Stands for a ``Derived`` whose value is there: on ``meta`` no content can be compared."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def get(self, *_: Any, **__: Any) -> Any:
        return self.value


def _moved(value: Any) -> Any:
    """The value with its tensors, and those of the objects in it, on ``meta``."""
    if isinstance(value, Derived):
        return _Kept(_moved(value._value))
    if hasattr(value, "__dict__") and not isinstance(value, Tensor | type):
        moved = copy.copy(value)
        vars(moved).update({name: _moved(each) for name, each in vars(value).items()})
        return moved
    return tree_map_only(Tensor, lambda tensor: tensor.to("meta"), value)


def operators(layer: Linear, tokens: int, direction: str, seen: Operators) -> Found:
    """What one call in that direction asks of the device."""
    dtype = next(t.dtype for t in layer.stored_tensors() if t.is_floating_point())
    shapes = ((tokens, layer.in_features), (tokens, layer.out_features))
    x, dy = (torch.empty(shape, dtype=dtype, device="meta") for shape in shapes)
    seen.found = set()
    observe(seen, layer, x, dy, direction)
    return seen.found
