"""Published code beside a spelling from the maths: what a layer is made of, and how it is loaded.

Nothing of the code is here. Whoever has fetched the repositories names the folder that they lie in;
a file is then run as it is, and its class or function multiplies by our weights.
"""

from __future__ import annotations

import importlib.util
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Weights = tuple[Tensor, ...]
Adapter = Callable[[Any, Weights, bool], nn.Module]


class Source(NamedTuple):
    """Where layers were published; a folder of code has each under the last part of its name."""

    repository: str
    commit: str
    paper: str
    missing: tuple[str, ...] = ()
    """Modules that its files import and its layers do not need; empty ones where they are not."""

    roots: tuple[str, ...] = ()
    """Folders that its files import from."""


class Spelling(NamedTuple):
    """How one published layer multiplies."""

    weights: Callable[[Any], Weights]
    """Of our layer, as the publication stores them."""

    multiply: Callable[..., Tensor]
    """x (tokens, in), then the weights → y (tokens, out)."""

    as_published: Adapter
    """The published symbol, the weights and whether it trains → a module."""

    bias: bool = False
    """Whether it always adds one, so that ours has one, too."""

    trains: bool = True
    order: Callable[[Any], Tensor] | None = None
    """Which published output each of ours is, where the matrices differ in their order of rows."""


class Applied(nn.Module):
    """A function of x and weights as a module, which is what ours is called as, too."""

    def __init__(self, function: Callable[..., Tensor], weights: Weights, trains: bool) -> None:
        super().__init__()
        self.function = function
        self.tensors = tuple(held(weight, trains) for weight in weights)
        for number, weight in enumerate(self.tensors):
            if isinstance(weight, nn.Parameter):
                self.register_parameter(f"weight_{number}", weight)

    def forward(self, x: Tensor) -> Tensor:
        """y for x of shape (tokens, in_features)."""
        return self.function(x, *self.tensors)


def held(weight: Tensor, trains: bool) -> Tensor:
    """A contiguous copy of its own, so that no two layers share what lies in cache."""
    copied = weight.detach().clone()
    if copied.layout == torch.strided:
        copied = copied.contiguous()
    return nn.Parameter(copied, requires_grad=trains) if copied.is_floating_point() else copied


def as_function(call: Callable[..., Tensor] | None = None) -> Adapter:
    """A published function of x and the weights; ``call`` says how, where that is not plain."""

    def adapter(symbol: Any, weights: Weights, trains: bool) -> nn.Module:
        if call is None:
            return Applied(symbol, weights, trains)
        return Applied(lambda x, *tensors: call(symbol, x, *tensors), weights, trains)

    return adapter


def as_module(
    names: str, sizes: Callable[[Weights], dict[str, Any]] | None = None, **constants: Any
) -> Adapter:
    """A published module with the weights as its attributes ``names``, in order.

    Its initialisation, which may decompose a random weight, is left out; in its place it gets
    ``constants`` and what ``sizes`` reads off the weights. A name said twice is a list.
    """

    def adapter(symbol: Any, weights: Weights, trains: bool) -> nn.Module:
        module: nn.Module = symbol.__new__(symbol)
        nn.Module.__init__(module)
        attributes: dict[str, list[Tensor]] = defaultdict(list)
        for name, weight in zip(names.split(), weights, strict=True):
            attributes[name].append(held(weight, trains))
        for name, values in attributes.items():
            setattr(module, name, values[0] if len(values) == 1 else nn.ParameterList(values))
        for name, value in {**constants, **(sizes(weights) if sizes else {})}.items():
            setattr(module, name, value)
        return module

    return adapter


def symbol_of(folder: Path, source: Source, code: str) -> Any:
    """The class or function FILE:SYMBOL of a repository in the folder; None where it has no FILE.

    Raises:
        ImportError: FILE imports a module that is not installed and that its layers need.
    """
    file, _, name = code.partition(":")
    root = folder.resolve() / source.repository.rpartition("/")[2]
    if not (root / file).is_file():
        return None
    with _importing(root, source):
        spec = importlib.util.spec_from_file_location(f"published_{Path(file).stem}", root / file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return getattr(module, name)


@contextmanager
def _importing(root: Path, source: Source) -> Iterator[None]:
    """Modules of the repository, and empty ones for what it misses, can be imported meanwhile."""
    paths = [str(root / each) for each in source.roots]
    sys.path[:0] = paths
    try:
        for name in source.missing:
            _have(name)
        yield
    finally:
        del sys.path[: len(paths)]
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if isinstance(module, _Empty) or (file and Path(file).is_relative_to(root)):
                del sys.modules[name]


def _have(name: str) -> None:
    """Import a module, or put an empty one in its place where that is not possible."""
    try:
        importlib.import_module(name)
    except ImportError:
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            sys.modules.setdefault(".".join(parts[:count]), _Empty(".".join(parts[:count])))


class _Empty(ModuleType):
    """A module of which every name is a class that does nothing."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda *_, **__: None})
