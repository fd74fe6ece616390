"""Inputs that the readers do not expect: a hundred thousand mutilated, thousands well formed.

    python evidence/fuzz.py [COUNT [OF EACH STRUCTURE]] [--resume FILE]

COUNT suites and runs are mutilated; none may end in a traceback, or take longer than ten seconds of
processor time. Then so many files of each of six kinds (runs, suites, files of pytest-benchmark,
caches, models, data) are changed with their structure kept, and put through verbs and readers: none
may end in a traceback or an exit code that is not documented, last longer than 20 seconds, or take
this process beyond 2 GiB. A number is the seed of each of these, so the same inputs are tried
everywhere. With --resume the counts of the six kinds are kept in a file, and a second call goes on
from there; whether it can be written is tried first.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import _fuzz
import _mutants

from hwbench import files
from hwbench.errors import RunFileError

COUNT = 34_000  # of each of the three kinds
LIMIT_SECONDS = 10.0
STRUCTURES = 5_000  # of each of the six kinds
STRUCTURE_SECONDS = 20.0
MOST_BYTES = 2 << 30


class _HangError(BaseException):
    """An input took longer than the limit."""


def _hang(*_: object) -> None:
    raise _HangError


def tried(
    name: str, count: int, strategy: st.SearchStrategy[Any], read: Callable[[Any], str]
) -> int:
    """Try so many inputs and print what came of them; the number of failures."""
    outcomes: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    longest = 0.0

    @seed(20261121)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(value=strategy)
    def attempt(value: Any) -> None:
        nonlocal longest
        begun = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, LIMIT_SECONDS)
        try:
            outcomes[read(value)] += 1
        except (Exception, _HangError) as error:  # noqa: BLE001 (they are what is counted)
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{type(error).__name__}: {str(error)[:100]} ({last.filename}:{last.lineno})"
            if failures[place] == 0:
                print(f"  failed: {place}\n    with {str(value)[:300]!r}")
            failures[place] += 1
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        longest = max(longest, time.process_time() - begun)

    attempt()
    total = sum(outcomes.values()) + sum(failures.values())
    print(
        f"{name:26s} {total:6d} inputs: {outcomes['read']:5d} read, "
        f"{outcomes['refused']:5d} refused, {sum(failures.values())} failed; "
        f"the longest took {longest:.2f} s",
        flush=True,
    )
    return sum(failures.values())


@dataclass
class Tally:
    """The outcomes of the mutations of one kind so far."""

    tried: int = 0  # their seeds are 0 … tried - 1
    outcomes: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0  # in all
    longest: float = 0.0  # seconds
    peak: int = 0  # bytes of this process

    def add(self, kind: str, folder: Path) -> None:
        """Try the next mutation of the kind in a folder."""
        begun = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, STRUCTURE_SECONDS)
        try:
            outcome = _mutants.outcome(kind, self.tried, folder)
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        except (Exception, _HangError) as error:  # noqa: BLE001 (they are what is counted)
            last = traceback.extract_tb(error.__traceback__)[-1]
            failure = f"{type(error).__name__}: {str(error)[:200]} ({last.filename}:{last.lineno})"
            self.failures.append(f"{kind} {self.tried}: {failure}")
            print(f"  failed: {self.failures[-1]}", flush=True)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        seconds = time.monotonic() - begun
        self.tried += 1
        self.seconds += seconds
        self.longest = max(self.longest, seconds)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.peak = max(self.peak, peak)

    def told(self, kind: str) -> str:
        """One line of counts."""
        counts = ", ".join(f"{name} {count}" for name, count in sorted(self.outcomes.items()))
        return (
            f"{kind:26s} {self.tried:6d} inputs: {counts}; {len(self.failures)} failed; "
            f"{self.seconds:.0f} s, the longest {self.longest:.1f} s; "
            f"at most {self.peak / 2**30:.2f} GiB"
        )


def resumed(state: Path) -> dict[str, Tally]:
    """The counts that a file holds, by kind; it is written again, so that it can be later.

    Raises:
        SystemExit: it cannot be written, or holds something else.
    """
    try:
        text = state.read_text("utf-8") if state.exists() else "{}"
        tallies = {kind: Tally(**counts) for kind, counts in json.loads(text).items()}
    except OSError as error:
        raise SystemExit(f"--resume {state} cannot be read: {error.strerror}.") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise SystemExit(f"--resume {state} holds something else than counts.") from error
    if unknown := tallies.keys() - _mutants.KINDS:
        raise SystemExit(f"--resume {state} has counts of {min(unknown)}, which is no kind.")
    try:
        files.write_text(state, text)
    except RunFileError as error:
        raise SystemExit(f"--resume: {error}") from error
    return tallies


def kept_structures(
    count: int, folder: Path, stored: Mapping[str, Tally], state: Path | None
) -> int:
    """Try so many mutations of each kind and print what came of them; the number of failures."""
    tallies = {kind: stored.get(kind) or Tally() for kind in _mutants.KINDS}
    for kind, tally in tallies.items():
        place = folder / kind
        place.mkdir()
        while tally.tried < count:
            tally.add(kind, place)
            if state is not None and (tally.tried % 50 == 0 or tally.tried == count):
                tallies_now = {name: asdict(each) for name, each in tallies.items()}
                files.write_text(state, json.dumps(tallies_now, indent=1))
        print(tally.told(kind), flush=True)
    return sum(len(t.failures) + (t.peak > MOST_BYTES) for t in tallies.values())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int, nargs="?", default=COUNT)
    parser.add_argument("structures", type=int, nargs="?", default=STRUCTURES)
    parser.add_argument("--resume", type=Path, metavar="FILE")
    return parser.parse_args()


def main() -> None:
    """Try all kinds and fail where any input failed."""
    signal.signal(signal.SIGPROF, _hang)
    signal.signal(signal.SIGALRM, _hang)
    options = _arguments()
    stored = resumed(options.resume) if options.resume else {}
    importlib.import_module("torch")  # no input shall be charged with it, or cut it off
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    print(f"{begun}, {platform.platform()}, Python {platform.python_version()}", flush=True)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        if options.count:
            path = Path(folder) / "input.toml"
            failed += mutilated(path, options.count)
        failed += kept_structures(options.structures, Path(folder), stored, options.resume)
    raise SystemExit(failed > 0)


def mutilated(path: Path, count: int) -> int:
    """Try so many inputs of each of three kinds that keep no structure; the number of failures."""
    texts = st.sampled_from(_fuzz.suite_texts()).flatmap(_fuzz.mutilated)
    failed = tried("suites, mutilated", count, texts, lambda d: _fuzz.read_suite_text(path, d))
    failed += tried("suites, anything anywhere", count, _fuzz.documents(), _fuzz.read_document)
    return failed + tried("runs", count, _fuzz.run_files(), lambda d: _fuzz.read_run_file(path, d))


if __name__ == "__main__":
    main()
