"""The machine against itself: what is counted, what a delay is, and what is said of it."""

from __future__ import annotations

import json
import math
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from _synthetic import linear_case, run_of
from hwbench_simulated import Fake
from msgspec.structs import replace

from hwbench import protocol
from hwbench.cli import selftest as verb
from hwbench.errors import UsageError
from hwbench.records import PlannedLine, ResultLine
from hwbench.store import Run, RunWriter, read_run
from hwbench.studies import selftest
from hwbench.studies.selftest import Rate

CASES = [linear_case("dense", None), linear_case("low_rank", 0.5), linear_case("csr", 0.5)]


def written(run: Run, folder: Path, slower: float) -> Path:
    """The run's file; its delayed cases take ``slower`` times as long."""
    planned = run.planned
    writer = RunWriter.create(
        folder, run.header, [PlannedLine(id=case, planned=p) for case, p in planned.items()]
    )
    for result in run.results:
        factor = slower if planned[result.case].added_seconds else 1.0
        measurements = [
            replace(m, values=[factor * value for value in m.values])
            if m.quantity in ("relative_time", "time_seconds")
            else m
            for m in result.measurements
        ]
        writer.append(ResultLine(result=replace(result, measurements=measurements)))
    assert run.footer is not None
    writer.append(run.footer)
    writer.close()
    return writer.path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A machine whose runs are made up; ``jumps`` are nights on which all is 1.5 times as slow."""
    made: dict[str, Any] = {"jumps": set(), "delays": {}, "replicates": 5}
    numbers = count()

    def night(name: str, planned: Any = None) -> Path:
        run = run_of(CASES, replicates=made["replicates"], seed=next(numbers), name=name)
        if planned is not None:
            run.planned = planned
            for case, each in planned.items():
                made["delays"].setdefault(case, each.added_seconds)
        if name in made["jumps"]:
            run.planned = {c: replace(p, added_seconds=1.0) for c, p in run.planned.items()}
            return written(run, tmp_path, 1.5)
        return written(run, tmp_path, 1.0 + made.get("slower", 0.0))

    monkeypatch.setattr(selftest.runner, "run", lambda suite, **how: night("first"))
    monkeypatch.setattr(
        selftest.rerun, "anew", lambda found, planned, name, **how: night(name, planned)
    )
    return made


def test_a_rate_states_its_bound() -> None:
    assert Rate(0, 20).most == pytest.approx(1 - 0.05 ** (1 / 20))
    assert Rate(20, 20).least == pytest.approx(0.05 ** (1 / 20))
    assert Rate(0, 20).least == 0.0
    assert Rate(1, 20).most > Rate(0, 20).most


def test_nights_without_a_change_are_checked_against_those_before(machine: dict[str, Any]) -> None:
    result = selftest.run("any", 12)
    assert result.nights == 12
    assert result.false_nights == Rate(0, 11)  # the first has nothing before it
    assert result.false_cases == Rate(0, 11 * len(CASES))
    assert result.found is result.seen is result.slower is None
    assert len(result.runs) == 12
    sights = {sight.metric: sight for sight in result.sights}
    assert sights["relative"].cases == 2  # dense has absolute time only
    assert sights["time"].cases == 3
    assert 0.03 < sights["relative"].usual < sights["time"].usual  # as noisy as they were made
    assert sights["time"].usual_seconds is not None
    assert sights["relative"].usual_seconds is None
    assert sights["time"].worst >= sights["time"].usual


def test_a_false_alarm_is_counted_and_named(machine: dict[str, Any]) -> None:
    machine["jumps"] = {"first-night-12"}
    result = selftest.run("any", 12)
    assert result.false_nights == Rate(1, 11)
    assert 1 <= result.false_cases.events == len(result.alarms) <= len(CASES)


def test_a_known_delay_is_a_share_of_each_formats_time(machine: dict[str, Any]) -> None:
    machine["slower"] = 0.2
    result = selftest.run("any", 8, slower=0.2)
    assert result.slower == 0.2
    assert result.seen == pytest.approx(0.2, abs=0.03)
    assert result.found is not None
    assert result.found.trials == 7 * 2  # dense is the yardstick, and is not delayed
    assert result.found.events >= 6
    assert result.false_nights == Rate(0, 7)  # the delayed nights are nobody's baseline
    first = read_run(result.runs[0])
    times = {r.case: r.values("time_seconds")[0] for r in first.results if r.replicate == 2}
    for case, delay in machine["delays"].items():
        dense = "/dense/" in case
        assert delay == (0.0 if dense else pytest.approx(0.2 * times[case], rel=0.3))


def test_one_night_is_too_few(machine: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="2 nights or more"):
        selftest.run("any", 1)


def test_a_delay_lasts_as_long_as_it_says() -> None:
    from hwbench.worker import Worker

    worker = Worker(Fake())
    reply = worker.plan(protocol.PlanRequest(cases=[replace(CASES[1], device="fake")]))
    (planned,) = reply.planned
    device = worker.device
    taken = []
    for added in (0.0, 1e-3):
        worker.live.clear()
        subject = worker._prepared(replace(planned, added_seconds=added), 0)
        start = device.mark()
        device.run(subject.step, subject.states(10))
        taken.append(device.seconds(start, device.mark()))
    assert taken[1] - taken[0] == pytest.approx(10e-3)


def test_a_real_device_is_kept_busy_that_long() -> None:
    from hwbench.devices.cpu import Cpu
    from hwbench.worker import Worker

    worker = Worker(Cpu())
    (planned,) = worker.plan(protocol.PlanRequest(cases=[CASES[1]])).planned
    subject = worker._prepared(replace(planned, added_seconds=0.05), 0)
    start = worker.device.mark()
    worker.device.run(subject.step, subject.states(2))
    assert worker.device.seconds(start, worker.device.mark()) > 0.1
    assert subject.numerical_error is not None
    assert subject.numerical_error() < subject.tolerance  # it still computes what it did


def test_stored_runs_of_identical_code_are_checked_like_nights(
    machine: dict[str, Any], tmp_path: Path
) -> None:
    machine["slower"] = 0.2
    result = selftest.run("any", 12, slower=0.2)
    for path, run in [(path, read_run(path)) for path in result.runs]:
        if "-slow-" in path.name:  # the made-up machine does not say so in their headers
            path.unlink()
        else:
            assert run.complete
    (tmp_path / "a copy.jsonl").write_bytes(result.runs[0].read_bytes())
    again = selftest.stored(tmp_path)
    assert again.nights == 12
    assert again.false_nights == result.false_nights
    assert {s.metric for s in again.sights} == {"relative", "time"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="needs 2 finished runs"):
        selftest.stored(tmp_path / "empty")


# The command line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ac"], "Unknown selftest 'ac'; did you mean"),
        (["aa", "--nights", "1"], "--nights"),
        (["ab", "--slower", "much"], "--slower is a share"),
        (["aa", "--suite", "smok"], "did you mean 'smoke'"),
        (["aa", "--runs", "nowhere"], "nowhere is not a folder"),
        (["ab", "--runs", "nowhere"], "--runs goes with aa"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(hwbench, arguments, words) -> None:
    code, out, err = hwbench("selftest", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.strip().splitlines()) == 1


def test_the_lines_say_rates_bounds_and_sizes(hwbench, machine: dict[str, Any]) -> None:
    machine["slower"] = 0.2
    code, out, err = hwbench("selftest", "ab", "--nights", "8", "--slower", "20%")
    assert (code, err) == (0, "")
    assert "False nights: 0 of 7, a rate below 34.8 % with 95 % confidence." in out
    assert "Smallest slow-down found in 9 nights of 10, relative to dense: " in out
    assert "absolute time: " in out
    assert "A delay of 20.0 % was seen as " in out


@pytest.mark.parametrize("nights", ["2", "3"])
def test_what_too_few_nights_do_not_tell_is_null(
    hwbench, machine: dict[str, Any], nights: str
) -> None:
    machine["replicates"] = 1
    code, out, err = hwbench("selftest", "aa", "--nights", nights, "--json")
    assert (code, err) == (0, "")
    sizes = json.loads(out, parse_constant=pytest.fail)["detectable"].values()
    assert {size["worst"] for size in sizes} == {None}


def test_a_delay_on_the_simulated_machine_is_seen_as_it_is(hwbench, monkeypatch) -> None:
    Path("tiny.toml").write_text(
        'schema = 1\nname = "tiny"\n[plan]\nbudget_seconds = 0.005\n'
        '[[cases]]\nworkload = "linear"\ndirection = "forward"\nshape = [64, 64]\n'
        'tokens = 512\nformat = [{ name = "dense" }, { name = "low_rank", density = 0.5 }]\n'
    )
    monkeypatch.setenv("HWBENCH_FAKE", json.dumps({"seed": 1, "noise": 0.002}))
    code, out, _ = hwbench(
        "selftest", "ab", "-s", "tiny.toml", "-d", "fake", "--threads", "1", "-n", "2", "-r", "2",
        "--slower", "10%", "--json",
    )  # fmt: skip
    assert code == 0
    document = json.loads(out)
    assert document["seen"] == pytest.approx(0.10, abs=0.002)
    assert document["found"]["trials"] == 1
    assert document["false_nights"]["events"] == 0
    assert (document["nights"], document["replicates"]) == (2, 2)
    (slow,) = Path("runs/selftest").glob("*-slow-2.jsonl")
    delays = {p.case.format: p.added_seconds for p in read_run(slow).planned.values()}
    assert delays["dense"] == 0.0 < delays["low_rank"]
    first, _, last = document["runs"]
    code, out, _ = hwbench("check", last, "-b", "runs/selftest", "--json")
    assert json.loads(out)["baseline"] == [Path(first).stem]  # what was delayed is no baseline


@pytest.mark.parametrize(
    ("usual", "threshold", "said"),
    [
        (0.02, 0.03, "--threshold 3.0 % suits this machine: the gate usually finds a"),
        (0.05, 0.03, "the gate usually finds a slow-down of 5.0 %."),
        (0.10, 0.03, "So a --threshold below 6.0 % promises nothing here."),
        (0.10, 0.10, "the gate usually finds a slow-down of 16.7 %."),
        (math.inf, 0.03, None),
    ],
)  # fmt: skip
def test_what_follows_for_the_threshold_is_told(
    usual: float, threshold: float, said: str | None
) -> None:
    sights = [
        selftest.Sight(name, 3, size, None, size, "csr")
        for name, size in (("time", 0.9), ("relative", usual))
    ]
    told = verb._advice(sights, threshold)
    assert (said in told) if said else told is None
    assert verb._advice(sights[:1], threshold) is None  # absolute times are not the gate's
