"""Runs as pandas tables: one row a case and replicate, or one row a case with intervals."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from hwbench import files, quantities
from hwbench.analysis.noise import Variance, estimates
from hwbench.analysis.quiet import Counted, counted
from hwbench.analysis.roofline import Placement, Roof, place, raised, roof
from hwbench.analysis.stats import estimate
from hwbench.errors import RunFileError
from hwbench.quantities import ENERGY, GRAPH, RELATIVE, SCORE, TIME, Quantity
from hwbench.records import ITEM_BYTES, Cost, Planned, Regime, Result, Status, without_gc
from hwbench.store import Run, read_run

if TYPE_CHECKING:
    import pandas as pd

_BOUNDED = {TIME.name: "time", GRAPH.name: "graph", RELATIVE.name: "relative", SCORE.name: "score"}
"""The columns that have an interval in ``summary``, with the prefix of its two ends."""
NEVER_QUIET = "never_quiet"
"""The flag of a case for which the machine was quiet in fewer than two replicates of several."""

_ALL = Counted(frozenset(), frozenset())
_TOGETHER = (TIME.name, GRAPH.name, RELATIVE.name)  # intervals that all cases draw together
_UNKNOWN: Variance = (math.nan, 0.0)
_COST = (
    *("parameters", "stored_bytes", "flops", "dense_flops", "compulsory_bytes"),
    "intermediate_bytes",
)


COLUMNS = frozenset(
    (
        *("case", "format", "label", "kernel", "knobs", "resolved", "workload", "options"),
        *("out_features", "in_features", "tokens", "dtype", "direction", "regime", "mode"),
        *("device", "asked_density", "asked_stored", "density", "better", "dense_bytes"),
        *("status", "reason"),
        *("flags", "replicate", "replicates", "seed", "contract", "score_name", "slowed"),
        *(f"{name}_{end}" for name in _BOUNDED.values() for end in ("low", "high")),
        *("intensity", "bound", "attainable_seconds", "efficiency", "in_cache", "bytes_source"),
        *("joules_per_dense_flop", "needed_flops", *_COST),
    )
)
"""The columns of ``load_run`` and ``summary`` that hold no quantity; none may have their names."""

_OF_RUN = ("run", "machine", "created", "torch", "hwbench", "threads")
_OF_PAGE = (
    *("against_dense", "base_seconds", "best", "density_word", "explained", "group_number"),
    *("level", "ratio", "ratio_high", "ratio_low", "ratio_roofs", "series", "shade"),
    *("relative", "stored_ratio", "flops_per_second", "unfused_intensity"),
    *(f"replicate_{number}" for number in range(10)),
    *(f"spread_{share}" for share in (5, 25, 75, 95)),
)
TAKEN = COLUMNS | {*_OF_RUN, *_OF_PAGE}
"""What no quantity may be called: these columns, those of ``load_runs``, and those of the page."""


def load_run(path: str | Path) -> pd.DataFrame:
    """One row for each case and replicate of a run file.

    docs/schema.md lists every column. Most often asked for are ``case``, ``format``, ``label``,
    ``tokens``, ``direction``, ``density``, ``time_seconds``, ``relative_time``, ``score`` and
    ``status``.

    Raises:
        RunFileError: the file cannot be read or is not a run file.
    """
    import pandas as pd

    with without_gc():
        return pd.DataFrame(replicate_rows(read_run(files.named(path, RunFileError))))


def summary(path: str | Path) -> pd.DataFrame:
    """One row for each case of a run file, with intervals over its replicates.

    The columns are those of ``load_run``, with the two ends of an interval beside what has one
    (``time_low``, ``time_high``, ``relative_low`` …), the roofline and ``slowed``, the number of
    replicates that were left out. docs/schema.md lists them.

    Raises:
        RunFileError: the file cannot be read or is not a run file.
    """
    import pandas as pd

    return pd.DataFrame(summary_rows(read_run(files.named(path, RunFileError))))


def load_runs(paths: Iterable[str | Path]) -> pd.DataFrame:
    """The rows of ``load_run`` of several run files, told apart by columns that stand first.

    ``run`` and ``machine`` are the run's id and its machine's name; ``created``, ``torch``,
    ``hwbench`` and ``threads`` are what most often differs between runs of one machine.

    Raises:
        RunFileError: a file cannot be read or is not a run file.
    """
    import pandas as pd

    with without_gc():
        rows = []
        for path in paths:
            run = read_run(files.named(path, RunFileError))
            rows += [_origin(run) | row for row in replicate_rows(run)]
        return pd.DataFrame(rows)


def _origin(run: Run) -> dict[str, Any]:
    header, facts = run.header, run.header.environment.fingerprint
    return {
        "run": header.run,
        "machine": header.machine,
        "created": header.created,
        "torch": facts.get("torch"),
        "hwbench": header.version,
        "threads": facts.get("threads"),
    }


def replicate_rows(run: Run) -> list[dict[str, Any]]:
    """The rows of ``load_run`` as dictionaries."""
    of_case: dict[str, dict[str, Any]] = {}
    columns = {name: each.name for name, each in measured(run).items()}
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
            **_measured(result, columns),
        })  # fmt: skip
    return rows


def measured(run: Run) -> dict[str, Quantity]:
    """The quantities of a run by the names of their measurements; each has its column's name.

    All of hwbench's own come first, then those that only this run holds. A quantity with the name
    of another column gets the prefix ``measured_``.
    """
    by_name = {each.name: each for each in quantities.MEASURED}
    for result in run.results:
        for each in result.measurements:
            if each.quantity not in by_name:
                declared = quantities.find(each.quantity, run.header.quantities, each.unit)
                if each.quantity in TAKEN:
                    declared = replace(declared, name=f"measured_{each.quantity}")
                by_name[each.quantity] = declared
    return by_name


def summary_rows(run: Run, count: Mapping[str, Counted] | None = None) -> list[dict[str, Any]]:
    """The rows of ``summary`` as dictionaries, in the order of the suite.

    A planned case without any result yet has the status ``missing``. A caller that has the result
    of ``quiet.counted`` passes it as ``count``.
    """
    by_case: dict[str, list[Result]] = defaultdict(list)
    for result in run.results:
        by_case[result.case].append(result)
    columns = {name: each.name for name, each in measured(run).items()}
    if count is None:
        count = counted(run.header, run.planned, run.results)
    rows = [
        _case_columns(run, planned)
        | _summary_columns(by_case.get(case, []), columns, count.get(case, _ALL))
        for case, planned in run.planned.items()
    ]
    drawn = _drawn_together(run, by_case, columns, count)
    rows = [row | more for row, more in zip(rows, drawn, strict=True)]
    above = roofs(run, rows)
    return [row | _placed_columns(row, above[row["dtype"]]) for row in rows]


def roofs(run: Run, rows: Iterable[Mapping[str, Any]]) -> dict[str, Roof | None]:
    """The roof of each dtype, raised where a case exceeds what was measured; None without any."""
    rates: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for row in rows:
        seconds, flops = row["time_seconds"], row["flops"] or 0
        executed = flops / seconds if 0 < seconds < math.inf else 0.0
        rates[row["dtype"]].append((row["case"], executed))
    ceilings = {dtype: roof(run.header.ceilings, dtype) for dtype in rates}
    return {dtype: ceiling and raised(ceiling, rates[dtype]) for dtype, ceiling in ceilings.items()}


def placement(row: Mapping[str, Any], ceiling: Roof | None) -> Placement | None:
    """Where a row stands under its roof; None without a time, a cost or a roof."""
    seconds = row["time_seconds"]
    if ceiling is None or not 0 < seconds < math.inf or not row["compulsory_bytes"]:
        return None
    cost = Cost(**{name: row[name] or 0 for name in _COST}, needed_flops=row["needed_flops"])
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
        "joules_per_dense_flop": row[ENERGY.name] / dense_flops if dense_flops else math.nan,
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
        "asked_stored": case.knobs.get("stored"),
        "density": planned.density,
        "parameters": cost.parameters if cost else None,
        "stored_bytes": cost.stored_bytes if cost else None,
        "better": planned.better,
        "dense_bytes": case.out_features * case.in_features * ITEM_BYTES[case.dtype],
        "flops": cost.flops if cost else None,
        "needed_flops": cost.useful_flops if cost else None,
        "dense_flops": cost.dense_flops if cost else None,
        "compulsory_bytes": cost.compulsory_bytes if cost else None,
        "intermediate_bytes": cost.intermediate_bytes if cost else None,
    }


def _measured(result: Result, columns: Mapping[str, str]) -> dict[str, Any]:
    """The median over the blocks of one replicate that count, by column; nan without any."""
    row: dict[str, Any] = {"contract": None, "score_name": None}
    row |= dict.fromkeys(columns.values(), math.nan)
    for measurement in reversed(result.measurements):
        if values := measurement.kept():
            row[columns[measurement.quantity]] = median(values)
        if measurement.quantity == TIME.name:
            row["contract"] = measurement.contract
        if measurement.quantity == SCORE.name:
            row["score_name"] = measurement.note
    return row


def _summary_columns(
    results: list[Result], columns: Mapping[str, str], count: Counted
) -> dict[str, Any]:
    """The columns of one case by itself; ``_drawn_together`` adds its times."""
    failed = next((r for r in results if r.status is not Status.OK), None)
    status = failed.status.value if failed else (Status.OK.value if results else "missing")
    flags = {flag for result in results for flag in result.flags}
    row: dict[str, Any] = {
        "status": status,
        "reason": failed.reason if failed else None,
        "flags": ",".join(sorted(flags | ({NEVER_QUIET} if count.never else set()))),
        "replicates": sum(1 for r in results if r.status is Status.OK),
        "slowed": len(count.slow),
        "contract": None,
        "score_name": None,
    }
    good = [_measured(r, columns) for r in results if r.status is Status.OK]
    read = {each.quantity for r in results if r.status is Status.OK for each in r.measurements}
    alone = {columns[quantity] for quantity in read.difference(_TOGETHER)}
    for name in columns.values():
        values = [r[name] for r in good if not math.isnan(r[name])] if name in alone else []
        interval = estimate(values) if values else None
        row[name] = interval.value if interval else math.nan
        if name in _BOUNDED:
            row[f"{_BOUNDED[name]}_low"] = interval.low if interval else math.nan
            row[f"{_BOUNDED[name]}_high"] = interval.high if interval else math.nan
    for name in ("contract", "score_name"):
        row[name] = next((r[name] for r in good if r[name] is not None), None)
    layers = [each.values(SCORE.name) for each in results if each.status is Status.OK]
    if len(layers) == 1 and len(layers[0]) > 1:  # one seed, several layers: their range
        row["score_low"], row["score_high"] = min(layers[0]), max(layers[0])
    return row


def _drawn_together(
    run: Run,
    by_case: Mapping[str, list[Result]],
    columns: Mapping[str, str],
    count: Mapping[str, Counted],
) -> list[dict[str, Any]]:
    """Time and relative time of every case, from the same, quiet, replicates.

    The variances of all cases are drawn together, and the variance between the machine's earlier
    runs is added. Where the machine was never quiet there is a value and no interval.
    """
    cases = list(run.planned)
    rows: list[dict[str, Any]] = [{} for _ in cases]
    for name in _TOGETHER:
        samples = {
            number: values
            for number, case in enumerate(cases)
            if (values := _values(by_case.get(case, []), name, count.get(case, _ALL)))
        }
        nights = between(run, name)
        spreads = [nights.get(case, _UNKNOWN) for case in cases]
        quiet = [each for each in samples if not count.get(cases[each], _ALL).never]
        estimated = estimates([samples[each] for each in quiet], [spreads[each] for each in quiet])
        intervals = dict(zip(quiet, estimated, strict=True))
        for number, values in samples.items():
            interval = intervals.get(number)
            value = interval.value if interval else estimate(values).value
            rows[number] |= {
                columns.get(name, name): value,
                f"{_BOUNDED[name]}_low": interval.low if interval else math.nan,
                f"{_BOUNDED[name]}_high": interval.high if interval else math.nan,
            }
    return rows


def by_replicate(
    run: Run, name: str = RELATIVE.name, count: Mapping[str, Counted] | None = None
) -> dict[str, dict[int, float]]:
    """A quantity of each case by replicate, where the machine was quiet; none where it never was.

    Cases of the same replicates can be compared replicate by replicate. A caller that has the
    result of ``quiet.counted`` passes it as ``count``.
    """
    if count is None:
        count = counted(run.header, run.planned, run.results)
    medians: dict[str, dict[int, float]] = defaultdict(dict)
    for result in run.results:
        each, values = count.get(result.case), result.values(name)
        if each and values and not each.never and result.replicate in each.quiet:
            medians[result.case][result.replicate] = median(values)
    return dict(medians)


def _values(results: Iterable[Result], name: str, count: Counted) -> list[float]:
    """A quantity's values in the replicates that count."""
    values = {
        result.replicate: median(kept)
        for result in results
        if result.status is Status.OK and (kept := result.values(name))
    }
    return count.of(values)


def between(run: Run, name: str) -> dict[str, Variance]:
    """The variance of each case between the machine's earlier runs, from the footer."""
    stored = run.footer.state.get("between_runs") if run.footer else None
    cases = stored.get(name) if isinstance(stored, Mapping) else None
    variances = {}
    for case, pair in cases.items() if isinstance(cases, Mapping) else ():
        if isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair)):
            variances[case] = (float(pair[0]), float(pair[1]))
    return variances


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < math.inf
