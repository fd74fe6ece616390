"""``hwbench choose``: a format for each linear layer of a model, within a budget.

Each distinct shape is timed in each format on this machine, a pass of the whole model is, and
layers are judged in each format on calibration texts, all in one run file. Then what the layers
lose together is made least within the budget. ``error`` adds up the squared relative errors of the
layers' own outputs, ``output`` those of the model's last hidden states with one layer alone in the
format. ``kl``, for models that predict the next token, weighs the error of a layer by what its
group, of one kind at neighbouring depths, does to the next token's distribution; ``cosine`` does
the same for encoders, by what becomes of a sentence's embedding. Then whole candidates are
measured, uniform ones of each format among them, and the one that loses least is kept. The error is
quick to find and can mislead: it does not know how a layer's error goes through the rest of the
model.

``measured`` runs the whole model as planned, in the best single format and as it was.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from hwbench import checkpoints, files
from hwbench.analysis.frames import summary_rows
from hwbench.errors import CasesFailedError, UsageError
from hwbench.measure import run as runner
from hwbench.measure.schedule import Listener
from hwbench.records import Case, Knob
from hwbench.store import Run, read_run
from hwbench.studies._applied import (
    DENSE,
    MODEL_SECONDS,
    Whole,
    apply,
    better,
    measured,
    passed,
    single_path,
)
from hwbench.studies._choosing import (
    Budget,
    Choice,
    Costs,
    Layer,
    Passed,
    candidates,
    choose,
    decided,
    total,
    uniform,
)
from hwbench.studies._corrections import correction, kept, known
from hwbench.studies._layers import is_whole, layers_of, pass_of
from hwbench.studies._question import (
    COSINE,
    DENSITIES,
    FORMATS,
    KL,
    OBJECTIVES,
    WHOLE,
    Question,
    how,
    measure,
)

__all__ = [
    "COSINE", "DENSITIES", "FORMATS", "KL", "OBJECTIVES", "WHOLE", "Budget", "Choice", "Costs",
    "Layer", "Passed", "Question", "Whole", "again", "apply", "better", "choose", "chosen",
    "correction", "kept", "known", "layers_of", "measure", "measured", "passed", "refined",
    "single_path", "write",
]  # fmt: skip
SCHEMA = 1


def chosen(run: Run, budget: Budget, missed_seconds: float = 0.0) -> Choice:
    """The plan of a run under a budget, as it adds up.

    Args:
        run: the run of all layers.
        budget: what the model may cost.
        missed_seconds: saved beyond a budget of time, as passes of earlier plans exceeded it.

    Raises:
        UsageError: it is another run, or the budget cannot be met.
        CasesFailedError: what it needs was not measured.
    """
    layers, whole = layers_of(run), pass_of(run)
    if whole is None and budget.kind == "time":
        raise UsageError(
            f"{run.path} holds no pass of the model, which a budget of time is a share of: an "
            "older version made it; choose anew without --from."
        )
    return choose(layers, budget, whole.rest_seconds if whole else 0.0, missed_seconds)


# --- the plan's file ------------------------------------------------------------------------------


def described(choice: Choice, run: Run, picked: Mapping[str, str]) -> dict[str, Any]:
    """A plan as its file has it; ``layers`` is what ``hwbench.convert`` takes as its format."""
    entries, case = _entries(run), _timed(run)
    return {
        "schema": SCHEMA,
        "model": _model(run),
        "budget": str(choice.budget),
        "objective": objective(run),
        "tokens": case.tokens,
        "dtype": case.dtype,
        "machine": run.header.machine,
        "run": str(run.path.resolve()),
        "solver": "scipy.optimize.milp (HiGHS)",
        "gap": choice.gap,
        "shapes": {layer.name: list(layer.shape) for layer in choice.layers},
        "layers": {n: entries[label] for n, label in picked.items() if label != "dense"},
        "predicted": vars(total(choice.layers, picked)),
        "dense": vars(choice.dense),
        "rest_seconds": choice.rest_seconds,
        "formats": sorted({p.case.format for p in run.planned.values()} - {DENSE["name"]}),
        "best_single": choice.single,
        **how(objective(run)),
        **({"kept": choice.kept, "measured": choice.measured} if choice.measured else {}),
        **({"passed": vars(choice.passed)} if choice.passed else {}),
        **({"missed_seconds": choice.missed_seconds} if choice.missed_seconds else {}),
    }


def _timed(run: Run) -> Case:
    """One of the layers that a run timed."""
    return next(p.case for p in run.planned.values() if p.case.workload == "linear")


def tokens(run: Run) -> int:
    """How many tokens at once a run timed layers, and a pass of the model, with."""
    return int(_timed(run).tokens or 1)


def _entries(run: Run) -> dict[str, dict[str, Knob]]:
    """The table of a format and its knobs by the label of its cases."""
    cases = [planned.case for planned in run.planned.values()]
    return {case.label: {"name": case.format, **case.knobs} for case in cases}


def _model(run: Run) -> str:
    return str(_scored(run).get("model", ""))


def objective(run: Run) -> str:
    """Return the objective by which a run judged its layers."""
    cases = [planned.case for planned in run.planned.values()]
    whole = next((case.options for case in cases if is_whole(case)), _scored(run))
    judged = whole.get("judged", "layer")
    return next(name for name, where in OBJECTIVES.items() if where == judged)


def _scored(run: Run) -> Mapping[str, Knob]:
    cases = (planned.case for planned in run.planned.values())
    return next(case.options for case in cases if case.workload == "layer_error")


def write(choice: Choice, run: Run, path: Path) -> None:
    """Write the plan, and beside it, as ``…-single.json``, the best single format as one.

    Where no single format meets the budget, one of an earlier plan is taken away.

    Raises:
        RunFileError: the file cannot be written, or holds a run.
    """
    document = described(choice, run, choice.picked)
    files.write_text(path, json.dumps(document, indent=1) + "\n", "the plan ")
    if choice.single:
        document = described(choice, run, uniform(choice.layers, choice.single))
        files.write_text(single_path(path), json.dumps(document, indent=1) + "\n", "the plan ")
    elif single_path(path).is_file():
        files.check_replaceable(single_path(path))
        single_path(path).unlink()


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
    document = checkpoints.described(path)
    checkpoints.layer_plan(path)
    if document.get("schema") != SCHEMA or not isinstance(document.get("run"), str):
        raise UsageError(f"{path} is no plan of this version of hwbench choose.")
    run = read_run(Path(document["run"]))
    missed = document.get("missed_seconds", 0.0)
    if not isinstance(missed, (int, float)) or not 0 <= missed < math.inf:
        raise UsageError(f"{path} holds something else than the seconds that a pass missed by.")
    choice = chosen(run, Budget.parse(str(document.get("budget"))), missed)
    if "measured" in document:
        choice = decided(choice, _measured_of(document, path))
    if "passed" in document:
        choice = replace(choice, passed=_passed_of(document, path))
    described_again = described(choice, run, choice.picked)
    if described_again["layers"] != document["layers"]:
        raise UsageError(
            f"{path} is not what its run gives under the budget {document['budget']}: it was "
            "changed, or the run was; choose anew with --from."
        )
    return choice, run


def _measured_of(document: Mapping[str, Any], path: Path) -> dict[str, float]:
    """Return the measured losses of whole candidates in a plan's file.

    Raises:
        UsageError: it is no table of numbers.
    """
    measured = document["measured"]
    if not isinstance(measured, dict) or not measured:
        raise UsageError(f"{path} says of no candidate what was measured.")
    if not all(isinstance(each, (int, float)) and each >= 0 for each in measured.values()):
        raise UsageError(f"{path} holds something else than a divergence for a candidate.")
    return {str(name): float(each) for name, each in measured.items()}


def _passed_of(document: Mapping[str, Any], path: Path) -> Passed:
    """Return the measured seconds of a pass in a plan's file.

    Raises:
        UsageError: it is no time.
    """
    passed = document["passed"]
    try:
        times = [float(passed[name]) for name in ("dense_seconds", "planned_seconds")]
    except (KeyError, TypeError, ValueError):
        times = []
    if not times or not all(0 < each < math.inf for each in times):
        raise UsageError(f"{path} holds something else than the seconds of a pass.")
    return Passed(*times)


# --- the whole model ------------------------------------------------------------------------------


class Place(TypedDict, total=False):
    """Where a study measures: the arguments that its functions share."""

    device: str
    threads: int | None
    out: str | Path


class Told(Place, total=False):
    """The same, and who is told of every result."""

    listener: Listener


def planned(path: Path, limit: Budget, plan: Path, **place: Unpack[Told]) -> tuple[Choice, Run]:
    """Choose from a run, measure what only whole models tell, and write the plan.

    A plan whose pass exceeds a budget of time is made anew. To time its pass a plan is written;
    what ends this early leaves the best one written.

    Args:
        path: the run that layers were timed and judged in.
        limit: the budget.
        plan: the file to write.
        place: where the whole models are measured.

    Raises:
        CasesFailedError: no whole model could be measured.
        RunFileError: the run cannot be read, or the plan not written.
        UsageError: no plan meets the budget.
    """
    run = read_run(path)
    choice = chosen(run, limit)
    made, tried = [choice.picked], [_with_measurements(choice, run, plan, {}, place)]
    try:
        while (missed := correction(tried)) is not None:
            try:
                choice = chosen(run, limit, missed)
            except UsageError:
                break  # no plan takes less; the answer says by how much its pass exceeds the budget
            if choice.picked in made:
                break  # its pass was timed
            made.append(choice.picked)
            tried.append(_with_measurements(choice, run, plan, known(tried), place))
    finally:
        best = kept(tried)
        write(best, run, plan)
    return best, run


def _with_measurements(
    choice: Choice, run: Run, plan: Path, losses: Mapping[str, float], place: Told
) -> Choice:
    """The choice with what is measured of whole models: their losses, and a pass of its plan."""
    if objective(run) in WHOLE:
        beside = plan.with_name(f"{plan.stem}-candidates")
        choice = refined(choice, run, beside, losses=losses, **place)
    if choice.budget.kind != "time":
        return choice
    write(choice, run, plan)
    return replace(choice, passed=passed(plan, tokens(run), **place))


def refined(
    choice: Choice,
    run: Run,
    folder: Path,
    *,
    losses: Mapping[str, float] | None = None,
    device: str = "auto",
    threads: int | None = None,
    out: str | Path = "runs",
    listener: Listener = lambda progress: None,
) -> Choice:
    """Measure whole candidates on calibration texts, and keep the one that loses least.

    Args:
        choice: the plan as it was added up.
        run: the run that it was made from.
        folder: where the candidates are written, each as a plan; it is made.
        losses: of candidates, by name, that are known and not measured again.
        device: where they are measured.
        threads: of a CPU.
        out: the folder of run files.
        listener: told of every result.

    Raises:
        CasesFailedError: none of those that are not known could be measured.
        UsageError: the folder cannot be written.
    """
    paths = _written(choice, run, folder)
    lost = {name: losses[name] for name in paths if losses and name in losses}
    unknown = [str(path) for name, path in paths.items() if name not in lost]
    if not unknown:
        return decided(choice, lost)
    document = {
        "schema": 1, "name": "candidates",
        "about": "Whole models that are worth a measurement: how far what they give is from before",
        "plan": {"timeout_seconds": MODEL_SECONDS},
        "cases": [{"workload": "layer_error", "judged": OBJECTIVES[objective(run)],
                   "model": _model(run), "plan": unknown, **how(objective(run)),
                   "shape": list(choice.layers[0].shape), "dtype": "float32",
                   "format": [dict(DENSE)]}],
    }  # fmt: skip
    path = runner.run(document, device=device, threads=threads, out=out, listener=listener)
    rows = summary_rows(read_run(path))
    scores = {
        json.loads(row["options"])["plan"]: float(row["score"])
        for row in rows
        if row["status"] == "ok"
    }
    if not scores:
        raise CasesFailedError(f"No candidate could be measured: {rows[0]['reason']}")
    lost |= {name: scores[str(path)] for name, path in paths.items() if str(path) in scores}
    return decided(choice, lost)


def _written(choice: Choice, run: Run, folder: Path) -> dict[str, Path]:
    """The files that the candidates were written to, each as a plan, by their names."""
    paths = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, picked in candidates(choice).items():
            path = folder.resolve() / f"{re.sub(r'[^A-Za-z0-9.]+', '-', name)}.json"
            text = json.dumps(described(choice, run, picked), indent=1) + "\n"
            files.write_text(path, text, "the plan ")
            paths[name] = path
    except OSError as error:
        raise UsageError(f"Cannot write to {folder}: {error.strerror}.") from error
    return paths
