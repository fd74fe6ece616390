"""Layers of a trained model in a format: how far outputs or predictions move on texts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hwbench import checkpoints
from hwbench.devices._base import Device
from hwbench.errors import SuiteError, UnknownNameError, UsageError
from hwbench.formats._base import FORWARD, Format, Linear
from hwbench.quantities import (
    EMBEDDING_DISTANCE,
    NEXT_TOKEN_DIVERGENCE,
    OUTPUT_ERROR,
    Quantity,
)
from hwbench.records import ITEM_BYTES, Case, Cost
from hwbench.workloads import _convert, _own, _planned, _reading, _texts
from hwbench.workloads._base import (
    ACTIVATIONS,
    BEST,
    DTYPES,
    Subject,
    Workload,
    project_seeing,
)
from hwbench.workloads._causal import Causal
from hwbench.workloads._likelihood import WORST
from hwbench.workloads._models import Model

LAYER, OUTPUT, KL, COSINE = "layer", "output", "kl", "cosine"
WHOLE = (KL, COSINE)
"""The ways of judging groups of layers and whole plans, by the model's outputs."""

_ROWS = 2048  # of every other row of the activations: the projection uses the other half
_AT_ONCE = 4  # texts at a time: the logits of all of them exist at once
_WEIGHTINGS = (ACTIVATIONS, BEST)

Part = Tensor | Linear
"""The stand-in for a layer: its matrix, or the layer itself where its kernel rounds its inputs,
which no matrix shows."""


class LayerError(Workload):
    """Project a layer of a model; the score is ‖XWᵀ − Y‖ / ‖XWᵀ‖ in the Frobenius norm.

    X is what the layer sees at the tokens of the calibration texts, Y what its projection makes of
    it: the projection sees the even rows, the error is of the odd ones. ``hwbench choose`` asks for
    it.

    ``judged = "output"`` takes the same of the model's last hidden states instead, with this layer
    alone in the format: that knows what the rest of the model makes of the error. ``judged = "kl"``
    takes the divergence of the next token's distribution from the original's, in nats a token, of
    a model that predicts the next token; ``judged = "cosine"`` takes one minus the cosine of a
    sentence's embedding to the original's, of an encoder. For both the layers are one, those of a
    group, or those of a ``plan``.

    Options: ``model`` (a folder, or NAME@COMMIT; empty for all-MiniLM-L6-v2), ``layer`` (its name;
    for kl and cosine also those of a group, such as ``layers.{0-5}.mlp.up_proj``), ``plan`` (the
    file of a plan of ``hwbench choose``, whose layers are changed instead), ``judged``,
    ``weighting`` (activations: columns count as much as the texts use them; best: all of XᵀX for
    formats of a given rank, else activations), ``text`` (sentences, or prose: passages of a book,
    of which projections see others than kl and output are judged by) and ``seeds``. The shape is
    the layer's.
    """

    SCORE = OUTPUT_ERROR
    OPTIONS = {  # noqa: RUF012 (declared in the base)
        "model": "", "layer": "", "plan": "", "judged": LAYER, "weighting": ACTIVATIONS,
        "text": _texts.SENTENCES, "seeds": 1,
    }  # fmt: skip
    AXES = ()

    def check(self, case: Case) -> None:
        options = self.options(case)
        for name, known in (
            ("judged", (LAYER, OUTPUT, *WHOLE)), ("weighting", _WEIGHTINGS),
            ("text", _texts.TEXTS),
        ):  # fmt: skip
            if options[name] not in known:
                raise UnknownNameError(name, str(options[name]), known)
        if options["plan"] and options["judged"] not in WHOLE:
            raise SuiteError('a plan of the workload layer_error is judged by "kl" or "cosine".')
        if not options["layer"] and not options["plan"]:
            raise SuiteError("the workload layer_error needs the name of a layer.")

    def quantity(self, case: Case) -> Quantity:
        by = {KL: NEXT_TOKEN_DIVERGENCE, COSINE: EMBEDDING_DISTANCE}
        return by.get(str(self.options(case)["judged"]), self.SCORE)

    def cost(self, case: Case, described: Format) -> Cost | None:
        return described.cost(0, ITEM_BYTES[case.dtype], FORWARD)

    def unsupported(self, case: Case, described: Format, device: Device) -> str | None:
        options = self.options(case)
        model = str(options["model"])
        if reason := _reading.unreadable(model):
            return reason
        causal = _reading.reader(_reading.folder(model)) is Causal
        if options["judged"] == KL and not causal:
            return 'judged = "kl" needs a model that predicts the next token.'
        if options["judged"] == COSINE and causal:
            return 'judged = "cosine" needs an encoder; this model predicts the next token.'
        if options["judged"] == KL and (reason := _reading.loaded(model).no_outputs()):
            return reason
        if options["plan"]:
            return _unfit(Path(str(options["plan"])))
        loaded, inputs = _reading.read(model, str(options["text"]))
        return _absent(loaded, inputs, case, _named(loaded, str(options["layer"])))

    def prepare(self, case: Case, described: Format, device: Device, seed: int) -> Subject:
        options = self.options(case)
        model, text, name = (str(options[key]) for key in ("model", "text", "layer"))
        quantity = self.quantity(case)
        loaded, inputs = _reading.read(model, text)
        if options["plan"]:
            path = Path(str(options["plan"]))
            return Subject(
                step=lambda _: None,
                score=lambda: _lost(model, text, _of_plan(path, loaded, inputs)),
                score_name=quantity.name,
            )
        names, dtype = _named(loaded, name), DTYPES[case.dtype]
        weights = {
            name: loaded.linears()[name].weight.detach().to(device.torch_device, dtype)
            for name in names
        }
        rows = {name: inputs[name].to(device.torch_device, dtype) for name in names}
        whole = options["judged"] in WHOLE

        def project(name: str) -> Linear:
            # A judgement by the model's texts does not use these rows, so projecting may use all.
            sample = rows[name] if whole else rows[name][0::2]
            return project_seeing(described, weights[name], sample, str(options["weighting"]))

        def score() -> float:
            with torch.no_grad():
                if whole:
                    return _lost(model, text, {name: _part(project(name)) for name in names})
                (name,) = names
                if options["judged"] == OUTPUT:
                    return _moved(model, text, {name: _part(project(name))})
                key = (model, _reading.now(model), text, name, case.dtype)
                return _error(project(name), weights[name], rows[name][1::2][:_ROWS], key)

        return Subject(
            step=lambda _: project(names[0]),
            score=score,
            score_name=quantity.name,
            inputs=[*weights.values(), *rows.values()],
        )


