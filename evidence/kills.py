"""Whole runs that are killed at random moments and gone on with; eight at once into one folder.

    python evidence/kills.py [COUNT]

COUNT runs of the simulated device, each in a process of its own that its workers share, end by
SIGKILL, SIGTERM or SIGINT after a random part of the time that a whole one takes; then ``--resume``
goes on. After it each run must be complete, have each case once a replicate, and every whole line
that was in its file when it was killed. Runs that ended before their signal came, and those whose
file was not there yet, which have nothing to go on with, are told and not counted. Then eight runs
write into one folder at once.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from _inline import Workers

from hwbench import cli, worker  # noqa: F401 (torch is imported once, not in each process)
from hwbench.files import listed
from hwbench.measure.transports import local
from hwbench.store import read_run

COUNT, AT_ONCE = 60, 8
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
INTERRUPTED = 130
NOT_KILLED = "after its end (not counted)"
NO_FILE = "before its file was there (not counted)"
REPLICATES = 3
SUITE = (
    f'schema = 1\nname = "kills"\n[plan]\nreplicates = {REPLICATES}\nbudget_seconds = 0.01\n'
    '[[cases]]\nworkload = "linear"\ndirection = ["forward", "step"]\nshape = [[64, 64], [96, 64]]'
    '\ntokens = [1, 16]\nformat = [{ name = "dense" }, '
    '{ name = "low_rank", density = [0.25, 0.5] }, { name = "monarch", density = 0.5 }]\n'
)
LONGEST = 300.0  # seconds that a call may take before it counts as one that hangs


class Call:
    """A call of ``hwbench run`` in a process of its own, whose workers answer in it too."""

    def __init__(self, folder: Path, *words: str) -> None:
        self._said = folder / "stderr.txt"
        self._said.touch()
        self._code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            self._run(folder, words)

    def _run(self, folder: Path, words: tuple[str, ...]) -> None:
        os.chdir(folder)
        os.dup2(os.open(self._said, os.O_WRONLY | os.O_TRUNC), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv = ["hwbench", "run", *words, "--json"]
        local.LocalWorker = Workers()  # type: ignore[misc]
        try:
            cli.main()
        except SystemExit as found:
            os._exit(int(found.code or 0))
        except BaseException:  # noqa: BLE001 (it must not go on as the parent)
            traceback.print_exc()
            os._exit(70)

    def alive(self) -> bool:
        """Whether it goes on."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code is None

    def ended(self) -> tuple[int, str]:
        """The exit code, negative for a signal, and what it said, after it ended by itself."""
        begun = time.monotonic()
        while self.alive():
            assert time.monotonic() - begun < LONGEST, "it hangs"
            time.sleep(0.01)
        assert self._code is not None
        return self._code, self._said.read_text("utf-8", errors="replace")


def asked(folder: Path) -> list[str]:
    """The words of a new run in a folder."""
    (folder / "kills.toml").write_text(SUITE)
    return ["--suite", "kills.toml", "--device", "fake", "--out", "runs"]


def whole(path: Path) -> None:
    """Check that a run is complete and has each case once a replicate."""
    run = read_run(path)
    assert run.complete, f"{path} is not complete"
    assert not run.truncated, f"{path} ends in the middle of a line"
    counts = Counter((result.case, result.replicate) for result in run.results)
    assert set(counts.values()) == {1}, f"{path} has a case twice"
    own = {case: {r for c, r in counts if c == case} for case in run.planned}
    few = [case for case, replicates in own.items() if not set(range(REPLICATES)) <= replicates]
    assert not few, f"{path} lacks {few[:3]}"


def killed(folder: Path, number: int, source: random.Random, seconds: float) -> str:
    """Kill a run and go on with it; what there was when it was killed."""
    folder.mkdir()
    sent = SIGNALS[number % len(SIGNALS)]
    call = Call(folder, *asked(folder))
    time.sleep(source.uniform(0, 1) * seconds)
    if call.alive():
        os.kill(call.pid, sent)
    code, output = call.ended()
    # Until the command line has its own handlers, a signal does what Python lets it do.
    expected = {-sent} if sent == signal.SIGKILL else {-sent, INTERRUPTED}
    assert code in {0, *expected}, f"{number}: {code} by {sent.name}: {output}"
    if code == 0:
        return NOT_KILLED
    runs = listed(folder / "runs", "*.jsonl")
    if not runs:
        return NO_FILE
    (path,) = runs
    data = path.read_bytes()
    whole_lines = data[: data.rfind(b"\n") + 1]
    before = "when all was measured" if read_run(path).complete else "while it measured"
    code, output = Call(folder, "--resume", str(path)).ended()
    assert code == 0, f"{number}: {code} from --resume: {output}"
    assert path.read_bytes().startswith(whole_lines), f"{path} lost lines that were whole"
    whole(path)
    return f"{before}, {sent.name}"


def together(folder: Path) -> None:
    """So many runs at once into one folder: as many complete files, and nothing beside them."""
    folder.mkdir()
    words = asked(folder)
    for call in [Call(folder, *words) for _ in range(AT_ONCE)]:
        code, output = call.ended()
        assert code == 0, output
    paths = sorted((folder / "runs").iterdir())
    assert len(paths) == AT_ONCE, paths
    for path in paths:
        whole(path)


def main() -> None:
    """Kill so many runs, then write eight at once; a fault ends it with the assertion."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int, nargs="?", default=COUNT)
    count, source = parser.parse_args().count, random.Random(20261128)
    # A shell starts what is in the background with SIGINT ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    print(f"{begun}, {platform.platform()}, Python {platform.python_version()}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "first").mkdir()
        started = time.monotonic()
        code, output = Call(folder / "first", *asked(folder / "first")).ended()
        assert code == 0, output
        seconds = time.monotonic() - started
        outcomes: Counter[str] = Counter()
        for number in itertools.count():
            outcomes[killed(folder / str(number), number, source, seconds)] += 1
            if (done := outcomes.total() - outcomes[NOT_KILLED] - outcomes[NO_FILE]) >= count:
                break
            print(f"  {done} of {count}", end="\r", flush=True)
        for words, times in sorted(outcomes.items()):
            print(f"{words:40s} {times}", flush=True)
        together(folder / "together")
        print(f"{AT_ONCE} at once: {AT_ONCE} complete files")


if __name__ == "__main__":
    main()
