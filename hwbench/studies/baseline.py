"""Which runs a run is compared with: one that is named, or the last few of a folder.

A folder stands for its last comparable runs: complete, of the same suite, made before the run and
on a machine whose fingerprint agrees. The latest alone would hand its luck on to every verdict.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwbench import files
from hwbench.analysis.fingerprint import Difference, Severity, differences, facts, flat, severity
from hwbench.analysis.outcome import cases
from hwbench.errors import RunFileError, UsageError
from hwbench.records import ANSWERS, Header, Status
from hwbench.report import pytest_benchmark
from hwbench.store import Run, list_runs, parsed, read_header, read_run, run_path

COPIES = "the same run again"
"""Why a second file of one run is left out, as ``hwbench share`` makes one."""
_NOTED = ("cannot be read", "damaged", "not finished", COPIES)


@dataclass(frozen=True)
class Chosen:
    """The baseline runs, oldest first, or why there are none."""

    runs: Sequence[Run] = ()
    mismatch: Sequence[str] = ()  # the fatal differences, where the runs are of another machine
    problem: str | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Kept:
    """A run that is kept as a baseline."""

    path: Path
    header: Header


def load(path: Path) -> Run:
    """A run from its file, or from a file of pytest-benchmark with cases of ours.

    Raises:
        RunFileError: the file cannot be read, or is neither.
    """
    return pytest_benchmark.read(path) if foreign(path) else read_run(path)


def foreign(path: Path) -> bool:
    """Whether a path names a file of pytest-benchmark."""
    return path.suffix == pytest_benchmark.SUFFIX


def choose(path: Path, run: Run, window: int) -> Chosen:
    """The baseline runs that ``path`` stands for, which is a run file or a folder of them."""
    if path.is_dir():
        return _from_folder(path, run, window)
    if not path.exists():
        return Chosen(problem=f"There is no baseline {path}.")
    try:
        old = load(path)
    except RunFileError as error:
        return Chosen(problem=f"The baseline cannot be used: {error}")
    if old.header.run == run.header.run:
        return Chosen(problem=f"The baseline {path} is the run itself.")
    if old.unfinished:
        return Chosen(problem=f"The baseline {old.unfinished}")
    return Chosen(runs=[old], mismatch=fatal(old.header, run.header))


def fatal(baseline: Header, new: Header) -> list[str]:
    """Name the differences that make the machines of two runs incomparable."""
    return [str(each) for each in _differences(baseline, new) if each.severity is Severity.FATAL]


def warnings(runs: Sequence[Run], new: Header) -> list[str]:
    """Name the other differences of the machines that may explain a change."""
    differing = (each for run in runs for each in _differences(run.header, new))
    return list(dict.fromkeys(str(each) for each in differing if each.severity is Severity.WARN))


def plans(runs: Sequence[Run], new: Header) -> list[str]:
    """Name the differences of the runs' plans and seeds."""
    sentences = [
        f"{name} was {before!r} and is {now!r}"
        for run in runs
        for name, before, now in _settings(run.header, new)
        if before != now
    ]
    return list(dict.fromkeys(sentences))


def _settings(old: Header, new: Header) -> Iterator[tuple[str, Any, Any]]:
    """Pairs of settings that two runs were started with."""
    for name in new.plan.__struct_fields__:
        yield name, getattr(old.plan, name), getattr(new.plan, name)
    yield "seed", old.seed, new.seed


def _differences(baseline: Header, new: Header) -> list[Difference]:
    return differences(facts(baseline.environment), facts(new.environment))


def _from_folder(folder: Path, run: Run, window: int) -> Chosen:
    chosen: list[Run] = []
    others: list[tuple[Path, list[str]]] = []  # of other machines, newest first
    left_out: Counter[str] = Counter()
    for path, header in _newest_first(folder, run.path, left_out):
        if len(chosen) == window:
            break
        if reason := _unsuitable(header, run.header):
            left_out[reason] += 1
        elif header.run in {each.header.run for each in chosen}:
            left_out[COPIES] += 1
        elif different := fatal(header, run.header):
            others.append((path, different))
        elif (old := _readable(path, left_out)) is not None:
            chosen.append(old)
    reasons = [f"{left_out[why]} {why}" for why in _NOTED if left_out[why]]
    reasons += [f"{len(others)} of another machine"] if others else []
    notes = [f"Runs in {folder} that are left out: {'; '.join(reasons)}."] if reasons else []
    if chosen:
        return Chosen(runs=chosen[::-1], notes=notes)
    if others:
        path, different = others[0]
        old = _readable(path, left_out)
        return Chosen(runs=[old] if old else [], mismatch=different, notes=notes)
    why = "; ".join(f"{count} {why}" for why, count in left_out.items()) or "it holds none"
    return Chosen(problem=f"No run in {folder} can be a baseline: {why}.")


