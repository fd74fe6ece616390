"""Two of every four neighbours kept: the 2:4 sparsity of NVIDIA's sparse tensor cores.

Kernels, both torch's and both forward only: ``cusparselt``, and ``cutlass`` for compute capability
8.x. There is no kernel for the CPU; projection and ``to_dense`` work everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.sparse import SparseSemiStructuredTensor, to_sparse_semi_structured

from hwbench.errors import KnobError, UsageError
from hwbench.formats._base import FORWARD, Format, Linear, unreachable
from hwbench.formats._entries import scores
from hwbench.formats._groups import (
    best_in_groups,
    check_groups,
    group_columns,
    pack_pairs,
    unpack_pairs,
)
from hwbench.formats._probe import tried
from hwbench.records import Knob

NO_CPU_KERNEL = (
    "2:4 kernels exist for CUDA devices of compute capability 8.0 or newer; on the CPU the format "
    "can be projected onto, but not run."
)


class _Map(Linear):
    codes: Tensor  # (ceil(out · in / 8),) uint8: each kept value's position among four, two bits

    def __init__(self, spec: SemiStructured, values: Tensor, codes: Tensor) -> None:
        super().__init__(spec.out_features, spec.in_features)
        self.kernel = spec.kernel
        self.values = nn.Parameter(values)  # (out, in / 2)
        self.register_buffer("codes", codes)
        self._packed: tuple[int, Tensor] | None = None  # for which version of the values, and what

    def apply_weight(self, x: Tensor) -> Tensor:
        if x.device.type != "cuda":
            raise UsageError(NO_CPU_KERNEL)
        y = functional.linear(x.contiguous(), self.packed())
        return y.contiguous()  # cuSPARSELt writes yᵀ

    def packed(self) -> Tensor:
        """The weight in its kernel's layout, packed at the first call; no part of the state."""
        version = self.values._version  # noqa: SLF001  an optimizer may have stepped
        if self._packed is None or self._packed[0] != version:
            with torch.inference_mode(False), torch.no_grad():
                self._packed = (version, _pack(self.to_dense(), self.kernel))
        return self._packed[1]

    def to_dense(self) -> Tensor:
        positions = unpack_pairs(self.codes, self.values.numel()).view(self.out_features, -1, 2)
        columns = group_columns(positions, 4)
        empty = self.values.new_zeros(self.out_features, self.in_features)
        return empty.scatter(1, columns, self.values)

    def forget(self) -> None:
        self._packed = None

    def __getstate__(self) -> dict[str, Any]:
        """Without what is packed, which not every PyTorch can copy."""
        return {**self.__dict__, "_packed": None}


@dataclass(frozen=True, kw_only=True)
class SemiStructured(Format):
    """The two largest of every four neighbouring weights of a row, with two bits each.

    Stored are the values and the bits: 9/16 of the dense bytes at 16 bits. What a kernel reads is
    packed from them at the first call, in a layout of its own with as many bytes.
    """

    KERNELS = ("cusparselt", "cutlass")
    PAPER = "Mishra et al., Accelerating sparse deep neural networks, 2021"

    MULTIPLES: ClassVar[dict[str, tuple[int, int]]] = {"cusparselt": (16, 16), "cutlass": (32, 64)}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_groups(self, 4)

    @classmethod
    def for_budget(cls, out_features: int, in_features: int, density: float, **knobs: Knob) -> Self:
        if "multiple" in knobs:
            raise KnobError("semi_structured has no rank that 'multiple' could round.")
        if density < 0.5:
            raise unreachable(
                "semi_structured", density, "it keeps two of every four weights (density 0.5)"
            )
        return cls(out_features=out_features, in_features=in_features, **knobs)  # type: ignore[arg-type]

    def parameters(self) -> int:
        return self.out_features * self.in_features // 2

    def index_bytes(self) -> int:
        return -(-self.parameters() // 4)

    def unsupported(self, device: str, dtype: torch.dtype, direction: str) -> str | None:
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
        rows, columns = self.MULTIPLES[self.kernel]
        if self.out_features % rows or self.in_features % columns:
            return (
                f"{self.kernel} wants out_features to be a multiple of {rows} and in_features of "
                f"{columns} at 16 bits, not {self.out_features}x{self.in_features}."
            )
        return _refusal(self.kernel, dtype)

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


@contextmanager
def _chosen(kernel: str) -> Iterator[None]:
    """Make torch pack for one kernel; it has one switch for the whole process."""
    before = SparseSemiStructuredTensor._FORCE_CUTLASS  # noqa: SLF001
    SparseSemiStructuredTensor._FORCE_CUTLASS = kernel == "cutlass"  # noqa: SLF001
    try:
        yield
    finally:
        SparseSemiStructuredTensor._FORCE_CUTLASS = before  # noqa: SLF001


def _pack(dense: Tensor, kernel: str) -> Tensor:
    with _chosen(kernel):
        packed: Tensor = to_sparse_semi_structured(dense.contiguous())
    return packed


@cache
def _refusal(kernel: str, dtype: torch.dtype) -> str | None:
    """What the build or the device says against a kernel, asked by one small product."""

    def right() -> bool:
        tile = torch.tensor([1.0, 0.0, 0.0, 1.0], device="cuda").to(dtype)
        product = functional.linear(tile.repeat(8, 16), _pack(tile.repeat(64, 16), kernel))
        return bool((product == 32).all())

    return tried(kernel, right)
