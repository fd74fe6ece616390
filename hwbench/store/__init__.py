"""Run files: one JSON-lines file a run, appended as results arrive, readable when cut off anywhere.

The first line is the header; then one line for each planned case, one for each result, and a footer
when the run is complete. A line is written whole and flushed, so a killed run loses at most the
line in flight; the reader drops an unfinished last line, and a resumed run cuts it off. A writer
that could not write a line cuts it off too, and writes no other behind it. None grows beyond what
can be read again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import msgspec

from hwbench import files
from hwbench.errors import RunFileError, shortened
from hwbench.records import (
    SCHEMA,
    Footer,
    Header,
    Line,
    Planned,
    PlannedLine,
    Result,
    ResultLine,
    without_gc,
)
from hwbench.store.sense import MOST_REPLICATES, Sense

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Line)
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
"""The errors of a file system without locks."""
_END_BYTES, _FOOTER = 1 << 16, b'{"line":"footer"'
"""The bytes of a run in which its last line is looked for first, and how a footer begins."""
_RUN_NAME = re.compile(r"[A-Za-z0-9._-]{1,120}")


@dataclass
class Run:
    """One run as read: the header, the planned cases by id, the results, and whether it ended."""

    path: Path
    header: Header
    planned: dict[str, Planned] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    footer: Footer | None = None
    truncated: bool = False  # the last line was unfinished
    size: int = 0  # bytes up to the end of the last whole line

    @property
    def complete(self) -> bool:
        """Whether the run ended by itself."""
        return self.footer is not None

    @property
    def unfinished(self) -> str | None:
        """That the run did not end, and how to go on, without a full stop; None where it did."""
        if self.complete:
            return None
        return f"{self.path} is not finished; go on with: hwbench run --resume {self.path}"

    @property
    def done(self) -> set[tuple[str, int]]:
        """The (case id, replicate) pairs that have a result."""
        return {(result.case, result.replicate) for result in self.results}


class RunWriter:
    """Appends lines to one run file and holds its lock until closed."""

    resumable = True  # whether a run that is cut off can be gone on with

    def __init__(self, path: Path, handle: IO[bytes]) -> None:
        self.path = path
        self._refused = ""  # why nothing more is written
        self._handle = handle
        self._size = self._memory = 0  # bytes of what was written, and that reading it takes
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            raise RunFileError(f"{path} is being written by another process.") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            warnings.warn(
                f"The folder of {path} has no locks: nothing keeps a second process from writing "
                "to this run.",
                stacklevel=3,
            )

    @classmethod
    def create(cls, folder: Path, header: Header, planned: Iterable[PlannedLine]) -> RunWriter:
        """Start a new run file in ``folder``, with its header and its planned cases.

        The file appears with all of them in it, or not at all: without them a run cannot be
        resumed.

        Raises:
            RunFileError: the folder cannot be made or written, or has a run of that name.
        """
        path = run_path(folder, header.run)
        begun = files.beside(path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = begun.open("xb", buffering=0)
            try:
                writer = cls(path, handle)
                writer.resumable = header.resumable
                writer._write(header, *planned)
                files.place(begun, path)
            except BaseException:
                handle.close()
                raise
            finally:
                begun.unlink(missing_ok=True)
        except OSError as error:
            raise RunFileError(
                f"Cannot write a run into {folder}: {error.strerror}; choose another with --out."
            ) from error
        return writer

    @classmethod
    def resume(cls, run: Run) -> RunWriter:
        """Open an unfinished run to append to it, cutting off an unfinished last line.

        The file is read again under the lock: what was written since ``run`` was read is kept, and
        stands in ``run`` afterwards.

        Raises:
            RunFileError: the file cannot be written, another process is writing it or has
                completed it, or it is another run by now.
        """
        try:
            writer = cls(run.path, run.path.open("r+b", buffering=0))
        except OSError as error:
            raise RunFileError(f"Cannot write to {run.path}: {error.strerror}.") from error
        try:
            writer._catch_up(run)
        except BaseException:
            writer.close()
            raise
        return writer

    def _catch_up(self, run: Run) -> None:
        number = self._handle.fileno()
        data = _read(run.path)
        now = parsed(run.path, data)
        if now.header != run.header or not os.path.samestat(os.fstat(number), run.path.stat()):
            raise RunFileError(f"{run.path} was replaced by another file; start again.")
        if now.complete and not run.complete:
            raise RunFileError(f"{run.path} was completed by another process; there is no rest.")
        run.planned, run.results = now.planned, now.results
        run.size, run.truncated = now.size, now.truncated
        self._size, self._memory = run.size, files.memory(data[: run.size])
        os.ftruncate(number, run.size)
        self._handle.seek(0, os.SEEK_END)

    def append(self, *lines: Line) -> None:
        """Write lines, all of them whole, and flush them.

        Raises:
            RunFileError: the disk is full, the file went away, or it would be larger than what
                ``read_run`` reads; what was written before stays. All later calls raise it again:
                other threads may hold lines, and behind half a line they would be lost.
        """
        if self._refused:
            raise RunFileError(self._refused)
        try:
            self._write(*lines)
        except OSError as error:
            how = f"go on with --resume {self.path}" if self.resumable else "start again"
            self._refused = (
                f"Cannot write to {self.path}: {error.strerror}. What was measured before is in "
                f"it{self._cut()}; free some space and {how}."
            )
            raise RunFileError(self._refused) from error
        except RunFileError as error:
            self._refused = str(error)
            raise

    def _cut(self) -> str:
        """Cut off what was written of an unfinished line; says so where that cannot be done."""
        try:
            os.ftruncate(self._handle.fileno(), self._size)
        except OSError as error:
            return (
                f", behind it half a line that cannot be cut off ({error.strerror}) and is not read"
            )
        return ""

    def _write(self, *lines: Line) -> None:
        data = b"".join(_encoder.encode(line) + b"\n" for line in lines)
        size, memory = self._size + len(data), self._memory + files.memory(data)
        if size > files.MOST_OF_A_RUN or memory > files.MOST_OF_MEMORY:
            raise RunFileError(
                f"{self.path} would be larger than what hwbench reads as a run. What was measured "
                "before is in it; measure the other cases in runs of their own, with --filter."
            )
        while data:
            data = data[self._handle.write(data) :]
        self._size, self._memory = size, memory

    def close(self) -> None:
        """Release the file and its lock."""
        self._handle.close()

    def discard(self) -> None:
        """Take back the file of a run that measured nothing."""
        self.path.unlink()
        self.close()


def run_path(folder: Path, run: str) -> Path:
    """Where the file of a run stands in a folder.

    Raises:
        RunFileError: a run cannot have that name; it may come from a file, and lead anywhere.
    """
    if not _RUN_NAME.fullmatch(run):
        raise RunFileError(f"{run!r} is not a name that a run can have.")
    return folder / f"{run}.jsonl"


def has_footer(path: Path) -> bool:
    """Whether the last line of a run is its footer; the rest, which may be long, is not read.

    Raises:
        OSError: the file cannot be read.
    """
    size, step = path.stat().st_size, _END_BYTES
    with files.opened(path) as file:
        while True:
            file.seek(max(0, size - step))
            before, _, last = file.read().removesuffix(b"\n").rpartition(b"\n")
            if before or step >= size:
                return last.startswith(_FOOTER)
            step *= 4


def read_header(path: Path) -> Header:
    """The header of a run file, without reading the rest.

    Raises:
        RunFileError: there is no such file, or it does not begin with a header.
    """
    try:
        with files.opened(path) as file:
            first = file.readline(files.MOST_OF_A_HEADER)
    except OSError as error:
        raise RunFileError(f"Cannot read the run {path}: {error.strerror}.") from error
    if not first.endswith(b"\n"):
        raise RunFileError(f"{path} is not a run file: it holds no whole line.")
    return _header(path, first)


def read_run(path: Path) -> Run:
    """Read a run file; one that was cut off is read up to its last whole line.

    Raises:
        RunFileError: there is no such file, it is not a run file, or a line in it is damaged or
            says what cannot be.
    """
    return parsed(path, _read(path))


def _read(path: Path) -> bytes:
    try:
        return files.read(path, files.MOST_OF_A_RUN)
    except OSError as error:
        raise RunFileError(f"Cannot read the run {path}: {error.strerror}.") from error


def parsed(path: Path, data: bytes) -> Run:
    """A run from the bytes of its file; the errors are those of ``read_run``."""
    end = data.rfind(b"\n") + 1
    lines = data[:end].splitlines()
    if not lines:
        raise RunFileError(f"{path} is not a run file: it holds no whole line.")
    run = Run(
        path=path,
        header=_header(path, lines[0]),
        truncated=end < len(data),
        size=end,
    )
    sense = Sense(run.header, run.planned)
    with without_gc():
        for number, text in enumerate(lines[1:], start=2):
            _take(run, sense, number, text)
    return run


def _take(run: Run, sense: Sense, number: int, text: bytes) -> None:
    try:
        line = _decoder.decode(text)
    except _UNREADABLE as error:
        raise _damaged(run.path, number, str(error)) from error
    if run.complete:
        raise _damaged(run.path, number, "it stands after the end of the run")
    match line:
        case PlannedLine():
            if line.id != line.planned.case.id:
                raise _damaged(run.path, number, "the case is described under another name")
            if problem := sense.of_case(line.planned):  # which keeps it among those of the run
                raise _damaged(run.path, number, problem)
        case ResultLine():
            if line.result.case not in run.planned:
                raise RunFileError(
                    f"Line {number} of {run.path} has a result of the case "
                    f"{shortened(repr(line.result.case))}, which the run does not describe."
                )
            if problem := sense.of_result(line.result):
                raise _damaged(run.path, number, problem)
            run.results.append(line.result)
        case Footer():
            run.footer = line
        case Header():
            raise RunFileError(f"Line {number} of {run.path} is a second header.")


def _damaged(path: Path, number: int, why: str) -> RunFileError:
    return RunFileError(
        f"Line {number} of {path} is damaged ({shortened(why)}); restore the file or drop the line."
    )


def _header(path: Path, text: bytes) -> Header:
    try:
        raw: Any = msgspec.json.decode(text)
    except _UNREADABLE as error:
        raise RunFileError(f"{path} is not a run file: its first line is not JSON.") from error
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if not isinstance(schema, int) or raw.get("line") != "header":
        raise RunFileError(f"{path} is not a run file: its first line is not a header.")
    if schema > SCHEMA:
        raise RunFileError(
            f"{path} has schema {schema}; this hwbench reads up to {SCHEMA}. Install a newer one."
        )
    try:
        header = msgspec.convert(raw, Header)
    except msgspec.ValidationError as error:
        raise RunFileError(
            f"The header of {path} is damaged ({shortened(str(error))}); restore the file."
        ) from error
    if problem := Sense(header).of_header():
        raise RunFileError(f"The header of {path} is damaged ({problem}); restore the file.")
    if not 0 < header.plan.replicates <= MOST_REPLICATES:
        raise RunFileError(f"The header of {path} asks for {header.plan.replicates} replicates.")
    threads = header.arguments.get("threads")
    if not isinstance(threads, int | None):
        raise RunFileError(f"The header of {path} does not say how many threads ran.")
    return header


def list_runs(folder: Path) -> list[Path]:
    """The run files of a folder, oldest first (their names begin with the date).

    Raises:
        RunFileError: it is not a folder.
    """
    if not folder.is_dir():
        raise RunFileError(f"{folder} is not a folder.")
    return files.listed(folder, "*.jsonl")
