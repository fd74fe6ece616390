"""One layer of a trained model in a format: how far its output moves on calibration texts."""

from __future__ import annotations

import torch
from torch import Tensor

from hwbench.devices._base import Device
from hwbench.errors import SuiteError, UnknownNameError
from hwbench.formats._base import FORWARD, Format
from hwbench.quantities import OUTPUT_ERROR
from hwbench.records import ITEM_BYTES, Case, Cost
from hwbench.workloads import _own, _reading
from hwbench.workloads._base import DTYPES, Subject, Workload

LAYER, OUTPUT = "layer", "output"
_ROWS = 2048  # of the activations, every other one: the projection sees the rest


class LayerError(Workload):
    """Project one layer of a model; the score is ‖X(W − Ŵ)ᵀ‖ / ‖XWᵀ‖ in the Frobenius norm.

    X is what the layer sees at the tokens of the calibration texts: the projection may weigh
    columns by the even rows, the error is of the odd ones. ``hwbench choose`` asks for it.

    ``judged = "output"`` takes the same of the model's last hidden states instead, with this layer
    alone in the format: that knows what the rest of the model makes of the error.

    Options: ``model`` (a folder, or NAME@COMMIT; empty for all-MiniLM-L6-v2), ``layer`` (its name),
    ``judged`` and ``seeds``. The shape is the layer's.
    """

    SCORE = OUTPUT_ERROR
    OPTIONS = {"model": "", "layer": "", "judged": LAYER, "seeds": 1}  # noqa: RUF012 (declared in the base)
    AXES = ()

    def check(self, case: Case) -> None:
        options = self.options(case)
        if not options["layer"]:
            raise SuiteError("the workload layer_error needs the name of a layer.")
        if options["judged"] not in (LAYER, OUTPUT):
            raise UnknownNameError("judged", str(options["judged"]), (LAYER, OUTPUT))

    def cost(self, case: Case, described: Format) -> Cost | None:
        return described.cost(0, ITEM_BYTES[case.dtype], FORWARD)

    def unsupported(self, case: Case, described: Format, device: Device) -> str | None:
        options = self.options(case)
        model, layer = str(options["model"]), str(options["layer"])
        if reason := _reading.unreadable(model):
            return reason
        linears = _reading.read(model)[0].linears()
        if layer not in linears:
            return str(UnknownNameError("layer", layer, linears))
        found = linears[layer]
        if (found.out_features, found.in_features) != (case.out_features, case.in_features):
            return f"{layer} is {found.out_features}×{found.in_features}."
        if layer not in _reading.read(model)[1]:
            return f"Nothing passes through {layer} in the calibration texts."
        return None

    def prepare(self, case: Case, described: Format, device: Device, seed: int) -> Subject:
        options = self.options(case)
        model, seen = _reading.read(str(options["model"]))
        layer, dtype = str(options["layer"]), DTYPES[case.dtype]
        weight = model.linears()[layer].weight.detach().to(device.torch_device, dtype)
        rows = seen[layer].to(device.torch_device, dtype)
        told, judged = rows[0::2], rows[1::2][:_ROWS].double()

        def score() -> float:
            with torch.no_grad():
                nearest = described.project(weight, activations=told).to_dense()
                if options["judged"] == OUTPUT:
                    return _moved(str(options["model"]), layer, nearest)
                moved = judged @ (weight.double() - nearest.double()).mT
                whole = judged @ weight.double().mT
                return _own.apart(moved, whole)

        return Subject(
            step=lambda _: described.project(weight, activations=told),
            score=score,
            score_name=self.SCORE.name,
            inputs=[weight, rows],
        )


def _moved(model: str, layer: str, nearest: Tensor) -> float:
    """The relative error of the model's last states with this matrix in the layer's place."""
    loaded, _ = _reading.read(model)
    ids, mask, wanted = _reading.last_states(model)
    linear = loaded.linears()[layer]
    kept = linear.weight.data
    linear.weight.data = nearest.to(kept)
    try:
        found = loaded.states(ids, mask)[-1][mask]
    finally:
        linear.weight.data = kept
    return _own.apart((found - wanted).double(), wanted.double())
