"""Two of every four neighbours kept: the 2:4 sparsity of NVIDIA's sparse tensor cores.

Kernels, all torch's and all forward only: ``cusparselt``, with the algorithm that torch takes
unasked; ``cusparselt_searched``, with the fastest algorithm for the number of tokens, which the
first call with so many looks for by trying all; and ``cutlass`` for compute capability 8.x. There
is no kernel for the CPU; projection and ``to_dense`` work everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.sparse import to_sparse_semi_structured

from hwbench.errors import UsageError
from hwbench.formats import _two_four
from hwbench.formats._base import FORWARD, Format, Linear
from hwbench.formats._derived import Derived
from hwbench.formats._entries import scores
from hwbench.formats._groups import (
    best_in_groups,
    check_groups,
    group_columns,
    pack_pairs,
    unpack_pairs,
)
from hwbench.formats._kernel import uncompiled
from hwbench.formats._probe import tried

NO_CPU_KERNEL = (
    "2:4 kernels exist for CUDA devices of compute capability 8.0 or newer; on the CPU the format "
    "can be projected onto, but not run."
)


class _Map(Linear):
    codes: Tensor  # (ceil(out · in / 8),) uint8: each kept value's position among four, two bits

    def __init__(self, spec: SemiStructured, values: Tensor, codes: Tensor) -> None:
        super().__init__(spec.out_features, spec.in_features)
        self.kernel: Pair = spec.pair()
        self.values = nn.Parameter(values)  # (out, in / 2)
        self.register_buffer("codes", codes)
        self._packed = Derived[Tensor]()
        self._algorithms: dict[int, int] = {}  # by the tokens that a product has, with padding

    def choose_algorithm(self, packed: Any, x: Tensor) -> None:
        """Find the fastest algorithm for this number of tokens, by a trial the first time."""
        tokens = _two_four.padded(x.shape[0])
        if tokens not in self._algorithms:
            self._algorithms[tokens] = _two_four.fastest_algorithm(packed, x)
        if packed.alg_id_cusparselt != self._algorithms[tokens]:
            packed.alg_id_cusparselt = self._algorithms[tokens]

    @uncompiled
    def packed(self) -> Any:
        """The weight in its kernel's layout, packed at the first call; no part of the state."""
        build = lambda: self.kernel.pack(self.to_dense())  # noqa: E731
        return self._packed.get((self.values, self.codes), build, trusting=self.trusting)

    def to_dense(self) -> Tensor:
        positions = unpack_pairs(self.codes, self.values.numel()).view(self.out_features, -1, 2)
        columns = group_columns(positions, 4)
        empty = self.values.new_zeros(self.out_features, self.in_features)
        return empty.scatter(1, columns, self.values)

    def forget(self) -> None:
        self._packed.clear()
        self._algorithms.clear()