def _newest_first(
    folder: Path, like: Path, left_out: Counter[str]
) -> Iterator[tuple[Path, Header]]:
    """The runs of a folder, in files of the same kind as that of the run."""
    headers = []
    for path in run_files(folder, pytest_benchmark.SUFFIX if foreign(like) else None):
        try:
            headers.append((path, load(path).header if foreign(path) else read_header(path)))
        except RunFileError:
            left_out["cannot be read"] += 1
    return iter(sorted(headers, key=lambda each: (each[1].created, each[1].run), reverse=True))


def _unsuitable(header: Header, new: Header) -> str | None:
    """Why a run is no baseline of another; None where it may be."""
    if header.run == new.run:
        return "the run itself"
    if header.purpose:
        return header.purpose
    if header.suite != new.suite:
        return "of another suite"
    if header.created > new.created:
        return "newer than this run"
    return None


def _readable(path: Path, left_out: Counter[str]) -> Run | None:
    try:
        run = load(path)
    except RunFileError:
        left_out["damaged"] += 1
        return None
    if not run.complete:
        left_out["not finished"] += 1
        return None
    return run


# Runs that are kept on purpose


def run_files(folder: Path, suffix: str | None = None) -> list[Path]:
    """The run files of a folder; where it holds none itself, those of the folders in it."""

    def listed(where: Path) -> list[Path]:
        return files.listed(where, f"*{suffix}") if suffix else list_runs(where)

    if paths := listed(folder):
        return paths
    inner = [each for each in files.listed(folder, "*") if each.is_dir()]
    return [path for each in inner for path in listed(each)]


def promote(path: Path, folder: Path) -> Path:
    """Keep a run as a baseline: copy it, as it is, into the folder of its machine.

    Raises:
        RunFileError: the run is not finished, or the copy cannot be written.
        UsageError: the run is no measure of what is usual.
    """
    try:
        data = files.read(path, files.MOST_OF_A_RUN)
    except OSError as error:
        raise RunFileError(f"Cannot read the run {path}: {error.strerror}.") from error
    run = parsed(path, data)
    if run.unfinished:
        raise RunFileError(run.unfinished)
    if reason := _unworthy(run):
        raise UsageError(f"{path} cannot be a baseline: {reason}.")
    target = run_path(folder / machine_key(run.header), run.header.run)
    for each in (target, target.parent):
        if each.is_symlink():
            raise RunFileError(f"{each} leads elsewhere by a link; take it away, or choose another "
                               "folder with --out.")  # fmt: skip
    try:
        _put(target, data)
    except OSError as error:
        raise RunFileError(f"Cannot write {target}: {error.strerror}.") from error
    return target


def _put(target: Path, data: bytes) -> None:
    """Write a baseline, unless it is there already; never over another one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    written = files.beside(target)
    try:
        with written.open("xb") as file:
            file.write(data)
        files.place(written, target)
    except FileExistsError:
        if files.read(target, files.MOST_OF_A_RUN) != data:
            raise RunFileError(
                f"{target} is there already, and is another run of that name."
            ) from None
    finally:
        written.unlink(missing_ok=True)


def _unworthy(run: Run) -> str | None:
    if run.header.purpose:
        return f"it is no measurement of its own: {run.header.purpose}"
    failed = {result.case for result in run.results if result.status not in ANSWERS}
    if failed:
        return f"{cases(len(failed))} in it failed"
    if not any(result.status is Status.OK for result in run.results):
        return "nothing could be measured in it"
    return None


def machine_key(header: Header) -> str:
    """A folder's name for a machine: what it calls itself, and a digest of what must agree.

    Memory is left out of the digest, because the same machine reports a little more or less of it.
    """
    must = sorted(
        f"{'.'.join(path)}={value!r}"
        for path, value in flat(facts(header.environment))
        if severity(path) is Severity.FATAL and path[-1] != "memory_bytes"
    )
    digest = hashlib.sha256("\n".join(must).encode()).hexdigest()[:8]
    words = re.sub(r"[^a-z0-9]+", "-", header.machine.lower()).strip("-")[:40].strip("-")
    return f"{words or 'machine'}-{digest}"


def kept(folder: Path) -> list[Kept]:
    """The runs that are kept in a folder, by machine, suite and date.

    Raises:
        RunFileError: there is no such folder, or a file in it cannot be read.
    """
    entries = [Kept(path, read_header(path)) for path in run_files(folder)]
    return sorted(
        entries, key=lambda each: (each.path.parent, each.header.suite, each.header.created)
    )


def prune(folder: Path, keep: int, *, dry_run: bool = False) -> list[Kept]:
    """Delete all but the last ``keep`` runs of each machine and suite; returns those deleted.

    What a link in the folder leads to is left alone.
    """
    groups: dict[tuple[Path, str], list[Kept]] = defaultdict(list)
    for each in kept(folder):
        if each.path.parent != folder and each.path.parent.is_symlink():
            continue
        groups[each.path.parent, each.header.suite].append(each)
    old = [each for members in groups.values() for each in members[:-keep]]
    for each in old:
        if not dry_run:
            each.path.unlink()
    return old
