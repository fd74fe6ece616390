"""A kernel is one class: nobody else names it, and whoever adds one writes nothing beside it."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from _formats import CLASSES, describe, first_of_each, settings
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import hwbench.formats
from hwbench.formats._base import BACKWARD, FORWARD, Format, Linear
from hwbench.formats._full import FullFormat, FullMap
from hwbench.formats._kernel import Kernel, Named, Torch

FOLDER = Path(hwbench.formats.__file__).parent
FILES = sorted(FOLDER.glob("*.py"))
OWN = [
    (cls, kernel)
    for cls in CLASSES.values()
    if Path(inspect.getfile(cls)).parent == FOLDER
    for kernel in cls.IMPLEMENTATIONS
]
NAMES = {kernel.name for _, kernel in OWN}

# --- names -------------------------------------------------------------------------------------


def strays(tree: ast.AST, names: set[str], allowed: frozenset[str] = frozenset()) -> Iterator[str]:
    """The strings that are a name and stand outside the class that declares it, with their line."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Constant) and node.value in names - allowed:
            yield f"line {node.lineno}: {node.value!r}"
        declared = {_declared(line) for line in node.body} if isinstance(node, ast.ClassDef) else {}
        yield from strays(node, names, allowed.union(declared))


def _declared(line: ast.stmt) -> str:
    """The name in ``name = "…"``; "" for every other line."""
    match line:
        case ast.Assign(targets=[ast.Name(id="name")], value=ast.Constant(value=str(name))):
            return name
    return ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_kernel_is_named_outside_its_class(path: Path) -> None:
    assert list(strays(ast.parse(path.read_text(encoding="utf-8")), NAMES)) == []


def test_what_stands_outside_is_found() -> None:
    text = 'class Bmm:\n    name = "bmm"\n    also = "bmm"\n\n\nclass Other:\n    x = ["bmm"]\n'
    assert list(strays(ast.parse(f'{text}y = "bmm" if x else "mm"'), {"bmm"})) == [
        "line 7: 'bmm'",
        "line 8: 'bmm'",
    ]
    assert len(NAMES) > 15


# --- what a class says -------------------------------------------------------------------------


@pytest.mark.parametrize(("cls", "kernel"), OWN, ids=lambda v: v.name if v in NAMES else None)
def test_a_kernel_is_a_class_that_says_what_it_is(cls: type[Format], kernel: Kernel) -> None:
    assert not isinstance(kernel, Named)
    first = (type(kernel).__doc__ or "").partition("\n\n")[0]
    assert first.endswith(".")
    assert vars(kernel) == {}, "one object serves every layer"
    assert type(kernel).apply is not Kernel.apply
    f = describe(cls, kernel.name, (64, 64))
    assert f.implementation is kernel.for_knobs(f)
    assert kernel.backward_as is None or kernel.backward_as.name in cls.KERNELS


