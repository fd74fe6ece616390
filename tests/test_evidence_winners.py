"""``evidence/winners.py``: formats are asked for what they can have, and the rest is told."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
from _evidence import script as evidence_script

import hwbench
from hwbench import plugins
from hwbench.errors import KnobError

QUICK = ["--rounds", "1", "--tokens", "2", "--densities", "0.5", "--dtypes", "float32"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    evidence_script("kernels")
    module = evidence_script("winners")
    monkeypatch.setattr(module, "SIDE", 64)
    return module


def lines(
    script: Any, words: list[str], patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    patch.setattr(sys, "argv", ["winners.py", *words, *QUICK])
    patch.setattr(script.torch, "set_num_threads", lambda count: None)
    script.main()
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_every_format_has_settings_whatever_it_is_decided_by(script: Any) -> None:
    for name in plugins.names("formats"):
        kind = hwbench.get_format(name)
        for formats in script.settings(kind, kind.KERNELS, [0.5], {}).values():
            assert {each.kernel for each in formats} <= set(kind.KERNELS)


def test_a_format_that_has_no_density_is_compared_in_the_settings_of_its_kernels(
    script: Any,
) -> None:
    kind = hwbench.get_format("quantized")
    found = script.settings(kind, ("int_mm", "int4pack", "dequantise"), [0.5], left := {})
    kernels = [[each.kernel for each in formats] for formats in found.values()]
    assert kernels == [["int_mm", "dequantise"], ["int4pack", "dequantise"], ["dequantise"]]
    assert all(len({each.type for each in formats}) == 1 for formats in found.values())
    assert not left


def test_a_kernel_that_cannot_have_a_density_leaves_it_to_the_others(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, real = hwbench.get_format("coo"), hwbench.get_format("coo").from_knobs

    def from_knobs(*sides: int, **knobs: Any) -> Any:
        if knobs["kernel"] == "spmm" and knobs["density"] == 0.1:
            raise KnobError("spmm cannot be so sparse.")
        return real(*sides, **knobs)

    monkeypatch.setattr(kind, "from_knobs", from_knobs)
    found = script.settings(kind, ("gather", "spmm", "linear"), [0.5, 0.1], left := {})
    kernels = [[each.kernel for each in formats] for formats in found.values()]
    assert kernels == [["gather", "spmm", "linear"], ["gather", "linear"]]
    assert left == {("spmm", "spmm cannot be so sparse."): {"density 0.1": None}}


def test_the_formats_after_one_without_a_density_are_reached_and_left_out_in_words(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["packed_dense", "quantized", "semi_structured", "armor", "--directions", "forward"]
    said = lines(script, words, monkeypatch, capsys)
    for kernel in ("mkl", "onednn"):
        assert any(
            line.startswith(f"packed_dense {kernel} ") or f": {kernel} (" in line for line in said
        )
    assert any(line.startswith("quantized dequantise ") for line in said)
    assert any(line.startswith("quantized left out: torchao (forward float32): ") for line in said)
    assert any(line.startswith("semi_structured left out: cusparselt, cutlass, ") for line in said)
    assert said[-1] == "left out, with one kernel: armor"


def test_a_kernel_is_counted_among_the_cases_that_it_runs(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "interleaved", lambda calls, rounds: dict.fromkeys(calls, 1.0))
    said = lines(script, ["bsr"], monkeypatch, capsys)  # spmm has no backward pass
    assert said[0] == (
        "bsr gather 1 of 1; clearest 1.00 times before the next: forward, density 0.5, 2 tokens, "
        "float32"
    )
    assert said[1] == "bsr spmm 0 of 1"
    assert said[2].startswith("bsr left out: spmm (step float32): ")
    assert said[3] == (
        "bsr left out: gather (density 0.5, step, float32): No other kernel runs there."
    )


@pytest.mark.parametrize(
    ("words", "reason"),
    [(["csrr"], "did you mean 'csr'?"), (["csr", "--kernels", "mkll"], "has a kernel mkll")],
)
def test_a_name_that_is_not_there_is_refused_at_once(
    script: Any, words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        script.parsed(words)
    assert reason in capsys.readouterr().err
