"""What one token costs a layer of codes beside its product: PyTorch's operators, calls of Python.

Both are counted, as times of microseconds belong into ``evidence/quantized.py``.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from _formats import normal
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hwbench.formats._base import FORWARD, Linear
from hwbench.formats.quantized import Quantized

IN_FLOAT32 = ("linear_dynamic", "linear_dynamic_7bit", "int_mm", "onednn")
ON_CPU = [
    kernel
    for kernel in Quantized.KERNELS
    if not Quantized.from_knobs(48, 64, kernel=kernel).unsupported("cpu", torch.float32, FORWARD)
]


def called(kernel: str, tokens: int) -> tuple[Linear, Tensor]:
    """A layer that was called before, and what it is called with, in the kernel's own dtype."""
    f = Quantized.from_knobs(48, 64, kernel=kernel)
    dtype = torch.float32 if kernel in IN_FLOAT32 else torch.bfloat16
    layer = f.project(normal(48, 64).to(dtype)).trust_versions()
    x = normal(tokens, 64).to(dtype)
    layer(x)
    return layer, x


class Asked(TorchDispatchMode):
    """The operators that a call asks PyTorch for, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name != "detach":  # a part of how bits are read as another type
            self.names.append(name)
        return func(*args, **(kwargs or {}))


LARGEST = ["abs", "amax"]
CODED = [*LARGEST, "div_", "clamp_min_", "div", "round_", "_to_copy"]
ASKED = {
    ("linear_dynamic", 1): ["linear_dynamic"],
    ("linear_dynamic", 5): [*LARGEST, "clamp_min_", "div", "linear_dynamic", "mul_"],
    ("linear_dynamic_7bit", 1): ["linear_dynamic"],
    ("int_mm", 1): [*CODED, "t", "_int_mm", "mul", "t", "mul_"],
    ("onednn", 1): [*CODED, "view", "bitwise_xor_", "qlinear_pointwise", "mul_"],
    ("int8pack", 1): ["_weight_int8pack_mm"],
    ("int4pack", 1): ["_weight_int4pack_mm_for_cpu"],
    ("bfloat16_mm", 1): ["view", "t", "mm"],
}
"""Of a call with so many tokens."""


@pytest.mark.parametrize(("kernel", "tokens"), ASKED)
def test_a_call_asks_pytorch_for_nothing_that_it_does_not_need(kernel: str, tokens: int) -> None:
    layer, x = called(kernel, tokens)
    with Asked() as asked:
        layer(x)
    assert asked.names == ASKED[kernel, tokens]


@pytest.mark.parametrize(
    ("kernel", "most"), [("linear_dynamic", 5), ("linear_dynamic_7bit", 5), ("int8pack", 6)]
)
def test_a_call_is_few_calls_of_python(kernel: str, most: int) -> None:
    """Of hwbench's own functions, with the check that the codes are those that were packed."""
    layer, x = called(kernel, 1)
    calls: list[str] = []

    def seen(frame: Any, event: str, _: Any) -> None:
        if event == "call" and "/hwbench/formats/" in frame.f_code.co_filename:
            calls.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        layer(x)
    finally:
        sys.setprofile(before)
    assert len(calls) <= most, calls


@pytest.mark.parametrize("kernel", ON_CPU)
@pytest.mark.parametrize("tokens", [1, 4])
def test_x_may_lie_in_memory_in_any_way(kernel: str, tokens: int) -> None:
    """Strides of a side of one mean nothing, and no kernel reads them."""
    layer, x = called(kernel, tokens)
    y = layer(x)
    wide = torch.cat([x, x + 1], 1)
    beside = torch.cat([x - 1, x, x + 1])
    ways = [x.t().contiguous().t(), wide[:, :64], wide.repeat_interleave(2, 1)[:, :128:2]]
    ways += [beside[tokens : 2 * tokens], beside.t().contiguous().t()[tokens : 2 * tokens]]
    if tokens == 1:
        ways += [x.as_strided((1, 64), (step, 1)) for step in (0, 1, 7)]
    for way in ways:
        assert torch.equal(way, x)
        found = layer(way)
        assert found.is_contiguous()
        assert torch.equal(found, y), way.stride()
    folded = layer(wide.view(tokens, 2, 64))
    assert torch.equal(folded.view(-1, 48), layer(wide.view(-1, 64)))
