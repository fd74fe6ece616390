"""Projected layers of a model on disk, block by block, while their case has no score yet.

A case that is cut off goes on at the first block that it had not projected. The layers lie in the
user's cache folder, as safetensors and the knobs that make a layer of them; nothing read is
executed. With the score the folder of a case is removed, and of cases that nobody came back to the
last few are kept. Where safetensors is not installed nothing is kept.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hwbench import checkpoints, files
from hwbench.errors import RunFileError, UsageError
from hwbench.formats._base import Linear
from hwbench.workloads import _converted

OTHERS = 3
"""Cases beside this one whose blocks stay."""
_DESCRIPTION = "told"  # the tensor that holds a block's description, as JSON
_DAMAGED = (OSError, RuntimeError, ValueError, LookupError, TypeError)
"""The errors of reading a file that is damaged, or that another version wrote."""

Layers = dict[str, Linear]
"""The layers of a block, by their names in the model."""


class Kept:
    """The blocks of one case.

    Args:
        folder: where they lie; its name is made of all that decides their values.
        where: the device of the layers.
    """

    def __init__(self, folder: Path, where: torch.device) -> None:
        self.folder, self.where = folder, where
        self.possible = checkpoints.no_package("safetensors") is None
        self.earlier = 0.0
        """Seconds of projecting the blocks that an earlier try left."""
        others = [each for each in folder.parent.glob("*") if each != folder]
        for other in sorted(others, key=_written)[:-OTHERS]:
            shutil.rmtree(other, ignore_errors=True)

    def block(self, name: str, make: Callable[[], Layers]) -> Layers:
        """The layers of a block: read from its file, or made now and then kept.

        Where the folder cannot be written the layers are made all the same.
        """
        if not self.possible:
            return make()
        file = self.folder / f"{name}.safetensors"
        if kept := self._read(file):
            return kept
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
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            stored = load_file(files.regular(file))
            description = json.loads(stored[_DESCRIPTION].numpy().tobytes())
            layers = {
                name: self._layer(name, each, stored)
                for name, each in description["layers"].items()
            }
            self.earlier += float(description["seconds"])
        except (*_DAMAGED, SafetensorError, UsageError):
            return None
        return layers

    def _layer(self, name: str, entry: dict[str, Any], stored: Mapping[str, Tensor]) -> Linear:
        layer = _converted.empty(name, entry["made"])
        learns = {each: value.requires_grad for each, value in layer.named_parameters()}
        values = {each: stored[f"{name}/{each}"].to(self.where) for each in entry["values"]}
        layer.load_state_dict(values, assign=True)
        for each, value in layer.named_parameters():
            value.requires_grad_(learns[each])
        return layer

    def remove(self) -> None:
        """Give the room back."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _packed(layers: Layers, seconds: float) -> bytes:
    """The layers as safetensors; one more tensor holds their description, as JSON."""
    from safetensors.torch import save

    tensors, descriptions = {}, {}
    for name, layer in layers.items():
        state = layer.state_dict()
        descriptions[name] = {"made": _converted.described(name, layer), "values": list(state)}
        for each, value in state.items():
            tensors[f"{name}/{each}"] = value.detach().cpu().contiguous()
    text = json.dumps({"seconds": seconds, "layers": descriptions}).encode()
    return bytes(
        save({**tensors, _DESCRIPTION: torch.frombuffer(bytearray(text), dtype=torch.uint8)})
    )


def _written(folder: Path) -> float:
    """When something was last written into a folder; 0 for one that has just been removed."""
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0
