"""How a case is measured again: the words of ``hwbench run`` that the page's script puts together.

A run file has the name of its suite, and not the suite. Where the shipped suite of that name holds
every case of the run, the suite and a filter are enough; elsewhere the command names the axes too.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from msgspec.structs import replace

from hwbench import suite as suites
from hwbench.records import Allocator, Case, Plan
from hwbench.report.rows import Row, printable
from hwbench.store import Run
from hwbench.suite import SHARES

_OPTIONS = (
    ("--weights", ("weights", "tensor")),
    ("--activations", ("activations",)),
    ("--model", ("model",)),
    ("--data", ("data",)),
)
"""An option of ``hwbench run``, and the options of a case that hold its value."""


_SIDE = 256  # of the one layer whose place in a suite is looked up
FILTER, AXES, FILE = range(3)
"""What a command needs beside a filter: nothing, the axes of the case, or the suite's file."""


def packed(runs: list[Run], rows: list[Row]) -> dict[str, Any]:
    """The parts from which the page's script makes the command of a row."""
    needed = [needs(run) for run in runs]
    return {
        "runs": [command(run) for run in runs],
        "needs": [needed[row.run][row.case] for row in rows],
        "terms": terms(rows),
        "given": file_options(rows),
    }


def command(run: Run) -> dict[str, Any]:
    """The suite of a run as ``--suite`` takes it, all that follows, and the run's own filter.

    ``knobs`` are those that the suite gives to each format: cases of the run may have fewer.
    """
    header = run.header
    suite = _shipped(header.suite, header.device.partition(":")[0])
    device = ["--device", header.device]
    if threads := header.arguments.get("threads"):
        device += ["--threads", str(threads)]
    words = [*device, "--seed", str(header.seed)]
    plan = suite.plan if suite else None
    if plan and header.plan.replicates == 1 and header.plan.budget_seconds < plan.budget_seconds:
        words.append("--quick")
    elif plan is None or header.plan.replicates != plan.replicates:
        words += ["--replicates", str(header.plan.replicates)]
    if header.device == "cpu" and header.plan.allocator == Allocator.SYSTEM:
        words += ["--allocator", header.plan.allocator]
    if header.arguments.get("energy"):
        words.append("--energy")
    filtered = header.arguments.get("filter")
    return {
        "suite": shlex.quote(printable(suite.path if suite else header.suite)),
        "file": shlex.quote(printable(f"{header.suite}.toml")),
        "rest": _joined(words),
        "device": _joined(device),
        "filter": filtered if isinstance(filtered, str) else "",
        "knobs": suite.knobs if suite else {},
    }


def _joined(words: Iterable[str]) -> str:
    return " ".join(shlex.quote(printable(word)) for word in words)


def needs(run: Run) -> dict[str, int]:
    """The need of each case's command, by the id of the case: ``FILTER``, ``AXES`` or ``FILE``."""
    suite = _shipped(run.header.suite, run.header.device.partition(":")[0])
    if suite is None:
        return dict.fromkeys(run.planned, FILE)
    other_cases = [each.case for name, each in run.planned.items() if name not in suite.ids]
    reachable = _reached(suite, other_cases) if other_cases else frozenset()
    by_axes = {
        case.id for case in other_cases if _placed(case) in reachable or _files(case.options)
    }
    return {
        name: FILTER if name in suite.ids else AXES if name in by_axes else FILE
        for name in run.planned
    }


def _placed(case: Case) -> str:
    """The id of the case at one shape and one number of tokens, which the command names."""
    if case.tokens is None:
        return case.id
    return replace(case, out_features=_SIDE, in_features=_SIDE, tokens=_SIDE).id


def _reached(suite: _Suite, cases: list[Case]) -> frozenset[str]:
    """The cases that the suite has with the axes of these, each ``_placed``."""
    by_share: dict[tuple[str, Any], list[Case]] = {}
    for case in cases:
        share = next(((name, case.knobs[name]) for name in SHARES if name in case.knobs), ("", 0))
        by_share.setdefault(share, []).append(case)
    ids: set[str] = set()
    for (name, share), members in by_share.items():
        document = suites.override(
            suite.document,
            shape=[[_SIDE, _SIDE]],
            tokens=[_SIDE],
            dtype=list(dict.fromkeys(case.dtype for case in members if case.tokens is not None)),
            formats=list(dict.fromkeys(case.format for case in members)),
            **({name: [share]} if name else {}),
        )
        ids |= {case.id for case in suites.build(document, cases[0].device).cases}
    return frozenset(ids)


@dataclass(frozen=True)
class _Suite:
    """A shipped suite on one kind of device."""

    path: str  # as ``--suite`` takes it
    document: dict[str, Any]
    plan: Plan
    ids: frozenset[str]  # of its cases, those of ``--quick`` too
    knobs: Mapping[str, list[str]]  # that it gives to a format, beside the share of dense


@cache
def _shipped(name: str, device: str) -> _Suite | None:
    shipped = [*suites.names(), *suites.model_names()]
    path = next((each for each in shipped if each.rpartition("/")[2] == name), None)
    if path is None:
        return None
    document = suites.read(path)
    whole = suites.build(document, device)
    cases = [*whole.cases, *suites.build(suites.quickened(document), device).cases]
    knobs: dict[str, dict[str, None]] = {}
    for case in cases:
        knobs.setdefault(case.format, {}).update(
            dict.fromkeys(key for key in case.knobs if key not in SHARES)
        )
    ids = frozenset(case.id for case in cases)
    return _Suite(path, document, whole.plan, ids, {name: [*keys] for name, keys in knobs.items()})


def terms(rows: Iterable[Row]) -> dict[str, dict[str, str]]:
    """For each text of knobs or options: the term of ``--filter`` for each of its values."""
    texts = dict.fromkeys(text for row in rows for text in (row.knobs, row.options))
    return {
        text: {key: suites.term(key, value) for key, value in json.loads(text).items()}
        for text in texts
        if text
    }


def file_options(rows: Iterable[Row]) -> dict[str, str]:
    """For each text of options that names files or a model: the options of the command for it."""
    texts = dict.fromkeys(row.options for row in rows if row.options)
    return {text: options for text in texts if (options := _files(json.loads(text)))}


def _files(options: Mapping[str, Any]) -> str:
    words: list[str] = []
    for option, names in _OPTIONS:
        if parts := [str(options[name]) for name in names if options.get(name)]:
            words += [option, shlex.quote(printable(":".join(parts)))]
    return " ".join(words)
