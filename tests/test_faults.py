"""What breaks around a run, through the command line: nothing that was measured is lost."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from _faulty import ROOT, install, uninstall

from hwbench.errors import RunFileError
from hwbench.records import Status
from hwbench.store import Run, read_run

pytestmark = pytest.mark.heavy

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


def command(out: Path, *options: str) -> list[str]:
    where = ["--suite", str(out.parent / "s.toml"), "--device", "fake", "--threads", "1"]
    return [sys.executable, "-m", "hwbench", "run", *where, "--out", str(out), *options]


def begun(out: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(out, *options), cwd=ROOT, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def resumed(path: Path) -> Run:
    """The run after --resume: complete, and every result there once."""
    again = [sys.executable, "-m", "hwbench", "run", "--resume", str(path)]
    ended = subprocess.run(again, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    return whole(path)


def whole(path: Path) -> Run:
    run = read_run(path)
    assert run.complete
    pairs = Counter((r.case, r.replicate) for r in run.results)
    assert set(pairs.values()) == {1}
    assert len(pairs) == REPLICATES * CASES == REPLICATES * len(run.planned)
    return run


def wait(process: subprocess.Popen[str], reached) -> None:
    deadline = time.monotonic() + 300
    while not reached() and process.poll() is None:
        assert time.monotonic() < deadline, "the run never came so far"
        time.sleep(0.005)


def lines(out: Path) -> int:
    return sum(path.read_bytes().count(b'"line":"result"') for path in out.glob("*.jsonl"))


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


@pytest.mark.parametrize("results", [None, 0, 1, 11, 12, 13, 30])
def test_a_parent_that_is_killed_at_any_stage_loses_nothing_that_was_written(out: Path, results):
    process = begun(out)
    if results is None:  # before the run file is there: while it plans
        wait(process, lambda: children(process.pid))
    else:
        wait(process, lambda: list(out.glob("*.jsonl")) and lines(out) >= results)
    process.kill()
    process.communicate()
    files = list(out.glob("*.jsonl"))
    if results is None:
        assert not files
        return
    before = {(r.case, r.replicate): r for r in read_run(files[0]).results}
    assert len(before) >= results
    after = {(r.case, r.replicate): r for r in resumed(files[0]).results}
    assert all(after[key] == result for key, result in before.items())


@pytest.mark.parametrize("results", [0, 1, 13])
def test_a_worker_that_is_killed_takes_one_case_with_it_at_most(out: Path, results: int):
    process = begun(out)
    wait(process, lambda: list(out.glob("*.jsonl")) and lines(out) >= results)
    for child in children(process.pid):
        os.kill(child, signal.SIGKILL)
    _, error = process.communicate(timeout=500)
    (path,) = out.glob("*.jsonl")
    run = whole(path)
    bad = [r for r in run.results if r.status is not Status.OK]
    # a case that failed is answered without a measurement in the replicates that follow
    assert len({r.case for r in bad}) <= 1
    assert all("SIGKILL" in r.reason for r in bad)
    assert process.returncode == (5 if bad else 0), error


def test_two_runs_into_one_folder_are_two_files(out: Path):
    both = [begun(out), begun(out)]
    assert [p.communicate()[1] for p in both] == ["", ""]
    assert [p.returncode for p in both] == [0, 0]
    paths = list(out.glob("*.jsonl"))
    assert len(paths) == 2
    for path in paths:
        whole(path)


def test_a_run_that_is_being_written_is_not_resumed(out: Path):
    process = begun(out)
    wait(process, lambda: lines(out) >= 1)
    process.send_signal(signal.SIGSTOP)
    try:
        (path,) = out.glob("*.jsonl")
        again = [sys.executable, "-m", "hwbench", "run", "--resume", str(path)]
        ended = subprocess.run(again, cwd=ROOT, capture_output=True, text=True, check=False)
    finally:
        process.send_signal(signal.SIGCONT)
    process.communicate()
    assert ended.returncode == 2
    assert "is being written by another process" in ended.stderr
    whole(path)


@pytest.mark.parametrize("where", ["a file", "/proc"])
def test_a_folder_that_cannot_be_written_is_a_sentence(out: Path, where: str):
    if where == "a file":
        out.write_text("not a folder")
        where = str(out)
    ended = subprocess.run(
        command(Path(out), "--out", where), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("hwbench: Cannot write a run into")
    assert ended.stderr.count("\n") == 1


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


@pytest.mark.parametrize("size", ["16k", "24k"])
def test_a_full_disk_is_a_sentence_and_the_run_is_resumed(out: Path, size: str):
    with small_disk(out, size):
        process = begun(out)
        _, error = process.communicate()
        (path,) = out.glob("*.jsonl")
        assert process.returncode == 2
        assert "No space left on device" in error
        before = {(r.case, r.replicate): r for r in read_run(path).results}
        subprocess.run(["mount", "-o", "remount,size=4m", str(out)], check=True)
        after = {(r.case, r.replicate): r for r in resumed(path).results}
        assert all(after[key] == result for key, result in before.items())


def test_a_disk_without_room_for_the_plan_is_a_sentence_and_no_file(out: Path):
    with small_disk(out, "4k"):
        process = begun(out)
        _, error = process.communicate()
        assert process.returncode == 2
        assert error == (
            f"hwbench: Cannot write a run into {out}: No space left on device; choose another "
            "with --out.\n"
        )
        assert not list(out.iterdir())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    (folder / "s.toml").write_text(SUITE.replace("[1, 2]\nformat", "[1]\nformat"))
    subprocess.run(command(folder / "runs", "-r", "1"), cwd=ROOT, check=True, capture_output=True)
    (path,) = (folder / "runs").glob("*.jsonl")
    return path


def test_a_run_cut_off_at_any_byte_is_read_up_to_its_last_whole_line(
    finished: Path, tmp_path: Path
):
    data = finished.read_bytes()
    header = data.index(b"\n") + 1
    cut = tmp_path / "cut.jsonl"
    seen = 0
    for end in range(len(data)):
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


def test_a_flipped_bit_never_ends_in_a_traceback(finished: Path, tmp_path: Path, hwbench):
    data = finished.read_bytes()
    flipped = tmp_path / "flipped.jsonl"
    rng = random.Random(0)
    codes = Counter()
    for at in rng.sample(range(len(data)), 150):
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
def test_a_clock_that_jumps_changes_no_time_and_loses_nothing(out: Path, jump: int, tmp_path: Path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import time, itertools\n"
        "real, calls = time.time, itertools.count()\n"
        f"time.time = lambda: real() + (0 if next(calls) < 20 else {jump})\n"
    )
    ended = subprocess.run(
        command(out), cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": f"{site}:{ROOT}"},
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    (path,) = out.glob("*.jsonl")
    run = whole(path)
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


def test_formats_that_break_the_rules_of_a_worker(tmp_path: Path, monkeypatch):
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
        ended = subprocess.run(
            [*command(tmp_path / "runs"), "--device", "cpu"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        uninstall()
    assert ended.returncode == 5, ended.stderr
    (path,) = (tmp_path / "runs").glob("*.jsonl")
    run = read_run(path)
    found = {run.planned[r.case].case.format: r for r in run.results}
    assert {name: r.status for name, r in found.items() if name != "dense"} == MISBEHAVE
    assert found["dense"].status is Status.OK
    late = "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert found["raiseslate"].reason == late
    assert "default dtype from torch.float32 to torch.float64" in found["settings"].reason
    assert "threads from 1 to 3" in found["settings"].reason
