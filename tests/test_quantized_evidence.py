"""``evidence/quantized.py``: what its tables say of each claim, and what it measures against."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from _evidence import EVIDENCE
from _evidence import script as evidence_script
from _formats import drawn, relative

import hwbench
from hwbench.formats._gram import Seen


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return evidence_script("quantized")


def row(script: Any, layer: str, setting: str, fitted: float, held: float) -> Any:
    return script.Row(f"encoder.layer.{layer}.weight", setting, 2, fitted, held, 0.25)


def test_a_line_has_means_and_the_worst_layer(script: Any) -> None:
    rows = [
        row(script, "0.a", "int4", 1.0, 1.0),
        row(script, "1.b", "int4", 1.0, 2.0),
        row(script, "0.a", "int4 gptq", 0.5, 0.4),
        row(script, "1.b", "int4 gptq", 0.5, 1.8),
    ]
    last = script.table([script.Pair("int4 gptq", "int4", 0.75, 0.8)], rows).splitlines()[-1]
    assert last == (
        "| int4 gptq / int4 | 2 | 0.600 | 0.75, met | 1.b: 0.900 | 0.8, missed | 0.500 "
        "| 0.250 / 0.250 |"
    )
    assert script.errors(rows, ["int4"]).splitlines()[-1] == "| int4 | 1.4142 | 1.0000 | 0.2500 |"


def test_every_setting_of_a_claim_is_known_and_none_is_idle(script: Any) -> None:
    named = [script.of_claim(name) for name in script.CLAIMS]
    assert {setting for some in named for setting in some} == set(script.SETTINGS)


def test_a_setting_is_measured_once_and_as_it_says(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, told, held = drawn(16, 128), drawn(300, 128, seed=2), drawn(300, 128, seed=3)
    moments = [rows.T @ rows / len(rows) for rows in (told, held)]
    layer = script.Layer("encoder.layer.0.x.weight", weight, Seen(told), *moments)
    monkeypatch.setattr(script, "layers", lambda names: iter([layer] * len(list(names))))
    wanted, out = ["int4", "2:4 SparseGPT", "armor", "low_rank 0.5"], tmp_path / "rows.jsonl"
    rows = script.measured(wanted, [layer.name], 2, out)
    assert [each.setting for each in rows] == wanted
    f = hwbench.get_format("quantized").from_knobs(16, 128, type="int4", group=128)
    lost = f.project(weight.float()).to_dense().double() - weight
    assert rows[0].held == pytest.approx(float((held @ lost.T).norm() / (held @ weight.T).norm()))
    assert rows[0].stored == pytest.approx((64 + 4) / 256)
    assert rows[2].fitted <= rows[1].fitted
    monkeypatch.setattr(script, "compared", lambda *_: pytest.fail("it was measured again"))
    assert script.measured(wanted, [layer.name], 2, out) == rows


@pytest.mark.parametrize("tokens", [1, 16])
def test_a_bare_spelling_computes_what_the_kernel_does(script: Any, tokens: int) -> None:
    for name in (*script.DYNAMIC, *script.WEIGHT_ONLY):
        dtype = torch.bfloat16 if name in script.WEIGHT_ONLY else torch.float32
        f = hwbench.get_format("quantized").from_knobs(32, 128, kernel=name)
        layer = f.random(dtype=dtype, generator=torch.Generator().manual_seed(0))
        if reason := f.unsupported("cpu", dtype, "forward"):
            pytest.fail(reason)
        x = drawn(tokens, 128).to(dtype)
        found = script.bare(layer, x)()
        assert relative(found, script.forward(layer, x)()) < 2e-2, name


def test_a_missing_onnxruntime_is_said_once_and_nothing_else_is_missed(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each kernel's time over its bare spelling is printed with or without it."""
    for package in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.syspath_prepend(EVIDENCE)
    monkeypatch.setattr(script, "SIDES", ((64, 128),))
    monkeypatch.setattr(script, "TOKENS", (1,))
    script.timed(1)
    said = capsys.readouterr().out
    assert said.count("onnxruntime is unsupported: it takes onnx and onnxruntime, which") == 1
    assert said.count("onnxruntime") == 2
    for name in (*script.DYNAMIC, *script.WEIGHT_ONLY):
        assert f"  {name} / its bare spelling = " in said
