"""The machine's ceilings, measured once and kept in the user's cache folder.

The first run on a machine measures the short form; ``hwbench ceilings`` the full form. Every run
copies what is kept into its header, so that reports read nothing else. What was measured while the
machine was busy is measured again by the next run, and the higher of each figure is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from hwbench import environment, files, protocol
from hwbench.analysis import plateaus
from hwbench.analysis.fingerprint import Severity, flat, severity
from hwbench.store.sense import impossible

METHOD = 4
"""Raised when the way of measuring changes: kept ceilings are then measured again."""

_SECONDS = 600.0  # until the worker has to be done, on a machine however busy
_NEEDED = ("matmul", "copy", "launch", "disturbed")
_BUSY = 0.5  # more than this share of the measuring was disturbed

_SOFTWARE = ("torch", "driver")  # they decide times, and a gate may be testing a change of them

R = TypeVar("R")


class Asked(Protocol):
    """A worker, wherever it runs."""

    def ask(self, request: protocol.Request, expected: type[R], timeout_seconds: float) -> R: ...


def folder() -> Path:
    """The user's cache folder."""
    return environment.cache_folder()


def path(reply: protocol.PlanReply, threads: int) -> Path:
    """The file of one machine with its settings, drivers and PyTorch."""
    return machine_path("ceilings", METHOD, reply.machine(threads), reply.settings)


def machine_path(
    name: str, method: int, fingerprint: Mapping[str, Any], settings: Mapping[str, Any]
) -> Path:
    """The file of one machine; all facts that decide times are part of its name."""
    facts = {
        ".".join(keys): value
        for keys, value in flat({**fingerprint, "settings": settings})
        if severity(keys) is Severity.FATAL or keys[-1] in _SOFTWARE
    }
    text = json.dumps([method, sorted(facts.items())], sort_keys=True, default=str)
    return folder() / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def of_machine(
    worker: Asked,
    reply: protocol.PlanReply,
    threads: int,
    dtypes: Collection[str],
    before: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The ceilings of these dtypes; those not kept yet are measured and kept.

    ``before`` is called before any is measured.
    """
    file = path(reply, threads)
    stored = _read(file)
    stored_dtypes = set(stored.get("matmul", {}))
    missing = set(dtypes) | stored_dtypes if busy(stored) else set(dtypes) - stored_dtypes
    if not dtypes or not missing:
        return stored if dtypes else {}
    before()
    measured = _measured(worker, protocol.CeilingsRequest(dtypes=sorted(missing)))
    return keep(file, _higher(stored, measured) if stored else measured)


def kept(reply: protocol.PlanReply, threads: int) -> dict[str, Any]:
    """Return the stored ceilings of this machine; empty where there are none."""
    return _read(path(reply, threads))


def busy(ceilings: Mapping[str, Any]) -> bool:
    """Whether the machine was disturbed during most of the measurement of these ceilings."""
    return bool(ceilings.get("disturbed", 0.0) > _BUSY)


def measure(
    worker: Asked, reply: protocol.PlanReply, threads: int, dtypes: Collection[str]
) -> dict[str, Any]:
    """Measure all ceilings now; they replace the kept ones."""
    request = protocol.CeilingsRequest(dtypes=list(dtypes), full=True)
    return keep(path(reply, threads), _measured(worker, request))


def _measured(worker: Asked, request: protocol.CeilingsRequest) -> dict[str, Any]:
    reply = worker.ask(request, protocol.CeilingsReply, _SECONDS)
    measured = reply.ceilings
    if sweep := measured.copy.sweep:  # of the full form
        levels = plateaus.levels(sweep, reply.cache_bytes)
        measured = msgspec.structs.replace(measured, levels=levels)
    form = "full" if request.full else "short"
    return {
        "form": form,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        **msgspec.to_builtins(measured),
    }


def _higher(stored: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """Return the better of each figure; ``disturbed`` is that of the later measurement."""
    matmul = {
        dtype: _product(stored["matmul"].get(dtype), measured["matmul"].get(dtype))
        for dtype in (*stored["matmul"], *measured["matmul"])
    }
    copy = _better(stored["copy"], measured["copy"], "bytes_per_second")
    slower = stored["launch"]["seconds"] > measured["launch"]["seconds"]
    launch = measured["launch"] if slower else stored["launch"]
    disturbed = measured["disturbed"]
    return {**stored, "matmul": matmul, "copy": copy, "launch": launch, "disturbed": disturbed}


def _product(stored: dict[str, Any] | None, measured: dict[str, Any] | None) -> Any:
    """The better product, and each library's better one beside it."""
    best = _better(stored, measured, "flops_per_second")
    before, after = ((entry or {}).get("libraries", {}) for entry in (stored, measured))
    libraries = {
        name: _better(before.get(name), after.get(name), "flops_per_second")
        for name in (*before, *after)
    }
    return {**best, "libraries": libraries} if libraries else best


def _better(stored: dict[str, Any] | None, measured: dict[str, Any] | None, rate: str) -> Any:
    """The entry with the higher rate; either may be missing."""
    if not stored or not measured:
        return stored or measured
    return {**stored, **measured} if measured[rate] > stored[rate] else stored


def _read(file: Path) -> dict[str, Any]:
    """Reads the kept ceilings; a damaged or impossible file is set aside and measured again."""
    try:
        ceilings = json.loads(files.read_text(file))
    except OSError:
        return {}
    except (ValueError, RecursionError):
        ceilings = None
    whole = isinstance(ceilings, dict) and all(name in ceilings for name in _NEEDED)
    if whole and impossible(ceilings) is None:
        return dict(ceilings)
    with contextlib.suppress(OSError):  # the next measurement replaces a file that cannot be moved
        file.replace(file.with_suffix(".damaged"))
    return {}


def keep(file: Path, ceilings: dict[str, Any]) -> dict[str, Any]:
    """Write the file in one step; where that fails, the ceilings carry the reason."""
    reason = environment.keep(file, ceilings)
    return {**ceilings, "not_kept": reason} if reason else ceilings
