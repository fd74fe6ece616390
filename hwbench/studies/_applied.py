"""A plan put to work: the whole model measured, and written converted."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hwbench import checkpoints, protocol
from hwbench.analysis.frames import summary_rows
from hwbench.errors import CasesFailedError
from hwbench.measure import run as runner
from hwbench.measure.schedule import Listener
from hwbench.measure.transports.local import LocalSeat
from hwbench.quantities import DENSE_PASS_SECONDS
from hwbench.records import Knob
from hwbench.store import read_run
from hwbench.studies._choosing import Passed

DENSE: Mapping[str, Knob] = {"name": "dense"}
MODEL_SECONDS = 3600.0
"""The time limit of a case of a whole model."""

_APPLY_SECONDS = 3600.0


def single_path(path: Path) -> Path:
    """Where the best single format of a plan is written."""
    return path.with_name(f"{path.stem}-single.json")


@dataclass(frozen=True)
class Whole:
    """The measurements of a whole model."""

    score: float
    score_name: str
    better: str
    model_seconds: float
    model_bytes: float
    retrieval_agreement: float
    divergence: float = math.nan  # nats a token from the original; of causal models


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
    layer_plan = checkpoints.layer_plan(plan)
    side = layer_plan.layers[0].shape
    paths = {"dense": "", "plan": str(plan.resolve())}
    if single:
        paths["single"] = str(single_path(plan).resolve())
    document = {
        "schema": 1, "name": "chosen",
        "about": "A model as it was, as planned, and in the best single format",
        "plan": {"timeout_seconds": MODEL_SECONDS},
        "cases": [{"workload": "compress", "weighting": "activations", "model": layer_plan.model,
                   "plan": list(paths.values()), "text": layer_plan.text, "seeds": 2,
                   "shape": list(side), "dtype": "float32", "format": [dict(DENSE)]}],
    }  # fmt: skip
    run = runner.run(document, device=device, threads=threads, out=out, listener=listener)
    rows = {json.loads(r["options"])["plan"]: r for r in summary_rows(read_run(run))}
    wholes = {}
    for name, path in paths.items():
        row = rows[path]
        if row["status"] != "ok":
            raise CasesFailedError(f"The model ({name}) could not be measured: {row['reason']}")
        wholes[name] = Whole(
            row["score"], row["score_name"], row["better"], row["model_seconds"],
            row["model_bytes"], row["retrieval_agreement"], row["next_token_divergence"],
        )  # fmt: skip
    return wholes


def passed(
    plan: Path,
    tokens: int,
    *,
    device: str = "auto",
    threads: int | None = None,
    out: str | Path = "runs",
    listener: Listener = lambda progress: None,
) -> Passed:
    """Time a pass of the whole model as planned, and as it was.

    Raises:
        CasesFailedError: it could not be measured.
    """
    layer_plan = checkpoints.layer_plan(plan)
    document = {
        "schema": 1, "name": "passed", "about": "A pass of a model as planned and as it was",
        "plan": {"timeout_seconds": MODEL_SECONDS},
        "cases": [{"workload": "model_pass", "model": layer_plan.model, "plan": str(plan.resolve()),
                   "length": tokens, "shape": list(layer_plan.layers[0].shape), "dtype": "float32",
                   "format": [dict(DENSE)]}],
    }  # fmt: skip
    run = runner.run(document, device=device, threads=threads, out=out, listener=listener)
    (row,) = summary_rows(read_run(run))
    if row["status"] != "ok":
        raise CasesFailedError(f"A pass of the planned model was not measured: {row['reason']}")
    return Passed(row[DENSE_PASS_SECONDS.name], row["score"])


def better(first: Whole, second: Whole) -> bool:
    """Whether the first diverges less or, where that is not known, scores better."""
    if math.isfinite(first.divergence) and math.isfinite(second.divergence):
        return first.divergence < second.divergence
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
