"""The flagged cases of a night, measured again in the revision of the baseline and in tonight's.

Both revisions run tonight, on this machine, side by side and replicate by replicate. What the
machine has in common with itself tonight is then in both, so that only code can make them differ.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from hwbench.analysis.compare import Side, side
from hwbench.analysis.fingerprint import Severity, differences, facts
from hwbench.errors import EnvironmentMismatchError, RunFileError, UsageError
from hwbench.measure import rerun
from hwbench.measure import run as runner
from hwbench.measure.schedule import Listener
from hwbench.records import CONFIRMS, Header, Result, Suite
from hwbench.store import Run, read_run, run_path
from hwbench.studies import ab

_REVISIONS = "revisions"
"""The argument in the header of such a run: the revision of the baseline, and tonight's."""


def revisions(old: Run, new: Run) -> tuple[str, str]:
    """The revisions that two nights were made in.

    Raises:
        UsageError: a night names none, or files differed from it.
    """
    return _revision(old, "the baseline run"), _revision(new, "the run")


def _revision(run: Run, words: str) -> str:
    state = run.header.environment.state
    if not (commit := state.get("commit")):
        raise UsageError(
            f"--confirm-by ab compares two git revisions, and {words} {run.header.run} names none; "
            "measure inside of the repository, or use --confirm."
        )
    if state.get("dirty"):
        raise UsageError(
            f"--confirm-by ab compares two git revisions, and files differed from that of {words} "
            f"{run.header.run}; commit them before a run, or use --confirm."
        )
    return str(commit)


def same_code(old: Run, new: Run) -> str | None:
    """Why no pairs of two revisions can tell, in words; None where they can.

    Raises:
        UsageError: a night names no revision.
    """
    first, second = revisions(old, new)
    if first != second:
        return None
    return f"Both nights are of the revision {first[:12]}, so no code changed."


def software(old: Run, new: Run) -> list[str]:
    """Software that differs between two runs beside the revision, in words."""
    differing = differences(facts(old.header.environment), facts(new.header.environment))
    return [str(each) for each in differing if each.software]


@dataclass
class InPairs:
    """Measures cases of a run in pairs of fresh replicates; a second call adds pairs.

    It writes the runs ``<run>-pairs-1-a`` and ``-b`` beside the run. Finished files of the same
    cases and revisions are used again: a second measurement would be a second chance to pass.
    """

    old: Run
    new: Run
    listener: Listener
    results: tuple[list[Result], list[Result]] = field(default_factory=lambda: ([], []))
    count: int = 0
    used: set[int] = field(default_factory=set)  # the numbers of the files that were taken

    def __call__(self, cases: list[str], count: int) -> tuple[Side, Side]:
        """Both sides of these cases in so many pairs.

        Raises:
            EnvironmentMismatchError: this is not the machine of the run.
            RunFileError: a run cannot be written, or read.
            UsageError: a revision cannot be installed, or does not start.
        """
        planned = _with_dense(self.new, cases)
        more = count - self.count
        runs = [read_run(path) for path in self._paths(planned, more)]
        for results, run in zip(self.results, runs, strict=True):
            results += [
                replace(each, replicate=self.count + each.replicate) for each in run.results
            ]
        self.count = count
        first, second = (
            side(run.header, run.planned, results)
            for run, results in zip(runs, self.results, strict=True)
        )
        return first, second

    def _paths(self, planned: dict[str, Any], pairs: int) -> tuple[Path, Path]:
        """The two files of the cases: those that are there, or new ones."""
        commits = revisions(self.old, self.new)
        folder, name = self.new.path.parent, self.new.header.run
        number = 1
        while True:
            stem = f"{name}-pairs-{number}"
            paths = run_path(folder, f"{stem}-a"), run_path(folder, f"{stem}-b")
            there = any(path.exists() for path in paths)
            if number not in self.used and not there:
                break
            if number not in self.used and all(
                _holds(path, planned, name, commits, pairs) for path in paths
            ):
                self.used.add(number)
                return paths
            number += 1
        self.used.add(number)
        header = self.new.header
        how = ab.How(
            device=header.device,
            threads=runner.threads_of(self.new),
            seed=header.seed + header.plan.replicates + self.count,
            out=folder,
            listener=self.listener,
            stem=stem,
            arguments={CONFIRMS: name, _REVISIONS: list(commits)},
            options=(
                "--confirm-by ab: the baseline's revision",
                "--confirm-by ab: tonight's revision",
            ),
            accept=self._accept,
        )
        plan = replace(header.plan, replicates=pairs)
        suite = Suite(
            name=header.suite, about=header.about, plan=plan, cases=list(planned.values())
        )
        return ab.measured_in_pairs(suite, commits, how)[0]

    def _accept(self, here: Header) -> None:
        """Refuse to measure anywhere but on the machine of the run."""
        before, now = facts(self.new.header.environment), facts(here.environment)
        reasons = [
            str(each) for each in differences(before, now) if each.severity is Severity.FATAL
        ]
        if reasons:
            raise EnvironmentMismatchError(
                f"this is not the machine of the run {self.new.path}: {'; '.join(reasons)}"
            )


def _with_dense(run: Run, cases: Collection[str]) -> dict[str, Any]:
    return {case: planned.case for case, planned in rerun.with_dense(run, cases).items()}


def _holds(
    path: Path, cases: Collection[str], name: str, commits: tuple[str, str], pairs: int
) -> bool:
    """Whether a file is one side of these pairs, finished."""
    if not path.exists():
        return False
    try:
        run = read_run(path)
    except RunFileError:
        return False
    arguments = run.header.arguments
    return (
        run.complete
        and arguments.get(CONFIRMS) == name
        and arguments.get(_REVISIONS) == list(commits)
        and run.header.plan.replicates == pairs
        and set(cases) <= set(run.planned)
    )
