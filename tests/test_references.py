"""Dense's reference on a machine, further replicates until it was quiet, and earlier runs."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from _inline import ten_seconds_a_replicate

from hwbench.analysis.frames import between, summary_rows
from hwbench.analysis.quiet import counted, slowed
from hwbench.errors import SuiteError
from hwbench.measure import fleet, references, schedule
from hwbench.measure import run as runner
from hwbench.measure.transports.local import LocalSeat
from hwbench.records import Plan
from hwbench.report import text
from hwbench.report.html import render
from hwbench.store import Run, read_run


def document(**plan: Any) -> dict[str, Any]:
    """Two formats beside dense, in two groups."""
    return {
        "schema": 1,
        "name": "quiet",
        "plan": {"replicates": 4, "budget_seconds": 0.005, **plan},
        "cases": [
            {
                "workload": "linear",
                "direction": "forward",
                "shape": [16, 16],
                "tokens": [4, 8],
                "format": [{"name": "dense"}, {"name": "low_rank", "density": [0.5, 0.25]}],
            },
            {
                "workload": "projection",
                "shape": [8, 8],
                "format": [{"name": "csr", "density": 0.5}],
            },
        ],
    }


def simulate(folder: Path, monkeypatch: pytest.MonkeyPatch, effects: Any, **plan: Any) -> Run:
    """A run on a simulated machine with these effects."""
    monkeypatch.setenv("HWBENCH_FAKE", json.dumps(effects))
    return read_run(runner.run(document(**plan), device="fake", out=folder, threads=1))


def replicates(run: Run) -> dict[str, list[int]]:
    collected: dict[str, list[int]] = defaultdict(list)
    for result in run.results:
        collected[result.case].append(result.replicate)
    return {case: sorted(each) for case, each in collected.items()}


RESTLESS = {"seed": 4, "replicate_noise": 0.08}
"""Every process is slower or faster by some per cent, dense and formats alike."""


def test_a_quiet_machine_makes_the_replicates_of_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = simulate(tmp_path, monkeypatch, {"seed": 1, "noise": 0.005})
    timed = {case for case, planned in run.planned.items() if planned.seeds is None}
    assert {case: each for case, each in replicates(run).items() if case in timed} == {
        case: [0, 1, 2, 3] for case in timed
    }
    assert run.footer is not None
    assert "further_replicates" not in run.footer.state


def test_more_replicates_are_made_until_enough_were_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = simulate(tmp_path, monkeypatch, RESTLESS)
    count = counted(run.header, run.planned, run.results)
    made = replicates(run)
    for case, planned in run.planned.items():
        if planned.seeds is not None:
            assert made[case] == [0], "what is scored has its seeds"
            continue
        assert 4 < len(made[case]) <= 12
        assert len(count[case].quiet) >= 4 or len(made[case]) == 12
        assert made[case] == list(range(len(made[case]))), "one after another, none twice"
    assert run.footer is not None
    assert run.footer.state["further_replicates"] == max(map(len, made.values())) - 4


@pytest.mark.parametrize(("most", "made"), [(4, 4), (6, 6)])
def test_there_are_at_most_as_many_as_the_plan_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, made: int
) -> None:
    effects = {"seed": 4, "replicate_noise": 0.5}
    run = simulate(tmp_path, monkeypatch, effects, replicates_most=most)
    assert max(map(len, replicates(run).values())) == made
    assert run.complete


def test_a_single_device_of_several_kinds_measures_further_replicates_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards are for devices that share a replicate: one alone has nobody to leave one to."""
    monkeypatch.setenv("HWBENCH_FAKE", json.dumps({"seed": 4, "replicate_noise": 0.5}))
    question = runner.Question(document=document(replicates_most=6), out=tmp_path)
    seats = fleet.local_seats(["fake"], 1)
    (path,) = fleet.Fleet(lambda: seats, shards=2).run(question)
    run = read_run(path)
    made = replicates(run)
    assert run.footer is not None
    assert "stopped" not in run.footer.state
    assert {len(made[case]) for case, each in run.planned.items() if each.seeds is None} == {6}


@pytest.mark.parametrize(("least", "made"), [(0.0, 8), (45.0, 8), (65.0, 10), (3600.0, 12)])
def test_they_take_no_longer_than_those_of_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: float, made: int
) -> None:
    """Each replicate takes ten seconds of a clock that nothing else moves."""
    ten_seconds_a_replicate(monkeypatch)
    monkeypatch.setattr(schedule, "LEAST_FURTHER_SECONDS", least)
    run = simulate(tmp_path, monkeypatch, {"seed": 4, "replicate_noise": 0.5})
    assert max(map(len, replicates(run).values())) == made
    assert run.complete


