"""Scripts of evidence refuse what they cannot do at once, and otherwise do what they say."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from _evidence import script as evidence_script

# --- rivals -------------------------------------------------------------------------------------


@pytest.fixture
def rivals() -> Iterator[ModuleType]:
    evidence_script("nights_simulated")
    yield evidence_script("rivals")
    for name in ("nights_simulated", "rivals"):
        sys.modules.pop(name, None)


def worlds(rivals: Any, patch: pytest.MonkeyPatch, *words: str) -> list[str]:
    """The worlds that a call simulates."""
    asked: list[str] = []

    def simulate(name: str, nights: int) -> dict[str, Any]:
        asked.append(name)
        return {}

    patch.setattr(rivals, "simulate", simulate)
    patch.setattr(sys, "argv", ["rivals.py", *words])
    rivals.main()
    return asked


def test_rivals_are_tried_in_every_world(rivals: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert worlds(rivals, monkeypatch) == [*rivals.WORLDS]
    assert worlds(rivals, monkeypatch, "--worlds", "plain") == ["plain"]


def test_a_world_that_is_not_there_is_refused_at_once(
    rivals: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        worlds(rivals, monkeypatch, "--worlds", "plain", "plane")
    assert "invalid choice: 'plane'" in capsys.readouterr().err


# --- layers in a model --------------------------------------------------------------------------


def test_cold_layers_are_called_after_the_eviction_of_hwbench() -> None:
    script, done = evidence_script("in_model"), list[str]()
    layers = [(lambda x, name=name: done.append(name), None) for name in "ab"]
    device = SimpleNamespace(evict_caches=lambda: done.append("evicted"))
    script.cold(SimpleNamespace(layers=layers), device)
    assert done == ["evicted", "a", "evicted", "b"]


def test_what_cold_layers_take_is_beside_the_seconds_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A clock on which a cold round takes ten seconds, and each other way of timing one."""
    script, now = evidence_script("in_model"), [0.0]

    def taking(seconds: float) -> Any:
        def way(*_: Any) -> float:
            now[0] += seconds
            return seconds

        return way

    monkeypatch.setattr(script.time, "perf_counter", lambda: now[0])
    for name in ("in_model", "in_turn", "hot", "whole"):
        monkeypatch.setattr(script, name, taking(1.0))
    monkeypatch.setattr(script, "passed", taking(0.0))
    monkeypatch.setattr(script, "cold", taking(10.0))
    timed = script.Timed(SimpleNamespace(), torch.zeros(0))
    script.rounds(timed, 44.0, 0.0, SimpleNamespace())
    assert len(timed.seconds["cold"]) == script.COLD_ROUNDS
    assert len(timed.seconds["hot"]) == 10  # 40 s of rounds, after 4 s of warming


# --- fuzz ---------------------------------------------------------------------------------------


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = evidence_script("fuzz")
    monkeypatch.setattr(module, "mutilated", lambda *_: pytest.fail("inputs were tried"))
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)
    return module


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "--resume: Cannot write .*: (Not a directory|File exists)"),
        ("[]", "holds something else than counts"),
        ("{", "holds something else than counts"),
        ('{"runs": {"tired": 4}}', "holds something else than counts"),
        ('{"runes": {"tried": 4}}', "has counts of runes, which is no kind"),
    ],
)
def test_a_file_that_cannot_be_resumed_is_told_before_any_input(
    fuzz: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    file = tmp_path / "counts.json"
    file.write_text(text)
    named = file if text else file / "in-a-file.json"
    monkeypatch.setattr(sys, "argv", ["fuzz.py", "--resume", str(named)])
    with pytest.raises(SystemExit, match=reason):
        fuzz.main()


def test_counts_that_are_kept_are_gone_on_with(fuzz: Any, tmp_path: Path) -> None:
    file = tmp_path / "counts.json"
    assert fuzz.resumed(file) == {}
    assert json.loads(file.read_text()) == {}
    kind = next(iter(fuzz._mutants.KINDS))
    file.write_text(json.dumps({kind: {"tried": 4, "outcomes": {"exit 2": 4}}}))
    stored = fuzz.resumed(file)
    assert stored == {kind: fuzz.Tally(4, {"exit 2": 4})}
    assert fuzz.kept_structures(0, tmp_path, stored, file) == 0
