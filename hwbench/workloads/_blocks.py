"""Projected layers of a model on disk, block by block, while their case has no score yet.

A case that is cut off goes on at the first block that it had not projected. The layers lie in the
user's cache folder, as plain arrays and the knobs that make a layer of them; nothing read is
executed. With the score the folder of a case is removed, and of cases that nobody came back to the
last few are kept.
"""

from __future__ import annotations

import io
import json
import shutil
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwbench import files
from hwbench.errors import RunFileError, UsageError
from hwbench.formats._base import Linear
from hwbench.workloads import _converted

OTHERS = 3
"""Cases beside this one whose blocks stay."""
_MOST = 1 << 32  # bytes of a block
_TOLD = "told"
_DAMAGED = (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, zipfile.BadZipFile)
"""What reading raises where a file is damaged, or of a format that has changed."""

Layers = dict[str, Linear]
"""The layers of a block, by their names in the model."""


class Kept:
    """The blocks of one case.

    Args:
        folder: where they lie; its name stands for all that they follow from.
        where: the device of the layers.
    """

    def __init__(self, folder: Path, where: torch.device) -> None:
        self.folder, self.where = folder, where
        self.earlier = 0.0
        """Seconds that the blocks took that an earlier try had projected."""
        others = [each for each in folder.parent.glob("*") if each != folder]
        for other in sorted(others, key=_written)[:-OTHERS]:
            shutil.rmtree(other, ignore_errors=True)

    def block(self, name: str, make: Callable[[], Layers]) -> Layers:
        """The layers of a block: as they are kept, or made now and then kept.

        Where the folder cannot be written the layers are made all the same.
        """
        file = self.folder / f"{name}.npz"
        if found := self._read(file):
            return found
        begun = time.perf_counter()
        layers = make()
        data = _packed(layers, time.perf_counter() - begun)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            files.write(file, data)
        except (OSError, RunFileError):
            shutil.rmtree(self.folder, ignore_errors=True)  # a full disk gets its room back
        return layers

    def _read(self, file: Path) -> Layers | None:
        """None where there is no file, or one that cannot be read."""
        try:
            held = np.load(io.BytesIO(files.read(file, _MOST)), allow_pickle=False)
            told = json.loads(held[_TOLD].tobytes())
            found = {name: self._layer(name, each, held) for name, each in told["layers"].items()}
            self.earlier += float(told["seconds"])
        except (*_DAMAGED, UsageError):
            return None
        return found

    def _layer(self, name: str, told: dict[str, Any], held: Mapping[str, Any]) -> Linear:
        layer = _converted.empty(name, told["made"])
        learns = {each: value.requires_grad for each, value in layer.named_parameters()}
        values = {
            each: _tensor(held[f"{name}/{each}"], *kind).to(self.where)
            for each, kind in told["values"].items()
        }
        layer.load_state_dict(values, assign=True)
        for each, value in layer.named_parameters():
            value.requires_grad_(learns[each])
        return layer

    def remove(self) -> None:
        """Give the room back."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _packed(layers: Layers, seconds: float) -> bytes:
    """The layers as an archive of arrays of bytes, one of which is JSON and tells of the others."""
    arrays, told = {}, {}
    for name, layer in layers.items():
        state = layer.state_dict()
        told[name] = {
            "made": _converted.described(name, layer),
            "values": {each: [str(v.dtype)[6:], list(v.shape)] for each, v in state.items()},
        }
        for each, value in state.items():
            flat = value.detach().cpu().contiguous().reshape(-1)
            arrays[f"{name}/{each}"] = flat.view(torch.uint8).numpy()
    text = json.dumps({"seconds": seconds, "layers": told}).encode()
    held = io.BytesIO()
    np.savez(held, allow_pickle=False, **{_TOLD: np.frombuffer(text, np.uint8)}, **arrays)
    return held.getvalue()


def _tensor(values: Any, dtype: str, shape: list[int]) -> Tensor:
    kind = getattr(torch, dtype)
    if not isinstance(kind, torch.dtype):
        raise TypeError(f"{dtype} is no dtype.")
    found = torch.empty(shape, dtype=kind)
    found.reshape(-1).view(torch.uint8).copy_(torch.from_numpy(values.copy()))
    return found


def _written(folder: Path) -> float:
    """When something was last written into a folder; 0 for one that has just been removed."""
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0
