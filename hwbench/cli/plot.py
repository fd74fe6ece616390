"""``hwbench plot``: one figure of a run, for a paper."""

from __future__ import annotations

from pathlib import Path

import typer

from hwbench import files
from hwbench.cli import _shared


def plot(
    run: Path = typer.Argument(..., help="A run file."),
    kind: str = typer.Option(
        ..., "--kind", "-k", help="roofline, pareto, crossover, heatmap or scaling."
    ),
    out: Path = typer.Option(..., "--out", "-o", help="The figure: .png, .svg or .pdf."),
) -> None:
    """Draw one figure in a clean style, colour-blind safe, sized for a paper column."""
    from hwbench.report import figures
    from hwbench.store import read_run

    (path,) = _shared.run_files([run])[-1:]
    files.refuse_inputs([out], [path])
    figures.import_matplotlib()
    figures.plot(read_run(path), kind, out)
    _shared.say(f"The figure is in {out}.")
