"""``--weights`` and ``--activations``: a suite about a layer of the user's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hwbench import environment, units
from hwbench import suite as suites
from hwbench.checkpoints import tensors
from hwbench.checkpoints.tensors import Stored
from hwbench.errors import SuiteError, UsageError, shortened

_LAYER, _SCORED = "linear", "projection"
_REPLACED = ("matrix", "layers", "seeds", "shape", "dtype")  # keys that describe another matrix
_NEEDED_BYTES = 32  # an element of a weight: itself, its projection, and both in float64
_LONGEST = 400  # characters of a word in a suite


def named_tensors(
    weights: str | None, activations: Path | None
) -> list[tuple[Stored, Stored | None]]:
    """Return the tensors that --weights names, each with its activations; none without --weights.

    Raises:
        UsageError: a file or a tensor cannot be used; the sentence says what is there.
    """
    if weights is None:
        if activations is not None:
            raise UsageError("--activations belong to --weights; name the layer that saw them.")
        return []
    path, pattern = tensors.split(weights)
    pairs: list[tuple[Stored, Stored | None]] = []
    for weight in tensors.matrices(path, pattern):
        inputs = tensors.activations(activations, weight) if activations else None
        _check_memory(weight, inputs)
        _check_words(weight, inputs)
        pairs.append((weight, inputs))
    return pairs


def _check_memory(weight: Stored, inputs: Stored | None) -> None:
    needed = weight.elements * _NEEDED_BYTES + (4 * inputs.elements if inputs else 0)
    if needed > (left := environment.memory_available_bytes()):
        raise UsageError(
            f"Scoring {weight} ({_sides(weight)}) needs about {units.nbytes(needed)} of memory, "
            f"and {units.nbytes(left)} are left on this machine."
        )


def _check_words(weight: Stored, inputs: Stored | None) -> None:
    for stored in (weight, *([inputs] if inputs else [])):
        for word in (str(stored.path), stored.name):
            if len(word) > _LONGEST or not word.isprintable():
                raise UsageError(
                    f"{shortened(word)!r} is no name that a run can hold; {_LONGEST} printable "
                    "characters are the most."
                )


def sentences_of(pairs: Iterable[tuple[Stored, Stored | None]]) -> list[str]:
    """A sentence on each tensor that is taken from the files."""
    sentences = []
    for weight, inputs in pairs:
        rows = ""
        if inputs is not None:
            half = inputs.shape[0] // 2
            rows = f", its output error on rows {half + 1}–{inputs.shape[0]} of {inputs}"
        sentences.append(
            f"{weight}: {_sides(weight)}, stored in {weight.dtype}, scored in float32{rows}."
        )
    return sentences


def _sides(stored: Stored) -> str:
    return "×".join(map(str, stored.shape))


def shapes(pairs: Iterable[tuple[Stored, Stored | None]]) -> list[list[int]]:
    """The shapes of the weights, each once: out_features, in_features."""
    return [list(shape) for shape in dict.fromkeys(weight.shape for weight, _ in pairs)]


def scored(document: dict[str, Any], pairs: list[tuple[Stored, Stored | None]]) -> dict[str, Any]:
    """The document with the projections of these tensors in place of its own.

    A suite without a projection gets one of the formats that its linear layers have.

    Args:
        document: as ``suite.override`` returns it, with ``shapes`` as its shapes.
        pairs: as ``named_tensors`` returns them; an empty list changes nothing.

    Raises:
        SuiteError: the suite has neither linear layers nor projections.
        UsageError: a tensor holds numbers that are not finite, or nothing but zeros.
    """
    if not pairs:
        return document
    blocks = [_unquickened(block) for block in document["cases"]]
    models = [block for block in blocks if block.get("workload") == _SCORED]
    layers = [block for block in blocks if block.get("workload") == _LAYER]
    if not models and not layers:
        raise SuiteError(
            f"--weights is for suites of linear layers or projections; "
            f"{shortened(str(document.get('name')))} has neither."
        )
    models = models or [_projection(block) for block in layers]
    others = [block for block in blocks if block.get("workload") != _SCORED]
    options = [_options(*pair) for pair in pairs]
    own = [
        _about(block, each, list(weight.shape))
        for block in models
        for each, (weight, _) in zip(options, pairs, strict=True)
    ]
    return {**document, "cases": [*others, *own], "merge": True}


def _unquickened(block: dict[str, Any]) -> dict[str, Any]:
    """The block; its table ``quick`` no longer changes shape or matrix."""
    quick = block.get("quick")
    if not isinstance(quick, dict):
        return dict(block)
    return block | {"quick": {k: v for k, v in quick.items() if k not in _REPLACED}}


def _options(weight: Stored, inputs: Stored | None) -> dict[str, Any]:
    """The options of a projection that name its tensors."""
    options = {
        "matrix": "file",
        "seeds": 1,
        "weights": str(weight.path),
        "tensor": weight.name,
        "weights_hash": tensors.content(weight),
        "stored": weight.dtype,
    }
    if inputs is None:
        return options
    return options | {
        "activations": str(inputs.path),
        "activations_tensor": inputs.name,
        "activations_hash": tensors.content(inputs),
    }


def _about(block: dict[str, Any], options: dict[str, Any], shape: list[int]) -> dict[str, Any]:
    """A projection block about one tensor."""
    changed = {key: value for key, value in block.items() if key not in _REPLACED}
    if "on" in changed:
        changed["on"] = {
            kind: {key: value for key, value in axes.items() if key not in _REPLACED}
            for kind, axes in changed["on"].items()
        }
    return {**changed, **options, "shape": [shape], "dtype": ["float32"]}


def _projection(layers: dict[str, Any]) -> dict[str, Any]:
    """A projection of the formats of a block of linear layers; a kernel changes no accuracy."""
    block: dict[str, Any] = {"workload": _SCORED, "format": _formats(layers["format"])}
    here = {
        kind: {"format": _formats(axes["format"])}
        for kind, axes in layers.get("on", {}).items()
        if "format" in axes
    }
    return block | ({"on": here} if here else {})


def _formats(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    without_kernels = [{k: v for k, v in entry.items() if k != "kernel"} for entry in entries]
    return [entry for entry in without_kernels if entry.get("name") != "dense"]


def _refuse_idle(document: dict[str, Any], axes: Mapping[str, Any]) -> None:
    """Refuse an axis of timed cases where the suite times nothing: it would change nothing."""
    blocks = document.get("cases")
    if not isinstance(blocks, list) or any(
        isinstance(block, dict) and ("tokens" in block or "direction" in block) for block in blocks
    ):
        return
    idle = [f"--{name}" for name in ("shape", "tokens", "dtype") if axes.get(name)]
    if idle:
        raise UsageError(
            f"{' and '.join(idle)} would change nothing: the suite "
            f"{shortened(str(document.get('name')))} has no timed cases. Leave it out, or name "
            "another suite."
        )


def with_weights(
    document: dict[str, Any], weights: str | None, activations: Path | None, **axes: Any
) -> tuple[dict[str, Any], list[str]]:
    """The document with all axes of the command line, and a sentence on each tensor of a file.

    Raises:
        UsageError: two options name the shape, an option has no case to change, or as the
            functions above.
    """
    _refuse_idle(document, axes)
    pairs = named_tensors(weights, activations)
    if pairs and axes["shape"]:
        raise UsageError("--weights brings its own shape; leave --shape out.")
    document = suites.override(document, **axes | ({"shape": shapes(pairs)} if pairs else {}))
    return scored(document, pairs), sentences_of(pairs)
