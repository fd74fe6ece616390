"""Every promise on every file of ``hwbench/formats/``: a new file is tested without a line here.

Formats come from ``plugins.names``, settings from ``from_knobs`` at half density (or without one,
for a format that has none). What a format may say about itself, by attribute or property:

* ``PROJECTION_TOLERANCE``: how far an iterative ``project`` may stay from a member that it is
  given (relative, Frobenius; default 1e-4);
* ``MATERIALISES``: whether its kernel forms a dense tensor of the weight's size (default False).
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from _formats import (
    CLASSES,
    DENSITIES,
    DIRECTIONS,
    EDGES,
    SHAPES,
    TOLERANCE,
    Watch,
    all_of,
    assert_near,
    assert_right,
    assert_sentence,
    budgets,
    dtypes,
    each,
    first_of_each,
    generator,
    hidden_tensors,
    home,
    neighbours,
    normal,
    observe,
    projected,
    random_layer,
    relative,
    runs_in,
    settings,
    strided,
    trains,
    unsaved,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from hwbench import plugins
from hwbench.errors import KnobError, UnknownNameError, UnreachableError
from hwbench.formats._base import (
    BACKWARD,
    BACKWARD_INPUT,
    BACKWARD_WEIGHT,
    FORWARD,
    STEP,
    Format,
    Linear,
)

BAD: dict[type, tuple[Any, ...]] = {
    int: (0, -1, 1.5, "x", True),
    float: (-1.0, "x", True, math.nan),
    str: (0, -1, 1.5, "x", True),
    bool: (2, -1, 1.5, "x"),
}
KERNELS = [(cls, kernel) for cls in CLASSES.values() for kernel in cls.KERNELS]
SETTINGS = list(settings(SHAPES))
ALL = [*SETTINGS, *settings(EDGES)]
LIVE = [f for f in SETTINGS if runs_in(f)]  # on the processor; the rest is stored and projected
ONE, ONE_LIVE = first_of_each(SETTINGS), first_of_each(LIVE)
ONE_TRAINS = first_of_each(f for f in LIVE if trains(f))


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
def test_shape_is_built_or_refused_in_words(cls: type[Format], kernel: str) -> None:
    for shape, density in itertools.product(SHAPES + EDGES, (*DENSITIES, None)):
        knobs = {} if density is None else {"density": density}
        try:
            f = cls.from_knobs(*shape, kernel=kernel, **knobs)
        except KnobError as refusal:
            assert_sentence(refusal)
        else:
            assert (f.out_features, f.in_features, f.kernel) == (*shape, kernel), density


@each("cls, kernel", KERNELS)
def test_ordinary_shapes_are_built(cls: type[Format], kernel: str) -> None:
    mine = [f for f in SETTINGS if (type(f), f.kernel) == (cls, kernel)]
    assert {(96, 64), (64, 96), (64, 64)} <= {(f.out_features, f.in_features) for f in mine}


@all_of(SETTINGS)
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


@each("f", ONE)
def test_what_a_density_decides_is_not_given_beside_it(f: Format) -> None:
    for knob, value in f.knobs().items():
        if knob not in f.knob_defaults():
            with pytest.raises(
                KnobError, match=f"either a density or .*{knob}.*, not both"
            ) as refusal:
                type(f).from_knobs(f.out_features, f.in_features, density=0.5, **{knob: value})
            assert_sentence(refusal.value)


@each("f", ONE)
def test_multiple_means_nothing_without_a_density(f: Format) -> None:
    with pytest.raises(UnknownNameError, match=r"'multiple'; (known: .*density.*\.|did you mean)"):
        type(f).from_knobs(f.out_features, f.in_features, **f.knobs(), multiple=8)


@each("f", ONE)
def test_bad_knob_is_refused(f: Format) -> None:
    tried = [(knob, bad) for knob, value in f.knobs().items() for bad in BAD[type(value)]]
    for knob, bad in tried:
        with refused(f"{knob}={bad!r}"):
            type(f).from_knobs(f.out_features, f.in_features, **{**f.knobs(), knob: bad})
    assert tried  # the kernel is a knob of every format


@each("f", ONE)
def test_bad_budget_is_refused(f: Format) -> None:
    for knob, bad in itertools.product(["density", "multiple"], [0, -1, 1.5, "x", True, math.nan]):
        budget = {"density": 0.5, knob: bad}
        with refused(f"{knob}={bad!r}"):
            type(f).from_knobs(f.out_features, f.in_features, kernel=f.kernel, **budget)


@contextmanager
def refused(what: str) -> Iterator[None]:
    """What is done with this input raises a KnobError that is a sentence."""
    try:
        yield
    except KnobError as refusal:
        assert_sentence(refusal)
    else:
        pytest.fail(f"{what} is not refused")


@each("f", ONE)
def test_a_mistake_is_told_before_a_density_out_of_reach(f: Format) -> None:
    def refused(**knobs: Any) -> KnobError:
        with pytest.raises(KnobError) as refusal:
            type(f).from_knobs(f.out_features, f.in_features, density=1e-9, **knobs)
        return refusal.value

    reason = refused(kernel=f.kernel)
    assert isinstance(reason, UnreachableError)
    assert_sentence(reason)
    assert "cannot reach density 1e-09; " in str(reason)
    for mistake in ({"kernel": "none"}, {"kernel": f.kernel, "multiple": 0}):
        assert not isinstance(refused(**mistake), UnreachableError)


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


@all_of(SETTINGS)
def test_budget_is_kept_and_used(f: Format) -> None:
    for density, g in [*budgets(f), *budgets(f, [f.density()])]:
        allowed = math.floor(density * f.out_features * f.in_features + 1e-9)
        assert 1 <= g.parameters() <= allowed
        assert dict(budgets(g, [g.density()])) == {g.density(): g}
        for neighbour in neighbours(g):  # nothing larger would have fitted
            assert not g.parameters() < neighbour.parameters() <= allowed, neighbour
    if f.density() <= 1:  # above it is what stands beside a code for every weight
        assert dict(budgets(f, [f.density()])), "it refuses the density it has"


@all_of(SETTINGS)
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


@all_of(ALL)
def test_parameters_are_the_values_that_carry_information(f: Format) -> None:
    """Counted as the stored values that the weight depends on."""
    for layer in layers(f, home(f)):
        exact = copy.deepcopy(layer).double()
        by = list(exact.parameters())
        dy = normal(f.out_features, f.in_features, seed=2).double()
        grads = torch.autograd.grad(exact.to_dense(), by, dy) if by else ()
        if f.in_features == 1 and layer.coded_weights():
            continue  # codes and scales hold a column exactly, so that what stands beside is zero
        valued = sum(int(g.count_nonzero()) for g in grads)
        assert f.parameters() == valued + layer.coded_weights()  # no gradient reaches a code
        assert f.density() == f.parameters() / (f.out_features * f.in_features)


@all_of(projected(ALL))
def test_stored_bytes_are_those_of_the_stored_tensors(f: Format) -> None:
    for dtype in dtypes(f):
        for layer in layers(f, dtype):
            stored = layer.stored_tensors()
            counted = sum(t.numel() * t.element_size() for t in strided(stored))
            assert f.stored_bytes(dtype.itemsize) == counted
            assert all(not t.is_floating_point() or t.dtype == dtype for t in stored)


@each("f", ONE)
def test_nothing_is_stored_out_of_sight(f: Format) -> None:
    """A new layer has no tensor beside parameters and buffers; use adds none to these."""
    layer, dtype = random_layer(f), home(f)
    for module in layer.modules():
        tables = ("_parameters", "_buffers", "_modules")
        assert not list(hidden_tensors([v for k, v in vars(module).items() if k not in tables]))
    for direction in [d for d in DIRECTIONS if f.unsupported("cpu", dtype, d) is None]:
        x, dy = normal(3, f.in_features).to(dtype), normal(3, f.out_features).to(dtype)
        observe(nullcontext(), layer, x, dy, direction)
    stored = strided(layer.stored_tensors())
    assert f.stored_bytes(dtype.itemsize) == sum(t.numel() * t.element_size() for t in stored)


@each("f", ONE)
def test_random_is_reproducible_and_leaves_the_global_generator_alone(f: Format) -> None:
    dtype, state = home(f), torch.get_rng_state()
    first, again, other = (f.random(dtype=dtype, generator=generator(s)) for s in (3, 3, 4))
    assert torch.equal(state, torch.get_rng_state())
    for a, b in zip(first.stored_tensors(), again.stored_tensors(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.to_dense(), other.to_dense())
    assert first.to_dense().shape == (f.out_features, f.in_features)
    assert first.to_dense().isfinite().all()
    assert first.to_dense().count_nonzero() > 0


@all_of(SETTINGS)
def test_state_dict_round_trip(f: Format) -> None:
    """Another layer that loads the state is the same map, with the same gradients."""
    layer, other = random_layer(f, seed=0), random_layer(f, seed=5)
    other.load_state_dict(copy.deepcopy(layer.state_dict()))
    assert torch.equal(other.to_dense(), layer.to_dense())
    if runs_in(f):
        x, dy = normal(3, f.in_features).to(home(f)), normal(3, f.out_features).to(home(f))
        assert_right(other, x, dy, STEP if trains(f) else FORWARD)


# --- forward and backward -----------------------------------------------------------------------


def assert_forward(f: Format, dtype: torch.dtype, device: str) -> None:
    layer = random_layer(f, dtype, device=device)
    dense = copy.deepcopy(layer).double().to_dense().detach()
    wide, beside = normal(f.in_features, 6, device=device).to(dtype), layer.tolerance(dtype)
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
            assert_near(y, x.double() @ dense.mT, dtype, f"{what} in {dtype}", beside=beside)
            assert y.is_contiguous(), what
    layer.bias = nn.Parameter(normal(f.out_features, seed=2, device=device).to(dtype))
    x = inputs["batch"]
    exact = x.double() @ dense.mT + layer.bias.double()
    assert_near(layer(x), exact, dtype, "bias", beside=beside)
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


@all_of([f for f in ALL if runs_in(f)])
def test_forward_equals_dense(f: Format) -> None:
    for dtype in runs_in(f):
        assert_forward(f, dtype, "cpu")


@all_of([f for f in ALL if runs_in(f)])
def test_gradients_equal_float64(f: Format) -> None:
    for dtype in runs_in(f):
        assert_gradients(f, dtype, "cpu")


@pytest.mark.usefixtures("unwritten_is_nan")
@each("f", ONE_TRAINS)
def test_nothing_is_read_that_nobody_wrote(f: Format) -> None:
    for dtype, tokens in itertools.product(runs_in(f), (1, 40)):
        layer, x = random_layer(f, dtype), normal(tokens, f.in_features).to(dtype)
        assert_right(layer, x, normal(tokens, f.out_features, seed=2).to(dtype), STEP)


class _Made(TorchDispatchMode):
    """Notes the operators that make tensors on the processor."""

    def __init__(self) -> None:
        super().__init__()
        self.on_cpu: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(isinstance(t, Tensor) and t.device.type == "cpu" for t in tree_leaves(out)):
            self.on_cpu.append(str(func))
        return out


@each("f", [f for f in ONE_LIVE if f.unsupported("cuda", home(f), FORWARD) is None])
def test_a_call_takes_nothing_from_the_host(f: Format) -> None:
    """Whatever it copies to a GPU would make the host wait for the GPU in every call."""
    layer, x = random_layer(f).to("meta"), normal(5, f.in_features).to(home(f)).to("meta")
    with torch.no_grad(), _Made() as made:
        try:
            layer(x)
        except NotImplementedError:
            pytest.skip("torch cannot pretend this product")
    assert made.on_cpu == []


@each("f", [f for f in ONE_LIVE if home(f) in runs_in(f)])
def test_a_call_is_made_where_the_layer_is_whatever_the_default_device_is(f: Format) -> None:
    for tokens in (1, 5):
        layer = random_layer(f)
        x = normal(tokens, f.in_features).to(home(f))
        dy = normal(tokens, f.out_features, seed=2).to(home(f))
        with torch.device("meta"), torch.no_grad():
            first = layer(x)
        with torch.no_grad():
            assert torch.equal(layer(x), first)
        if trains(f):
            leaves = [x.requires_grad_(), *layer.parameters()]
            with torch.device("meta"):
                gradients = torch.autograd.grad(layer(x), leaves, dy)
            again = torch.autograd.grad(layer(x), leaves, dy)
            assert all(map(torch.equal, gradients, again))


ELSEWHERE = """
import torch
torch.set_default_device("meta")  # before anything of hwbench is imported, or kept by it
torch.set_default_dtype(torch.float64)
from _formats import first_of_each, home, runs_in, settings