# --- which layers ---------------------------------------------------------------------------------


def _named(loaded: Model, layer: str) -> list[str]:
    """The layer of this name, or those of the group."""
    linears = loaded.linears()
    (own,) = loaded.own_names([layer])
    if own in linears:
        return [own]
    members = loaded.own_names(checkpoints.group_members(layer))
    return [name for name in members if name in linears]


def _absent(
    loaded: Model, inputs: Mapping[str, Tensor], case: Case, names: list[str]
) -> str | None:
    """Why these layers cannot be those of the case, in words; None where they can."""
    linears, layer = loaded.linears(), str(case.options["layer"])
    if not names:
        return str(UnknownNameError("layer", layer, linears))
    if len(names) > 1 and case.options.get("judged") not in WHOLE:
        return f'{layer} is a group of layers; judged = "kl" (or "cosine") takes groups.'
    for name in names:
        linear = linears[name]
        if (linear.out_features, linear.in_features) != (case.out_features, case.in_features):
            return f"{name} is {linear.out_features}×{linear.in_features}."
        if name not in inputs:
            return f"Nothing passes through {name} in the calibration texts."
    return None


def _unfit(path: Path) -> str | None:
    """Why a plan cannot be read, in words; None where it can."""
    try:
        checkpoints.layer_plan(path)
    except UsageError as error:
        return str(error)
    return None


# --- the model with its layers replaced -----------------------------------------------------------

_PARTS: dict[tuple[Any, ...], Part] = {}  # the stand-ins of the plan that was judged last

