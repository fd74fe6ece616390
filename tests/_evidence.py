"""The scripts of the folder evidence, as modules: it is no package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

EVIDENCE = Path(__file__).parents[1] / "evidence"


def script(name: str) -> ModuleType:
    """The script of that name, run as a module of its own, after what scripts share."""
    for shared in EVIDENCE.glob("_*.py"):
        if shared.stem not in sys.modules:
            _loaded(shared.stem)
    return _loaded(name)


def _loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EVIDENCE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module