def drawn(*shape):
    return torch.randn(shape, dtype=torch.float32, device="cpu")

wrong = []
for f in first_of_each(settings([(96, 64)])):
    try:
        source = torch.Generator().manual_seed(0)
        projected = f.project(drawn(f.out_features, f.in_features))
        assert all(each.dtype is not torch.float64 for each in projected.stored_tensors())
        for layer in (projected.to(home(f)), f.random(dtype=home(f), generator=source)):
            made = [layer.to_dense(), *layer.stored_tensors()]
            if home(f) in runs_in(f):
                made.append(layer(drawn(3, f.in_features).to(home(f))))
                assert made[-1].dtype is home(f)
            assert all(tensor.is_cpu for tensor in made)
    except Exception as error:
        wrong.append(f"{f}: {type(error).__name__} {error}")
print("\\n".join(wrong))
"""
"""Makes one layer of every kernel where PyTorch's defaults are others."""


def test_layers_are_made_as_asked_for_whatever_the_defaults_are() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], cwd=Path(__file__).parent,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


CUDA_SETTINGS = list(settings([(96, 64), (37, 53), (128, 256)]))  # even, odd, for large tiles
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
    dtype = home(f)
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
        allowed = 5 * (TOLERANCE[dtype] + layer.tolerance(dtype))
        assert relative(ours.grad, reference.grad) <= allowed, name


