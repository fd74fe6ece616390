"""``evidence/nights.py``: the gate judges its nights, and a night that was cut off is finished."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from _check import made
from _evidence import script as evidence_script
from msgspec.structs import replace

from hwbench.analysis.outcome import Outcome
from hwbench.measure import run as runner
from hwbench.store import Run, read_run

NIGHTS = 12
"""Enough of them that the gate chooses those that are like tonight."""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = evidence_script("nights")
    monkeypatch.setattr(module, "SLOWED", ("low_rank", "csr"))
    return module


def on_another_machine(run: Run) -> Run:
    """The same run where everything, dense as well, takes a fifth more time."""
    run.results = [
        replace(
            each,
            measurements=[
                replace(m, values=[1.2 * v for v in m.values])
                if m.quantity == "time_seconds"
                else m
                for m in each.measurements
            ],
        )
        for each in run.results
    ]
    return run


def told(script: Any, slow: Run, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What is printed of low_rank, which counts as 5 % slower, by what it was judged against."""
    script.found([made(day) for day in range(1, NIGHTS + 2)], {NIGHTS: slow})
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("5% slower")]
    return {line.split(":")[0].split()[-1]: line.partition(": ")[2] for line in lines}


def test_a_delayed_run_is_found_by_the_gate(
    script: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = told(script, made(NIGHTS + 2, slower=1.2), capsys)
    words = "the format is found on 1 of 1 nights, 1 of 1 of its cases; 0 nights were another"
    assert lines["five"].startswith(words)
    assert lines["one"].startswith(words)


def test_what_the_gate_calls_another_machine_finds_nothing_and_is_counted(
    script: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = told(script, on_another_machine(made(NIGHTS + 2, slower=1.2)), capsys)
    assert lines["five"] == (
        "the format is found on 0 of 1 nights, 0 of 1 of its cases; "
        "1 nights were another machine's (exit 4)"
    )
    # One night is too few to tell that it is another machine.
    assert lines["one"].startswith("the format is found on 1 of 1 nights")


def test_a_delayed_run_is_judged_against_the_nights_that_are_like_it(script: Any) -> None:
    stored = [script.sided(made(day)) for day in range(1, 8)]
    stored += [script.sided(on_another_machine(made(day))) for day in range(8, 13)]
    decision = script.judged(stored, script.sided(made(14)), 5)
    assert decision.stranger is None
    assert [each.run for each in decision.baselines] == [
        made(day).header.run for day in range(3, 8)
    ]


def test_exits_are_told_by_their_codes(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mismatches = iter([[], ["dense took longer"], ["dense took longer"]])
    codes = Counter[int]()

    def checked(*_: Any, **__: Any) -> Any:
        outcome = Outcome(run="", suite="", machine="", measured=1, mismatch=next(mismatches))
        codes[outcome.exit] += 1
        return outcome

    monkeypatch.setattr(script.gate, "check", checked)
    script.nightly([made(day) for day in range(1, 9)])
    assert codes == {6: 1, 4: 2}
    assert capsys.readouterr().out == (
        "identical nights against five: 0 of 3 failed (exit 1), 2 were another machine's "
        "(exit 4), 1 were 6\n"
    )


def test_a_night_that_was_cut_off_is_finished_and_the_others_are_read(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(json.dumps(script.SUITE))
    document["plan"] |= {"replicates": 2, "budget_seconds": 0.002}
    document["cases"][0] |= {
        "shape": [64, 64], "tokens": 4, "direction": "forward",
        "format": [{"name": "low_rank", "density": 0.5}],
    }  # fmt: skip
    first = read_run(runner.run(document, device="fake", out=tmp_path, threads=1))
    (tmp_path / "first").write_text(first.path.name)
    slow = script.selftest.delayed(first, {"low_rank": 0.1})
    whole = script._measured(first, "slow-05", slow, 1005, 0.0)
    assert whole.complete
    assert whole.header.purpose == "slowed on purpose"
    lines = whole.path.read_bytes().splitlines(keepends=True)
    whole.path.write_bytes(b"".join(lines[:-2]))
    there = script.stored(tmp_path)
    assert [run.complete for run in there] == [True, False]
    assert capsys.readouterr().out == "slow-05 measured\n"

    finished = script._measured(first, "slow-05", slow, 1005, 0.0)
    assert finished.complete
    assert finished.done == whole.done
    assert finished.header == whole.header
    assert capsys.readouterr().out == "slow-05 finished\n"
    monkeypatch.setattr(script.runner, "resume", lambda *_: pytest.fail("it was complete"))
    assert script._measured(first, "slow-05", slow, 1005, 0.0).path == whole.path

    monkeypatch.setattr(script, "_measured", lambda *_: whole)
    script.measured(tmp_path, 2, 0.0)
    dates = (first.header.created, whole.header.created)
    assert capsys.readouterr().out == (
        f"2 runs were there already, made from {min(dates)} to {max(dates)}; 0 of them were cut "
        "off, and are finished now\n"
    )