@pytest.mark.parametrize(
    "f", first_of_each(settings([(64, 96)])), ids=lambda f: f"{f.name()}-{f.kernel}"
)
def test_a_layer_multiplies_by_the_kernel_that_was_asked_for(f: Format) -> None:
    layer = f.random(dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    assert type(layer.kernel) is type(f.implementation)


# --- one class more ----------------------------------------------------------------------------


class Plain(FullFormat):
    """Every weight stored."""


class Derived(Plain):
    """A format that has the kernels of another."""


class First(Torch, of=Plain):
    """The product."""

    def apply(self, layer: FullMap, x: Tensor) -> Tensor:
        return functional.linear(x, layer.weight)


class Second(First, of=Plain):
    """The product, in a way that moves more and does not train."""

    name = "second"
    backward_as = First

    def refuses(
        self, described: Plain, device: str, dtype: torch.dtype, direction: str
    ) -> str | None:
        return "It does not train." if direction != FORWARD else None

    def intermediate_width(self, described: Plain) -> int:
        return 7

    def products(self, described: Plain) -> tuple[int, ...]:
        return (described.parameters(), 100)


class Third(Second, of=Derived, default=True):
    """The product, for the derived format alone."""

    name = "third"


class Instead(Second, of=Derived):
    """What the derived format has in the place of the second."""


def test_a_class_offers_itself_to_a_format_and_to_what_is_derived_from_it() -> None:
    assert Plain.KERNELS == ("torch", "second")
    assert Derived.KERNELS == ("third", "torch", "second")
    assert FullFormat.KERNELS == Format.KERNELS == ("torch",)
    assert type(Plain(out_features=2, in_features=3).implementation) is First
    assert type(Derived(out_features=2, in_features=3).implementation) is Third
    second = Derived(out_features=2, in_features=3, kernel="second")
    assert type(second.implementation) is Instead


def test_a_class_without_a_name_is_refused_where_it_is_written() -> None:
    with pytest.raises(TypeError, match="The kernel Nameless of Plain needs a name"):

        class Nameless(Kernel, of=Plain):
            """No name."""

    assert Plain.KERNELS == ("torch", "second")


def test_costs_and_refusals_are_those_of_the_kernel() -> None:
    plain, second = (Plain(out_features=5, in_features=3, kernel=name) for name in Plain.KERNELS)
    assert (plain.intermediate_width(), second.intermediate_width()) == (0, 7)
    moved = [f.cost(11, 4, FORWARD).intermediate_bytes for f in (plain, second)]
    assert moved == [0, 2 * 4 * 11 * 7]
    assert [f.flops(11, FORWARD) for f in (plain, second)] == [2 * 11 * 15, 2 * 11 * 115]
    backward = [f.cost(11, 4, BACKWARD).intermediate_bytes for f in (plain, second)]
    assert backward[0] == backward[1], "it takes the backward pass of the other"
    assert second.unsupported("cpu", torch.float32, BACKWARD) == "It does not train."
    assert plain.unsupported("cpu", torch.float32, BACKWARD) is None


def test_a_name_may_stand_for_a_kernel_for_some_knobs_and_another_for_others() -> None:
    class Tall(Second):
        """For more outputs than inputs."""

        materialises = True

    class Shaped(FullFormat):
        """Its kernel follows from the shape."""

    class Either(Second, of=Shaped):
        """By the shape."""

        def for_knobs(self, described: Shaped) -> Second:
            return Tall() if described.out_features > described.in_features else self

    tall, wide = (Shaped(out_features=n, in_features=4, kernel="second") for n in (5, 3))
    assert [type(f.implementation) for f in (tall, wide)] == [Tall, Either]
    assert (tall.MATERIALISES, wide.MATERIALISES) == (True, False)


def test_kernels_without_a_class_are_known_by_their_names() -> None:
    class ByName(FullFormat):
        """Its layer tells kernels apart by their names."""

        KERNELS = ("one", "other")

    f = ByName(out_features=2, in_features=3, kernel="other")
    assert [type(kernel) for kernel in ByName.IMPLEMENTATIONS] == [Named, Named]
    assert f.implementation.name == f.kernel == "other"


def test_a_layer_without_a_product_says_what_it_lacks() -> None:
    class Bare(Linear):
        def to_dense(self) -> Tensor:
            raise AssertionError

    with pytest.raises(NotImplementedError, match="Bare must give apply_weight"):
        Bare(2, 3)(torch.ones(1, 3))


# --- the bias -----------------------------------------------------------------------------------

ADDING = [
    describe(cls, kernel.name, (48, 64))
    for cls in CLASSES.values()
    for kernel in cls.IMPLEMENTATIONS
    if kernel.adds_bias
]


class Adds(TorchDispatchMode):
    """The additions of a call that are operators of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("add", "add_"):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_who_adds_the_bias_says_so() -> None:
    assert {f.name() for f in ADDING} >= {"dense", "low_rank", "low_rank_light"}


@pytest.mark.parametrize("f", ADDING, ids=lambda f: f"{f.name()}-{f.kernel}")
def test_a_bias_is_added_once_as_part_of_a_product(f: Format) -> None:
    layer = f.random(dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    bias = torch.arange(48.0)
    layer.bias = torch.nn.Parameter(bias)
    x, dy = torch.ones(5, 64), torch.arange(240.0).view(5, 48)
    with Adds() as adds:
        y = layer(x)
    assert adds.found == []
    assert torch.allclose(y, x @ layer.to_dense().mT + bias, rtol=1e-4, atol=1e-4)
    layer.requires_grad_(False)
    layer.bias.requires_grad_(True)  # and nothing else
    (gradient,) = torch.autograd.grad(layer(x), layer.bias, dy)
    assert torch.equal(gradient, dy.sum(0))
