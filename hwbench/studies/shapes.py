"""A suite of a model's linear layers, from its config.json; no weights are read.

A block is one shape, with ``count`` of them that one token passes through. A layer that the model
stores as a product of smaller ones is asked for as shipped, dense, and in the other formats whose
parameters are all of their bytes, at the same density: at equal bytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from hwbench import checkpoints, files, suite
from hwbench.errors import MissingPartError, UnknownNameError, UsageError, shortened
from hwbench.studies import _architectures
from hwbench.studies._architectures import REGIMES, TRAIN, Layer

RIVALS = ("low_rank", "monarch", "btt", "blast", "block_dense")
"""Formats without indices: at equal density they have equal bytes."""

DENSITIES = (0.5, 0.25)
_MARGIN = 34  # columns before a comment, as in the other suites


def of(model: str, regimes: Sequence[str] = REGIMES) -> str:
    """The suite, as TOML, of a model's linear layers.

    Args:
        model: a config.json, a folder that holds one, the name of a suite in suites/models, or a
            model of the Hugging Face Hub that lies in its cache; nothing is downloaded.
        regimes: which of decode, prefill and train to ask for.

    Raises:
        UsageError: there is no such model, or its architecture is not known.
    """
    if unknown := [name for name in regimes if name not in REGIMES]:
        raise UnknownNameError("regime", unknown[0], REGIMES)
    if model in suite.model_names() or f"models/{model}" in suite.model_names():
        file = suite.folder() / "models" / f"{model.removeprefix('models/')}.toml"
        if tuple(regimes) != REGIMES:
            raise UsageError(
                f"{model} is a suite that hwbench ships with all regimes; choose by --filter when "
                "it runs, or give a config.json."
            )
        return file.read_text(encoding="utf-8")
    name, settings, where = _read(model)
    return text(name, _architectures.layers(settings, where), regimes)


def _read(model: str) -> tuple[str, dict[str, Any], str]:
    """The name, the configuration and the file of a model."""
    path = files.named(model)
    if path.is_file():
        settings = checkpoints.described(path)
        return _word(path.stem if path.stem != "config" else path.parent.name), settings, str(path)
    try:
        folder = checkpoints.folder(model)
    except (UsageError, MissingPartError) as error:
        if path.suffix == ".json" or model.startswith((".", "/", "~")):
            raise UsageError(f"There is no file or folder {shortened(repr(model))}.") from error
        shipped = ", ".join(name.removeprefix("models/") for name in suite.model_names())
        raise UsageError(
            f"{shortened(repr(model))} is no config.json, no folder with one, and not in the "
            f"Hub's cache; suites are shipped of {shipped}."
        ) from error
    name = model.partition("@")[0].rpartition("/")[2] if not path.is_dir() else path.resolve().name
    return _word(name), checkpoints.config(folder), str(folder / "config.json")


def _word(name: str) -> str:
    """A name that a suite may have."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:64] or "model"


def text(name: str, layers: Sequence[Layer], regimes: Sequence[str] = REGIMES) -> str:
    """The suite as TOML.

    Raises:
        UsageError: no layer is used in any of the regimes.
    """
    blocks = [block for layer in layers if (block := _block(layer, regimes))]
    if not blocks:
        raise UsageError(f"No layer of {name} has one of the regimes {', '.join(regimes)}.")
    head = (
        "schema = 1\n"
        f'name = "{name}"\n'
        f'about = "The linear layers of {name}: {_words(layers, regimes)}"\n\n'
        "[plan]\n"
        "replicates = 3\n"
        "timeout_seconds = 120\n"
    )
    return "\n".join([head, *blocks])


def _words(layers: Sequence[Layer], regimes: Sequence[str]) -> str:
    names = {"decode": "decoding", "prefill": "prefill", "train": "training"}
    present = [each for each in regimes if any(each in layer.tokens for layer in layers)]
    words = ", ".join(names[each] for each in REGIMES if each in present)
    shipped = ", as shipped against dense and others" if any(x.shipped for x in layers) else ""
    return words + shipped


def _block(layer: Layer, regimes: Sequence[str]) -> str:
    """One [[cases]] block, or nothing where the layer has no part in the regimes."""
    forward = [t for each in REGIMES if each != TRAIN and each in regimes
               for t in layer.tokens.get(each, ())]  # fmt: skip
    step = list(layer.tokens.get(TRAIN, ())) if TRAIN in regimes else []
    if not forward and not step:
        return ""
    tokens = sorted({*forward, *step})
    lines = [_commented("[[cases]]", _title(layer)), 'workload = "linear"']
    lines += [f"count = {layer.count}", f"shape = [{layer.out_features}, {layer.in_features}]"]
    lines += [f"tokens = {json.dumps(tokens)}"]
    directions = [*(["forward"] if forward else []), *(["step"] if step else [])]
    lines += [f"direction = {json.dumps(directions)}", 'dtype = "float32"']
    lines += ["format = [", *(f"  {entry}," for entry in _formats(layer)), "]"]
    rules = [
        f'{{ direction = "{direction}", tokens = {json.dumps(others)} }}'
        for direction, own in (("forward", forward), ("step", step))
        if own and (others := [t for t in tokens if t not in own])
    ]
    if rules:
        lines.append(f"exclude = [{', '.join(rules)}]")
    lines += ["", "[cases.on.cuda]", 'dtype = "bfloat16"', ""]
    return "\n".join(lines)


def _title(layer: Layer) -> str:
    """The layers of a block by their names."""
    names = list(dict.fromkeys(layer.names))
    shipped = ", as shipped and at its bytes" if layer.shipped else ""
    note = f" ({layer.note})" if layer.note else ""
    return f"{', '.join(names)}{note}{shipped}"


def _commented(line: str, comment: str) -> str:
    return f"{line:<{_MARGIN - 1}} # {comment}"


def _formats(layer: Layer) -> list[str]:
    if layer.shipped is None:
        dense = ['{ name = "dense" }']
        return dense + [
            f'{{ name = "{name}", density = {json.dumps(list(DENSITIES))} }}' for name in RIVALS
        ]
    density = math.floor(1e4 * shipped_density(layer)) / 1e4
    knobs = ", ".join(f"{key} = {json.dumps(value)}" for key, value in layer.shipped.items())
    rivals = [name for name in RIVALS if name != layer.shipped["name"]]
    return [
        '{ name = "dense" }',
        f"{{ {knobs} }}",
        *(f'{{ name = "{name}", density = {density} }}' for name in rivals),
    ]


def shipped_density(layer: Layer) -> float:
    """The parameters of the factors that the model stores over those of the dense layer."""
    assert layer.shipped is not None
    rank, blocks = int(layer.shipped["rank"]), int(layer.shipped.get("blocks", 1))
    stored = rank * layer.in_features + blocks * rank * layer.out_features
    return stored / (layer.out_features * layer.in_features)
