"""Small networks whose inner linear layers are in a format, by the task that each learns.

The first and the last layer stay dense: they have as many inputs or outputs as the data.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (the name that everybody knows)
from torch import Tensor, nn

from hwbench.models import no_package
from hwbench.workloads import _sets

Make = Callable[[int, int], nn.Module]
"""(out_features, in_features) → a layer in the format."""


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
    """(batch, channels, side, side) → (batch, 10): a vision transformer on square patches."""

    def __init__(
        self,
        width: int,
        make: Make,
        *,
        side: int = 8,
        channels: int = 1,
        patch: int = 2,
        depth: int = 2,
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.cut = (side // patch, patch)
        self.embed = nn.Linear(channels * patch * patch, width)
        self.places = nn.Parameter(torch.zeros(self.cut[0] ** 2, width))
        self.blocks = nn.ModuleList([_Block(width, make, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        patches = x.unflatten(2, self.cut).unflatten(4, self.cut).permute(0, 2, 4, 1, 3, 5)
        x = self.embed(patches.flatten(3).flatten(1, 2)) + self.places
        for block in self.blocks:
            x = block(x)
        return self.last(self.norm(x).mean(1))


class Photographs(Vision):
    """(batch, 3, 32, 32) of 0 to 255 → (batch, 10): four blocks on 64 patches of 4 × 4."""

    def __init__(self, width: int, make: Make) -> None:
        super().__init__(width, make, side=32, channels=3, patch=4, depth=4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return super().forward(x / 127.5 - 1)


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


class Task(NamedTuple):
    """A network, its data, and where the data comes from: a package, or a folder of the user's."""

    network: Callable[[int, Make], nn.Module]
    layers: Callable[[int], list[tuple[int, int]]]  # the shapes of the layers in the format
    data: Callable[[Path], _sets.Data]
    missing: Callable[[Path], str | None]  # why there is no data here, in words
    from_folder: bool = False


def _transformer(depth: int) -> Callable[[int], list[tuple[int, int]]]:
    return lambda w: ([(w, w)] * 4 + [(2 * w, w), (w, 2 * w)]) * depth


def _packaged(data: Callable[[], _sets.Data], package: str) -> dict[str, Any]:
    return {"data": lambda _: data(), "missing": lambda _: no_package(package)}


TASKS = {
    "digits": Task(Vision, _transformer(2), **_packaged(_sets.digits, "sklearn")),
    "mnist1d": Task(Perceptron, lambda w: [(w, w)] * 3, **_packaged(_sets.mnist1d, "mnist1d")),
    "cifar10": Task(Photographs, _transformer(4), _sets.cifar10, _sets.no_cifar10, True),
}
"""``digits`` and ``cifar10`` train vision transformers, ``mnist1d`` the perceptron."""
