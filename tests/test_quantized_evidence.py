"""``evidence/quantized.py``: what its tables say of each claim, and what it measures against."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
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
    for name in (*script.dynamic_here(), *script.WEIGHT_ONLY):
        dtype = torch.bfloat16 if name in script.WEIGHT_ONLY else torch.float32
        f = hwbench.get_format("quantized").from_knobs(32, 128, kernel=name)
        layer = f.random(dtype=dtype, generator=torch.Generator().manual_seed(0))
        if reason := f.unsupported("cpu", dtype, "forward"):
            pytest.fail(reason)
        x = drawn(tokens, 128).to(dtype)
        found = script.bare(layer, x)()
        assert relative(found, script.forward(layer, x)()) < 2e-2, name


def test_each_kernel_has_its_time_over_its_bare_spelling(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(EVIDENCE)
    monkeypatch.setattr(script, "SIDES", ((64, 128),))
    monkeypatch.setattr(script, "TOKENS", (1,))
    script.timed(1)
    said = capsys.readouterr().out
    dynamic = script.dynamic_here()
    assert dynamic[-1] == "int_mm"
    for name in {*script.DYNAMIC} - {*dynamic}:
        assert f"not measured: {name} overflows on this processor" in said
    for name in (*dynamic, *script.WEIGHT_ONLY):
        assert f"  {name} / its bare spelling = " in said


# --- beside onnxruntime -------------------------------------------------------------------------

PACKAGES = ("onnx", "onnxruntime")


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made = evidence_script("onnx_int8")
    monkeypatch.setattr(made, "SIDES", ((64, 128),))
    monkeypatch.setattr(made, "TOKENS", (1, 8))
    for name in ("REST", "UNTIMED", "TIMED"):
        monkeypatch.setattr(made, name, 0.0)
    return made


def test_a_missing_onnxruntime_is_said_in_a_sentence(
    beside: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in PACKAGES:
        monkeypatch.setitem(sys.modules, package, None)
    beside.compared(0.0)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("onnxruntime is unsupported: it takes onnx and onnxruntime, which")


def test_ratios_are_ours_over_theirs_in_a_column_for_each_tokens(beside: Any) -> None:
    found = [
        {"F.linear": 4e-3, "linear_dynamic": 2e-3, "int_mm": 1e-3, "onednn": 3e-3,
         "onnxruntime": each}
        for each in (2e-3, 1e-3)
    ]  # fmt: skip
    lines = beside.rows(found, [{"onnxruntime": 0.01}, {"onnxruntime": 0.02}])
    assert lines["F.linear, ms"] == ["4.000", "4.000"]
    assert lines["int8 linear_dynamic / onnxruntime"] == ["1.00", "2.00"]
    assert lines["the fastest of ours / onnxruntime"] == ["0.50", "1.00"]
    assert lines["error, onnxruntime"] == ["0.0100", "0.0200"]
    text = beside.table("64x128", {"a": ["1", "2"]}, (1, 8))
    assert text == "| 64x128 | 1 token | 8 tokens |\n|---|--:|--:|\n| a | 1 | 2 |"


def test_every_call_is_rested_before_and_warmed_before_it_is_timed(
    beside: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that a call moves on by a second, and the first call after another's by ten."""
    clock, last = [0.0], [""]

    def called(name: str) -> None:
        clock[0] += 1.0 if last[0] == name else 10.0
        last[0] = name

    rests: list[float] = []
    times = SimpleNamespace(perf_counter=lambda: clock[0], sleep=rests.append)
    monkeypatch.setattr(beside, "time", times)
    found = beside.medians({name: lambda name=name: called(name) for name in "ab"}, 0.0)
    assert found == {"a": 1.0, "b": 1.0}
    assert len(rests) == 2 * (beside.WARM + beside.LEAST)


def test_onnxruntime_multiplies_the_same_weight(
    beside: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where it is installed, which none of hwbench's environments needs."""
    for package in PACKAGES:
        pytest.importorskip(package)
    beside.compared(0.0)
    said = capsys.readouterr().out
    assert "DynamicQuantizeMatMul" in said or "MatMulIntegerToFloat" in said
    errors = {
        line.split(" | ")[0]: [float(cell) for cell in line.strip("| ").split(" | ")[1:]]
        for line in said.splitlines()
        if line.startswith("| error")
    }
    assert 3 <= len(errors) <= len(beside.OURS) + 1
    assert all(1e-3 < error < 3e-2 for cells in errors.values() for error in cells)
