"""Layers of a trained model in a format: how far outputs or predictions move on texts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from hwbench import checkpoints
from hwbench.devices._base import Device
from hwbench.errors import SuiteError, UnknownNameError, UsageError
from hwbench.formats._base import FORWARD, Format
from hwbench.quantities import NEXT_TOKEN_DIVERGENCE, OUTPUT_ERROR, Quantity
from hwbench.records import ITEM_BYTES, Case, Cost
from hwbench.workloads import _convert, _own, _reading, _texts
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

LAYER, OUTPUT, KL = "layer", "output", "kl"
_ROWS = 2048  # of the activations, every other one: the projection sees the rest
_AT_ONCE = 4  # texts whose logits exist at once
_WEIGHTINGS = (ACTIVATIONS, BEST)


class LayerError(Workload):
    """Project a layer of a model; the score is ‖X(W − Ŵ)ᵀ‖ / ‖XWᵀ‖ in the Frobenius norm.

    X is what the layer sees at the tokens of the calibration texts: the projection sees the even
    rows, the error is of the odd ones. ``hwbench choose`` asks for it.

    ``judged = "output"`` takes the same of the model's last hidden states instead, with this layer
    alone in the format: that knows what the rest of the model makes of the error. ``judged = "kl"``
    takes the divergence of the next token's distribution from the original's, in nats a token; the
    model predicts the next token, and the layers are one, those of a group, or those of a ``plan``.

    Options: ``model`` (a folder, or NAME@COMMIT; empty for all-MiniLM-L6-v2), ``layer`` (its name;
    for kl also those of a group, such as ``layers.{0-5}.mlp.up_proj``), ``plan`` (the file of a
    plan of ``hwbench choose``, whose layers are changed instead), ``judged``, ``weighting``
    (activations: columns count as much as the texts use them; best: all of XᵀX for formats of a
    given rank, else activations), ``text`` (sentences, or prose: passages of a book, of which
    projections see others than kl and output are judged by) and ``seeds``. The shape is the
    layer's.
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
            ("judged", (LAYER, OUTPUT, KL)), ("weighting", _WEIGHTINGS), ("text", _texts.TEXTS),
        ):  # fmt: skip
            if options[name] not in known:
                raise UnknownNameError(name, str(options[name]), known)
        if options["plan"] and options["judged"] != KL:
            raise SuiteError('a plan of the workload layer_error is judged by "kl".')
        if not options["layer"] and not options["plan"]:
            raise SuiteError("the workload layer_error needs the name of a layer.")

    def quantity(self, case: Case) -> Quantity:
        return NEXT_TOKEN_DIVERGENCE if self.options(case)["judged"] == KL else self.SCORE

    def cost(self, case: Case, described: Format) -> Cost | None:
        return described.cost(0, ITEM_BYTES[case.dtype], FORWARD)

    def unsupported(self, case: Case, described: Format, device: Device) -> str | None:
        options = self.options(case)
        model = str(options["model"])
        if reason := _reading.unreadable(model):
            return reason
        if options["judged"] == KL and _reading.reader(_reading.folder(model)) is not Causal:
            return 'judged = "kl" needs a model that predicts the next token.'
        if options["plan"]:
            return _unfit(Path(str(options["plan"])))
        loaded, seen = _reading.read(model, str(options["text"]))
        return _absent(loaded, seen, case, _named(loaded, str(options["layer"])))

    def prepare(self, case: Case, described: Format, device: Device, seed: int) -> Subject:
        options = self.options(case)
        model, text = str(options["model"]), str(options["text"])
        quantity, judged = self.quantity(case), options["judged"]
        loaded, seen = _reading.read(model, text)
        if options["plan"]:
            path = Path(str(options["plan"]))
            return Subject(
                step=lambda _: None,
                score=lambda: _diverged(model, text, _of_plan(path, loaded, seen)),
                score_name=quantity.name,
            )
        names, dtype = _named(loaded, str(options["layer"])), DTYPES[case.dtype]
        weights = {
            name: loaded.linears()[name].weight.detach().to(device.torch_device, dtype)
            for name in names
        }
        rows = {name: seen[name].to(device.torch_device, dtype) for name in names}

        def nearest(name: str) -> Tensor:
            # What is judged by the model's texts is not judged by these rows, and may see all.
            told = rows[name] if judged == KL else rows[name][0::2]
            layer = project_seeing(described, weights[name], told, str(options["weighting"]))
            return layer.to_dense()

        def score() -> float:
            with torch.no_grad():
                if judged == KL:
                    return _diverged(model, text, {name: nearest(name) for name in names})
                (name,) = names
                if judged == OUTPUT:
                    return _moved(model, text, {name: nearest(name)})
                x, weight = rows[name][1::2][:_ROWS].double(), weights[name].double()
                return _own.apart(x @ (weight - nearest(name).double()).mT, x @ weight.mT)

        return Subject(
            step=lambda _: nearest(names[0]),
            score=score,
            score_name=quantity.name,
            inputs=[*weights.values(), *rows.values()],
        )


