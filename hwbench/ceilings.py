"""The machine's ceilings, measured once and kept in the user's cache folder.

The first run on a machine measures the short form; ``hwbench ceilings`` the full form. Every run
copies what is kept into its header, so that reports read nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

from hwbench import protocol
from hwbench.fingerprint import Severity, flat, severity

METHOD = 1
"""Raised when ceilings are measured in another way: what was kept before is measured again."""

_SECONDS = 600.0  # until the worker has to be done, on a machine however busy
_IN_BOTH_FORMS = ("copy", "launch")

R = TypeVar("R")


class _Worker(Protocol):
    def ask(self, request: protocol.Request, expected: type[R], timeout_seconds: float) -> R: ...


def folder() -> Path:
    """``XDG_CACHE_HOME/hwbench``, or where the system keeps caches of its users."""
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen) / "hwbench"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/hwbench"
    return Path.home() / ".cache/hwbench"


def path(reply: protocol.PlanReply, threads: int) -> Path:
    """The file of one machine with its settings, drivers and PyTorch."""
    fingerprint = {**reply.fingerprint, "threads": threads}
    facts = {
        ".".join(keys): value
        for keys, value in flat({**fingerprint, "settings": reply.settings})
        if severity(keys) is Severity.FATAL or keys == ("torch",)
    }
    text = json.dumps([METHOD, sorted(facts.items())], sort_keys=True, default=str)
    return folder() / f"ceilings-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def of_machine(
    worker: _Worker, reply: protocol.PlanReply, threads: int, dtypes: Collection[str]
) -> dict[str, Any]:
    """The ceilings of these dtypes: as they are kept, and what is missing measured and kept."""
    file = path(reply, threads)
    kept = _read(file)
    missing = sorted(set(dtypes) - set(kept.get("matmul", {})))
    if not missing:
        return kept if dtypes else {}
    measured = _measured(worker, protocol.CeilingsRequest(dtypes=missing))
    both = {**measured, **kept, "matmul": {**measured["matmul"], **kept.get("matmul", {})}}
    return _keep(file, both)


def measure(
    worker: _Worker, reply: protocol.PlanReply, threads: int, dtypes: Collection[str]
) -> dict[str, Any]:
    """The ceilings in full, measured now; they take the place of what was kept."""
    request = protocol.CeilingsRequest(dtypes=list(dtypes), full=True)
    return _keep(path(reply, threads), _measured(worker, request))


def _measured(worker: _Worker, request: protocol.CeilingsRequest) -> dict[str, Any]:
    found = worker.ask(request, protocol.CeilingsReply, _SECONDS).ceilings
    form = "full" if request.full else "short"
    return {"form": form, "measured": datetime.now(UTC).isoformat(timespec="seconds"), **found}


def _read(file: Path) -> dict[str, Any]:
    """What is kept; nothing where there is no file, or one that something else has written."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    whole = isinstance(found, Mapping) and all(
        isinstance(found.get(name), Mapping) for name in ("matmul", *_IN_BOTH_FORMS)
    )
    return dict(found) if whole else {}


def _keep(file: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Write the file in one step; where that is not possible the ceilings say so."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=file.parent, suffix=".tmp", delete=False
        ) as whole:
            json.dump(found, whole)
        Path(whole.name).replace(file)
    except OSError as error:
        return {**found, "not_kept": f"{file.parent} cannot be written: {error.strerror}."}
    return found
