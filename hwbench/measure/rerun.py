"""Run → Run: some of its cases again, on the machine and with the version that made it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from hwbench.analysis import fingerprint
from hwbench.errors import EnvironmentMismatchError, RunFileError
from hwbench.measure import run as runner
from hwbench.measure.replicate import ANCHOR
from hwbench.measure.schedule import Listener, State, execute
from hwbench.measure.transports.local import LocalSeat
from hwbench.records import CONFIRMS, Planned, PlannedLine
from hwbench.store import Run, RunWriter, read_run, run_path


def again(
    stored: Run,
    cases: Collection[str],
    replicates: int,
    *,
    listener: Listener = lambda progress: None,
) -> Path:
    """Measure some cases of a run again, each with its dense, in fresh replicates.

    The run ``<run>-confirm`` is written beside it. Where one is there that holds the cases, it is
    finished or taken as it is: another look would be another chance.

    Raises:
        EnvironmentMismatchError: this is not the machine, or not the version, of the run.
        RunFileError: the new run cannot be written.
    """
    planned = with_dense(stored, cases)
    path = _confirm_path(stored, planned)
    if path.exists():
        _refuse_another(stored, read_run(path))
        return runner.resume(path, listener=listener)
    return anew(
        stored,
        planned,
        path.stem,
        replicates=replicates,
        seed=stored.header.seed + stored.header.plan.replicates,
        arguments={CONFIRMS: stored.header.run},
        listener=listener,
    )


def anew(
    stored: Run,
    planned: dict[str, Planned],
    name: str,
    *,
    replicates: int,
    seed: int,
    arguments: dict[str, Any],
    listener: Listener = lambda progress: None,
) -> Path:
    """Measure planned cases of a run in a run of its own, beside it, on the same machine.

    Raises:
        EnvironmentMismatchError: this is not the machine, or not the version, of the run.
        RunFileError: the new run cannot be written.
    """
    begun = time.monotonic()
    seat = LocalSeat(stored.header.device, runner.threads_of(stored))
    reply = runner.facts(seat)
    if different := runner.deciding(runner.differences(stored, reply)):
        raise EnvironmentMismatchError(
            f"this is not the machine, or not the version, of the run {stored.path}: "
            f"{'; '.join(different)}"
        )
    header = replace(
        stored.header,
        run=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        plan=replace(stored.header.plan, replicates=replicates),
        seed=seed,
        environment=replace(stored.header.environment, state=runner.state_of(reply)),
        arguments={"threads": seat.threads, **arguments},
    )
    lines = [PlannedLine(id=case, planned=each) for case, each in planned.items()]
    state = State(
        header=header,
        planned=planned,
        writer=RunWriter.create(stored.path.parent, header, lines),
        listener=listener,
        done=set(),
        begun=begun,
    )
    return execute(state, seat, None)


def with_dense(stored: Run, cases: Collection[str]) -> dict[str, Planned]:
    """These cases of a run, and the dense ones that they are timed against."""
    groups = {stored.planned[case].case.group for case in cases}
    return {
        case: planned
        for case, planned in stored.planned.items()
        if case in cases or (planned.case.format == ANCHOR and planned.case.group in groups)
    }


def _confirm_path(stored: Run, cases: Collection[str]) -> Path:
    """The confirming run that holds these cases, or the next that there is none of yet."""
    for number in itertools.count(1):
        name = f"{stored.header.run}-confirm" + (f"-{number}" if number > 1 else "")
        path = run_path(stored.path.parent, name)
        if not path.exists() or set(cases) <= set(read_run(path).planned):
            return path
    raise AssertionError("numbers do not end")


def _refuse_another(stored: Run, there: Run) -> None:
    """Take no run for the confirmation of another that is not one.

    Raises:
        EnvironmentMismatchError: it was made on another machine or version.
        RunFileError: it does not say that it confirms the run.
    """
    if there.header.arguments.get(CONFIRMS) != stored.header.run:
        raise RunFileError(
            f"{there.path} does not confirm {stored.header.run}; move it away, and check again."
        )
    before, now = (fingerprint.facts(each.header.environment) for each in (stored, there))
    if different := runner.deciding(fingerprint.differences(before, now)):
        raise EnvironmentMismatchError(
            f"{there.path} was made on another machine or version than {stored.path}: "
            f"{'; '.join(different)}"
        )
