"""Layers of the packaged model, scored on what they see: a few of a shape, spread over the model.

The scores are kept in the user's cache folder by what they follow from: the weights, the texts, the
format with its knobs, the code of formats and model, and torch. Whatever of these is another one is
measured again.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import platform
import re
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hwbench
from hwbench import environment
from hwbench.checkpoints import no_package
from hwbench.formats._base import Format
from hwbench.workloads import _distill, _own, _texts, _trained
from hwbench.workloads._base import NONE, project_seeing
from hwbench.workloads._bert import Bert

WEIGHT = ".weight"
_READERS = (
    "_base",
    "_bert",
    "_distill",
    "_embeddings",
    "_models",
    "_own",
    "_packaged",
    "_texts",
    "_trained",
)
CODE = ("formats/*.py", "data/*.txt", *(f"workloads/{name}.py" for name in _READERS))
"""The files of hwbench that decide a score."""
Scores = dict[str, list[float]]
"""``output_error`` and ``projection_error`` of each layer, and ``seconds``, the time of both."""


def missing() -> str | None:
    """Why the packaged model cannot be read and run, in words; None where it can."""
    return _trained.missing() or no_package("tokenizers")


def chosen(out_features: int, in_features: int, count: int) -> list[str]:
    """Names of that many layers of a shape, spread over the depth and the kinds of layer.

    All of the shape where there are no more; in the order of the model.
    """
    shape = (out_features, in_features)
    places: dict[str, list[str]] = {}
    for name, sides in _trained.sides().items():
        if sides == shape:
            places.setdefault(re.sub(r"\d+", "#", name), []).append(name)
    kinds = [sorted(names, key=_depth) for names in places.values()]
    if count >= sum(map(len, kinds)):
        return sorted((name for names in kinds for name in names), key=_depth)
    picked: list[str] = []
    for place in range(count):
        names = kinds[place % len(kinds)]
        share = place / (count - 1) if count > 1 else 0.5
        free = [name for name in names if name not in picked]
        wish = share * (len(names) - 1)
        picked.append(min(free or names, key=lambda name: abs(names.index(name) - wish)))
    return sorted(picked, key=_depth)


def _depth(name: str) -> tuple[int, str]:
    return int(next(iter(re.findall(r"\d+", name)), 0)), name


def scores(
    described: Format, names: list[str], weighting: str, device: torch.device, dtype: torch.dtype
) -> Scores:
    """The errors of these layers in a format: as they are kept, or measured now and then kept.

    Args:
        described: the format at the shape of the layers.
        names: as ``chosen`` returns them.
        weighting: what the projection sees, as the workload ``projection`` has it.
        device: where the projection runs.
        dtype: of the weights.
    """
    file = _file(described, names, weighting, device, dtype)
    stored = _read(file, len(names))
    if stored is None:
        stored = _measured(described, names, weighting, device, dtype)
        environment.keep(file, stored)
    return stored


def _measured(
    described: Format, names: list[str], weighting: str, device: torch.device, dtype: torch.dtype
) -> Scores:
    results: Scores = {"output_error": [], "projection_error": [], "seconds": []}
    for name in names:
        begun = time.perf_counter()
        weight = _trained.linears()[name].to(device, dtype)
        module = name.removesuffix(WEIGHT)
        inputs = None if weighting == NONE else _seen("calibration")[module].to(device)
        exact = weight.double()
        layer = project_seeing(described, weight, inputs, weighting)
        error = _own.projection_error(layer, exact, dtype)
        rows = _seen("held_out")[module].to(device, dtype)
        results["output_error"].append(_own.output_error(layer, exact, rows))
        results["projection_error"].append(error)
        results["seconds"].append(time.perf_counter() - begun)
    return results


@lru_cache(maxsize=2)
def _seen(texts: str) -> dict[str, Tensor]:
    """The inputs of every layer of the packaged model at the tokens of these texts, on the CPU."""
    folder = _trained.folder()
    lines = _texts.calibration() if texts == "calibration" else _texts.held_out()
    return _distill.activations(Bert.load(folder), *Bert.tokens(folder, lines))


def _file(
    described: Format, names: list[str], weighting: str, device: torch.device, dtype: torch.dtype
) -> Path:
    facts: dict[str, Any] = {
        "weights": {name: _hash(name) for name in names},
        "format": described.name(),
        "shape": [described.out_features, described.in_features],
        "knobs": described.knobs(),
        "weighting": weighting,
        "code": code(inspect.getsourcefile(type(described)) or "", CODE),
        "torch": torch.__version__,
        "machine": [platform.machine(), device.type, str(dtype)],
    }
    return file_of(facts)


def file_of(facts: Mapping[str, Any]) -> Path:
    """Where scores are kept that follow from these facts."""
    text = json.dumps(facts, sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:32]
    return environment.cache_folder() / "scores" / f"{name}.json"


@lru_cache(maxsize=64)
def _hash(name: str) -> str:
    values = _trained.linears()[name]
    return hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()


@lru_cache(maxsize=64)
def code(further: str, patterns: tuple[str, ...]) -> str:
    """The content of all code and texts that a score follows from; ``further`` is a plugin's."""
    root = Path(str(hwbench.__file__)).parent
    files = [path for pattern in patterns for path in sorted(root.glob(pattern))]
    digest = hashlib.sha256()
    for path in (*files, *([Path(further)] if further else [])):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _read(file: Path, count: int) -> Scores | None:
    """Reads the kept scores; None where there is no file, or another program's."""
    results = environment.kept(file)
    for name in ("output_error", "projection_error", "seconds"):
        values = results.get(name)
        if not isinstance(values, list) or len(values) != count or not all(map(is_amount, values)):
            return None
    return {name: [float(value) for value in values] for name, values in results.items()}


def is_amount(value: Any) -> bool:
    """Whether a kept value is a finite number that is not below zero."""
    return type(value) in (int, float) and math.isfinite(value) and value >= 0
