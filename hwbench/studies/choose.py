"""``hwbench choose``: a format for each linear layer of a model, within a budget.

Each distinct shape is timed in each format on this machine, and layers are judged in each format on
calibration texts, all in one run file. Then what the layers lose together is made least within the
budget. ``error`` adds up the squared relative errors of the layers' own outputs, ``output`` those
of the model's last hidden states with one layer alone in the format. ``kl``, for models that
predict the next token, weighs the error of a layer by what its group, of one kind at neighbouring
depths, does to the next token's distribution; then whole candidates are measured, uniform ones of
each format among them, and the one with the least divergence is kept. The first is quick to find
and can mislead: it does not know how a layer's error goes through the rest of the model.

``measured`` runs the whole model as planned, in the best single format and as it was.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hwbench import checkpoints, files, protocol
from hwbench.analysis.frames import summary_rows
from hwbench.errors import CasesFailedError, UsageError
from hwbench.measure import run as runner
from hwbench.measure.schedule import Listener
from hwbench.measure.transports.local import LocalSeat
from hwbench.records import Case, Knob
from hwbench.store import Run, read_run
from hwbench.studies import _groups
from hwbench.studies._applied import (
    DENSE,
    MODEL_SECONDS,
    Whole,
    apply,
    better,
    measured,
    single_path,
)
from hwbench.studies._choosing import (
    Budget,
    Choice,
    Costs,
    Layer,
    candidates,
    choose,
    decided,
    total,
    uniform,
)

__all__ = [
    "Budget", "Choice", "Costs", "Layer", "Question", "Whole", "again", "apply", "better", "choose",
    "layers_of", "measure", "measured", "refined", "single_path", "write",
]  # fmt: skip
SCHEMA = 1
KL = "kl"
OBJECTIVES = {"error": "layer", "output": "output", KL: "kl"}
"""What is made least, and where the workload ``layer_error`` judges it."""

FORMATS = ("low_rank", "low_rank_light", "monarch", "block_dense", "kronecker", "csr", "bsr")
"""Formats that are projected in moments; others are tried where they are asked for."""

DENSITIES = (0.75, 0.5, 0.25, 0.1)
_REFERENCE = 0.5  # the density, or the nearest one, at which groups are made to show what they do
_LAYERS_SECONDS = 600.0
_CASE_SECONDS = 300.0  # what one case may take
_LEAST = 1e-12  # nats: a group that does less than rounding does something
_SUITE = "choose"


@dataclass(frozen=True)
class Question:
    """What is asked of a model."""

    model: str = ""
    tokens: int = 128
    dtype: str = "float32"
    formats: Sequence[str] = FORMATS
    densities: Sequence[float] = DENSITIES
    replicates: int = 3
    objective: str = "error"


# --- measuring ------------------------------------------------------------------------------------


def document(
    asked: Question, layers: Sequence[tuple[str, int, int]], fixed: Sequence[str] = ()
) -> dict[str, Any]:
    """The suite that times each distinct shape, and takes each layer's error, in each candidate.

    ``fixed`` formats have no density.
    """
    shapes = Counter((rows, columns) for _, rows, columns in layers)
    formats: list[dict[str, Any]] = [dict(DENSE)]
    for name in dict.fromkeys(asked.formats):
        density = {} if name in fixed else {"density": list(asked.densities)}
        formats += [{"name": name, **density}] if name != "dense" else []
    timed = [
        {"workload": "linear", "shape": list(shape), "count": count, "tokens": asked.tokens,
         "direction": "forward", "dtype": asked.dtype, "format": formats}
        for shape, count in shapes.items()
    ]  # fmt: skip
    scored = [*_judged(asked, layers, formats)]
    about = "Each layer of a model in each format: its time, and the error of its output"
    return {
        "schema": 1, "name": _SUITE, "about": about, "plan": {"timeout_seconds": _CASE_SECONDS},
        "cases": [*timed, *scored],
    }  # fmt: skip


def _judged(
    asked: Question, layers: Sequence[_groups.Named], formats: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The blocks that judge layers in each format and, for kl, groups in one of them."""
    shared = {"workload": "layer_error", "dtype": asked.dtype, "model": asked.model}
    if asked.objective != KL:
        for shape in dict.fromkeys((rows, columns) for _, rows, columns in layers):
            own = [name for name, *sides in layers if tuple(sides) == shape]
            yield {**shared, "shape": list(shape), "format": formats, "layer": own,
                   "judged": OBJECTIVES[asked.objective]}  # fmt: skip
        return
    shared |= {"weighting": "best", "text": "prose"}
    groups = _groups.grouped(layers)
    for shape in dict.fromkeys(group.shape for group in groups):
        some = [group for group in groups if group.shape == shape]
        block = {**shared, "shape": list(shape)}
        yield {**block, "format": formats, "layer": [group.middle for group in some],
               "judged": "layer"}  # fmt: skip
        yield {**block, "format": [_reference(asked, formats)], "judged": KL,
               "layer": [group.name for group in some]}  # fmt: skip


