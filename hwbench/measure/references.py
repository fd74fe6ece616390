"""Values from this machine's earlier runs: dense when quiet, and how far cases move; no torch.

Each finished run adds, for every group, the second fastest of its replicates to a file beside the
ceilings. The least of the last runs is the reference by which later runs tell that the machine was
slower (``analysis.quiet``). It is kept for one machine with its limits, settings, drivers, PyTorch
and threads, by group and by the revision of dense.

How far a case moves from run to run, beyond what its replicates explain, is read from the runs of
the same suite and machine in the folder of a run, when it ends.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from hwbench import environment
from hwbench.analysis import fingerprint, noise, quiet
from hwbench.analysis.fingerprint import Severity
from hwbench.analysis.noise import FEWEST_RUNS
from hwbench.analysis.stats import median
from hwbench.errors import RunFileError
from hwbench.measure import ceilings
from hwbench.quantities import RELATIVE, TIME
from hwbench.records import Environment, Header, Planned, Reference
from hwbench.store import Run, list_runs, read_header, read_run

METHOD = 1
"""Raised when the way of timing dense changes: values kept before no longer count."""

EARLIER = 10
"""So many of the last runs of the folder are read."""

_Kept = dict[str, list[Reference]]


def path(environment: Environment) -> Path:
    """The file of one machine."""
    return ceilings.machine_path(
        "references", METHOD, environment.fingerprint, environment.settings
    )


def of_machine(environment: Environment, planned: Mapping[str, Planned]) -> dict[str, Reference]:
    """The reference of each group of these cases, as far as the machine keeps one."""
    stored = _read(path(environment))
    by_group = {}
    for group, key in _keys(planned).items():
        if reference := quiet.of_machine(stored.get(key, [])):
            by_group[group] = reference
    return by_group


def add(run: Run) -> None:
    """Keep a finished run's times of dense; where nothing can be written, nothing is kept."""
    file = path(run.header.environment)
    stored = _read(file)
    keys = _keys(run.planned)
    for group, seconds in quiet.dense_by_group(run.planned, run.results).items():
        if group in keys and (own := quiet.of_run(seconds.values())):
            stored[keys[group]] = [*stored.get(keys[group], []), own][-quiet.RUNS :]
    ceilings.keep(file, msgspec.to_builtins(stored))


def between_runs(
    header: Header, planned: Mapping[str, Planned], folder: Path
) -> dict[str, dict[str, Any]]:
    """How far each case moved between the earlier runs in a folder, for the footer of a run.

    By quantity and case: the variance on logs beyond that of the replicates, and its degrees of
    freedom. Empty where fewer than three runs tell. A case counts only in the replicates in which
    the machine was quiet, and with the revision that it has now.
    """
    runs = _earlier(header, folder)
    counts = [quiet.counted(run.header, run.planned, run.results) for run in runs]
    variances: dict[str, dict[str, Any]] = {}
    for name in (RELATIVE.name, TIME.name):
        samples: dict[str, list[list[float]]] = defaultdict(list)
        for run, count in zip(runs, counts, strict=True):
            for case, values in _values(run, name, count).items():
                now, then = planned.get(case), run.planned[case]
                if now and (now.revision, now.resolved) == (then.revision, then.resolved):
                    samples[case].append(values)
        repeated = {case: each for case, each in samples.items() if len(each) >= FEWEST_RUNS}
        spreads = noise.between_runs(list(repeated.values()))
        if repeated:
            variances[name] = dict(zip(repeated, map(list, spreads), strict=True))
    return variances


def _earlier(header: Header, folder: Path) -> list[Run]:
    """Return the last complete runs of the suite on the machine, each once, and each of its own."""
    runs: dict[str, Run] = {}
    for path in reversed(list_runs(folder)):
        if len(runs) == EARLIER:
            break
        try:
            if not _fits(read_header(path), header):
                continue
            run = read_run(path)
        except RunFileError:  # a file of something else, or a damaged one: no earlier run
            continue
        if run.complete and not any(each.added_seconds for each in run.planned.values()):
            runs.setdefault(run.header.run, run)
    return list(runs.values())


def _fits(other: Header, header: Header) -> bool:
    differences = fingerprint.differences(
        fingerprint.facts(other.environment), fingerprint.facts(header.environment)
    )
    return (
        (other.suite, other.device) == (header.suite, header.device)
        and other.run != header.run
        and other.purpose is None
        and not any(each.severity is Severity.FATAL for each in differences)
    )


def _values(run: Run, name: str, count: Mapping[str, quiet.Counted]) -> dict[str, list[float]]:
    """The logarithms of a quantity in the quiet replicates, by case; none where it never was."""
    logs: dict[str, list[float]] = defaultdict(list)
    for result in run.results:
        counted, values = count.get(result.case), result.values(name)
        if counted and values and not counted.never and result.replicate in counted.quiet:
            value = median(values)
            if value > 0:
                logs[result.case].append(math.log(value))
    return logs


def _keys(planned: Mapping[str, Planned]) -> dict[str, str]:
    """The key of a group in the kept file: its name and the revision of dense."""
    return {
        each.case.among: f"{each.case.among}#{each.revision}"
        for each in planned.values()
        if each.case.format == quiet.DENSE and each.seeds is None
    }


def _read(file: Path) -> _Kept:
    """Reads the kept times; empty where there is no file, or another program's."""
    try:
        return msgspec.convert(environment.kept(file), _Kept)
    except msgspec.ValidationError:
        return {}
