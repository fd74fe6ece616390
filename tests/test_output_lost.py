"""The exit code is that of what was found, whatever becomes of the output."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _check import CASES, kept, made
from _tiers import sampled
from _verbs import calls, placed, verbs
from msgspec.structs import replace

from hwbench import cli
from hwbench.channels import guarded
from hwbench.cli import _shared, _streams
from hwbench.records import Status
from hwbench.store import Run

Stream = Callable[[int], Any]


class Cut(io.StringIO):
    """A reader that goes away after so many characters, or a disk that has room for no more."""

    def __init__(self, room: int, error: OSError) -> None:
        super().__init__()
        self.room, self.error = room, error

    def write(self, text: str) -> int:
        self.room -= len(text)
        if self.room < 0:
            raise self.error
        return super().write(text)


def gone(room: int) -> Cut:
    return Cut(room, BrokenPipeError(32, "Broken pipe"))


def full(room: int) -> Cut:
    return Cut(room, OSError(28, "No space left on device"))


def closed(room: int) -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


def none(room: int) -> None:
    return None


def ascii_only(room: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")


def eastern(room: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="iso8859-5", errors="strict")


STREAMS = [gone, full, closed, none, ascii_only, eastern]


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a baseline, a run twice as slow, one with a wrong case, and some nights."""
    folder = tmp_path_factory.mktemp("runs")
    before = Path.cwd()
    os.chdir(folder)
    try:
        Path(kept(made(1, CASES))).rename("base.jsonl")
        Path(kept(made(2, CASES, slower=2.0))).rename("slow.jsonl")
        Path(kept(_wrong(made(3, CASES)))).rename("wrong.jsonl")
        for day in range(4, 8):
            kept(made(day, CASES), "nights")
    finally:
        os.chdir(before)
    return folder


def _wrong(run: Run) -> Run:
    run.results = [
        replace(result, status=Status.WRONG, reason="It is wrong.", measurements=[])
        if "low_rank" in result.case
        else result
        for result in run.results
    ]
    return run


VERBS = [
    (["check", "slow.jsonl", "-b", "base.jsonl"], 1),
    (["check", "slow.jsonl", "-b", "base.jsonl", "--json"], 1),
    (["check", "slow.jsonl", "-b", "base.jsonl", "--github"], 1),
    (["check", "wrong.jsonl", "-b", "base.jsonl"], 5),
    (["check", "base.jsonl", "-b", "none"], 6),
    (["check", "base.jsonl", "-b", "slow.jsonl"], 0),
    (["compare", "base.jsonl", "slow.jsonl"], 0),
    (["compare", "base.jsonl", "slow.jsonl", "--json"], 0),
    (["history", "nights"], 0),
    (["history", "nights", "--json"], 0),
    (["report", "base.jsonl", "-o", "new.html"], 0),
    (["export", "base.jsonl", "--to", "csv", "-o", "new.csv"], 0),
    (["list", "runs", "-o", "nights"], 0),
    (["list", "formats"], 0),
    (["list", "suites", "--json"], 0),
    (["baseline", "list", "-o", "nights"], 0),
    (["run", "--resume", "base.jsonl"], 0),
    (["run", "--resume", "wrong.jsonl", "--json"], 5),
    (["doctor", "--require", "nothing"], 2),
    (["check", "gone.jsonl", "-b", "base.jsonl"], 2),
    (["--version"], 0),
    (["--help"], 0),
    (["check", "--help"], 0),
]


@pytest.mark.parametrize(
    ("arguments", "code", "stream"),
    [
        # every stream at the first verb, each fourth one at the others
        pytest.param(
            *verb,
            stream,
            id=f"{' '.join(verb[0])}-{stream.__name__}",
            marks=pytest.mark.heavy if place and (place + turn) % 4 else [],
        )
        for place, verb in enumerate(VERBS)
        for turn, stream in enumerate(STREAMS)
    ],
    ids=lambda value: str(value)[:60],
)
def test_the_code_is_that_of_the_verdict(
    there: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, stream: Stream
):
    monkeypatch.chdir(there)
    monkeypatch.setattr(sys, "argv", ["hwbench", *arguments])
    for room in (0, 200) if stream in (gone, full) else (0,):
        error = io.StringIO()
        out = stream(room)
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", error)
        actual = cli._code()
        result = error.getvalue()
        assert "a bug" not in result
        lost = isinstance(out, Cut) and out.room < 0 and stream is full
        assert actual == (code or (2 if lost else 0)), (room, result)
        assert (
            "Not all of the output could be written: No space left on device." in result
        ) == lost
        assert sys.stdout is out


@pytest.mark.parametrize("stream", STREAMS)
def test_the_code_does_not_need_the_error_stream(
    there: Path, monkeypatch: pytest.MonkeyPatch, stream: Stream
):
    monkeypatch.chdir(there)
    monkeypatch.setattr(sys, "argv", ["hwbench", "check", "slow.jsonl", "-b", "base.jsonl"])
    monkeypatch.setattr(sys, "stdout", stream(0))
    monkeypatch.setattr(sys, "stderr", stream(0))
    assert cli._code() == 1


