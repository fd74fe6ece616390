"""Nothing changes between a check and what follows from it: locks, outputs, links, odd files."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
from pathlib import Path
from typing import Any

import pytest
from _check import Call, kept, made, one_sentence
from _tiers import sampled
from test_store import HEADER, LINES, result

from hwbench import files
from hwbench.errors import RunFileError
from hwbench.records import Footer
from hwbench.store import RunWriter, read_run
from hwbench.studies import baseline

END = Footer(finished="now", wall_seconds=1.0)


def begun(folder: Path) -> Path:
    writer = RunWriter.create(folder, HEADER, LINES)
    writer.append(result(0))
    writer.close()
    return writer.path


# --- resuming ----------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [1, 2, 3])
def test_what_was_written_after_the_reading_is_kept(tmp_path: Path, more: int):
    path = begun(tmp_path)
    stale = read_run(path)
    other = RunWriter.resume(read_run(path))
    other.append(*(result(1 + each) for each in range(more)))
    other.close()
    whole = path.read_bytes()
    writer = RunWriter.resume(stale)
    writer.close()
    assert path.read_bytes() == whole
    assert len(stale.done) == 1 + more


def test_a_run_that_was_completed_meanwhile_is_left_as_it_is(tmp_path: Path):
    path = begun(tmp_path)
    stale = read_run(path)
    other = RunWriter.resume(read_run(path))
    other.append(result(1), END)
    other.close()
    whole = path.read_bytes()
    with pytest.raises(RunFileError, match="was completed by another process"):
        RunWriter.resume(stale)
    assert path.read_bytes() == whole
    RunWriter.resume(read_run(path)).close()  # the lock was let go


def test_a_file_that_took_the_place_of_the_run_is_not_cut(tmp_path: Path):
    path = begun(tmp_path)
    stale = read_run(path)
    path.unlink()
    path.write_text("something else\n")
    with pytest.raises(RunFileError):
        RunWriter.resume(stale)
    assert path.read_text() == "something else\n"


# --- file systems that lack something ----------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_folder_without_hard_links_holds_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    path = begun(tmp_path)
    assert read_run(path).done
    assert [*tmp_path.iterdir()] == [path]
    before = path.read_bytes()
    with pytest.raises(RunFileError, match="File exists"):
        begun(tmp_path)
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]


def test_a_folder_without_locks_holds_a_run_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="has no locks"):
        path = begun(tmp_path)
    assert read_run(path).done


# --- outputs -----------------------------------------------------------------------------------

OVER = [
    ["report", "a.jsonl", "b.jsonl", "-o", "{}"],
    ["report", "nights", "-o", "{}"],
    ["compare", "a.jsonl", "b.jsonl", "-o", "{}"],
    ["history", "nights", "-o", "{}"],
    ["export", "a.jsonl", "--to", "csv", "-o", "{}"],
    ["export", "a.jsonl", "--to", "json", "-o", "{}"],
    ["check", "a.jsonl", "-b", "b.jsonl", "--junit", "{}"],
    ["check", "a.jsonl", "-b", "b.jsonl", "--markdown", "{}"],
    ["check", "a.jsonl", "-b", "nights", "--json-out", "{}"],
    ["plot", "a.jsonl", "--kind", "pareto", "-o", "{}"],
    ["profile", "-f", "dense", "--shape", "8x8", "--device", "cpu", "--trace", "{}"],
]


@pytest.fixture
def runs(hwbench: Call) -> Path:
    Path(kept(made(9))).rename("a.jsonl")
    Path(kept(made(2))).rename("b.jsonl")
    Path(kept(made(3))).rename("unread.jsonl")
    for day in range(4, 8):
        kept(made(day), "nights")
    Path("link.jsonl").symlink_to("a.jsonl")
    os.link("b.jsonl", "hard.html")
    return Path.cwd()


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("arguments", OVER, ids=lambda words: " ".join(words[:4]))
def test_no_output_is_written_over_a_run(hwbench: Call, runs: Path, arguments: list[str]):
    night = str(next(iter(Path("nights").iterdir())))
    before = _bytes(runs)
    for target in ("a.jsonl", "b.jsonl", "unread.jsonl", "link.jsonl", "hard.html", night):
        code, _, err = hwbench(*(word.format(target) for word in arguments))
        assert code == 2, (target, err)
        assert "a bug" not in err
        assert _bytes(runs) == before


def test_no_output_is_written_over_an_input_of_another_kind(hwbench: Call, runs: Path):
    for name in ("a", "b"):
        exported = hwbench(
            "export", f"{name}.jsonl", "--to", "pytest-benchmark", "-o", f"{name}.json"
        )
        assert exported[0] == 0
    before = _bytes(runs)
    code, _, err = hwbench("check", "a.json", "-b", "b.json", "--json-out", "b.json")
    assert (code, "is one of the inputs" in one_sentence(err)) == (2, True)
    assert _bytes(runs) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "a.jsonl", "-o", "out"],
        ["export", "a.jsonl", "--to", "csv", "-o", "out"],
        ["check", "a.jsonl", "-b", "b.jsonl", "--junit", "out"],
        ["check", "a.jsonl", "-b", "b.jsonl", "--markdown", "out"],
        ["check", "a.jsonl", "-b", "b.jsonl", "--json-out", "out"],
    ],
    ids=" ".join,
)
def test_a_disk_that_is_full_leaves_the_file_of_before(
    hwbench: Call, runs: Path, arguments: list[str]
):
    Path("out").write_text("the file of before")
    before = _bytes(runs)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        code, _, err = hwbench(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (code, "File too large" in err) == (2, True)
    assert _bytes(runs) == before  # and nothing is left beside it


def test_an_output_keeps_its_mode_and_follows_its_link(tmp_path: Path):
    (tmp_path / "page").write_text("old")
    (tmp_path / "page").chmod(0o640)
    (tmp_path / "link").symlink_to("page")
    files.write_text(tmp_path / "link", "new")
    assert (tmp_path / "page").read_text() == "new"
    assert (tmp_path / "page").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "link").is_symlink()
    files.write_text(Path("/dev/null"), "new")
    assert Path("/dev/null").is_char_device()


# --- baselines ---------------------------------------------------------------------------------


def test_promote_writes_through_no_link(hwbench: Call, runs: Path):
    run = read_run(Path("a.jsonl"))
    inner = Path("baselines") / baseline.machine_key(run.header)
    inner.mkdir(parents=True)
    Path("victim").write_text("precious")
    target = inner / f"{run.header.run}.jsonl"
    target.with_suffix(".part").symlink_to(Path("victim").resolve())
    assert hwbench("baseline", "promote", "a.jsonl")[0] == 0
    assert Path("victim").read_text() == "precious"
    assert target.read_bytes() == Path("a.jsonl").read_bytes()
    target.unlink()
    target.symlink_to(Path("victim").resolve())
    code, _, err = hwbench("baseline", "promote", "a.jsonl")
    assert (code, "by a link" in one_sentence(err)) == (2, True)
    assert Path("victim").read_text() == "precious"


def test_a_name_that_is_taken_at_the_last_moment_is_not_replaced(
    runs: Path, monkeypatch: pytest.MonkeyPatch
):
    real, taken = os.link, []

    def late(beside: Any, path: Path, **how: Any) -> None:
        if not taken:
            taken.append(path)
            path.write_bytes(content)
        real(beside, path, **how)

    monkeypatch.setattr(os, "link", late)
    content = Path("a.jsonl").read_bytes()
    target = baseline.promote(Path("a.jsonl"), Path("same"))
    assert target.read_bytes() == content
    taken.clear()
    content = b"another\n"
    with pytest.raises(RunFileError, match="is there already"):
        baseline.promote(Path("a.jsonl"), Path("others"))
    assert taken[0].read_bytes() == b"another\n"
    assert [*taken[0].parent.iterdir()] == taken


def test_prune_deletes_nothing_behind_a_link(hwbench: Call, runs: Path):
    Path("baselines").mkdir()
    Path("baselines/machine").symlink_to(Path("nights").resolve())
    before = _bytes(Path("nights"))
    assert hwbench("baseline", "prune", "--keep", "1")[0] == 0
    assert _bytes(Path("nights")) == before


# --- files that are none -----------------------------------------------------------------------

ODD = ["/dev/zero", "/dev/full", "/dev/null", "pipe", "pipe.json", "endless.jsonl", "x" * 300]
READING = [
    ["report", "{}"],
    ["compare", "{}", "a.jsonl"],
    ["check", "{}", "-b", "a.jsonl"],
    ["check", "a.jsonl", "-b", "{}"],
    ["export", "{}", "--to", "csv", "-o", "rows.csv"],
    ["plot", "{}", "--kind", "pareto", "-o", "x.png"],
    ["run", "--resume", "{}"],
    ["baseline", "promote", "{}"],
    ["run", "--suite", "{}.toml"],
    ["list", "runs", "-o", "{}"],
    ["history", "{}"],
    ["run", "--suite", "training_gpt2", "--data", "{}"],
    ["report", "a.jsonl", "-o", "{}/page.html"],
]


@pytest.mark.parametrize("odd", ODD, ids=lambda name: name[:20])
@pytest.mark.parametrize("arguments", sampled(READING, 2), ids=lambda words: " ".join(words[:2]))
def test_a_file_that_is_none_is_a_sentence(
    hwbench: Call, runs: Path, arguments: list[str], odd: str
):
    """Neither a wait without end, nor memory without end, nor a bug."""
    for name in ("pipe", "pipe.json", "pipe.toml"):
        os.mkfifo(name)
    Path("endless.jsonl").symlink_to("/dev/zero")
    code, out, err = hwbench(*(word.format(odd) for word in arguments))
    assert code in (2, 6) or (arguments[0] == "list" and not out), (out, err)
    assert "a bug" not in err
    if code == 2:
        one_sentence(err)


def test_one_odd_file_in_a_folder_of_nights_takes_no_night_away(hwbench: Call, runs: Path):
    os.mkfifo("nights/pipe.jsonl")
    Path("nights/zero.jsonl").symlink_to("/dev/zero")
    code, out, err = hwbench("check", "a.jsonl", "-b", "nights")
    assert code == 0, err
    assert "2 cannot be read" in out + err


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path):
    path = tmp_path / "large.jsonl"
    with path.open("wb") as file:
        file.truncate(files.MOST_OF_A_RUN + 1)
    with pytest.raises(RunFileError, match="larger than"):
        read_run(path)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(13, "Permission denied", "x/y"), "Cannot use x/y: Permission denied."),
        (OSError("odd"), "odd."),
        (MemoryError(), "not enough memory"),
        (BrokenPipeError(32, "Broken pipe"), "Broken pipe."),
    ],
)
def test_what_the_system_refuses_is_2(
    hwbench: Call, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
):
    def refuse(*_: Any) -> None:
        raise error

    monkeypatch.setattr("hwbench.plugins.names", refuse)
    code, _, err = hwbench("list", "formats")
    assert (code, words in one_sentence(err)) == (2, True)
