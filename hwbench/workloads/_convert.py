"""``hwbench.convert``: a copy of a model with its linear layers in a format.

Layers are torch's ``nn.Linear`` and transformers' ``Conv1D``. A layer stays as it is, and is named
with its reason, where it shares its weight with another module, where a part of torch reads its
weight without calling it, where it has a forward pass of its own, where hooks or parametrisations
are attached to it, or where the format does not fit it.
"""

from __future__ import annotations

import copy
import fnmatch
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hwbench import plugins
from hwbench.errors import KnobError, UnknownNameError, UsageError, first_line, shortened
from hwbench.formats._base import FORWARD, Format, Linear
from hwbench.formats._given import weight_and_bias
from hwbench.records import Knob
from hwbench.workloads._base import ACTIVATIONS, project_seeing

if TYPE_CHECKING:
    import pandas as pd

ROWS = 4096
"""The most rows of activations that a layer's projection looks at."""

Plan = Mapping[str, Mapping[str, Knob]]
"""For each layer by name: the ``name`` of its format, and knobs."""

_READ_BY_PARENT = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
_NAMED = 3  # layers that a sentence names of each reason


@dataclass(frozen=True)
class LinearLayer:
    """One linear layer of a model, with the format that replaces it or the reason it stays."""

    name: str
    module: nn.Module
    out_features: int
    in_features: int
    dtype: torch.dtype
    device: torch.device
    described: Format | None = None
    kept: str = ""


def convert(
    model: nn.Module,
    *,
    format: str | Plan,
    density: float | None = None,
    skip: Sequence[str] = (),
    calibration: Iterable[Any] | None = None,
    dry_run: bool = False,
    **knobs: Knob,
) -> Any:
    """A copy of a model with its linear layers projected onto a format; the model stays as it is.

    Biases, dtypes, devices, ``requires_grad`` of weight and bias, and the training mode are kept.
    The new layers believe version counters, see ``Linear.trust_versions``. A layer that stays as it
    is without being skipped is named in a warning, and so is one that learned and cannot do so in
    its format.

    Args:
        model: any module.
        format: a format's name for all layers, or for each layer by its name a table with the
            ``name`` of a format and its knobs, such as ``{"name": "low_rank", "rank": 8}``; layers
            without a table stay as they are.
        density: the part of each layer's parameters to keep; with a format's name only.
        skip: names of layers to leave as they are; ``*`` and ``?`` match as in a shell.
        calibration: batches to read activations from, where a format can weigh columns by them:
            each a tensor, a tuple of arguments or a dictionary of keyword arguments of the model.
        dry_run: change nothing, and return a table of what would become of each layer; the model
            may be on the meta device.
        knobs: further knobs of the format.

    Returns:
        The converted model; for a dry run a pandas DataFrame, one row a layer, with bytes before
        and after, and in ``kept`` the reason where a layer stays.

    Raises:
        UsageError: no layer can be converted, one has no values or quantised ones, a name in
            ``skip`` or ``format`` is of no linear layer, or the model cannot be copied.
        UnknownNameError: there is no such format or knob.
    """
    layers = planned(model, format, density, skip, knobs, values=not dry_run)
    if dry_run:
        return table(layers)
    if left := _left(layers):
        warnings.warn(left, stacklevel=2)
    converted = [each for each in layers if each.described is not None]
    if not converted:
        raise UsageError(_nothing(layers))
    if frozen := _frozen(converted):
        warnings.warn(frozen, stacklevel=2)
    inputs = {} if calibration is None else activations(model, calibration, converted)
    replacements = {each.name: projected(each, inputs.get(each.name)) for each in converted}
    return swapped(model, replacements)


def planned(
    model: nn.Module,
    format: str | Plan,
    density: float | None = None,
    skip: Sequence[str] = (),
    knobs: Mapping[str, Knob] | None = None,
    *,
    values: bool = True,
) -> list[LinearLayer]:
    """Every linear layer of a model, with its format or with why it stays.

    Raises:
        UsageError: as for ``convert``; with ``values``, also where a weight has none.
    """
    every = linears(model)
    names = [each.name for each in every]
    for pattern in skip:
        if not fnmatch.filter(names, pattern):
            raise UnknownNameError("layer in skip", pattern, names)
    if isinstance(format, str):
        plugins.check("formats", format)
        own = {**({} if density is None else {"density": density}), **(knobs or {})}
        plan: Plan = {name: {"name": format, **own} for name in names}
    else:
        _check_table(format)
        if density is not None or knobs:
            raise UsageError("A density and knobs go with one format, not with a table of layers.")
        for name in format:
            if name not in names:
                raise UnknownNameError("layer", str(name), names)
        plan = format
    return [_settled(each, plan.get(each.name), skip, values=values) for each in every]


def _check_table(format: Any) -> None:
    """Whether a plan is one.

    Raises:
        UsageError: it is no table of tables; the sentence says what it holds instead.
    """
    if not isinstance(format, Mapping):
        raise UsageError(
            "format is a format's name, or a table of layers by name, not a "
            f"{type(format).__name__}."
        )
    for name, entry in format.items():
        if not isinstance(entry, Mapping):
            raise UsageError(
                f"format gives {shortened(repr(name))} {shortened(repr(entry))}; give a table such "
                'as {"name": "low_rank", "rank": 8}.'
            )


