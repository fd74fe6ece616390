"""What a projection is given: a weight or a dense layer, looked at before a format sees it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from hwbench.errors import UsageError


def weight_and_bias(layer: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """The weight of shape (out, in) and the bias of a dense layer, detached; None of another kind.

    Dense layers are torch's ``nn.Linear`` and transformers' ``Conv1D``, which keeps its weight
    transposed. A subclass with a forward pass of its own is of another kind.
    """
    kinds = {f"{kind.__module__}.{kind.__name__}": kind for kind in type(layer).__mro__}
    conv = kinds.get("transformers.pytorch_utils.Conv1D")
    if type(layer).forward not in (nn.Linear.forward, getattr(conv, "forward", None)):
        return None
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    detached = bias.detach() if isinstance(bias, Tensor) else None
    return (weight.detach() if conv is None else weight.detach().t()), detached


def checked(project: Callable[..., Any]) -> Callable[..., Any]:
    """A format's projection, of a layer too, that looks at what it is given."""

    @functools.wraps(project)
    def looking(self: Any, weight: Any, *, activations: Tensor | None = None) -> Any:
        bias = None
        if isinstance(weight, nn.Module):
            parts = weight_and_bias(weight)
            if parts is None:
                kind = type(weight).__name__
                raise UsageError(f"{self.name()} takes a weight or an nn.Linear, not a {kind}.")
            weight, bias = parts
        _check_weight(self, weight, activations)
        layer = project(self, weight, activations=activations)
        layer.described = self
        if bias is not None:
            layer.bias = nn.Parameter(bias.clone())
        return layer

    return looking


def _check_weight(format_: Any, weight: Any, activations: Tensor | None) -> None:
    """Check that a projection can be made of these; an error names the shapes."""
    name, sides = format_.name(), (format_.out_features, format_.in_features)
    if not isinstance(weight, Tensor):
        raise UsageError(f"{name} takes a weight or an nn.Linear, not a {type(weight).__name__}.")
    if tuple(weight.shape) != sides:
        shape = "×".join(map(str, weight.shape)) or "no dimensions"
        turned = " It is transposed." if tuple(weight.shape) == sides[::-1] else ""
        raise UsageError(
            f"{name} of {sides[0]}×{sides[1]} (outputs × inputs) cannot stand in for a weight of "
            f"{shape}.{turned}"
        )
    if weight.is_meta:
        raise UsageError(f"{name} cannot project a weight on the meta device: it has no values.")
    if not weight.is_floating_point():
        kind = str(weight.dtype).removeprefix("torch.")
        raise UsageError(
            f"{name} cannot project a weight of {kind}: quantised values are no weight."
        )
    if activations is not None and (activations.dim() != 2 or activations.shape[1] != sides[1]):
        raise UsageError(
            f"The activations that {name} is given must have the shape (samples, {sides[1]}), "
            f"not {tuple(activations.shape)}."
        )