@each("f", ONE_TRAINS)
def test_optimizer_steps_every_value(f: Format) -> None:
    for optimizer in (torch.optim.SGD, torch.optim.Adam):
        assert_every_value_steps(f, home(f), optimizer)


def assert_every_value_steps(f: Format, dtype: torch.dtype, optimizer: Any) -> None:
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


@all_of([f for f in LIVE if trains(f)])
def test_what_is_kept_for_the_way_back_is_saved_by_autograd(f: Format) -> None:
    """In each way of computing a gradient, so that the saved bytes of a step are all of them."""
    ways = f.knobs().get("gradient") and f.kernel == "gather"
    for g in [dataclasses.replace(f, gradient=g) for g in ("dense", "sampled")] if ways else [f]:
        layer = random_layer(g).requires_grad_(True)
        assert not unsaved(layer, layer(normal(3, f.in_features).to(home(f)).requires_grad_()))


@all_of([f for f in LIVE if f.density() < 0.9])
def test_dense_weight_is_made_only_where_the_format_says_so(f: Format) -> None:
    """With one token no tensor as large as the dense weight is written, forward or backward.

    A format whose kernel does so for some numbers of tokens has ``forms`` and says for which.
    """
    f, dtype = next((g for _, g in budgets(f, [0.25])), f), home(f)  # indices take room too
    layer = random_layer(f)
    x, dy = normal(1, f.in_features).to(dtype), normal(1, f.out_features, seed=2).to(dtype)
    watch = Watch()
    for direction in DIRECTIONS:
        if f.unsupported("cpu", dtype, direction) is None:
            observe(watch, layer, x, dy, direction)
    says_so = getattr(f, "MATERIALISES", False) and getattr(f, "forms", bool)(1)
    assert (watch.largest >= (f.out_features * f.in_features, "")) == says_so, watch.largest


