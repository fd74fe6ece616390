"""What the verbs that measure say while they do."""

from __future__ import annotations

import re
import sys
import time
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace
from rich.console import Console
from test_store import HEADER, LINES, result

import hwbench
from hwbench.cli import _progress, _shared
from hwbench.measure import telling
from hwbench.measure.schedule import Progress
from hwbench.records import Footer, Line, Result, Status
from hwbench.store import RunWriter


def test_a_log_has_a_line_each_half_minute_and_each_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now[0])
    with _progress.progress() as listen:
        for done in range(101):
            now[0] = float(done)
            listen(Progress(done, 100, now[0], Path("run.jsonl"), left=100.0 - done))
        note = "waiting for [a machine]"
        listen(Progress(100, 100, 100.0, Path("run.jsonl"), note=note, left=0.0))
    out, err = capsys.readouterr()
    assert not out
    assert err.splitlines() == [
        "hwbench: 30 of 100 results, 1:10 left",
        "hwbench: 60 of 100 results, 0:40 left",
        "hwbench: 90 of 100 results, 0:10 left",
        "hwbench: 100 of 100 results, 0:00 left; waiting for [a machine]",
    ]


def test_a_time_that_is_not_known_is_not_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now[0])
    with _progress.progress() as listen:
        now[0] = 31.0
        listen(Progress(1, 100, 31.0, Path("run.jsonl")))
    assert capsys.readouterr().err.splitlines() == ["hwbench: 1 of 100 results"]


