"""A worker as a child process of this one, spoken to through a pipe of its own."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from hwbench import protocol
from hwbench.errors import UsageError, WorkerError
from hwbench.measure.transports._base import (
    Seat,
    SeatLostError,
    Worker,
    WorkerDiedError,
    WorkerTimedOutError,
)

START_SECONDS = 300.0  # importing torch from a cold disk can take this long
_LOG_TAIL = 2000  # characters of the worker's own output that a death notice may quote

# The worker's first lines: they load hwbench from the folder that they are given, wherever else
# there is one, and take that folder's neighbours for nothing.
_START = """
import importlib.util, pathlib, sys
folder = pathlib.Path(sys.argv.pop(1))
spec = importlib.util.spec_from_file_location(
    "hwbench", folder / "__init__.py", submodule_search_locations=[str(folder)])
package = sys.modules["hwbench"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from hwbench.worker import main
main()
"""


class LocalSeat(Seat):
    """A device of this machine."""

    def __init__(self, device: str, threads: int) -> None:
        self.device, self.threads = device, threads
        self.name, self.kind = device, ""
        self._worker: LocalWorker | None = None
        self._closed = threading.Event()

    def start(self) -> LocalWorker:
        if self._closed.is_set():
            raise SeatLostError(f"The device {self.name} was let go.")
        self._worker = LocalWorker(self.device, self.threads)
        if self._closed.is_set():  # while it started
            self._worker.close()
            raise SeatLostError(f"The device {self.name} was let go.")
        return self._worker

    def close(self) -> None:
        self._closed.set()
        if self._worker is not None:
            self._worker.kill()


class LocalWorker(Worker):
    """One child process with one device.

    ``python`` is its interpreter; ``paths``, where given, all that it finds beside that one's own
    packages, and the first of them holds its hwbench. Otherwise it runs the hwbench that started
    it, and ``PYTHONPATH`` holds. The current folder is never among what it imports from.
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
        package = Path(__file__).parents[2] if paths is None else Path(paths[0]) / "hwbench"
        self._process = subprocess.Popen(
            [
                *(python, "-c", _START, str(package)),
                *("--device", device, "--threads", str(threads)),
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
                "PYTHONPATH": os.pathsep.join(_callers_paths() if paths is None else paths),
                "PYTHONSAFEPATH": "1",
            },
        )
        os.close(read_request)
        os.close(write_reply)
        self._buffer, self._killed = b"", False
        try:
            self.hello = self._hello()
        except BaseException:
            self.close()
            raise
        if self.hello.protocol != protocol.PROTOCOL:
            self.close()
            raise UsageError(
                f"The worker of {python} speaks protocol {self.hello.protocol}, this hwbench "
                f"{protocol.PROTOCOL}; install the same version there."
            )

    def _hello(self) -> protocol.Hello:
        """The worker's first line, or the sentence that stands in its place."""
        reply = protocol.decode_reply(self._line(time.monotonic() + START_SECONDS))
        if isinstance(reply, protocol.Mistake):
            raise UsageError(reply.sentence)
        if not isinstance(reply, protocol.Hello):
            raise WorkerError(f"The worker began with {type(reply).__name__}.")
        return reply

    def exchange(self, line: bytes, timeout_seconds: float) -> bytes:
        try:
            _write_all(self._write, line + b"\n")
        except BrokenPipeError:
            raise WorkerDiedError(self._death()) from None
        return self._line(time.monotonic() + timeout_seconds)

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
        if not self._killed:  # once: afterwards the number may be another group's
            self._killed = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """End the process and release its pipe."""
        self.kill()
        for descriptor in (self._read, self._write):
            os.close(descriptor)
        self._log.close()


def _callers_paths() -> list[str]:
    """The folders of ``PYTHONPATH``; an empty one would stand for the current folder."""
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
