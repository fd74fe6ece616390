"""What a run of ``hwbench choose`` says of each layer, and of a pass of the whole model."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from hwbench.analysis.frames import summary_rows
from hwbench.errors import CasesFailedError, UsageError
from hwbench.quantities import LINEAR_SECONDS
from hwbench.records import Case, Status
from hwbench.store import Run
from hwbench.studies import _groups
from hwbench.studies._choosing import Costs, Layer
from hwbench.studies._question import WHOLE

LEAST = 1e-12
"""The least loss of a group: a smaller one that was measured is rounding."""

Row = Mapping[str, Any]
Shape = tuple[int, int]


@dataclass(frozen=True)
class Pass:
    """One pass of a model as it was: all of it, and what the layers of each shape take in it."""

    seconds: float
    inside: dict[Shape, float]

    @property
    def rest_seconds(self) -> float:
        """Seconds of embeddings, attention, norms, and all else that no format is chosen for."""
        return max(0.0, self.seconds - math.fsum(self.inside.values()))


@dataclass(frozen=True)
class _Lost:
    """The measured losses of layers and groups, by name and label of the candidate.

    ``errors`` are squared and relative, ``groups`` what the whole model lost, ``asked`` the
    candidates in which a group was to be measured; ``shared`` are the candidates that were asked
    for by a share of dense.
    """

    errors: dict[tuple[str, str], float]
    groups: dict[str, dict[str, float]]
    asked: dict[str, list[str]]
    shared: set[str]


def pass_of(run: Run) -> Pass | None:
    """The pass of the model that a run measured; None where an older version made the run.

    Raises:
        UsageError: the run is not finished.
        CasesFailedError: it could not be measured.
    """
    _check_finished(run)
    pass_cases = [each.case for each in run.planned.values() if each.case.workload == "model_pass"]
    if not pass_cases:
        return None
    rows = [row for row in summary_rows(run) if row["workload"] == "model_pass"]
    for row in rows:
        if row["status"] != Status.OK:
            raise CasesFailedError(f"A pass of the model was not measured: {row['reason']}")
    inside = {(row["out_features"], row["in_features"]): row[LINEAR_SECONDS.name] for row in rows}
    return Pass(median(float(row["score"]) for row in rows), inside)


def _check_finished(run: Run) -> None:
    """Whether a run holds all that it was asked for.

    Raises:
        UsageError: it does not yet.
    """
    if run.unfinished:
        raise UsageError(run.unfinished)


def layers_of(run: Run) -> list[Layer]:
    """Each layer of a run with the candidates that were timed and judged of it.

    Seconds are those inside a pass of the model: what a dense layer of the shape takes there, times
    the relative time of the candidate alone.

    Raises:
        UsageError: it is another run, or is not finished.
        CasesFailedError: dense was not measured of a layer, or a group not at all.
    """
    _check_finished(run)
    rows = [row for row in summary_rows(run) if row["status"] == "ok"]
    timed: dict[Shape, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if row["workload"] == "linear":
            timed[row["out_features"], row["in_features"]][row["label"]] = row
    layers = _scored_layers(run)
    if not layers or not timed:
        raise UsageError(f"{run.path} is no run of hwbench choose.")
    lost, seconds = _read_losses(run, rows), _seconds_of(run, [bare for bare, _ in layers])
    layers_with_costs = []
    for bare, judged in layers:
        layer, losses = _losses(bare, judged, lost)
        own = timed[layer.shape]
        for label, loss in losses.items():
            if label in own and "dense" in own:
                costs = _costs(own[label], own["dense"], loss, seconds.get(layer.shape))
                layer.options[label] = costs
        if "dense" not in layer.options:
            raise CasesFailedError(f"dense was not measured of {judged}; choose cannot go on.")
        layers_with_costs.append(layer)
    return layers_with_costs


def _seconds_of(run: Run, layers: Sequence[Layer]) -> dict[Shape, float]:
    """Return the seconds of one dense layer of each shape in a pass; empty if not measured."""
    whole = pass_of(run)
    if whole is None:
        return {}
    count = defaultdict[Shape, int](int)
    for layer in layers:
        count[layer.shape] += 1
    return {
        shape: seconds / count[shape]
        for shape, seconds in whole.inside.items()
        if seconds > 0 and count[shape]
    }


def _scored_layers(run: Run) -> list[tuple[Layer, str]]:
    """The layers that a run asked for, each with the one that its error was taken of."""
    cases = [planned.case for planned in run.planned.values()]
    scored = [case for case in cases if case.workload == "layer_error"]
    names = dict.fromkeys(
        (str(case.options["layer"]), _shape(case), is_whole(case)) for case in scored
    )
    groups = [_groups.Group(_groups.of_name(name), shape) for name, shape, whole in names if whole]
    if groups:
        return [
            (Layer(name, group.shape, {}, group=group.name), group.middle)
            for group in groups
            for name in group.members
        ]
    return [(Layer(name, shape, {}), name) for name, shape, _ in names]


def _shape(case: Case) -> Shape:
    return case.out_features, case.in_features


def is_whole(case: Case) -> bool:
    """Whether a case judges by what the whole model gives."""
    return case.options.get("judged") in WHOLE


def _read_losses(run: Run, rows: Sequence[Row]) -> _Lost:
    lost = _Lost({}, defaultdict(dict), defaultdict(list), set())
    for planned in run.planned.values():
        case = planned.case
        if not {"density", "stored"}.isdisjoint(case.knobs):
            lost.shared.add(case.label)
        if is_whole(case):
            lost.asked[str(case.options["layer"])].append(case.label)
    for row in rows:
        if row["workload"] != "layer_error":
            continue
        options = json.loads(row["options"])
        if options.get("judged") in WHOLE:
            lost.groups[options["layer"]][row["label"]] = float(row["score"])
        else:
            lost.errors[options["layer"], row["label"]] = float(row["score"]) ** 2
    return lost


def _losses(bare: Layer, judged: str, lost: _Lost) -> tuple[Layer, dict[str, float]]:
    """The layer with its sensitivity, and what it loses by candidate.

    What was measured of its group counts as it is, shared among the group's layers. What was not is
    the squared error of the layer that stands for the group, times the group's sensitivity.

    Raises:
        CasesFailedError: nothing was measured of its group.
    """
    errors = {label: error for (name, label), error in lost.errors.items() if name == judged}
    if not bare.group:
        return replace(bare, options={}), errors
    measured, members = lost.groups.get(bare.group, {}), len(_groups.of_name(bare.group))
    sensitivity = _sensitivity(bare.group, lost, errors)
    losses = {
        label: measured.get(label, sensitivity * error) / members
        for label, error in errors.items()
        # A candidate without a share is of its own kind: no other's sensitivity is its.
        if label in measured or label == "dense" or label in lost.shared
    }
    return replace(bare, options={}, sensitivity=sensitivity), losses


def _sensitivity(group: str, lost: _Lost, errors: Mapping[str, float]) -> float:
    """Return the loss of the whole model for each unit of the squared error of a group.

    A candidate with a share of dense decides it where one was asked for, else one without. One that
    changes nothing, as a sparse format of a pruned layer, tells nothing; then any other decides,
    and where none of them changes anything, it is ``LEAST``.

    Raises:
        CasesFailedError: it was not measured.
    """
    labels, measured = lost.asked[group], lost.groups.get(group, {})
    deciding = [label for label in labels if label in lost.shared] or labels
    if not any(label in measured for label in deciding):
        raise CasesFailedError(
            f"What {group} does to the whole model was not measured; choose cannot go on."
        )
    for label in (*deciding, *labels):
        if label in measured and errors.get(label, 0.0) > 0:
            return max(measured[label], LEAST) / errors[label]
    return LEAST


def _costs(timed: Row, dense: Row, loss: float, inside: float | None) -> Costs:
    """Times are relative to dense of the same rounds where they can be: the machine drifts."""
    relative = timed["time_seconds"] / dense["time_seconds"]
    if timed is dense:
        relative = 1.0
    elif math.isfinite(timed["relative_time"]):
        relative = timed["relative_time"]
    seconds = relative * (dense["time_seconds"] if inside is None else inside)
    return Costs(seconds, timed["stored_bytes"], timed["parameters"], loss)