# --- FLOPs --------------------------------------------------------------------------------------


@all_of(LIVE)
def test_needed_flops_are_those_of_the_values_in_every_direction(f: Format) -> None:
    """No more than what is executed: two FLOPs a value, token and pass."""
    tokens = 16
    costs = {d: f.cost(tokens, 4, d) for d in DIRECTIONS}
    for direction, cost in costs.items():
        assert 0 < cost.useful_flops <= cost.flops, direction
        assert cost.needed_flops != cost.flops
    if f.name().endswith("kronecker"):  # it uses a value many times a token
        return
    assert costs[FORWARD].useful_flops == 2 * tokens * f.parameters()
    # One trains the values that it leaves out as well, the other trains no codes.
    if f.name() not in ("two_four_training", "quantized_low_rank"):
        assert costs[BACKWARD].useful_flops == 4 * tokens * f.parameters()
        assert costs[STEP].useful_flops == 6 * tokens * f.parameters()


@pytest.mark.filterwarnings("ignore:`?torch.jit:DeprecationWarning")  # fvcore is of 2022
@all_of(LIVE)
def test_flops_are_those_of_the_operators(f: Format) -> None:
    """Counted operator by operator, and by torch and fvcore where these count right.

    A multiplication element by element may or may not be part of a multiply-add.
    """
    dtype, tokens = home(f), 16
    layer = random_layer(f)
    x, dy = normal(tokens, f.in_features).to(dtype), normal(tokens, f.out_features).to(dtype)
    for direction in [d for d in DIRECTIONS if f.unsupported("cpu", dtype, d) is None]:
        observe(Watch(), layer, x, dy, direction)  # what is built once is no part of a call
        observe(watch := Watch(), layer, x, dy, direction)
        assert not watch.unknown
        words = f.flops(tokens, direction)
        assert watch.flops <= words <= watch.flops + 2 * watch.multiplied, direction
        if watch.misread:
            continue
        observe(counter := FlopCounterMode(display=False), layer, x, dy, direction)
        assert counter.get_total_flops() == watch.flops
        if direction == FORWARD and not watch.multiplied:
            assert_fvcore(words, layer, x)


