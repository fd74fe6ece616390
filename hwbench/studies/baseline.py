"""Which runs a run is compared with: one that is named, or the last few of a folder.

A folder stands for its last comparable runs: complete, of the same suite, made before the run and
on a machine whose fingerprint agrees. The latest alone would hand its luck on to every verdict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hwbench.errors import RunFileError
from hwbench.fingerprint import Difference, Severity, differences, facts
from hwbench.records import Header
from hwbench.store import Run, list_runs, read_header, read_run

_TOLD = ("cannot be read", "damaged", "not finished")
CONFIRMS = "confirms"
"""The argument in the header of a run that measured some cases of another one again."""
SLOWER = "slower"
"""The argument in the header of a run whose calls were delayed on purpose."""


@dataclass(frozen=True)
class Chosen:
    """The baseline runs, oldest first, or why there are none."""

    runs: Sequence[Run] = ()
    mismatch: Sequence[str] = ()  # the fatal differences, where the runs are of another machine
    problem: str | None = None
    notes: Sequence[str] = ()


def choose(path: Path, run: Run, window: int) -> Chosen:
    """The baseline runs that ``path`` stands for, which is a run file or a folder of them."""
    if path.is_dir():
        return _from_folder(path, run, window)
    if not path.exists():
        return Chosen(problem=f"There is no baseline {path}.")
    try:
        found = read_run(path)
    except RunFileError as error:
        return Chosen(problem=f"The baseline cannot be used: {error}")
    if found.header.run == run.header.run:
        return Chosen(problem=f"The baseline {path} is the run itself.")
    if not found.complete:
        return Chosen(
            problem=f"The baseline {path} is not finished; go on with: hwbench run --resume {path}"
        )
    return Chosen(runs=[found], mismatch=fatal(found.header, run.header))


def fatal(baseline: Header, new: Header) -> list[str]:
    """What makes two runs' machines incomparable, in words."""
    return [str(each) for each in _differences(baseline, new) if each.severity is Severity.FATAL]


def warnings(runs: Sequence[Run], new: Header) -> list[str]:
    """What else differs between the baseline's machine and the run's, and may be a reason."""
    found = (each for run in runs for each in _differences(run.header, new))
    return list(dict.fromkeys(str(each) for each in found if each.severity is Severity.WARN))


def _differences(baseline: Header, new: Header) -> list[Difference]:
    return differences(facts(baseline.environment), facts(new.environment))


def _from_folder(folder: Path, run: Run, window: int) -> Chosen:
    found: list[Run] = []
    others: list[tuple[Path, list[str]]] = []  # of other machines, newest first
    left_out: Counter[str] = Counter()
    for path, header in _newest_first(folder, left_out):
        if len(found) == window:
            break
        if reason := _unsuitable(header, run.header):
            left_out[reason] += 1
        elif different := fatal(header, run.header):
            others.append((path, different))
        elif (old := _readable(path, left_out)) is not None:
            found.append(old)
    told = [f"{left_out[why]} {why}" for why in _TOLD if left_out[why]]
    told += [f"{len(others)} of another machine"] if others else []
    notes = [f"Runs in {folder} that are left out: {'; '.join(told)}."] if told else []
    if found:
        return Chosen(runs=found[::-1], notes=notes)
    if others:
        path, different = others[0]
        old = _readable(path, left_out)
        return Chosen(runs=[old] if old else [], mismatch=different, notes=notes)
    why = "; ".join(f"{count} {why}" for why, count in left_out.items()) or "it holds none"
    return Chosen(problem=f"No run in {folder} can be a baseline: {why}.")


def _newest_first(folder: Path, left_out: Counter[str]) -> Iterator[tuple[Path, Header]]:
    headers = []
    for path in list_runs(folder):
        try:
            headers.append((path, read_header(path)))
        except RunFileError:
            left_out["cannot be read"] += 1
    return iter(sorted(headers, key=lambda each: (each[1].created, each[1].run), reverse=True))


def _unsuitable(header: Header, new: Header) -> str | None:
    """Why a run is no baseline of another; None where it may be."""
    if header.run == new.run:
        return "the run itself"
    if CONFIRMS in header.arguments:
        return "measured cases of another run again"
    if SLOWER in header.arguments:
        return "slowed on purpose"
    if header.suite != new.suite:
        return "of another suite"
    if header.created > new.created:
        return "made after it"
    return None


def _readable(path: Path, left_out: Counter[str]) -> Run | None:
    try:
        run = read_run(path)
    except RunFileError:
        left_out["damaged"] += 1
        return None
    if not run.complete:
        left_out["not finished"] += 1
        return None
    return run
