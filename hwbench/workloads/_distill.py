"""A model with its linear layers replaced: by projection, then healed by distillation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the name that everybody knows)
from torch import Tensor, nn

from hwbench.formats._base import Linear
from hwbench.workloads._models import Model

ROWS = 4096
"""The most rows of activations that a layer's projection looks at."""

BATCH = 16
RATE = 1e-3
REPLACED = 0.15
"""The share of tokens that healing replaces by random ones, so that few texts go further."""

NOTHING_LOST = 1e-6
"""A loss below it is rounding: there is nothing to heal."""

Project = Callable[[Tensor, Tensor | None], Linear]
"""A weight and the activations of its layer, or None → the layer that stands in for it."""


def compressed(model: Model, project: Project, activations: Mapping[str, Tensor] | None) -> Model:
    """A copy of the model with every linear layer projected; biases are kept.

    A layer that no activations are given of is projected as it is.
    """
    student = copy.deepcopy(model)
    for name, linear in model.linears().items():
        inputs = None if activations is None else activations.get(name)
        layer = project(linear.weight.detach(), inputs)
        if linear.bias is not None:
            layer.bias = nn.Parameter(linear.bias.detach().clone())
        student.inside().set_submodule(name, layer)
    return student.requires_grad_(False)


def activations(model: Model, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The inputs of every linear layer at the tokens of these texts: (rows, in_features) by name.

    A layer that sees no tokens, but such things as relative positions, has all that it sees; one
    that nothing passes through is left out.
    """
    inputs: dict[str, Tensor] = {}
    hooks = [
        linear.register_forward_pre_hook(_keeper(inputs, name, mask))
        for name, linear in model.linears().items()
    ]
    with torch.no_grad():
        model(ids, mask)
    for hook in hooks:
        hook.remove()
    return inputs


def _keeper(
    captured: dict[str, Tensor], name: str, mask: Tensor
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        rows = x.reshape(-1, x.shape[-1])
        if x.shape[:-1] in (mask.shape, mask.flatten().shape):
            captured[name] = rows[mask.flatten()][:ROWS]
        else:  # a layer can see tokens in one call and positions in another
            captured.setdefault(name, rows[:ROWS])

    return keep


def heal(
    student: Model,
    teacher: Model,
    ids: Tensor,
    mask: Tensor,
    steps: int,
    source: torch.Generator,
) -> None:
    """Train the student's linear layers so that its hidden states follow the teacher's.

    The loss is the squared error of each layer's hidden states at the tokens, over their mean
    square, plus how far apart the model says that the outputs are. AdamW, each parameter at a rate
    of its own (``_at_rates``), all falling to zero. Only what is learnt matters here, so every
    format is trained through its dense matrix: the gradients are those of its kernels, and no
    format takes long.
    """
    layers = [module for module in student.modules() if isinstance(module, Linear)]
    groups = [group for layer in layers for group in _at_rates(layer, source)]
    weights = [weight for group in groups for weight in group["params"]]
    rates = [group["lr"] for group in groups]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    vocabulary = teacher.vocabulary()
    for step in range(steps):
        share = min(1.0, (step + 1) / 5) * (1 - step / steps)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = share * rate
        picked = torch.randint(len(ids), (BATCH,), generator=source, device=ids.device)
        inside = mask[picked]
        width = int(inside.sum(1).max())
        inside, batch = inside[:, :width], ids[picked, :width].clone()
        swapped = torch.rand(batch.shape, generator=source, device=ids.device) < REPLACED
        noise = torch.randint(vocabulary, batch.shape, generator=source, device=ids.device)
        batch = torch.where(swapped & inside, noise, batch)
        with torch.no_grad():
            target = teacher.states(batch, inside)
        with _through_dense(layers):
            ours = student.states(batch, inside)
        loss = teacher.apart(ours[-1], target[-1], inside) + _distance(ours, target, inside)
        if loss.item() < NOTHING_LOST:
            break  # AdamW would follow the rounding
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
    student.requires_grad_(False)


@contextmanager
def _through_dense(layers: Sequence[Linear]) -> Iterator[None]:
    """Within it these layers multiply by their dense matrices."""
    for layer in layers:
        layer.forward = partial(_dense_product, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the method of the class is back


def _dense_product(layer: Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.to_dense(), layer.bias)


def _at_rates(layer: Linear, source: torch.Generator) -> list[dict[str, Any]]:
    """The parameters of a layer, each a group of an optimizer with its learning rate.

    Parameters of formats move the dense matrix by very different amounts: at one rate some learn
    nothing and others are destroyed. So each learns at the rate at which a step of random signs
    moves the entries of the matrix by ``RATE`` in the root mean square, as in a dense layer.
    """
    groups = []
    for name, weight in layer.named_parameters():
        if weight.is_floating_point():
            moved = 1.0 if name == "bias" else _moved(layer, weight, source)
            groups.append({"params": [weight.requires_grad_()], "lr": RATE / moved})
    return groups


@torch.no_grad()
def _moved(layer: Linear, weight: nn.Parameter, source: torch.Generator) -> float:
    """How far random signs, added to a parameter, move the entries of the dense matrix.

    Formats are linear in each of their parameters, so signs of any size tell the same.
    """
    signs = torch.randint(2, weight.shape, generator=source, device=weight.device) * 2 - 1
    saved, before = weight.clone(), layer.to_dense().clone()
    weight.add_(signs)
    after = layer.to_dense()
    moved = float((after - before).square().mean().sqrt())
    weight.copy_(saved)
    return moved


def _distance(ours: list[Tensor], target: list[Tensor], mask: Tensor) -> Tensor:
    each = [
        (a[mask] - b[mask]).square().mean() / b[mask].square().mean()
        for a, b in zip(ours, target, strict=True)
    ]
    return torch.stack(each).mean()
