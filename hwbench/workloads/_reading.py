"""The model that a case names: its folder, the class that reads it, and its layers' inputs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from hwbench import checkpoints as models
from hwbench.errors import UsageError
from hwbench.workloads import _distill, _texts, _trained
from hwbench.workloads._bert import Bert
from hwbench.workloads._causal import Causal
from hwbench.workloads._encoder import Encoder
from hwbench.workloads._models import Model, State, kept_while_unchanged, state

_READERS: dict[str, type[Model]] = {
    models.BERT: Bert,
    models.ENCODER: Encoder,
    models.CAUSAL: Causal,
}
_SHARE = 0.75  # of the texts belong to one seed


def folder(model: str) -> Path:
    """The folder of a model as a run stores it; empty stands for all-MiniLM-L6-v2."""
    return models.folder(model) if model else _trained.folder()


def reader(directory: Path) -> type[Model]:
    """The class that reads the model of this folder."""
    return _READERS[models.kind(directory)]


def unreadable(model: str) -> str | None:
    """Why a model cannot be read on this machine, in words; None where it can."""
    if not model:
        return _trained.missing() or models.no_package("tokenizers")
    try:
        directory = folder(model)
    except UsageError as error:  # no such folder or name on this machine
        return str(error)
    return (
        models.unreadable(directory)
        or models.missing(directory)
        or reader(directory).unreadable(directory)
    )  # fmt: skip


def no_outputs(folder: Path) -> str | None:
    """Why the model of a folder has no outputs to compare in healing, in words; None where it has.

    Ask ``unreadable`` first. The weights of a model that predicts the next token are read for it.
    """
    return _loaded(folder).no_outputs() if reader(folder) is Causal else None


def drawn(texts: list[str], seed: int) -> list[str]:
    """The texts of a seed, in their order."""
    source = torch.Generator().manual_seed(seed)
    count = round(_SHARE * len(texts))
    picked = torch.randperm(len(texts), generator=source)[:count]
    return [texts[i] for i in sorted(picked.tolist())]


def read(model: str, text: str = _texts.SENTENCES) -> tuple[Model, dict[str, Tensor]]:
    """A model in float32 on the CPU, and each linear layer's inputs on the calibration texts.

    Args:
        model: as a run stores it.
        text: which of ``_texts.TEXTS``.

    Returns:
        The model, and (rows, in_features) by the name of the layer; a layer that nothing passes
        through has none.
    """
    return _read(text, folder(model))


def now(model: str) -> State:
    """What the folder of a model holds now, for a key of what is kept of it."""
    return state(folder(model))


def loaded(model: str) -> Model:
    """A model in float32 on the CPU, as a run stores it."""
    return _loaded(folder(model))


@kept_while_unchanged(1)
def _loaded(directory: Path) -> Model:
    return reader(directory).load(directory)


@kept_while_unchanged(1)
def _read(text: str, directory: Path) -> tuple[Model, dict[str, Tensor]]:
    batch = reader(directory).tokens(directory, _texts.calibration(text))
    model = _loaded(directory)
    return model, _distill.activations(model, *batch)


def last_states(model: str, text: str = _texts.SENTENCES) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and mask of the texts that judge, (texts, tokens), and the model's last states there.

    Returns:
        Ids, mask, and (tokens that are none of padding, hidden).
    """
    return _last_states(text, folder(model))


@kept_while_unchanged(1)
def _last_states(text: str, directory: Path) -> tuple[Tensor, Tensor, Tensor]:
    ids, mask = reader(directory).tokens(directory, _texts.judged(text))
    with torch.no_grad():
        return ids, mask, _loaded(directory).states(ids, mask)[-1][mask]
