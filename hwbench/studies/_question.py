"""What ``hwbench choose`` measures of a model: the suite of its layers, and the run of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwbench import protocol
from hwbench.measure import run as runner
from hwbench.measure.schedule import Listener
from hwbench.measure.transports.local import LocalSeat
from hwbench.studies import _groups
from hwbench.studies._applied import DENSE

KL, COSINE = "kl", "cosine"
WHOLE = (KL, COSINE)
"""The objectives that groups of layers are measured by, and then whole candidates."""

OBJECTIVES = {"error": "layer", "output": "output", KL: KL, COSINE: COSINE}
"""What is made least, and where the workload ``layer_error`` judges it."""

FORMATS = ("low_rank", "low_rank_light", "monarch", "block_dense", "kronecker", "csr", "bsr")
"""Formats that are projected in moments; others are tried where they are asked for."""

DENSITIES = (0.75, 0.5, 0.25, 0.1)
_REFERENCE = 0.5  # the share, or the nearest one, at which groups are made to show what they do
_LAYERS_SECONDS = 600.0
_CASE_SECONDS = 300.0  # what one case may take
SUITE = "choose"


@dataclass(frozen=True)
class Question:
    """The request of ``hwbench choose``: a model, and how to measure it.

    ``densities`` are shares of what dense has: of its parameters, or, where ``share`` is "stored",
    of its bytes.
    """

    model: str = ""
    tokens: int = 128
    dtype: str = "float32"
    formats: Sequence[str] = FORMATS
    densities: Sequence[float] = DENSITIES
    replicates: int = 3
    objective: str = "error"
    share: str = "density"


def document(
    question: Question, layers: Sequence[tuple[str, int, int]], fixed: Sequence[str] = ()
) -> dict[str, Any]:
    """The suite that times each distinct shape and a pass of the model, and judges each layer.

    ``fixed`` formats need no share; of dense's bytes they are asked for one, too.
    """
    shapes = Counter((rows, columns) for _, rows, columns in layers)
    formats: list[dict[str, Any]] = [dict(DENSE)]
    for name in dict.fromkeys(question.formats):
        if name == "dense":
            continue
        if name in fixed:
            formats.append({"name": name})
        if name not in fixed or question.share == "stored":
            formats.append({"name": name, question.share: list(question.densities)})
    timed = [
        {"workload": "linear", "shape": list(shape), "count": count, "tokens": question.tokens,
         "direction": "forward", "dtype": question.dtype, "format": formats}
        for shape, count in shapes.items()
    ]  # fmt: skip
    whole = {
        "workload": "model_pass", "model": question.model, "length": question.tokens,
        "shape": [list(shape) for shape in shapes], "dtype": question.dtype,
        "format": [dict(DENSE)],
    }  # fmt: skip
    about = "Each layer of a model in each format: its time, and the error of its output"
    return {
        "schema": 1, "name": SUITE, "about": about, "plan": {"timeout_seconds": _CASE_SECONDS},
        "cases": [*timed, whole, *_judged(question, layers, formats)],
    }  # fmt: skip


def _judged(
    question: Question, layers: Sequence[_groups.Named], formats: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The blocks that judge layers in each format and, for whole models, groups in some."""
    shared = {"workload": "layer_error", "dtype": question.dtype, "model": question.model}
    if question.objective not in WHOLE:
        for shape in dict.fromkeys((rows, columns) for _, rows, columns in layers):
            own = [name for name, *sides in layers if tuple(sides) == shape]
            yield {**shared, "shape": list(shape), "format": formats, "layer": own,
                   "judged": OBJECTIVES[question.objective]}  # fmt: skip
        return
    shared |= how(question.objective)
    groups = _groups.grouped(layers)
    for shape in dict.fromkeys(group.shape for group in groups):
        some = [group for group in groups if group.shape == shape]
        block = {**shared, "shape": list(shape)}
        yield {**block, "format": formats, "layer": [group.middle for group in some],
               "judged": "layer"}  # fmt: skip
        yield {**block, "format": _references(question, formats), "judged": question.objective,
               "layer": [group.name for group in some]}  # fmt: skip


def _references(question: Question, formats: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The candidates in which what groups do is measured: one with a share, and all without.

    What is lost at other shares follows from it and the errors of layers; that a format without
    one, such as codes, loses is of another kind.
    """
    shared = next((each for each in formats if question.share in each), None)
    own = [each for each in formats if question.share not in each and each["name"] != DENSE["name"]]
    if shared is None:
        return own or [dict(DENSE)]
    nearest = min(question.densities, key=lambda each: abs(each - _REFERENCE))
    return [{**shared, question.share: nearest}, *own]


def how(objective: str) -> dict[str, str]:
    """How layers are projected, and on which texts they are judged."""
    weighting = "best" if objective in WHOLE else "activations"
    return {"weighting": weighting, "text": "prose" if objective == KL else "sentences"}


def measure(
    question: Question,
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

    named, formats = runner.resolve_device(device), [*question.formats]
    for name in formats:
        plugins.check("formats", name)
    layers, fixed = _facts(question.model, formats, named, threads)
    return runner.run(
        document(question, layers, fixed), device=named, threads=threads, out=out,
        listener=listener, replicates=question.replicates,
    )  # fmt: skip


def _facts(
    model: str, formats: list[str], device: str, threads: int | None
) -> tuple[list[tuple[str, int, int]], list[str]]:
    """The layers of the model, and those of the formats that have no density."""
    worker = LocalSeat(device, runner.usable_threads(threads)).start()
    try:
        request = protocol.LayersRequest(model=model)
        layers = worker.ask(request, protocol.LayersReply, _LAYERS_SECONDS).layers
        question = protocol.DescribeRequest(names=formats)
        details = worker.ask(question, protocol.DescribeReply, _LAYERS_SECONDS).formats
    finally:
        worker.close()
    return layers, [each.name for each in details if set(each.knobs) <= set(each.defaults)]
