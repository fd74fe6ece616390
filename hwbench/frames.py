"""Runs as pandas tables: one row a case and replicate, or one row a case with intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from hwbench.quiet import slowed
from hwbench.records import ITEM_BYTES, Cost, Planned, Regime, Result, Status, without_gc
from hwbench.roofline import Placement, Roof, place, roof
from hwbench.stats import estimate
from hwbench.store import Run, read_run

if TYPE_CHECKING:
    import pandas as pd

_BOUNDED = {
    "time_seconds": "time",
    "graph_seconds": "graph",
    "relative_time": "relative",
    "score": "score",
}
"""The columns that have an interval in ``summary``, and what its ends are called."""
_COST = (
    *("parameters", "stored_bytes", "flops", "dense_flops", "compulsory_bytes"),
    "intermediate_bytes",
)
QUANTITIES = (
    "time_seconds",
    "graph_seconds",
    "relative_time",
    "numerical_error",
    "score",
    "saved_bytes",
    "peak_bytes",
    "gradient_bytes",
    "energy_joules",
    "prepare_seconds",
    "unhealed_score",
    "retrieval_agreement",
    "unhealed_perplexity",
    "original_perplexity",
    "perplexity_ratio",
    "model_seconds",
    "model_bytes",
    "model_parameters",
    "step_seconds",
    "compile_seconds",
    "first_call_seconds",
)
"""The measured columns; each is the median over the blocks of a replicate."""
_NOT_MEASURED = dict.fromkeys(QUANTITIES, math.nan)


def load_run(path: str | Path) -> pd.DataFrame:
    """One row for each case and replicate of a run file; the columns are those of the docs.

    Raises:
        RunFileError: the file cannot be read or is not a run file.
    """
    import pandas as pd

    with without_gc():
        return pd.DataFrame(replicate_rows(read_run(Path(path))))


def summary(path: str | Path) -> pd.DataFrame:
    """One row for each case of a run file, with intervals over its replicates.

    Raises:
        RunFileError: the file cannot be read or is not a run file.
    """
    import pandas as pd

    run = read_run(Path(path))
    return pd.DataFrame(with_further_quantities(summary_rows(run), good_results(run)))


def replicate_rows(run: Run) -> list[dict[str, Any]]:
    """The rows of ``load_run`` as dictionaries."""
    of_case: dict[str, dict[str, Any]] = {}
    rows = []
    for result in run.results:
        if result.case not in of_case:
            of_case[result.case] = _case_columns(run, run.planned[result.case])
        rows.append({
            **of_case[result.case],
            "status": result.status.value,
            "reason": result.reason,
            "flags": ",".join(result.flags),
            "replicate": result.replicate,
            "seed": result.seed,
            **_measured(result),
        })  # fmt: skip
    return with_further_quantities(rows, [[result] for result in run.results])


def summary_rows(run: Run) -> list[dict[str, Any]]:
    """The rows of ``summary`` as dictionaries, in the order of the suite.

    A planned case without any result yet has the status ``missing``.
    """
    rows = [
        _case_columns(run, planned) | _summary_columns(results)
        for planned, results in zip(run.planned.values(), _by_case(run), strict=True)
    ]
    roofs = {dtype: roof(run.header.ceilings, dtype) for dtype in {row["dtype"] for row in rows}}
    return [row | _placed_columns(row, roofs[row["dtype"]]) for row in rows]


def with_further_quantities(
    rows: list[dict[str, Any]], results: Sequence[Sequence[Result]]
) -> list[dict[str, Any]]:
    """The rows with a column for each measured quantity that is not one of ``QUANTITIES``.

    Such quantities are those of installed meters, and those that no table shows. A column has the
    name of its quantity, with ``measured_`` before it where a column has that name already.

    Args:
        rows: of ``load_run`` or ``summary``; all have the same columns.
        results: those that each row is made of.
    """
    names = dict.fromkeys(
        measurement.quantity
        for of_row in results
        for result in of_row
        for measurement in result.measurements
        if measurement.quantity not in QUANTITIES
    )
    found = [dict(row) for row in rows]
    for name in names:
        for row, of_row in zip(found, results, strict=True):
            read = [result.values(name) for result in of_row]
            values = [median(blocks) for blocks in read if blocks]
            column = name
            while column in row:
                column = f"measured_{column}"
            row[column] = estimate(values).value if values else math.nan
    return found


def good_results(run: Run) -> list[list[Result]]:
    """The results of each planned case that are ok, in the order of the suite."""
    return [[r for r in results if r.status is Status.OK] for results in _by_case(run)]


def _by_case(run: Run) -> list[list[Result]]:
    found: dict[str, list[Result]] = {case: [] for case in run.planned}
    for result in run.results:
        found[result.case].append(result)
    return list(found.values())


def placement(row: Mapping[str, Any], ceiling: Roof | None) -> Placement | None:
    """Where a row stands under its roof; None without a time, a cost or a roof."""
    seconds = row["time_seconds"]
    if ceiling is None or not 0 < seconds < math.inf or not row["compulsory_bytes"]:
        return None
    cost = Cost(**{name: row[name] or 0 for name in _COST})
    return place(cost, ceiling, seconds, hot=row["regime"] != Regime.COLD)


def _placed_columns(row: Mapping[str, Any], ceiling: Roof | None) -> dict[str, Any]:
    """The roofline as columns, and the energy of a FLOP that a dense layer would have executed."""
    placed, dense_flops = placement(row, ceiling), row["dense_flops"]
    return {
        "intensity": placed.intensity if placed else math.nan,
        "bound": placed.bound if placed else None,
        "attainable_seconds": placed.attainable_seconds if placed else math.nan,
        "efficiency": placed.efficiency if placed else math.nan,
        "in_cache": placed.in_cache if placed else None,
        "bytes_source": placed.bytes_source if placed else None,
        "joules_per_dense_flop": row["energy_joules"] / dense_flops if dense_flops else math.nan,
    }


def _case_columns(run: Run, planned: Planned) -> dict[str, Any]:
    case, cost = planned.case, planned.cost
    return {
        "case": case.id,
        "format": case.format,
        "label": case.label,
        "kernel": planned.kernel,
        "knobs": json.dumps(case.knobs, sort_keys=True),
        "resolved": json.dumps(planned.resolved, sort_keys=True),
        "workload": case.workload,
        "options": json.dumps(case.options, sort_keys=True),
        "out_features": case.out_features,
        "in_features": case.in_features,
        "tokens": case.tokens,
        "dtype": case.dtype,
        "direction": case.direction,
        "regime": case.regime,
        "mode": case.mode,
        "device": run.header.device,
        "asked_density": case.knobs.get("density"),
        "density": planned.density,
        "parameters": cost.parameters if cost else None,
        "stored_bytes": cost.stored_bytes if cost else None,
        "better": planned.better,
        "dense_bytes": case.out_features * case.in_features * ITEM_BYTES[case.dtype],
        "flops": cost.flops if cost else None,
        "dense_flops": cost.dense_flops if cost else None,
        "compulsory_bytes": cost.compulsory_bytes if cost else None,
        "intermediate_bytes": cost.intermediate_bytes if cost else None,
    }


def _measured(result: Result) -> dict[str, Any]:
    row: dict[str, Any] = {"contract": None, "score_name": None, **_NOT_MEASURED}
    for name in {
        measurement.quantity for measurement in result.measurements
    } & _NOT_MEASURED.keys():
        if values := result.values(name):
            row[name] = median(values)
    for measurement in result.measurements:
        if measurement.quantity == "time_seconds":
            row["contract"] = measurement.contract
        if measurement.quantity == "score":
            row["score_name"] = measurement.note
    return row


def _summary_columns(results: list[Result]) -> dict[str, Any]:
    failed = next((r for r in results if r.status is not Status.OK), None)
    status = failed.status.value if failed else (Status.OK.value if results else "missing")
    flags = sorted({flag for result in results for flag in result.flags})
    row: dict[str, Any] = {
        "status": status,
        "reason": failed.reason if failed else None,
        "flags": ",".join(flags),
        "replicates": sum(1 for r in results if r.status is Status.OK),
        "contract": None,
        "score_name": None,
    }
    measured = {r.replicate: _measured(r) for r in results if r.status is Status.OK}
    late = slowed(results)
    good = list(measured.values())
    quiet = [columns for replicate, columns in measured.items() if replicate not in late]
    row["slowed"] = len(late)
    for name in QUANTITIES:
        counted = quiet if name == "relative_time" else good
        values = [r[name] for r in counted if not math.isnan(r[name])]
        interval = estimate(values) if values else None
        row[name] = interval.value if interval else math.nan
        if name in _BOUNDED:
            row[f"{_BOUNDED[name]}_low"] = interval.low if interval else math.nan
            row[f"{_BOUNDED[name]}_high"] = interval.high if interval else math.nan
    for name in ("contract", "score_name"):
        row[name] = next((r[name] for r in good if r[name] is not None), None)
    return row
