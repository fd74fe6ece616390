"""What ``hwbench choose`` asks a worker of a model: its layers, and a converted copy on disk."""

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
    loaded, seen = _reading.read(model)
    found = {each.name: each for each in _convert.linears(loaded)}
    for name in loaded.linears():
        if found[name].kept:
            raise UsageError(f"{name} cannot be converted: {found[name].kept}.")
    return [
        (name, each.out_features, each.in_features)
        for name, each in loaded.linears().items()
        if name in seen
    ]


def apply(plan: str, out: str) -> str:
    """Convert the plan's model as it says, and save it, with configuration and tokenizer beside it.

    Returns:
        The folder that it was written to.

    Raises:
        UsageError: the plan or its model cannot be read, or the folder cannot be written.
    """
    told = checkpoints.layer_plan(files.named(plan))
    if reason := _reading.unreadable(told.model):
        raise UsageError(reason)
    loaded, seen = _reading.read(told.model, told.text)
    chosen = [each for each in _convert.planned(loaded, told.entries()) if each.described]
    if not chosen:
        raise UsageError(f"{plan} leaves every layer dense; there is nothing to convert.")
    made = {
        each.name: _convert.projected(each, seen.get(each.name), told.weighting) for each in chosen
    }
    student = _convert.swapped(loaded, made)
    # The class that users have is the one inside of ours, where there is one.
    save_converted(student.model if isinstance(student, Pretrained) else student, out)
    source = _reading.folder(told.model)
    for pattern in _COPIED:
        for path in source.glob(pattern):
            shutil.copy(path, files.named(out) / path.name)
    return str(files.named(out))