def assert_fvcore(expected: int, layer: Linear, x: Tensor) -> None:
    """fvcore counts multiply-adds in a trace of the forward pass, and says what it left out."""
    from fvcore.nn import FlopCountAnalysis  # it warns on import

    analysis = FlopCountAnalysis(layer.requires_grad_(False), x.detach())
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    try:
        counted = 2 * analysis.total()
    except RuntimeError:  # there are backward passes written by hand that cannot be traced
        assert has_own_backward(layer.requires_grad_(True)(x).grad_fn)
        return
    left_out = {name.removeprefix("aten::") for name in analysis.unsupported_ops()}
    if left_out.isdisjoint(operator.__name__ for operator in flop_registry):
        rounding = 1e-3 if "einsum" in analysis.by_operator() else 0  # from four printed digits
        assert counted == pytest.approx(expected, rel=rounding)


def has_own_backward(node: Any) -> bool:
    """Whether an autograd.Function lies in the graph behind ``node``."""
    return isinstance(node, torch.autograd.function.BackwardCFunction) or any(
        has_own_backward(before) for before, _ in getattr(node, "next_functions", ())
    )


@all_of(SETTINGS)
def test_cost_is_whole_and_linear_in_tokens(f: Format) -> None:
    for direction in DIRECTIONS:
        one, three = (f.cost(tokens, 4, direction) for tokens in (1, 3))
        assert type(one.useful_flops) is int
        whole = [getattr(one, n) for n in one.__struct_fields__ if n != "needed_flops"]
        assert all(type(value) is int and value >= 0 for value in whole)
        assert f.flops(0, direction) == 0
        assert one.flops < three.flops <= 3 * one.flops
        if not hasattr(f, "forms"):  # W is formed once a call
            assert three.flops == 3 * one.flops
        assert one.parameters == f.parameters()
        assert one.stored_bytes == f.stored_bytes(4)
    parts = [f.flops(2, d) for d in (FORWARD, BACKWARD)]
    assert f.flops(2, STEP) == sum(parts)


