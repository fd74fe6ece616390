"""The progress of a measurement: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hwbench.channels import visible
from hwbench.cli import _shared
from hwbench.errors import RunFileError

if TYPE_CHECKING:
    from rich.progress import Task

    from hwbench.measure.schedule import Listener, Progress


LOG_SECONDS = 30.0  # between two lines of progress where there is no terminal


class _Log:
    """The lines of a log: the state of the run, each half minute.

    A case may take minutes, and who watches a log ends a job that prints nothing for long.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._lock = say, threading.Lock()
        self._line: Callable[[float], str] = lambda waited: "hwbench: planning"
        self._heard_at = self._said_at = time.monotonic()

    def heard(self, line: Callable[[float], str], *, at_once: bool) -> None:
        """What came from the run, which is printed where it is due.

        ``line`` is the state of the run so many seconds later, if nothing came until then.
        """
        with self._lock:
            self._line, self._heard_at = line, time.monotonic()
            if at_once or self._heard_at - self._said_at >= LOG_SECONDS:
                self._said_at = self._heard_at
                self._say(line(0.0))

    @contextlib.contextmanager
    def between(self) -> Iterator[None]:
        """Print a line after each half minute in which nothing was printed."""
        ended = threading.Event()

        def wait() -> None:
            while not ended.wait(max(0.0, self._said_at + LOG_SECONDS - time.monotonic())):
                self.remind()

        thread = threading.Thread(target=wait, name="hwbench log", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def remind(self) -> None:
        """Print the last line again where half a minute is over, and how long it is the last."""
        from hwbench.units import clock

        with self._lock:
            now = time.monotonic()
            if now - self._said_at >= LOG_SECONDS:
                self._said_at, waited = now, now - self._heard_at
                late = f"; still at work, {clock(waited)} without a result"
                self._say(f"{self._line(waited)}{late if waited >= LOG_SECONDS else ''}")


@contextlib.contextmanager
def progress() -> Iterator[Listener]:
    """A listener that draws a bar on a terminal, and writes a line each half minute elsewhere.

    Both go to standard error. The bar moves when a result comes and never in between: the parent
    sleeps while a child measures.
    """
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar
    from rich.table import Column
    from rich.text import Text

    from hwbench.measure import telling

    class Rest(TextColumn):
        """One line that is cut where the terminal ends: no other column gives way to it."""

        def render(self, task: Task) -> Text:
            return Text(task.description, no_wrap=True, overflow="ellipsis")

    console = _shared.console(error=True)
    # A case's id comes from a file, and its brackets are no markup.
    columns = (
        TextColumn("{task.percentage:3.0f} %"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[left]}"),
        Rest("", table_column=Column(no_wrap=False)),
    )
    quiet = not console.is_terminal

    def say(line: str) -> None:
        console.print(visible(line), soft_wrap=True, markup=False, highlight=False)

    log = _Log(say)
    with (
        Bar(*columns, console=console, auto_refresh=False, transient=True, disable=quiet) as bar,
        log.between() if quiet else contextlib.nullcontext(),
    ):
        task = bar.add_task("planning", total=1, left="")
        begun: dict[Path, None] = {}

        def listen(progress: Progress) -> None:
            if progress.begun:
                begun[progress.path] = None
            standing = telling.standing(progress)
            if quiet:
                log.heard(
                    lambda waited: f"hwbench: {telling.standing(progress, waited)}",
                    at_once=bool(progress.note) and progress.begun,
                )
            bar.update(
                task, completed=standing.done, total=standing.total, left=standing.left,
                description=standing.last,
            )  # fmt: skip
            bar.refresh()

        try:
            yield listen
        except KeyboardInterrupt:
            for line in _left([*begun]):
                console.print(visible(line), soft_wrap=True)
            raise


def _left(paths: list[Path]) -> list[str]:
    """A sentence on each unfinished run that an interruption leaves; else on the last run."""
    lines = {path: _way_on(path) for path in paths}
    unfinished = [line for line in lines.values() if line is not None]
    return unfinished or [f"The run in {path} is complete" for path in paths[-1:]]


def _way_on(path: Path) -> str | None:
    """How to go on with an interrupted run; None where it is complete, as earlier nights are."""
    from hwbench.store import has_footer, read_header

    left = f"What was measured is in {path}"
    try:
        header = read_header(path)
        if has_footer(path):
            return None
    except (RunFileError, OSError) as error:
        # The interruption is what is told; what became of the file can be asked later.
        return f"{left}, which cannot be read now: {error}"
    if not header.resumable:
        return f"{left}; a side of hwbench ab cannot be gone on with: start it again"
    cluster = ", and --cluster" if header.arguments.get("cluster") else ""
    return f"{left}; go on with --resume {path}{cluster}"
