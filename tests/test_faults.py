"""What breaks around a run, with workers in this process: nothing that was measured is lost.

Every fault here has a twin in ``test_processes.py`` that happens to a real process.
"""

from __future__ import annotations

import contextlib
import json
import random
import secrets
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest
from _check import Call
from _faulty import install, uninstall
from _inline import Workers, died

from hwbench import protocol
from hwbench.errors import RunFileError
from hwbench.measure import run as runner
from hwbench.measure import schedule
from hwbench.records import Status
from hwbench.store import Run, read_run

REPLICATES, CASES = 3, 12
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
def out(tmp_path: Path) -> Path:
    (tmp_path / "s.toml").write_text(SUITE)
    return tmp_path / "runs"


def begun(out: Path, hwbench: Call, *options: str) -> tuple[int, str]:
    """What ``hwbench run`` ends with, and says."""
    where = ["--suite", str(out.parent / "s.toml"), "--device", "fake", "--threads", "1"]
    code, _, err = hwbench("run", *where, "--out", str(out), *options)
    return code, err


def resumed(path: Path, hwbench: Call) -> Run:
    """The run after --resume: complete, and every result there once."""
    code, _, err = hwbench("run", "--resume", str(path))
    assert (code, err) == (0, "")
    return whole(path)


def whole(path: Path) -> Run:
    run = read_run(path)
    assert run.complete
    pairs = Counter((r.case, r.replicate) for r in run.results)
    assert set(pairs.values()) == {1}
    assert len(pairs) == REPLICATES * CASES == REPLICATES * len(run.planned)
    return run


MEASURE = (protocol.SoloRequest, protocol.ChunkRequest, protocol.ForgetRequest)
REQUESTS = 80
"""About so many are asked of all workers of a run: four groups of three cases, three replicates."""


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.heavy)])
def test_a_worker_that_dies_at_any_request_takes_one_case_with_it_at_most(
    out: Path, workers: Workers, step: int
):
    dead = 0
    for number in range(0, REQUESTS, step):
        workers.faults.clear()
        workers.act_out(died(), request=MEASURE, after=number)
        path = runner.run(str(out.parent / "s.toml"), device="fake", out=out, threads=1)
        run = whole(path)
        bad = [r for r in run.results if r.status is not Status.OK]
        # a case that failed is answered without a measurement in the replicates that follow
        assert len({r.case for r in bad}) <= 1, number
        assert all("SIGKILL" in r.reason for r in bad), number
        dead += bool(bad)
        if workers.faults[0].times:  # the run asks no more: it never came to that
            assert number > 50
            break
    else:
        pytest.fail(f"a run asks more than {REQUESTS} times")
    assert dead * step > 20


def test_two_runs_of_one_second_that_draw_one_number_are_two_files(
    out: Path, monkeypatch: pytest.MonkeyPatch
):
    numbers, real = iter(["aaaa", "aaaa", "bbbb"]), secrets.token_hex
    monkeypatch.setattr(
        secrets, "token_hex", lambda count: next(numbers) if count == 2 else real(count)
    )

    class Clock(datetime):
        """A clock that stands still."""

        @classmethod
        def now(cls, zone: tzinfo | None = None) -> datetime:
            return datetime(2026, 1, 2, tzinfo=zone)

    monkeypatch.setattr(runner, "datetime", Clock)
    paths = [
        runner.run(str(out.parent / "s.toml"), device="fake", out=out, threads=1) for _ in range(2)
    ]
    assert [path.stem.rpartition("-")[2] for path in paths] == ["aaaa", "bbbb"]
    assert [whole(path).header.run for path in paths] == [path.stem for path in paths]


