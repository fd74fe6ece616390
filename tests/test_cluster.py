"""Several devices: of this machine, and of a Ray cluster whose nodes pretend to be GPUs and die."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from _check import Call
from _faulty import ROOT

from hwbench import __version__ as version
from hwbench import protocol
from hwbench.errors import (
    DeviceError,
    EnvironmentMismatchError,
    IncompleteRunError,
    UsageError,
    WorkerError,
)
from hwbench.files import listed
from hwbench.measure import fleet
from hwbench.measure import run as runner
from hwbench.measure.pool import execute
from hwbench.measure.schedule import Progress
from hwbench.measure.transports import local
from hwbench.measure.transports._base import (
    Seat,
    SeatLostError,
    Worker,
    WorkerDiedError,
    WorkerFailedError,
    WorkerTimedOutError,
)
from hwbench.measure.transports.local import LocalSeat
from hwbench.records import Status
from hwbench.store import Run, list_runs, read_run
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
        self.left, self.closed = requests, threading.Event()
        self._seat = LocalSeat("fake", 1)

    def start(self) -> Worker:
        self.spend()
        return FrailWorker(self, self._seat.start())

    def spend(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise SeatLostError(f"{self.name} went away.")

    def hear(self, line: bytes) -> None:
        """What a test looks at before each request."""

    def close(self) -> None:
        self.closed.set()
        self._seat.close()


class FrailWorker(Worker):
    def __init__(self, seat: Frail, worker: Worker) -> None:
        self.seat, self.worker = seat, worker

    def exchange(self, line: bytes, timeout_seconds: float) -> bytes:
        self.seat.hear(line)
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


def other(seat: type[Frail] = Frail) -> Frail:
    """A device of another kind."""
    actual = seat("other")
    actual.kind = "RTX4090"
    return actual


def test_equal_devices_share_one_run_and_other_kinds_have_their_own(tmp_path: Path):
    question = runner.Question(document=document(2), out=tmp_path)
    actual = [Frail("one"), Frail("two"), other()]
    heard: list[Progress] = []
    paths = fleet.Fleet(lambda: actual, listener=heard.append).run(question)
    runs = [whole(path, 2) for path in paths]
    assert (heard[0].left, heard[-1].left, heard[-1].done) == (None, 0.0, heard[-1].total)
    assert any(each.left for each in heard)
    assert [run.header.arguments["cluster"] for run in runs] == ["A100", "RTX4090"]
    assert set(runs[0].footer.state["seats"].values()) == {"one", "two"}
    only = fleet.Fleet(lambda: [Frail("one"), other()], on=["rtx 4090"]).run(question)
    assert [read_run(path).header.arguments["cluster"] for path in only] == ["RTX4090"]
    with pytest.raises(DeviceError, match="no machine with H200"):
        fleet.Fleet(lambda: [Frail("one")], on=["H200"]).run(question)
    with pytest.raises(DeviceError, match="no machine with A10 "):  # which an A100 is not
        fleet.Fleet(lambda: [Frail("one")], on=["A10"]).run(question)


def test_the_time_left_is_that_of_the_run_that_takes_longest():
    heard: list[Progress] = []
    actual = fleet.Fleet(list, listener=heard.append)
    steps = [
        Progress(0, 9, 0.0, Path("runs"), note="measuring the peaks", begun=False),
        Progress(1, 9, 1.0, Path("a"), left=3.0),
        Progress(1, 9, 1.0, Path("b")),
        Progress(2, 9, 2.0, Path("b"), left=5.0),
        Progress(2, 9, 2.0, Path("a"), left=2.0),
        Progress(9, 9, 3.0, Path("b"), left=0.0),
    ]
    for each in steps:
        actual._hear(each)
    assert [each.left for each in heard] == [None, 3.0, None, 5.0, 5.0, 2.0]


def test_a_list_of_local_devices_needs_no_cluster(tmp_path: Path, hwbench: Call):
    (tmp_path / "s.toml").write_text(SUITE.format(replicates=1))
    code, _, err = hwbench(
        "run", "--suite", "s.toml", "--device", "fake:0,fake:1", "--threads", "1", "--shards", "2"
    )
    assert (code, err) == (0, "")
    (path,) = list_runs(tmp_path / "runs")
    assert set(whole(path, 1).footer.state["seats"].values()) == {"fake:0", "fake:1"}


TWICE = "cpu,cpu cpu,cpu:0 cuda,cuda:0 cuda:1,cuda:01 auto,cuda:0 cuda:0,auto cuda:x,cuda:x"


@pytest.mark.parametrize("listed", TWICE.split())
def test_a_device_is_named_once_by_whatever_name(monkeypatch: pytest.MonkeyPatch, listed: str):
    monkeypatch.setattr("hwbench.environment.nvidia_devices", lambda: ["cuda:0"])
    devices = listed.split(",")
    again = "cuda" if devices[1] == "auto" else devices[1]
    with pytest.raises(UsageError, match=f"--device names {again} twice; a device measures alone."):
        fleet.local_seats(devices, 1)


def test_devices_with_another_index_or_kind_are_others(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hwbench.environment.nvidia_devices", list)
    for devices in (["cuda", "cuda:1"], ["cuda:1", "cuda:10"], ["auto", "cuda:0"]):
        assert len(fleet.local_seats(devices, 1)) == 2


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
        answers = {"ready": {"hwbench": version}, "start": ("", ""), "exchange": ("answer", b"{}")}
        return answers.get(reference)

    def is_initialized(self) -> bool:
        return True

    def kill(self, actor: Any) -> None:
        self.killed += 1


class InProcess(Nodes):
    """Ray whose actors are objects of this process, on one node with a GPU and one without."""

    def remote(self, actor: Callable[..., Any]) -> Any:
        def made(*arguments: Any) -> Any:
            actual = actor(*arguments)
            names = ("ready", "start", "exchange", "stop")
            calls = {
                name: types.SimpleNamespace(remote=getattr(actual, name)) for name in names
            }  # fmt: skip
            return types.SimpleNamespace(**calls)

        return types.SimpleNamespace(options=lambda **_: types.SimpleNamespace(remote=made))

    def get(self, reference: Any, timeout: float) -> Any:
        return reference

    def init(self, **how: Any) -> None: ...

    def shutdown(self) -> None: ...

    def nodes(self) -> list[dict[str, Any]]:
        usual = {"Alive": True, "NodeManagerHostname": "there"}
        kinds = ({"CPU": 4.0, "GPU": 2.0}, {"CPU": 2.0})
        return [{**usual, "NodeID": str(n), "Resources": kind} for n, kind in enumerate(kinds)]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    ray = InProcess()
    strategies = types.SimpleNamespace(NodeAffinitySchedulingStrategy=lambda **_: None)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", strategies)
    return ray


def test_the_devices_of_a_cluster_are_those_of_one_kind(in_process: InProcess):
    from hwbench.measure.transports.ray import Cluster

    joined = Cluster("auto")
    found = {kind: [s.device for s in joined.seats(kind, None)] for kind in ("auto", "cpu", "fake")}
    assert found == {"auto": ["cuda"] * 2, "cpu": ["cpu"] * 2, "fake": ["fake"] * 2}


@pytest.mark.parametrize("device", ["cuda:0", "cpu:0", "cuda,cpu", "cuda:0,cuda:1", "auto:1"])
@pytest.mark.parametrize("verb", ["run", "doctor", "resume"])
def test_a_cluster_takes_one_kind_of_device_without_an_index(
    tmp_path: Path, hwbench: Call, in_process: InProcess, device: str, verb: str
):
    """A device of a cluster is Ray's to choose; else a seat without a GPU was told cuda:0."""
    asked = [verb]
    if verb == "resume":
        state = start(tmp_path)
        state.writer.close()
        asked = ["run", "--resume", str(state.writer.path)]
    code, _, err = hwbench(*asked, "--cluster", "auto", "--device", device)
    assert code == 2
    assert (
        f"With --cluster, --device is one kind without an index, such as cuda, and not {device!r}: "
        "Ray chooses the devices."
    ) in err


