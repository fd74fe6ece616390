"""Which differences between two machines make their runs incomparable. Pure.

A fingerprint is what must agree before times are compared; the table here says of every fact what
it means that it does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from hwbench.records import Allocator, Environment


class Severity(StrEnum):
    """The effect of a difference between two fingerprints on a comparison."""

    FATAL = "fatal"  # other hardware, limits or settings: times cannot be compared
    WARN = "warn"  # may explain a change, and may itself be under test
    IGNORED = "ignored"  # which one of several equal machines it was


_FATAL = (
    *("name", "memory_bytes", "threads", "machine", "system", "virtual"),
    *("float32_matmul_precision", "mkldnn", "denormals", "ONEDNN_MAX_CPU_ISA"),
    *("OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "allocator"),
)
_WARN = (
    "hwbench",
    "torch",
    "driver",
    "python",
    "kernel",
    "libc",
)  # a nightly gate may be testing a change of these
SOFTWARE = ("torch", "driver", "hwbench")
"""The facts that may move dense without another machine; within one run none may change."""
_IGNORED = ("uuid", "serial", "pci_bus_id", "index", "hostname")

FINGERPRINT = {
    **dict.fromkeys(_FATAL, Severity.FATAL),
    **dict.fromkeys(_WARN, Severity.WARN),
    **dict.fromkeys(_IGNORED, Severity.IGNORED),
}
"""By a fact's key, or the nearest key above it. What is not listed is fatal under ``device`` (the
machine's own facts) and a warning elsewhere. A fact that one side did not record is a warning at
most; an environment variable (upper case) that is not set is a setting like another. Memory is the
same within 2 %, because kernels keep more or less of it for themselves."""

_UNRECORDED = {"allocator": Allocator.SYSTEM.value}
"""The value of a fact that a run does not record: no other value existed when it was made."""

_ADVICE = {"allocator": "--allocator {} measures as before"}
"""How a new run is made in which a fact is as it was; ``{}`` stands for that."""


@dataclass(frozen=True)
class Difference:
    """A fact on which two fingerprints disagree; None stands for one that is not there."""

    key: str
    baseline: Any
    new: Any
    severity: Severity

    @property
    def software(self) -> bool:
        """Whether it is software, which may move dense on the same machine."""
        return self.key.rpartition(".")[2] in SOFTWARE

    def __str__(self) -> str:
        advice = _ADVICE.get(self.key.rpartition(".")[2], "").format(self.baseline)
        change = f"{self.key} was {self.baseline!r} and is {self.new!r}"
        return f"{change} ({advice})" if advice else change


def facts(environment: Environment) -> dict[str, Any]:
    """The parts of a run's environment that are compared: its fingerprint and torch's switches."""
    return {**environment.fingerprint, "settings": environment.settings}


def differences(baseline: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """Where the facts of two machines disagree, the fatal first; ignored facts are left out."""
    before, after = dict(flat(baseline)), dict(flat(new))
    differing = []
    for path in sorted({*before, *after}):
        old, now = (side.get(path, _UNRECORDED.get(path[-1])) for side in (before, after))
        means = severity(path)
        if means is Severity.IGNORED or _same(path[-1], old, now):
            continue
        if (old is None or now is None) and not path[-1].isupper():
            means = Severity.WARN
        differing.append(Difference(".".join(path), old, now, means))
    return sorted(differing, key=lambda difference: difference.severity is not Severity.FATAL)


def flat(
    facts: Mapping[str, Any], above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every fact with the keys that lead to it."""
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield from flat(value, (*above, key))
        else:
            yield (*above, key), value


def severity(path: tuple[str, ...]) -> Severity:
    """Return how severe a difference in the fact under these keys is."""
    listed = (FINGERPRINT[key] for key in reversed(path) if key in FINGERPRINT)
    return next(listed, Severity.FATAL if path[0] == "device" else Severity.WARN)


def _same(key: str, old: Any, now: Any) -> bool:
    if key == "memory_bytes" and isinstance(old, int) and isinstance(now, int):
        return abs(old - now) <= 0.02 * max(old, now)
    return bool(old == now)
