"""Models of a folder in Hugging Face's layout, through ``transformers``: what their kinds share.

Weights are read by safetensors, code of the folder is never run, and nothing is downloaded. A model
whose files lack a weight is refused: transformers itself would go on with a random one.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from hwbench import files
from hwbench.errors import UsageError, shortened
from hwbench.workloads._models import (
    MOST_TOKENS,
    Model,
    check_tokens,
    kept_while_unchanged,
    not_finite,
    padded,
    quantised,
)

_LOCAL = {"local_files_only": True, "trust_remote_code": False}


class Pretrained(Model):
    """A model that one of the automatic classes of ``transformers`` makes."""

    PREFIX = "model."

    AUTO: ClassVar[str]
    """The automatic class."""

    UNUSED: ClassVar[tuple[str, ...]] = ()
    """Parts that the judged outputs do not depend on; they are taken out, and may be absent."""

    def __init__(self, model: Any, folder: Path) -> None:
        super().__init__()
        self.model = model
        for name in self.UNUSED:
            if isinstance(getattr(model, name, None), nn.Module):
                setattr(model, name, nn.Identity())
        self.transposed = _make_linear(model)

    def linears(self) -> dict[str, nn.Linear]:
        """The linear layers by the name that they have in the model of the automatic class."""
        head = self.model.get_output_embeddings()
        return {
            name: each
            for name, each in self.model.named_modules()
            if isinstance(each, nn.Linear) and each is not head
        }

    def vocabulary(self) -> int:
        return int(self.model.config.vocab_size)

    @classmethod
    def unreadable(cls, folder: Path) -> str | None:
        return _unreadable(cls, folder)

    @classmethod
    def load(cls, folder: Path) -> Self:
        model, info = _loaded(cls, folder, str(folder), use_safetensors=True, **_LOCAL)
        _check_whole(cls, folder, info)
        return cls(model, folder).eval().requires_grad_(False)

    @classmethod
    def weight_files(cls, folder: Path) -> list[Path]:
        return _weights(folder)

    @classmethod
    def shapes(cls, folder: Path) -> list[tuple[int, int]]:
        return _shapes(cls, folder)

    @classmethod
    def tokens(cls, folder: Path, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        most = _most_tokens(_blank(cls, folder))
        return padded(
            _tokenizer(folder)(list(texts), truncation=True, max_length=most)["input_ids"]
        )


@kept_while_unchanged(4)
def _unreadable(kind: type[Pretrained], folder: Path) -> str | None:
    try:
        if not _shapes(kind, folder):
            return f"{folder} holds a model without linear layers."
        check_tokens(kind, folder, _vocabulary(_blank(kind, folder).config, folder))
        _, info = _loaded(kind, folder, None, state_dict=_outlines(folder))
        _check_whole(kind, folder, info)
        return quantised(*_weights(folder)) or not_finite(*_weights(folder))
    except UsageError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 (the boundary: others' code reads others' files)
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"transformers cannot read {folder}: {shortened(why, 160)}"


@kept_while_unchanged(4)
def _blank(kind: type[Pretrained], folder: Path) -> Any:
    """The model as its configuration describes it, on the meta device: it holds no weights.

    Raises:
        UsageError: it is a model that ``compress`` has no score for, or its weights are quantised.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, **_LOCAL)
    if getattr(config, "is_encoder_decoder", False):
        raise UsageError(
            f"{folder} holds an encoder-decoder of type {shortened(repr(config.model_type))}; "
            "encoders and causal models can be read."
        )
    if getattr(config, "quantization_config", None):
        raise UsageError(
            f"{folder} holds quantised weights; those of a whole precision can be read."
        )
    with torch.device("meta"):
        automatic = getattr(transformers, kind.AUTO)
        return automatic.from_config(config, trust_remote_code=False)


@kept_while_unchanged(4)
def _shapes(kind: type[Pretrained], folder: Path) -> list[tuple[int, int]]:
    layers = kind(copy.deepcopy(_blank(kind, folder)), folder).linears().values()
    return [(each.out_features, each.in_features) for each in layers]


