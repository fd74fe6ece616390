"""Everything hwbench raises on purpose, and the exit code each error stands for.

HwbenchError
├── UsageError             2   what was asked for cannot be done; the sentence says what to do
│   ├── UnknownNameError   2   a name that is not there, with the nearest one
│   ├── KnobError          2   a format's knob has a value it cannot take
│   │   └── UnreachableError 2 a density that a format cannot reach; in a suite it is `unsupported`
│   ├── SuiteError         2   a suite file or a case in it is wrong
│   ├── DeviceError        2   a device was asked for that this machine does not offer
│   ├── RunFileError       2   a run file cannot be read or written
│   └── MissingPartError   2   an optional package is needed and not installed
├── EnvironmentMismatchError 4   two runs come from machines that cannot be compared
├── CasesFailedError       5   a case was wrong, crashed or timed out, or nothing could be measured
├── IncompleteRunError     5   the machines of a run went away before it was complete
├── NoBaselineError        6   there is no usable baseline
└── WorkerError           70   the worker broke its protocol
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from hwbench.channels import visible


def shortened(text: str, most: int = 100) -> str:
    """A text that came from a file, as a sentence may quote it: nothing in it steers a terminal."""
    return visible(text if len(text) <= most else f"{text[:most]}…")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without its full stop; its type without one."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


class HwbenchError(Exception):
    """The base of all errors that are raised on purpose; the message is one sentence."""

    exit_code = 70


class UsageError(HwbenchError):
    """The request cannot be carried out as it stands."""

    exit_code = 2


_OTHER_NAMES = {
    "gpu": "cuda", "nvidia": "cuda",
    "2:4": "semi_structured", "svd": "low_rank", "lora": "low_rank",
}  # fmt: skip
"""Other names of members in the literature, and their names here."""


class UnknownNameError(UsageError):
    """A name that does not exist; the message names the nearest one that does."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.name = name
        known = sorted(known)
        name = shortened(name)
        near = [each for each in (_OTHER_NAMES.get(name.lower()),) if each in known]
        near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}."
        super().__init__(f"Unknown {kind} {name!r}; {hint}")


class KnobError(UsageError):
    """A format's knob has a value that it cannot take."""


class UnreachableError(KnobError):
    """A format cannot be that small (or large) there; the message says what it can reach."""


class SuiteError(UsageError):
    """A suite, or a case in it, is wrong."""


class DeviceError(UsageError):
    """A device was asked for that this machine does not offer."""


class RunFileError(UsageError):
    """A run file cannot be read or written."""


class MissingPartError(UsageError):
    """An optional package is needed for this and is not installed."""


class EnvironmentMismatchError(HwbenchError):
    """Two runs come from machines or settings that cannot be compared."""

    exit_code = 4


class CasesFailedError(HwbenchError):
    """A case was wrong, crashed or timed out, or nothing could be measured."""

    exit_code = 5


class IncompleteRunError(HwbenchError):
    """The machines of a run went away before it was complete; what is there can be resumed."""

    exit_code = 5


class NoBaselineError(HwbenchError):
    """There is no usable baseline to check against."""

    exit_code = 6


class WorkerError(HwbenchError):
    """The worker process broke its protocol."""
