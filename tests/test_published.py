"""``evidence/published.py``: spellings are the layers that they stand for."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from _evidence import script as evidence_script
from torch import Tensor

SIDE, TOKENS = 64, 3


@pytest.fixture(scope="module")
def script() -> ModuleType:
    for name in ("kernels", "published_code", "published_spellings", "published_layers"):
        evidence_script(name)
    return evidence_script("published")


def rows(script: Any) -> dict[str, Any]:
    return {row.name: row for row in script.published(SIDE)}


def sides(script: Any, row: Any, direction: str, code: Path | None = None) -> tuple[Any, Any, str]:
    """Our layers, the published side, and which of the two it is."""
    layers = script.ours(row, SIDE, direction)
    return layers, *script.theirs(row, next(iter(layers.values())), code)


def test_every_spelling_is_the_layer_that_it_stands_for(script: Any) -> None:
    for row in rows(script).values():
        for direction in ("forward", "step") if row.spelling.trains else ("forward",):
            layers, other, what = sides(script, row, direction)
            assert what == script.FROM_MATHS
            script.check(row, layers, other, TOKENS, direction)
        for parameter in other.parameters():
            parameter.data.mul_(1.01)
        with pytest.raises(ValueError, match=f"{row.name}, 3 tokens: y of kernel="):
            script.check(row, layers, other, TOKENS, direction)


def test_there_are_25_and_each_says_where_it_is_from(script: Any) -> None:
    found = rows(script)
    assert len(found) == len(script.published(SIDE)) == 25
    assert len({(row.source, row.code, str(row.knobs)) for row in found.values()}) == 25
    lines = script.listed(list(found.values())).splitlines()
    assert lines[2] == (
        "| low_rank/MBS | Memory Better Spent, master's thesis, ETH Zürich, "
        "doi:10.3929/ethz-c-000784403 | Zhurgut/MemoryBetterSpent 413df48, "
        "`src/Python/layers.py:LowRank` | two matrix products, and a bias added to what they give |"
    )
    assert all(row.code.count(":") == 1 for row in found.values())


@pytest.mark.parametrize("name", ["Butterfly", "Cores", "BlocksThenDense", "FormedSum"])
def test_gradients_that_are_written_by_hand(script: Any, name: str) -> None:
    import published_spellings as spelled  # the fixture has loaded it

    def drawn(*shape: int) -> Tensor:
        source = torch.Generator().manual_seed(len(shape) + sum(shape))
        return torch.randn(shape, generator=source, dtype=torch.float64).requires_grad_()

    given = {
        "Butterfly": (drawn(2, 6), drawn(2, 4, 3), drawn(2, 5, 4)),
        "Cores": (drawn(2, 6), drawn(2, 3, 4), drawn(2, 4, 5)),
        "BlocksThenDense": (drawn(2, 6), drawn(2, 4, 3), drawn(5, 8)),
        "FormedSum": (drawn(2, 6), drawn(5, 3), drawn(3, 6), drawn(2), torch.tensor([4, 17])),
    }
    assert torch.autograd.gradcheck(getattr(spelled, name).apply, given[name])


CODE = """
import absent.part
from absent.part import Anything
from beside import doubled

class LowRank:
    pass

class LowRankLight(Anything, __import__("torch").nn.Module):
    def forward(self, x):
        middle = x[:, :self.rank] + x[:, self.rank:] @ self.B.T
        return doubled(middle @ self.A.T + self.bias) / 2
"""


def test_published_code_multiplies_by_our_weights(script: Any, tmp_path: Path) -> None:
    row = rows(script)["low_rank_light first/MBS"]
    row = row._replace(source=row.source._replace(missing=("absent.part",)))
    assert sides(script, row, "step", tmp_path)[2] == script.FROM_MATHS
    folder = tmp_path / "MemoryBetterSpent" / "src" / "Python"
    folder.mkdir(parents=True)
    (folder / "layers.py").write_text(CODE)
    assert sides(script, row, "step", tmp_path)[2] == (
        "from the maths, as its code does not load: No module named 'beside'"
    )
    (folder / "beside.py").write_text("def doubled(y):\n    return 2 * y\n")
    layers, other, what = sides(script, row, "step", tmp_path)
    assert (what, type(other).__name__) == (script.PUBLISHED, "LowRankLight")
    script.check(row, layers, other, TOKENS, "step")
    assert {"left", "right"} <= {name for name, _ in next(iter(layers.values())).named_parameters()}
    assert [name for name, _ in other.named_parameters()] == ["A", "B", "bias"]


def test_a_cell_is_slower_where_its_whole_interval_is(script: Any) -> None:
    level = script.ratio("bmm", [1.04, 1.05, 1.2, 1.1, 1.08, 1.3, 1.2, 1.1, 1.1], [1.0] * 9)
    assert (level.value, level.low, level.high) == (1.1, 1.05, 1.2)
    assert str(level) == "1.10 (1.05–1.20)"
    slow = script.ratio("bmm", [2.4] * 9, [2.0] * 9)
    assert str(slow) == "**1.20 (1.20–1.20)**"
    quick = script.Ratio("onednn", 0.5, 0.4, 0.6)
    cells = [
        script.Cell("a/B", "step", 16, slow, quick),
        script.Cell("a/B", "step", 1, slow, slow, "\n  * ours: why"),
        script.Cell("a/B", "forward", 1, level, level),
    ]
    assert str(cells[0]) == "**1.20 (1.20–1.20)**, `onednn` 0.50 (0.40–0.60)"
    assert script.summary(cells) == (
        "Slower than 1.05, interval and all, of 3 cells: 2 with the default kernel, 1 with the "
        "fastest.\n* a/B, step, 1 tokens: **1.20 (1.20–1.20)**\n  * ours: why"
    )


def test_a_cell_is_timed_by_the_default_and_the_fastest(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(script.time, "perf_counter", lambda: clock[0])

    def taking(length: float) -> Any:
        return lambda: clock.__setitem__(0, clock[0] + length)

    calls = {"plain": taking(0.002), "quick": taking(0.001), "slow": taking(0.01)}
    default, best = script.timed(calls, taking(0.004), rounds=20, limit=0.01)
    assert (default.kernel, best.kernel) == ("plain", "quick")
    assert default.value == pytest.approx(0.5)
    assert best.value == pytest.approx(0.25)
    assert not default.slower


def test_too_few_rounds_for_an_interval_are_refused(
    script: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.parsed(["--rounds", str(script.FEWEST)]).rounds == script.FEWEST
    with pytest.raises(SystemExit):
        script.parsed(["--rounds", "5"])
    assert "--rounds must be at least 9: of fewer than six" in capsys.readouterr().err


def test_a_kernel_that_was_fast_once_is_not_told_as_the_fastest(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "fastest", lambda calls: "other")
    monkeypatch.setattr(script, "seconds", lambda call: 0.001)
    taken = {"plain": [1.0] * 9, "other": [2.0] * 9, "": [1.0] * 9}
    monkeypatch.setattr(script.kernels, "sampled", lambda calls, rounds: taken)
    default, best = script.timed({"plain": list, "other": list}, list, rounds=9, limit=1.0)
    assert (default.kernel, best.kernel, best.value) == ("plain", "plain", 1.0)