@pytest.mark.parametrize("stream", [gone, full, none])
def test_files_that_were_asked_for_are_written(
    there: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stream: Stream
):
    monkeypatch.chdir(there)
    for verb, name in [
        (["compare", "base.jsonl", "slow.jsonl", "--out"], "page.html"),
        (["check", "slow.jsonl", "-b", "base.jsonl", "--junit"], "x.xml"),
        (["history", "nights", "--out"], "history.html"),
    ]:
        monkeypatch.setattr(sys, "argv", ["hwbench", *verb, str(tmp_path / name)])
        monkeypatch.setattr(sys, "stdout", stream(0))
        cli._code()
        assert (tmp_path / name).stat().st_size > 100


def test_signs_that_an_encoding_lacks_are_written_with_others():
    under = ascii_only(0)
    stream = _streams.Steady(under)
    stream.write("1.20× ± 3 µs – 中 \udcff")
    stream.flush()
    assert under.buffer.getvalue() == b"1.20x +- 3 us - \\u4e2d \\udcff"  # type: ignore[attr-defined]
    assert stream.lost is None


def test_json_means_the_same_in_an_encoding_that_lacks_signs(monkeypatch: pytest.MonkeyPatch):
    words = {"name": "1.2× 3 µs 中 😀 \udcff", "##[error]": "::x"}
    for stream in (ascii_only(0), eastern(0), io.TextIOWrapper(io.BytesIO(), encoding="utf-8")):
        monkeypatch.setattr(sys, "stdout", stream)
        with _streams.steady(), guarded():
            _shared.say_json(words, ensure_ascii=False)
        stream.flush()
        assert json.loads(stream.buffer.getvalue()) == words  # type: ignore[attr-defined]


@pytest.mark.parametrize("written", ["junit", "markdown", "json-out"])
def test_a_report_that_cannot_be_written_takes_no_verdict_away(
    there: Path, hwbench: Any, written: str
):
    slow, base = str(there / "slow.jsonl"), str(there / "base.jsonl")
    Path("file").write_text("")
    code, out, err = hwbench("check", slow, "-b", base, f"--{written}", "file/x")
    assert code == 1
    assert "regressed" in out
    assert "Cannot write file/x" in err
    code, _, err = hwbench("check", base, "-b", slow, f"--{written}", "file/x")
    assert (code, "Cannot write file/x" in err) == (2, True)


@pytest.mark.parametrize("how", [SystemExit(), SystemExit(0), SystemExit(3)])
def test_whatever_ends_a_verb_early_is_no_success(hwbench: Any, monkeypatch: Any, how: SystemExit):
    def end(*_: Any, **__: Any) -> None:
        raise how

    monkeypatch.setattr("hwbench.plugins.names", end)
    code, _, err = hwbench("list", "formats")
    assert (code, "a bug" in err) == (70, True)


@pytest.mark.processes
def test_a_shell_that_stops_reading_gets_the_verdict(there: Path):
    """Four real processes: a reader that is gone, a full disk, no output at all, no streams."""
    root = Path(__file__).parents[1]
    command = f"{sys.executable} -m hwbench check slow.jsonl -b base.jsonl"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    for script in (
        f"set -o pipefail; {command} | true",
        f"{command} >/dev/full",
        f"{command} >&-",
        f"{command} <&- >&- 2>&-",
    ):
        ended = subprocess.run(
            ["bash", "-c", script], cwd=there, env=environment, capture_output=True, check=False
        )
        assert ended.returncode == 1, (script, ended.stderr)


@pytest.mark.parametrize("words", [["--help"], []], ids=["help", "alone"])
@pytest.mark.parametrize("verb", sampled(sorted(verbs() - {"run", "doctor", "ceilings"}), 2))
def test_every_verb_of_the_parser_ends_as_it_does_with_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, words: list[str]
):
    """Alone and with --help; what a verb lacks is the same mistake whatever stdout is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["hwbench", *verb.split(), *words])

    def code(out: Any) -> int:
        error = io.StringIO()
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", error)
        actual = cli._code()
        assert "a bug" not in error.getvalue()
        return actual

    expected = code(io.StringIO())
    for stream in STREAMS:
        out = stream(200)
        actual = code(out)
        lost = isinstance(out, Cut) and out.room < 0 and stream is full
        assert actual == (expected or (2 if lost else 0)), stream


@pytest.mark.heavy
@pytest.mark.parametrize("call", calls())
def test_a_call_of_every_verb_ends_as_it_does_with_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
):
    """With what it needs: the code is that of a call whose output is read, or 2 for a full one."""
    monkeypatch.chdir(tmp_path)
    collected = {}
    for stream in (lambda _: io.StringIO(), gone, full, none, ascii_only):
        beside = tmp_path / f"{len(collected)}"
        beside.mkdir()
        run = kept(made(1, CASES), beside)
        monkeypatch.setattr(sys, "argv", ["hwbench", *placed(call, beside, run)])
        error = io.StringIO()
        out = stream(0)
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", error)
        collected[stream] = cli._code()
        assert "a bug" not in error.getvalue(), error.getvalue()
    first, *others = collected.values()
    assert first in (0, 1, 3, 4, 5, 6), error.getvalue()
    assert set(others) <= {first, first or 2}
