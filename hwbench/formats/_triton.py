"""The kernels of ``_fused`` as the formats ask for them, whether or not there is a triton."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from hwbench.errors import UsageError
from hwbench.formats._kernel import Kernel

NO_TRITON = "A Triton kernel does not run here: there is no triton, which torch for CUDA brings."


class Triton(Kernel):
    """A product made by kernels in Triton, for CUDA; its backward pass is that of another."""

    name = "triton"

    def refuses(
        self, described: Any, device: str, dtype: torch.dtype, direction: str
    ) -> str | None:
        if device != "cuda":
            return "A Triton kernel is compiled for CUDA devices, and there is none for the CPU."
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return "A Triton kernel multiplies float32, bfloat16 and float16 only."
        if find_spec("triton") is None:
            return NO_TRITON
        refused: str | None = fused().refusal(dtype)
        return refused


def fused() -> Any:
    """The module of the Triton kernels.

    Raises:
        UsageError: there is no triton.
    """
    try:
        from hwbench.formats import _fused
    except ModuleNotFoundError as absent:
        raise UsageError(NO_TRITON) from absent
    return _fused