def test_two_runs_into_one_folder_are_two_files(out: Path):
    def run() -> None:
        runner.run(str(out.parent / "s.toml"), device="fake", out=out, threads=1)

    both = [threading.Thread(target=run) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    paths = list(out.glob("*.jsonl"))
    assert len(paths) == 2
    for path in paths:
        whole(path)


def test_a_run_that_is_being_written_is_not_resumed(out: Path, hwbench: Call, workers: Workers):
    recorded = []

    def meanwhile() -> BaseException:
        (path,) = out.glob("*.jsonl")
        recorded.append(hwbench("run", "--resume", str(path)))
        return KeyboardInterrupt()

    workers.act_out(meanwhile, request=protocol.ChunkRequest, after=1)
    assert begun(out, hwbench)[0] == 130
    ((code, _, error),) = recorded
    assert code == 2
    assert "is being written by another process" in error
    (path,) = out.glob("*.jsonl")
    resumed(path, hwbench)


@pytest.mark.parametrize("where", ["a file", "/proc"])
def test_a_folder_that_cannot_be_written_is_a_sentence(out: Path, where: str, hwbench: Call):
    if where == "a file":
        out.write_text("not a folder")
        where = str(out)
    code, error = begun(out, hwbench, "--out", where)
    assert code == 2
    assert error.startswith("hwbench: Cannot write a run into")
    assert error.count("\n") == 1


@contextlib.contextmanager
def small_disk(out: Path, size: str) -> Iterator[None]:
    """Mount a disk of that size on the folder, where this user may."""
    out.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(out)],
        capture_output=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("this user may not mount a file system; other tests try RLIMIT_FSIZE")
    try:
        yield
    finally:
        subprocess.run(["umount", str(out)], check=True)


@pytest.mark.parametrize("size", ["16k", pytest.param("24k", marks=pytest.mark.heavy)])
def test_a_full_disk_is_a_sentence_and_the_run_is_resumed(out: Path, size: str, hwbench: Call):
    with small_disk(out, size):
        code, error = begun(out, hwbench)
        (path,) = out.glob("*.jsonl")
        assert code == 2
        assert "No space left on device" in error
        before = {(r.case, r.replicate): r for r in read_run(path).results}
        subprocess.run(["mount", "-o", "remount,size=4m", str(out)], check=True)
        after = {(r.case, r.replicate): r for r in resumed(path, hwbench).results}
        assert all(after[key] == result for key, result in before.items())


def test_a_disk_without_room_for_the_plan_is_a_sentence_and_no_file(out: Path, hwbench: Call):
    with small_disk(out, "4k"):
        code, error = begun(out, hwbench)
        assert code == 2
        assert error == (
            f"hwbench: Cannot write a run into {out}: No space left on device; choose another "
            "with --out.\n"
        )
        assert not list(out.iterdir())


@pytest.fixture
def finished(out: Path) -> Path:
    (out.parent / "s.toml").write_text(SUITE.replace("[1, 2]\nformat", "[1]\nformat"))
    return runner.run(str(out.parent / "s.toml"), device="fake", out=out, threads=1, replicates=1)


@pytest.mark.parametrize("step", [17, pytest.param(1, marks=pytest.mark.heavy)])
def test_a_run_cut_off_at_any_byte_is_read_up_to_its_last_whole_line(
    finished: Path, tmp_path: Path, step: int
):
    data = finished.read_bytes()
    header = data.index(b"\n") + 1
    cut = tmp_path / "cut.jsonl"
    seen = 0
    ends = {at + near for at, byte in enumerate(data) if byte == 10 for near in (0, 1, 2)}
    for end in sorted({*range(0, len(data), step), *(e for e in ends if e < len(data))}):
        cut.write_bytes(data[:end])
        if end < header:
            with pytest.raises(RunFileError):
                read_run(cut)
            continue
        run = read_run(cut)
        lines = data[header:end].count(b"\n")
        assert len(run.planned) + len(run.results) == lines
        assert len(run.results) >= seen
        assert run.truncated == (data[end - 1 : end] != b"\n")
        assert not run.complete
        seen = len(run.results)
    assert seen > 0


