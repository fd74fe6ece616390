"""What only real processes show, once each: start, death, time-out, memory, Ctrl-C, other Pythons.

All other tests run their workers in this process (``_inline.py``). Which of them is the twin of
which fault here is in ``docs/testing.md``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
from _check import Call
from _faulty import ROOT, install, uninstall
from _inline import Workers
from msgspec.structs import replace

from hwbench import protocol
from hwbench.errors import UsageError
from hwbench.files import listed
from hwbench.measure import run as runner
from hwbench.measure.transports._base import SeatLostError, WorkerDiedError, WorkerTimedOutError
from hwbench.measure.transports.local import LocalSeat, LocalWorker
from hwbench.records import Case, Plan, Status
from hwbench.store import Run, read_run

pytestmark = pytest.mark.processes

HEAVY = pytest.mark.heavy
REPLICATES, CASES = 2, 12
SUITE = f"""
schema = 1
name = "faults"
[plan]
replicates = {REPLICATES}
budget_seconds = 0.005
timeout_seconds = 600
[[cases]]
workload = "linear"
direction = "forward"
shape = [[32, 16], [16, 32]]
tokens = [1, 2]
format = [{{ name = "dense" }}, {{ name = "low_rank", rank = [1, 2] }}]
"""


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "s.toml").write_text(SUITE)
    return tmp_path / "runs"


def command(out: Path, *options: str) -> list[str]:
    where = ["--suite", str(out.parent / "s.toml"), "--device", "fake", "--threads", "1"]
    return [sys.executable, "-m", "hwbench", "run", *where, "--out", str(out), *options]


def begun(out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(out), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait(process: subprocess.Popen[str], reached: Callable[[], object]) -> None:
    deadline = time.monotonic() + 300
    while not reached() and process.poll() is None:
        assert time.monotonic() < deadline, "the run never came so far"
        time.sleep(0.005)


def lines(out: Path) -> int:
    return sum(path.read_bytes().count(b'"line":"result"') for path in listed(out, "*.jsonl"))


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


def listening(*pids: int) -> list[str]:
    """Where these processes wait for connections, as the kernel lists it."""
    collected = []
    for pid in pids:
        links = [link.readlink() for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
        for kind in ("tcp", "tcp6"):
            table = Path(f"/proc/{pid}/net/{kind}")
            for row in table.read_text().splitlines()[1:] if table.exists() else []:
                _, address, _, state = row.split()[:4]
                if state == "0A" and Path(f"socket:[{row.split()[9]}]") in links:
                    collected.append(address)
    return collected


def whole(path: Path) -> Run:
    run = read_run(path)
    assert run.complete
    pairs = Counter((r.case, r.replicate) for r in run.results)
    assert set(pairs.values()) == {1}
    again = run.footer.state.get("contested", {"cases": 0, "replicates": 0})  # too close to call
    further = again["cases"] * again["replicates"]
    assert len(pairs) - further == REPLICATES * CASES == REPLICATES * len(run.planned)
    assert further == sum(replicate >= REPLICATES for _, replicate in pairs)
    return run


def resumed(path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The run gone on with, by workers of this process: complete, and every result there once."""
    monkeypatch.setattr("hwbench.measure.transports.local.LocalWorker", Workers())
    return whole(runner.resume(path))


# One worker


def test_a_worker_says_hello_answers_and_ends() -> None:
    seat = LocalSeat("fake", 1)
    worker = seat.start()
    try:
        assert (worker.hello.protocol, worker.hello.version) == (protocol.PROTOCOL, package())
        assert worker.hello.pid != os.getpid()
        result = worker.ask(protocol.PlanRequest(cases=[]), protocol.PlanReply, 60)
        assert result.fingerprint["device"]["name"] == "simulated machine"
        with pytest.raises(UsageError):
            worker.ask(protocol.DescribeRequest(names=["nothing"]), protocol.DescribeReply, 60)
        worker.ask(protocol.ForgetRequest(), protocol.ForgetReply, 60)  # it is still there
        os.kill(worker.hello.pid, signal.SIGSTOP)
        with pytest.raises(WorkerTimedOutError, match="did not end in time"):
            worker.ask(protocol.ForgetRequest(), protocol.ForgetReply, 0.05)
        with pytest.raises(WorkerDiedError, match="SIGKILL"):
            worker.ask(protocol.ForgetRequest(), protocol.ForgetReply, 60)
    finally:
        worker.close()
    assert not Path(f"/proc/{worker.hello.pid}/exe").exists()


