"""A worker as a child process of this one, spoken to through a pipe of its own."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TypeVar

from hwbench import protocol
from hwbench.errors import UsageError, WorkerError

START_SECONDS = 300.0  # importing torch from a cold disk can take this long
_LOG_TAIL = 2000  # characters of the worker's own output that a death notice may quote

R = TypeVar("R")


class WorkerDiedError(WorkerError):
    """The worker process ended in the middle of a request."""


class WorkerTimedOutError(WorkerError):
    """The worker did not answer in time and was killed."""


class LocalWorker:
    """One child process with one device; ``ask`` sends a request and sleeps until the answer.

    ``python`` is its interpreter; ``paths``, where given, all that it finds beside that one's own
    packages.
    """

    def __init__(
        self,
        device: str,
        threads: int,
        python: str = sys.executable,
        paths: Sequence[str] | None = None,
    ) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        read_request, self._write = os.pipe()
        self._read, write_reply = os.pipe()
        paths = _own_paths() if paths is None else paths
        self._process = subprocess.Popen(
            [
                *(python, "-m", "hwbench.worker", "--device", device),
                *("--threads", str(threads)),
                *("--read", str(read_request), "--write", str(write_reply)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=(read_request, write_reply),
            start_new_session=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": str(threads),
                "MKL_NUM_THREADS": str(threads),
                "PYTHONPATH": os.pathsep.join(paths),
            },
        )
        os.close(read_request)
        os.close(write_reply)
        self._buffer = b""
        try:
            self.hello = self._answer(protocol.Hello, START_SECONDS)
        except BaseException:
            self.close()
            raise
        if self.hello.protocol != protocol.PROTOCOL:
            self.close()
            raise UsageError(
                f"The worker of {python} speaks protocol {self.hello.protocol}, this hwbench "
                f"{protocol.PROTOCOL}; install the same version there."
            )

    def ask(self, request: protocol.Request, expected: type[R], timeout_seconds: float) -> R:
        """Send a request and wait for its answer.

        Raises:
            WorkerDiedError: the process ended; the message says how.
            WorkerTimedOutError: no answer came in time; the process was killed.
            UsageError: the worker found a mistake in the request.
        """
        try:
            _write_all(self._write, protocol.encode(request) + b"\n")
        except BrokenPipeError:
            raise WorkerDiedError(self._death()) from None
        return self._answer(expected, timeout_seconds)

    def _answer(self, expected: type[R], timeout_seconds: float) -> R:
        reply = protocol.decode_reply(self._line(time.monotonic() + timeout_seconds))
        if isinstance(reply, protocol.Mistake):
            if reply.detail:
                raise WorkerError(f"{reply.sentence}\n{reply.detail}")
            raise UsageError(reply.sentence)
        if not isinstance(reply, expected):
            raise WorkerError(f"The worker answered {type(reply).__name__}.")
        return reply

    def _line(self, deadline: float) -> bytes:
        with selectors.DefaultSelector() as selector:
            selector.register(self._read, selectors.EVENT_READ)
            pieces = [self._buffer]
            while b"\n" not in pieces[-1]:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self.kill()
                    raise WorkerTimedOutError("It did not end in time and was stopped.")
                pieces.append(os.read(self._read, 1 << 20))
                if not pieces[-1]:
                    raise WorkerDiedError(self._death())
        line, _, self._buffer = b"".join(pieces).partition(b"\n")
        return line

    def _death(self) -> str:
        code = self._process.wait()
        how = f"exit code {code}"
        if code < 0:
            how = f"signal {-code}, {signal.Signals(-code).name}"
        self._log.seek(0)
        text = self._log.read().decode(errors="replace").strip()
        lines = [line for line in text[-_LOG_TAIL:].splitlines() if not line.startswith("USDT:")]
        return f"The worker process died ({how})." + (
            f" Its last line: {lines[-1]}" if lines else ""
        )

    def kill(self) -> None:
        """Stop the process and everything that it started, at once."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """End the process and release its pipe."""
        self.kill()
        for descriptor in (self._read, self._write):
            os.close(descriptor)
        self._log.close()


def _own_paths() -> list[str]:
    """Where a worker of this interpreter finds hwbench, and what the caller has it find."""
    root = Path(__file__).parents[2]
    own = [str(root)] if root.name not in ("site-packages", "dist-packages") else []
    return [*own, *filter(None, [os.environ.get("PYTHONPATH")])]


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