# --- projection ---------------------------------------------------------------------------------


SLACK = 1.02  # an iteration may end a little elsewhere


def matrix(f: Format, seed: int = 1) -> Tensor:
    """A weight with some structure: rows and columns of unlike size, and a strong direction."""
    rows = torch.linspace(0.2, 2, f.out_features)[:, None]
    columns = torch.linspace(2, 0.3, f.in_features)
    strong = normal(f.out_features, 1, seed=seed + 1) * normal(f.in_features, seed=seed + 2)
    return (rows * normal(f.out_features, f.in_features, seed=seed) * columns + strong).to(home(f))


def error(f: Format, weight: Tensor, **more: Any) -> float:
    return relative(f.project(weight, **more).to_dense().detach(), weight)


@all_of(projected(ALL))
def test_projection_keeps_a_member(f: Format) -> None:
    weight = random_layer(f).to_dense().detach().clone()
    assert error(f, weight) <= getattr(f, "PROJECTION_TOLERANCE", 1e-4)


@all_of(projected(ALL))
def test_projection_beats_zero_and_random_members(f: Format) -> None:
    weight = matrix(f)
    reached = error(f, weight)
    assert reached <= 1
    if f.out_features * f.in_features == 1 and "rounding" in f.knobs():
        return  # the best multiple of a single code is the weight itself
    for seed in range(3):  # each in its best multiple, which may be nothing
        member = random_layer(f, seed=seed).to_dense().detach().double()
        scale = (member * weight.double()).sum() / member.square().sum()
        assert reached <= relative(scale * member, weight) + 1e-6


@each("f", projected(ONE))
def test_projection_improves_with_the_budget(f: Format) -> None:
    actual = {g.parameters(): error(g, matrix(f)) for _, g in budgets(f)}
    errors = [actual[parameters] for parameters in sorted(actual)]
    for small, large in itertools.pairwise(errors):
        assert large <= small * SLACK + 1e-6
    assert len(errors) <= 1 or errors[-1] < errors[0]


@all_of(projected(SETTINGS))
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
    assert error(f, transposed) <= relative(dense, before) * SLACK + 1e-6


@all_of(projected(SETTINGS))
def test_projection_has_the_dtype_of_the_weight(f: Format) -> None:
    weight = matrix(f)
    full = relative(f.project(weight).to_dense().detach(), weight)
    for dtype in dtypes(f):
        layer = f.project(weight.to(dtype))
        assert layer.to_dense().dtype == dtype, dtype
        assert all(p.dtype == dtype for p in layer.parameters()), dtype
        own = relative(layer.to_dense().detach(), weight)
        assert own <= full * SLACK + 2 * TOLERANCE[dtype], dtype


@all_of(projected(ALL))
def test_projection_of_zero_is_zero(f: Format) -> None:
    zero = torch.zeros(f.out_features, f.in_features, dtype=home(f))
    assert f.project(zero).to_dense().detach().abs().max() <= 1e-6


@each("f", ONE)
def test_projection_may_be_told_what_the_layer_sees(f: Format) -> None:
    """The error that nearly uncorrelated activations see does not grow when they are given."""
    weight, seen = matrix(f).float(), torch.logspace(-1, 1, f.in_features)
    activations = (normal(2048, f.in_features, seed=7) * seen).to(home(f))
    plain, result = (f.project(weight.to(home(f)), activations=a) for a in (None, activations))
    errors = [
        float(((weight - layer.to_dense().detach().float()) @ activations.float().mT).norm())
        for layer in (plain, result)
    ]
    assert errors[1] <= errors[0] * SLACK
