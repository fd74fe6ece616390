"""``hwbench export``: a run for other tools."""

from __future__ import annotations

from pathlib import Path

import typer

from hwbench import files
from hwbench.cli import _shared


def export(
    run: Path = typer.Argument(..., help="A run file."),
    to: str = typer.Option(..., "--to", help="csv, json, parquet, pytest-benchmark or bencher."),
    out: Path = typer.Option(..., "--out", "-o", help="The file to write."),
) -> None:
    """Write one row for each case and replicate of a run, or a file for another tool.

    hwbench export runs --to csv --out rows.csv    hwbench export runs --to bencher -o b.json
    """
    from hwbench.report import export as exporters
    from hwbench.store import read_run

    (path,) = _shared.run_files([run])[-1:]
    files.refuse_inputs([out], [path])
    aside = _shared.is_stream(out)
    exporters.export(read_run(path), to, out)
    _shared.say(f"The run is in {out}.", error=aside)
