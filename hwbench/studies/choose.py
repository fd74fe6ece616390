"""``hwbench choose``: a format for each linear layer of a model, within a budget.

Each distinct shape is timed in each format on this machine, and each layer's output error in each
format is taken on calibration texts, all in one run file. Then the sum over the layers of the
squared relative errors is made least within the budget: of each layer's own output (``error``), or
of the model's last hidden states with that layer alone in the format (``output``). The first is
quick to find and can mislead: it does not know how a layer's error goes through the rest of the
model. ``measured`` runs the whole model as planned, in the best single format and as it was.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hwbench import checkpoints, files, protocol
from hwbench.analysis.frames import summary_rows
from hwbench.errors import CasesFailedError, UnknownNameError, UsageError, shortened
from hwbench.measure import run as runner
from hwbench.measure.schedule import Listener
from hwbench.measure.transports.local import LocalSeat
from hwbench.records import Knob
from hwbench.store import Run, read_run
from hwbench.studies import _knapsack
from hwbench.studies._knapsack import Option

SCHEMA = 1
OBJECTIVES = {"error": "layer", "output": "output"}
"""What is made least, and where the workload ``layer_error`` judges it."""

FORMATS = ("low_rank", "low_rank_light", "monarch", "block_dense", "kronecker", "csr", "bsr")
"""Formats that are projected in moments; others are tried where they are asked for."""

DENSITIES = (0.75, 0.5, 0.25, 0.1)
DENSE: Mapping[str, Knob] = {"name": "dense"}
_KINDS = ("bytes", "time", "params")
_BUDGET = re.compile(r"(\w+)\s*=\s*([-−]?)\s*(\d+(?:\.\d+)?)\s*%")
_LAYERS_SECONDS, _APPLY_SECONDS = 600.0, 3600.0
_CASE_SECONDS, _MODEL_SECONDS = 300.0, 3600.0  # what one case may take
_SUITE = "choose"


@dataclass(frozen=True)
class Budget:
    """What all linear layers together may cost, as a share of what they cost dense."""

    kind: str
    share: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """``bytes=50%``, ``params=50%``, ``time=70%``, or with a minus what is to be saved.

        Raises:
            UsageError: it is none of these.
        """
        match = _BUDGET.fullmatch(text.strip())
        if not match:
            raise UsageError(
                f"--budget is bytes=50%, params=50% or time=-30%, not {shortened(repr(text))}."
            )
        if match[1] not in _KINDS:
            raise UnknownNameError("budget", match[1], _KINDS)
        share = float(match[3]) / 100
        share = 1 - share if match[2] else share
        if not 0 < share <= 1:
            raise UsageError(
                f"--budget {text} leaves {share:.0%}; it must be above 0 and at most 100 %."
            )
        return cls(match[1], share)

    def __str__(self) -> str:
        return f"{self.kind}={100 * self.share:g}%"


@dataclass(frozen=True)
class Costs:
    """What layers cost, and what is lost."""

    time_seconds: float
    bytes: float
    parameters: float
    loss: float

    def of(self, kind: str) -> float:
        """The cost that a budget of this kind limits."""
        names = {"bytes": self.bytes, "time": self.time_seconds, "params": self.parameters}
        return names[kind]


@dataclass(frozen=True)
class Layer:
    """One layer, and what it costs as each candidate that it can be."""

    name: str
    shape: tuple[int, int]
    options: dict[str, Costs]


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


@dataclass(frozen=True)
class Choice:
    """The plan of a budget, beside dense and the best single format."""

    budget: Budget
    picked: dict[str, str]
    planned: Costs
    dense: Costs
    single: str | None
    alone: Costs | None
    gap: float
    layers: list[Layer] = field(repr=False)

    @property
    def wins_everywhere(self) -> str | None:
        """The one candidate that every layer has, where there is one."""
        labels = set(self.picked.values())
        return labels.pop() if len(labels) == 1 else None


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
    scored = [
        {"workload": "layer_error", "shape": list(shape), "dtype": asked.dtype, "format": formats,
         "model": asked.model, "judged": OBJECTIVES[asked.objective],
         "layer": [n for n, *own in layers if tuple(own) == shape]}
        for shape in shapes
    ]  # fmt: skip
    about = "Each layer of a model in each format: its time, and the error of its output"
    return {
        "schema": 1, "name": _SUITE, "about": about, "plan": {"timeout_seconds": _CASE_SECONDS},
        "cases": [*timed, *scored],
    }  # fmt: skip


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
    layers: dict[str, Layer] = {}
    for planned in found.planned.values():
        case = planned.case
        if case.workload == "layer_error":
            shape = (case.out_features, case.in_features)
            name = str(case.options["layer"])
            layers.setdefault(name, Layer(name, shape, {}))
    if not layers or not timed:
        raise UsageError(f"{found.path} is no run of hwbench choose.")
    for row in rows:
        if row["workload"] != "layer_error":
            continue
        layer = layers[json.loads(row["options"])["layer"]]
        pair = timed.get((*layer.shape, row["label"])), timed.get((*layer.shape, "dense"))
        if pair[0] is None or pair[1] is None:
            continue
        layer.options[row["label"]] = _costs(pair[0], pair[1], row["score"])
    for layer in layers.values():
        if "dense" not in layer.options:
            raise CasesFailedError(f"dense was not measured of {layer.name}; choose cannot go on.")
    return list(layers.values())


def _costs(timed: Mapping[str, Any], dense: Mapping[str, Any], error: float) -> Costs:
    """Times are relative to dense of the same rounds where they can be: the machine drifts."""
    seconds = timed["time_seconds"]
    if timed is not dense and math.isfinite(timed["relative_time"]):
        seconds = timed["relative_time"] * dense["time_seconds"]
    return Costs(seconds, timed["stored_bytes"], timed["parameters"], float(error) ** 2)


def choose(layers: Sequence[Layer], budget: Budget) -> Choice:
    """The candidate of each layer that loses least together within the budget.

    Raises:
        UsageError: no choice meets the budget; the sentence says what can be met.
    """
    labels = [sorted(layer.options) for layer in layers]
    groups = [
        [Option(layer.options[label].of(budget.kind), layer.options[label].loss) for label in own]
        for layer, own in zip(layers, labels, strict=True)
    ]
    dense = _total(layers, dict.fromkeys((layer.name for layer in layers), "dense"))
    limit = budget.share * dense.of(budget.kind)
    found = _knapsack.solve(groups, limit)
    if found is None:
        least = _knapsack.cheapest(groups) / dense.of(budget.kind)
        raise UsageError(
            f"The budget {budget} cannot be met: as measured, the linear layers need at least "
            f"{_percent_up(least)} of their {budget.kind} when dense; ask for that, or for more "
            "formats and densities."
        )
    picked = {
        layer.name: own[index]
        for layer, own, index in zip(layers, labels, found.chosen, strict=True)
    }
    single = best_single(layers, budget.kind, limit)
    alone = _total(layers, uniform(layers, single)) if single else None
    planned = _total(layers, picked)
    return Choice(budget, picked, planned, dense, single, alone, found.gap, list(layers))


def _percent_up(share: float) -> str:
    return f"{math.ceil(1e3 * share) / 10:g} %"


def uniform(layers: Sequence[Layer], label: str) -> dict[str, str]:
    """Every layer in one candidate; one that cannot be it stays dense."""
    return {each.name: label if label in each.options else "dense" for each in layers}


def best_single(layers: Sequence[Layer], kind: str, limit: float) -> str | None:
    """The candidate that, alone in all layers, loses least within the limit; None if none does."""
    labels = sorted({label for layer in layers for label in layer.options})
    fits = []
    for label in labels:
        costs = _total(layers, uniform(layers, label))
        if costs.of(kind) <= limit:
            fits.append((costs.loss, costs.of(kind), label))
    return min(fits)[2] if fits else None


def _total(layers: Sequence[Layer], picked: Mapping[str, str]) -> Costs:
    each = [layer.options[picked[layer.name]] for layer in layers]
    parts = ("time_seconds", "bytes", "parameters", "loss")
    return Costs(*(math.fsum(getattr(costs, part) for costs in each) for part in parts))


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
        "predicted": vars(_total(choice.layers, picked)),
        "dense": vars(choice.dense),
        "best_single": choice.single,
    }


def _entries(found: Run) -> dict[str, dict[str, Knob]]:
    """The table of a format and its knobs by the label of its cases."""
    cases = [planned.case for planned in found.planned.values()]
    return {case.label: {"name": case.format, **case.knobs} for case in cases}


def _model(found: Run) -> str:
    return str(_scored(found).get("model", ""))


def objective(found: Run) -> str:
    """What the errors of a run are of."""
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
    own = Path(model).expanduser()
    files.refuse_inputs([plan, single_path(plan)], [own] if model and own.is_dir() else [])
    for path in (plan, single_path(plan)):
        files.check_replaceable(path)


def single_path(path: Path) -> Path:
    """Where the best single format of a plan is written."""
    return path.with_name(f"{path.stem}-single.json")


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
    made = described(choice, found, choice.picked)
    if made["layers"] != told["layers"]:
        raise UsageError(
            f"{path} is not what its run gives under the budget {told['budget']}: it was changed, "
            "or the run was; choose anew with --from."
        )
    return choice, found


# --- the whole model ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Whole:
    """What a whole model was measured to do."""

    score: float
    score_name: str
    better: str
    model_seconds: float
    model_bytes: float
    retrieval_agreement: float


def measured(
    plan: Path,
    *,
    single: bool,
    device: str = "auto",
    threads: int | None = None,
    out: str | Path = "runs",
    listener: Listener = lambda progress: None,
) -> dict[str, Whole]:
    """Measure the whole model as it was, as planned, and in the best single format.

    Returns:
        By ``dense``, ``plan`` and, where ``single`` asks for it, ``single``.

    Raises:
        CasesFailedError: one of them could not be measured.
    """
    told = checkpoints.layer_plan(plan)
    side = told.layers[0].shape
    paths = {"dense": "", "plan": str(plan.resolve())}
    if single:
        paths["single"] = str(single_path(plan).resolve())
    asked = {
        "schema": 1, "name": "chosen",
        "about": "A model as it was, as planned, and in the best single format",
        "plan": {"timeout_seconds": _MODEL_SECONDS},
        "cases": [{"workload": "compress", "weighting": "activations", "model": told.model,
                   "plan": list(paths.values()), "seeds": 2, "shape": list(side),
                   "dtype": "float32", "format": [dict(DENSE)]}],
    }  # fmt: skip
    run = runner.run(asked, device=device, threads=threads, out=out, listener=listener)
    rows = {json.loads(r["options"])["plan"]: r for r in summary_rows(read_run(run))}
    found = {}
    for name, path in paths.items():
        row = rows[path]
        if row["status"] != "ok":
            raise CasesFailedError(f"The model ({name}) could not be measured: {row['reason']}")
        found[name] = Whole(
            row["score"], row["score_name"], row["better"], row["model_seconds"],
            row["model_bytes"], row["retrieval_agreement"],
        )  # fmt: skip
    return found


def better(first: Whole, second: Whole) -> bool:
    """Whether the first scores better than the second."""
    if first.better == "higher":
        return first.score > second.score
    return first.score < second.score


def apply(plan: Path, out: Path, *, device: str = "auto", threads: int | None = None) -> str:
    """Write the model that a plan makes to a folder, and return it.

    Raises:
        UsageError: plan or model cannot be read, or the folder cannot be written.
    """
    worker = LocalSeat(runner.resolve_device(device), runner.usable_threads(threads)).start()
    try:
        request = protocol.ApplyRequest(plan=str(plan.resolve()), out=str(out.resolve()))
        return worker.ask(request, protocol.ApplyReply, _APPLY_SECONDS).out
    finally:
        worker.close()
