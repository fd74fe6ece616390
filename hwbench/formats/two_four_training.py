"""2:4 sparsity in both directions, pruned and packed anew in every step of training.

Every 4x4 tile keeps two weights of each row and of each column, so that the forward product and the
gradient of x both run on sparse tensor cores. CUDA only; projection and ``to_dense`` work
everywhere. Kernels: ``compress`` finds the best tiles and packs the pruned weight and its
transpose; ``static_sort`` is torch's fused, greedy prune-and-pack.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT

from hwbench.errors import KnobError, UsageError
from hwbench.formats import _two_four
from hwbench.formats._base import (
    BACKWARD,
    BACKWARD_INPUT,
    BACKWARD_WEIGHT,
    FORWARD,
    STEP,
    Format,
    Linear,
    unreachable,
)
from hwbench.formats._entries import executed, scores
from hwbench.formats._probe import tried
from hwbench.records import Knob

NO_CPU_KERNEL = (
    "2:4 training packs its weight for the sparse tensor cores of CUDA devices of compute "
    "capability 8.0 or newer; on the CPU the format can be projected onto, but not run."
)

TILES_AT_ONCE = 2**18  # tiles whose ninety candidates are compared at a time: 90 MiB


class _Map(Linear):
    def __init__(self, spec: TwoFourTraining, weight: Tensor) -> None:
        super().__init__(spec.out_features, spec.in_features)
        self.kernel = spec.kernel
        self.narrow = weight.dtype  # a copy in float64 is pruned as this layer is
        self.weight = nn.Parameter(weight)  # (out, in), all of it: what is kept may change

    def apply_weight(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":
            raise UsageError(NO_CPU_KERNEL)
        y: Tensor = _Product.apply(x, self.weight, self.kernel)  # type: ignore[no-untyped-call]
        return y

    def to_dense(self) -> Tensor:
        """The pruned weight."""
        weight = self.weight.detach()
        if self.kernel == "static_sort" and weight.device.type == "cuda":
            packed = _static_sort(weight.to(self.narrow))
            one = torch.eye(self.in_features, dtype=self.narrow, device=weight.device)
            keep = functional.linear(one, packed).t() != 0
        else:
            keep = best_tiles(weight.abs())
        return self.weight * keep


class _Product(torch.autograd.Function):
    """y and dx from packed weights, pruned in the forward pass; dW of a dense product, masked."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, kernel: str) -> Tensor:
        x, weight = x.detach().contiguous(), weight.detach()
        if kernel == "static_sort":
            ahead: Any = _static_sort(weight)
            ctx.back, keep = ahead.t(), ahead.compressed_swizzled_bitmask
        else:
            keep = best_tiles(weight.abs())
            pruned = weight * keep
            ahead = _compress(pruned)
            ctx.back = _compress(pruned.t().contiguous()) if ctx.needs_input_grad[0] else None
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
        dweight = None
        if weight_needs:
            dweight = dy.t() @ x
            if ctx.kernel == "static_sort":  # its mask is in the order of the kernel's threads
                dweight = torch._sparse_semi_structured_apply_dense(dweight, keep)  # noqa: SLF001
            else:
                dweight *= keep
        return dx, dweight, None


