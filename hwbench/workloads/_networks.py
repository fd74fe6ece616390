"""Two small networks whose inner linear layers are in a format, and the data that they learn.

The first and the last layer stay dense: they have as many inputs or outputs as the data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (the name that everybody knows)
from torch import Tensor, nn

from hwbench.models import no_package

Make = Callable[[int, int], nn.Module]
"""(out_features, in_features) → a layer in the format."""


class Data(NamedTuple):
    """Inputs, float32, and labels; the test part is the same for every seed."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


class Perceptron(nn.Module):
    """(batch, 40) → (batch, 10): a dense layer, three square ones in the format, a dense one."""

    def __init__(self, width: int, make: Make) -> None:
        super().__init__()
        self.first = nn.Linear(40, width)
        self.inner = nn.ModuleList([make(width, width) for _ in range(3)])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.last = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = F.gelu(self.first(x))
        for norm, layer in zip(self.norms, self.inner, strict=True):
            x = x + F.gelu(layer(norm(x)))
        return self.last(x)


class Vision(nn.Module):
    """(batch, 8, 8) → (batch, 10): a vision transformer of two blocks on 16 patches of 2 × 2."""

    def __init__(self, width: int, make: Make, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.places = nn.Parameter(torch.zeros(16, width))
        self.blocks = nn.ModuleList([_Block(width, make, heads) for _ in range(2)])
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        patches = x.unflatten(1, (4, 2)).unflatten(3, (4, 2)).transpose(2, 3).reshape(-1, 16, 4)
        x = self.embed(patches) + self.places
        for block in self.blocks:
            x = block(x)
        return self.last(self.norm(x).mean(1))


class _Block(nn.Module):
    def __init__(self, width: int, make: Make, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (make(width, width) for _ in range(4))
        self.up, self.down = make(2 * width, width), make(width, 2 * width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) → the same."""
        seen = self.norms[0](x)
        q, k, v = (
            layer(seen).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


def digits() -> Data:
    """scikit-learn's handwritten digits, 1797 pictures of 8 × 8; every fifth is for the test."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 8, 8) / 8 - 1
    y = torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    cut = len(x) // 5
    return Data(x[order[cut:]], y[order[cut:]], x[order[:cut]], y[order[:cut]])


def mnist1d() -> Data:
    """MNIST-1D as its package generates it: 4000 and 1000 sequences of 40 values.

    Greydanus and Kobak, Scaling Down Deep Learning with MNIST-1D, 2024, arXiv:2011.14439.
    """
    from mnist1d.data import make_dataset

    made = make_dataset()
    x, x_test = (torch.tensor(made[name], dtype=torch.float32) for name in ("x", "x_test"))
    return Data(x, torch.tensor(made["y"]), x_test, torch.tensor(made["y_test"]))


class Task(NamedTuple):
    """A network, its data, the package that brings the data, and the rate of a dense layer."""

    network: Callable[[int, Make], nn.Module]
    data: Callable[[], Data]
    package: str
    layers: Callable[[int], list[tuple[int, int]]]  # the shapes of the layers in the format

    def missing(self) -> str | None:
        """Why there is no data here, in words."""
        return no_package(self.package)


TASKS = {
    "digits": Task(
        Vision, digits, "sklearn", lambda w: ([(w, w)] * 4 + [(2 * w, w), (w, 2 * w)]) * 2
    ),
    "mnist1d": Task(Perceptron, mnist1d, "mnist1d", lambda w: [(w, w)] * 3),
}
"""``digits`` trains the vision transformer, ``mnist1d`` the perceptron."""