# --- which layers ---------------------------------------------------------------------------------


def _named(loaded: Model, layer: str) -> list[str]:
    """The layer of this name, or those of the group."""
    known = loaded.linears()
    if layer in known:
        return [layer]
    return [name for name in checkpoints.group_members(layer) if name in known]


def _absent(loaded: Model, seen: Mapping[str, Tensor], case: Case, names: list[str]) -> str | None:
    """Why these layers cannot be those of the case, in words; None where they can."""
    linears, wanted = loaded.linears(), str(case.options["layer"])
    if not names:
        return str(UnknownNameError("layer", wanted, linears))
    if len(names) > 1 and case.options.get("judged") != KL:
        return f'{wanted} is a group of layers; judged = "kl" takes groups.'
    for name in names:
        found = linears[name]
        if (found.out_features, found.in_features) != (case.out_features, case.in_features):
            return f"{name} is {found.out_features}×{found.in_features}."
        if name not in seen:
            return f"Nothing passes through {name} in the calibration texts."
    return None


def _unfit(path: Path) -> str | None:
    """Why a plan cannot be read, in words; None where it can."""
    try:
        checkpoints.layer_plan(path)
    except UsageError as error:
        return str(error)
    return None


# --- what becomes of the model --------------------------------------------------------------------

_MADE: dict[tuple[str, ...], Tensor] = {}  # matrices of the plan that was judged last


def _of_plan(path: Path, loaded: Model, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The matrix of each layer that a plan changes; what the plan before had too is not remade."""
    told = checkpoints.layer_plan(path)
    found: dict[tuple[str, ...], Tensor] = {}
    for each in _convert.planned(loaded, told.entries()):
        if each.described is None:
            continue
        how = (told.model, told.weighting, told.text, each.name, repr(told.entries()[each.name]))
        if how not in _MADE:
            layer = _convert.projected(each, seen.get(each.name), told.weighting)
            _MADE[how] = layer.to_dense().detach()
        found[how] = _MADE[how]
    _MADE.clear()
    _MADE.update(found)
    return {how[3]: matrix for how, matrix in found.items()}


@contextmanager
def _changed(loaded: Model, matrices: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with these matrices in the places of those of its layers."""
    linears = loaded.linears()
    kept = {name: linears[name].weight.data for name in matrices}
    for name, matrix in matrices.items():
        linears[name].weight.data = matrix.to(kept[name])
    try:
        yield
    finally:
        for name, weight in kept.items():
            linears[name].weight.data = weight


def _moved(model: str, text: str, matrices: Mapping[str, Tensor]) -> float:
    """The relative error of the model's last states with these matrices in it."""
    loaded, _ = _reading.read(model, text)
    ids, mask, wanted = _reading.last_states(model, text)
    with _changed(loaded, matrices):
        found = loaded.states(ids, mask)[-1][mask]
    return _own.apart((found - wanted).double(), wanted.double())


def _diverged(model: str, text: str, matrices: Mapping[str, Tensor]) -> float:
    """Nats a token between the next token's distribution and that with these matrices."""
    loaded, _ = _reading.read(model, text)
    ids, mask, wanted = _reading.last_states(model, text)
    total, tokens = 0.0, 0
    with torch.no_grad(), _changed(loaded, matrices):
        for some in torch.arange(len(ids)).split(_AT_ONCE):
            own = mask[some]
            before = wanted[tokens : tokens + int(own.sum())]
            found = loaded.states(ids[some], own)[-1][own]
            everything = torch.ones(len(before), dtype=torch.bool)
            total += float(loaded.apart(found, before, everything)) * len(before)
            tokens += len(before)
    mean = total / tokens
    # That a format destroys a model is an answer.
    return WORST if math.isnan(mean) else min(WORST, max(0.0, mean))
