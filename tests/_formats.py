"""What the promises on formats are tried with: settings, layers, and a watch on operators."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from hwbench import plugins
from hwbench.errors import KnobError
from hwbench.formats._base import (
    BACKWARD,
    BACKWARD_INPUT,
    BACKWARD_WEIGHT,
    FORWARD,
    STEP,
    Format,
    Linear,
)

DIRECTIONS = (FORWARD, BACKWARD_INPUT, BACKWARD_WEIGHT, BACKWARD, STEP)
SHAPES = ((96, 64), (64, 96), (64, 64), (63, 45), (37, 53))
FIRST = ((96, 64), (37, 53), (2, 3))  # in the first tier; the second tries the others
EDGES = ((1, 1), (1, 16), (16, 1), (2, 3))  # built, or refused in words; what is built must work
DENSITIES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
TOLERANCE = {  # relative, Frobenius, against float64; a product of three factors rounds three times
    torch.float32: 1e-5,
    torch.bfloat16: 2e-2,
    torch.float16: 2.5e-3,
    torch.float64: 1e-12,
}
INTEGER_PRODUCTS = (
    *("linear_dynamic", "qlinear_pointwise", "_int_mm"),
    *("_weight_int8pack_mm", "_weight_int4pack_mm_for_cpu"),
)
"""Products whose weight is packed, or whose operands are integers, by operator."""
WIDE = (torch.float32, torch.float64)

# --- which settings there are -----------------------------------------------------------------


def _classes() -> dict[str, type[Format]]:
    collected = {}
    for name in plugins.names("formats"):
        with suppress(Exception):  # test_file_is_a_format fails on it, with the reason
            collected[name] = plugins.load("formats", name, Format)
    return collected


CLASSES = _classes()


def describe(cls: type[Format], kernel: str, shape: tuple[int, int]) -> Format:
    """The format at half density, or without a density where it has none."""
    with suppress(KnobError):
        return cls.from_knobs(*shape, density=0.5, kernel=kernel)
    return cls.from_knobs(*shape, kernel=kernel)


def settings(shapes: Iterable[tuple[int, int]]) -> Iterator[Format]:
    """Every kernel of every format at every shape that it can have."""
    for cls in CLASSES.values():
        for kernel in cls.KERNELS:
            for shape in shapes:
                with suppress(Exception):  # test_shape_is_built_or_refused_in_words sees it
                    yield describe(cls, kernel, shape)


def first_of_each(fs: Iterable[Format]) -> list[Format]:
    """One setting of every kernel of every format."""
    collected: dict[tuple[type[Format], str], Format] = {}
    for f in fs:
        collected.setdefault((type(f), f.kernel), f)
    return list(collected.values())


def projected(fs: Iterable[Format]) -> list[Any]:
    """The settings; all but the first kernel of a format in the second tier: they project alike."""
    heavy = pytest.mark.heavy
    return [
        f if f.kernel == type(f).KERNELS[0] else pytest.param(f, marks=heavy, id=_label(f))
        for f in fs
    ]


def budgets(
    f: Format, densities: Sequence[float] = DENSITIES, **knobs: Any
) -> Iterator[tuple[float, Format]]:
    """The settings that the format has for these densities."""
    knobs["kernel"] = f.kernel
    for density in densities:
        with suppress(KnobError):
            yield (
                density,
                type(f).from_knobs(f.out_features, f.in_features, density=density, **knobs),
            )


def neighbours(f: Format) -> Iterator[Format]:
    """One up and one down in every whole-number knob that has no default."""
    for field in dataclasses.fields(f):
        value = getattr(f, field.name)
        if field.name in f.knobs() and field.default is dataclasses.MISSING and type(value) is int:
            for changed in (value - 1, value + 1):
                with suppress(KnobError):
                    yield dataclasses.replace(f, **{field.name: changed})


def dtypes(f: Format) -> list[torch.dtype]:
    """The dtypes to try; none narrow for a vector.

    The one sum that a vector gives may cancel, and no relative tolerance holds then.
    """
    return list(TOLERANCE if (f.out_features, f.in_features) in SHAPES else WIDE)


def runs_in(f: Format, direction: str = FORWARD) -> list[torch.dtype]:
    """The dtypes in which the format runs on the processor."""
    return [dtype for dtype in dtypes(f) if f.unsupported("cpu", dtype, direction) is None]


def home(f: Format) -> torch.dtype:
    """The dtype in which the format is tried: one that runs, and trains, if any does."""
    return next(iter([*runs_in(f, STEP), *runs_in(f), torch.float32]))


def trains(f: Format) -> bool:
    return bool(runs_in(f, STEP))


def _label(value: object) -> str | None:
    if isinstance(value, Format):
        return f"{value.name()}-{value.kernel}-{value.out_features}x{value.in_features}"
    if isinstance(value, type) and issubclass(value, Format):
        return value.name()
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


def each(parameter: str, values: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrise a test, with names that can be read and selected."""
    return pytest.mark.parametrize(parameter, list(values), ids=_label)


