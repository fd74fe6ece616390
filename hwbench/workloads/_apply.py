"""The worker's part of ``hwbench choose``: a model's layers, and a converted copy on disk."""

from __future__ import annotations

import shutil

from hwbench import checkpoints, files
from hwbench.errors import UsageError
from hwbench.workloads import _convert, _reading
from hwbench.workloads._converted import save_converted
from hwbench.workloads._transformers import Pretrained

_COPIED = ("config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json")


def layers(model: str) -> list[tuple[str, int, int]]:
    """Name, outputs and inputs of each linear layer that something of the calibration texts passes.

    Raises:
        UsageError: the model cannot be read, or two of its layers share a weight.
    """
    if reason := _reading.unreadable(model):
        raise UsageError(reason)
    loaded, inputs = _reading.read(model)
    by_name = {each.name: each for each in _convert.linears(loaded)}
    for name in loaded.linears():
        if by_name[name].kept:
            raise UsageError(f"{name} cannot be converted: {by_name[name].kept}.")
    return [
        (name, each.out_features, each.in_features)
        for name, each in loaded.linears().items()
        if name in inputs
    ]


def apply(plan: str, out: str) -> str:
    """Convert the plan's model, and save it with its configuration and tokenizer.

    Returns:
        The folder that it was written to.

    Raises:
        UsageError: the plan or its model cannot be read, or the folder cannot be written.
    """
    layer_plan = checkpoints.layer_plan(files.named(plan))
    if reason := _reading.unreadable(layer_plan.model):
        raise UsageError(reason)
    loaded, inputs = _reading.read(layer_plan.model, layer_plan.text)
    converted = [each for each in _convert.planned(loaded, layer_plan.entries()) if each.described]
    if not converted:
        raise UsageError(f"{plan} leaves every layer dense; there is nothing to convert.")
    replacements = {
        each.name: _convert.projected(each, inputs.get(each.name), layer_plan.weighting)
        for each in converted
    }
    student = _convert.swapped(loaded, replacements)
    # The class that users have is the one inside of ours, where there is one.
    save_converted(student.model if isinstance(student, Pretrained) else student, out)
    source = _reading.folder(layer_plan.model)
    for pattern in _COPIED:
        for path in source.glob(pattern):
            shutil.copy(path, files.named(out) / path.name)
    return str(files.named(out))
