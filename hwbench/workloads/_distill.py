"""A model with its linear layers replaced: by projection, then healed by distillation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from hwbench.formats._base import Linear
from hwbench.workloads._models import Model

ROWS = 4096
"""The most rows of activations that a layer's projection looks at."""

BATCH = 16
RATE = 1e-3
REPLACED = 0.15
"""The share of tokens that healing replaces by random ones, so that few texts go further."""

Project = Callable[[Tensor, Tensor | None], Linear]
"""A weight and the activations of its layer, or None → the layer that stands in for it."""


def compressed(model: Model, project: Project, activations: Mapping[str, Tensor] | None) -> Model:
    """A copy of the model with every linear layer projected; biases are kept."""
    found = copy.deepcopy(model)
    for name, linear in model.linears().items():
        layer = project(linear.weight.detach(), None if activations is None else activations[name])
        if linear.bias is not None:
            layer.bias = nn.Parameter(linear.bias.detach().clone())
        parent, _, last = name.rpartition(".")
        setattr(found.get_submodule(parent), last, layer)
    return found.requires_grad_(False)


def activations(model: Model, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """What every linear layer sees at the tokens of these texts: (rows, in_features) by name."""
    seen: dict[str, Tensor] = {}
    hooks = [
        linear.register_forward_pre_hook(_keeper(seen, name, mask))
        for name, linear in model.linears().items()
    ]
    with torch.no_grad():
        model(ids, mask)
    for hook in hooks:
        hook.remove()
    return seen


def _keeper(
    seen: dict[str, Tensor], name: str, mask: Tensor
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[name] = inputs[0].reshape(*mask.shape, -1)[mask][:ROWS]

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
    square, plus how far apart the model says that the outputs are. AdamW, the rate falling to zero.
    """
    layers = [module for module in student.modules() if isinstance(module, Linear)]
    weights = [p for layer in layers for p in layer.parameters() if p.is_floating_point()]
    for weight in weights:
        weight.requires_grad_()
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
    vocabulary = teacher.vocabulary()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 5) * (1 - step / steps)
        picked = torch.randint(len(ids), (BATCH,), generator=source, device=ids.device)
        inside = mask[picked]
        width = int(inside.sum(1).max())
        inside, batch = inside[:, :width], ids[picked, :width].clone()
        swapped = torch.rand(batch.shape, generator=source, device=ids.device) < REPLACED
        noise = torch.randint(vocabulary, batch.shape, generator=source, device=ids.device)
        batch = torch.where(swapped & inside, noise, batch)
        with torch.no_grad():
            wanted = teacher.states(batch, inside)
        ours = student.states(batch, inside)
        loss = teacher.apart(ours[-1], wanted[-1], inside) + _distance(ours, wanted, inside)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
    student.requires_grad_(False)


def _distance(ours: list[Tensor], wanted: list[Tensor], mask: Tensor) -> Tensor:
    each = [
        (a[mask] - b[mask]).square().mean() / b[mask].square().mean()
        for a, b in zip(ours, wanted, strict=True)
    ]
    return torch.stack(each).mean()
