"""The bar that the verbs which measure draw while they do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hwbench.channels import visible
from hwbench.cli import _shared
from hwbench.errors import shortened

if TYPE_CHECKING:
    from hwbench.measure.schedule import Listener, Progress


@contextlib.contextmanager
def progress() -> Iterator[Listener]:
    """A listener that draws a bar on a terminal, and keeps a pipe clean.

    The bar is redrawn when a result comes and never in between: the parent sleeps while a child
    measures.
    """
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    console = _shared.console(error=True)
    seen: list[Progress] = []
    words = "{task.completed:.0f}/{task.total:.0f}  {task.fields[left]}  {task.description}"
    # A case's id comes from a file, and its brackets are no markup.
    columns = (TextColumn("{task.percentage:3.0f} %"), BarColumn(), TextColumn(words, markup=False))
    quiet = not console.is_terminal
    with Bar(*columns, console=console, auto_refresh=False, transient=True, disable=quiet) as bar:
        task = bar.add_task("planning", total=1, left="")

        def listen(progress: Progress) -> None:
            seen.append(progress)
            del seen[1:-1]  # the first and the last are enough
            bar.update(task, **_fields(progress, seen[0]))
            bar.refresh()

        try:
            yield listen
        except KeyboardInterrupt:
            if seen:
                path = seen[-1].path
                told = f"What was measured is in {path}; go on with --resume {path}"
                console.print(visible(told), soft_wrap=True)
            raise


def _fields(progress: Progress, first: Progress) -> dict[str, Any]:
    """The bar's fields: how far, how long still, and what ended last."""
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
