"""What a run tells while it is made, in words; a line in a notebook that each result renews."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hwbench.channels import visible
from hwbench.errors import shortened
from hwbench.units import clock

if TYPE_CHECKING:
    from hwbench.measure.schedule import Listener, Progress


@dataclass(frozen=True)
class Standing:
    """Where a run stands: results, the time left, and the last case that ended or a note."""

    done: int
    total: int
    left: str
    last: str

    def __str__(self) -> str:
        left = f", {self.left}" if self.left else ""
        last = f"; {self.last}" if self.last else ""
        return f"{self.done} of {self.total} results{left}{last}"


def standing(progress: Progress, waited: float = 0.0) -> Standing:
    """Where a run stands after a step of it, and so many seconds in which nothing came."""
    left = ""
    if progress.left is not None and (waited == 0 or waited < progress.left):
        left = f"{clock(progress.left - waited)} left"
    case = f"last: {shortened(progress.result.case)}" if progress.result else ""
    return Standing(progress.done, progress.total, left, progress.note or case)


def in_notebook() -> Listener | None:
    """A listener that keeps one line of the cell's output up to date; None outside of a notebook.

    A notebook is where IPython runs in a kernel: Jupyter, VS Code, Colab.
    """
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if getattr(shell, "kernel", None) is None:
        return None
    shown: Any = None

    def listen(progress: Progress) -> None:
        nonlocal shown
        line = {"text/plain": visible(str(standing(progress)))}
        if shown is None:
            display: Any = importlib.import_module("IPython.display").display
            shown = display(line, raw=True, display_id=True)
        else:
            shown.update(line, raw=True)

    return listen