def test_a_seat_that_is_let_go_while_its_worker_starts_keeps_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As Ctrl-C does it, from another thread."""
    seat, started = LocalSeat("fake", 1), list[LocalWorker]()

    def let_go(self: LocalWorker) -> protocol.Hello:
        started.append(self)
        seat.close()
        return hello(self)

    hello = LocalWorker._hello
    monkeypatch.setattr(LocalWorker, "_hello", let_go)
    with pytest.raises(SeatLostError, match="was let go"):
        seat.start()
    (worker,) = started
    assert worker._process.poll() is not None
    with pytest.raises(SeatLostError, match="was let go"):
        seat.start()


def test_what_a_dead_worker_started_ends_with_it(tmp_path: Path) -> None:
    """A worker that dies by itself, as of memory, while its compiler is at work."""
    script = tmp_path / "python"
    script.write_text(
        f"#!{sys.executable}\nimport pathlib, subprocess\n"
        'started = subprocess.Popen(["sleep", "300"], stdout=subprocess.DEVNULL)\n'
        f"pathlib.Path({str(tmp_path / 'number')!r}).write_text(str(started.pid))\n"
        "raise SystemExit(3)\n"
    )
    script.chmod(0o755)
    with pytest.raises(WorkerDiedError, match="exit code 3"):
        LocalWorker("fake", 1, str(script))
    number = int((tmp_path / "number").read_text())
    assert _ended(number)


def _ended(number: int) -> bool:
    """Whether a process is gone, or a zombie that nobody waits for, within a second."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def test_a_worker_that_keeps_memory_faults_no_more_and_has_a_process_of_its_own_read_a_case() -> (
    None
):
    """A step of btt takes 20 MB of blocks, of which glibc by itself gives back what it can."""
    large = Case(
        workload="linear", format="btt", knobs={"density": 0.5}, out_features=1024,
        in_features=1024, tokens=256, dtype="float32", direction="step", regime="hot",
        mode="eager", device="cpu",
    )  # fmt: skip
    small = replace(large, out_features=32, in_features=32, tokens=4)
    worker = LocalSeat("cpu", 1).start()
    try:
        result = worker.ask(protocol.PlanRequest(cases=[small, large]), protocol.PlanReply, 60)
        assert result.allocators == {"system": "", "kept": ""}
        alone = protocol.SoloRequest(
            planned=result.planned[0], replicate=0, seed=0, allocator="kept"
        )
        read = worker.ask(alone, protocol.SoloReply, 60).result
        rounds = protocol.ChunkRequest(
            members=result.planned[1:], anchor=None, replicate=0, seed=0,
            plan=Plan(budget_seconds=1.0, allocator="kept"),
        )  # fmt: skip
        timed = worker.ask(rounds, protocol.ChunkReply, 60).timed[large.id]
    finally:
        worker.close()
    (own,) = (m for m in read.measurements if m.quantity == "system_faults")
    assert len(own.values) == 1, own.note
    (faults,) = (m.values for m in timed.measurements if m.quantity == "minor_faults")
    assert median(faults) < 300  # over a thousand where glibc gives back


def test_processes_of_their_own_answer_die_and_are_replaced() -> None:
    from hwbench.meters import _own_process

    def answer(line: bytes) -> bytes:
        if line == b"die\n":
            os.kill(os.getpid(), signal.SIGKILL)
        if line == b"hang\n":
            time.sleep(60)
        if line == b"raise\n":
            raise ValueError("on purpose")
        return f"{line.decode().strip()} {os.getppid()} {os.getpid()}".encode()

    own = _own_process.start(answer, 1)
    try:
        first = own.ask(b"one")
        assert [own.ask(line) for line in (b"die", b"raise", b"hang")] == [None] * 3
        second = own.ask(b"two")
        assert first is not None
        assert second is not None
        result = [line.split() for line in (first, second)]
        assert [words[0] for words in result] == [b"one", b"two"]
        assert result[0][1] == result[1][1] != str(os.getpid()).encode()  # the same server
        assert result[0][2] != result[1][2]  # another process each
        os.kill(int(result[0][1]), signal.SIGKILL)
        os.waitpid(int(result[0][1]), 0)
        assert own.ask(b"nobody") is None
    finally:
        own.close()