def _reference(asked: Question, formats: list[dict[str, Any]]) -> dict[str, Any]:
    """The candidate in which the sensitivity of groups is measured."""
    first = next((each for each in formats if "density" in each), formats[-1])
    if "density" not in first:
        return first
    return {**first, "density": min(asked.densities, key=lambda each: abs(each - _REFERENCE))}


def measure(
    asked: Question,
    *,
    device: str = "auto",
    threads: int | None = None,
    out: str | Path = "runs",
    listener: Listener = lambda progress: None,
) -> Path:
    """Measure what a choice is made from; the path of the run file.

    Raises:
        UsageError: the model cannot be read, or a format is not known.
    """
    from hwbench import plugins

    named, formats = runner.resolve_device(device), [*asked.formats]
    for name in formats:
        plugins.check("formats", name)
    layers, fixed = _facts(asked.model, formats, named, threads)
    return runner.run(
        document(asked, layers, fixed), device=named, threads=threads, out=out, listener=listener,
        replicates=asked.replicates,
    )  # fmt: skip


def _facts(
    model: str, formats: list[str], device: str, threads: int | None
) -> tuple[list[tuple[str, int, int]], list[str]]:
    """The layers of the model, and those of the formats that have no density."""
    worker = LocalSeat(device, runner.usable_threads(threads)).start()
    try:
        wanted = protocol.LayersRequest(model=model)
        layers = worker.ask(wanted, protocol.LayersReply, _LAYERS_SECONDS).layers
        question = protocol.DescribeRequest(names=formats)
        told = worker.ask(question, protocol.DescribeReply, _LAYERS_SECONDS).formats
    finally:
        worker.close()
    return layers, [each.name for each in told if set(each.knobs) <= set(each.defaults)]


# --- choosing -------------------------------------------------------------------------------------


def layers_of(found: Run) -> list[Layer]:
    """Each layer of a run of ``measure`` with the candidates that were timed and scored of it.

    Raises:
        UsageError: it is another run.
        CasesFailedError: dense was not measured of a layer.
    """
    rows = [row for row in summary_rows(found) if row["status"] == "ok"]
    timed = {
        (row["out_features"], row["in_features"], row["label"]): row
        for row in rows
        if row["workload"] == "linear"
    }
    scored = [row for row in rows if row["workload"] == "layer_error"]
    layers = _asked_of(found)
    if not layers or not timed:
        raise UsageError(f"{found.path} is no run of hwbench choose.")
    errors = {
        (options["layer"], row["label"]): float(row["score"]) ** 2
        for row, options in ((row, json.loads(row["options"])) for row in scored)
        if options.get("judged") != KL
    }
    made = []
    for bare, judged in layers:
        sensitivity = _sensitivity(bare, judged, scored, errors) if bare.group else 1.0
        layer = replace(bare, sensitivity=sensitivity)
        for (name, label), error in errors.items():
            pair = timed.get((*layer.shape, label)), timed.get((*layer.shape, "dense"))
            if name == judged and pair[0] is not None and pair[1] is not None:
                loss = sensitivity * error / (len(_groups.of_name(layer.group)))
                layer.options[label] = _costs(pair[0], pair[1], loss)
        if "dense" not in layer.options:
            raise CasesFailedError(f"dense was not measured of {judged}; choose cannot go on.")
        made.append(layer)
    return made


