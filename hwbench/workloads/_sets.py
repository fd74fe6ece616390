"""Data that small networks learn: of packages, and CIFAR-10 where somebody has it; no downloads."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hwbench import files

_TRAINING = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_TEST = "test_batch.bin"
_PIXELS = 3 * 32 * 32
_MOST = 1 << 26  # bytes of a file, twice those of CIFAR-10
_AT_ONCE = 1024  # inputs that are scored at once, however many there are
_SOURCE = "the binary version of https://www.cs.toronto.edu/~kriz/cifar.html"


class Data(NamedTuple):
    """Inputs and labels; the test part is the same for every seed."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor

    def to(self, where: torch.device) -> Data:
        """All of it on a device."""
        return Data(*(each.to(where) for each in self))

    def batches(self, size: int, source: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels in a random order, and then in another, without end.

        Each batch is whole: those that are left of an order and make none are passed over.

        Raises:
            ValueError: there are fewer inputs than one batch takes.
        """
        if size > len(self.x):
            raise ValueError(f"A batch of {size} cannot be taken of {len(self.x)} inputs.")
        waiting = torch.empty(0, dtype=torch.int64, device=self.x.device)
        while True:
            if len(waiting) < size:
                waiting = torch.randperm(len(self.x), generator=source, device=self.x.device)
            picked, waiting = waiting[:size], waiting[size:]
            yield self.x[picked], self.y[picked]

    def score(self, network: nn.Module) -> float:
        """The accuracy on the test part."""
        with torch.no_grad():
            each = [network(x).argmax(-1) for x in self.x_test.split(_AT_ONCE)]
        return float((torch.cat(each) == self.y_test).double().mean())


DIGITS, MNIST1D = 1438, 4000
"""Inputs of each that are trained on."""


def digits() -> Data:
    """scikit-learn's handwritten digits, 1797 pictures of 8 × 8; every fifth is for the test."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    y = torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    cut = len(x) // 5
    return Data(x[order[cut:]], y[order[cut:]], x[order[:cut]], y[order[:cut]])


def mnist1d() -> Data:
    """MNIST-1D as its package generates it: 4000 and 1000 sequences of 40 values.

    Greydanus and Kobak, Scaling Down Deep Learning with MNIST-1D, 2024, arXiv:2011.14439.
    """
    from mnist1d.data import make_dataset

    dataset = make_dataset()
    x, x_test = (torch.tensor(dataset[name], dtype=torch.float32) for name in ("x", "x_test"))
    return Data(x, torch.tensor(dataset["y"]), x_test, torch.tensor(dataset["y_test"]))


def no_cifar10(folder: Path) -> str | None:
    """Why the folder holds no CIFAR-10, in words; None where it does."""
    if folder == Path():
        return f"CIFAR-10 is read from a folder of yours, given with --data: {_SOURCE}."
    for name in (*_TRAINING, _TEST):
        if not (folder / name).is_file():
            return f"{folder} holds no {name}; it should be {_SOURCE}."
        size = (folder / name).stat().st_size
        if size == 0 or size % (1 + _PIXELS):
            return f"{folder / name} is damaged: {size} bytes are no whole records of 3073."
        if size > _MOST:
            return f"{folder / name} has {size} bytes; a file of CIFAR-10 has 30730000."
        if reason := _strange(folder / name, (folder / name).stat().st_mtime_ns):
            return reason
    return None


@lru_cache(maxsize=16)
def _strange(path: Path, changed: int) -> str | None:
    """Whether the labels of a file are not those of CIFAR-10, in words."""
    del changed
    labels = np.memmap(files.regular(path), dtype=np.uint8, mode="r")[:: 1 + _PIXELS]
    if (largest := int(labels.max())) > 9:
        return f"{path} has the label {largest}; CIFAR-10 has 0 to 9."
    if len(labels) > 1 and int(labels.min()) == largest:
        return f"{path} has the label {largest} alone, which teaches nothing."
    return None


def pictures(folder: Path) -> int:
    """The pictures of CIFAR-10 that are trained on; ask ``no_cifar10`` first."""
    return sum((folder / name).stat().st_size for name in _TRAINING) // (1 + _PIXELS)


def cifar10(folder: Path) -> Data:
    """CIFAR-10 in its binary version: uint8 of 0 to 255, (pictures, 3, 32, 32), and labels.

    Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. A file is a row of
    records, a byte of label and 3 × 32 × 32 bytes of picture. (The version for Python is pickled,
    and reading a pickle runs it.) Ask ``no_cifar10`` first.

    Raises:
        ValueError: a label is not one of the ten.
    """
    each_file = [_records(folder / name) for name in _TRAINING]
    x, y = (torch.cat(each) for each in zip(*each_file, strict=True))
    return Data(x, y, *_records(folder / _TEST))


def _records(path: Path) -> tuple[Tensor, Tensor]:
    records = torch.from_numpy(np.fromfile(files.regular(path, _MOST), dtype=np.uint8)).view(
        -1, 1 + _PIXELS
    )
    if reason := _strange(path, path.stat().st_mtime_ns):
        raise ValueError(reason)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].long()