ENDS = [
    WorkerDiedError("The worker process died (signal 9, SIGKILL)."),
    WorkerTimedOutError("It did not end in time and was stopped."),
    WorkerFailedError("RuntimeError: CUDA error"),
    WorkerError("The worker began with SoloReply."),
]


@pytest.mark.parametrize("end", ENDS[:2] + ENDS[3:], ids=lambda end: type(end).__name__)
def test_a_worker_of_a_cluster_that_ends_at_its_start_is_no_mistake_of_the_request(
    monkeypatch: pytest.MonkeyPatch, in_process: InProcess, end: WorkerError
):
    from hwbench.measure.transports.ray import Cluster

    def ending(*_: Any) -> None:
        raise end

    (seat, _) = Cluster("auto").seats("fake", None)
    monkeypatch.setattr(local, "LocalWorker", ending)
    with pytest.raises(type(end)) as raised:
        seat.start()
    assert (type(raised.value), str(raised.value)) == (type(end), str(end))
    (node, _) = nodes_study.examine(Cluster("auto").seats("fake", None))
    assert (node.missed, node.checks) == (f"{str(end).rstrip('.')}.", [])


def test_what_a_node_cannot_do_is_one_line(monkeypatch: pytest.MonkeyPatch, in_process: InProcess):
    from hwbench.measure.transports.ray import Cluster

    errors = in_process.exceptions
    silent = errors.RayTaskError()
    silent.cause = AssertionError()
    told = errors.RayTaskError()
    told.cause = ValueError("a reason\nNo module named 'torch'")
    setup = errors.RuntimeEnvSetupError("pip failed.\nTraceback\n  more")
    for error, words in (
        (silent, "cannot run hwbench: AssertionError"),
        (told, "cannot run hwbench: No module named 'torch'"),
        (setup, "cannot start a worker: pip failed."),
    ):

        def get(reference: Any, timeout: float, error: Exception = error) -> Any:
            raise error

        monkeypatch.setattr(in_process, "get", get)
        with pytest.raises(UsageError) as raised:
            Cluster("auto").seats("cpu", None)[0].start()
        assert str(raised.value) == f"CPU 0 of there {words}"


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
    return sum(path.read_bytes().count(b'"line":"result"') for path in listed(folder, "*.jsonl"))


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
    runs = [read_run(path) for path in list_runs(out)]
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
    (path,) = list_runs(tmp_path / "runs")
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
    (path,) = list_runs(tmp_path / "runs")
    before = {(r.case, r.replicate): r for r in read_run(path).results}
    nodes.pretend("A100")
    again = [*made[:4], "--resume", str(path), "--cluster", nodes.address, "--device", "fake"]
    assert ended(again) == (0, "")
    after = {(r.case, r.replicate): r for r in whole(path, 8).results}
    assert all(after[key] == result for key, result in before.items())