def _asked_of(found: Run) -> list[tuple[Layer, str]]:
    """The layers that a run asked for, each with the one that its error was taken of."""
    cases = [planned.case for planned in found.planned.values()]
    scored = [case for case in cases if case.workload == "layer_error"]
    names = dict.fromkeys(
        (str(case.options["layer"]), _shape(case), _is_kl(case)) for case in scored
    )
    groups = [_groups.Group(_groups.of_name(name), shape) for name, shape, kl in names if kl]
    if groups:
        return [
            (Layer(name, group.shape, {}, group=group.name), group.middle)
            for group in groups
            for name in group.members
        ]
    return [(Layer(name, shape, {}), name) for name, shape, _ in names]


def _shape(case: Case) -> tuple[int, int]:
    return case.out_features, case.in_features


def _is_kl(case: Case) -> bool:
    return case.options.get("judged") == KL


def _sensitivity(
    layer: Layer, judged: str, scored: Sequence[Mapping[str, Any]],
    errors: Mapping[tuple[str, str], float],
) -> float:  # fmt: skip
    """Nats a token that a unit of the squared error of a group does.

    Raises:
        CasesFailedError: it was not measured.
    """
    for row in scored:
        options = json.loads(row["options"])
        if options.get("judged") == KL and options["layer"] == layer.group:
            error = errors.get((judged, row["label"]), 0.0)
            if error > 0:
                return max(float(row["score"]), _LEAST) / error
    raise CasesFailedError(
        f"What {layer.group} does to the next token was not measured; choose cannot go on."
    )


def _costs(timed: Mapping[str, Any], dense: Mapping[str, Any], loss: float) -> Costs:
    """Times are relative to dense of the same rounds where they can be: the machine drifts."""
    seconds = timed["time_seconds"]
    if timed is not dense and math.isfinite(timed["relative_time"]):
        seconds = timed["relative_time"] * dense["time_seconds"]
    return Costs(seconds, timed["stored_bytes"], timed["parameters"], loss)


# --- the plan's file ------------------------------------------------------------------------------


def described(choice: Choice, found: Run, picked: Mapping[str, str]) -> dict[str, Any]:
    """A plan as its file has it; ``layers`` is what ``hwbench.convert`` takes as its format."""
    entries = _entries(found)
    case = next(p.case for p in found.planned.values() if p.case.workload == "linear")
    return {
        "schema": SCHEMA,
        "model": _model(found),
        "budget": str(choice.budget),
        "objective": objective(found),
        "tokens": case.tokens,
        "dtype": case.dtype,
        "machine": found.header.machine,
        "run": str(found.path.resolve()),
        "solver": "scipy.optimize.milp (HiGHS)",
        "gap": choice.gap,
        "shapes": {layer.name: list(layer.shape) for layer in choice.layers},
        "layers": {n: entries[label] for n, label in picked.items() if label != "dense"},
        "predicted": vars(total(choice.layers, picked)),
        "dense": vars(choice.dense),
        "best_single": choice.single,
        **_how(objective(found)),
        **({"kept": choice.kept, "measured": choice.measured} if choice.measured else {}),
    }


def _how(objective: str) -> dict[str, str]:
    """How a plan's layers are projected, and on which texts it is judged."""
    if objective == KL:
        return {"weighting": "best", "text": "prose"}
    return {"weighting": "activations", "text": "sentences"}


def _entries(found: Run) -> dict[str, dict[str, Knob]]:
    """The table of a format and its knobs by the label of its cases."""
    cases = [planned.case for planned in found.planned.values()]
    return {case.label: {"name": case.format, **case.knobs} for case in cases}


def _model(found: Run) -> str:
    return str(_scored(found).get("model", ""))


def objective(found: Run) -> str:
    """What the errors of a run are of."""
    cases = [planned.case for planned in found.planned.values()]
    if any(_is_kl(case) for case in cases):
        return KL
    judged = _scored(found).get("judged", "layer")
    return next(name for name, where in OBJECTIVES.items() if where == judged)


def _scored(found: Run) -> Mapping[str, Knob]:
    cases = (planned.case for planned in found.planned.values())
    return next(case.options for case in cases if case.workload == "layer_error")


