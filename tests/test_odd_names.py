"""Whatever text a public function is given as a path or a name, it refuses it in words."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import hwbench
from hwbench import checkpoints, files
from hwbench.channels import visible
from hwbench.errors import HwbenchError, KnobError, SuiteError, UsageError

ODD = {
    "a zero byte": "\0",
    "a zero byte within": "a\0b",
    "half of a character": "\ud800",
    "nothing": "",
    "a blank": " ",
    "a long name": "x" * 300,
    "a long path": "x/" * 5000,
    "the home of nobody": "~nobody-has-this-name/x",
    "below a device": "/dev/null/x",
    "lines": "a\nb\r\n",
    "a sequence for a terminal": "\x1b[31mred",
    "a pattern": "[!*?]{}%s",
}


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 16))


@cache
def converted() -> nn.Module:
    return hwbench.convert(small(), format="low_rank", density=0.5)


def run(**asked: Any) -> Path:
    return hwbench.run(**{"suite": "smoke", "device": "fake", "filter": "format=dense", **asked})


CALLS: dict[tuple[str, str], Callable[[str], object]] = {
    ("answer", "path"): hwbench.answer,
    ("best", "path"): hwbench.best,
    ("load_run", "path"): hwbench.load_run,
    ("load_runs", "paths"): lambda text: hwbench.load_runs([text]),
    ("summary", "path"): hwbench.summary,
    ("get_format", "name"): hwbench.get_format,
    ("convert", "format"): lambda text: hwbench.convert(small(), format=text, density=0.5),
    ("convert", "skip"): lambda text: hwbench.convert(small(), format="csr", skip=[text]),
    ("save_converted", "folder"): lambda text: hwbench.save_converted(converted(), text),
    ("load_converted", "folder"): lambda text: hwbench.load_converted(text, small()),
    ("capture", "model"): lambda text: hwbench.capture(text, "texts.txt", "out"),
    ("capture", "texts"): lambda text: hwbench.capture("model", text, "out"),
    ("capture", "out"): lambda text: hwbench.capture("model", "texts.txt", text),
    ("run", "suite"): lambda text: run(suite=text),
    ("run", "device"): lambda text: run(device=text),
    ("run", "out"): lambda text: run(out=text),
    ("run", "filter"): lambda text: run(filter=text),
}
ELSEWHERE = {
    ("capture", "layers"): "a pattern, which test_capture.py tries; no file is named by it",
    ("unreachable", "name"): "words for an error that a format raises",
    ("unreachable", "reachable"): "the same",
}


def test_every_text_that_a_public_function_takes_is_tried() -> None:
    functions = [getattr(hwbench, name) for name in hwbench.__all__]
    actual = {
        (function.__name__, name)
        for function in functions
        if inspect.isfunction(function)
        for name, parameter in inspect.signature(function).parameters.items()
        if "str" in str(parameter.annotation)
    }
    assert actual == {*CALLS, *ELSEWHERE}


@pytest.fixture
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds a text and a folder that is no model; no name is looked up anywhere."""
    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text("A line.\n")
    Path("model").mkdir()

    def absent(model: str, *, offline: bool) -> Path:
        raise UsageError(f"{model!r} is not in the cache.")

    monkeypatch.setattr(checkpoints, "_hub", absent)
    return tmp_path


@pytest.mark.parametrize("call", CALLS.values(), ids=map(".".join, CALLS))
def test_odd_text_is_taken_or_refused_in_words(
    somewhere: Path, call: Callable[[str], object]
) -> None:
    """A text that can name a file is a name; every other is refused, and all in one sentence."""
    for what, text in ODD.items():
        try:
            call(text)
        except HwbenchError as refusal:
            result = visible(str(refusal))
            assert result.strip(), what
            assert result[-1] in ".?", what
            assert len(result) < 1000 + len(text), what


def trained_on(data: str) -> object:
    block = {"workload": "training", "task": "gpt2", "data": data, "shape": [[16, 16]]}
    block["format"] = [{"name": "dense"}]
    return run(suite={"schema": 1, "name": "odd", "cases": [block]}, filter="training")


@pytest.mark.parametrize(
    "ask",
    [
        trained_on,
        checkpoints.fetched,
        checkpoints.folder,
        lambda text: checkpoints.check_free(Path(text)),
    ],
    ids=["data of a suite", "fetched", "folder", "check_free"],
)
@pytest.mark.parametrize("text", ["a\0b", "\ud800", "x" * 300, "~nobody-has-this-name/x"])
def test_a_name_inside_of_what_is_read_is_refused_alike(
    somewhere: Path, ask: Callable[[str], object], text: str
) -> None:
    with pytest.raises(UsageError) as refusal:
        ask(text)
    assert re.search("cannot name a file|short plain word", str(refusal.value))
    assert len(str(refusal.value)) < 400


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.named("~/runs") == tmp_path / "runs"
    assert files.named(Path("~/runs")) == tmp_path / "runs"
    assert files.named("runs/~") == Path("runs/~")


@pytest.mark.parametrize("kind", [UsageError, SuiteError])
def test_the_error_is_of_the_kind_that_its_caller_raises(kind: type[UsageError]) -> None:
    with pytest.raises(kind) as refusal:
        files.named("a\0b", kind)
    assert type(refusal.value) is kind


@pytest.mark.parametrize("open_", [files.read_text, files.regular, files.check_replaceable])
def test_what_is_opened_without_being_named_first_says_the_same(
    open_: Callable[[Path], Any],
) -> None:
    with pytest.raises((OSError, HwbenchError), match="cannot name a file|character that no name"):
        open_(Path("a\0b"))


def test_a_knob_that_nobody_knows_is_told() -> None:
    with pytest.raises(KnobError):
        hwbench.get_format("low_rank").for_budget(16, 16, 0.5, kernel="\0")
