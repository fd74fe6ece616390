"""Every device of a fleet on one page: what it is, its software, and what speaks against it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from hwbench.analysis.fingerprint import differences
from hwbench.errors import EnvironmentMismatchError, UsageError, WorkerError, first_line
from hwbench.measure.transports._base import Seat
from hwbench.studies.doctor import Check, Load, Verdict, ask, checks

_OF_THIS_MACHINE = ("load", "quota")  # read where the command runs, and not where the device is


@dataclass(frozen=True)
class Node:
    """One device, described by its own worker; ``checks`` is empty where the worker failed."""

    name: str
    kind: str
    facts: dict[str, Any]
    checks: list[Check]
    missed: str = ""


def examine(seats: Sequence[Seat]) -> list[Node]:
    """Ask every seat, one after the other, for its facts and a second of work.

    Raises:
        UsageError: there is no seat.
    """
    if not seats:
        raise UsageError("The cluster has no such device; see ray status.")
    return [_examined(seat) for seat in seats]


def _examined(seat: Seat) -> Node:
    try:
        worker = seat.start()
        try:
            plan, reading = ask(worker, seat.threads)
        finally:
            worker.close()
    except (WorkerError, UsageError) as error:
        return Node(seat.name, seat.kind, {}, [], missed=f"{first_line(error)}.")
    finally:
        seat.close()
    results = [c for c in checks(plan, reading, Load(None, 0.0)) if c.key not in _OF_THIS_MACHINE]
    facts = plan.machine(seat.threads)
    return Node(seat.name, seat.kind, facts, results)


def unequal(nodes: Sequence[Node]) -> list[str]:
    """A sentence for each device that differs from the first of its kind: it gets its own run."""
    first: dict[str, Node] = {}
    sentences = []
    for node in nodes:
        if not node.facts:
            continue
        like = first.setdefault(node.kind, node)
        differing = differences(like.facts, node.facts)
        if differing:
            named = "; ".join(f"{d.key} is {d.new!r} and not {d.baseline!r}" for d in differing)
            sentences.append(f"{node.name} is not equal to {like.name}: {named}.")
    return sentences


def check_required(required: Collection[str]) -> None:
    """Refuse what no device of a cluster can be held to.

    Raises:
        UsageError: a check is of the machine where the command runs.
    """
    if local := [name for name in _OF_THIS_MACHINE if name in required]:
        raise UsageError(
            f"--require {' and '.join(local)}: read where the command runs, and not on a cluster's "
            "machines; leave it out with --cluster."
        )


def demand(nodes: Sequence[Node], required: Collection[str]) -> None:
    """Hold every device to what is required.

    Raises:
        EnvironmentMismatchError: a required check is not fine on one, or one could not be asked.
    """
    failed = [f"{node.name}: {node.missed.rstrip('.')}" for node in nodes if node.missed]
    failed += [
        f"{node.name}, {check.key}: {check.says.rstrip('.')}"
        for node in nodes
        for check in node.checks
        if check.key in required and check.verdict is not Verdict.FINE
    ]
    if required and failed:
        raise EnvironmentMismatchError(f"Required and not fine: {'; '.join(failed)}.")
