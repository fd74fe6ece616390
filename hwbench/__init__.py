"""Which weight format should this linear layer use on this machine, at the accuracy I need?

Importing hwbench loads no torch and no pandas; they are loaded when a name that needs them is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hwbench.formats._base import Format, Linear
    from hwbench.frames import load_run, summary
    from hwbench.runner import run

_HOMES = {
    "Format": "hwbench.formats._base",
    "Linear": "hwbench.formats._base",
    "load_run": "hwbench.frames",
    "summary": "hwbench.frames",
    "run": "hwbench.runner",
}

__all__ = ["Format", "Linear", "__version__", "get_format", "load_run", "run", "summary"]


def get_format(name: str) -> type[Format]:
    """The class of a format by name, such as ``"monarch"``.

    Raises:
        UnknownNameError: there is none; the message names the nearest.
    """
    from hwbench import plugins
    from hwbench.formats._base import Format

    return plugins.load("formats", name, Format)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hwbench' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