def test_one_replicate_stays_alone_and_three_times_is_the_default() -> None:
    assert Plan(replicates=1).most == Plan(replicates=1, replicates_most=9).most == 1
    assert Plan(replicates=5).most == 15
    assert Plan(replicates=5, replicates_most=7).most == 7
    assert Plan(replicates=10, replicates_most=7).most == 10


@pytest.mark.parametrize("most", [1, 1001])
def test_a_limit_below_the_replicates_is_a_mistake(tmp_path: Path, most: int) -> None:
    with pytest.raises(SuiteError, match="replicates_most must be between replicates"):
        runner.run(document(replicates_most=most), device="fake", out=tmp_path, threads=1)


def test_a_run_that_was_cut_off_among_further_replicates_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = simulate(tmp_path, monkeypatch, RESTLESS)
    lines = run.path.read_bytes().splitlines(keepends=True)
    results = [number for number, line in enumerate(lines) if b'"line":"result"' in line]
    last = [number for number, line in enumerate(lines) if b'"replicate":4' in line]
    assert last
    cut = run.path.with_name(f"{run.header.run}.jsonl")
    cut.write_bytes(b"".join(lines[: last[1]]))
    assert len(results) > last[1] - results[0]
    run_ = read_run(runner.resume(cut))
    assert run_.complete
    for made in replicates(run_).values():
        assert made == list(range(len(made)))
    count = counted(run_.header, run_.planned, run_.results)
    for case, planned in run_.planned.items():
        if planned.seeds is None:
            assert len(count[case].quiet) >= 4 or len(replicates(run_)[case]) == 12


def test_a_finished_run_is_remembered_and_the_next_one_is_held_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = simulate(tmp_path, monkeypatch, {"seed": 1})
    assert first.header.references == {}
    groups = {each.case.among for each in first.planned.values() if each.seeds is None}
    second = simulate(tmp_path, monkeypatch, {"seed": 1})
    assert second.header.references.keys() == groups
    assert {each.runs for each in second.header.references.values()} == {1}
    slow = simulate(tmp_path, monkeypatch, {"seed": 1, "slow": {"": 1.2}})
    result = slowed(slow.header, slow.planned, slow.results)
    assert result is not None
    assert result.groups == result.of == 2
    assert result.factor == pytest.approx(1.2, rel=0.01)
    assert max(map(len, replicates(slow).values())) == 12, "it waited for a quiet machine"
    for row in summary_rows(slow):
        if row["workload"] == "linear":
            assert "never_quiet" in row["flags"]
            assert math.isnan(row["relative_low"])
            assert row["time_seconds"] > 0
    first_line = str(text.table(slow)[0])
    assert first_line.startswith("The machine was slower during this whole run: dense took 1.2")
    assert str(text.table(second)[0]).startswith("quiet on simulated machine")
    words = render([slow])
    assert "The machine was slower during this whole run" in words
    assert "the fastest is" not in words
    assert "is the fastest" not in words
    after = simulate(tmp_path, monkeypatch, {"seed": 1})
    assert slowed(after.header, after.planned, after.results) is None
    for group, reference in after.header.references.items():
        assert reference.seconds == second.header.references[group].seconds


def test_a_dense_of_another_revision_has_a_reference_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hwbench.formats.dense import Dense

    simulate(tmp_path, monkeypatch, {"seed": 1})
    monkeypatch.setattr(Dense, "revision", Dense.revision + 1)
    assert simulate(tmp_path, monkeypatch, {"seed": 1}).header.references == {}


@pytest.mark.parametrize("damage", ["", "[]", '{"a": 3}', '{"a": [{"seconds": "x"}]}'])
def test_a_damaged_file_of_references_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    run = simulate(tmp_path, monkeypatch, {"seed": 1})
    file = references.path(run.header.environment)
    assert file.exists()
    file.write_text(damage, encoding="utf-8")
    assert references.of_machine(run.header.environment, run.planned) == {}
    references.add(run)
    assert references.of_machine(run.header.environment, run.planned) != {}