@pytest.mark.parametrize("name", ["load", "quota"])
def test_what_is_read_where_the_command_runs_cannot_be_required_of_a_cluster(
    hwbench: Call, name: str
):
    """It is said before the cluster is asked anything."""
    code, out, err = hwbench("doctor", "--cluster", "auto", "--require", f"steady,{name}")
    assert (code, out) == (2, "")
    assert f"--require {name}: read where the command runs" in err


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


def ending(name: str, end: WorkerError, at: str) -> Frail:
    """A device whose worker ends so when it is started, or asked for something."""

    class Ending(Frail):
        def spend(self) -> None:
            if at == "start":
                raise end

        def hear(self, line: bytes) -> None:
            if f'"say":"{at}"'.encode() in line:
                raise end

    return Ending(name)


@pytest.mark.parametrize("at", ["start", "plan", "health"])
@pytest.mark.parametrize("end", ENDS, ids=lambda end: type(end).__name__)
def test_a_worker_that_ends_while_it_is_asked_for_facts_is_one_line_of_the_page(
    end: WorkerError, at: str
):
    fine, bad = nodes_study.examine([Frail("one"), ending("bad", end, at)])
    assert fine.checks
    assert (bad.name, bad.checks, bad.facts) == ("bad", [], {})
    assert bad.missed == f"{str(end).rstrip('.')}."
    with pytest.raises(EnvironmentMismatchError, match=r"bad: [^.]*[^.]\.$"):
        nodes_study.demand([bad], ["steady"])


