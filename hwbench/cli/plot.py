"""``hwbench plot``: one figure of one or several runs, for a paper."""

from __future__ import annotations

from pathlib import Path

import typer

from hwbench import files
from hwbench.cli import _shared
from hwbench.errors import UsageError

_WIDTHS = {"column": 3.35, "text": 6.9}  # inches


def plot(
    runs: list[Path] = typer.Argument(
        ..., help="A run file, or up to four to draw in the same panels; of a folder the newest."
    ),
    kind: str = typer.Option(
        ..., "--kind", "-k", help="roofline, pareto, crossover, heatmap or scaling."
    ),
    out: Path = typer.Option(..., "--out", "-o", help="The figure: .png, .svg or .pdf."),
    filter_: str = typer.Option(
        "", "--filter", help="Only matching timed cases: key=value,key=value, or a part of the id."
    ),
    panel: list[str] | None = typer.Option(
        None, "--panel", help="Only this panel: its number, or a part of its title; repeatable."
    ),
    width: str | None = typer.Option(
        None, "--width", help="column (3.35 in), text (6.9 in), or a number of inches."
    ),
    title: str | None = typer.Option(
        None, "--title", help='The title; "" leaves that of a single panel out.'
    ),
) -> None:
    """Draw one figure in a clean style, colour-blind safe, sized for a paper column.

    What the figure shows, the machines and the versions stand in FIGURE.caption.txt beside it.

    hwbench plot runs --kind pareto --panel "256 tokens" --title "" --out figure.pdf
    """
    from hwbench.report import figures
    from hwbench.report._paper import Sheet
    from hwbench.store import read_run

    paths = [_shared.run_files([each])[-1] for each in runs]
    files.check_replaceable(out, "the figure ")
    beside = out.with_name(f"{out.stem}.caption.txt")
    files.refuse_inputs([out, beside], paths)
    files.check_replaceable(beside, "the caption ")
    figures.import_matplotlib()
    sheet = Sheet(tuple(panel or ()), _inches(width), title)
    loaded = [read_run(path) for path in paths]
    aside = _shared.is_stream(out, beside)
    figures.plot(loaded, kind, out, sheet, filter_)
    files.write_text(beside, figures.caption(loaded, kind, filter_))
    _shared.say(f"The figure is in {out}, the words for its caption in {beside}.", error=aside)


def _inches(width: str | None) -> float | None:
    """The width in inches.

    Raises:
        UsageError: it is neither a number nor a name.
    """
    if width is None or width in _WIDTHS:
        return _WIDTHS.get(width or "")
    try:
        return float(width)
    except ValueError:
        raise UsageError(
            f"--width is column, text, or a number of inches such as 5, not {width!r}."
        ) from None