def _settled(
    each: LinearLayer, entry: Mapping[str, Knob] | None, skip: Sequence[str], *, values: bool
) -> LinearLayer:
    """One layer with its format by the plan."""
    if any(fnmatch.fnmatchcase(each.name, pattern) for pattern in skip):
        return _staying(each, "skipped")
    if entry is None:
        return _staying(each, "not named")
    if each.kept:
        return each
    if values and each.device.type == "meta":
        raise UsageError(
            f"{each.name} lies on the meta device and has no values: load the weights first."
        )
    if not each.dtype.is_floating_point or each.dtype.itemsize < 2:
        dtype = str(each.dtype).removeprefix("torch.")
        raise UsageError(
            f"{each.name} holds values of {dtype}: a quantised checkpoint cannot be converted, "
            "load it in a whole precision."
        )
    kind = plugins.load("formats", str(entry.get("name")), Format)
    own = {key: value for key, value in entry.items() if key != "name"}
    try:
        described = kind.from_knobs(
            each.out_features, each.in_features, item_bytes=each.dtype.itemsize, **own
        )
    except KnobError as error:
        return _staying(each, str(error))
    where = each.device.type if each.device.type != "meta" else "cpu"
    described = described.on(where)
    if reason := described.unsupported(where, each.dtype, FORWARD):
        return _staying(each, reason)
    return replace(each, described=described)


def _staying(each: LinearLayer, reason: str) -> LinearLayer:
    return replace(each, kept=reason)


# --- which layers there are -----------------------------------------------------------------------


def linears(model: nn.Module) -> list[LinearLayer]:
    """The linear layers of a model in its order, with why some of them cannot be replaced."""
    shared = _owners(model)
    parents = dict(model.named_modules())
    layers = []
    for name, module in model.named_modules():
        kind = {base.__name__ for base in type(module).__mro__}
        if not (isinstance(module, nn.Linear) or "Conv1D" in kind) or isinstance(module, nn.Conv1d):
            continue
        parts = weight_and_bias(module)
        if parts is None and not isinstance(module, nn.Linear):
            continue
        weight = module.weight if parts is None else parts[0]
        assert isinstance(weight, Tensor)
        if weight.dim() == 2:
            rows, columns = (int(side) for side in weight.shape)
        else:  # packed by a quantiser
            rows, columns = int(module.out_features), int(module.in_features)
        parent = parents[name.rpartition(".")[0]]
        reason = "" if name else "it is the whole model"
        if parts is None:
            reason = f"{type(module).__name__} has a forward pass of its own"
        elif isinstance(parent, _READ_BY_PARENT):
            reason = f"torch's {type(parent).__name__} reads its weight without calling it"
        elif others := shared[_place(module.weight)] - {name}:
            reason = f"shares its weight with {min(others)}"
        elif held := attached(module):
            reason = held
        layers.append(
            LinearLayer(name, module, rows, columns, weight.dtype, weight.device, kept=reason)
        )
    if not layers:
        raise UsageError(f"{type(model).__name__} holds no linear layers.")
    return layers


_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def attached(module: nn.Module) -> str:
    """What is attached to a layer that one in its place would lack; "" without any."""
    if any(getattr(module, hooks) for hooks in _HOOKS):
        return "hooks are registered on it, which would be lost: remove them before"
    if "forward" in vars(module):
        return "its forward pass was replaced: convert it before that is done"
    if nn.utils.parametrize.is_parametrized(module):
        return "it is parametrised: remove its parametrizations before"
    return ""


def _owners(model: nn.Module) -> dict[Any, set[str]]:
    """The names of the modules that hold each parameter."""
    owners: dict[Any, set[str]] = defaultdict(set)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners[_place(parameter)].add(name.rpartition(".")[0])
    return owners


def _place(tensor: Any) -> Any:
    """A key that is equal for shared tensors: memory and shape, or the object without memory."""
    if tensor.is_meta or tensor.numel() == 0 or tensor.layout != torch.strided:
        return id(tensor)
    return tensor.data_ptr(), tuple(tensor.shape)


# --- projection -----------------------------------------------------------------------------------


def projected(
    each: LinearLayer, inputs: Tensor | None = None, weighting: str = ACTIVATIONS
) -> Linear:
    """The layer that stands in for one of the model; ``weighting`` as ``project_seeing`` has it."""
    assert each.described is not None
    parts = weight_and_bias(each.module)
    assert parts is not None
    weight, bias = parts
    with torch.no_grad():
        layer = project_seeing(each.described, weight, inputs, weighting)
    layer.described = each.described
    layer.requires_grad_(_learns(each) and layer.kernel.gives_gradients)
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone(), bool(each.module.bias.requires_grad))
    return layer.trust_versions().train(each.module.training)