@dataclass(frozen=True, kw_only=True)
class SemiStructured(Format):
    """The two largest of every four neighbouring weights of a row, with two bits each.

    Stored are the values and the bits: 9/16 of the dense bytes at 16 bits. What a kernel reads is
    packed from them at the first call, in a layout of its own with as many bytes. Counted is the
    padding of x where the tokens are no multiple of 8; not counted is that torch turns what
    ``cutlass`` writes.
    """

    PAPER = "Mishra et al., Accelerating sparse deep neural networks, 2021"
    OUTPUTS = "n_of_m"

    revision: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_groups(self, 4)

    def smallest_words(self) -> str:
        return "it keeps two of every four weights (density 0.5)"

    def pair(self) -> Pair:
        """The kernel, as what the layer packs its weight by."""
        kernel = self.implementation
        assert isinstance(kernel, Pair)
        return kernel

    def parameters(self) -> int:
        return self.out_features * self.in_features // 2

    def index_bytes(self) -> int:
        return -(-self.parameters() // 4)

    def intermediate_bytes(self, tokens: int, item_bytes: int, direction: str) -> int:
        moved = super().intermediate_bytes(tokens, item_bytes, direction)
        return moved + item_bytes * _two_four.padding_values(tokens, self.in_features)

    def random(self, *, dtype: torch.dtype, generator: torch.Generator) -> Linear:
        shape = (self.out_features, self.in_features)
        order = torch.rand(shape, generator=generator, device=generator.device)
        values = torch.empty(shape[0], shape[1] // 2, device=generator.device)
        bound = (self.in_features / 2) ** -0.5
        values.uniform_(-bound, bound, generator=generator)
        return _Map(self, values.to(dtype), pack_pairs(best_in_groups(order, 2, 4)))

    def project(self, weight: Tensor, *, activations: Tensor | None = None) -> Linear:
        """The optimum: the two largest magnitudes of every four."""
        weight = weight.detach()
        positions = best_in_groups(scores(weight, activations), 2, 4)
        values = weight.gather(1, group_columns(positions, 4))
        return _Map(self, values, pack_pairs(positions))


class Pair(_two_four.SparseCores):
    """The shared part of the kernels; all are torch's."""

    gives_gradients = False
    multiples: ClassVar[tuple[int, int]] = (16, 16)
    """out_features and in_features must be multiples of these, at 16 bits."""

    def apply(self, layer: _Map, x: Tensor) -> Tensor:
        if x.device.type == "cpu":
            raise UsageError(NO_CPU_KERNEL)
        x, packed = x.contiguous(), layer.packed()
        self.prepare(layer, packed, x)
        return functional.linear(x, packed).contiguous()  # it may be a view of yᵀ, see _two_four

    def pack(self, dense: Tensor) -> Any:
        """The weight in the layout of the library."""
        with _two_four.packing():
            return to_sparse_semi_structured(dense.contiguous())

    def prepare(self, layer: _Map, packed: Any, x: Tensor) -> None:
        """Do what the kernel needs before the product: nothing, unless it is overridden."""

    def example(self, dtype: torch.dtype) -> tuple[Tensor, Any]:
        """Eight tokens and a packed weight on the GPU; every entry of their product is 32."""
        tile = torch.tensor([1.0, 0.0, 0.0, 1.0], device="cuda").to(dtype)
        return tile.repeat(8, 16), self.pack(tile.repeat(64, 16))

    def refuses(
        self, described: SemiStructured, device: str, dtype: torch.dtype, direction: str
    ) -> str | None:
        if device != "cuda":
            return NO_CPU_KERNEL
        if direction != FORWARD:
            return (
                "torch packs a 2:4 weight for the forward product only, and its gradients would "
                "need the packed transpose; two_four_training has both."
            )
        if dtype not in (torch.float16, torch.bfloat16):
            return (
                "the sparse tensor cores take two of four in float16 and bfloat16; in float32 "
                "they keep one of two, and float64 they do not know."
            )
        rows, columns = self.multiples
        if described.out_features % rows or described.in_features % columns:
            return (
                f"{self.name} wants out_features to be a multiple of {rows} and in_features of "
                f"{columns} at 16 bits, not {described.out_features}x{described.in_features}."
            )
        return _refusal(self, dtype)


class CuSparseLt(Pair, of=SemiStructured):
    """cuSPARSELt, with the algorithm that torch takes unasked."""

    name = "cusparselt"


class Cutlass(Pair, of=SemiStructured):
    """CUTLASS, for compute capability 8.x."""

    name = "cutlass"
    multiples = (32, 64)

    def pack(self, dense: Tensor) -> Any:
        with _two_four.packing(cutlass=True):
            return to_sparse_semi_structured(dense.contiguous())


class CuSparseLtSearched(Pair, of=SemiStructured):
    """cuSPARSELt, with the fastest algorithm for so many tokens, found by trying all once."""

    name = "cusparselt_searched"

    def prepare(self, layer: _Map, packed: Any, x: Tensor) -> None:
        layer.choose_algorithm(packed, x)

    def example(self, dtype: torch.dtype) -> tuple[Tensor, Any]:
        x, packed = super().example(dtype)
        packed.alg_id_cusparselt = _two_four.fastest_algorithm(packed, x)
        return x, packed


@cache
def _refusal(kernel: Pair, dtype: torch.dtype) -> str | None:
    """Try one small product, and say why a kernel cannot run here; None if it can."""

    def right() -> bool:
        product = functional.linear(*kernel.example(dtype))
        return bool((product == 32).all())

    return tried(kernel.name, right)