def all_of(values: Iterable[Any]) -> Callable[[Callable[[Any], None]], Any]:
    """One test for each kernel of each format, of its settings at the shapes of ``FIRST`` in turn.

    A heavy one tries it at all others. A failure names its setting. Called with a single setting,
    the test tries that one.
    """
    kernels: dict[str, Any] = {}
    for value in values:
        f, marks = (value.values[0], value.marks) if hasattr(value, "marks") else (value, ())
        name = f"{f.name()}-{f.kernel}"
        if (f.out_features, f.in_features) not in FIRST:
            name, marks = f"{name}-others", pytest.mark.heavy
        kernels.setdefault(name, pytest.param([], marks=marks, id=name)).values[0].append(f)

    def decorated(test: Callable[[Any], None]) -> Any:
        @functools.wraps(test)
        def on_all(f: Any) -> None:
            for each in f if isinstance(f, list) else [f]:
                try:
                    test(each)
                except BaseException as error:
                    error.add_note(f"It was tried with {_label(each)}.")
                    raise

        return pytest.mark.parametrize("f", list(kernels.values()))(on_all)

    return decorated


# --- how a layer is made, run and compared ----------------------------------------------------


def generator(seed: int = 0, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def normal(*shape: int, seed: int = 1, device: str = "cpu") -> Tensor:
    return torch.randn(*shape, generator=generator(seed, device), device=device)


def drawn(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers drawn in float64, so that every dtype sees the same ones, rounded."""
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def random_layer(
    f: Format, dtype: torch.dtype | None = None, *, device: str = "cpu", seed: int = 0
) -> Linear:
    """A random member, moved a little: an initialisation may leave a factor at zero."""
    layer = f.random(dtype=dtype or home(f), generator=generator(seed, device))
    with torch.no_grad():
        for number, parameter in enumerate(layer.parameters()):
            noise = normal(*parameter.shape, seed=seed + 10 + number, device=device)
            parameter.add_(0.05 * noise.to(parameter.dtype))
    return layer


def wanted(layer: Linear, x: Tensor, direction: str) -> dict[str, Tensor]:
    """Switch gradients on as hwbench does for a direction; what is to be differentiated by."""
    layer.requires_grad_(direction not in (FORWARD, BACKWARD_INPUT))
    x.requires_grad_(direction not in (FORWARD, BACKWARD_WEIGHT))
    actual = {"input": x, **dict(layer.named_parameters())}
    return {name: tensor for name, tensor in actual.items() if tensor.requires_grad}


def derivatives(y: Tensor, by: dict[str, Tensor], dy: Tensor) -> dict[str, Tensor]:
    grads = torch.autograd.grad(y, list(by.values()), dy) if by else ()
    return dict(zip(by, grads, strict=True))


def relative(ours: Tensor, reference: Tensor) -> float:
    """The Frobenius norm of the difference over that of the reference."""
    ours, reference = ours.detach().double(), reference.detach().double()
    error, norm = (ours - reference).norm(), reference.norm()
    return float(error / norm if norm > 0 else error)


def assert_near(
    ours: Tensor,
    reference: Tensor,
    dtype: torch.dtype,
    what: str = "output",
    *,
    beside: float = 0.0,
) -> None:
    """``beside`` is what the layer's own rounding of activations may add."""
    assert ours.shape == reference.shape, what
    assert ours.dtype == dtype, what
    error = relative(ours, reference)
    assert error <= TOLERANCE[dtype] + beside, (
        f"{what}: relative error {error:.2e}"
    )  # NaN is not near


def assert_right(layer: Linear, x: Tensor, dy: Tensor, direction: str) -> None:
    """Output and gradients of one call, against float64 autograd through ``to_dense``."""
    exact = copy.deepcopy(layer).double()
    x, x64 = x.detach(), x.detach().double()
    by, by64 = wanted(layer, x, direction), wanted(exact, x64, direction)
    y, y64 = layer(x), x64 @ exact.to_dense().mT
    assert y.is_contiguous()
    assert_near(y, y64, x.dtype, beside=layer.tolerance(x.dtype))
    reference = derivatives(y64, by64, dy.double())
    for name, gradient in derivatives(y, by, dy).items():
        assert_near(
            gradient, reference[name], x.dtype, f"{direction} gradient of {name} in {x.dtype}"
        )


def assert_sentence(text: object) -> None:
    words = str(text)
    assert words == words.strip()
    assert "\n" not in words, words
    assert words.endswith((".", "?")), words
    assert len(words.split()) >= 4, words


# --- what the operators of a call are, and what they write ------------------------------------


class Watch(TorchDispatchMode):
    """The largest new tensor of a call, and the FLOPs of the operators that ran.

    FLOP counters take a sparse operand for a dense one, and embedding_bag, products with packed
    weights, products that are compiled here and what they do not know for nothing; here these are
    counted by what they hold.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest = (0, "")  # elements, and the operator that wrote them
        self.flops = 0
        self.multiplied = 0  # values written by operators that multiply element by element
        self.misread: set[str] = set()  # operators that FLOP counters get wrong
        self.unknown: set[str] = set()  # operators whose FLOPs nobody here knows

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        old = {tensor.untyped_storage().data_ptr() for tensor in strided(tensors)}
        for tensor in strided(tree_leaves(result)):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in old:
                size = storage.nbytes() // tensor.element_size()
                self.largest = max(self.largest, (size, str(func)))
        self._count(func, tensors, (args, kwargs or {}), result)
        return result

    def _count(self, func: Any, tensors: list[Tensor], call: Any, result: Any) -> None:
        name = func.overloadpacket.__name__.removesuffix("_")
        sparse = any(tensor.layout != torch.strided for tensor in tensors)
        if name in ("_mkl_linear", "_linear_pointwise", *INTEGER_PRODUCTS):
            self.misread.add(name)
            self.flops += 2 * tensors[0].numel() * result.shape[-1]
        elif func.namespace == "hwbench":
            self.misread.add(name)
            self.flops += 2 * tensors[0].shape[0] * sum(t.numel() for t in tensors if _factor(t))
        elif name == "view" and func._overloadname == "dtype":
            self.misread.add(name)  # no counter that traces can reinterpret bits
        elif func.namespace != "aten" and not name.endswith("_reorder_linear_weight"):
            self.unknown.add(str(func))
        elif _weighted_bag(name, tensors) or (sparse and name.endswith(("mm", "mv"))):
            self.misread.add(name)
            self.flops += 2 * _kept_products(name, tensors)
        elif func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*call[0], **call[1], out_val=result)
        elif name in ("mul", "addcmul") and result.is_floating_point():
            self.multiplied += result.numel()


def _factor(given: Tensor) -> bool:
    """Whether a compiled operator multiplies each value of it once a token, unlike x and y."""
    return given.is_floating_point() and given.dim() != 2


def _weighted_bag(name: str, given: list[Tensor]) -> bool:
    """Whether this is an embedding_bag that multiplies; without weights it only adds."""
    weights = any(tensor.is_floating_point() and tensor.dim() == 1 for tensor in given)
    return "embedding_bag" in name and (weights or "per_sample_weights" in name)


def _kept_products(name: str, given: list[Tensor]) -> int:
    """Multiply-adds of an operator that visits only the entries that are kept."""
    if "embedding_bag" in name:  # every index is a row of the table
        indices = max(t.numel() for t in given if not t.is_floating_point())
        return indices * next(t.shape[1] for t in given if t.dim() == 2)
    if "sampled" in name:  # every entry of the first is a product of a row and a column
        return _entries(given[0]) * given[1].shape[1]
    left, right = given[-2:]
    sparse, dense = (right, left) if left.layout == torch.strided else (left, right)
    return _entries(sparse) * dense.numel() // left.shape[1]


def _entries(sparse: Tensor) -> int:
    return next(t for t in strided([sparse]) if t.is_floating_point()).numel()


def strided(leaves: Iterable[object]) -> Iterator[Tensor]:
    """The tensors among the leaves; of a sparse one its indices and values.

    What a CPU library has packed shows no storage.
    """
    for leaf in leaves:
        if not isinstance(leaf, Tensor) or leaf.is_mkldnn:
            continue
        if leaf.layout == torch.strided:
            yield leaf
        elif leaf.layout == torch.sparse_coo:
            yield from (leaf._indices(), leaf._values())
        elif leaf.layout in (torch.sparse_csr, torch.sparse_bsr):
            yield from (leaf.crow_indices(), leaf.col_indices(), leaf.values())
        else:
            yield from (leaf.ccol_indices(), leaf.row_indices(), leaf.values())


def observe(mode: Any, layer: Linear, x: Tensor, dy: Tensor, direction: str) -> None:
    """Run under ``mode`` the part of a step that ``direction`` names, as hwbench times it."""
    x = x.detach()
    by = wanted(layer, x, direction)
    if direction in (FORWARD, STEP):
        with mode:  # not by __call__: the module hooks of FlopCounterMode refuse leaves
            derivatives(layer.forward(x), by, dy)
    else:
        y = layer.forward(x)
        with mode:
            derivatives(y, by, dy)


def hidden_tensors(value: object) -> Iterator[Tensor]:
    """The tensors in a value, its containers and the attributes of its objects."""
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif hasattr(leaf, "__dict__") and not callable(leaf):
            yield from hidden_tensors(list(vars(leaf).values()))


def unsaved(layer: Linear, y: Tensor) -> list[str]:
    """Attributes of the graph behind ``y`` that keep a tensor which autograd does not know of.

    What counts saved tensors misses these. What the layer itself keeps from step to step, its
    state and what it derived from that, is none of them.
    """
    own = list(hidden_tensors(list(vars(layer).values())))
    collected, ahead, seen = [], [y.grad_fn], set()
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        ahead += [before for before, _ in node.next_functions]
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            saved = [t for t in node.saved_tensors if t is not None]
            pointers = {t.untyped_storage().data_ptr() for t in strided([*own, *saved])}
            for name, value in vars(node).items():
                hidden = strided(hidden_tensors([value]))
                if any(t.untyped_storage().data_ptr() not in pointers for t in hidden):
                    collected.append(f"{type(node).__name__}.{name}")
    return collected
