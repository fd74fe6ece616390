"""The progress of a measurement: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hwbench.channels import visible
from hwbench.cli import _shared
from hwbench.errors import shortened

if TYPE_CHECKING:
    from hwbench.measure.schedule import Listener, Progress


LOG_SECONDS = 30.0  # between two lines of progress where there is no terminal


@contextlib.contextmanager
def progress() -> Iterator[Listener]:
    """A listener that draws a bar on a terminal, and writes a line each half minute elsewhere.

    Both go to standard error, when a result comes and never in between: the parent sleeps while a
    child measures.
    """
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    console = _shared.console(error=True)
    received: list[Progress] = []
    words = "{task.completed:.0f}/{task.total:.0f}  {task.fields[left]}  {task.description}"
    # A case's id comes from a file, and its brackets are no markup.
    columns = (TextColumn("{task.percentage:3.0f} %"), BarColumn(), TextColumn(words, markup=False))
    quiet, printed_at = not console.is_terminal, time.monotonic()
    with Bar(*columns, console=console, auto_refresh=False, transient=True, disable=quiet) as bar:
        task = bar.add_task("planning", total=1, left="")

        def listen(progress: Progress) -> None:
            nonlocal printed_at
            received.append(progress)
            if len(received) > 1 and received[0].done == 0 < received[1].done:
                # The time before the first result is left out: reading a model happens once.
                del received[0]
            del received[1:-1]  # the first and the last are enough
            fields = _fields(progress, received[0])
            if quiet and (progress.note or time.monotonic() - printed_at >= LOG_SECONDS):
                printed_at = time.monotonic()
                console.print(visible(_line(fields)), soft_wrap=True, markup=False, highlight=False)
            bar.update(task, **fields)
            bar.refresh()

        try:
            yield listen
        except KeyboardInterrupt:
            if received:
                path = received[-1].path
                hint = f"What was measured is in {path}; go on with --resume {path}"
                console.print(visible(hint), soft_wrap=True)
            raise


def _line(fields: dict[str, Any]) -> str:
    """A line of a log: ``hwbench: 12 of 69 results, 1:20 left; dense/1024x1024 …``."""
    left = f", {fields['left']}" if fields["left"] else ""
    last = f"; {fields['description']}" if fields["description"] else ""
    return f"hwbench: {fields['completed']:.0f} of {fields['total']:.0f} results{left}{last}"


def _fields(progress: Progress, first: Progress) -> dict[str, Any]:
    """The bar's fields: the part done, the time left, and the last case that ended."""
    from hwbench.units import clock

    done, left = progress.done - first.done, ""
    if done:
        each = (progress.seconds - first.seconds) / done
        left = f"{clock(each * (progress.total - progress.done))} left"
    return {
        "completed": progress.done,
        "total": progress.total,
        "left": left,
        "description": progress.note
        or (shortened(progress.result.case) if progress.result else ""),
    }
