"""The worker's part of ``hwbench choose``: a model's layers, and a converted copy on disk."""

from __future__ import annotations

import shutil

from hwbench import checkpoints, files
from hwbench.errors import UsageError
from hwbench.workloads import _convert, _planned, _reading
from hwbench.workloads._converted import save_converted

_COPIED = checkpoints.BESIDE_WEIGHTS


def layers(model: str) -> list[tuple[str, int, int]]:
    """Name, outputs and inputs of each linear layer that something of the calibration texts passes.

    Raises:
        UsageError: the model cannot be read, or two of its layers share a weight.
    """
    if reason := _reading.unreadable(model):
        raise UsageError(reason)
    loaded, inputs = _reading.read(model)
    by_name = {each.name: each for each in _convert.linears(loaded.inside())}
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
    if not layer_plan.entries():
        raise UsageError(f"{plan} leaves every layer dense; there is nothing to convert.")
    folder = files.named(out)
    save_converted(_planned.converted(loaded, layer_plan, inputs).inside(), folder)
    source = _reading.folder(layer_plan.model)
    for path in files.listed(source, *_COPIED):
        if not path.is_file():  # a folder of that name holds what no model is read with
            continue
        to = folder / path.relative_to(source)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to)
    return str(folder)
