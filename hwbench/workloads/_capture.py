"""What the linear layers of a model see of a text, as a file that ``run --activations`` takes."""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from hwbench import checkpoints, files
from hwbench.checkpoints import tensors
from hwbench.errors import MissingPartError, UsageError, shortened
from hwbench.workloads import _distill, _reading
from hwbench.workloads._models import Model

ROWS = 4096
_CHARACTERS = 1 << 14  # of a line: only 128 tokens are used, and tokenizing more would take long
_TEXTS = 16  # lines that pass through the model at once


def capture(
    model: str, texts: str | Path, out: str | Path, *, layers: str = "*", rows: int = ROWS
) -> dict[str, tuple[int, int]]:
    """Write what each linear layer of a model sees at the tokens of a text.

    Args:
        model: a folder in Hugging Face's layout, or a name on its Hub.
        texts: a file with a text a line; long ones are cut off at 128 tokens.
        out: the safetensors file: float32, (rows, in_features), by the name that the weight has in
            the model's file.
        layers: a pattern of names of weights; only these are written.
        rows: the most tokens of each layer.

    Returns:
        The shapes that were written, by name.

    Raises:
        UsageError: the model or the text cannot be read, no layer matches, the model's files hold
            no weight of a layer or hold it transposed, a layer sees what is no number, or the file
            cannot be written.
        MissingPartError: a package is missing that the model is read with.
    """
    if reason := checkpoints.no_package("safetensors"):
        raise MissingPartError(reason)
    texts, out = files.named(texts), files.named(out)
    lines = _lines(texts)
    folder = checkpoints.folder(checkpoints.fetched(model))
    files.refuse_inputs([out], [texts, folder])
    files.check_replaceable(out)
    kind = _reading.reader(folder)
    if reason := kind.unreadable(folder):
        raise UsageError(reason)
    loaded = kind.load(folder)
    stored = {
        name: each
        for path in kind.weight_files(folder)
        for name, each in tensors.header(path).items()
    }
    names = _names(stored, loaded)
    selected = {ours: name for ours, name in names.items() if fnmatch.fnmatchcase(name, layers)}
    if not selected:
        raise UsageError(
            f"No linear layer matches {shortened(layers)!r}; there are such as "
            f"{', '.join(list(names.values())[:3])}."
        )
    _check_stored(selected, stored, loaded)
    captured: dict[str, list[Tensor]] = defaultdict(list)
    rows_of: dict[str, int] = defaultdict(int)
    for start in range(0, len(lines), _TEXTS):
        ids, mask = kind.tokens(folder, lines[start : start + _TEXTS])
        for ours, inputs in _distill.activations(loaded, ids, mask).items():
            if ours in selected and rows_of[ours] < rows:
                captured[ours].append(inputs[: rows - rows_of[ours]].float().contiguous().clone())
                rows_of[ours] += len(captured[ours][-1])
        if all(rows_of[ours] >= rows for ours in selected):
            break
    return _written({selected[ours]: torch.cat(parts) for ours, parts in captured.items()}, out)


def _lines(texts: Path) -> list[str]:
    try:
        lines = [x[:_CHARACTERS] for x in files.read_text(texts).splitlines() if x.strip()]
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise UsageError(f"{texts} cannot be read: {why}.") from error
    if not lines:
        raise UsageError(f"{texts} holds no text; give a file with a text a line.")
    return lines


def _names(stored: Collection[str], loaded: Model) -> dict[str, str]:
    """The name in the model's files of the weight of each layer; its own where they have none.

    A class may put its weights below a further name, or leave one out: then the one ends as the
    other does.
    """
    names = {}
    for ours in loaded.linears():
        weight = f"{ours}.weight"
        same = [each for each in stored if each == weight] or [
            each for each in stored if each.endswith(f".{weight}") or weight.endswith(f".{each}")
        ]
        names[ours] = same[0] if len(same) == 1 else weight
    return names


def _check_stored(
    selected: Mapping[str, str], stored: Mapping[str, tensors.Stored], loaded: Model
) -> None:
    """Whether these layers multiply by the weights of these names, as the files hold them.

    Raises:
        UsageError: there is no such weight, it is that of two layers, or it is transposed.
    """
    linears, layer_of = loaded.linears(), dict[str, str]()
    for ours, name in selected.items():
        linear = linears[ours]
        shape = (linear.out_features, linear.in_features)
        if name not in stored or layer_of.setdefault(name, ours) != ours:
            raise UsageError(
                f"The files of the model hold no tensor that is the weight of {ours} alone; leave "
                "the layer out with --layers."
            )
        sides, wanted = ("×".join(map(str, each)) for each in (stored[name].shape, shape))
        if ours in loaded.transposed:
            raise UsageError(
                f"{name} is stored transposed, as in_features×out_features ({sides}), and hwbench "
                "run takes it for out_features×in_features: it would score another layer. hwbench "
                "choose reads such a model as it is."
            )
        if stored[name].shape != shape:
            raise UsageError(
                f"{name} is stored as {sides}, and its layer multiplies by a matrix of {wanted}; "
                "leave the layer out with --layers."
            )


def _written(captured: dict[str, Tensor], out: Path) -> dict[str, tuple[int, int]]:
    from safetensors.torch import save

    for name, values in captured.items():
        if not bool(torch.isfinite(values).all()):
            raise UsageError(f"{shortened(name)} sees numbers that are not finite.")
    if not captured:
        raise UsageError("Nothing passes through the layers that are asked for.")
    files.write(out, save(captured))
    return {name: (values.shape[0], values.shape[1]) for name, values in captured.items()}