@pytest.mark.parametrize("bits", [40, pytest.param(150, marks=pytest.mark.heavy)])
def test_a_flipped_bit_never_ends_in_a_traceback(
    finished: Path, tmp_path: Path, hwbench: Call, bits: int
):
    data = finished.read_bytes()
    flipped = tmp_path / "flipped.jsonl"
    rng = random.Random(0)
    codes = Counter()
    for at in rng.sample(range(len(data)), bits):
        changed = bytearray(data)
        changed[at] ^= 1 << rng.randrange(8)
        flipped.write_bytes(changed)
        code, _, error = hwbench("export", str(flipped), "--to", "csv", "--out", "o.csv")
        codes[code] += 1
        assert "Traceback" not in error
    assert set(codes) <= {0, 2}
    assert codes[2] > 0


@pytest.mark.parametrize("schema", [2, "1", None])
def test_a_line_or_a_header_of_another_schema_is_refused(finished: Path, tmp_path: Path, schema):
    text = finished.read_text().splitlines()
    other = tmp_path / "other.jsonl"
    header = json.loads(text[0]) | {"schema": schema}
    other.write_text("\n".join([json.dumps(header), *text[1:]]) + "\n")
    with pytest.raises(RunFileError, match="schema|not a header"):
        read_run(other)
    other.write_text("\n".join([*text[:2], '{"line":"later","x":1}', *text[2:]]) + "\n")
    with pytest.raises(RunFileError, match="Line 3 .* is damaged"):
        read_run(other)


@pytest.mark.parametrize("jump", [-86400, 86400])
def test_a_clock_that_jumps_changes_no_time_and_loses_nothing(
    out: Path, jump: int, monkeypatch: pytest.MonkeyPatch, workers: Workers
):
    class Clock(datetime):
        """The date and time of the machine, set anew while the run is on its way."""

        @classmethod
        def now(cls, zone: tzinfo | None = None) -> datetime:
            return datetime.now(zone) + timedelta(seconds=jump * (len(workers.started) > 2))

    monkeypatch.setattr(runner, "datetime", Clock)
    monkeypatch.setattr(schedule, "datetime", Clock)
    path = runner.run(str(out.parent / "s.toml"), device="fake", out=out, threads=1)
    run = whole(path)
    created, finished = map(datetime.fromisoformat, (run.header.created, run.footer.finished))
    assert abs((finished - created).total_seconds()) > 86400 / 2, "the clock did not jump"
    assert 0 < run.footer.wall_seconds < 86400
    assert all(v > 0 for r in run.results for v in r.values("time_seconds"))


MISBEHAVE = {
    "oomprepare": Status.OUT_OF_MEMORY,
    "memory": Status.OUT_OF_MEMORY,
    "oombackward": Status.OUT_OF_MEMORY,
    "exits": Status.CRASHED,
    "wrongdtype": Status.WRONG,
    "leaks": Status.OK,
    "settings": Status.WRONG,
    "nograd": Status.CRASHED,
    "raiseslate": Status.CRASHED,
    "tame": Status.OK,
}


def test_formats_that_break_the_rules_of_a_worker(tmp_path: Path, monkeypatch, hwbench: Call):
    site = tmp_path / "site"
    site.mkdir()
    install(site, monkeypatch)
    formats = ", ".join(f'{{ name = "{name}" }}' for name in ["dense", *MISBEHAVE])
    (tmp_path / "s.toml").write_text(
        'schema = 1\nname = "rules"\n[plan]\nreplicates = 1\nbudget_seconds = 0.005\n'
        'timeout_seconds = 300\n[[cases]]\nworkload = "linear"\ndirection = "step"\n'
        f"shape = [16, 16]\ntokens = [4]\nformat = [{formats}]\n"
    )
    try:
        code, error = begun(tmp_path / "runs", hwbench, "--device", "cpu")
    finally:
        uninstall()
    assert code == 5, error
    (path,) = (tmp_path / "runs").glob("*.jsonl")
    run = read_run(path)
    actual = {run.planned[r.case].case.format: r for r in run.results}
    assert {name: r.status for name, r in actual.items() if name != "dense"} == MISBEHAVE
    assert actual["dense"].status is Status.OK
    late = "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert actual["raiseslate"].reason == late
    assert "default dtype from torch.float32 to torch.float64" in actual["settings"].reason
    assert "threads from 1 to 3" in actual["settings"].reason
