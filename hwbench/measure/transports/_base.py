"""The interface of every transport: seats, each with a device of its own, and workers on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeVar

from hwbench import protocol
from hwbench.errors import UsageError, WorkerError

R = TypeVar("R")


class WorkerDiedError(WorkerError):
    """The worker process ended in the middle of a request."""


class WorkerTimedOutError(WorkerError):
    """The worker did not answer in time and was killed."""


class WorkerFailedError(WorkerError):
    """A request raised inside the worker; a GPU may be lost to that process from then on."""


class SeatLostError(WorkerError):
    """The machine went away with the worker; the case is not to blame."""


class Worker(ABC):
    """A worker process; ``ask`` sends it a request and sleeps until the answer."""

    def ask(self, request: protocol.Request, expected: type[R], timeout_seconds: float) -> R:
        """Send a request and wait for its answer.

        Raises:
            WorkerDiedError: the process ended; the message says how.
            WorkerTimedOutError: no answer came in time; the process was killed.
            WorkerFailedError: the request raised; the message says what, and a note holds the
                worker's traceback, which only --debug shows.
            SeatLostError: its machine went away.
            UsageError: the worker found a mistake in the request.
        """
        line = self.exchange(protocol.encode(request), timeout_seconds)
        reply = protocol.decode_reply(line)
        if isinstance(reply, protocol.Mistake):
            if reply.detail:
                error = WorkerFailedError(reply.sentence)
                error.add_note(f"In the worker:\n{reply.detail.rstrip()}")
                raise error
            raise UsageError(reply.sentence)
        if not isinstance(reply, expected):
            raise WorkerError(f"The worker answered {type(reply).__name__}.")
        return reply

    @abstractmethod
    def exchange(self, line: bytes, timeout_seconds: float) -> bytes:
        """Send one line and return the line that answers it; the errors are those of ``ask``."""

    @abstractmethod
    def close(self) -> None:
        """End the process."""


class Seat(ABC):
    """One device, held alone, on which fresh workers are started one after the other."""

    name: str  # for people: which device, and where
    kind: str  # of equal seats, as far as is known without asking: "A100"; "" for this machine
    device: str  # the worker's argument: cpu, cuda, cuda:1
    threads: int

    @abstractmethod
    def start(self) -> Worker:
        """A fresh worker process.

        Raises:
            SeatLostError: the machine went away, or the seat was closed.
            UsageError: there is no such device.
        """

    @abstractmethod
    def close(self) -> None:
        """End its worker, if one runs, and let the device go."""
