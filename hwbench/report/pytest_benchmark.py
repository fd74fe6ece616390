"""Runs as files of pytest-benchmark, and such files as runs.

The file is what ``pytest --benchmark-save`` writes, so that ``pytest-benchmark compare``,
github-action-benchmark and Bencher read it. A benchmark is a case; its rounds are the replicates.
The key ``hwbench`` beside the benchmarks holds what they do not: the machine, the cases as
planned, and the cases that have no time. From it and the benchmarks a run can be read back.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from hwbench import files
from hwbench.errors import MissingPartError, RunFileError, shortened
from hwbench.records import (
    SCHEMA,
    Footer,
    Header,
    Measurement,
    Planned,
    Result,
    Status,
)
from hwbench.store import Run
from hwbench.store.sense import Sense

SUFFIX = ".json"
_TIMES = {"time_seconds": "s", "relative_time": "×"}


class _Info(msgspec.Struct):
    """The facts of a benchmark: its case, and the replicate values, by quantity and number."""

    case: str
    contract: str
    replicates: dict[str, dict[str, float]] = msgspec.field(default_factory=dict)


class _Extra(msgspec.Struct):
    hwbench: _Info | None = None


class _Stats(msgspec.Struct):
    median: float


class _Benchmark(msgspec.Struct):
    stats: _Stats
    extra_info: _Extra = msgspec.field(default_factory=_Extra)


class _About(msgspec.Struct):
    header: Header
    cases: list[Planned]
    ended: list[Result] = msgspec.field(default_factory=list)  # without a time
    complete: bool = True


class _Document(msgspec.Struct):
    benchmarks: list[_Benchmark]
    hwbench: _About | None = None


def about(
    header: Header, planned: Iterable[Planned], ended: Iterable[Result], *, complete: bool = True
) -> dict[str, Any]:
    """The value of the key ``hwbench``; ``complete`` is whether the run ended by itself."""
    said = _About(header=header, cases=list(planned), ended=list(ended), complete=complete)
    plain: dict[str, Any] = msgspec.to_builtins(said)
    return plain


def write(run: Run, path: Path) -> None:
    """Write the timed cases of a run as a file of pytest-benchmark.

    Raises:
        MissingPartError: pytest-benchmark is not installed.
        OSError: the file cannot be written.
    """
    if importlib.util.find_spec("pytest_benchmark") is None:
        raise MissingPartError(
            "Writing a file for pytest-benchmark needs it, and it is not installed; "
            "install it with `pip install pytest-benchmark`."
        )
    path.write_text(json.dumps(document(run), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def document(run: Run) -> dict[str, Any]:
    """The file's content: the cases that were ok in every replicate and have times; no scores."""
    by_case: dict[str, list[Result]] = {case: [] for case in run.planned}
    for result in run.results:
        by_case[result.case].append(result)
    timed = {case: results for case, results in by_case.items() if _timed(results)}
    ended = [
        replace(result, measurements=[])
        for case, results in by_case.items()
        for result in results
        if case not in timed and result.status is not Status.OK
    ]
    listed = {*timed, *(result.case for result in ended)}
    cases = [planned for case, planned in run.planned.items() if case in listed]
    facts = run.header.environment.fingerprint
    host = facts.get("host") if isinstance(facts.get("host"), dict) else {}
    return {
        "machine_info": {"node": "", "machine": run.header.machine, **(host or {}), **facts},
        "commit_info": _commit(run.header),
        "benchmarks": [
            _benchmark(run.header, run.planned[case], results) for case, results in timed.items()
        ],
        "datetime": run.header.created,
        "version": "5.0.0",  # of the format of pytest-benchmark's files
        "hwbench": about(run.header, cases, ended, complete=run.complete),
    }


def _timed(results: list[Result]) -> bool:
    ok = all(result.status is Status.OK for result in results)
    return ok and any(result.values("time_seconds") for result in results)


def _commit(header: Header) -> dict[str, Any]:
    state = header.environment.state
    return {
        "id": state.get("commit", "unknown"),
        "time": None,
        "author_time": None,
        "dirty": bool(state.get("dirty", False)),
        "project": header.suite,
        "branch": "(unknown)",
    }


