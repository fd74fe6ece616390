"""Settings of torch that belong to the whole process: what a format changed of them, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_ONEDNN: Any = torch.backends.mkldnn

_SWITCHES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "default device": (torch.get_default_device, lambda _: torch.set_default_device(None)),
    "grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "threads": (torch.get_num_threads, torch.set_num_threads),
    "float32 matmul precision": (
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    "oneDNN's float32 precision": (
        lambda: _ONEDNN.matmul.fp32_precision,
        lambda name: setattr(_ONEDNN.matmul, "fp32_precision", name),
    ),
    "deterministic algorithms": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
}


def settings() -> dict[str, Any]:
    """The settings as they are."""
    return {name: read() for name, (read, _) in _SWITCHES.items()}


def restored(before: dict[str, Any]) -> list[str]:
    """Put back what differs from ``before``; a sentence on what that was, or nothing."""
    changed = []
    for name, (read, write) in _SWITCHES.items():
        now = read()
        if now != before[name]:
            changed.append(f"{name} from {before[name]} to {now}")
            write(before[name])
    words = f"It changed {', '.join(changed)} for the whole process; that was put back."
    return [words] if changed else []