_NORMS: dict[tuple[Any, ...], float] = {}  # of the exact outputs of layers


def _part(layer: Linear) -> Part:
    """The stand-in for a layer in the model, which is in float32."""
    return layer if layer.tolerance(torch.float32) > 0 else layer.to_dense().detach()


def _error(layer: Linear, weight: Tensor, x: Tensor, key: tuple[Any, ...]) -> float:
    """The relative error of a layer's output at these rows, with its kernel's rounding.

    ``key`` names the layer: the norm of its exact output is the same for every format.
    """
    exact = weight.double()
    if key not in _NORMS:
        _NORMS[key] = float(torch.linalg.norm(x.double() @ exact.mT))
    return _own.relative(float(torch.linalg.norm(_own.missed(layer, exact, x))), _NORMS[key])


def _of_plan(path: Path, loaded: Model, inputs: Mapping[str, Tensor]) -> dict[str, Part]:
    """The stand-in for each layer of a plan; those of the plan before are used again."""
    plan = checkpoints.layer_plan(path)
    parts: dict[tuple[Any, ...], Part] = {}
    model = (plan.model, _reading.now(plan.model))
    for each in _planned.layers(loaded, plan):
        assert each.described is not None
        format_ = (each.described.name(), repr(each.described.knobs()))
        how = (model, plan.weighting, plan.text, each.name, *format_)
        if how not in _PARTS:
            _PARTS[how] = _part(_convert.projected(each, inputs.get(each.name), plan.weighting))
        parts[how] = _PARTS[how]
    _PARTS.clear()
    _PARTS.update(parts)
    return {how[3]: part for how, part in parts.items()}


@contextmanager
def _changed(loaded: Model, parts: Mapping[str, Part]) -> Iterator[None]:
    """The model with these in the places of its layers; each has the bias of its layer."""
    linears = loaded.linears()
    saved = {name: (linears[name], linears[name].weight.data) for name in parts}
    try:
        for name, part in parts.items():
            linear, weight = saved[name]
            if isinstance(part, Tensor):
                linear.weight.data = part.to(weight)
            else:
                part.bias = linear.bias
                loaded.inside().set_submodule(name, part.to(weight.device).eval())
        yield
    finally:
        for name, (linear, weight) in saved.items():
            loaded.inside().set_submodule(name, linear)
            linear.weight.data = weight


def _is_own(loaded: Model, name: str, part: Part) -> bool:
    """Whether it is the matrix that the layer has: some formats store it in another order."""
    return isinstance(part, Tensor) and torch.equal(part, loaded.linears()[name].weight.to(part))


def _moved(model: str, text: str, parts: Mapping[str, Part]) -> float:
    """The relative error of the model's last states with these layers in it."""
    loaded, _ = _reading.read(model, text)
    ids, mask, target = _reading.last_states(model, text)
    with _changed(loaded, parts):
        states = loaded.states(ids, mask)[-1][mask]
    return _own.apart((states - target).double(), target.double())


def _lost(model: str, text: str, parts: Mapping[str, Part]) -> float:
    """The distance of the model's outputs with these layers, by the model's own measure.

    The mean over the tokens of a model that predicts the next token; else over the texts.
    """
    loaded, _ = _reading.read(model, text)
    parts = {name: part for name, part in parts.items() if not _is_own(loaded, name, part)}
    if not parts:
        return 0.0
    ids, mask, target = _reading.last_states(model, text)
    total, counted, begun = 0.0, 0, 0
    with torch.no_grad(), _changed(loaded, parts):
        for some in torch.arange(len(ids)).split(_AT_ONCE):
            own = mask[some]
            tokens = int(own.sum())
            before = target.new_zeros(*own.shape, target.shape[-1])
            before[own] = target[begun : begun + tokens]
            states = loaded.states(ids[some], own)[-1]
            count = tokens if isinstance(loaded, Causal) else len(some)
            total += float(loaded.apart(states, before, own)) * count
            counted, begun = counted + count, begun + tokens
    mean = total / counted
    # That a format destroys a model is an answer.
    return WORST if math.isnan(mean) else min(WORST, max(0.0, mean))
