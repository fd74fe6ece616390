"""A smaller dense layer: some columns of the weight kept whole, or a few directions of its inputs.

The control that every other format is judged against: what the same parameters do in a plain
product. Columns are chosen by their norm, times that of the activations where these are given.
With ``rotate`` the layer keeps the directions in which its activations vary most, Q of (in,
inputs), and W Q; Q is counted, as nothing here can absorb it into a neighbour. It is then a matrix
of low rank, and no better than the best one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwbench.errors import KnobError
from hwbench.formats import _kernel
from hwbench.formats._base import Format, Linear
from hwbench.formats._init import column_weights, working
from hwbench.formats._kernel import Kernel
from hwbench.formats._linear import InnerWeight


class _Map(InnerWeight, ABC):
    """A dense layer of what it sees of its inputs."""

    def __init__(self, values: Tensor, in_features: int, kernel: Kernel) -> None:
        super().__init__(values.shape[0], in_features)
        self.register_parameter("weight", nn.Parameter(values))  # (out, inputs)
        self.kernel = kernel

    @abstractmethod
    def reduced(self, x: Tensor) -> Tensor:
        """(tokens, inputs), for x of (tokens, in)."""


class _Kept(_Map):
    """y = V x[kept], with V the kept columns of the weight."""

    kept: Tensor  # (inputs,), int32, ascending

    def __init__(self, values: Tensor, in_features: int, kept: Tensor, kernel: Kernel) -> None:
        super().__init__(values, in_features, kernel)
        self.register_buffer("kept", kept.int())

    def reduced(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.kept)

    def to_dense(self) -> Tensor:
        zeros = self.inner.new_zeros(self.out_features, self.in_features)
        return zeros.index_copy(1, self.kept.long(), self.inner)


class _Rotated(_Map):
    """y = V (Qᵀ x)."""

    def __init__(self, values: Tensor, basis: Tensor, kernel: Kernel) -> None:
        super().__init__(values, basis.shape[1], kernel)
        self.basis = nn.Parameter(basis)  # (inputs, in)

    def reduced(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.basis)

    def to_dense(self) -> Tensor:
        return self.inner @ self.basis


@dataclass(frozen=True, kw_only=True)
class Narrow(Format):
    """W with ``inputs`` of its columns, or with as many directions of its inputs.

    Bytes: the values, and an index of four bytes for each column that is kept.
    """

    PAPER = (
        "Ashkboos et al., SliceGPT: compress large language models by deleting rows and columns, "
        "2024, arXiv:2401.15024"
    )

    OUTPUTS = "factors"

    inputs: int
    rotate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.rotate, bool):
            raise KnobError(f"rotate of narrow must be true or false, not {self.rotate!r}.")
        self.check_integer("inputs", low=1, high=self.largest_setting())

    def largest_setting(self) -> int:
        return min(self.out_features, self.in_features) if self.rotate else self.in_features

    def smallest_words(self) -> str:
        return f"one input has density {self.density():.4g}"

    def parameters(self) -> int:
        return sum(self.stages())

    def stages(self) -> tuple[int, ...]:
        smaller = self.inputs * self.out_features
        return (self.inputs * self.in_features, smaller) if self.rotate else (smaller,)

    def index_bytes(self) -> int:
        return 0 if self.rotate else 4 * self.inputs

    def intermediate_width(self) -> int:
        return self.inputs if self.rotate else 0

    def copied_width(self) -> int:
        return 0 if self.rotate else self.inputs

    def random(self, *, dtype: torch.dtype, generator: torch.Generator) -> Linear:
        bound, where = self.inputs**-0.5, generator.device
        values = torch.empty(self.out_features, self.inputs, device=where)
        values.uniform_(-bound, bound, generator=generator)
        if self.rotate:
            directions = torch.randn(
                self.in_features, self.inputs, generator=generator, device=where
            )
            basis = torch.linalg.qr(directions).Q.mT.to(dtype).contiguous()
            return _Rotated(values.to(dtype), basis, self.implementation)
        order = torch.randperm(self.in_features, generator=generator, device=where)
        inputs = order[: self.inputs].sort().values
        return _Kept(values.to(dtype), self.in_features, inputs, self.implementation)

    def project(self, weight: Tensor, *, activations: Tensor | None = None) -> Linear:
        """The columns of the largest norms; with ``rotate`` the first principal directions.

        Without activations these are those of the weight's rows.
        """
        work = working(weight)
        if self.rotate:
            inputs = work if activations is None else activations.detach().to(work)
            basis = torch.linalg.svd(inputs.mT @ inputs).Vh[: self.inputs]
            values = (work @ basis.mT).to(weight.dtype).contiguous()
            return _Rotated(values, basis.to(weight.dtype).contiguous(), self.implementation)
        score = (work * column_weights(work, activations)).norm(dim=0)
        columns = score.argsort(descending=True, stable=True)[: self.inputs].sort().values
        values = weight.detach()[:, columns].contiguous()
        return _Kept(values, self.in_features, columns, self.implementation)


class Torch(_kernel.Torch, of=Narrow):
    """A product with the inputs that are kept, or with the coordinates in their directions."""

    def apply(self, layer: _Map, x: Tensor) -> Tensor:
        return functional.linear(layer.reduced(x), layer.inner)
