"""Every promise on every file of ``hwbench/formats/``: a new file is tested without a line here.

Formats come from ``plugins.names``, settings from ``from_knobs`` at half density (or without one,
for a format that has none). What a format may say about itself, as class attributes or properties:

* ``PROJECTION_TOLERANCE``: how far an iterative ``project`` may stay from a member that it is
  given, and how much worse a larger budget may turn out (relative; default 1e-4);
* ``MATERIALISES = True``: its kernel writes a dense tensor on purpose.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from hwbench import plugins
from hwbench.errors import KnobError, UnknownNameError
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
EDGES = ((1, 1), (1, 16), (16, 1), (2, 3))  # built, or refused in words; what is built must work
DENSITIES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
BAD: dict[type, tuple[Any, ...]] = {
    int: (0, -1, 1.5, "x", True),
    float: (-1.0, "x", True, math.nan),
    str: (0, -1, 1.5, "x", True),
    bool: (2, -1, 1.5, "x"),
}
TOLERANCE = {  # relative, Frobenius, against float64; a product of three factors rounds three times
    torch.float32: 1e-5,
    torch.bfloat16: 2e-2,
    torch.float16: 2.5e-3,
    torch.float64: 1e-12,
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Matrices this small gain nothing from threads, and lose much where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


WIDE = (torch.float32, torch.float64)

# --- which settings there are -----------------------------------------------------------------


def _classes() -> dict[str, type[Format]]:
    found = {}
    for name in plugins.names("formats"):
        with suppress(Exception):  # test_file_is_a_format fails on it, with the reason
            found[name] = plugins.load("formats", name, Format)
    return found


def describe(cls: type[Format], kernel: str, shape: tuple[int, int]) -> Format:
    """The format at half density, or without a density where it has none."""
    with suppress(KnobError):
        return cls.from_knobs(*shape, density=0.5, kernel=kernel)
    return cls.from_knobs(*shape, kernel=kernel)


def settings(shapes: Iterable[tuple[int, int]]) -> Iterator[Format]:
    for cls in CLASSES.values():
        for kernel in cls.KERNELS:
            for shape in shapes:
                with suppress(Exception):  # test_shape_is_built_or_refused_in_words sees it
                    yield describe(cls, kernel, shape)


def home(f: Format) -> torch.dtype | None:
    """The dtype in which the format is tried on the processor; None where it runs in none."""
    return next((d for d in TOLERANCE if f.unsupported("cpu", d, FORWARD) is None), None)


def trains(f: Format) -> bool:
    dtype = home(f)
    return dtype is not None and f.unsupported("cpu", dtype, STEP) is None


def label(value: object) -> str | None:
    if isinstance(value, Format):
        return f"{value.name()}-{value.kernel}-{value.out_features}x{value.in_features}"
    if isinstance(value, type):
        return value.__name__
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


def each(parameter: str, values: Iterable[Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(parameter, list(values), ids=label)


CLASSES = _classes()
KERNELS = [(cls, kernel) for cls in CLASSES.values() for kernel in cls.KERNELS]
SETTINGS = list(settings(SHAPES))
ALL_LIVE = [f for f in settings(SHAPES + EDGES) if home(f)]
LIVE = [f for f in SETTINGS if home(f)]
ONE = list({(type(f), f.kernel): f for f in reversed(SETTINGS)}.values())  # the first shape of each
ONE_LIVE = list({(type(f), f.kernel): f for f in reversed(LIVE)}.values())
ONE_TRAINS = list({(type(f), f.kernel): f for f in reversed(LIVE) if trains(f)}.values())

# --- how a layer is run and measured ------------------------------------------------------------


def assert_sentence(text: object) -> None:
    words = str(text)
    assert words == words.strip()
    assert "\n" not in words, words
    assert words.endswith((".", "?")), words
    assert len(words.split()) >= 4, words


def generator(seed: int = 0, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def normal(*shape: int, seed: int = 1, device: str = "cpu") -> Tensor:
    return torch.randn(*shape, generator=generator(seed, device), device=device)


def random_layer(
    f: Format, dtype: torch.dtype | None = None, *, device: str = "cpu", seed: int = 0
) -> Linear:
    """A random member, moved a little: an initialisation may leave a factor at zero."""
    layer = f.random(dtype=dtype or home(f) or torch.float32, generator=generator(seed, device))
    with torch.no_grad():
        for number, parameter in enumerate(layer.parameters()):
            noise = normal(*parameter.shape, seed=seed + 10 + number, device=device)
            parameter.add_(0.05 * noise.to(parameter.dtype))
    return layer


def relative(ours: Tensor, reference: Tensor) -> float:
    ours, reference = ours.detach().double(), reference.detach().double()
    error, norm = (ours - reference).norm(), reference.norm()
    return float(error / norm if norm > 0 else error)


def assert_near(ours: Tensor, reference: Tensor, dtype: torch.dtype, what: str = "output") -> None:
    assert ours.shape == reference.shape, what
    assert ours.dtype == dtype, what
    error = relative(ours, reference)
    assert error <= TOLERANCE[dtype], f"{what}: relative error {error:.2e}"  # NaN is not near


def wanted(layer: Linear, x: Tensor, direction: str) -> dict[str, Tensor]:
    """Switch gradients on as hwbench does for a direction; what is to be differentiated by."""
    layer.requires_grad_(direction not in (FORWARD, BACKWARD_INPUT))
    x.requires_grad_(direction not in (FORWARD, BACKWARD_WEIGHT))
    found = {"input": x, **dict(layer.named_parameters())}
    return {name: tensor for name, tensor in found.items() if tensor.requires_grad}


def derivatives(y: Tensor, by: dict[str, Tensor], dy: Tensor) -> dict[str, Tensor]:
    grads = torch.autograd.grad(y, list(by.values()), dy) if by else ()
    return dict(zip(by, grads, strict=True))


def assert_right(layer: Linear, x: Tensor, dy: Tensor, direction: str) -> None:
    """Output and gradients of one call, against float64 autograd through ``to_dense``."""
    exact = copy.deepcopy(layer).double()
    x, x64 = x.detach(), x.detach().double()
    by, by64 = wanted(layer, x, direction), wanted(exact, x64, direction)
    y, y64 = layer(x), x64 @ exact.to_dense().mT
    assert y.is_contiguous()
    assert_near(y, y64, x.dtype)
    reference = derivatives(y64, by64, dy.double())
    for name, gradient in derivatives(y, by, dy).items():
        assert_near(gradient, reference[name], x.dtype, f"{direction} gradient of {name}")


class Watch(TorchDispatchMode):
    """What the operators of a call were, and what they wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = (0, "")  # elements of the largest new tensor, and who wrote it
        self.multiplied = 0  # elements written by operators that multiply one by one
        self.uncountable: set[str] = set()  # operators that FLOP counters get wrong

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = list(_strided(tree_leaves((args, kwargs))))
        sparse = any(_is_sparse(leaf) for leaf in tree_leaves((args, kwargs)))
        result = func(*args, **(kwargs or {}))
        old = {tensor.untyped_storage().data_ptr() for tensor in given}
        written = list(_strided(tree_leaves(result)))
        for tensor in written:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in old:
                size = storage.nbytes() // tensor.element_size()
                self.largest = max(self.largest, (size, str(func)))
        self._classify(func, sparse, sum(tensor.numel() for tensor in written))
        return result

    def _classify(self, func: Any, sparse: bool, elements: int) -> None:
        name = func.overloadpacket.__name__.removesuffix("_")
        if sparse or func.namespace != "aten" or "embedding_bag" in name:
            self.uncountable.add(name)
        elif name in ("mul", "addcmul"):
            self.multiplied += elements


