"""Run files: readable when cut off anywhere, never silently wrong, one writer at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from hwbench import files
from hwbench.errors import RunFileError
from hwbench.records import (
    SCHEMA,
    Case,
    Environment,
    Footer,
    Header,
    Measurement,
    Plan,
    Planned,
    PlannedLine,
    Result,
    ResultLine,
    Status,
)
from hwbench.store import RunWriter, list_runs, read_run

CASE = Case(
    workload="linear",
    format="dense",
    out_features=8,
    in_features=4,
    dtype="float32",
    device="cpu",
    tokens=2,
    direction="forward",
    regime="hot",
    mode="eager",
)
HEADER = Header(
    schema=SCHEMA,
    run="20260101-000000-test-cpu-0000",
    created="2026-01-01T00:00:00+00:00",
    version="0",
    suite="test",
    about="",
    plan=Plan(),
    seed=0,
    device="cpu",
    environment=Environment(fingerprint={"name": "x"}),
)
LINES = [PlannedLine(id=CASE.id, planned=Planned(case=CASE))]


def result(replicate: int) -> ResultLine:
    return ResultLine(
        result=Result(
            case=CASE.id,
            replicate=replicate,
            seed=replicate,
            status=Status.OK,
            measurements=[Measurement(quantity="time_seconds", unit="s", values=[1e-3, 2e-3])],
        )
    )


@pytest.fixture
def written(tmp_path: Path) -> Path:
    writer = RunWriter.create(tmp_path, HEADER, LINES)
    writer.append(result(0))
    writer.append(result(1))
    writer.append(Footer(finished="now", wall_seconds=1.0))
    writer.close()
    return writer.path


def test_what_was_written_is_read_back(written: Path):
    run = read_run(written)
    assert run.header == HEADER
    assert run.planned == {CASE.id: LINES[0].planned}
    assert run.results == [result(0).result, result(1).result]
    assert run.complete
    assert not run.truncated
    assert run.done == {(CASE.id, 0), (CASE.id, 1)}
    assert list_runs(written.parent) == [written]


def test_resuming_cuts_off_the_unfinished_line(written: Path):
    data = written.read_bytes()
    keep = data.rindex(b"\n", 0, data.index(b'"replicate":1')) + 1
    written.write_bytes(data[: keep + 30])
    run = read_run(written)
    assert run.truncated
    writer = RunWriter.resume(run)
    writer.append(result(1))
    writer.close()
    assert read_run(written).results == [result(0).result, result(1).result]


def test_a_damaged_line_is_named(written: Path):
    lines = written.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"ok"', b'"okay"')
    written.write_bytes(b"".join(lines))
    with pytest.raises(RunFileError, match="Line 3 of .* is damaged"):
        read_run(written)


def test_a_result_of_an_unknown_case_is_refused(written: Path):
    data = written.read_bytes()
    written.write_bytes(data.replace(b'"case":"linear/forward', b'"case":"linear/backward'))
    with pytest.raises(RunFileError, match="does not describe"):
        read_run(written)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "holds no whole line"),
        (b"\n", "not JSON"),
        (b"not json\n", "not JSON"),
        (b"[]\n", "not a header"),
        (b'{"line":"footer","schema":1}\n', "not a header"),
        (b'{"line":"header","schema":99}\n', "has schema 99"),
        (b'{"line":"header","schema":1}\n', "The header of .* is damaged"),
        (b"\xff\xfe\x00\n", "not JSON"),
    ],
)
def test_what_is_not_a_run_is_refused_in_words(tmp_path: Path, text: bytes, words: str):
    path = tmp_path / "x.jsonl"
    path.write_bytes(text)
    with pytest.raises(RunFileError, match=words):
        read_run(path)


def test_one_writer_at_a_time(written: Path):
    first = RunWriter.resume(read_run(written))
    with pytest.raises(RunFileError, match="being written by another process"):
        RunWriter.resume(read_run(written))
    first.close()
    RunWriter.resume(read_run(written)).close()


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFileError, match=r"Cannot write a run into .*choose another with --out"):
        RunWriter.create(tmp_path / "file" / "runs", HEADER, LINES)


@pytest.mark.parametrize("room", [0, 1, 100, 400])
def test_a_run_that_cannot_be_begun_leaves_no_file(tmp_path: Path, room: int):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(RunFileError, match=r"Cannot write a run into .*: File too large; "):
            RunWriter.create(tmp_path, HEADER, LINES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
    RunWriter.create(tmp_path, HEADER, LINES).close()  # the same name: nothing is in its way
    assert list(read_run(tmp_path / f"{HEADER.run}.jsonl").planned) == [CASE.id]


def test_a_run_that_is_there_is_never_begun_anew(written: Path):
    before = written.read_bytes()
    for _ in range(2):
        with pytest.raises(RunFileError, match=r"Cannot write a run into .*: File exists; "):
            RunWriter.create(written.parent, HEADER, LINES)
    assert written.read_bytes() == before


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file grows beyond so many bytes for a while: a write is short, and the next refused."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("resumed", [False, True])
def test_half_a_line_is_cut_off_and_none_is_written_behind_it(tmp_path: Path, resumed: bool):
    """Of several devices one may have a result when the disk has space again."""
    writer = RunWriter.create(tmp_path, HEADER, LINES)
    writer.append(result(0))
    if resumed:
        writer.close()
        writer = RunWriter.resume(read_run(writer.path))
    before = writer.path.read_bytes()
    with (
        room_for(len(before) + 30),
        pytest.raises(RunFileError, match="File too large.*free some space and go on") as first,
    ):
        writer.append(result(1))
    assert writer.path.read_bytes() == before
    with pytest.raises(RunFileError) as second:
        writer.append(result(2))
    assert str(second.value) == str(first.value)
    writer.close()
    assert writer.path.read_bytes() == before
    again = RunWriter.resume(read_run(writer.path))
    again.append(result(2))
    again.close()
    assert read_run(writer.path).results == [result(0).result, result(2).result]


def test_half_a_line_that_cannot_be_cut_off_is_told_and_stays_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(number: int, size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    writer = RunWriter.create(tmp_path, HEADER, LINES)
    writer.append(result(0))
    size = writer.path.stat().st_size
    with monkeypatch.context() as patch, room_for(size + 30):
        patch.setattr(os, "ftruncate", broken)
        with pytest.raises(
            RunFileError, match=r"half a line that cannot be cut off \(Input/output"
        ):
            writer.append(result(1))
    with pytest.raises(RunFileError, match="half a line"):
        writer.append(result(2))
    writer.close()
    run = read_run(writer.path)
    assert run.truncated
    assert (run.size, run.results) == (size, [result(0).result])
    RunWriter.resume(run).close()
    assert not read_run(writer.path).truncated


def test_a_run_name_cannot_leave_its_folder(tmp_path: Path):
    with pytest.raises(RunFileError, match="not a name"):
        RunWriter.create(tmp_path, replace(HEADER, run="../evil"), LINES)


def test_a_missing_file_is_a_sentence(tmp_path: Path):
    with pytest.raises(RunFileError, match="Cannot read the run"):
        read_run(tmp_path / "none.jsonl")


@pytest.mark.parametrize("limit", ["MOST_OF_A_RUN", "MOST_OF_MEMORY"])
@pytest.mark.parametrize("resumed", [False, True])
def test_a_run_never_grows_beyond_what_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, resumed: bool
) -> None:
    monkeypatch.setattr(files, limit, 60_000)
    header = replace(HEADER, plan=Plan(replicates=1000))
    writer = RunWriter.create(tmp_path, header, LINES)
    refused = ""
    for written in range(1000):
        if resumed and written % 5 == 4:
            writer.close()
            writer = RunWriter.resume(read_run(writer.path))
        try:
            writer.append(result(written))
        except RunFileError as error:
            refused = str(error)
            break
    writer.close()
    assert "larger than what hwbench reads" in refused
    run = read_run(writer.path)
    assert 5 < len(run.results) == written
    assert not run.truncated