def package() -> str:
    import hwbench

    return hwbench.__version__


def test_a_device_that_is_not_there_is_a_sentence_of_the_worker() -> None:
    with pytest.raises(UsageError, match="numbered from 0"):
        LocalWorker("fake:7", 1)


@HEAVY
@pytest.mark.parametrize("which", ["a signal", "an exit", "no end"])
def test_formats_that_take_their_worker_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """Each death costs a start of two workers; test_faults.py has workers of this process die."""
    names = {
        "a signal": {
            "segfault": (Status.CRASHED, "SIGSEGV"),
            "memory": (Status.OUT_OF_MEMORY, ""),
            "chatty": (Status.OK, None),
        },
        "an exit": {
            "latedeath": (Status.CRASHED, "exit code 3"),
            "exits": (Status.CRASHED, "exit code 0"),
        },
        "no end": {"hang": (Status.TIMED_OUT, "within 30 s")},
    }[which]
    names = {"dense": (Status.OK, None), **names}
    site = tmp_path / "site"
    site.mkdir()
    install(site, monkeypatch)
    request = {
        "schema": 1,
        "name": "faults",
        "plan": {"replicates": 1, "budget_seconds": 0.05, "timeout_seconds": 30.0},
        "cases": [
            {"workload": "linear", "direction": "forward", "shape": [16, 16], "tokens": [4],
             "format": [{"name": name} for name in names]}
        ],
    }  # fmt: skip
    try:
        run = read_run(runner.run(request, device="cpu", out=tmp_path, threads=1))
    finally:
        uninstall()
    assert run.complete
    actual = {run.planned[r.case].case.format: r for r in run.results}
    assert len(actual) == len(run.results) == len(names)
    for name, (status, words) in names.items():
        assert actual[name].status is status, name
        assert words is None or words in str(actual[name].reason), name
        assert bool(actual[name].values("time_seconds")) == (status is Status.OK)


