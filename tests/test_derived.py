"""What a layer keeps beside its tensors is never used for other tensors, however they changed."""

from __future__ import annotations

import copy
import inspect
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _formats import CLASSES, assert_near, describe, generator, normal
from _tiers import sampled
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from hwbench.formats._base import FORWARD, Format, Linear
from hwbench.formats._derived import Derived

SIDE, TOKENS = 64, 20  # of fewer tokens blast keeps nothing


def _runs_here() -> list[Format]:
    """Every kernel of every format that applies its weight on this machine's CPU."""
    described = [
        describe(cls, kernel, (SIDE, SIDE)) for cls in CLASSES.values() for kernel in cls.KERNELS
    ]
    return [f for f in described if f.unsupported("cpu", torch.float32, FORWARD) is None]


RUNS = _runs_here()
EVERY = pytest.mark.parametrize("f", sampled(RUNS, 2), ids=lambda f: f"{f.name()}-{f.kernel}")
TRUST = pytest.mark.parametrize("trusting", [False, True], ids=["compared", "trusting"])


def layer_of(f: Format, seed: int = 0, *, trusting: bool = False) -> Linear:
    layer = f.random(dtype=torch.float32, generator=generator(seed)).requires_grad_(False)
    return layer.trust_versions() if trusting else layer


def assert_right(layer: Linear, call: Callable[[Tensor], Tensor] | None = None) -> None:
    """Two calls: the first may derive something, the second finds it."""
    fresh = copy.deepcopy(layer)
    fresh.forget()
    dense, dtype = fresh.to_dense().double(), fresh.to_dense().dtype
    beside = layer.tolerance(dtype)
    for seed in (1, 2):
        x = normal(TOKENS, SIDE, seed=seed).to(dtype)
        assert_near(
            (layer if call is None else call)(x), x.double() @ dense.mT, dtype, beside=beside
        )
    assert_near(layer.to_dense(), dense, dtype)


def test_all_fused_optimizers_are_tried() -> None:
    assert {each.__name__ for each in OPTIMIZERS} >= {"SGD", "Adam", "AdamW", "Adagrad"}


def test_all_formats_that_run_here_are_tried() -> None:
    assert len({f.name() for f in RUNS}) >= 17
    assert {"packed_dense", "low_rank", "low_rank_light", "csr", "n_m"} <= {f.name() for f in RUNS}


def counted(layer: Linear, other: Linear) -> None:
    for own, new in zip(layer.stored_tensors(), other.stored_tensors(), strict=True):
        own.copy_(new)


def one_entry(layer: Linear, other: Linear) -> None:
    for parameter in layer.parameters():
        parameter.view(-1)[parameter.numel() // 2] += 3.0


def assigned_to_data(layer: Linear, other: Linear) -> None:
    for own, new in zip(layer.stored_tensors(), other.stored_tensors(), strict=True):
        own.data = new.clone()


def loaded(layer: Linear, other: Linear) -> None:
    layer.load_state_dict(other.state_dict())


def loaded_by_assignment(layer: Linear, other: Linear) -> None:
    layer.load_state_dict(copy.deepcopy(other).state_dict(), assign=True)


def replaced(layer: Linear, other: Linear) -> None:
    for name, parameter in copy.deepcopy(other).named_parameters():
        setattr(layer, name, parameter)
    for name, buffer in copy.deepcopy(other).named_buffers():
        setattr(layer, name, buffer)


OPTIMIZERS: list[Any] = [
    each
    for each in vars(torch.optim).values()
    if isinstance(each, type) and "fused" in inspect.signature(each).parameters
]


def stepped(layer: Linear, other: Linear) -> None:
    """By every optimizer of torch that can be fused, as it is and fused."""
    if not list(layer.parameters()):
        return  # codes are not trained
    for optimizer, fused in itertools.product(OPTIMIZERS, (False, True)):
        layer.requires_grad_()
        with torch.enable_grad():
            layer(normal(TOKENS, SIDE)).square().sum().backward()
        before = [parameter.detach().clone() for parameter in layer.parameters()]
        optimizer(layer.parameters(), lr=0.1, fused=fused).step()
        layer.requires_grad_(False).zero_grad()
        moved = zip(before, layer.parameters(), strict=True)
        assert not all(torch.equal(old, new) for old, new in moved)
        assert_right(layer)


def in_inference(layer: Linear, other: Linear) -> None:
    with torch.inference_mode():
        counted(layer, other)


def widened(layer: Linear, other: Linear) -> None:
    layer.to(torch.float64).to(torch.float32)
    counted(layer, other)


def transposed(layer: Linear, other: Linear) -> None:
    """The same memory and version, read in another order."""
    for parameter in layer.parameters():
        if parameter.dim() == 2 and parameter.shape[0] == parameter.shape[1]:
            parameter.data = parameter.data.mT


SEEN = (counted, one_entry, assigned_to_data, loaded, loaded_by_assignment, replaced)
SEEN += (stepped, in_inference, widened, transposed)


@EVERY
@TRUST
def test_every_change_that_pytorch_counts_is_seen(f: Format, trusting: bool) -> None:
    other = layer_of(f, 1)
    for change in SEEN:
        layer = layer_of(f, trusting=trusting)
        with torch.no_grad():
            assert_right(layer)
            change(layer, other)
            assert_right(layer)


def stepped_fused(layer: Linear, other: Linear) -> None:
    if list(layer.parameters()):
        with torch.enable_grad():
            layer.requires_grad_()(normal(TOKENS, SIDE)).square().sum().backward()
        torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True).step()
        layer.requires_grad_(False).zero_grad()


