"""Bytes saved for the backward pass, and the peak of one step above the memory at rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hwbench.devices._base import Device
from hwbench.meters._base import Meter
from hwbench.quantities import GRADIENT_BYTES, PEAK_BYTES, SAVED_BYTES
from hwbench.records import Measurement
from hwbench.workloads._base import Subject


class Memory(Meter):
    """Reads memory in a pass of its own, in the first replicate only: it is exact, not noisy.

    ``gradient_bytes`` are the gradients that one step returns. ``saved_bytes`` counts each storage
    that autograd keeps for the backward pass once, without the layer's own parameters and buffers.
    ``peak_bytes`` is the most that tensors took during one step (its untimed part included) above
    what they took before it.
    """

    QUANTITIES = (SAVED_BYTES, PEAK_BYTES, GRADIENT_BYTES)
    FIRST_REPLICATE_ONLY = True

    ORDER = 40

    def read(self, subject: Subject, device: Device) -> list[Measurement]:
        if subject.score is not None:
            return []
        readings = {PEAK_BYTES.name: device.peak_bytes(lambda: _once(subject))}
        if subject.grad:
            readings[SAVED_BYTES.name] = saved_bytes(subject)
            readings[GRADIENT_BYTES.name] = sum(
                part.untyped_storage().nbytes()
                for gradient in _once(subject)
                for part in _strided_parts(gradient)
            )
        return [
            Measurement(quantity=name, unit="B", values=[float(value)])
            for name, value in readings.items()
        ]


def saved_bytes(subject: Subject) -> int:
    """Bytes of the storages that one step saves for its backward pass, each counted once."""
    own: set[int] = set()
    if subject.module is not None:
        for tensor in (*subject.module.parameters(), *subject.module.buffers()):
            if tensor.layout == torch.strided:
                own.add(tensor.untyped_storage().data_ptr())
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no address is used twice while we count

    def pack(tensor: Tensor) -> Tensor:
        for part in _strided_parts(tensor):
            storage = part.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _once(subject)
    return sum(sizes.values())


def _strided_parts(tensor: Tensor) -> list[Tensor]:
    if tensor.layout == torch.strided:
        return [tensor]
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout == torch.sparse_csr:
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout == torch.sparse_csc:
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    raise NotImplementedError(f"Bytes of a saved tensor of layout {tensor.layout} are not counted.")


def _once(subject: Subject) -> Any:
    states = subject.states(1)
    with torch.set_grad_enabled(subject.grad):
        return subject.step(states[0])