def _is_sparse(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.layout != torch.strided


def _strided(leaves: Iterable[object]) -> Iterator[Tensor]:
    """The tensors among the leaves; of a sparse one its indices and values."""
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
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
        with mode:
            derivatives(layer.forward(x), by, dy)  # no hooks: FlopCounterMode's refuse leaves
    else:
        y = layer(x)
        with mode:
            derivatives(y, by, dy)


# --- the description ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", plugins.names("formats"))
def test_file_is_a_format(name: str) -> None:
    cls = plugins.load("formats", name, Format)
    assert cls.name() == name
    summary = plugins.summary("formats", name)
    assert_sentence(summary)
    assert summary[0].isupper() or not summary[0].isalpha(), summary
    assert cls.revision >= 1
    assert len(set(cls.KERNELS)) == len(cls.KERNELS) >= 1


@each("cls, kernel", KERNELS)
@each("shape", SHAPES + EDGES)
def test_shape_is_built_or_refused_in_words(
    cls: type[Format], kernel: str, shape: tuple[int, int]
) -> None:
    for density in (*DENSITIES, None):
        knobs = {} if density is None else {"density": density}
        try:
            f = cls.from_knobs(*shape, kernel=kernel, **knobs)
        except KnobError as refusal:
            assert_sentence(refusal)
        else:
            assert (f.out_features, f.in_features, f.kernel) == (*shape, kernel)


@each("cls, kernel", KERNELS)
def test_ordinary_shapes_are_built(cls: type[Format], kernel: str) -> None:
    mine = [f for f in SETTINGS if (type(f), f.kernel) == (cls, kernel)]
    assert {(96, 64), (64, 96), (64, 64)} <= {(f.out_features, f.in_features) for f in mine}


@each("f", SETTINGS)
def test_knobs_survive_json(f: Format) -> None:
    knobs = json.loads(json.dumps(f.knobs()))
    again = type(f).from_knobs(f.out_features, f.in_features, **knobs)
    assert again == f
    assert again.knobs() == f.knobs()
    assert all(type(knobs[name]) is type(value) for name, value in f.knobs().items())


@each("f", ONE)
def test_description_is_frozen_and_hashable(f: Format) -> None:
    assert {f: 1}[dataclasses.replace(f)] == 1
    assert f != dataclasses.replace(f, out_features=2 * f.out_features)
    for field in dataclasses.fields(f):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(f, field.name, getattr(f, field.name))


@each("f", ONE)
def test_misspelt_knob_is_named(f: Format) -> None:
    for knob in f.knobs():
        with pytest.raises(UnknownNameError, match=f"did you mean '{knob}'"):
            type(f).from_knobs(f.out_features, f.in_features, **{**f.knobs(), knob + knob[-1]: 1})


def _bad_knobs() -> Iterator[Any]:
    for f in ONE:
        for knob, value in f.knobs().items():
            for bad in BAD[type(value)]:
                yield pytest.param(f, knob, bad, id=f"{f.name()}-{f.kernel}-{knob}={bad!r}")


@pytest.mark.parametrize(("f", "knob", "bad"), list(_bad_knobs()))
def test_bad_knob_is_refused(f: Format, knob: str, bad: Any) -> None:
    with pytest.raises(KnobError) as refusal:
        type(f).from_knobs(f.out_features, f.in_features, **{**f.knobs(), knob: bad})
    assert_sentence(refusal.value)


@each("f", ONE)
@pytest.mark.parametrize("bad", [0, -1, 1.5, "x", True, math.nan])
@pytest.mark.parametrize("knob", ["density", "multiple"])
def test_bad_budget_is_refused(f: Format, knob: str, bad: Any) -> None:
    budget = {"density": 0.5, knob: bad}
    with pytest.raises(KnobError) as refusal:
        type(f).from_knobs(f.out_features, f.in_features, kernel=f.kernel, **budget)
    assert_sentence(refusal.value)


def test_multiple_rounds_down() -> None:
    rounded = []
    for f in ONE:
        for _, plain in budgets(f, [0.5]):
            for _, g in budgets(f, [0.5], multiple=8):  # a format without a rank refuses it
                changed = [value for key, value in g.knobs().items() if value != plain.knobs()[key]]
                assert all(value % 8 == 0 for value in changed)
                assert g.parameters() < plain.parameters() if changed else g == plain
                rounded += changed
    assert rounded  # a format has a rank here that is no multiple of 8


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


@each("f", SETTINGS)
def test_budget_is_kept_and_used(f: Format) -> None:
    for density, g in [*budgets(f), *budgets(f, [f.density()])]:
        allowed = math.floor(density * f.out_features * f.in_features + 1e-9)
        assert 1 <= g.parameters() <= allowed
        assert dict(budgets(g, [g.density()])) == {g.density(): g}
        for neighbour in neighbours(g):  # nothing larger would have fitted
            assert not g.parameters() < neighbour.parameters() <= allowed, neighbour
    assert dict(budgets(f, [min(1.0, f.density())])), "it refuses the density it has"


def neighbours(f: Format) -> Iterator[Format]:
    """One up and one down in every whole-number knob that has no default."""
    for field in dataclasses.fields(f):
        value = getattr(f, field.name)
        if field.name in f.knobs() and field.default is dataclasses.MISSING and type(value) is int:
            for changed in (value - 1, value + 1):
                with suppress(KnobError):
                    yield dataclasses.replace(f, **{field.name: changed})


@each("f", SETTINGS)
def test_unsupported_says_why_and_holds_together(f: Format) -> None:
    for device in ("cpu", "cuda"):
        for dtype in TOLERANCE:
            reasons = {d: f.unsupported(device, dtype, d) for d in DIRECTIONS}
            for reason in reasons.values():
                if reason is not None:
                    assert_sentence(reason)
            if reasons[BACKWARD] is None:
                assert reasons[BACKWARD_INPUT] is reasons[BACKWARD_WEIGHT] is None
            if reasons[STEP] is None:
                assert reasons[FORWARD] is reasons[BACKWARD] is None


# --- what is stored -----------------------------------------------------------------------------


def layers(f: Format, dtype: torch.dtype) -> list[Linear]:
    weight = normal(f.out_features, f.in_features).to(dtype)
    return [random_layer(f, dtype), f.project(weight)]


@each("f", ALL_LIVE)
def test_parameters_are_the_values_that_carry_information(f: Format) -> None:
    """Counted as the stored values that the weight depends on."""
    for layer in layers(f, home(f) or torch.float32):
        exact = copy.deepcopy(layer).double()
        by = list(exact.parameters())
        dy = normal(f.out_features, f.in_features, seed=2).double()
        grads = torch.autograd.grad(exact.to_dense(), by, dy)
        assert f.parameters() == sum(int(g.count_nonzero()) for g in grads)
        assert f.density() == f.parameters() / (f.out_features * f.in_features)


@each("f", ALL_LIVE)
def test_stored_bytes_are_those_of_the_stored_tensors(f: Format) -> None:
    for dtype in [d for d in TOLERANCE if f.unsupported("cpu", d, FORWARD) is None]:
        for layer in layers(f, dtype):
            stored = layer.stored_tensors()
            counted = sum(t.numel() * t.element_size() for t in _strided(stored))
            assert f.stored_bytes(dtype.itemsize) == counted
            assert all(not t.is_floating_point() or t.dtype == dtype for t in stored)


@each("f", ONE_LIVE)
def test_nothing_is_stored_out_of_sight(f: Format) -> None:
    """A new layer has no tensor beside parameters and buffers; use adds none to these."""
    layer, dtype = random_layer(f), home(f) or torch.float32
    for module in layer.modules():
        tables = ("_parameters", "_buffers", "_modules")
        assert not list(hidden_tensors([v for k, v in vars(module).items() if k not in tables]))
    layer(normal(3, f.in_features).to(dtype)).sum()
    if trains(f):
        layer(normal(3, f.in_features).to(dtype)).sum().backward()
    stored = _strided(layer.stored_tensors())
    assert f.stored_bytes(dtype.itemsize) == sum(t.numel() * t.element_size() for t in stored)


def hidden_tensors(value: object) -> Iterator[Tensor]:
    """The tensors in a value, its containers and the attributes of its objects."""
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, (type, Callable)):
            yield from hidden_tensors(list(vars(leaf).values()))


