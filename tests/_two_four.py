"""2:4 products without a GPU: stand-ins for what torch packs, and cuSPARSELt by plain products."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.sparse import SparseSemiStructuredTensor

from hwbench.formats import semi_structured, two_four_training


class OnGpu(Tensor):
    """A tensor of the processor that says it lies on a GPU."""

    @property
    def device(self) -> Any:
        return SimpleNamespace(type="cuda")


class Packed:
    """A weight as torch packs it for cuSPARSELt; here it stays as it is.

    As in torch 2.11, whether a product is y or a view of yᵀ was decided when it was packed.
    """

    ALWAYS_WRITES_Y = False

    def __init__(self, ahead: Tensor, back: Tensor | None, fused: bool, algorithm: int = 0) -> None:
        self.packed, self.packed_t = ahead, back
        self.meta = self.meta_t = self.compressed_swizzled_bitmask = None
        self.fuse_transpose_cusparselt, self.alg_id_cusparselt = fused, algorithm

    @classmethod
    def from_dense(cls, dense: Tensor) -> Self:
        return cls(dense, None, SparseSemiStructuredTensor._FUSE_TRANSPOSE)

    @classmethod
    def prune_dense_static_sort(cls, weight: Tensor) -> Self:
        keep = two_four_training.best_tiles(weight.abs())
        made = cls(weight * keep, (weight * keep).t().contiguous(), False)
        made.compressed_swizzled_bitmask = keep
        return made

    def t(self) -> Self:
        assert self.packed_t is not None
        fused, algorithm = self.fuse_transpose_cusparselt, self.alg_id_cusparselt
        return type(self)(self.packed_t, self.packed, fused, algorithm)

    def linear(self, x: Tensor) -> Tensor:
        """x Wᵀ, as F.linear gives it."""
        x = x.as_subclass(Tensor)
        rows = functional.pad(x, (0, 0, 0, -x.shape[0] % 8)) if x.shape[0] % 8 else x
        fused = self.ALWAYS_WRITES_Y or self.fuse_transpose_cusparselt
        y = torch._cslt_sparse_mm(
            self.packed, rows.t(), transpose_result=fused, alg_id=self.alg_id_cusparselt
        )
        return (y if fused else y.t())[: x.shape[0]]


class Newer(Packed):
    """As in torch 2.13: a product is y whatever was asked for when the weight was packed."""

    ALWAYS_WRITES_Y = True


VERSIONS = {"2.11": Packed, "2.13": Newer}


class Library:
    """Takes the place of cuSPARSELt, and notes what it was asked."""

    BEST = 7

    def __init__(self) -> None:
        self.algorithms: list[int] = []  # of each product
        self.searched: list[int] = []  # tokens of each search

    def product(
        self, packed: Tensor, x_t: Tensor, *, transpose_result: bool, alg_id: int
    ) -> Tensor:
        self.algorithms.append(alg_id)
        return x_t.t() @ packed.t() if transpose_result else packed @ x_t

    def search(self, packed: Tensor, x_t: Tensor, *, transpose_result: bool) -> int:
        assert transpose_result  # what is searched is what is used
        assert packed.shape[1] == x_t.shape[0]
        self.searched.append(x_t.shape[1])
        return self.BEST


def pretend(monkeypatch: pytest.MonkeyPatch, version: str) -> Library:
    """Put the stand-ins of a version of torch in the place of its 2:4 products."""
    library, kind, linear = Library(), VERSIONS[version], functional.linear

    def of_either(x: Tensor, weight: Any, *bias: Any) -> Tensor:
        return weight.linear(x) if isinstance(weight, Packed) else linear(x, weight, *bias)

    monkeypatch.setattr(functional, "linear", of_either)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", library.product)
    monkeypatch.setattr(torch, "_cslt_sparse_mm_search", library.search)
    monkeypatch.setattr(torch, "_sparse_semi_structured_apply_dense", torch.mul)
    monkeypatch.setattr(semi_structured, "to_sparse_semi_structured", kind.from_dense)
    monkeypatch.setattr(two_four_training, "SparseSemiStructuredTensorCUSPARSELT", kind)
    return library
