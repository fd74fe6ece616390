"""What a short visit to a machine needs: a budget that holds, and runs that are cut off."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from _synthetic import linear_case, questions, run_of
from hwbench_simulated import Fake

from hwbench import protocol
from hwbench.analysis.frames import load_run
from hwbench.errors import EnvironmentMismatchError, RunFileError, UsageError
from hwbench.measure import rerun
from hwbench.measure import run as runner
from hwbench.measure import schedule as execution
from hwbench.meters import latency
from hwbench.records import Plan, PlannedLine, ResultLine, Status
from hwbench.store import Run, RunWriter, read_run
from hwbench.worker import Worker


def document(**plan: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "name": "visit",
        "plan": {"replicates": 2, "budget_seconds": 0.005, **plan},
        "cases": [
            {
                "workload": "linear",
                "direction": "step",
                "shape": [[16, 16], [24, 16], [32, 16]],
                "tokens": [4],
                "format": [{"name": "dense"}, {"name": "low_rank", "rank": 2}],
            },
            {
                "workload": "projection",
                "shape": [8, 8],
                "seeds": 2,
                "format": [{"name": "low_rank", "rank": 2}, {"name": "btt", "density": 0.5}],
            },
        ],
    }


# --- --no-scores -------------------------------------------------------------------------------


def test_without_scores_only_what_is_timed_is_measured_and_the_table_says_so(hwbench, tmp_path):
    suite = tmp_path / "s.toml"
    suite.write_text(TOML, encoding="utf-8")
    code, out, _ = hwbench("run", "--suite", str(suite), "--device", "fake", "--no-scores")
    assert code == 0
    assert "2 scored cases were left out (--no-scores)" in out
    (path,) = (tmp_path / "runs").glob("*.jsonl")
    assert set(load_run(path).workload) == {"linear"}


TOML = """
schema = 1
name = "visit"
[plan]
replicates = 1
budget_seconds = 0.005
[[cases]]
workload = "linear"
direction = "forward"
shape = [16, 16]
tokens = 4
format = [{ name = "dense" }, { name = "low_rank", rank = 2 }]
[[cases]]
workload = "projection"
shape = [8, 8]
format = [{ name = "low_rank", rank = 2 }, { name = "btt", density = 0.5 }]
"""


def test_a_suite_of_scores_alone_has_nothing_to_measure_without_them(tmp_path):
    only = {**document(), "cases": document()["cases"][1:]}
    with pytest.raises(UsageError, match="scored cases only; leave --no-scores out"):
        runner.run(only, device="fake", out=tmp_path, threads=1, scores=False)


# --- the time budget ----------------------------------------------------------------------------


def solo(planned: Any, **request: Any) -> protocol.SoloReply:
    return Worker(Fake()).solo(
        protocol.SoloRequest(planned=planned, replicate=0, seed=1, **request)
    )


def planned() -> Any:
    case = linear_case("dense", None, device="fake", shape=(16, 16), tokens=4, direction="step")
    return Worker(Fake()).plan(protocol.PlanRequest(cases=[case])).planned[0]


def test_after_its_deadline_a_case_is_read_only_for_what_it_needs():
    read = {m.quantity: m for m in solo(planned(), deadline_seconds=0.0).result.measurements}
    assert read["numerical_error"].values
    assert read["first_call_seconds"].values
    for name in ("saved_bytes", "peak_bytes", "gradient_bytes", "counted_flops"):
        assert read[name].values == []
        assert read[name].note == "The time budget ended before it was read."


@pytest.mark.parametrize("right", [False, True])
def test_what_another_replicate_found_right_is_not_held_to_float64_again(right):
    read = {m.quantity for m in solo(planned(), right=right).result.measurements}
    assert ("numerical_error" in read) is not right
    assert "first_call_seconds" in read


@pytest.mark.parametrize("allowed", [None, 1e6])
def test_before_its_deadline_everything_is_read(allowed):
    read = solo(planned(), deadline_seconds=allowed).result.measurements
    assert {"saved_bytes", "peak_bytes", "counted_flops"} <= {m.quantity for m in read if m.values}


def test_a_graph_that_the_budget_has_no_room_for_is_named(monkeypatch):
    def captured(*_: object) -> None:
        raise AssertionError("a graph was captured after the deadline")

    monkeypatch.setattr(latency, "graph_seconds", captured)
    monkeypatch.setattr(
        latency, "_warm_up", lambda member, device, plan: member.flags.add("launch_bound")
    )
    worker = Worker(Fake())
    member = latency.Member(id="x", subject=worker._prepared(planned(), 1))
    plan = Plan(budget_seconds=0.001)
    measurements = latency.measure([member], None, worker.device, plan, random.Random(1), 0.0)
    (graph,) = [m for m in measurements["x"] if m.quantity == "graph_seconds"]
    assert graph.values == []
    assert graph.note == "The time budget ended before it was read."


class Clock:
    """A host clock that every request moves on by the same time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("budget", [0.5, 3.5, 8.5, 40.0, 1000.0])
