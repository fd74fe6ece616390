"""Inputs that the readers do not expect: a hundred thousand mutilated, thousands well formed.

    python evidence/fuzz.py [COUNT [OF EACH STRUCTURE]]

COUNT suites and runs are mutilated; none may end in a traceback, or take longer than ten seconds of
processor time. Then so many files of each of six kinds (runs, suites, files of pytest-benchmark,
caches, models, data) are changed with their structure kept, and put through verbs and readers: none
may end in a traceback or an exit code that is not documented, last longer than 20 seconds, or take
this process beyond 2 GiB.
"""

from __future__ import annotations

import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import _fuzz
import _mutants

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


def kept_structure(kind: str, count: int, folder: Path) -> int:
    """Try so many mutations of a kind and print what came of them; the number of failures."""
    outcomes: Counter[str] = Counter()
    failed, longest = 0, 0.0
    for number in range(count):
        begun = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, STRUCTURE_SECONDS)
        try:
            outcomes[_mutants.outcome(kind, number, folder)] += 1
        except (Exception, _HangError) as error:  # noqa: BLE001 (they are what is counted)
            last = traceback.extract_tb(error.__traceback__)[-1]
            print(f"  failed: {kind} {number}: {type(error).__name__}: {str(error)[:200]} "
                  f"({last.filename}:{last.lineno})")  # fmt: skip
            failed += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        longest = max(longest, time.monotonic() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    told = ", ".join(f"{name} {found}" for name, found in sorted(outcomes.items()))
    print(
        f"{kind:26s} {count:6d} inputs: {told}; {failed} failed; "
        f"the longest took {longest:.1f} s; at most {peak / 2**30:.2f} GiB",
        flush=True,
    )
    return failed + (peak > MOST_BYTES)


def main() -> None:
    """Try all kinds and fail where any input failed."""
    signal.signal(signal.SIGPROF, _hang)
    signal.signal(signal.SIGALRM, _hang)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else COUNT
    structures = int(sys.argv[2]) if len(sys.argv) > 2 else STRUCTURES
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "input.toml"
        texts = st.sampled_from(_fuzz.suite_texts()).flatmap(_fuzz.mutilated)
        failed = tried("suites, mutilated", count, texts, lambda d: _fuzz.read_suite_text(path, d))
        failed += tried("suites, anything anywhere", count, _fuzz.documents(), _fuzz.read_document)
        failed += tried("runs", count, _fuzz.run_files(), lambda d: _fuzz.read_run_file(path, d))
        for kind in _mutants.KINDS:
            failed += kept_structure(kind, structures, Path(tempfile.mkdtemp(dir=folder)))
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