# torch's tracer makes an object of a class of which torch asks that none be made.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace:UserWarning")
@EVERY
def test_every_change_of_parameters_is_seen_by_compiled_code(f: Format) -> None:
    layer, other = layer_of(f, trusting=True), layer_of(f, 1)
    call: Any = torch.compile(layer, backend="aot_eager")
    with torch.no_grad():
        assert_right(layer)  # what is kept is there when the call is traced
        for change in (one_entry, stepped_fused, loaded, one_entry):
            assert_right(layer, call)
            change(layer, other)
            assert_right(layer, call)
            assert_right(layer)
    torch.compiler.reset()


def through_data(layer: Linear) -> None:
    for parameter in layer.parameters():
        parameter.data.mul_(1.5)


def one_entry_of_data(layer: Linear) -> None:
    for parameter in layer.parameters():
        parameter.data.view(-1)[-1] += 1.0


def through_numpy(layer: Linear) -> None:
    for parameter in layer.parameters():
        parameter.detach().numpy()[...] *= 1.5


def indices_through_data(layer: Linear) -> None:
    """The indices of another layer of the format."""
    for (_, own), (_, new) in zip(layer.named_buffers(), OTHERS[0].named_buffers(), strict=True):
        own.data.copy_(new)


OTHERS: list[Linear] = []


@EVERY
def test_a_change_that_nobody_counts_is_seen_unless_versions_are_trusted(f: Format) -> None:
    OTHERS[:] = [layer_of(f, 1)]
    for change in (through_data, one_entry_of_data, through_numpy, indices_through_data):
        for trusting in (False, True):
            layer = layer_of(f, trusting=trusting)
            assert_right(layer)
            change(layer)
            if trusting:
                layer.forget()
            assert_right(layer)


@EVERY
@TRUST
def test_functional_calls_use_the_tensors_that_they_are_given(f: Format, trusting: bool) -> None:
    """Thirty times new tensors, at addresses that the allocator has given out before."""
    layer = layer_of(f, trusting=trusting)
    assert_right(layer)
    x = normal(TOKENS, SIDE)
    others = [layer_of(f, seed) for seed in range(1, 4)]
    for number in range(30):
        other = others[number % 3]
        state = {name: tensor.clone() for name, tensor in other.state_dict().items()}
        dense = x.double() @ other.to_dense().double().mT
        beside = layer.tolerance(torch.float32)
        assert_near(functional_call(layer, state, (x,)), dense, torch.float32, beside=beside)
        del state
    assert_right(layer)


@EVERY
@TRUST
def test_copies_derive_for_themselves(f: Format, trusting: bool) -> None:
    layer = layer_of(f, trusting=trusting)
    assert_right(layer)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.copy(layer)):
        assert_right(other)
        other.load_state_dict(layer_of(f, 1).state_dict(), assign=True)
        assert_right(other)
        assert_right(layer)
    if f.unsupported("cpu", torch.float64, FORWARD) is None:
        assert_right(layer.double())


@EVERY
def test_a_layer_made_in_inference_mode_is_compared(f: Format) -> None:
    """Its tensors count no versions."""
    with torch.inference_mode():
        layer = layer_of(f, trusting=True)
        assert_right(layer)
        for parameter in layer.parameters():
            parameter.mul_(2)
        assert_right(layer)


# --- the keeper itself -------------------------------------------------------------------------


@TRUST
def test_a_value_is_made_once_for_the_same_tensors(trusting: bool) -> None:
    created: list[int] = []
    kept, first, second = Derived[int](), torch.arange(4.0), torch.tensor([float("nan"), -0.0])

    def build() -> int:
        created.append(1)
        return len(created)

    for _ in range(3):
        assert kept.get((first, second), build, trusting=trusting) == 1
    assert kept.get((second, first), build, trusting=trusting) == 2
    assert kept.get((second,), build, trusting=trusting) == 3
    assert kept.get((second.clone(),), build, trusting=trusting) == 4
    second[1] = 0.0  # equal to what was there, and another value
    assert kept.get((second,), build, trusting=trusting) == 5
    second.data[1] = -0.0
    assert kept.get((second,), build, trusting=trusting) == (5 if trusting else 6)


