"""Whole runs, with workers in this process: complete, resumed, never stopped by one case."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest
from _faulty import install, uninstall
from _inline import Workers, died, hangs, no_memory

from hwbench import protocol
from hwbench.analysis.frames import load_run, summary
from hwbench.errors import DeviceError, RunFileError, SuiteError, UsageError
from hwbench.measure import run as runner
from hwbench.records import Status
from hwbench.store import read_run


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "site"
    folder.mkdir()
    yield install(folder, monkeypatch)
    uninstall()


def document(formats: list[str], **changes):
    return {
        "schema": 1,
        "name": "faults",
        "plan": {"replicates": 2, "budget_seconds": 0.005, "timeout_seconds": 20.0, **changes},
        "cases": [
            {
                "workload": "linear",
                "direction": "forward",
                "shape": [16, 16],
                "tokens": [4],
                "format": [{"name": name} for name in formats],
            }
        ],
    }


def test_a_run_is_complete_and_every_result_stands_once(tmp_path: Path):
    request = document(["dense"])
    request["cases"][0]["format"].append({"name": "low_rank", "density": [0.5, 0.25]})
    request["cases"].append(
        {"workload": "projection", "shape": [8, 8], "seeds": 3,
         "format": [{"name": "low_rank", "rank": 2}]}
    )  # fmt: skip
    recorded = []
    path = runner.run(request, device="fake", out=tmp_path, threads=1, listener=recorded.append)
    run = read_run(path)
    assert run.complete
    pairs = Counter((r.case, r.replicate) for r in run.results)
    assert set(pairs.values()) == {1}
    assert len(pairs) == 3 * 2 + 3  # two replicates of what is timed, three seeds of what is scored
    assert {r.status for r in run.results} == {Status.OK}
    assert recorded[-1].done == recorded[-1].total == len(pairs)
    held_to_float64 = Counter(r.case for r in run.results if r.values("numerical_error"))
    assert sorted(held_to_float64.values()) == [1, 1, 1]  # in the first of the replicates alone
    frame = load_run(path)
    assert set(
        "case format kernel knobs workload out_features in_features tokens dtype direction regime "
        "mode device density parameters stored_bytes flops dense_flops compulsory_bytes status "
        "reason flags replicate seed contract time_seconds graph_seconds relative_time "
        "numerical_error score score_name saved_bytes peak_bytes energy_joules".split()
    ) <= set(frame.columns)
    timed = frame[frame.workload == "linear"]
    assert (timed.time_seconds > 0).all()
    assert timed[timed.format == "dense"].relative_time.isna().all()
    assert timed[timed.format != "dense"].relative_time.notna().all()
    by_case = summary(path)
    assert len(by_case) == 4
    assert {"time_low", "time_high", "relative_low", "relative_high"} <= set(by_case.columns)
    assert by_case[by_case.workload == "projection"].score.between(0, 1).all()


def test_dense_is_added_as_the_yardstick_where_it_was_not_asked_for(tmp_path: Path):
    request = document([])
    request["cases"][0]["format"] = [{"name": "low_rank", "rank": 2}]
    run = read_run(runner.run(request, device="fake", out=tmp_path, threads=1, replicates=1))
    assert {planned.case.format for planned in run.planned.values()} == {"dense", "low_rank"}


def test_the_same_seed_makes_the_same_data_and_another_does_not(tmp_path: Path):
    request = document(["dense"])
    request["cases"] = [
        {"workload": "projection", "shape": [8, 8], "format": [{"name": "low_rank", "rank": 2}]}
    ]
    scores = [
        read_run(runner.run(request, device="fake", out=tmp_path, threads=1, seed=seed))
        .results[0]
        .values("score")
        for seed in (1, 1, 2)
    ]
    assert scores[0] == scores[1] != scores[2]


def test_one_bad_case_says_so_and_the_run_goes_on(tmp_path: Path, faulty: str):
    """What raises or returns nonsense; what takes its process with it is in test_processes.py."""
    names = ["dense", "tame", "wrong", "notanumber", "wrongshape", "memory", "raises", "chatty"]
    run = read_run(runner.run(document(names), device="fake", out=tmp_path, threads=1))
    assert run.complete
    assert set(Counter((r.case, r.replicate) for r in run.results).values()) == {1}
    assert len(run.results) == 2 * len(names)
    ended = {
        run.planned[r.case].case.format: (r.status, r.reason)
        for r in run.results if r.replicate == 0
    }  # fmt: skip
    statuses = {name: status for name, (status, _) in ended.items()}
    assert statuses == {
        "dense": Status.OK,
        "tame": Status.OK,
        "chatty": Status.OK,
        "raises": Status.CRASHED,
        "wrong": Status.WRONG,
        "notanumber": Status.WRONG,
        "wrongshape": Status.WRONG,
        "memory": Status.OUT_OF_MEMORY,
    }
    assert "not in the mood" in ended["raises"][1]
    assert "relative error" in ended["wrong"][1]
    for result in run.results:
        if result.status is not Status.OK:
            assert not result.values("time_seconds")  # a wrong result has no latency


SOLO, CHUNK = protocol.SoloRequest, protocol.ChunkRequest
FAULTS = {
    "dies alone": (died("signal 11, SIGSEGV"), SOLO, Status.CRASHED, "SIGSEGV"),
    "dies in the rounds": (died("exit code 3"), CHUNK, Status.CRASHED, "exit code 3"),
    "hangs": (hangs, SOLO, Status.TIMED_OUT, "within 20 s"),
    "hangs in the rounds": (hangs, CHUNK, Status.TIMED_OUT, "within 20 s"),
    "has no room": (no_memory, SOLO, Status.OUT_OF_MEMORY, "allocate memory"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_case_that_takes_its_worker_with_it_takes_no_other(
    tmp_path: Path, workers: Workers, fault: str
):
    make, request, status, words = FAULTS[fault]
    asked = document(["dense"])
    asked["cases"][0]["format"] += [{"name": "low_rank", "rank": [1, 2]}, {"name": "csr"}]
    asked["cases"][0]["format"][-1]["density"] = 0.5
    workers.act_out(make, request=request, case="low_rank[rank=2]", times=99)
    run = read_run(runner.run(asked, device="fake", out=tmp_path, threads=1))
    assert run.complete
    assert set(Counter((r.case, r.replicate) for r in run.results).values()) == {1}
    for result in run.results:
        if "low_rank[rank=2]" in result.case:
            assert (result.status, words in result.reason) == (status, True)
            assert not result.values("time_seconds")
        else:
            assert result.status is Status.OK
    # a planner, a worker a replicate, and a fresh one after each death: none in the second
    deaths = {SOLO: 1, CHUNK: 2}[request] if status is not Status.OUT_OF_MEMORY else 0
    assert len(workers.started) == 3 + deaths


@pytest.mark.parametrize("budget", [None, 30.0])
def test_dense_is_timed_where_all_beside_it_die_in_the_rounds(
    tmp_path: Path, workers: Workers, budget: float | None
):
    request = document(["dense"])
    request["cases"][0]["format"] += [{"name": "low_rank", "rank": [1, 2]}]
    workers.act_out(died("exit code 3"), request=CHUNK, case="low_rank", times=99)
    run = read_run(
        runner.run(request, device="fake", out=tmp_path, threads=1, time_budget_seconds=budget)
    )
    assert run.complete
    ended = {(run.planned[r.case].case.format, r.status) for r in run.results}
    assert ended == {("dense", Status.OK), ("low_rank", Status.CRASHED)}
    assert {r.replicate for r in run.results if "dense" in r.case} == set(
        range(run.header.plan.replicates)
    )


def test_another_package_adds_a_format_to_list_run_and_report(tmp_path: Path, faulty: str, hwbench):
    from hwbench.report.html import render

    assert "tame" in hwbench("list", "formats")[1]
    path = runner.run(
        document(["dense", "tame"]), device="fake", out=tmp_path, threads=1, replicates=1
    )
    assert "tame" in set(load_run(path)["format"])
    assert "tame" in render([read_run(path)])


def test_a_run_cut_off_at_any_line_is_resumed_without_measuring_twice(tmp_path: Path):
    request = document(["dense"])
    request["cases"][0] |= {"tokens": [1, 2], "direction": ["forward", "step"]}
    request["cases"][0]["format"].append({"name": "low_rank", "rank": [1, 2]})
    path = runner.run(request, device="fake", out=tmp_path, threads=1)
    lines = path.read_bytes().splitlines(keepends=True)
    plan, every = 1 + 12, 2 * 12  # a header and twelve cases; as many results a replicate
    assert len(lines) == plan + every + 1
    for kept in range(every + 1):
        torn = lines[plan + kept][:-7] if kept % 3 == 0 else b""  # killed while it wrote
        path.write_bytes(b"".join(lines[: plan + kept]) + torn)
        before = read_run(path)
        assert not before.complete
        assert len(before.results) == kept
        assert len(summary(path)) == 12  # a run that was cut off can be read
        finished = read_run(runner.resume(path))
        assert finished.complete, kept
        pairs = Counter((r.case, r.replicate) for r in finished.results)
        assert set(pairs.values()) == {1}, kept
        assert len(pairs) == every, kept
        assert finished.results[:kept] == before.results, kept  # none measured again


def test_a_run_that_is_interrupted_keeps_what_it_has(tmp_path: Path, workers: Workers):
    request = document(["dense"])
    request["cases"][0]["tokens"] = [1, 2, 3]
    workers.act_out(KeyboardInterrupt, request=CHUNK, after=2)
    with pytest.raises(KeyboardInterrupt):
        runner.run(request, device="fake", out=tmp_path, threads=1)
    (path,) = tmp_path.glob("*.jsonl")
    before = read_run(path)
    assert (before.complete, len(before.results)) == (False, 2)
    finished = read_run(runner.resume(path))
    assert finished.complete
    assert finished.results[:2] == before.results
    assert runner.resume(path) == path  # a complete run has nothing left to do


def test_a_run_of_another_machine_is_not_resumed(tmp_path: Path):
    path = runner.run(document(["dense"]), device="fake", out=tmp_path, threads=1, replicates=1)
    lines = path.read_text().splitlines()
    header = json.loads(lines[0])
    header["environment"]["fingerprint"]["torch"] = "1.0"
    path.write_text("\n".join([json.dumps(header), *lines[1:-1]]) + "\n")
    with pytest.raises(RunFileError, match="another machine or version .*torch"):
        runner.resume(path)


def test_mistakes_of_the_planner_are_usage_errors(tmp_path: Path):
    request = document(["dense"])
    request["cases"][0]["format"] = [
        {"name": "low_rank", "rnak": 3},
        {"name": "low_rank", "rank": 99},
    ]
    with pytest.raises(SuiteError) as caught:
        runner.run(request, device="fake", out=tmp_path, threads=1)
    assert "did you mean 'rank'?" in str(caught.value)
    assert "between 1 and 16" in str(caught.value)
    assert not list(tmp_path.glob("*.jsonl"))  # nothing is written for a mistake
    request = document(["dense"]) | {"name": "x"}
    request["cases"][0]["colour"] = "red"
    with pytest.raises(SuiteError, match="Unknown option of workload linear 'colour'"):
        runner.run(request, device="fake", out=tmp_path, threads=1)


def test_a_density_out_of_reach_forbids_no_other_case(tmp_path: Path):
    request = document(["dense"], replicates=2)
    request["cases"][0]["shape"] = [[16, 16], [64, 64]]
    request["cases"][0]["format"] = [
        {"name": "dense", "density": 0.5},
        {"name": "low_rank", "density": [0.5, 0.05]},
    ]
    path = runner.run(request, device="fake", out=tmp_path, threads=1)
    run = read_run(path)
    case = "linear/forward/{}/16x16/t4/float32/hot/eager/fake".format
    short, dense = case("low_rank[density=0.05]"), case("dense[density=0.5]")
    always = "dense cannot reach density 0.5; it always keeps every weight (density 1)."
    refused = {r.case: r.reason for r in run.results if r.status is Status.UNSUPPORTED}
    assert refused == {
        short: "low_rank cannot reach density 0.05; rank 1 has density 0.125.",
        dense: always,
        dense.replace("16x16", "64x64"): always,
    }
    assert {r.status for r in run.results if r.case not in refused} == {Status.OK}
    assert len(run.planned) == 8  # dense, without a density, is still the yardstick of both shapes
    frame = summary(path).set_index("case")
    assert frame[frame.format == "low_rank"].relative_time.notna().sum() == 3
    assert (frame.asked_density[short], frame.kernel[short]) == (0.05, "")
    assert frame.loc[short, ["density", "stored_bytes", "time_seconds"]].isna().all()
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[: 1 + 8 + 5]) + "\n")
    again = read_run(runner.resume(path))
    assert again.complete
    assert Counter((r.case, r.replicate, r.status) for r in again.results) == Counter(
        (r.case, r.replicate, r.status) for r in run.results
    )


@pytest.mark.parametrize("knobs", [{"density": 1.5}, {"density": 0.05, "multiple": 0}])
def test_a_mistake_in_a_sweep_is_no_density_out_of_reach(tmp_path: Path, knobs):
    request = document(["dense"])
    request["cases"][0]["format"].append({"name": "low_rank", **knobs})
    with pytest.raises(SuiteError, match="density must be above|multiple must be a whole"):
        runner.run(request, device="fake", out=tmp_path, threads=1)
    assert not list(tmp_path.glob("*.jsonl"))


def test_a_device_that_is_not_there_is_a_sentence(tmp_path: Path):
    with pytest.raises(UsageError, match="numbered from 0"):
        runner.run(document(["dense"]), device="fake:7", out=tmp_path, threads=1)
    assert issubclass(DeviceError, UsageError)


@pytest.mark.heavy
def test_a_huge_layer_is_out_of_memory_and_not_a_killed_machine(tmp_path: Path):
    request = document(["dense"])
    request["cases"][0]["shape"] = [2**23, 2**23]
    run = read_run(runner.run(request, device="cpu", out=tmp_path, threads=1, replicates=1))
    assert [r.status for r in run.results] == [Status.OUT_OF_MEMORY]
    assert "are free" in str(run.results[0].reason)


def test_a_time_budget_returns_every_case(
    tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
):
    request = document(["dense"], replicates=50)
    request["cases"][0]["format"].append({"name": "low_rank", "rank": [1, 2, 3]})
    request["cases"][0]["tokens"] = [1, 2, 3]
    real = time.monotonic
    # the start of each worker seems to take a hundred seconds
    monkeypatch.setattr(time, "monotonic", lambda: real() + 100 * len(workers.started))
    path = runner.run(request, device="fake", out=tmp_path, threads=1, time_budget_seconds=950)
    run = read_run(path)
    assert run.complete
    assert {r.case for r in run.results} == set(run.planned)
    replicates = {r.replicate for r in run.results}
    assert replicates == set(range(len(replicates)))
    assert 3 < len(replicates) < 12  # fewer than asked: it ran out
    assert "time budget" in str(run.footer.state["stopped"])
    assert len(workers.started) == 1 + len(replicates)