def test_a_case_of_minutes_leaves_no_log_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the first result too; after the end nothing is printed."""
    monkeypatch.setattr(_progress, "LOG_SECONDS", 0.01)
    lines: list[str] = []

    def until(words: str) -> None:
        """Wait for a second line that has them: the first may end a silence of before."""
        deadline = time.monotonic() + 60
        while sum(bool(re.fullmatch(words, line)) for line in lines) < 2:
            assert time.monotonic() < deadline, lines
            time.sleep(0.005)
            lines.extend(capsys.readouterr().err.splitlines())

    with _progress.progress() as listen:
        until(r"hwbench: planning; still at work, 0:\d\d without a result")
        listen(Progress(3, 12, 1.0, Path("run.jsonl")))
        until(r"hwbench: 3 of 12 results; still at work, 0:\d\d without a result")
    capsys.readouterr()
    time.sleep(0.05)
    assert not capsys.readouterr().err


def test_what_is_left_gets_less_while_a_log_waits_and_is_not_told_once_it_is_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now[0])
    log = _progress._Log(print)
    monkeypatch.setattr(_progress, "_Log", lambda say: log)
    with _progress.progress() as listen:
        listen(Progress(3, 12, 1.0, Path("run.jsonl"), left=100.0))
        for now[0] in (40.0, 80.0, 120.0):
            log.remind()
        listen(Progress(12, 12, 1.0, Path("run.jsonl"), left=0.0))
    assert capsys.readouterr().out.splitlines() == [
        "hwbench: 3 of 12 results, 1:00 left; still at work, 0:40 without a result",
        "hwbench: 3 of 12 results, 0:20 left; still at work, 1:20 without a result",
        "hwbench: 3 of 12 results; still at work, 2:00 without a result",
    ]


def test_a_log_of_short_cases_has_nothing_about_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    now = [0.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now[0])
    log = _progress._Log(lines.append)
    for now[0], line in ((29.0, "a"), (31.0, ""), (59.0, "b"), (62.0, ""), (92.0, "")):
        if line:
            log.heard(lambda waited, line=line: line, at_once=False)
        else:
            log.remind()
    assert lines == ["a", "b", "b; still at work, 0:33 without a result"]


def test_a_bar_has_how_much_is_done_where_a_case_is_longer_than_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = StringIO()
    monkeypatch.setattr(
        _shared, "console", lambda **_: Console(file=stream, width=80, force_terminal=True)
    )
    case = f"projection[matrix=power_law,seeds=1]/csr[{'x' * 100}]/512x512/float32/cpu"
    result = Result(case=case, replicate=0, seed=0, status=Status.OK)
    with _progress.progress() as listen:
        for done in range(1, 12):
            listen(Progress(done, 28, 0.0, Path("run.jsonl"), result, left=28.0 - done))
    drawn = [line for line in re.split(r"[\r\n]", stream.getvalue()) if "11/28" in line]
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn[-1])
    assert re.match(r" *39 % ━+.* 11/28 0:17 left last: projection", plain), plain
    assert len(plain) <= 80


def test_what_precedes_the_run_file_is_drawn_and_not_logged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peaks = Progress(0, 9, 0.0, Path("runs"), note="measuring the peaks", begun=False)

    def interrupted() -> None:
        with _progress.progress() as listen:
            listen(peaks)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert capsys.readouterr().err == "", "there is no run to go on with"
    stream = StringIO()
    monkeypatch.setattr(
        _shared, "console", lambda **_: Console(file=stream, width=80, force_terminal=True)
    )
    with _progress.progress() as listen:
        listen(peaks)
    assert "0/9" in stream.getvalue()
    assert "measuring the peaks" in stream.getvalue()


def interrupted(paths: list[Path]) -> None:
    """Ctrl-C after a result in each of these run files."""
    with _progress.progress() as listen:
        for path in (*paths, *paths):
            listen(Progress(1, 2, 1.0, path))
        raise KeyboardInterrupt


def begun(folder: Path, run: str, *lines: Line, **header: Any) -> Path:
    writer = RunWriter.create(folder, replace(HEADER, run=run, **header), LINES)
    writer.append(result(0), *lines)
    writer.close()
    return writer.path


def test_after_ctrl_c_each_run_file_has_its_way_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = begun(tmp_path, "one")
    two = begun(tmp_path, "two", arguments={"cluster": "A100"})
    long = {"between_runs": "x" * 100_000}  # what hundreds of cases say of earlier runs
    whole = begun(tmp_path, "whole", Footer(finished="now", wall_seconds=1.0, state=long))
    with pytest.raises(KeyboardInterrupt):
        interrupted([one, two, whole])
    assert capsys.readouterr().err.splitlines() == [
        f"What was measured is in {one}; go on with --resume {one}",
        f"What was measured is in {two}; go on with --resume {two}, and --cluster",
    ]
    with pytest.raises(KeyboardInterrupt):
        interrupted([whole])
    assert capsys.readouterr().err == f"The run in {whole} is complete\n"


def test_a_run_file_that_cannot_be_read_hides_no_ctrl_c(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone.jsonl"
    with pytest.raises(KeyboardInterrupt):
        interrupted([gone])
    assert f"What was measured is in {gone}, which cannot be read now: " in capsys.readouterr().err


class _Cell:
    """The output of a cell: ``IPython.display.display`` and the handle that it returns."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.outputs = 0

    def display(self, bundle: dict[str, str], *, raw: bool, display_id: bool) -> _Cell:
        assert raw
        assert display_id
        self.outputs += 1
        self.update(bundle, raw=raw)
        return self

    def update(self, bundle: dict[str, str], *, raw: bool) -> None:
        assert raw
        assert list(bundle) == ["text/plain"]
        self.shown.append(bundle["text/plain"])


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> _Cell:
    """A notebook around this process."""
    made = _Cell()
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", made)
    return made


def test_a_notebook_shows_one_line_that_each_result_renews(cell: _Cell, tmp_path: Path) -> None:
    hwbench.run("smoke", device="fake", out=tmp_path, threads=1)
    assert cell.outputs == 1
    assert cell.shown[0].startswith("0 of ")
    assert re.fullmatch(r"19 of 19 results, 0:00 left; last: \S+", cell.shown[-1])
    assert len(cell.shown) >= 19


@pytest.mark.parametrize(
    "module",
    [
        None,
        SimpleNamespace(),
        SimpleNamespace(get_ipython=lambda: None),
        SimpleNamespace(get_ipython=SimpleNamespace),  # IPython in a terminal
    ],
)
def test_a_script_and_a_terminal_show_nothing_unasked(
    module: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "IPython", module)
    assert telling.in_notebook() is None


def test_a_listener_of_ones_own_takes_the_place_of_the_line(cell: _Cell, tmp_path: Path) -> None:
    heard: list[Progress] = []
    hwbench.run("smoke", device="fake", out=tmp_path, threads=1, listener=heard.append)
    assert heard
    assert not cell.shown
