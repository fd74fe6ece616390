"""Write tests/golden/expected anew: what every reader makes of the stored runs.

Look at the diff before it is committed: every line of it is a change that a user sees.
``--runs`` writes the stored runs anew too, from reports/ and by hwbench's own writer.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

_TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(_TESTS.parent), str(_TESTS)]

import _golden  # noqa: E402
import _golden_runs  # noqa: E402


def main() -> None:
    """Write what the command line asks for."""
    if "--runs" in sys.argv[1:]:
        _golden_runs.write(_golden.FOLDER)
    shutil.rmtree(_golden.EXPECTED, ignore_errors=True)
    for name, make in _golden.files().items():
        path = _golden.EXPECTED / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