def test_a_run_ends_within_its_budget_and_one_group(budget, tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    ask = protocol.decode_request

    def slower(line: bytes) -> Any:
        clock.now += 0.5  # it is decoded twice: by the transport and by the worker
        return ask(line)

    monkeypatch.setattr(protocol, "decode_request", slower)
    path = runner.run(
        document(), device="fake", out=tmp_path, threads=1, time_budget_seconds=budget
    )
    run = read_run(path)
    group = 2 + 1 + 1  # two cases alone, a chunk, and the request that forgets them
    assert clock.now <= budget + group + 2
    measured = {result.case for result in run.results}
    assert run.complete == (measured == set(run.planned))
    if budget == 1000.0:
        assert run.footer is not None
        assert "stopped" not in run.footer.state
    if budget == 0.5:
        assert not run.complete
    if run.complete and len(run.results) < 6 * 2 + 2 * 2:
        assert run.footer is not None
        assert run.footer.state["stopped"].startswith("The time budget ended")


def test_what_a_budget_left_unmeasured_is_said_and_can_be_gone_on_with(
    hwbench, tmp_path, monkeypatch
):
    suite = tmp_path / "s.toml"
    suite.write_text(TOML, encoding="utf-8")
    options = ("--suite", str(suite), "--device", "fake", "--time-budget", "1s")
    with monkeypatch.context() as patched:
        patched.setattr(execution.Ends, "spent", property(lambda self: self.budget is not None))
        code, out, _ = hwbench("run", *options)
    assert code == 5  # nothing was measured; what cannot run is known when it is planned
    assert "The run is not finished: 3 cases have no result yet" in out
    (path,) = (tmp_path / "runs").glob("*.jsonl")
    assert {result.status for result in read_run(path).results} == {Status.UNSUPPORTED}
    code, out, _ = hwbench("run", "--resume", str(path))
    run = read_run(path)
    assert (code, run.complete) == (0, True)
    assert {result.case for result in run.results} == set(run.planned)
    assert "not finished" not in out


# --- runs that were cut off ---------------------------------------------------------------------


def written(folder: Path, run: Run, results: int | None = None) -> Path:
    """The run as a file; cut off after so many results."""
    lines = [PlannedLine(id=case, planned=each) for case, each in run.planned.items()]
    writer = RunWriter.create(folder, run.header, lines)
    for result in run.results[:results]:
        writer.append(ResultLine(result=result))
    if results is None and run.footer:
        writer.append(run.footer)
    writer.close()
    return writer.path


def nights(tmp_path: Path) -> tuple[Path, Path]:
    """A finished run, and one of the same suite that was cut off."""
    cases = questions(directions=["forward"], tokens=[16], projection=False)
    whole = run_of(cases, name="20260101-000000-linear-cpu-aaaa", replicates=4)
    whole.header = msgspec.structs.replace(whole.header, created="2026-01-01T00:00:00Z")
    cut = run_of(cases, name="20260102-000000-linear-cpu-bbbb", replicates=4, seed=1)
    return written(tmp_path, whole), written(tmp_path, cut, len(cut.results) // 2)


def test_check_names_the_way_to_take_a_run_that_was_cut_off(hwbench, tmp_path):
    whole, cut = nights(tmp_path)
    code, _, err = hwbench("check", str(cut), "--baseline", str(whole))
    assert code == 2
    assert "is not finished" in err
    assert "--unfinished" in err


def test_check_takes_a_run_that_was_cut_off_and_says_first_how_far_it_got(hwbench, tmp_path):
    whole, cut = nights(tmp_path)
    code, out, _ = hwbench("check", str(cut), "--baseline", str(whole), "--unfinished")
    missing = len(read_run(cut).planned) - len({r.case for r in read_run(cut).results})
    assert missing > 3
    total = len(read_run(cut).planned)
    head = " ".join(out.split("against")[0].split())
    assert f"unfinished: {missing} of {total} cases have no result, and 4 of 4" in head
    assert "gone" not in out  # what was not measured yet is not gone
    assert code == 0


def test_check_in_json_says_how_far_the_run_got(hwbench, tmp_path):
    whole, cut = nights(tmp_path)
    _, out, _ = hwbench("check", str(cut), "--baseline", str(whole), "--unfinished", "--json")
    assert "cases have no result" in msgspec.json.decode(out)["unfinished"]
    _, out, _ = hwbench("check", str(whole), "--baseline", str(whole), "--unfinished", "--json")
    assert msgspec.json.decode(out)["unfinished"] is None


@pytest.mark.parametrize("flag", [[], ["--unfinished"]])
def test_report_takes_a_run_that_was_cut_off_and_says_so(flag, hwbench, tmp_path):
    _, cut = nights(tmp_path)
    code, _, _ = hwbench("report", str(cut), *flag, "--out", str(tmp_path / "page.html"))
    assert code == 0
    assert "not finished" in (tmp_path / "page.html").read_text(encoding="utf-8")


# --- the same machine ---------------------------------------------------------------------------


def cut_off(tmp_path: Path, **facts: Any) -> Path:
    """A run of the simulated device that lacks its last result; ``facts`` of its machine differ."""
    path = runner.run(document(), device="fake", out=tmp_path, threads=1, scores=False)
    run = read_run(path)
    path.unlink()
    environment = run.header.environment
    fingerprint = {**environment.fingerprint}
    for key, value in facts.items():
        if key in fingerprint["device"]:
            fingerprint["device"] = {**fingerprint["device"], key: value}
        elif key in fingerprint["host"]:
            fingerprint["host"] = {**fingerprint["host"], key: value}
        else:
            fingerprint[key] = value
    where = msgspec.structs.replace(environment, fingerprint=fingerprint)
    run.header = msgspec.structs.replace(run.header, environment=where)
    return written(tmp_path, run, len(run.results) - 1)


def test_a_run_goes_on_where_the_machine_is_the_same_but_for_what_decides_nothing(tmp_path):
    path = cut_off(tmp_path, kernel="5.4.0-old", python="3.11.1")
    runner.resume(path)
    run = read_run(path)
    assert run.complete
    assert run.footer is not None
    noted = run.footer.state["resumed_after"]
    assert any("host.kernel was '5.4.0-old'" in each for each in noted)
    assert any("host.python was '3.11.1'" in each for each in noted)


def test_a_page_of_memory_more_or_less_is_the_same_machine(tmp_path):
    path = cut_off(tmp_path)
    run = read_run(path)
    memory = run.header.environment.fingerprint["device"].get("memory_bytes", 8_000_000_000)
    path.unlink()
    path = cut_off(tmp_path, memory_bytes=memory - 4096)
    assert read_run(runner.resume(path)).complete


@pytest.mark.parametrize(
    ("fact", "value"), [("torch", "2.10.0"), ("hwbench", "0.0.1"), ("name", "Another device")]
)
def test_a_run_does_not_go_on_where_what_differs_decides_times(fact, value, tmp_path):
    path = cut_off(tmp_path, **{fact: value})
    with pytest.raises(RunFileError, match=f"{fact} was '{value}' and is .*start a new run"):
        runner.resume(path)


def test_a_confirmation_names_the_fact_that_differs(tmp_path):
    run = read_run(runner.run(document(), device="fake", out=tmp_path, threads=1, scores=False))
    where = run.header.environment
    facts = {**where.fingerprint, "torch": "2.10.0"}
    where = msgspec.structs.replace(where, fingerprint=facts)
    run.header = msgspec.structs.replace(run.header, environment=where)
    with pytest.raises(EnvironmentMismatchError, match=r"torch was '2\.10\.0' and is"):
        rerun.again(run, [next(iter(run.planned))], 2)


def test_every_result_of_a_resumed_run_stands_once(tmp_path):
    path = cut_off(tmp_path)
    run = read_run(runner.resume(path))
    assert len({(r.case, r.replicate) for r in run.results}) == len(run.results) == 6 * 2
    assert {r.status for r in run.results} == {Status.OK}


# --- the tests of a GPU ---------------------------------------------------------------------------


def test_the_tests_of_a_gpu_use_what_the_interpreter_has(monkeypatch, tmp_path):
    import run_cuda

    there = {"xdist", "pytest_timeout"}
    monkeypatch.setattr(
        run_cuda.importlib.util, "find_spec", lambda name: name if name in there else None
    )
    whole = run_cuda.command([tmp_path], tmp_path / "x.xml", "default", 8)
    assert whole[whole.index("-n") :][:2] == ["-n", "8"]
    assert "--timeout" in whole
    assert whole[whole.index("-W") + 1] == "default"
    there.clear()
    bare = run_cuda.command([tmp_path], tmp_path / "x.xml", "default", 8)
    assert "-n" not in bare
    assert "--timeout" not in bare


def test_the_tests_of_memory_and_time_run_alone_and_none_is_left_out():
    import run_cuda

    names = [path.name for path in run_cuda.files()]
    assert run_cuda.ALONE in names
    assert {"test_formats.py", "test_fused.py"} <= set(names)


def test_without_a_test_that_ran_the_tests_of_a_gpu_fail(monkeypatch, tmp_path):
    import run_cuda

    monkeypatch.setattr(run_cuda, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["run_cuda.py"])
    empty = '<testsuites><testsuite tests="3" skipped="3"/></testsuites>'

    def run(command, check):
        Path(command[command.index("--junit-xml") + 1]).write_text(empty)
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(run_cuda.subprocess, "run", run)
    assert run_cuda.main() == 1
    empty = empty.replace('skipped="3"', 'skipped="2"')
    assert run_cuda.main() == 0


def test_a_chunk_whose_deadline_is_now_ends_after_the_fewest_blocks():
    one = planned()
    plan = Plan(budget_seconds=1e6, relative_width=1e-9)
    request = protocol.ChunkRequest(
        members=[one], anchor=None, plan=plan, replicate=0, seed=1, deadline_seconds=0.0
    )
    (timed,) = Worker(Fake()).chunk(request).timed.values()
    assert timed.measurements[0].stopped == "deadline"
