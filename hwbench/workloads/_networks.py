"""Small networks whose inner linear layers are in a format, and the block that they are built of.

The first and the last layer stay dense: they have as many inputs or outputs as the data.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 (the name that everybody knows)
from torch import Tensor, nn

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
        x = F.gelu(self.first(x.to(self.first.weight.dtype)))
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
        self.blocks = nn.ModuleList([Block(width, make, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        patches = x.unflatten(2, self.cut).unflatten(4, self.cut).permute(0, 2, 4, 1, 3, 5)
        x = self.embed(patches.flatten(3).flatten(1, 2).to(self.places.dtype)) + self.places
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


class Block(nn.Module):
    """Attention and a feed-forward part, each normalised before and added to its input.

    The weights of ``out`` and ``down``, which make the added parts, are multiplied by ``scale``
    once they are drawn.
    """

    def __init__(
        self,
        width: int,
        make: Make,
        heads: int,
        *,
        wider: int = 2,
        causal: bool = False,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.heads, self.causal, self.scale = heads, causal, scale
        self.query, self.key, self.value, self.out = (make(width, width) for _ in range(4))
        self.up, self.down = make(wider * width, width), make(width, wider * width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) → the same."""
        normed = self.norms[0](x)
        q, k, v = (
            layer(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))
