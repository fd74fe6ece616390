"""The rows of a run as csv, json or parquet: one row a case and replicate, in full precision."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

from hwbench.errors import MissingPartError, RunFileError, UnknownNameError
from hwbench.frames import replicate_rows
from hwbench.report._rows import Row, known
from hwbench.store import Run


def export(run: Run, to: str, path: Path) -> None:
    """Write the rows of ``hwbench.load_run`` to a file; ``to`` is csv, json or parquet.

    Raises:
        UnknownNameError: there is no such kind of file.
        MissingPartError: parquet was asked for and pyarrow is not installed.
        RunFileError: the file cannot be written.
    """
    if to not in KINDS:
        raise UnknownNameError("kind of export", to, KINDS)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        KINDS[to](replicate_rows(run), path)
    except OSError as error:
        raise RunFileError(f"Cannot write {path}: {error.strerror}.") from error


def _csv(rows: list[Row], path: Path) -> None:
    import pandas as pd

    pd.DataFrame(rows).to_csv(path, index=False)


def _json(rows: list[Row], path: Path) -> None:
    """A list of objects; what is unknown is null, as JSON knows no NaN."""
    plain = [
        {k: None if isinstance(v, float) and not known(v) else v for k, v in row.items()}
        for row in rows
    ]
    path.write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _parquet(rows: list[Row], path: Path) -> None:
    import pandas as pd

    if importlib.util.find_spec("pyarrow") is None:
        raise MissingPartError(
            "Writing parquet needs pyarrow, which is not installed; "
            "install it with `pip install pyarrow`, or export to csv."
        )
    pd.DataFrame(rows).to_parquet(path, engine="pyarrow", index=False)


KINDS: dict[str, Callable[[list[Row], Path], None]] = {
    "csv": _csv,
    "json": _json,
    "parquet": _parquet,
}
"""The kinds of file, and what writes each."""