@TRUST
def test_tensors_that_get_data_from_the_other_mode_are_looked_at(trusting: bool) -> None:
    """A counter stays with its tensor, as does the lack of one."""
    kept, outside = Derived[float](), torch.zeros(2)
    with torch.inference_mode():
        inside, other = torch.zeros(2), torch.ones(2)

    def value(tensor: Tensor) -> float:
        return kept.get((tensor,), lambda: float(tensor.sum()), trusting=trusting)

    for tensor, data in ((inside, torch.ones(2)), (outside, other)):
        assert value(tensor) == 0
        tensor.data = data
        assert [value(tensor), value(tensor)] == [2, 2]
        with torch.inference_mode():
            tensor.add_(1)
        assert value(tensor) == 4


def test_an_error_while_building_leaves_nothing() -> None:
    kept, tensor = Derived[int](), torch.zeros(2)
    assert kept.get((tensor,), lambda: 1, trusting=True) == 1
    tensor += 1
    with pytest.raises(ZeroDivisionError):
        kept.get((tensor,), lambda: 1 // 0, trusting=True)
    assert kept.get((tensor,), lambda: 2, trusting=True) == 2


def test_tensors_without_memory_of_their_own_are_never_the_ones_before() -> None:
    kept, calls = Derived[int](), []

    def build() -> int:
        calls.append(1)
        return len(calls)

    def look(tensor: Tensor) -> Tensor:
        for _ in range(2):
            kept.get((tensor,), build, trusting=True)
        return tensor

    vmap(look)(torch.zeros(3, 2))
    assert len(calls) == 2


def test_an_ensemble_of_packed_layers_is_the_ensemble_of_their_matrices() -> None:
    kinds = [f for f in RUNS if (f.name(), f.kernel) == ("low_rank", "torch")]
    layers = [layer_of(f, seed) for f in kinds for seed in range(3)]
    parameters, buffers = stack_module_state(nn.ModuleList(layers))
    x = normal(TOKENS, SIDE)
    y = vmap(lambda p, b: functional_call(layers[0], (p, b), (x,)))(parameters, buffers)
    for own, layer in zip(y, layers, strict=True):
        assert_near(own, x.double() @ layer.to_dense().double().mT, torch.float32)


# --- on a GPU ----------------------------------------------------------------------------------


@pytest.mark.cuda
@TRUST
@pytest.mark.parametrize("kernel", CLASSES["semi_structured"].KERNELS)
def test_a_packed_2_to_4_weight_is_that_of_the_layer(kernel: str, trusting: bool) -> None:
    f = CLASSES["semi_structured"].from_knobs(128, 128, kernel=kernel)
    if reason := f.unsupported("cuda", torch.float16, FORWARD):
        pytest.skip(reason)

    def layer_on_it(seed: int) -> Linear:
        layer_ = f.random(dtype=torch.float16, generator=torch.Generator("cuda").manual_seed(seed))
        return layer_.requires_grad_(False)

    def assert_its_product(layer: Linear, state: dict[str, Tensor] | None = None) -> None:
        x = torch.randn(32, 128, generator=generator()).to("cuda", torch.float16)
        dense = copy.deepcopy(layer)
        dense.load_state_dict(state or layer.state_dict())
        y = layer(x) if state is None else functional_call(layer, state, (x,))
        assert_near(y, x.double() @ dense.to_dense().double().mT, torch.float16)

    layer = layer_on_it(0).trust_versions() if trusting else layer_on_it(0)
    others = [layer_on_it(seed) for seed in range(1, 4)]
    assert_its_product(layer)
    for number in range(30):
        state = others[number % 3].state_dict()
        assert_its_product(layer, {name: tensor.clone() for name, tensor in state.items()})
    for change in (counted, assigned_to_data, loaded, loaded_by_assignment, replaced):
        change(layer, others[0])
        assert_its_product(layer)
        others.append(others.pop(0))
    for change in (through_data, one_entry_of_data):
        change(layer)
        if trusting:
            layer.forget()
        assert_its_product(layer)
    assert_its_product(copy.deepcopy(layer))


def test_a_step_that_changes_nothing_leaves_a_graph_as_it_was() -> None:
    """An optimizer of several parts, of which another one was used, steps between two passes."""
    kind = describe(CLASSES["low_rank"], "mkl", (SIDE, SIDE))
    layer = kind.random(dtype=torch.float32, generator=generator()).trust_versions()
    x = normal(TOKENS, SIDE)
    with torch.no_grad():
        layer(x)  # from here on its versions are believed
    y = layer(x).sum()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()  # no gradient, so no change
    y.backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