def _learns(each: LinearLayer) -> bool:
    """Whether the model trains the weight of the layer."""
    return bool(each.module.weight.requires_grad)


def swapped(model: nn.Module, replacements: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of the model, with these modules in place of the ones with their names.

    Raises:
        UsageError: another module holds a computed tensor, of which torch makes no copy.
    """
    modules = dict(model.named_modules())
    memo: dict[int, Any] = {id(modules[name]): layer for name, layer in replacements.items()}
    for name, module in modules.items():
        values = vars(module).values() if id(module) not in memo else ()
        if any(isinstance(value, Tensor) and not value.is_leaf for value in values):
            raise UsageError(
                f"{name or type(module).__name__} holds a tensor that is computed from others, "
                "which torch cannot copy: make it permanent before, as with prune.remove."
            )
    return copy.deepcopy(model, memo)


def activations(
    model: nn.Module, batches: Iterable[Any], layers: Sequence[LinearLayer]
) -> dict[str, Tensor]:
    """The inputs of these layers while the model runs the batches: (rows, in_features) by name.

    Raises:
        UsageError: there are no batches, or the model does not take one.
    """
    inputs: dict[str, list[Tensor]] = defaultdict(list)
    hooks = [
        each.module.register_forward_pre_hook(_keeper(inputs, each.name), with_kwargs=True)
        for each in layers
    ]
    training, count = [m for m in model.modules() if m.training], 0
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                _called(model, batch)
                count += 1
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:
            module.training = True
    if not count:
        raise UsageError("calibration holds no batches.")
    return {name: torch.cat(rows) for name, rows in inputs.items()}


def _called(model: nn.Module, batch: Any) -> None:
    """Run one batch through the model, unpacked by the batch's type.

    Raises:
        UsageError: it is of another type, or the model does not take it.
    """
    args: Sequence[Any] = ()
    named: Mapping[str, Any] = {}
    if isinstance(batch, Mapping):
        named = batch
    elif isinstance(batch, (tuple, list)):
        args = batch
    elif isinstance(batch, Tensor):
        args = (batch,)
    else:
        raise UsageError(
            "A batch of calibration is a tensor, a tuple of arguments or a dictionary of keyword "
            f"arguments, not a {type(batch).__name__}."
        )
    try:
        model(*args, **named)
    except Exception as error:  # the boundary: the caller's model given the caller's batch
        why = shortened(first_line(error), 160)
        raise UsageError(
            f"The model does not take a batch of calibration ({type(error).__name__}: {why})."
        ) from error


def _keeper(
    captured: dict[str, list[Tensor]], name: str
) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor]], None]:
    def keep(_: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        (x,) = (*inputs, *named.values())
        room = ROWS - sum(len(rows) for rows in captured[name])
        if room > 0:
            # A copy: a view would keep the whole batch, and change where a model writes to it.
            captured[name].append(x.detach().reshape(-1, x.shape[-1])[:room].clone())

    return keep


# --- words ----------------------------------------------------------------------------------------


def table(layers: Sequence[LinearLayer]) -> pd.DataFrame:
    """One row a layer: its shape and format, and bytes before and after, without biases."""
    import pandas as pd

    rows = []
    for each in layers:
        dense = each.out_features * each.in_features * each.dtype.itemsize
        described = each.described
        rows.append({
            "layer": each.name,
            "out_features": each.out_features,
            "in_features": each.in_features,
            "dtype": str(each.dtype).removeprefix("torch."),
            "format": described.name() if described else "dense",
            "knobs": described.knobs() if described else {},
            "density": described.density() if described else 1.0,
            "dense_bytes": dense,
            "bytes": described.stored_bytes(each.dtype.itemsize) if described else dense,
            "kept": each.kept,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _left(layers: Sequence[LinearLayer]) -> str | None:
    """A sentence that names the layers that stay against the caller's wish; None without any."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for each in layers:
        if each.kept not in ("", "skipped", "not named"):
            reasons[each.kept].append(each.name or type(each.module).__name__)
    if not reasons:
        return None
    groups = [f"{_named(names)} ({why.rstrip('.')})" for why, names in reasons.items()]
    return f"These layers stay as they are: {'; '.join(groups)}."


def _frozen(layers: Sequence[LinearLayer]) -> str | None:
    """A sentence that names the layers that learn no more; None without any."""
    names: dict[str, list[str]] = defaultdict(list)
    for each in layers:
        assert each.described is not None
        if _learns(each) and not each.described.implementation.gives_gradients:
            names[each.described.name()].append(each.name)
    if not names:
        return None
    groups = [f"{_named(those)} ({name})" for name, those in names.items()]
    return (
        "These layers do not learn in their format, whose kernel gives no gradient of a weight, "
        f"and are frozen but for their biases: {'; '.join(groups)}."
    )


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _nothing(layers: Sequence[LinearLayer]) -> str:
    first = next((each for each in layers if each.kept not in ("skipped", "not named")), None)
    if first is None:
        return "Every linear layer is skipped; nothing is converted."
    name = first.name or "the model"
    return f"No layer can be converted; of {name}: {first.kept.rstrip('.')}."
