"""What every layer does as ``nn.Linear`` does it: odd inputs, its weight, and its gradients."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from _formats import (
    SHAPES,
    all_of,
    each,
    first_of_each,
    generator,
    home,
    normal,
    projected,
    random_layer,
    relative,
    runs_in,
    settings,
    trains,
)
from torch import Tensor, nn

from hwbench.formats._base import Format
from hwbench.formats._linear import InnerWeight, Linear

SETTINGS = list(settings(SHAPES))
LIVE = [f for f in SETTINGS if runs_in(f)]
ONE, ONE_LIVE = first_of_each(SETTINGS), first_of_each(LIVE)


def with_bias(f: Format) -> Linear:
    layer = random_layer(f)
    layer.bias = nn.Parameter(normal(f.out_features, seed=2).to(home(f)))
    return layer


@all_of(LIVE)
def test_no_tokens_give_no_outputs_and_gradients_of_zero(f: Format) -> None:
    for shape in ((0,), (2, 0), (0, 3)):
        for layer in (random_layer(f), with_bias(f)):
            x = torch.empty(*shape, f.in_features, dtype=home(f), requires_grad=True)
            y = layer(x)
            assert y.shape == (*shape, f.out_features)
            assert y.dtype == x.dtype
            y.sum().backward()
            assert x.grad is not None
            assert x.grad.shape == x.shape
            for parameter in layer.parameters():
                assert parameter.grad is None or not parameter.grad.any()
            with torch.no_grad():
                assert layer(x).shape == y.shape


@all_of(LIVE)
def test_another_width_is_refused_as_by_torch(f: Format) -> None:
    layer = with_bias(f)
    for wrong in (f.in_features - 1, f.in_features + 1, 2 * f.in_features, 0):
        for shape in ((5,), (1,), (2, 3), (), (0,)):
            x = torch.zeros(*shape, wrong, dtype=home(f))
            for ours in (layer, nn.Linear(f.in_features, f.out_features).to(home(f))):
                with pytest.raises(RuntimeError):
                    ours(x)
            with pytest.raises(RuntimeError, match=f"its last side must be {f.in_features}"):
                layer(x)
    with pytest.raises(RuntimeError, match="its last side must be"):
        layer(torch.tensor(1.0, dtype=home(f)))


@all_of(projected(SETTINGS))
def test_the_weight_that_is_read_is_what_the_layer_multiplies_by(f: Format) -> None:
    layer = random_layer(f)
    names = [name for name, _ in layer.named_parameters()]
    weight = layer.weight
    assert torch.equal(weight, layer.to_dense())
    assert (weight.shape, weight.dtype) == ((f.out_features, f.in_features), home(f))
    for same in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(same.weight, weight)
    assert [name for name, _ in layer.named_parameters()] == names
    assert layer.weight.requires_grad == bool(names)
    assert not layer.requires_grad_(False).weight.requires_grad
    if f.name() != "low_rank_light":  # its order has a shape that is known from values alone
        layer.to("meta")
        assert layer.weight.is_meta
        assert layer.weight.is_meta  # twice, where it keeps something


@each("f", ONE)
def test_the_weight_cannot_be_set_where_it_is_formed(f: Format) -> None:
    layer = random_layer(f)
    before = layer.to_dense().detach().clone()
    with pytest.raises(TypeError):
        layer.weight = torch.zeros_like(before)
    assert torch.equal(layer.to_dense(), before)
    stored = dict(layer.named_parameters()).get("weight")
    assert (layer.weight is stored) == (stored is not None and not isinstance(layer, InnerWeight))


@each("f", first_of_each(f for f in LIVE if trains(f)))
def test_the_gradient_goes_through_the_weight_that_is_read(f: Format) -> None:
    layer = random_layer(f).requires_grad_()
    x = normal(5, f.in_features).to(home(f))
    parameters = list(layer.parameters())
    read = torch.autograd.grad((x @ layer.weight.mT).square().sum(), parameters)
    called = torch.autograd.grad(layer(x).square().sum(), parameters)
    for ours, reference in zip(read, called, strict=True):
        assert relative(ours, reference) <= 1e-3 + 10 * layer.tolerance(home(f))


@each("f", ONE_LIVE)
def test_what_learns_gets_a_gradient_unless_the_kernel_says_otherwise(f: Format) -> None:
    """Also with a kernel that refuses to be timed in a step."""
    layer = random_layer(f).requires_grad_()
    y: Tensor = layer(normal(5, f.in_features).to(home(f)))
    if not list(layer.parameters()):
        return
    assert layer.kernel.gives_gradients
    y.square().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_a_plugin_may_store_a_parameter_of_that_name() -> None:
    class Plain(Linear):
        def __init__(self, weight: Tensor) -> None:
            super().__init__(*weight.shape)
            self.weight = nn.Parameter(weight)

        def to_dense(self) -> Tensor:
            return 1 * self.weight

    layer = Plain(torch.randn(3, 4, generator=generator()))
    assert list(dict(layer.named_parameters())) == ["weight"]
    assert isinstance(layer.weight, nn.Parameter)
    layer.weight = nn.Parameter(torch.zeros(3, 4))
    assert not layer.to_dense().any()


@all_of(LIVE)
def test_autocast_is_given_its_type_and_gradients_reach_what_is_stored(f: Format) -> None:
    """As in a mixed training, where other layers hand on activations in 16 bits."""
    layer = with_bias(f)
    learns = trains(f)
    layer.requires_grad_(learns)
    for tokens in (1, 40):
        x = normal(tokens, f.in_features).to(home(f))
        exact = layer(x).detach()
        for given in (x, x.bfloat16()):
            leaf = given.clone().requires_grad_(learns)
            with torch.autocast("cpu", torch.bfloat16):
                y = layer(leaf)
            assert y.dtype == torch.bfloat16
            assert relative(y.to(home(f)), exact) <= 0.02 + 10 * layer.tolerance(home(f))
            if learns:
                y.float().sum().backward()
                assert leaf.grad is not None
                assert leaf.grad.dtype == leaf.dtype
        for parameter in layer.parameters():
            assert parameter.grad is None or parameter.grad.dtype == parameter.dtype
        with torch.autocast("cpu", torch.bfloat16, enabled=False):
            assert layer(x).dtype == home(f)


def _weight_norm_of_old(layer: Linear) -> None:
    nn.utils.weight_norm(layer)


def _weight_norm(layer: Linear) -> None:
    nn.utils.parametrizations.weight_norm(layer)


def _spectral_norm(layer: Linear) -> None:
    nn.utils.parametrizations.spectral_norm(layer).eval()


def _orthogonal(layer: Linear) -> None:
    nn.utils.parametrizations.orthogonal(layer)


def _pruned(layer: Linear) -> None:
    nn.utils.prune.l1_unstructured(layer, "weight", 0.5)


def _sharded(layer: Linear) -> None:
    """As wrappers do that hold the values elsewhere and put a view of them in the place."""
    values = layer._parameters.pop("weight")
    assert values is not None
    layer.weight = values.detach() * 2


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "change",
    [_weight_norm_of_old, _weight_norm, _spectral_norm, _orthogonal, _pruned, _sharded],
)
def test_what_torch_does_to_a_weight_can_be_done_to_a_dense_layer(
    change: Callable[[Linear], None],
) -> None:
    (f,) = {f.kernel: f for f in SETTINGS if f.name() == "dense"}.values()
    layer, twin = random_layer(f), nn.Linear(f.in_features, f.out_features, bias=False)
    twin.weight = nn.Parameter(layer.weight.detach().clone())
    for one in (layer, twin):
        torch.manual_seed(0)
        change(one)  # type: ignore[arg-type]
    x = normal(5, f.in_features)
    with torch.no_grad():
        assert torch.allclose(layer(x), twin(x), atol=1e-5)
    assert torch.equal(copy.deepcopy(layer.eval()).to_dense(), layer.to_dense())