def _benchmark(header: Header, planned: Planned, results: list[Result]) -> dict[str, Any]:
    from pytest_benchmark.stats import Stats

    case, stats = planned.case, Stats()
    contract, values = _replicates(results)
    for seconds in values["time_seconds"].values():
        stats.update(seconds)
    info = _Info(case=case.id, contract=contract, replicates=values)
    return {
        "group": case.among,
        "name": case.id,
        "fullname": f"{header.suite}::{case.id}",
        "params": None,
        "param": None,
        "extra_info": {"hwbench": msgspec.to_builtins(info)},
        "options": {"disable_gc": True, "timer": f"hwbench {contract}"},
        "stats": {**stats.as_dict(), "data": stats.data, "iterations": 1},
    }


def _replicates(results: list[Result]) -> tuple[str, dict[str, dict[str, float]]]:
    """The contract of a case's times, and its replicate values."""
    from statistics import median

    contract, by_quantity = "none", {}
    for quantity in _TIMES:
        values = {
            str(result.replicate): median(result.values(quantity))
            for result in results
            if result.values(quantity)
        }
        if values:
            by_quantity[quantity] = values
    for result in results:
        for measurement in result.measurements:
            if measurement.quantity == "time_seconds":
                contract = measurement.contract or contract
    return contract, by_quantity


def read(path: Path) -> Run:
    """A file of pytest-benchmark as a run: one that hwbench exported, or pytest saved with a suite.

    Without replicate values a benchmark is one replicate, and its median the value.

    Raises:
        RunFileError: it cannot be read, is damaged, or holds no cases of hwbench.
    """
    benchmarks, about_run = _content(path)
    header = about_run.header
    sense = Sense(header)
    problems = [sense.of_header(), *(sense.of_case(each) for each in about_run.cases)]
    infos = [(each.extra_info.hwbench, each.stats.median) for each in benchmarks]
    ours = [(info, seconds) for info, seconds in infos if info is not None]
    try:
        results = [result for info, seconds in ours for result in _results(info, seconds)]
    except ValueError as error:
        raise RunFileError(
            f"{path} is damaged ({shortened(str(error))}); write it again."
        ) from error
    results += about_run.ended
    if unknown := next((each.case for each in results if each.case not in sense.planned), None):
        unknown = shortened(unknown)
        raise RunFileError(f"{path} has a result of the case {unknown!r}, which it does not have.")
    problems += [sense.of_result(each) for each in results]
    if problem := next(filter(None, problems), None):
        raise RunFileError(f"{path} is damaged ({problem}); write it again.")
    return Run(
        path=path,
        header=header,
        planned=sense.planned,
        results=results,
        footer=Footer(finished=header.created, wall_seconds=0.0) if about_run.complete else None,
    )


def _content(path: Path) -> tuple[list[_Benchmark], _About]:
    """The benchmarks of a file, and what hwbench wrote beside them.

    Raises:
        RunFileError: it cannot be read, holds no cases of hwbench, or is of a newer version.
    """
    try:
        data = files.read(path, files.MOST_OF_A_RUN)
        # Other benchmarks of the file may hold NaN, which Python writes and JSON does not know.
        content = msgspec.convert(json.loads(data), _Document)
    except OSError as error:
        raise RunFileError(f"Cannot read the run {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        why = shortened(str(error))
        raise RunFileError(f"{path} is not a file of pytest-benchmark ({why}).") from error
    if content.hwbench is None:
        raise RunFileError(
            f"{path} holds no cases of hwbench; save it with: pytest --hwbench-suite FILE "
            "--benchmark-save NAME, or write it with: hwbench export --to pytest-benchmark"
        )
    schema = content.hwbench.header.schema
    if schema > SCHEMA:
        raise RunFileError(
            f"{path} has schema {schema}; this hwbench reads up to {SCHEMA}. Install a newer one."
        )
    return content.benchmarks, content.hwbench


def _results(info: _Info, median: float) -> list[Result]:
    values = info.replicates or {"time_seconds": {"0": median}}
    numbers = dict.fromkeys(number for by_replicate in values.values() for number in by_replicate)
    if foreign := [number for number in numbers if not re.fullmatch("[0-9]{1,6}", number)]:
        raise ValueError(f"{shortened(foreign[0])!r} is the number of no replicate")
    return [
        Result(
            case=info.case,
            replicate=int(number),
            seed=int(number),
            status=Status.OK,
            measurements=[
                Measurement(
                    quantity=quantity,
                    unit=_TIMES.get(quantity, ""),
                    values=[by_replicate[number]],
                    contract=info.contract,
                )
                for quantity, by_replicate in values.items()
                if number in by_replicate and math.isfinite(by_replicate[number])
            ],
        )
        for number in numbers
    ]
