"""``Arrays``: a workload that is one call on a few arrays. The machine's ceilings are such."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from hwbench.devices._base import Device, Step
from hwbench.formats._base import Format
from hwbench.records import Case
from hwbench.workloads._base import DTYPES, Subject, Workload, generator

Shape = tuple[int, int]


class Arrays(Workload):
    """One call that reads all of its arrays but the last, and writes that one."""

    STREAM: ClassVar[int]  # of the data that a seed makes
    DRAW: ClassVar[Callable[..., Tensor]] = staticmethod(torch.rand)

    @abstractmethod
    def shapes(self, case: Case) -> list[Shape]:
        """The shapes of the arrays, of the one that is written last."""

    @abstractmethod
    def step(self, arrays: Sequence[Tensor]) -> Step:
        """The call on arrays of these shapes."""

    def prepare(self, case: Case, described: Format, device: Device, seed: int) -> Subject:
        source, dtype = generator(device, seed, self.STREAM), DTYPES[case.dtype]
        *read, written = self.shapes(case)
        arrays = [
            self.DRAW(shape, generator=source, device=source.device).to(dtype) for shape in read
        ]
        arrays.append(torch.empty(written, dtype=dtype, device=source.device))
        return self._subject(case, described, arrays)

    def within(self, larger: Subject, case: Case, described: Format) -> Subject:
        """A smaller case on the first elements of a larger one's arrays: no memory of its own."""
        pairs = zip(larger.inputs, self.shapes(case), strict=True)
        arrays = [array.view(-1)[: rows * columns].view(rows, columns)
                  for array, (rows, columns) in pairs]  # fmt: skip
        return self._subject(case, described, arrays)

    def _subject(self, case: Case, described: Format, arrays: list[Tensor]) -> Subject:
        return Subject(step=self.step(arrays), cost=self.cost(case, described), inputs=arrays)