def test_the_spread_between_earlier_runs_stands_in_the_footer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three runs that differ by some per cent, each steady in itself; then one more."""
    for number, factor in enumerate((1.0, 1.02, 0.98)):
        effects = {"seed": number, "noise": 0.001, "slow": {"low_rank": factor}}
        run = simulate(tmp_path, monkeypatch, effects)
        assert run.footer is not None
        assert "between_runs" not in run.footer.state, "fewer than three runs came before"
    last = simulate(tmp_path, monkeypatch, {"seed": 9, "noise": 0.001})
    moved = between(last, "relative_time")
    by_format = {case: spread for case, (spread, _) in moved.items()}
    assert by_format.keys() == {case for case in last.planned if "low_rank" in case}
    for spread in by_format.values():
        assert 0.01 < math.sqrt(spread) < 0.04
    for row in summary_rows(last):
        if row["format"] == "low_rank":
            assert row["relative_high"] / row["relative_low"] > 1.02
    alone = tmp_path / "alone"
    assert between(simulate(alone, monkeypatch, {"seed": 9, "noise": 0.001}), "time_seconds") == {}


def test_a_stored_spread_that_is_no_number_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from msgspec.structs import replace

    run = simulate(tmp_path, monkeypatch, {"seed": 1})
    assert run.footer is not None
    for damaged in (3, {"relative_time": []}, {"relative_time": {"a": ["x", 1]}}):
        run.footer = replace(run.footer, state={"between_runs": damaged})
        assert between(run, "relative_time") == {}


def copied(path: Path, **header: Any) -> Path:
    """The run again in a file beside it, with other words in its header."""
    first, *rest = path.read_text(encoding="utf-8").splitlines(keepends=True)
    name = header.get("run", f"{path.stem}.shared")
    other = path.with_name(f"{name}.jsonl")
    changed = {**json.loads(first), **header}
    other.write_text("".join([json.dumps(changed, separators=(",", ":")), "\n", *rest]), "utf-8")
    return other


@pytest.mark.parametrize(
    "aside", ["copy", "pair", "confirms", "slower", "damaged line", "newer word", "text"]
)
def test_what_is_no_earlier_run_of_its_own_neither_counts_nor_stops_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aside: str
) -> None:
    """Two runs that tell how far cases move, and beside them a file that must not make three."""
    for number, factor in enumerate((1.0, 1.2)):
        effects = {"seed": number, "noise": 0.001, "slow": {"low_rank": factor}}
        run = simulate(tmp_path, monkeypatch, effects)
    if aside == "copy":
        copied(run.path)
    elif aside in ("pair", "confirms", "slower"):
        copied(
            run.path, run="20260101-000000-quiet-fake-0001", arguments={aside: "x", "threads": 1}
        )
    elif aside == "text":
        run.path.with_name("notes.jsonl").write_text("remember the milk\n")
    else:
        other = copied(run.path, run="20260101-000000-quiet-fake-0001")
        text_ = other.read_text(encoding="utf-8")
        word = ('"status":"ok"', '"status":"glorious"') if aside == "newer word" else ("1", "l")
        *lines, last = text_.splitlines(keepends=True)
        other.write_text("".join([*lines[:-1], lines[-1].replace(*word), last]), encoding="utf-8")
    last = simulate(tmp_path, monkeypatch, {"seed": 9, "noise": 0.001})
    assert last.complete
    assert between(last, "relative_time") == {}
    another = simulate(tmp_path, monkeypatch, {"seed": 10, "noise": 0.001})
    assert between(another, "relative_time").keys() == {c for c in last.planned if "low_rank" in c}


@pytest.mark.parametrize("budget", [17.0, 37.0, 57.0, None])
def test_a_time_budget_is_shared_with_the_cpu_that_waits_for_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: float | None
) -> None:
    """Two devices of one machine, of which the second waits as a CPU does."""
    monkeypatch.setenv("HWBENCH_FAKE", json.dumps({"seed": 1}))
    ten_seconds_a_replicate(monkeypatch)
    for module in (fleet, runner):
        monkeypatch.setattr(module, "time", schedule.time)
    monkeypatch.setattr(fleet.Squad, "takes", lambda *_: False)
    seats = [LocalSeat("fake", 1), LocalSeat("fake", 1)]
    monkeypatch.setattr(fleet, "_is_cpu", lambda squad: squad.seats[0] is seats[1])
    question = runner.Question(document=document(), out=tmp_path)
    made = fleet.Fleet(lambda: seats, time_budget_seconds=budget).run(question)
    counts = []
    for run in map(read_run, made):
        assert run.complete
        counts.append({len(each) for case, each in replicates(run).items() if "linear" in case})
    (first,), (second,) = counts
    kept = references.of_machine(run.header.environment, run.planned)
    assert bool(kept) == (max(first, second) > 1)
    assert abs(first - second) <= 1
    assert (first == 4) == (budget is None)
