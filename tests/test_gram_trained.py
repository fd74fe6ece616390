"""Projections by outputs of trained layers: on rows that they never saw they lose less."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from _evidence import script as evidence_script

import hwbench
from hwbench.checkpoints import smollm2
from hwbench.formats._gram import Seen
from hwbench.workloads import _packaged, _trained

QUICK = ("low_rank", "block_dense", "monarch", "csr")
WORST = 1.5
"""How far the error of one layer may be above that of the plain projection."""

needs_minilm = pytest.mark.skipif(_packaged.missing() is not None, reason="the model is absent")
needs_smollm2 = pytest.mark.skipif(smollm2.missing() is not None, reason="SmolLM2 is absent")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return evidence_script("gram")


def row(name: str, none: float, gram: float, script: Any) -> Any:
    return script.Row(f"model.layers.{name}", "csr", 0.5, none, gram)


def test_the_table_counts_layers_and_names_the_worst(script: Any) -> None:
    rows = [
        row("0.a", 1.0, 0.5, script),
        row("1.a", 1.0, 0.7, script),
        row("2.a", 1.0, 1.2, script),
    ]
    last = script.table(rows).splitlines()[-1]
    assert last == "| csr | 0.5 | 3 | 66.7% | 0.700 | 2.a: 1.200 |"


def test_what_is_kept_is_not_measured_again(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = torch.randn(40, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    layer = script.Layer("model.layers.0.x", weight, Seen(rows[:20]), rows[20:].T @ rows[20:])
    monkeypatch.setattr(script, "layers", lambda *_: iter([layer]))
    out = tmp_path / "gram.jsonl"
    first = script.measured(["low_rank"], 0.5, 1, 1, out)
    monkeypatch.setattr(script, "compared", lambda *_: pytest.fail("it was measured again"))
    assert script.measured(["low_rank"], 0.5, 1, 1, out) == first
    plain = hwbench.get_format("low_rank").from_knobs(6, 8, density=0.5).project(weight)
    lost, exact = plain.to_dense().detach() - weight, rows[20:] @ weight.T
    expected = torch.linalg.norm(rows[20:] @ lost.T) / torch.linalg.norm(exact)
    assert first[0].none == pytest.approx(float(expected))


@needs_minilm
@pytest.mark.heavy
@pytest.mark.parametrize("shape", [(384, 384), (1536, 384), (384, 1536)])
def test_layers_of_a_sentence_encoder_lose_less(script: Any, shape: tuple[int, int]) -> None:
    (name,) = _packaged.chosen(*shape, 1)
    inputs, held = (
        _packaged._seen(part)[name.removesuffix(".weight")] for part in ("calibration", "held_out")
    )
    wide = held.double()
    weight = _trained.linears()[name].double()
    layer = script.Layer(name, weight, Seen(inputs), wide.T @ wide)
    for format_name in QUICK:
        described = hwbench.get_format(format_name).from_knobs(*shape, density=0.5)
        assert script.compared(described, layer, 0.5).ratio() < 1, format_name


@needs_smollm2
@pytest.mark.heavy
def test_layers_of_a_decoder_lose_less(script: Any, tmp_path: Path) -> None:
    actual = script.measured(QUICK, 0.5, 4, 15, tmp_path / "gram.jsonl")
    assert len(actual) == 14 * len(QUICK)  # the layers of the first and the sixteenth block
    for name in QUICK:
        rows = [each for each in actual if each.format == name]
        lower = sum(each.gram < each.none for each in rows) / len(rows)
        worst = max(rows, key=script.Row.ratio)
        assert worst.ratio() < (1 if name.startswith("low_rank") else WORST), worst
        assert lower >= 0.95, name