def test_of_an_error_of_several_lines_the_page_has_the_first(monkeypatch: pytest.MonkeyPatch):
    (bad,) = nodes_study.examine([ending("bad", WorkerError("It broke.\nWhere\nand why"), "plan")])
    assert bad.missed == "It broke."


@pytest.mark.parametrize("at", ["start", "plan"])
@pytest.mark.parametrize("end", ENDS, ids=lambda end: type(end).__name__)
def test_a_cluster_is_measured_without_the_device_whose_worker_ends_before(
    tmp_path: Path, end: WorkerError, at: str
):
    bad, notes = ending("bad", end, at), []
    question = runner.Question(document=document(1), out=tmp_path)
    (path,) = fleet.Fleet(lambda: [bad, Frail("one")], listener=notes.append).run(question)
    assert set(whole(path, 1).footer.state["seats"].values()) == {"one"}
    said = f"bad: {str(end).rstrip('.')}."
    (told,) = [each for each in notes if "left out" in each.note]
    assert (told.note, told.done, told.total) == (f"left out: {said}", 0, 24)
    assert bad.closed.is_set()
    with pytest.raises(DeviceError) as raised:
        fleet.Fleet(lambda: [ending("bad", end, at)], on=["A100"]).run(question)
    assert str(raised.value) == f"There is no machine with A100 that can be had now. {said}"
    assert raised.value.__cause__ is end


class Later(Frail):
    """Its worker ends when it has told its facts and plans."""

    end: WorkerError
    asked = 0

    def hear(self, line: bytes) -> None:
        self.asked += b'"say":"plan"' in line
        if self.asked > 1:
            raise self.end


@pytest.mark.parametrize("end", [*ENDS, SeatLostError("bad went away.")])
def test_the_next_device_of_the_kind_plans_where_one_ends(tmp_path: Path, end: WorkerError):
    def bad() -> Later:
        seat = Later("bad")
        seat.end = end
        return seat

    question = runner.Question(document=document(1), out=tmp_path)
    (path,) = fleet.Fleet(lambda: [bad(), Frail("one")]).run(question)
    assert set(whole(path, 1).footer.state["seats"].values()) == {"one"}
    (path,) = fleet.Fleet(lambda: [bad(), other()]).run(question)
    assert whole(path, 1).header.arguments["cluster"] == "RTX4090"
    actual = [other(), bad()]
    with pytest.raises(DeviceError, match="There is no machine with A100 that can be had now. bad"):
        fleet.Fleet(lambda: actual, on=["RTX4090", "A100"]).run(question)
    assert len(list(tmp_path.iterdir())) == 2  # and no run that was begun
    assert all(seat.closed.is_set() for seat in actual)


def test_a_device_of_this_machine_is_never_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = local.LocalWorker

    def starting(device: str, *rest: Any) -> Any:
        if device == "fake:1":
            raise WorkerDiedError("The worker process died (signal 9, SIGKILL).")
        return made(device, *rest)

    monkeypatch.setattr(local, "LocalWorker", starting)
    question = runner.Question(document=document(1), out=tmp_path)
    with pytest.raises(WorkerDiedError):
        fleet.Fleet(lambda: fleet.local_seats(["fake:0", "fake:1"], 1)).run(question)
    assert not list(tmp_path.iterdir())