@each("f", ONE_LIVE)
def test_random_is_reproducible_and_leaves_the_global_generator_alone(f: Format) -> None:
    dtype, state = home(f) or torch.float32, torch.get_rng_state()
    make: Callable[[int], Linear] = lambda seed: f.random(dtype=dtype, generator=generator(seed))  # noqa: E731
    first, again, other = make(3), make(3), make(4)
    assert torch.equal(state, torch.get_rng_state())
    for a, b in zip(first.stored_tensors(), again.stored_tensors(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.to_dense(), other.to_dense())
    assert first.to_dense().shape == (f.out_features, f.in_features)
    assert first.to_dense().isfinite().all()
    assert first.to_dense().count_nonzero() > 0


@each("f", LIVE)
def test_state_dict_round_trip(f: Format) -> None:
    """Another layer that loads the state is the same map, with the same gradients."""
    layer, other = random_layer(f, seed=0), random_layer(f, seed=5)
    other.load_state_dict(copy.deepcopy(layer.state_dict()))
    assert torch.equal(other.to_dense(), layer.to_dense())
    dtype = home(f) or torch.float32
    x, dy = normal(3, f.in_features).to(dtype), normal(3, f.out_features, seed=2).to(dtype)
    assert_right(other, x, dy, STEP if trains(f) else FORWARD)


# --- forward and backward -----------------------------------------------------------------------


def assert_forward(f: Format, dtype: torch.dtype, device: str) -> None:
    layer = random_layer(f, dtype, device=device)
    dense = copy.deepcopy(layer).double().to_dense().detach()
    wide = normal(f.in_features, 6, device=device).to(dtype)
    inputs = {
        "tokens": wide.mT.contiguous(),
        "transposed": wide.mT,
        "one token": wide[:, :1].mT,
        "vector": wide[:, 0].contiguous(),
        "batch": wide.mT.reshape(2, 3, f.in_features),
    }
    for what, x in inputs.items():
        for guard in (torch.no_grad(), torch.inference_mode()):
            with guard:
                y = layer(x)
            assert_near(y, x.double() @ dense.mT, dtype, what)
            assert y.is_contiguous(), what
    layer.bias = nn.Parameter(normal(f.out_features, seed=2, device=device).to(dtype))
    x = inputs["batch"]
    assert_near(layer(x), x.double() @ dense.mT + layer.bias.double(), dtype, "bias")
    assert all(tensor is not layer.bias for tensor in layer.stored_tensors())


def assert_gradients(f: Format, dtype: torch.dtype, device: str) -> None:
    layer = random_layer(f, dtype, device=device)
    directions = [d for d in DIRECTIONS if f.unsupported(device, dtype, d) is None]
    for tokens in (1, 5):
        x = normal(tokens, f.in_features, device=device).to(dtype)
        dy = normal(tokens, f.out_features, seed=2, device=device).to(dtype)
        for direction in directions:
            assert_right(layer, x, dy, direction)
    transposed = [tensor.mT.contiguous().mT for tensor in (x, dy)]
    assert_right(layer, *transposed, directions[-1])
    assert_right(layer, x, dy[:1, :1].expand_as(dy), directions[-1])  # as y.sum() gives


def _runs(fs: Iterable[Format]) -> list[tuple[Format, torch.dtype]]:
    """Every dtype; half precision not for vectors, whose one sum may cancel."""
    found = []
    for f in fs:
        dtypes = TOLERANCE if (f.out_features, f.in_features) in SHAPES else WIDE
        found += [(f, d) for d in dtypes if f.unsupported("cpu", d, FORWARD) is None]
    return found


@each("f, dtype", _runs(ALL_LIVE))
def test_forward_equals_dense(f: Format, dtype: torch.dtype) -> None:
    assert_forward(f, dtype, "cpu")


@each("f, dtype", _runs(ALL_LIVE))
def test_gradients_equal_float64(f: Format, dtype: torch.dtype) -> None:
    assert_gradients(f, dtype, "cpu")


CUDA_SETTINGS = list(settings([*SHAPES, (128, 256)]))
CUDA_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.mark.cuda
@each("dtype", CUDA_DTYPES)
@each("f", CUDA_SETTINGS)
def test_forward_equals_dense_on_cuda(f: Format, dtype: torch.dtype) -> None:
    if reason := f.unsupported("cuda", dtype, FORWARD):
        pytest.skip(reason)
    assert_forward(f, dtype, "cuda")


@pytest.mark.cuda
@each("dtype", CUDA_DTYPES)
@each("f", CUDA_SETTINGS)
def test_gradients_equal_float64_on_cuda(f: Format, dtype: torch.dtype) -> None:
    if reason := f.unsupported("cuda", dtype, BACKWARD_INPUT):
        pytest.skip(reason)
    assert_gradients(f, dtype, "cuda")


@each("f", ONE_TRAINS)
def test_gradients_accumulate_through_bias_and_batch(f: Format) -> None:
    dtype = home(f) or torch.float32
    layer = random_layer(f, dtype)
    layer.bias = nn.Parameter(normal(f.out_features, seed=2).to(dtype))
    x = normal(2, 3, f.in_features).to(dtype)
    for _ in range(2):
        (layer(x) ** 2).sum().backward()
    exact = copy.deepcopy(layer).double()
    exact.zero_grad()
    (2 * ((x.double() @ exact.to_dense().mT + exact.bias) ** 2).sum()).backward()
    for (name, ours), reference in zip(layer.named_parameters(), exact.parameters(), strict=True):
        assert ours.grad is not None
        assert reference.grad is not None
        assert relative(ours.grad, reference.grad) <= 5 * TOLERANCE[dtype], name


@each("f", ONE_TRAINS)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_optimizer_steps_every_value(f: Format, optimizer: Any) -> None:
    dtype = home(f) or torch.float32
    layer = random_layer(f, dtype)
    assert list(layer.parameters())
    before = [p.detach().clone() for p in layer.parameters()]
    steps = optimizer(layer.parameters(), lr=0.05)
    for seed in (1, 2):
        x = normal(8, f.in_features, seed=seed).to(dtype)
        steps.zero_grad()
        (layer(x) - 1).square().mean().backward()
        steps.step()
    for old, new in zip(before, layer.parameters(), strict=True):
        assert new.isfinite().all()
        assert not torch.equal(old, new)
    x, dy = normal(3, f.in_features).to(dtype), normal(3, f.out_features, seed=2).to(dtype)
    assert_right(layer, x, dy, STEP)  # nothing that was kept from before the step is stale


def _lean() -> Iterator[Format]:
    for f in LIVE:
        if f.density() < 0.9 and not getattr(f, "MATERIALISES", False):
            yield next((g for _, g in budgets(f, [0.25])), f)  # indices take room too


@each("f", _lean())
def test_no_dense_weight_is_made(f: Format) -> None:
    """With one token no tensor as large as the dense weight is written, forward or backward."""
    dtype = home(f) or torch.float32
    layer = random_layer(f, dtype)
    x, dy = normal(1, f.in_features).to(dtype), normal(1, f.out_features, seed=2).to(dtype)
    for direction in DIRECTIONS:
        if f.unsupported("cpu", dtype, direction) is None:
            observe(watch := Watch(), layer, x, dy, direction)
            assert watch.largest < (f.out_features * f.in_features, ""), direction


# --- FLOPs --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`?torch.jit:DeprecationWarning")  # fvcore is of 2022
@each("f", LIVE)
def test_flops_agree_with_the_counters(f: Format) -> None:
    """Where torch and fvcore count right: products of strided tensors, and nothing else.

    They count sparse operands as dense, and embedding_bag and custom kernels as nothing; what is
    multiplied element by element they do not see. The operators that ran tell which it is.
    """
    dtype, tokens = home(f) or torch.float32, 3
    layer = random_layer(f, dtype)
    x, dy = (normal(tokens, n).to(dtype) for n in (f.in_features, f.out_features))
    for direction in DIRECTIONS:
        if f.unsupported("cpu", dtype, direction) is not None:
            continue
        observe(watch := Watch(), layer, x, dy, direction)
        if watch.uncountable:
            continue
        observe(counter := FlopCounterMode(display=False), layer, x, dy, direction)
        counted = counter.get_total_flops()
        assert 0 <= f.flops(tokens, direction) - counted <= 2 * watch.multiplied, direction
        if direction == FORWARD and not watch.multiplied:
            assert_fvcore(f.flops(tokens, FORWARD), layer, x)


def assert_fvcore(expected: int, layer: Linear, x: Tensor) -> None:
    """fvcore counts multiply-adds in a trace of the forward pass, and says what it left out."""
    from fvcore.nn import FlopCountAnalysis  # it warns on import

    analysis = FlopCountAnalysis(layer.requires_grad_(False), x.detach())
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    counted = 2 * analysis.total()
    left_out = {name.removeprefix("aten::") for name in analysis.unsupported_ops()}
    if left_out.isdisjoint(operator.__name__ for operator in flop_registry):
        rounding = 1e-3 if "einsum" in analysis.by_operator() else 0  # from four printed digits
        assert counted == pytest.approx(expected, rel=rounding)


@each("f", SETTINGS)
def test_cost_is_whole_and_linear_in_tokens(f: Format) -> None:
    for direction in DIRECTIONS:
        one, three = (f.cost(tokens, 4, direction) for tokens in (1, 3))
        assert all(type(v) is int and v >= 0 for v in dataclasses_values(one))
        assert f.flops(0, direction) == 0
        assert three.flops == 3 * one.flops > 0
        assert one.parameters == f.parameters()
        assert one.stored_bytes == f.stored_bytes(4)
    parts = [f.flops(2, d) for d in (FORWARD, BACKWARD)]
    assert f.flops(2, STEP) == sum(parts)


def dataclasses_values(record: Any) -> list[Any]:
    return [getattr(record, name) for name in record.__struct_fields__]


# --- projection ---------------------------------------------------------------------------------


def tolerance(f: Format) -> float:
    own: float = getattr(f, "PROJECTION_TOLERANCE", 1e-4)
    return max(own, 2 * TOLERANCE[home(f) or torch.float32])


def matrix(f: Format, seed: int = 1) -> Tensor:
    """A weight with some structure: rows and columns of unlike size, and a strong direction."""
    rows = torch.linspace(0.2, 2, f.out_features)[:, None]
    columns = torch.linspace(2, 0.3, f.in_features)
    strong = normal(f.out_features, 1, seed=seed + 1) * normal(f.in_features, seed=seed + 2)
    return (rows * normal(f.out_features, f.in_features, seed=seed) * columns + strong).to(home(f))


def error(f: Format, weight: Tensor, **more: Any) -> float:
    return relative(f.project(weight, **more).to_dense().detach(), weight)


@each("f", ALL_LIVE)
def test_projection_keeps_a_member(f: Format) -> None:
    weight = random_layer(f).to_dense().detach().clone()
    assert error(f, weight) <= tolerance(f)


@each("f", ALL_LIVE)
def test_projection_beats_zero_and_random_members(f: Format) -> None:
    weight = matrix(f)
    reached = error(f, weight)
    assert reached <= 1
    for seed in range(3):  # each in its best multiple, which may be nothing
        member = random_layer(f, seed=seed).to_dense().detach().double()
        scale = (member * weight.double()).sum() / member.square().sum()
        assert reached <= relative(scale * member, weight) + 1e-6


@each("f", ONE_LIVE)
def test_projection_improves_with_the_budget(f: Format) -> None:
    found = {g.parameters(): error(g, matrix(f)) for _, g in budgets(f) if home(g)}
    errors = [found[parameters] for parameters in sorted(found)]
    for small, large in itertools.pairwise(errors):
        assert large <= small * (1 + tolerance(f)) + tolerance(f) * 1e-2
    assert len(errors) <= 1 or errors[-1] < errors[0]


@each("f", LIVE)
def test_projection_minds_its_manners(f: Format) -> None:
    """Deterministic, quiet about the global generator; it neither changes nor keeps its input."""
    weight = nn.Parameter(matrix(f))
    before, state = weight.detach().clone(), torch.get_rng_state()
    layer = f.project(weight)
    assert torch.equal(weight, before)
    assert torch.equal(state, torch.get_rng_state())
    dense = layer.to_dense().detach().clone()
    assert torch.equal(dense, f.project(weight.detach()).to_dense())
    assert all(p.is_leaf and p.requires_grad for p in layer.parameters())
    with torch.no_grad():
        weight.zero_()
    assert torch.equal(dense, layer.to_dense())
    transposed = before.mT.contiguous().mT
    assert relative(f.project(transposed).to_dense().detach(), dense) <= tolerance(f)


@each("f, dtype", _runs(LIVE))
def test_projection_has_the_dtype_of_the_weight(f: Format, dtype: torch.dtype) -> None:
    weight = matrix(f)
    layer = f.project(weight.to(dtype))
    assert layer.to_dense().dtype == dtype
    assert all(p.dtype == dtype for p in layer.parameters())
    full, own = (relative(p.to_dense().detach(), weight) for p in (f.project(weight), layer))
    assert own <= full + 2 * TOLERANCE[dtype] + tolerance(f)


@each("f", ALL_LIVE)
def test_projection_of_zero_is_zero(f: Format) -> None:
    zero = torch.zeros(f.out_features, f.in_features, dtype=home(f))
    assert f.project(zero).to_dense().detach().abs().max() <= 1e-6


@each("f", ONE_LIVE)
def test_projection_may_be_told_what_the_layer_sees(f: Format) -> None:
    """The error that nearly uncorrelated activations see does not grow when they are given."""
    weight, seen = matrix(f).float(), torch.logspace(-1, 1, f.in_features)
    activations = (normal(2048, f.in_features, seed=7) * seen).to(home(f))
    plain, told = (f.project(weight.to(home(f)), activations=a) for a in (None, activations))
    errors = [
        float(((weight - layer.to_dense().detach().float()) @ activations.float().mT).norm())
        for layer in (plain, told)
    ]
    assert errors[1] <= errors[0] * (1 + max(0.02, tolerance(f)))
