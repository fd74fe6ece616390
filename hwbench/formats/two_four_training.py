"""2:4 sparsity in both directions, pruned and packed anew in every step of training.

Every 4x4 tile keeps two weights of each row and of each column, so that the forward product and the
gradient of x both run on sparse tensor cores. CUDA only; projection and ``to_dense`` work
everywhere. Kernels: ``compress`` finds the best tiles and packs the pruned weight and its
transpose; ``static_sort`` is torch's fused, greedy prune-and-pack.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT

from hwbench.errors import KnobError, UsageError
from hwbench.formats import _two_four
from hwbench.formats._base import Format, Linear, by_direction
from hwbench.formats._entries import executed, scores
from hwbench.formats._linear import InnerWeight
from hwbench.formats._probe import tried

NO_CPU_KERNEL = (
    "2:4 training packs its weight for the sparse tensor cores of CUDA devices of compute "
    "capability 8.0 or newer; on the CPU the format can be projected onto, but not run."
)

TILES_AT_ONCE = 2**18  # tiles whose ninety candidates are compared at a time: 90 MiB


class _Map(InnerWeight):
    def __init__(self, spec: TwoFourTraining, weight: Tensor) -> None:
        super().__init__(spec.out_features, spec.in_features)
        self.kernel: Pruning = spec.pruning()
        self.narrow = weight.dtype  # a copy in float64 is pruned as this layer is
        # (out, in), all of it: what is kept may change
        self.register_parameter("weight", nn.Parameter(weight))

    def to_dense(self) -> Tensor:
        """The pruned weight."""
        weight = self.inner.detach()
        return self.inner * self.kernel.kept(weight, self.narrow)


class _Product(torch.autograd.Function):
    """y and dx from packed weights, pruned in the forward pass; dW of a dense product, masked."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, kernel: Pruning) -> Tensor:
        x, weight = x.detach().contiguous(), weight.detach()
        ahead, ctx.back, keep = kernel.prune(weight, ctx.needs_input_grad[0])
        # The tensors of what is packed are saved beside it: who counts what is saved sees them.
        ctx.save_for_backward(x, keep, *([] if ctx.back is None else _two_four.parts(ctx.back)))
        ctx.kernel = kernel
        return functional.linear(x, ahead).contiguous()  # it may be a view of yᵀ, see _two_four

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, keep, *_ = ctx.saved_tensors
        x_needs, weight_needs, _ = ctx.needs_input_grad
        dy = dy.contiguous()
        dx = functional.linear(dy, ctx.back).contiguous() if x_needs else None
        dweight = ctx.kernel.masked(dy.t() @ x, keep) if weight_needs else None
        return dx, dweight, None


