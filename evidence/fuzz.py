"""A hundred thousand inputs that the readers of suites and runs do not expect.

None may end in a traceback, or take longer than ten seconds of processor time.
"""

from __future__ import annotations

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

COUNT = 34_000  # of each of the three kinds
LIMIT_SECONDS = 10.0


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


def main() -> None:
    """Try all three kinds and fail where any input failed."""
    signal.signal(signal.SIGPROF, _hang)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else COUNT
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "input.toml"
        texts = st.sampled_from(_fuzz.suite_texts()).flatmap(_fuzz.mutilated)
        failed = tried("suites, mutilated", count, texts, lambda d: _fuzz.read_suite_text(path, d))
        failed += tried("suites, anything anywhere", count, _fuzz.documents(), _fuzz.read_document)
        failed += tried("runs", count, _fuzz.run_files(), lambda d: _fuzz.read_run_file(path, d))
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
