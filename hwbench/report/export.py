"""A run as csv, json or parquet (one row a case and replicate), or for another tool."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

from hwbench import files
from hwbench.analysis.frames import replicate_rows
from hwbench.channels import cell
from hwbench.errors import MissingPartError, RunFileError, UnknownNameError
from hwbench.report import bencher, pytest_benchmark
from hwbench.report.rows import known
from hwbench.store import Run


def export(run: Run, to: str, path: Path) -> None:
    """Write the rows of ``hwbench.load_run``, or what ``to`` is the name of, in full precision.

    Raises:
        UnknownNameError: there is no such kind of file.
        MissingPartError: it needs a package that is not installed.
        RunFileError: the file cannot be written.
    """
    if to not in KINDS:
        raise UnknownNameError("kind of export", to, KINDS)
    try:
        with files.whole(path) as beside:
            KINDS[to](run, beside)
    except OSError as error:
        raise RunFileError(f"Cannot write {path}: {error.strerror}.") from error


def _csv(run: Run, path: Path) -> None:
    """A text that a spreadsheet would take for a formula has an apostrophe before it."""
    import pandas as pd

    rows = [
        {cell(k): cell(v) if isinstance(v, str) else v for k, v in row.items()}
        for row in replicate_rows(run)
    ]
    pd.DataFrame(rows).to_csv(path, index=False)


def _json(run: Run, path: Path) -> None:
    """A list of objects; what is unknown is null, as JSON knows no NaN."""
    plain = [
        {k: None if isinstance(v, float) and not known(v) else v for k, v in row.items()}
        for row in replicate_rows(run)
    ]
    path.write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _parquet(run: Run, path: Path) -> None:
    import pandas as pd

    if importlib.util.find_spec("pyarrow") is None:
        raise MissingPartError(
            "Writing parquet needs pyarrow, which is not installed; "
            "install it with `pip install pyarrow`, or export to csv."
        )
    pd.DataFrame(replicate_rows(run)).to_parquet(path, engine="pyarrow", index=False)


KINDS: dict[str, Callable[[Run, Path], None]] = {
    "csv": _csv,
    "json": _json,
    "parquet": _parquet,
    "pytest-benchmark": pytest_benchmark.write,
    "bencher": bencher.write,
}
"""The kinds of file, and what writes each."""
