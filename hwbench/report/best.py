"""What to use in each setting of a run, as a table in pandas."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwbench import files
from hwbench.analysis.contested import LOSSLESS
from hwbench.errors import RunFileError, UsageError
from hwbench.report.decision import Setting, settings
from hwbench.report.rows import known, numbered, report_rows
from hwbench.store import read_run

if TYPE_CHECKING:
    import pandas as pd


def best(path: str | Path, error: float = 0.0) -> pd.DataFrame:
    """The format to use in each setting of a run: the fastest within a largest error.

    Where a run scores something else than relative errors, such as a perplexity, a limit leaves
    the exact formats.

    Args:
        path: a run file.
        error: the largest error, relative; 0 asks for exact formats, ``math.inf`` for any.

    Returns:
        One row for each setting, with the columns ``setting case format label density
        time_seconds dense_seconds relative_time relative_low relative_high stored_bytes error
        verdict tied undecided``. ``error`` is None where the run has none; ``tied`` and
        ``undecided`` are lists of the names of rivals, of which the latter may also have a
        shorter time that is hardly known. With the verdict *undecided* dense may be as fast.
        Where nothing is within the error, the row holds the setting alone.

    Raises:
        RunFileError: the file cannot be read or is not a run file.
        UsageError: the error is below zero.
    """
    import pandas as pd

    if not error >= 0:
        raise UsageError(f"The largest error must be 0 or more, not {error}.")
    run_settings = settings(numbered(report_rows(read_run(files.named(path, RunFileError)))))
    return pd.DataFrame([_row(setting, error) for setting in run_settings], columns=_COLUMNS)


_COLUMNS = (
    *("setting", "case", "format", "label", "density", "time_seconds", "dense_seconds"),
    *("relative_time", "relative_low", "relative_high", "stored_bytes", "error", "verdict"),
    *("tied", "undecided"),
)


def _by_exactness(setting: Setting) -> Setting:
    """The setting as if it had no scores: of all but exact formats no error is known."""
    candidates = [
        replace(each, loss=0.0 if each.row.format in LOSSLESS else math.nan)
        for each in setting.candidates
    ]
    return replace(setting, candidates=candidates, by_error=True)


def _row(setting: Setting, error: float) -> dict[str, Any]:
    if not setting.by_error and error < math.inf:
        setting = _by_exactness(setting)
    best = setting.best(error)
    if best is None:
        return {"setting": setting.title, "tied": [], "undecided": []}
    row = best.row
    return {
        "setting": setting.title,
        "case": row.case,
        "format": row.format,
        "label": best.name,
        "density": row.density,
        "time_seconds": row.time_seconds,
        "dense_seconds": setting.dense_seconds(best),
        "relative_time": best.relative,
        "relative_low": row.relative_low,
        "relative_high": row.relative_high,
        "stored_bytes": row.stored_bytes,
        "error": best.loss if setting.by_error and known(best.loss) else None,
        "verdict": best.verdict,
        "tied": [each.name for each in setting.tied(best, error)],
        "undecided": [
            each.name for each in (*setting.shorter(best, error), *setting.close(best, error))
        ],
    }
