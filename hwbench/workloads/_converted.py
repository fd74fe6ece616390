"""Converted models on disk: tensors as safetensors, formats as JSON; nothing read is executed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hwbench
from hwbench import checkpoints, files, plugins
from hwbench.errors import MissingPartError, UnknownNameError, UsageError, shortened
from hwbench.formats._base import Format, Linear
from hwbench.workloads import _convert
from hwbench.workloads._base import DTYPES

SCHEMA = 1
WEIGHTS, DESCRIPTION = checkpoints.WEIGHTS, checkpoints.CONVERTED


def save_converted(model: nn.Module, folder: str | Path) -> None:
    """Write a converted model to a folder: ``model.safetensors`` and ``hwbench.json``.

    Tensors that are shared are written once. The folder is made where it is not there.

    Raises:
        UsageError: the model holds no converted layer, lies on the meta device, or the folder
            holds a model that hwbench did not convert.
        RunFileError: the folder cannot be written.
        MissingPartError: safetensors is not installed.
    """
    _need_safetensors()
    from safetensors.torch import save

    layers = {
        name: described(name, each)
        for name, each in model.named_modules()
        if isinstance(each, Linear)
    }
    if not layers:
        raise UsageError("The model holds no layer that hwbench converted.")
    tensors, shared = _once(model.state_dict(keep_vars=True))
    if absent := next((name for name, value in tensors.items() if value.is_meta), None):
        raise UsageError(f"{absent} lies on the meta device and has no values to save.")
    description = {
        "schema": SCHEMA, "hwbench": hwbench.__version__, "layers": layers, "shared": shared,
    }  # fmt: skip
    path = files.named(folder)
    checkpoints.check_free(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"Cannot write to {path}: {error.strerror or error}.") from error
    files.write(path / WEIGHTS, save(tensors))
    files.write_text(path / DESCRIPTION, json.dumps(description, indent=1) + "\n")


def load_converted(folder: str | Path, model: nn.Module) -> nn.Module:
    """Load what ``save_converted`` wrote into a model of the same architecture.

    Args:
        folder: as it was given to ``save_converted``.
        model: the model before its conversion, its weights of no account; it may be on the meta
            device. It is changed and returned.

    Returns:
        The model with the layers and values of the file, on the CPU.

    Raises:
        UsageError: the folder holds no such model, or one of another architecture.
        MissingPartError: safetensors is not installed.
    """
    _need_safetensors()
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = files.named(folder)
    description = checkpoints.described(path / DESCRIPTION)
    if description.get("schema") != SCHEMA:
        raise UsageError(f"{path / DESCRIPTION} is not of schema {SCHEMA}.")
    try:
        tensors = load_file(files.regular(path / WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path / WEIGHTS} cannot be read: {error}.") from error
    layers, shared = (_object(description, part, path) for part in ("layers", "shared"))
    for name, each in layers.items():
        _put(model, name, empty(name, each, str(path / DESCRIPTION)))
    values = {**tensors, **{alias: tensors[name] for alias, name in shared.items()
                            if name in tensors}}  # fmt: skip
    _fill(model, values, path)
    for alias, name in shared.items():
        _tie(model, alias, name)
    _check_values(model)
    return model


def _need_safetensors() -> None:
    if reason := checkpoints.no_package("safetensors"):
        raise MissingPartError(reason)


def described(name: str, layer: Linear) -> dict[str, Any]:
    """The description that makes the layer again, except for its values.

    Raises:
        UsageError: no projection made the layer.
    """
    format_ = layer.described
    if format_ is None:
        raise UsageError(f"{name} is of a format, but no projection made it: its knobs are lost.")
    values = next(t for t in layer.stored_tensors() if t.is_floating_point())
    return {
        "format": format_.name(),
        "out_features": format_.out_features,
        "in_features": format_.in_features,
        "knobs": format_.knobs(),
        "dtype": str(values.dtype).removeprefix("torch."),
        "bias": layer.bias is not None,
        "trained": next((p.requires_grad for p in layer.parameters()), True),
        "frozen": [name for name, p in layer.named_parameters() if not p.requires_grad],
    }


def _once(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor under one name, and under which name the others are found."""
    first: dict[Any, str] = {}
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    for name, value in state.items():
        place = (id(value),) if value.is_meta else (value.data_ptr(), value.shape, value.stride())
        if value.numel() and place in first:
            shared[name] = first[place]
        else:
            first[place] = name
            tensors[name] = value.detach().contiguous().clone()
    return tensors, shared