class Observer(Frail):
    """Looks at its first measured case whether another device is let go, for so many seconds."""

    other: Frail
    seconds = 0.0
    seen: bool | None = None

    def hear(self, line: bytes) -> None:
        if self.seen is None and b'"say":"solo"' in line:
            self.seen = self.other.closed.wait(self.seconds)


def test_a_run_that_is_resumed_holds_no_device_of_another_kind(tmp_path: Path):
    state = start(tmp_path)
    state.writer.close()
    mine = Observer("mine")
    mine.other = other()
    assert fleet.Fleet(lambda: [mine.other, mine]).resume(state.writer.path) == [state.writer.path]
    assert mine.seen is True


def test_a_run_that_cannot_be_resumed_holds_no_device(tmp_path: Path):
    state = start(tmp_path)  # which writes it
    for actual in ([other()], [Frail("mine"), other()]):
        with pytest.raises(UsageError, match="which is not there now|written by another process"):
            fleet.Fleet(lambda actual=actual: actual).resume(state.writer.path)
        assert all(seat.closed.is_set() for seat in actual)
    state.writer.close()


def test_a_kind_that_is_measured_is_let_go_before_the_others(tmp_path: Path):
    quick, slow = Frail("quick"), other(Observer)
    slow.other, slow.seconds = quick, 30.0
    question = runner.Question(document=document(1), out=tmp_path)
    assert len(fleet.Fleet(lambda: [quick, slow]).run(question)) == 2
    assert slow.seen is True
    assert slow.closed.is_set()


def test_a_device_that_came_back_is_let_go_with_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """So is one that is another by now, at once."""
    monkeypatch.setattr("hwbench.measure.pool._LOOK_SECONDS", 0.001)
    back, changed, slow = Frail("back"), Frail("changed"), other(Observer)
    changed.threads = 2
    found = iter([[Frail("first", 20), slow], [changed], [changed, back]])
    slow.other, slow.seconds = back, 30.0
    question = runner.Question(document=document(2), out=tmp_path)
    actual = fleet.Fleet(lambda: next(found), patience_seconds=60.0)
    for path in actual.run(question):
        whole(path, 2)
    assert slow.seen is True
    assert changed.closed.is_set()


def test_what_a_worker_raised_is_a_sentence_and_its_traceback_a_note():
    class Broken(Worker):
        def exchange(self, line: bytes, timeout_seconds: float) -> bytes:
            reply = protocol.Mistake(
                sentence="ValueError: a reason", detail="Traceback …\n  here\n"
            )
            return protocol.encode(reply)

        def close(self) -> None: ...

    with pytest.raises(WorkerFailedError) as raised:
        Broken().ask(protocol.PlanRequest(cases=[]), protocol.PlanReply, 1.0)
    assert str(raised.value) == "ValueError: a reason"
    assert raised.value.__notes__ == ["In the worker:\nTraceback …\n  here"]


def test_the_traceback_of_a_worker_is_shown_with_debug_alone(
    tmp_path: Path, hwbench: Call, monkeypatch: pytest.MonkeyPatch
):
    def failing(*_: Any) -> None:
        raise ValueError("a mistake of ours")

    monkeypatch.setattr("hwbench.worker.Worker.answer", failing)
    (tmp_path / "s.toml").write_text(SUITE.format(replicates=1))
    asked = ("run", "--suite", "s.toml", "--device", "fake", "--threads", "1")
    assert hwbench(*asked) == (70, "", "hwbench: ValueError: a mistake of ours\n")
    code, _, err = hwbench("--debug", *asked)
    assert code == 70
    assert "In the worker:\nTraceback" in err
    assert err.splitlines()[-1] == "hwbench: ValueError: a mistake of ours"