@dataclass(frozen=True, kw_only=True)
class TwoFourTraining(Format):
    """A dense weight of which every 4x4 tile keeps two entries of each row and each column.

    Stored is the dense weight; gradients reach what is kept of it. What is packed, 9/16 of its
    bytes in each direction, lasts for one step: of ``compress`` the transpose is kept for the
    backward pass, of ``static_sort`` both.
    """

    PAPER = "Hubara et al., Accelerated sparse neural training: transposable masks, 2021"
    OUTPUTS = "factors"

    revision: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out_features % 4 or self.in_features % 4:
            raise KnobError(
                f"two_four_training works on tiles of 4x4, and {self.out_features}x"
                f"{self.in_features} does not divide into them; multiples of 4 would fit."
            )

    def smallest_words(self) -> str:
        return "it keeps eight of every sixteen (density 0.5)"

    def pruning(self) -> Pruning:
        """The kernel, as what prunes the weight."""
        kernel = self.implementation
        assert isinstance(kernel, Pruning)
        return kernel

    def parameters(self) -> int:
        return self.out_features * self.in_features // 2

    def stored_bytes(self, item_bytes: int) -> int:
        return self.out_features * self.in_features * item_bytes

    def flops(self, tokens: int, direction: str) -> int:
        """Half of the dense products, except for the gradient of the weight, which is dense."""
        return executed(tokens, self.parameters(), self.out_features * self.in_features, direction)

    def needed_flops(self, tokens: int, direction: str) -> int:
        """The executed FLOPs: values that are left out are trained as well."""
        return self.flops(tokens, direction)

    def compulsory_bytes(self, tokens: int, item_bytes: int, direction: str) -> int:
        passes = by_direction(direction, forward=1, to_input=1, to_weight=1)
        moved = super().compulsory_bytes(tokens, item_bytes, direction)
        return moved + passes * item_bytes * self.parameters()  # the other half is read as well

    def intermediate_bytes(self, tokens: int, item_bytes: int, direction: str) -> int:
        """Bytes that pruning and packing move in the forward pass, and that the products read."""
        entries = self.out_features * self.in_features
        packed = 9 * entries * item_bytes // 16
        # Packed are the weight and its transpose.
        written = 2 * packed + self.pruning().pruned_bytes(entries, item_bytes)
        ahead, back = written + packed, packed
        masked = 2 * item_bytes * entries  # the dense gradient, written and read once more
        ahead += item_bytes * _two_four.padding_values(tokens, self.in_features)
        back += item_bytes * _two_four.padding_values(tokens, self.out_features)
        return by_direction(direction, forward=ahead, to_input=back, to_weight=masked)

    def random(self, *, dtype: torch.dtype, generator: torch.Generator) -> Linear:
        """A dense initialisation, U(±1/√(in_features / 2)); what is kept of it follows."""
        weight = torch.empty(self.out_features, self.in_features, device=generator.device)
        bound = (self.in_features / 2) ** -0.5
        return _Map(self, weight.uniform_(-bound, bound, generator=generator).to(dtype))

    def project(self, weight: Tensor, *, activations: Tensor | None = None) -> Linear:
        """The optimum: the best of the ninety patterns for every tile; the rest starts at zero."""
        keep = best_tiles(scores(weight, activations))
        return _Map(self, (weight.detach() * keep).contiguous())


@cache
def tile_patterns() -> Tensor:
    """(90, 16): the tiles of zeros and ones with two ones in every row and every column."""
    rows = [row for row in itertools.product((0.0, 1.0), repeat=4) if sum(row) == 2]
    tiles = [
        sum(tile, ())
        for tile in itertools.product(rows, repeat=4)
        if all(sum(column) == 2 for column in zip(*tile, strict=True))
    ]
    return torch.tensor(tiles, dtype=torch.float32, device="cpu")


@cache
def _patterns_on(device: torch.device) -> Tensor:
    """The tiles where they are needed: copying them would make every step wait for the device."""
    with torch.inference_mode(False):  # they outlive the call
        return tile_patterns().to(device)