def _object(description: Mapping[str, Any], part: str, path: Path) -> dict[str, Any]:
    value = description.get(part)
    if not isinstance(value, dict):
        raise UsageError(f"{path / DESCRIPTION} holds no table of {part}.")
    return value


def empty(name: str, entry: Any, file: str = "The file") -> Linear:
    """A layer of the described format; its values are still to come.

    Raises:
        UsageError: the description, of that file, is none.
    """
    where = f"{file} describes {shortened(repr(name))}"
    if not isinstance(entry, dict):
        raise UsageError(f"{where} by something else than a table.")
    knobs, dtype = entry.get("knobs"), DTYPES.get(str(entry.get("dtype")))
    if not isinstance(knobs, dict) or dtype is None or not isinstance(entry.get("format"), str):
        raise UsageError(f"{where} without a format, its knobs and its dtype.")
    kind = plugins.load("formats", entry["format"], Format)
    format_ = kind.from_knobs(entry.get("out_features"), entry.get("in_features"), **knobs)  # type: ignore[arg-type]
    source = torch.Generator().manual_seed(0)
    layer = format_.random(dtype=dtype, generator=source)
    if entry.get("bias"):
        layer.bias = nn.Parameter(
            torch.zeros(format_.out_features, dtype=dtype, device=source.device)
        )
    layer.described = format_
    _freeze(layer, entry, where)
    return layer.trust_versions()


def _freeze(layer: Linear, entry: Mapping[str, Any], where: str) -> None:
    """Have those parameters learn that did; older files have one flag for all.

    Raises:
        UsageError: the entry names a parameter that the layer has not.
    """
    frozen = entry.get("frozen")
    if frozen is None:
        layer.requires_grad_(bool(entry.get("trained", True)))
        return
    own = dict(layer.named_parameters())
    names = frozen if isinstance(frozen, list) else [frozen]
    if strange := [name for name in names if not isinstance(name, str) or name not in own]:
        lacking = shortened(repr(strange[0]))
        raise UsageError(f"{where} with {lacking} frozen, which is no parameter of the layer.")
    for name, parameter in own.items():
        parameter.requires_grad_(name not in names)


def _put(model: nn.Module, name: str, layer: Linear) -> None:
    parent, _, last = name.rpartition(".")
    try:
        before = model.get_submodule(name)
    except AttributeError:
        leaves = [n for n, each in model.named_modules() if not list(each.children())]
        raise UnknownNameError(f"layer of {type(model).__name__}", name, leaves) from None
    target = {each.name: each for each in _convert.linears(model)}.get(name)
    if target is None or (target.out_features, target.in_features) != (
        layer.out_features, layer.in_features,
    ):  # fmt: skip
        has = f"{target.out_features}×{target.in_features}" if target else type(before).__name__
        raise UsageError(
            f"{name} of the model is {has}, where the file has "
            f"{layer.out_features}×{layer.in_features}: it is of another architecture."
        )
    if held := _convert.attached(before):
        raise UsageError(f"{name} of the model cannot be replaced: {held}.")
    setattr(model.get_submodule(parent), last, layer.train(before.training))


def _fill(model: nn.Module, values: Mapping[str, Tensor], path: Path) -> None:
    own = model.state_dict(keep_vars=True)
    absent = sorted(set(own) - set(values))
    extra = sorted(set(values) - set(own))
    if absent or extra:
        what = f"lacks {absent[0]}" if absent else f"holds {extra[0]}, which the model has not"
        raise UsageError(f"{path / WEIGHTS} {what}: it is of another architecture.")
    for name, value in values.items():
        if own[name].shape != value.shape:
            ours, theirs = ("×".join(map(str, t.shape)) for t in (own[name], value))
            raise UsageError(f"{path / WEIGHTS} holds {name} as {theirs}, the model has {ours}.")
    learns = {name: each.requires_grad for name, each in own.items()}
    model.load_state_dict(dict(values), assign=True)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.is_floating_point():
            parameter.requires_grad_(learns[name])


def _tie(model: nn.Module, alias: str, name: str) -> None:
    """Make one parameter of two that were one."""
    at, _, last = name.rpartition(".")
    tied = getattr(model.get_submodule(at), last)
    at, _, last = alias.rpartition(".")
    setattr(model.get_submodule(at), last, tied)


def _check_values(model: nn.Module) -> None:
    """Whether nothing is left on the meta device, such as buffers that no file holds."""
    for name, each in [*model.named_parameters(), *model.named_buffers()]:
        if each.is_meta:
            raise UsageError(
                f"{name} is computed when a model is made and stands in no file: make the model "
                "on the CPU, not on the meta device."
            )
