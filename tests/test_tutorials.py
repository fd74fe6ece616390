"""The tutorials: every Python block of a page, one after another, in a folder of its own."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"


def blocks(page: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def run(page: str, **replaced: str) -> dict[str, Any]:
    """What the names of a page hold after its last block."""
    held: dict[str, Any] = {}
    found = blocks(page)
    assert len(found) >= 3
    for block in found:
        for before, after in replaced.items():
            block = block.replace(before, after)  # noqa: PLW2901 (each block is changed alone)
        exec(compile(block, page, "exec"), held)
    return held


def test_i_have_a_layer(capsys: pytest.CaptureFixture[str]) -> None:
    held = run("i-have-a-layer.md")
    shown = capsys.readouterr().out
    assert f"rank {held['described'].rank}" in shown
    assert held["lost"](held["told"]) < held["lost"](held["near"])
    assert "'0.left'" in shown


def test_i_have_a_checkpoint(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        vocab_size=60,
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.BertModel(config).save_pretrained(tmp_path / "model")
        text = (DOCS / "i-have-a-checkpoint.md").read_text(encoding="utf-8")
        assert '"path/to/a/model"' in text
        held = run("i-have-a-checkpoint.md", **{"path/to/a/model": str(tmp_path / "model")})
    assert held["small"].encoder.layer[0].intermediate.dense.described.name() == "low_rank"
    assert held["table"]["bytes"].sum() < 0.6 * held["table"]["dense_bytes"].sum()
    assert json.loads((tmp_path / "small" / "hwbench.json").read_text())["schema"] == 1
    assert "error of the last hidden state" in capsys.readouterr().out
