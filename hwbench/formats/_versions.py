"""The differences between the versions of torch that hwbench runs with, decided here alone.

tests/cuda_operators.toml holds what CUDA has in which version, and tests/test_operators.py holds
the formats against it.
"""

from __future__ import annotations

import torch
from torch.torch_version import TorchVersion

VERSION = TorchVersion(torch.__version__)


def sampling_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which CUDA samples a product of two matrices of ``dtype``.

    The operator, the gradient of embedding_bag's weights, has no bfloat16 there before torch 2.13
    (pytorch#185808, mended by pytorch#185889). Its operands are widened to float32 then, which is
    exact, and the sums of both are in float32.
    """
    narrow = dtype == torch.bfloat16 and VERSION < "2.13"
    return torch.float32 if narrow else dtype