def write(choice: Choice, found: Run, path: Path) -> None:
    """Write the plan, and beside it, as ``…-single.json``, the best single format as one.

    Raises:
        RunFileError: the file cannot be written, or holds a run.
    """
    told = described(choice, found, choice.picked)
    files.write_text(path, json.dumps(told, indent=1) + "\n", "the plan ")
    if choice.single:
        told = described(choice, found, uniform(choice.layers, choice.single))
        files.write_text(single_path(path), json.dumps(told, indent=1) + "\n", "the plan ")


def check_outputs(model: str, plan: Path) -> None:
    """Whether a plan of a model, a folder or a name, may be written: asked before the measuring.

    Raises:
        UsageError: a file of the model would be written over.
        RunFileError: a run would be.
    """
    files.check_replaceable(plan)  # a folder, which may have no name to put another beside
    files.check_replaceable(single_path(plan))
    own = files.named(model)
    files.refuse_inputs([plan, single_path(plan)], [own] if model and own.is_dir() else [])


def again(path: Path) -> tuple[Choice, Run]:
    """The plan of a file chosen anew from the run that it names.

    Raises:
        UsageError: the file is no plan, or another plan comes out.
        RunFileError: the run cannot be read.
    """
    told = checkpoints.described(path)
    checkpoints.layer_plan(path)
    if told.get("schema") != SCHEMA or not isinstance(told.get("run"), str):
        raise UsageError(f"{path} is no plan of this version of hwbench choose.")
    found = read_run(Path(told["run"]))
    choice = choose(layers_of(found), Budget.parse(str(told.get("budget"))))
    if "measured" in told:
        choice = decided(choice, _measured_of(told, path))
    made = described(choice, found, choice.picked)
    if made["layers"] != told["layers"]:
        raise UsageError(
            f"{path} is not what its run gives under the budget {told['budget']}: it was changed, "
            "or the run was; choose anew with --from."
        )
    return choice, found


def _measured_of(told: Mapping[str, Any], path: Path) -> dict[str, float]:
    """What a plan's file says was measured of whole candidates.

    Raises:
        UsageError: it is no table of numbers.
    """
    found = told["measured"]
    if not isinstance(found, dict) or not found:
        raise UsageError(f"{path} says of no candidate what was measured.")
    if not all(isinstance(each, (int, float)) and each >= 0 for each in found.values()):
        raise UsageError(f"{path} holds something else than a divergence for a candidate.")
    return {str(name): float(each) for name, each in found.items()}


# --- the whole model ------------------------------------------------------------------------------


def refined(
    choice: Choice,
    found: Run,
    folder: Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    out: str | Path = "runs",
    listener: Listener = lambda progress: None,
) -> Choice:
    """Measure whole candidates on calibration texts, and keep the one that diverges least.

    Args:
        choice: the plan as it was added up.
        found: the run that it was made from.
        folder: where the candidates are written, each as a plan; it is made.
        device: where they are measured.
        threads: of a CPU.
        out: the folder of run files.
        listener: told of every result.

    Raises:
        CasesFailedError: none could be measured.
        UsageError: the folder cannot be written.
    """
    paths = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, picked in candidates(choice).items():
            path = folder.resolve() / f"{re.sub(r'[^A-Za-z0-9.]+', '-', name)}.json"
            told = json.dumps(described(choice, found, picked), indent=1) + "\n"
            files.write_text(path, told, "the plan ")
            paths[str(path)] = name
    except OSError as error:
        raise UsageError(f"Cannot write to {folder}: {error.strerror}.") from error
    asked = {
        "schema": 1, "name": "candidates",
        "about": "Whole models that are worth a measurement: how far their next tokens diverge",
        "plan": {"timeout_seconds": MODEL_SECONDS},
        "cases": [{"workload": "layer_error", "judged": KL, "model": _model(found),
                   "plan": list(paths), **_how(KL), "shape": list(choice.layers[0].shape),
                   "dtype": "float32", "format": [dict(DENSE)]}],
    }  # fmt: skip
    run = runner.run(asked, device=device, threads=threads, out=out, listener=listener)
    rows = summary_rows(read_run(run))
    lost = {
        paths[json.loads(row["options"])["plan"]]: float(row["score"])
        for row in rows
        if row["status"] == "ok"
    }
    if not lost:
        raise CasesFailedError(f"No candidate could be measured: {rows[0]['reason']}")
    return decided(choice, lost)
