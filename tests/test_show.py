"""``hwbench show``: a stored run again, as ``run`` showed it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from _check import Call

STORED = Path(__file__).parents[1] / "reports/2026-11-21-xeon-2core/linear-packed.jsonl"


def labels(table: str, title: str) -> list[str]:
    """The first cells of the table below a title."""
    lines = table.split(f"\n{title}\n")[1].split("\n\n", maxsplit=1)[0].splitlines()[2:]
    return [line.split("  ")[0] for line in lines]


def test_the_fastest_stands_first_and_the_answer_last(hwbench: Call) -> None:
    code, out, err = hwbench("show", str(STORED))
    assert code == 0, err
    title = "Forward, 1024×1024, 16 tokens, float32"
    assert labels(out, title)[0] == "low_rank kernel=mkl"
    assert out.count(", fastest") == 1
    assert out.count(", shortest time") == 3  # beside rivals that are undecided
    answer = out.split("What to use, by the largest error that you accept")[1]
    assert "exact: Use packed_dense (mkl)" in answer
    assert out.rstrip().endswith(f"hwbench report {STORED}")
    _, asked, _ = hwbench("show", str(STORED), "--sort", "suite")
    assert labels(asked, title)[0] == "dense"


def test_narrow_tables_lose_the_same_columns_and_say_so(hwbench: Call, monkeypatch: object) -> None:
    from hwbench.report.text import table
    from hwbench.store import read_run

    parts = table(read_run(STORED), 80)
    tables = [part for part in parts if hasattr(part, "columns")]
    timed = [tuple(str(c.header) for c in each.columns) for each in tables]
    assert len({heads for heads in timed if "relative" in heads}) == 1
    hidden = next(str(part) for part in parts if "Too narrow for" in str(part))
    assert "num. error" in hidden
    shown = {head for heads in timed for head in heads}
    assert not shown & set(re.findall(r"num\. error|executed|stored|saved", hidden))
    _, wide, _ = hwbench("show", str(STORED), "--wide")
    assert "Too narrow for" not in wide


def test_rows_as_json_and_the_newest_of_a_folder(hwbench: Call) -> None:
    _, out, _ = hwbench("show", str(STORED), "--json")
    assert len(json.loads(out)) == 78
    code, _, _ = hwbench("show", str(STORED.parent))
    assert code == 0
    code, _, err = hwbench("show", str(STORED), "--sort", "speed")
    assert code == 2
    assert "Unknown order 'speed'" in err


def test_run_prints_its_path_and_nothing_else(hwbench: Call) -> None:
    code, out, err = hwbench("run", "--suite", "smoke", "--device", "fake", "--print-path")
    assert code == 0, err
    (line,) = out.splitlines()
    assert Path(line).exists()
    code, _, err = hwbench("run", "--suite", "smoke", "--json", "--print-path")
    assert code == 2
    assert "name one of them" in err
