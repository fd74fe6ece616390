"""The tutorials: what stands in the blocks of a page, one after another, in a folder of its own."""

from __future__ import annotations

import json
import re
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _compress
import pytest

from hwbench import suite
from hwbench.store import read_run

Call = Callable[..., tuple[int, str, str]]
DOCS = Path(__file__).resolve().parents[1] / "docs"


def blocks(page: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def run(page: str, least: int = 3, **replaced: str) -> dict[str, Any]:
    """What the names of a page hold after its last block."""
    held: dict[str, Any] = {}
    actual = blocks(page)
    assert len(actual) >= least
    for block in actual:
        for before, after in replaced.items():
            block = block.replace(before, after)  # noqa: PLW2901 (each block is changed alone)
        exec(compile(block, page, "exec"), held)
    return held


def test_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    held = run("../README.md", 1, **{'device="cpu"': 'device="fake"'})
    assert read_run(held["run"]).complete
    assert len(held["cases"]) == len(read_run(held["run"]).planned) <= len(held["rows"])
    assert held["layer"].to_dense().shape == held["weight"].shape


def test_in_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    held = run("python.md", 2, **{'"linear", device="cpu"': '"smoke", device="fake"'})
    shown = capsys.readouterr().out
    assert "Forward, " in shown
    assert set(held["best"]["format"]) == {"dense"}  # all others lose more than 5 %
    assert (held["fastest"]["relative_time"] <= held["best"]["relative_time"]).all()
    assert len(held["cases"]) <= len(held["rows"]) == len(held["several"])


def test_i_have_a_layer(capsys: pytest.CaptureFixture[str]) -> None:
    held = run("i-have-a-layer.md")
    shown = capsys.readouterr().out
    assert f"rank {held['described'].rank}" in shown
    assert held["lost"](held["told"]) < held["lost"](held["near"])
    assert "'0.left'" in shown


@pytest.mark.heavy
def test_i_have_a_checkpoint(hwbench: Call, tmp_path: Path) -> None:
    """Commands and Python of the page in its order: each uses what those before it made."""
    pytest.importorskip("transformers")
    (model := tmp_path / "path/to/a/model").mkdir(parents=True)
    _compress.encoder(model)
    text = (DOCS / "i-have-a-checkpoint.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert [language for language, _ in shown] == ["", *["python"] * 3, "", "python"]
    cheap = ["--device", "fake"]
    held: dict[str, Any] = {}
    said: dict[str, str] = {}
    for language, block in shown:
        if language == "python":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec(compile(block, "i-have-a-checkpoint.md", "exec"), held)
            continue
        for command in block.splitlines():
            _, verb, *words = shlex.split(command)
            once = [] if "--plan" in words else ["--replicates", "1"]
            formats = ["--format", "low_rank,csr"] if "--budget" in words else []
            code, said[command], error = hwbench(
                verb, *words, *([*cheap, *once] if verb != "shapes" else []), *formats
            )
            assert code == 0, (command, error)
    assert len(said) == 4
    printed = "".join(said.values())
    for words in ("All linear layers of the model", "the fastest of each shape", "proved a gap of"):
        assert words in printed
    assert "error of the last hidden state" in printed
    assert "The model is in small." in printed
    assert held["small"].encoder.layer[0].intermediate.dense.described.name() == "low_rank"
    assert held["table"]["bytes"].sum() < 0.6 * held["table"]["dense_bytes"].sum()
    assert json.loads((tmp_path / "small" / "hwbench.json").read_text())["schema"] == 1
    assert held["plan"]["layers"]
    for name, entry in held["plan"]["layers"].items():
        assert held["planned"].get_submodule(name).described.name() == entry["name"]


# --- my nightly gate ---------------------------------------------------------------------------

GATE = (DOCS / "my-nightly-gate.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"^hwbench (.*)\n# exit code (\d+): (.*)$", GATE, re.MULTILINE)


def test_my_nightly_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hwbench: Callable[..., tuple[int, str, str]]
) -> None:
    """Every command of the page, in its order, ends and says what the page says."""
    inside = "".join(re.findall(r"^```bash\n(.*?)^```$", GATE, re.DOTALL | re.MULTILINE))
    assert len(SHOWN) == len(re.findall("^hwbench ", inside, re.MULTILINE)) >= 8
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").symlink_to(DOCS)
    for command, code, words in SHOWN:
        ended, out, error = hwbench(*shlex.split(command))
        assert ended == int(code), command
        assert words in out + error, (command, out, error)
    assert {"check.md", "check.xml", "history.html"} <= {p.name for p in tmp_path.iterdir()}
    page = (tmp_path / "history.html").read_text(encoding="utf-8")
    assert "https://git.example.org/team/layers/compare/" in page


def test_the_example_nights_are_small_and_say_that_nothing_was_measured() -> None:
    nights = sorted((DOCS / "examples/nights").glob("*.jsonl"))
    assert [path.stem for path in nights] == [f"night-{n}" for n in range(1, 9)]
    for path in nights:
        run = read_run(path)
        assert run.complete
        assert run.header.device == "fake"
        assert path.stat().st_size < 40_000
        assert run.header.suite == "nightly"
    assert "No machine was measured" in GATE


def test_the_example_suite_is_the_one_of_the_nights() -> None:
    document = suite.read(str(DOCS / "examples/nightly.toml"))
    assert document["name"] == "nightly"
    planned = read_run(DOCS / "examples/nights/night-1.jsonl").planned
    names = {planned.case.format for planned in planned.values()}
    assert names == {each["name"] for each in document["cases"][0]["format"]}