def test_a_worker_finds_the_interpreter_and_the_paths_that_it_is_given(tmp_path: Path) -> None:
    python, result = tmp_path / "python", tmp_path / "told"
    python.write_text(f'#!/bin/sh\necho "$PYTHONPATH" > {result}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    worker = LocalWorker("fake", 1, str(python), [str(ROOT), "elsewhere"])
    try:
        assert worker.ask(protocol.ForgetRequest(), protocol.ForgetReply, 60).free_bytes > 0
    finally:
        worker.close()
    assert result.read_text() == f"{ROOT}{os.pathsep}elsewhere\n"


def test_a_run_of_real_workers_is_that_of_workers_in_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lets all other tests do without processes: not a number of it is another one."""
    script = {"seed": 1, "replicate": 0, "replicate_noise": 0.02, "case_noise": 0.02}
    monkeypatch.setenv("HWBENCH_FAKE", json.dumps(script))
    formats = [{"name": "dense"}, {"name": "low_rank", "rank": [1, 2]}, {"name": "csr"}]
    formats[-1]["density"] = 0.5
    request = {
        "schema": 1,
        "name": "same",
        "plan": {"replicates": 1, "budget_seconds": 10.0},  # precision ends it
        "cases": [
            {"workload": "linear", "direction": ["forward", "step"], "shape": [32, 16],
             "tokens": [1, 8], "format": formats},
            {"workload": "projection", "shape": [16, 16], "format": [formats[1]]},
        ],
    }  # fmt: skip
    real = read_run(runner.run(request, device="fake", out=tmp_path / "real", threads=1))
    monkeypatch.setattr("hwbench.measure.transports.local.LocalWorker", Workers())
    inline = read_run(runner.run(request, device="fake", out=tmp_path / "inline", threads=1))
    assert real.planned == inline.planned
    assert len(real.results) == 4 * 4 + 2
    timed = ("first_call_seconds", "compile_seconds")
    for ours, theirs in zip(inline.results, real.results, strict=True):
        for one, other in zip(ours.measurements, theirs.measurements, strict=True):
            assert one == other or one.quantity in timed, (ours.case, one, other)
        assert replace(ours, measurements=[]) == replace(theirs, measurements=[])


# A run


@HEAVY
@pytest.mark.parametrize("results", [None, 0, 1, 11, 12, 13, 20])
def test_a_parent_that_is_killed_at_any_stage_loses_nothing_that_was_written(
    out: Path, results: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = begun(out)
    if results is None:  # before the run file is there: while it plans
        wait(process, lambda: children(process.pid))
    else:
        wait(process, lambda: listed(out, "*.jsonl") and lines(out) >= results)
    workers = children(process.pid)
    process.kill()
    process.communicate()
    gone(workers)
    files = listed(out, "*.jsonl")
    if results is None:
        assert not files
        return
    before = {(r.case, r.replicate): r for r in read_run(files[0]).results}
    assert len(before) >= results
    after = {(r.case, r.replicate): r for r in resumed(files[0], monkeypatch).results}
    assert all(after[key] == result for key, result in before.items())


def kill(child: int) -> bool:
    """Whether the process was there to be killed."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
        return True
    return False


def gone(workers: list[int]) -> None:
    """No worker outlives its parent."""
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{worker}/exe").exists() for worker in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.01)


@HEAVY
@pytest.mark.parametrize("ends", [signal.SIGTERM, signal.SIGINT])
def test_ctrl_c_and_sigterm_are_130_and_the_run_goes_on(
    ends: signal.Signals, out: Path, hwbench: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the process is there, no other goes on with its run, and it listens on no port."""
    process = begun(out)
    wait(process, lambda: lines(out) >= 2)
    workers = children(process.pid)
    process.send_signal(signal.SIGSTOP)
    (path,) = listed(out, "*.jsonl")
    refused = hwbench("run", "--resume", str(path))
    listeners = listening(process.pid, *workers)
    process.send_signal(signal.SIGCONT)
    process.send_signal(ends)
    _, error = process.communicate(timeout=60)
    assert (refused[0], "is being written by another process" in refused[2]) == (2, True)
    assert workers
    assert listeners == []
    assert process.returncode == 130
    assert "go on with --resume" in error
    gone(workers)
    (path,) = listed(out, "*.jsonl")
    before = read_run(path)
    assert not before.complete
    after = {(r.case, r.replicate): r for r in resumed(path, monkeypatch).results}
    assert all(after[r.case, r.replicate] == r for r in before.results)


def test_who_listens_is_seen() -> None:
    before = listening(os.getpid())
    with socket.create_server(("127.0.0.1", 0)) as server:
        (actual,) = set(listening(os.getpid())) - set(before)
        assert int(actual.rpartition(":")[2], 16) == server.getsockname()[1]


@HEAVY
@pytest.mark.parametrize("results", [0, 1, 13])
def test_a_worker_that_is_killed_takes_one_case_with_it_at_most(out: Path, results: int) -> None:
    process = begun(out)
    killed: list[int] = []
    wait(process, lambda: listed(out, "*.jsonl") and lines(out) >= results)
    wait(process, lambda: killed.extend(filter(kill, children(process.pid))) or killed)
    _, error = process.communicate(timeout=500)
    (path,) = listed(out, "*.jsonl")
    run = whole(path)
    bad = [r for r in run.results if r.status is not Status.OK]
    assert killed
    # a case that failed is answered without a measurement in the replicates that follow
    assert len({r.case for r in bad}) <= 1
    assert all("SIGKILL" in r.reason for r in bad)
    assert process.returncode == (5 if bad else 0), error


@HEAVY
def test_a_full_disk_loses_nothing_that_was_written(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (16000, resource.RLIM_INFINITY));"
        f"sys.argv = ['hwbench', *{command(out)[3:]!r}]; from hwbench.cli import main; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2, ended.stderr
    assert "Cannot write to" in ended.stderr
    assert "--resume" in ended.stderr
    (path,) = listed(out, "*.jsonl")
    before = read_run(path).results
    assert 0 < len(before) < REPLICATES * CASES
    assert resumed(path, monkeypatch).results[: len(before)] == before


# The command line


def test_the_command_is_there_and_output_that_nobody_reads_is_not_an_error() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "hwbench", "run", "--suite", "smoke", "--device", "fake:7"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert (process.returncode, process.stdout) == (2, "")
    # A machine that other tests keep busy is warned of first.
    assert process.stderr.splitlines()[-1].startswith("hwbench: ")
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-m", "hwbench", "list", "formats"],
        stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, "")
