"""FLOPs as torch's own formulas count them, beside the exact ones of the format.

The formulas are right for dense and batched products. They count a sparse product as dense or as
nothing, and custom kernels as nothing, so this is a cross-check and never the figure that is used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from hwbench.devices._base import Device
from hwbench.meters._base import Meter
from hwbench.quantities import COUNTED_FLOPS
from hwbench.records import Measurement
from hwbench.workloads._base import Subject


class _Counter(TorchDispatchMode):
    """Adds up the registered formulas of the operators that run inside it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: torch would import its compiler first, which takes a second or two."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        return out


class _CompiledCounter(_Counter):
    """A counter that the compiler of torch does not trace: the counted step is compiled."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_dispatch__(func, types, args, kwargs)


class CountedCost(Meter):
    """``counted_flops``: what the formulas of ``torch.utils.flop_counter`` count in one step."""

    QUANTITIES = (COUNTED_FLOPS,)
    ORDER = 30
    FIRST_REPLICATE_ONLY = True

    def read(self, subject: Subject, device: Device) -> list[Measurement]:
        if subject.cost is None or subject.score is not None:
            return []
        states = subject.states(1)
        counting = _CompiledCounter() if subject.compiled else _Counter()
        with torch.set_grad_enabled(subject.grad), counting as counter:
            subject.step(states[0])
        device.synchronize()
        return [
            Measurement(
                quantity=COUNTED_FLOPS.name, unit=COUNTED_FLOPS.unit, values=[float(counter.flops)]
            )
        ]
