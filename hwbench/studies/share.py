"""A run file for others: without the names of hosts, folders and single devices."""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import Any

import msgspec

from hwbench import files, units
from hwbench.errors import shortened
from hwbench.store import Run, parsed, read_run

PRIVATE = (
    *("hostname", "uuid", "serial", "pci_bus_id", "nodename", "user"),
    *("commit", "dirty", "branch", "git", "remote", "other_processes"),
)
"""Facts that name one machine, its owner's code, or what else runs on it."""

# A path from the root or from home: at least two parts, and no part of a longer word, so that
# neither the id of a case nor a quotient is one.
_PATH = re.compile(r"(?<![\w.)\]])(?:~|/[\w.@+-]+)(?:/[\w.@+ -]*[\w.@+-])+")


def share(run: Path, out: Path) -> Run:
    """Write a cleaned copy of a run file, and return what it then holds.

    Every line is written anew: facts of ``PRIVATE`` are left out, and of each path its last part is
    kept, the same everywhere. Nothing that was measured changes.

    Raises:
        RunFileError: the run cannot be read, or the copy cannot be written.
        UsageError: the copy would be written over the run.
    """
    files.refuse_inputs([out], [run])
    content = read_run(run)
    data = files.read(run, files.MOST_OF_A_RUN)[: content.size]  # without an unfinished line
    shared = b"".join(_line(line) + b"\n" for line in data.splitlines())
    files.write(out, shared, "the run ")
    return parsed(out, shared)


def _line(line: bytes) -> bytes:
    """A line without what is private, and otherwise as runs are written, number by number."""
    return msgspec.json.encode(_cleaned(msgspec.json.decode(line)))


def _cleaned(value: Any) -> Any:
    if isinstance(value, dict):
        return {_text(k): _cleaned(v) for k, v in value.items() if k not in PRIVATE}
    if isinstance(value, list):
        return [_cleaned(each) for each in value]
    return _text(value) if isinstance(value, str) else value


def _text(text: str) -> str:
    return _PATH.sub(lambda match: PurePath(match[0]).name, text)


def words(run: Run) -> str:
    """Return the text of a contribution, as Markdown: the machine, and the suite measured on it."""
    header, facts = run.header, run.header.environment.fingerprint
    device, host = facts.get("device", {}), facts.get("host", {})
    memory = device.get("memory_bytes")
    rows = {
        "machine": header.machine + (" (virtual)" if host.get("virtual") else ""),
        "cores": device.get("cores"),
        "memory": units.nbytes(memory) if isinstance(memory, int | float) else None,
        "threads": facts.get("threads"),
        "driver": facts.get("driver"),
        "torch": facts.get("torch"),
        "hwbench": header.version,
        "suite": f"{header.suite}, {len(run.planned)} cases",
        "measured": header.created[:10],
        "complete": "yes" if run.complete else "no",
    }
    lines = [f"| {name} | {shortened(str(value))} |" for name, value in rows.items() if value]
    return "\n".join(["| | |", "|---|---|", *lines])
