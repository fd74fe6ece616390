"""Every weight stored, in a layout that a CPU library packs once: dense at its best on CPUs.

Kernels: ``onednn`` in float32 and 16 bits, ``mkl`` in float32, both forward; ``onednn`` trains in
float32 as well, where nothing is packed and only the library is another than that of ``dense``. The
map and its values are those of ``dense``. What is packed is made at the first call with a number of
tokens and kept beside the weight; it takes memory of its own, which is no part of the stored bytes.
Every call compares the weight with what was packed, unless the layer is told to
``trust_versions``, as hwbench times it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hwbench.formats import _packing
from hwbench.formats._base import Linear
from hwbench.formats._full import FullFormat, FullMap
from hwbench.formats._kernel import Kernel


class _Map(_packing.PackableMap, FullMap):
    def __init__(self, weight: Tensor, kernel: Kernel) -> None:
        super().__init__(weight)
        self.kernel, self._packing = kernel, _packing.Packing()

    def chain(self) -> tuple[tuple[Tensor, _packing.Packing], ...]:
        return ((self.weight, self._packing),)


@dataclass(frozen=True, kw_only=True)
class PackedDense(_packing.Packable, FullFormat):
    """The full matrix, applied by one product with a weight that is packed in advance."""

    def build(self, weight: Tensor) -> Linear:
        return _Map(weight, self.implementation)
