"""A hidden file in a folder is never read: it is being written, was left, or is the system's."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest
from _check import Call, five, model_files
from _faulty import ROOT

from hwbench import checkpoints, files
from hwbench.errors import UsageError
from hwbench.store import list_runs
from hwbench.workloads import _models

PACKAGE = ROOT / "hwbench"
VERBS = [
    ("report", "nights", "--out", "page.html"),
    ("compare", "nights", "--out", "page.html"),
    ("list", "runs", "nights"),
    ("show", "nights"),
    ("export", "nights", "--to", "csv", "--out", "rows.csv"),
    ("plot", "nights", "--kind", "crossover", "--out", "figure.png"),
    ("share", "nights", "--out", "shared.jsonl"),
    ("history", "nights"),
    ("check", "night.jsonl", "--baseline", "nights"),
    ("baseline", "promote", "nights", "--out", "kept"),
    ("baseline", "list", "nights"),
    ("baseline", "prune", "--keep", "9", "nights"),
    ("selftest", "aa", "--runs", "nights"),
]
"""Every verb that takes a folder of runs."""

NESTED = [
    ("history", "kept"),
    ("check", "night.jsonl", "--baseline", "kept"),
    ("baseline", "list", "kept"),
    ("baseline", "prune", "--keep", "9", "kept"),
    ("selftest", "aa", "--runs", "kept"),
]
"""Every verb that takes a folder of folders of runs."""

LISTERS = {"glob", "rglob", "iglob", "iterdir", "listdir", "scandir", "walk"}
OWN = "a folder of hwbench's own package"
SYSTEM = "a folder of the kernel"
LISTING = {
    "plugins.py _own": OWN,
    "suite.py names": OWN,
    "suite.py model_names": OWN,
    "workloads/_packaged.py code": OWN,
    "formats/_native.py built": OWN,
    "environment.py _data_caches": SYSTEM,
    "environment.py nvidia_devices": SYSTEM,
    "environment.py rapl_joules": SYSTEM,
    "workloads/_blocks.py __init__": "the cache, where hidden folders are removed as well",
    "studies/_sides.py _environment": "an environment that was made there and then",
    "checkpoints/__init__.py _of_models": "names alone, and a folder that cannot be read is told",
    "formats/_native.py _key": OWN,
}
"""What lists a folder without ``files.listed``, and why it may: file and function."""


@pytest.fixture
def nights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    five("nights")
    return Path("nights")


def hide(folder: Path) -> None:
    """What a killed process leaves, what another one writes, and what macOS and Jupyter add."""
    whole = list_runs(folder)[0].read_bytes()
    files.beside(folder / "run.jsonl").write_bytes(b"")
    files.beside(folder / "run.jsonl").write_bytes(whole[: len(whole) // 2])
    (folder / f"._{list_runs(folder)[0].name}").write_bytes(b"\x00\x05\x16\x07Mac OS X")
    hidden = folder / ".ipynb_checkpoints"
    hidden.mkdir()
    (hidden / "copy.jsonl").write_bytes(whole)
    (hidden / "damaged.jsonl").write_bytes(b"")


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: " ".join(verb[:2]))
def test_a_verb_says_the_same_of_a_folder_with_hidden_files(
    verb: tuple[str, ...], nights: Path, hwbench: Call
) -> None:
    shutil.copy(list_runs(nights)[-1], "night.jsonl")
    expected = hwbench(*verb)
    assert expected[0] == 0, expected
    shutil.rmtree("kept", ignore_errors=True)
    Path("shared.jsonl").unlink(missing_ok=True)
    hide(nights)
    assert hwbench(*verb) == expected


@pytest.mark.parametrize("verb", NESTED, ids=lambda verb: " ".join(verb[:2]))
def test_a_verb_says_the_same_of_folders_in_a_folder_with_hidden_ones(
    verb: tuple[str, ...], nights: Path, hwbench: Call
) -> None:
    (Path("kept") / "machine").mkdir(parents=True)
    for path in list_runs(nights):
        shutil.copy(path, "kept/machine")
    shutil.copy(list_runs(nights)[-1], "night.jsonl")
    expected = hwbench(*verb)
    assert expected[0] == 0, expected
    shutil.copytree("kept/machine", "kept/.ipynb_checkpoints")
    (Path("kept") / ".ipynb_checkpoints" / "damaged.jsonl").write_bytes(b"")
    assert hwbench(*verb) == expected


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with the files of a model, as far as names go."""
    return model_files(tmp_path / "model")


def test_a_hidden_file_changes_nothing_of_a_model(model: Path) -> None:
    before = _models.state(model)
    files.beside(model / "model.safetensors").write_bytes(b"a part of the weights")
    (model / "._config.json").write_bytes(b"Mac OS X")
    assert len(before) == 3
    assert _models.state(model) == before


@pytest.mark.parametrize("name", [".0.safetensors", "._model.safetensors"])
def test_a_hidden_file_is_not_named_as_the_weights(model: Path, name: str) -> None:
    (model / "model.safetensors").rename(model / name)
    words = checkpoints.unreadable(model) or ""
    assert words == f"{model} holds no model.safetensors."
    hidden = model.rename(model.parent / ".model")
    assert "the model lies in" not in (checkpoints.unreadable(hidden.parent) or "")


def test_what_a_killed_conversion_left_is_no_model_that_would_be_written_over(
    tmp_path: Path,
) -> None:
    files.beside(tmp_path / "model.safetensors").write_bytes(b"a part of the weights")
    checkpoints.check_free(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(UsageError, match="did not convert"):
        checkpoints.check_free(tmp_path)


def test_a_hidden_file_of_another_kind_makes_no_model_unreadable(model: Path) -> None:
    before = checkpoints.unreadable(model)
    (model / ".lock").symlink_to("/dev/zero")
    assert checkpoints.unreadable(model) == before


def test_a_folder_of_models_is_told_by_those_with_weights(model: Path) -> None:
    assert "the model lies in model" in (checkpoints.unreadable(model.parent) or "")
    (model / "model.safetensors").rename(model / ".model.safetensors")
    assert "the model lies in" not in (checkpoints.unreadable(model.parent) or "")


def test_what_is_hidden_above_the_folder_does_not_count(tmp_path: Path) -> None:
    folder = tmp_path / ".cache" / "models--x"
    (folder / "inner" / ".git").mkdir(parents=True)
    for name in ("inner/a.json", "inner/.git/a.json", "b.json", ".b.json", "c.txt"):
        (folder / name).write_text("{}")
    assert files.listed(folder, "*.json", "*.json", "*/*.json", "*/*/*.json") == [
        folder / "b.json",
        folder / "inner/a.json",
    ]
    assert files.listed(tmp_path / "none", "*") == []


def _listing(path: Path) -> set[str]:
    """File and function of everything that lists a folder by a pattern past ``hwbench.files``."""
    return {
        f"{path.relative_to(PACKAGE)} {function.name}"
        for function in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr in LISTERS
    }


def test_every_folder_is_listed_by_one_function_but_for_these() -> None:
    actual = {
        each for path in PACKAGE.rglob("*.py") if path.name != "files.py" for each in _listing(path)
    }
    assert actual == set(LISTING)