@dataclass(frozen=True, kw_only=True)
class TwoFourTraining(Format):
    """A dense weight of which every 4x4 tile keeps two entries of each row and each column.

    Stored is the dense weight; gradients reach what is kept of it. What is packed, 9/16 of its
    bytes in each direction, lasts for one step: of ``compress`` the transpose is kept for the
    backward pass, of ``static_sort`` both.
    """

    KERNELS = ("compress", "static_sort")
    PAPER = "Hubara et al., Accelerated sparse neural training: transposable masks, 2021"

    revision: ClassVar[int] = 2
    MULTIPLES: ClassVar[dict[str, int]] = {"compress": 16, "static_sort": 128}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out_features % 4 or self.in_features % 4:
            raise KnobError(
                f"two_four_training works on tiles of 4x4, and {self.out_features}x"
                f"{self.in_features} does not divide into them; multiples of 4 would fit."
            )

    @classmethod
    def for_budget(cls, out_features: int, in_features: int, density: float, **knobs: Knob) -> Self:
        if "multiple" in knobs:
            raise KnobError("two_four_training has no rank that 'multiple' could round.")
        if density < 0.5:
            raise unreachable(
                "two_four_training", density, "it keeps eight of every sixteen (density 0.5)"
            )
        return cls(out_features=out_features, in_features=in_features, **knobs)  # type: ignore[arg-type]

    def parameters(self) -> int:
        return self.out_features * self.in_features // 2

    def stored_bytes(self, item_bytes: int) -> int:
        return self.out_features * self.in_features * item_bytes

    def flops(self, tokens: int, direction: str) -> int:
        """Half of the dense products, except for the gradient of the weight, which is dense."""
        return executed(tokens, self.parameters(), self.out_features * self.in_features, direction)

    def _compulsory_bytes(self, tokens: int, item_bytes: int, direction: str) -> int:
        passes = {BACKWARD: 2, STEP: 3}.get(direction, 1)
        moved = super()._compulsory_bytes(tokens, item_bytes, direction)
        return moved + passes * item_bytes * self.parameters()  # the other half is read as well

    def _intermediate_bytes(self, tokens: int, item_bytes: int, direction: str) -> int:
        """What pruning and packing move in the forward pass, and what the products read of it."""
        entries = self.out_features * self.in_features
        packed = 9 * entries * item_bytes // 16
        written = 2 * packed  # the weight, and its transpose
        if self.kernel == "static_sort":
            written += entries // 8  # one bit an entry
        else:
            # squares and the ninety sums of a tile in float32, the mask in bytes, the pruned weight
            # and its transpose: each is written once and read once
            searched = 4 * entries + 4 * 90 * entries // 16 + entries
            written += 2 * (searched + 2 * item_bytes * entries)
        ahead, back = written + packed, packed
        masked = 2 * item_bytes * entries  # the dense gradient, written and read once more
        ahead += item_bytes * _two_four.padding_values(tokens, self.in_features)
        back += item_bytes * _two_four.padding_values(tokens, self.out_features)
        return {
            FORWARD: ahead,
            BACKWARD_INPUT: back,
            BACKWARD_WEIGHT: masked,
            BACKWARD: back + masked,
            STEP: ahead + back + masked,
        }[direction]

    def unsupported(self, device: str, dtype: torch.dtype, direction: str) -> str | None:
        if device != "cuda":
            return NO_CPU_KERNEL
        if dtype not in (torch.float16, torch.bfloat16):
            return "2:4 training packs float16 and bfloat16 only."
        side = self.MULTIPLES[self.kernel]
        if self.out_features % side or self.in_features % side:
            return (
                f"kernel={self.kernel} of two_four_training wants both dimensions to be multiples "
                f"of {side}, not {self.out_features}x{self.in_features}."
            )
        return _refusal(self.kernel, dtype)

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
    return torch.tensor(tiles)


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
    kept = [patterns[(part @ patterns.t()).argmax(1)] for part in flat.split(TILES_AT_ONCE)]
    mask = torch.cat(kept).view(rows // 4, columns // 4, 4, 4).transpose(1, 2)
    return mask.reshape(rows, columns) > 0


def _compress(pruned: Tensor) -> Any:
    with _two_four.packing():
        return SparseSemiStructuredTensorCUSPARSELT.from_dense(pruned)


def _static_sort(weight: Tensor) -> Any:
    packed: Any = SparseSemiStructuredTensorCUSPARSELT.prune_dense_static_sort(weight.contiguous())
    packed.fuse_transpose_cusparselt = True  # which it does not take from torch's switch
    return packed


@cache
def _refusal(kernel: str, dtype: torch.dtype) -> str | None:
    """What the build or the device says against a kernel, asked by one small step."""

    def right() -> bool:
        generator = torch.Generator().manual_seed(0)
        shapes = ((16, 256), (16, 128), (128, 256))
        x, dy, weight = (torch.randn(s, generator=generator).to("cuda", dtype) for s in shapes)
        layer = _Map(TwoFourTraining(out_features=128, in_features=256, kernel=kernel), weight)
        y = layer(x.requires_grad_())
        y.backward(dy)
        dense = layer.to_dense().detach()
        assert x.grad is not None
        assert layer.weight.grad is not None
        dweight = (dy.t() @ x) * (dense != 0)
        wanted = ((y, x @ dense.t()), (x.grad, dy @ dense), (layer.weight.grad, dweight))
        return all(float((a - b).detach().norm() / b.norm()) < 0.02 for a, b in wanted)

    return tried(f"kernel={kernel} of two_four_training", right)
