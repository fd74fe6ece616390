"""A process of its own for one reading, which has allocated and freed nothing before.

A server is forked while the worker is young: torch is imported, and none of its threads is started,
which no fork would survive. For each request the server forks a process that answers it and ends.
Each of them dies with the one that started it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import IO, NoReturn

PARENT_DEATH_SIGNAL = 1  # prctl option
_DIED = b"\n"


class OwnProcesses:
    """The worker's end of the server."""

    def __init__(self, requests: IO[bytes], replies: IO[bytes]) -> None:
        self._requests, self._replies = requests, replies

    def ask(self, line: bytes) -> bytes | None:
        """The line that answers a request; None where its process, or the server, died."""
        try:
            _write_all(self._requests.fileno(), line + b"\n")
        except BrokenPipeError:
            return None
        return self._replies.readline().strip() or None

    def close(self) -> None:
        """End the server."""
        self._requests.close()
        self._replies.close()


def start(
    answer: Callable[[bytes], bytes],
    seconds: int,
    closed: Sequence[int] = (),
    ready: Callable[[], None] = lambda: None,
) -> OwnProcesses:
    """Fork the server.

    Args:
        answer: makes the answer of a request, in a process of its own.
        seconds: after these a process that has not answered is killed.
        closed: descriptors that the server must not hold open.
        ready: called in the server before the first request, for what all processes need; it may
            start no thread.
    """
    from_worker, to_server = os.pipe()
    from_server, to_worker = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads of libraries: they wait
        server = os.fork()
    if server == 0:
        for descriptor in (*closed, to_server, from_server):
            os.close(descriptor)
        _serve(from_worker, to_worker, answer, seconds, ready)
    os.close(from_worker)
    os.close(to_worker)
    return OwnProcesses(os.fdopen(to_server, "wb"), os.fdopen(from_server, "rb"))


def _serve(
    read: int,
    write: int,
    answer: Callable[[bytes], bytes],
    seconds: int,
    ready: Callable[[], None],
) -> NoReturn:
    """Answer requests until the worker closes its end; it never comes back."""
    _die_with_parent()
    with os.fdopen(read, "rb") as requests:
        for number, line in enumerate(requests):
            if number == 0:
                ready()
            process = os.fork()
            if process == 0:
                _answer(line, write, answer, seconds)
            if os.waitpid(process, 0)[1] != 0:
                os.write(write, _DIED)
    os._exit(0)


def _answer(line: bytes, write: int, answer: Callable[[bytes], bytes], seconds: int) -> NoReturn:
    code = 1
    try:
        _die_with_parent()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        _write_all(write, answer(line) + b"\n")
        code = 0
    except Exception:  # noqa: BLE001 (the boundary: the server reads the exit code)
        traceback.print_exc()
    finally:
        os._exit(code)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