def best_tiles(score: Tensor) -> Tensor:
    """The mask, (rows, columns) of bool, that keeps the largest sum of squares in every tile.

    Args:
        score: (rows, columns), not negative; both are multiples of 4. Of equal sums the first
            pattern is kept.
    """
    rows, columns = score.shape
    tiles = score.float().square().view(rows // 4, 4, columns // 4, 4).transpose(1, 2)
    patterns = _patterns_on(score.device)
    flat = tiles.reshape(-1, 16)
    best = [patterns[(part @ patterns.t()).argmax(1)] for part in flat.split(TILES_AT_ONCE)]
    mask = torch.cat(best).view(rows // 4, columns // 4, 4, 4).transpose(1, 2)
    return mask.reshape(rows, columns) > 0


class Pruning(_two_four.SparseCores, ABC):
    """The shared part of the kernels: a weight is pruned and packed for y and the gradient of x."""

    multiple: ClassVar[int]
    """Both dimensions must be multiples of it."""

    def apply(self, layer: _Map, x: Tensor) -> Tensor:
        if x.device.type == "cpu":
            raise UsageError(NO_CPU_KERNEL)
        y: Tensor = _Product.apply(x, layer.inner, self)  # type: ignore[no-untyped-call]
        return y

    @abstractmethod
    def prune(self, weight: Tensor, both: bool) -> tuple[Any, Any, Tensor]:
        """The packed weight, its packed transpose if asked for ``both``, and what is kept."""

    @abstractmethod
    def masked(self, dense: Tensor, keep: Tensor) -> Tensor:
        """The gradient of what is kept, from that of the whole weight."""

    def kept(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The mask of what is kept of a weight that is pruned in that dtype."""
        del dtype
        return best_tiles(weight.abs())

    @abstractmethod
    def pruned_bytes(self, entries: int, item_bytes: int) -> int:
        """Bytes moved to prune a weight with this number of entries, beside what is packed."""

    def refuses(
        self, described: TwoFourTraining, device: str, dtype: torch.dtype, direction: str
    ) -> str | None:
        if device != "cuda":
            return NO_CPU_KERNEL
        if dtype not in (torch.float16, torch.bfloat16):
            return "2:4 training packs float16 and bfloat16 only."
        if described.out_features % self.multiple or described.in_features % self.multiple:
            return (
                f"kernel={self.name} of two_four_training wants both dimensions to be multiples "
                f"of {self.multiple}, not {described.out_features}x{described.in_features}."
            )
        return _refusal(self, dtype)


class Compress(Pruning, of=TwoFourTraining):
    """The best tiles found; the pruned weight and its transpose are packed."""

    name = "compress"
    multiple = 16

    def prune(self, weight: Tensor, both: bool) -> tuple[Any, Any, Tensor]:
        keep = best_tiles(weight.abs())
        pruned = weight * keep
        return self._packed(pruned), self._packed(pruned.t()) if both else None, keep

    def _packed(self, pruned: Tensor) -> Any:
        with _two_four.packing():
            return SparseSemiStructuredTensorCUSPARSELT.from_dense(pruned.contiguous())

    def masked(self, dense: Tensor, keep: Tensor) -> Tensor:
        return dense.mul_(keep)

    def pruned_bytes(self, entries: int, item_bytes: int) -> int:
        """Each is written once and read once.

        Squares and the ninety sums of a tile in float32, the mask in bytes, the pruned weight and
        its transpose.
        """
        searched = 4 * entries + 4 * 90 * entries // 16 + entries
        return 2 * (searched + 2 * item_bytes * entries)


class StaticSort(Pruning, of=TwoFourTraining):
    """torch's fused, greedy prune-and-pack."""

    name = "static_sort"
    multiple = 128

    def prune(self, weight: Tensor, both: bool) -> tuple[Any, Any, Tensor]:
        packed = self._packed(weight)
        return packed, packed.t(), packed.compressed_swizzled_bitmask

    def _packed(self, weight: Tensor) -> Any:
        pruned = SparseSemiStructuredTensorCUSPARSELT.prune_dense_static_sort(weight.contiguous())
        packed: Any = pruned
        packed.fuse_transpose_cusparselt = True  # which it does not take from torch's switch
        return packed

    def masked(self, dense: Tensor, keep: Tensor) -> Tensor:
        """The mask is in the order of the kernel's threads."""
        return torch._sparse_semi_structured_apply_dense(dense, keep)  # noqa: SLF001

    def kept(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        if weight.device.type != "cuda":
            return super().kept(weight, dtype)
        one = torch.eye(weight.shape[1], dtype=dtype, device=weight.device)
        return functional.linear(one, self._packed(weight.to(dtype))).t() != 0

    def pruned_bytes(self, entries: int, item_bytes: int) -> int:
        return entries // 8  # one bit an entry


@cache
def _refusal(kernel: Pruning, dtype: torch.dtype) -> str | None:
    """Try one small step, and say why a kernel cannot run here; None if it can."""

    def right() -> bool:
        generator = torch.Generator().manual_seed(0)
        shapes = ((16, 256), (16, 128), (128, 256))
        x, dy, weight = (
            torch.randn(s, generator=generator, device="cpu").to("cuda", dtype) for s in shapes
        )
        layer = _Map(TwoFourTraining(out_features=128, in_features=256, kernel=kernel.name), weight)
        y = layer(x.requires_grad_())
        y.backward(dy)
        dense = layer.to_dense().detach()
        assert x.grad is not None
        assert layer.inner.grad is not None
        dweight = (dy.t() @ x) * (dense != 0)
        pairs = ((y, x @ dense.t()), (x.grad, dy @ dense), (layer.inner.grad, dweight))
        return all(float((a - b).detach().norm() / b.norm()) < 0.02 for a, b in pairs)

    return tried(f"kernel={kernel.name} of two_four_training", right)
