"""Which weight format should this linear layer use on this machine, at the accuracy I need?

Measure, and read what was measured:

* ``run(suite, device="auto")`` measures a suite and returns the path of the run file.
* ``answer(path)`` is what to use in each setting, as lines, and as a table in a notebook.
* ``load_run(path)`` is a DataFrame with a row for each case and replicate.
* ``load_runs([path, …])`` is the same of several runs, with their machines.
* ``summary(path)`` is a DataFrame with a row for each case, and intervals over its replicates.
* ``best(path, error=0.1)`` is what to use in each setting, within a largest error.

Layers:

* ``get_format("monarch")`` is the class of a format. ``.for_budget(out, in, density)`` makes it for
  a shape; then ``.random()`` or ``.project(weight)`` make a layer, a ``Linear``; the weight may be
  an ``nn.Linear``.

Models:

* ``convert(model, format="low_rank", density=0.5)`` is a copy of a model with its linear layers in
  a format.
* ``capture(model, texts, out)`` writes what the linear layers of a model see of a text.
* ``save_converted(model, folder)`` and ``load_converted(folder, model)`` keep one on disk.

To add members of your own, subclass ``Format``, ``Workload``, ``Device`` or ``Meter``;
docs/add-a-format.md and docs/add-a-device.md show how.

Importing hwbench loads no torch and no pandas; they are loaded when a name that needs them is used.
"""

import importlib

__version__ = "0.1.0"

# Type checkers take this name for true. Neither typing nor __future__ is imported: ``python -m
# hwbench`` would take them from the current folder, which __main__ has not yet put aside.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from hwbench.analysis.frames import load_run, load_runs, summary
    from hwbench.devices._base import Device
    from hwbench.formats._base import Format, Linear, budget, round_down, unreachable
    from hwbench.formats._kernel import Kernel
    from hwbench.measure.run import run
    from hwbench.meters._base import Meter
    from hwbench.report.best import best
    from hwbench.report.notebook import answer
    from hwbench.workloads._base import Subject, Workload
    from hwbench.workloads._capture import capture
    from hwbench.workloads._convert import convert
    from hwbench.workloads._converted import load_converted, save_converted

_HOMES = {
    "Device": "hwbench.devices._base",
    "Format": "hwbench.formats._base",
    "Kernel": "hwbench.formats._kernel",
    "Linear": "hwbench.formats._base",
    "Meter": "hwbench.meters._base",
    "Subject": "hwbench.workloads._base",
    "Workload": "hwbench.workloads._base",
    "budget": "hwbench.formats._base",
    "capture": "hwbench.workloads._capture",
    "convert": "hwbench.workloads._convert",
    "load_converted": "hwbench.workloads._converted",
    "save_converted": "hwbench.workloads._converted",
    "round_down": "hwbench.formats._base",
    "unreachable": "hwbench.formats._base",
    "answer": "hwbench.report.notebook",
    "best": "hwbench.report.best",
    "load_run": "hwbench.analysis.frames",
    "load_runs": "hwbench.analysis.frames",
    "summary": "hwbench.analysis.frames",
    "run": "hwbench.measure.run",
}

__all__ = [
    "Device",
    "Format",
    "Kernel",
    "Linear",
    "Meter",
    "Subject",
    "Workload",
    "__version__",
    "answer",
    "best",
    "budget",
    "capture",
    "convert",
    "get_format",
    "load_converted",
    "load_run",
    "load_runs",
    "round_down",
    "run",
    "save_converted",
    "summary",
    "unreachable",
]


def get_format(name: str) -> "type[Format]":
    """The class of a format by name, such as ``"monarch"``.

    Raises:
        UnknownNameError: there is none; the message names the nearest.
    """
    from hwbench import plugins
    from hwbench.formats._base import Format

    return plugins.load("formats", name, Format)


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> "Any":
    if name not in _HOMES:
        raise AttributeError(f"module 'hwbench' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
