"""Several devices: of this machine, and of a Ray cluster whose nodes pretend to be GPUs and die."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import types
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from _check import Call
from _faulty import ROOT

from hwbench import __version__ as version
from hwbench.errors import (
    DeviceError,
    EnvironmentMismatchError,
    IncompleteRunError,
    UsageError,
)
from hwbench.measure import fleet
from hwbench.measure import run as runner
from hwbench.measure.pool import execute
from hwbench.measure.transports._base import Seat, SeatLostError, Worker
from hwbench.measure.transports.local import LocalSeat
from hwbench.records import Status
from hwbench.store import Run, read_run
from hwbench.studies import nodes as nodes_study

FORMATS = [{"name": "dense"}, {"name": "low_rank", "rank": [1, 2]}]
SUITE = """
schema = 1
name = "shared"
[plan]
replicates = {replicates}
budget_seconds = 0.005
timeout_seconds = 600
[[cases]]
workload = "linear"
direction = ["forward", "step"]
shape = [[32, 16], [16, 32]]
tokens = [1, 2]
format = [{{ name = "dense" }}, {{ name = "low_rank", rank = [1, 2] }}]
"""


def document(replicates: int = 3) -> dict[str, Any]:
    return {
        "schema": 1,
        "name": "shared",
        "plan": {"replicates": replicates, "budget_seconds": 0.005, "timeout_seconds": 600.0},
        "cases": [
            {"workload": "linear", "direction": ["forward", "step"], "shape": [[32, 16], [16, 32]],
             "tokens": [1, 2], "format": FORMATS}
        ],
    }  # fmt: skip


def whole(path: Path, replicates: int) -> Run:
    """A run that is complete, with every result there once."""
    run = read_run(path)
    assert run.complete
    pairs = Counter((r.case, r.replicate) for r in run.results)
    assert set(pairs.values()) == {1}
    assert set(pairs) == {(case, number) for case in run.planned for number in range(replicates)}
    return run


class Frail(Seat):
    """A seat of this machine that goes away after so many requests."""

    def __init__(self, name: str, requests: int | None = None) -> None:
        self.name, self.kind, self.device, self.threads = name, "A100", "fake", 1
        self.left = requests
        self._seat = LocalSeat("fake", 1)

    def start(self) -> Worker:
        self.spend()
        return FrailWorker(self, self._seat.start())

    def spend(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise SeatLostError(f"{self.name} went away.")

    def close(self) -> None:
        self._seat.close()


class FrailWorker(Worker):
    def __init__(self, seat: Frail, worker: Worker) -> None:
        self.seat, self.worker = seat, worker

    def exchange(self, line: bytes, timeout_seconds: float) -> bytes:
        self.seat.spend()
        answer = self.worker.exchange(line, timeout_seconds)
        self.seat.spend()  # the answer may be lost on its way
        return answer

    def close(self) -> None:
        self.worker.close()


def start(tmp_path: Path, replicates: int = 3) -> runner.State:
    question = runner.Question(document=document(replicates), out=tmp_path)
    return runner.begin(question, Frail("planner"), cluster="A100")


@pytest.mark.parametrize("requests", [0, 2, 9, 30])
@pytest.mark.parametrize("shards", [1, 3])
def test_what_a_lost_machine_left_is_taken_over(tmp_path: Path, requests: int, shards: int):
    seats = [Frail("first", requests), Frail("second")]
    path = execute(start(tmp_path), seats, None, shards=shards, more=list)
    run = whole(path, 3)
    assert {r.status for r in run.results} == {Status.OK}
    assert len(run.footer.state["lost"]) <= 1
    assert set(run.footer.state["seats"].values()) <= {"first", "second"}


def test_a_machine_that_comes_back_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    back = [Frail("again")]
    state = start(tmp_path)
    notes = []
    monkeypatch.setattr("hwbench.measure.pool._LOOK_SECONDS", 0.001)
    state.listener = lambda progress: notes.append(progress.note)
    later = iter([[], back])
    path = execute(state, [Frail("first", 10)], None, more=lambda: next(later), patience_seconds=60)
    whole(path, 3)
    assert any("waiting" in note for note in notes)


def test_a_run_whose_machines_are_gone_says_what_is_missing_and_is_resumed(tmp_path: Path):
    state = start(tmp_path)
    with pytest.raises(IncompleteRunError, match=r"of 72 results are missing.*went away.*--resume"):
        execute(state, [Frail("first", 10), Frail("second", 12)], None, more=list)
    path = state.writer.path
    assert not read_run(path).complete
    before = {(r.case, r.replicate): r for r in read_run(path).results}
    assert 0 < len(before) < 72
    paths = fleet.Fleet(lambda: [Frail("third")]).resume(path)
    assert paths == [path]
    after = {(r.case, r.replicate): r for r in whole(path, 3).results}
    assert all(after[key] == result for key, result in before.items())


def test_equal_devices_share_one_run_and_other_kinds_have_their_own(tmp_path: Path):
    class Other(Frail):
        def __init__(self) -> None:
            super().__init__("other")
            self.kind = "RTX4090"

    question = runner.Question(document=document(2), out=tmp_path)
    actual = [Frail("one"), Frail("two"), Other()]
    paths = fleet.Fleet(lambda: actual).run(question)
    runs = [whole(path, 2) for path in paths]
    assert [run.header.arguments["cluster"] for run in runs] == ["A100", "RTX4090"]
    assert set(runs[0].footer.state["seats"].values()) == {"one", "two"}
    only = fleet.Fleet(lambda: [Frail("one"), Other()], on=["rtx 4090"]).run(question)
    assert [read_run(path).header.arguments["cluster"] for path in only] == ["RTX4090"]
    with pytest.raises(DeviceError, match="no machine with H200"):
        fleet.Fleet(lambda: [Frail("one")], on=["H200"]).run(question)
    with pytest.raises(DeviceError, match="no machine with A10 "):  # which an A100 is not
        fleet.Fleet(lambda: [Frail("one")], on=["A10"]).run(question)


def test_a_list_of_local_devices_needs_no_cluster(tmp_path: Path, hwbench: Call):
    (tmp_path / "s.toml").write_text(SUITE.format(replicates=1))
    code, _, err = hwbench(
        "run", "--suite", "s.toml", "--device", "fake,fake:0", "--threads", "1", "--shards", "2"
    )
    assert (code, err) == (0, "")
    (path,) = (tmp_path / "runs").glob("*.jsonl")
    assert len(whole(path, 1).footer.state["seats"]) == 2
    with pytest.raises(UsageError, match="twice"):
        fleet.local_seats(["cpu", "cpu"], 1)


def test_a_device_that_cannot_be_planned_for_leaves_no_run_of_the_others(tmp_path: Path):
    request = document(1)
    bad = {"format": [{"name": "dense"}, {"name": "low_rank", "rank": 99}]}
    request["cases"][0]["on"] = {"cpu": bad}
    question = runner.Question(document=request, out=tmp_path)
    actual = fleet.local_seats(["fake", "cpu"], 1)
    with pytest.raises(UsageError, match="low_rank rank=99"):
        fleet.Fleet(lambda: actual).run(question)
    assert list(tmp_path.iterdir()) == []
    for seat in actual:
        with pytest.raises(SeatLostError):
            seat.start()


@pytest.mark.parametrize("address", ["http://x", "ray://", "auto; rm", "ray://a b:1"])
def test_an_address_that_is_none_is_refused_before_anything_is_asked(address: str):
    from hwbench.measure.transports.ray import Cluster

    with pytest.raises(UsageError, match="--cluster is auto or ray://HOST:PORT"):
        Cluster(address)


def test_the_address_given_is_all_that_is_spoken_to(monkeypatch: pytest.MonkeyPatch):
    """Ray joins a cluster where it is given an address, and starts one where it is given none."""
    from hwbench.measure.transports.ray import Cluster

    arguments: list[dict[str, Any]] = []

    def init(**how: Any) -> None:
        arguments.append(how)
        raise ConnectionError("nobody answers")

    stub = types.SimpleNamespace(init=init, is_initialized=lambda: False)
    monkeypatch.setitem(sys.modules, "ray", stub)
    for address in ("auto", "ray://10.0.0.7:10001", "10.0.0.7:6379"):
        with pytest.raises(UsageError, match="no Ray cluster"):
            Cluster(address)
    assert [each["address"] for each in arguments] == [
        "auto",
        "ray://10.0.0.7:10001",
        "10.0.0.7:6379",
    ]


class Nodes:
    """Ray as a seat speaks to it, with one actor whose node may die."""

    def __init__(self) -> None:
        kinds = ["GetTimeoutError", "RayActorError", "RayTaskError", "RuntimeEnvSetupError"]
        error = type("RayError", (Exception,), {})
        errors = {"RayError": error} | {kind: type(kind, (error,), {}) for kind in kinds}
        self.exceptions = types.SimpleNamespace(**errors)
        self.death: Exception | None = None
        self.killed = 0

    def remote(self, actor: type) -> Any:
        asked = ("ready", "start", "exchange", "stop")
        calls = {name: types.SimpleNamespace(remote=lambda *_, name=name: name) for name in asked}
        made = types.SimpleNamespace(remote=lambda *_: types.SimpleNamespace(**calls))
        return types.SimpleNamespace(options=lambda **_: made)

    def get(self, reference: str, timeout: float) -> Any:
        if self.death:
            raise self.death
        return {"ready": {"hwbench": version}, "exchange": ("answer", b"{}")}.get(reference)

    def is_initialized(self) -> bool:
        return True

    def kill(self, actor: Any) -> None:
        self.killed += 1


DEATHS = {
    "RayActorError": "went away",
    "GetTimeoutError": "does not answer",
    "RayError": "cannot be reached",
}


@pytest.mark.parametrize("first", ["close", "exchange", "start"])
@pytest.mark.parametrize("death", DEATHS)
def test_a_seat_says_what_became_of_it_whoever_met_it_first(
    monkeypatch: pytest.MonkeyPatch, death: str, first: str
):
    """A worker is let go after each chunk: a node that died since is met there as well."""
    from hwbench.measure.transports.ray import RaySeat

    nodes = Nodes()
    strategies = types.SimpleNamespace(NodeAffinitySchedulingStrategy=lambda **_: None)
    monkeypatch.setitem(sys.modules, "ray", nodes)
    monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", strategies)
    node = {"NodeID": "1", "NodeManagerHostname": "there"}
    seat = RaySeat(node, 0, "A100", {"num_gpus": 1, "num_cpus": 2.0})
    worker = seat.start()
    assert worker.exchange(b"{}", 1.0) == b"{}"
    nodes.death = getattr(nodes.exceptions, death)("gone")
    sentence = f"^A100 0 of there {DEATHS[death]}\\.$"
    if first == "close":
        worker.close()
    else:
        with pytest.raises(SeatLostError, match=sentence):
            seat.start() if first == "start" else worker.exchange(b"{}", 1.0)
    for ask in (seat.start, lambda: worker.exchange(b"{}", 1.0)):
        with pytest.raises(SeatLostError, match=sentence):
            ask()
    seat.close()
    with pytest.raises(SeatLostError, match=sentence):
        seat.start()
    assert nodes.killed == 1


def command(tmp_path: Path, *options: str) -> list[str]:
    where = ["--suite", str(tmp_path / "s.toml"), "--out", str(tmp_path / "runs")]
    return [sys.executable, "-m", "hwbench", "run", *where, *options]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster without devices; ``add(kind)`` starts a node that pretends to have one."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})

    def add(kind: str) -> Any:
        return cluster.add_node(num_cpus=1, resources={f"accelerator_type:{kind}": 1}, **small)

    cluster.pretend = add
    yield cluster
    cluster.shutdown()


def results(folder: Path) -> int:
    return sum(path.read_bytes().count(b'"line":"result"') for path in folder.glob("*.jsonl"))


def wait_for(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    deadline = time.monotonic() + 300
    while results(folder) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the run wrote nothing in time"
        time.sleep(0.02)


def ended(command: Sequence[str]) -> tuple[int, str]:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    return done.returncode, unsaid(done.stderr)


def unsaid(error: str) -> str:
    """What a command wrote beside its lines of progress."""
    progress = re.compile(r"hwbench: (\d+ of \d+ results|planning).*")
    return "\n".join(line for line in error.splitlines() if not progress.fullmatch(line))


@pytest.mark.ray
@pytest.mark.heavy
@pytest.mark.processes
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_two_kinds_of_device_are_measured_into_two_runs(nodes: Any, tmp_path: Path):
    nodes.pretend("A100")
    nodes.pretend("RTX4090")
    out = tmp_path / "runs"
    run_command = [
        sys.executable,
        "-m",
        "hwbench",
        "run",
        "--suite",
        "smoke",
        "--cluster",
        nodes.address,
    ]
    assert ended([*run_command, "--device", "cpu", "--out", str(out)]) == (0, "")
    runs = [read_run(path) for path in sorted(out.glob("*.jsonl"))]
    assert {run.header.arguments["cluster"] for run in runs} == {"A100", "RTX4090"}
    assert all(run.complete for run in runs)
    assert [len(run.results) for run in runs] == [len(run.planned) for run in runs]
    arguments = [*run_command[:3], "doctor", "--cluster", nodes.address, "--device", "cpu"]
    process = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (process.returncode, process.stderr) == (0, "")
    assert "A100 0 of" in process.stdout
    assert "RTX4090 0 of" in process.stdout
    compare = [*run_command[:3], "compare", *(str(run.path) for run in runs)]
    compared = subprocess.run(compare, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (compared.returncode, compared.stderr) == (0, "")
    for run in runs:
        assert run.header.run in compared.stdout
    code, error = ended([*run_command, "--device", "cpu", "--on", "H200", "--out", str(out)])
    assert (code, "no machine with H200" in error) == (2, True)


@pytest.mark.ray
@pytest.mark.heavy
@pytest.mark.processes
@pytest.mark.filterwarnings("ignore")
def test_a_node_that_is_killed_loses_and_doubles_nothing(nodes: Any, tmp_path: Path):
    first, second = nodes.pretend("A100"), nodes.pretend("A100")
    (tmp_path / "s.toml").write_text(SUITE.format(replicates=6))
    run_command = command(tmp_path, "--cluster", nodes.address, "--device", "fake", "--wait", "1s")
    process = subprocess.Popen(run_command, cwd=ROOT, stdout=-1, stderr=-1, text=True)
    wait_for(process, tmp_path / "runs", 20)
    nodes.remove_node(first, allow_graceful=False)
    before = results(tmp_path / "runs")
    _, error = process.communicate(timeout=500)
    assert (process.returncode, unsaid(error)) == (0, "")
    (path,) = (tmp_path / "runs").glob("*.jsonl")
    run = whole(path, 6)
    assert before < len(run.results)  # it died in the middle
    assert {r.status for r in run.results} == {Status.OK}
    (lost,) = run.footer.state["lost"]
    assert "went away" in lost
    nodes.remove_node(second, allow_graceful=False)


@pytest.mark.ray
@pytest.mark.heavy
@pytest.mark.processes
@pytest.mark.filterwarnings("ignore")
def test_the_last_node_of_a_kind_is_named_as_missing_and_the_run_resumed(
    nodes: Any, tmp_path: Path
):
    only = nodes.pretend("A100")
    (tmp_path / "s.toml").write_text(SUITE.format(replicates=8))
    made = command(tmp_path, "--cluster", nodes.address, "--device", "fake", "--wait", "1s")
    process = subprocess.Popen(made, cwd=ROOT, stdout=-1, stderr=-1, text=True)
    wait_for(process, tmp_path / "runs", 20)
    nodes.remove_node(only, allow_graceful=False)
    _, error = process.communicate(timeout=500)
    assert process.returncode == 5
    assert "results are missing" in error
    assert "A100" in error
    (path,) = (tmp_path / "runs").glob("*.jsonl")
    before = {(r.case, r.replicate): r for r in read_run(path).results}
    nodes.pretend("A100")
    again = [*made[:4], "--resume", str(path), "--cluster", nodes.address, "--device", "fake"]
    assert ended(again) == (0, "")
    after = {(r.case, r.replicate): r for r in whole(path, 8).results}
    assert all(after[key] == result for key, result in before.items())


def test_unequal_devices_are_named_before_minutes_are_spent(tmp_path: Path):
    actual = nodes_study.examine([Frail("one"), Frail("two"), Frail("gone", 0)])
    assert [bool(node.missed) for node in actual] == [False, False, True]
    assert nodes_study.unequal(actual) == []
    other = replace(actual[1], facts={**actual[1].facts, "torch": "1.0"})
    (words,) = nodes_study.unequal([actual[0], other])
    assert "two is not equal to one: torch is '1.0'" in words
    nodes_study.demand(actual, [])
    with pytest.raises(EnvironmentMismatchError, match="gone"):
        nodes_study.demand(actual, ["steady"])
