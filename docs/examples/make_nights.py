"""Write docs/examples/nights: eight nights of one suite, on hwbench's simulated device.

No machine was measured: the device ``fake`` makes the times up, and from the sixth night on every
``low_rank`` takes 10 % longer, as if a commit had made it slow. The dates are put a day apart, what
names a host is taken out, and seeds are counted from 0, as those of real nights are.
Run it as ``.venv/bin/python docs/examples/make_nights.py``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NIGHTS, SLOW_FROM, SLOWER = 8, 6, 1.10
COMMITS = "1c0ffee", "5badc0de"  # before and after the slow-down; padded with zeros
_FIRST = datetime(2026, 3, 1, 2, 17, tzinfo=UTC)
_PRIVATE = ("hostname", "load_1min", "steal_seconds", "throttled_periods")


def main() -> None:
    """Measure every night in a folder without a repository, and keep what a reader needs of it."""
    folder = HERE / "nights"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for number in range(1, NIGHTS + 1):
        with tempfile.TemporaryDirectory() as made:
            lines = measured(number, Path(made)).read_text(encoding="utf-8").splitlines()
        text = "\n".join(
            json.dumps(kept(json.loads(line), number), separators=(",", ":")) for line in lines
        )
        (folder / f"night-{number}.jsonl").write_text(text + "\n", encoding="utf-8")


def measured(number: int, folder: Path) -> Path:
    """The run file of a night."""
    slow = number >= SLOW_FROM
    effects: dict[str, Any] = {"seed": number, "noise": 0.01, "replicate_noise": 0.01}
    if slow:
        effects["slow"] = {"low_rank": SLOWER}
    environment = {
        **os.environ,
        "HWBENCH_FAKE": json.dumps(effects),
        "GITHUB_SHA": COMMITS[slow].ljust(40, "0"),
        "GITHUB_SERVER_URL": "https://git.example.org",
        "GITHUB_REPOSITORY": "team/layers",
        "PYTHONPATH": str(HERE.parents[1]),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    words = ["run", "--suite", str(HERE / "nightly.toml"), "--device", "fake", "--out", str(folder)]
    subprocess.run(
        [sys.executable, "-m", "hwbench", *words, "--seed", str(number)],
        cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    (path,) = folder.glob("*.jsonl")
    return path


def kept(value: Any, number: int) -> Any:
    """A line of the run as it is stored: dates of its night, six digits, no raw samples."""
    if isinstance(value, dict):
        found = {
            key: kept(each, number)
            for key, each in value.items()
            if key not in (*_PRIVATE, "samples", "disturbed", "rounds")
        }
        for key, minutes in (("created", 0), ("finished", 4)):
            if key in found:
                moment = _FIRST + timedelta(days=number - 1, minutes=minutes)
                found[key] = moment.isoformat().replace("+00:00", "Z")
        if "schema" in found and "run" in found:
            found["run"] = f"night-{number}"
        if "kernel" in found and "libc" in found:
            found["kernel"] = "6.1.0"
        if isinstance(found.get("seed"), int) and "noise" not in found:
            found["seed"] -= number
        return found
    if isinstance(value, list):
        return [kept(each, number) for each in value]
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return value


if __name__ == "__main__":
    main()