def _loaded(
    kind: type[Pretrained], folder: Path, source: str | None, **arguments: Any
) -> tuple[Any, dict[str, Any]]:
    """The model in float32 from files or a ``state_dict``, and the names of absent tensors."""
    blank = _blank(kind, folder)
    return type(blank).from_pretrained(
        source,
        config=blank.config,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **arguments,
    )


def _outlines(folder: Path) -> dict[str, Tensor]:
    """The stored weights by name, in their shapes; one zero stands for all values of each."""
    from safetensors import safe_open

    tensors = {}
    for path in _weights(folder):
        with safe_open(files.regular(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                tensors[name] = torch.zeros(()).expand(file.get_slice(name).get_shape())
    return tensors


def _weights(folder: Path) -> list[Path]:
    """The files of the weights: one, or those that the index names.

    Raises:
        UsageError: the index names a file that is not in the folder.
    """
    whole = folder / "model.safetensors"
    if whole.is_file():
        return [whole]
    index = json.loads(files.read_text(folder / "model.safetensors.index.json"))
    parts = sorted({str(part) for part in index["weight_map"].values()})
    if outside := next((each for each in parts if Path(each).name != each), None):
        what = shortened(repr(outside))
        raise UsageError(f"The index of {folder} names {what}, which is no file of the folder.")
    return [folder / each for each in parts]


def _check_whole(kind: type[Pretrained], folder: Path, info: dict[str, Any]) -> None:
    """Whether every weight was there, in its shape, but for those of unused parts.

    Weights that are tied to others, and buffers that are computed, transformers counts as there.

    Raises:
        UsageError: one is absent or has another shape.
    """
    absent, other = (
        sorted(name for name in names if name.partition(".")[0] not in kind.UNUSED)
        for names in (info["missing_keys"], [each[0] for each in info["mismatched_keys"]])
    )
    if not absent and not other:
        return
    what = f"lack {absent[0]}" if absent else f"hold {other[0]} in another shape"
    more = len(absent) + len(other) - 1
    raise UsageError(
        f"The weights in {folder} {what}" + (f", and {more} more are like that." if more else ".")
    )


def _vocabulary(config: Any, folder: Path) -> int:
    """How many tokens a configuration knows.

    Raises:
        UsageError: it is that of a model which reads something else.
    """
    size = getattr(config, "vocab_size", None)
    if not isinstance(size, int):
        what = shortened(repr(config.model_type))
        raise UsageError(f"{folder} holds a model of type {what}, which reads no text.")
    return size


@kept_while_unchanged(4)
def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, **_LOCAL)


def _most_tokens(blank: Any) -> int:
    """How many tokens of a text are read: as many as the model has places for, and not too many.

    Types that number their places from behind the padding token's have that many fewer.
    """
    places = getattr(blank.config, "max_position_embeddings", None) or 0
    for name, each in blank.named_modules():
        if name.endswith("position_embeddings") and isinstance(each, nn.Embedding):
            before = -1 if each.padding_idx is None else each.padding_idx
            places = each.num_embeddings - before - 1
    return min(MOST_TOKENS, places) if places > 0 else MOST_TOKENS


def _make_linear(model: nn.Module) -> frozenset[str]:
    """Replace transformers' Conv1D, which stores its weight transposed, by torch's Linear.

    Returns:
        The names of the layers that were replaced.
    """
    from transformers.pytorch_utils import Conv1D

    names = set()
    for name, each in list(model.named_modules()):
        if isinstance(each, Conv1D):
            rows, columns = each.weight.shape[1], each.weight.shape[0]
            linear = nn.Linear(columns, rows, device="meta")
            linear.weight = nn.Parameter(each.weight.detach().t().contiguous())
            linear.bias = nn.Parameter(each.bias.detach())
            model.set_submodule(name, linear)
            names.add(name)
    return frozenset(names)
