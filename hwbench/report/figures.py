"""Figures for papers: png, svg or pdf by the suffix of the file, with the words of a caption.

One panel a group, one column wide when there is one and the width of the text when there are more.
Formats have the colours and marker shapes of the report; several runs share panels. A figure that
would have more panels than fit shows the first ones and says so below.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from hwbench import files, suite
from hwbench.errors import RunFileError, SuiteError, UnknownNameError, UsageError
from hwbench.report import _caption, _facts, _paper_heat, _paper_points, _paper_sweeps
from hwbench.report._paper import FILLS, LEAST_INCHES, MOST_INCHES, Sheet
from hwbench.report.rows import Row, report_rows
from hwbench.store import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
_PLAIN = Sheet()

_RC: dict[Any, Any] = {
    "axes.titlesize": 7.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "font.size": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "xtick.minor.width": 0,
    "ytick.minor.width": 0,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.0,
    "pdf.fonttype": 42,  # text stays text
    "svg.hashsalt": "hwbench",  # the same file for the same run
}


def import_matplotlib() -> None:
    """Import matplotlib, if nobody has, without the settings of the user and the current folder.

    It reads them when it is imported, before ``plot`` can set them aside, and raises where they
    name a backend that is not there or cannot be read. This is for a process that draws nothing
    else: whoever calls ``plot`` from a notebook keeps the backend that the notebook chose.
    """
    if "matplotlib" in sys.modules:
        return
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None
    assert spec.origin is not None
    shipped = Path(spec.origin).parent / "mpl-data" / "matplotlibrc"
    before = {name: os.environ.pop(name, None) for name in ("MPLBACKEND", "MATPLOTLIBRC")}
    folder = os.open(".", os.O_RDONLY)
    os.environ["MATPLOTLIBRC"] = str(shipped)
    os.chdir("/")
    try:
        import_module("matplotlib")
    finally:
        os.fchdir(folder)
        os.close(folder)
        del os.environ["MATPLOTLIBRC"]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def plot(
    run: Run | Sequence[Run], kind: str, path: Path, sheet: Sheet = _PLAIN, filtered: str = ""
) -> None:
    """Draw one kind of figure: roofline, pareto, crossover, heatmap or scaling.

    It starts from matplotlib's own defaults, so that the same run gives the same file.

    Args:
        run: a run, or up to four that are drawn in the same panels.
        kind: one of ``KINDS``.
        path: the file; its suffix says of which type.
        sheet: which panels, how wide, and under which title.
        filtered: only timed cases that match, as for ``hwbench run --filter``.

    Raises:
        UnknownNameError: there is no such kind.
        SuiteError: the filter leaves no case.
        UsageError: the run has no data for it, the file is neither png, svg nor pdf, there is no
            such panel, the width is no width of a page, or there are more than four runs.
        RunFileError: the file cannot be written.
    """
    runs = [run] if isinstance(run, Run) else list(run)
    if kind not in KINDS:
        raise UnknownNameError("kind of figure", kind, KINDS)
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"A figure is written as png, svg or pdf, not as {path.name!r}.")
    if not 1 <= len(runs) <= len(FILLS):
        raise UsageError(f"A figure shows one to {len(FILLS)} runs, not {len(runs)}.")
    if sheet.width is not None and not LEAST_INCHES <= sheet.width <= MOST_INCHES:
        raise UsageError(
            f"A figure is {LEAST_INCHES:g} to {MOST_INCHES:g} inches wide, not {sheet.width:g}."
        )
    rows = drawn_rows(runs, filtered)
    with styled():
        _save(KINDS[kind](rows, sheet), path)


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """The style of every figure, in place of the settings that matplotlib has."""
    import matplotlib as mpl
    import seaborn as sns

    with mpl.rc_context():
        mpl.rcdefaults()
        with sns.axes_style("ticks"), sns.plotting_context("paper"), mpl.rc_context(_RC):
            yield


def caption(run: Run | Sequence[Run], kind: str, filtered: str = "") -> str:
    """The words for under a figure: what is drawn, on which machines, with which versions."""
    runs = [run] if isinstance(run, Run) else list(run)
    return _caption.caption(runs, kind, filtered)


def drawn_rows(runs: Sequence[Run], filtered: str = "") -> list[Row]:
    """The rows of the runs, those of several under the names of their machines.

    Scores are kept whatever the filter says: a figure shows them beside timed cases only.

    Raises:
        SuiteError: the filter leaves no case of any run.
    """
    names = _facts.machines(list(runs)) if len(runs) > 1 else [""]
    rows = []
    errors: list[SuiteError] = []
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        rows_of_run = [replace(row, run=number) for row in report_rows(run, number, name)]
        if filtered:
            cases = [planned.case for planned in run.planned.values()]
            try:
                matching = {case.id for case in suite.select(cases, filtered)}
            except UnknownNameError:
                raise
            except SuiteError as error:
                errors.append(error)
                matching = set()
            rows_of_run = [row for row in rows_of_run if row.scored or row.case in matching]
        rows += rows_of_run
    if len(errors) == len(runs):
        raise errors[0]
    return rows


def _save(figure: Figure, path: Path) -> None:
    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower())
    try:
        with files.whole(path) as beside:
            figure.savefig(beside, dpi=300, metadata=metadata)
    except OSError as error:
        raise RunFileError(f"Cannot write the figure {path}: {error.strerror}.") from error


KINDS: dict[str, Callable[[list[Row], Sheet], Figure]] = {
    "roofline": _paper_points.roofline,
    "pareto": _paper_points.pareto,
    "crossover": _paper_sweeps.crossover,
    "heatmap": _paper_heat.heatmap,
    "scaling": _paper_sweeps.scaling,
}
"""The kinds of figure, and what draws each."""
