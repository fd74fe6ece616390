"""A model with its layers as a plan of ``hwbench choose`` has them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hwbench.checkpoints import LayerPlan
from hwbench.errors import UnknownNameError, UsageError
from hwbench.workloads import _convert
from hwbench.workloads._convert import LinearLayer
from hwbench.workloads._models import Model


def layers(model: Model, plan: LayerPlan) -> list[LinearLayer]:
    """The layers that a plan changes, each with its format, by the names that ``linears`` has.

    Raises:
        UnknownNameError: the plan names a layer that the model has not, or no such format.
        UsageError: a layer cannot have the format that the plan gives it.
    """
    linears = model.linears()
    given = plan.entries()
    entries = dict(zip(model.own_names(given), given.values(), strict=True))
    for name in entries:
        if name not in linears:
            raise UnknownNameError("layer", name, linears)
    every = _convert.planned(model.inside(), entries)
    changed = [each for each in every if each.name in entries]
    for each in changed:
        if each.described is None:
            raise UsageError(
                f"The plan gives {each.name} a format that it cannot have: {each.kept.rstrip('.')}."
            )
    return changed


def converted(model: Model, plan: LayerPlan, inputs: Mapping[str, Tensor]) -> Model:
    """A copy of the model with each layer as the plan has it; it does not learn.

    Args:
        model: stays as it is.
        plan: the format of each layer, and how it is projected.
        inputs: what layers see, (rows, in_features) by name; a layer without is projected as it is.

    Raises:
        UsageError: as for ``layers``.
    """
    replacements = {
        f"{model.PREFIX}{each.name}": _convert.projected(
            each, inputs.get(each.name), plan.weighting
        )
        for each in layers(model, plan)
    }
    student = _convert.swapped(model, replacements)
    assert isinstance(student, Model)
    return student.requires_grad_(False)
