"""What scripts of evidence keep between calls is read by the same settings and code alone."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from _evidence import EVIDENCE
from _evidence import script as evidence_script

from hwbench.formats._gram import Seen
from hwbench.studies import choose as study

kept = evidence_script("_kept")
THIS = __file__


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source, dtype=torch.float64)


# --- the file -----------------------------------------------------------------------------------


def test_a_row_is_read_by_the_same_settings_alone(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    assert kept.rows(file, THIS, {"windows": 8}) == []
    kept.keep(file, THIS, {"windows": 8, "shape": (2, 3)}, [{"a": 1}, {"a": 2}])
    kept.keep(file, THIS, {"windows": 9, "shape": (2, 3)}, [{"a": 3}])
    assert kept.rows(file, THIS, {"shape": [2, 3], "windows": 8}) == [{"a": 1}, {"a": 2}]
    assert kept.rows(file, THIS, {"windows": 8}) == []


def test_a_row_of_other_code_is_not_read(tmp_path: Path) -> None:
    file, script = tmp_path / "rows.jsonl", tmp_path / "script.py"
    script.write_text("LIMIT = 1\n")
    kept.keep(file, str(script), {}, [{"a": 1}])
    assert kept.rows(file, str(script), {}) == [{"a": 1}]
    script.write_text("LIMIT = 2\n")
    kept.code.cache_clear()
    assert kept.rows(file, str(script), {}) == []


def test_the_code_is_all_of_hwbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "hwbench"
    (package / "__pycache__").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(kept.hwbench, "__file__", str(package / "__init__.py"))

    def code() -> str:
        kept.code.cache_clear()
        return str(kept.code(THIS))

    before = code()
    (package / "__pycache__" / "a.pyc").write_text("")
    assert code() == before
    (package / "data.toml").write_text("")
    assert code() != before
    monkeypatch.undo()
    kept.code.cache_clear()


def test_a_line_of_before_settings_were_noted_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"case": "dense", "ours": 1.0}\n[1]\n')
    assert kept.rows(file, THIS, {}) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [('{"by": 1}\n{"by"', "ends in the middle of a line"), ("{}\n{\n", "Line 2 of .* is not JSON")],
)
def test_a_file_that_is_damaged_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    with pytest.raises(SystemExit, match=reason):
        kept.rows(file, THIS, {})


# --- the scripts --------------------------------------------------------------------------------


def test_gram_measures_other_windows_again_and_tables_the_layers_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, out = evidence_script("gram"), tmp_path / "gram.jsonl"

    def layers(windows: int, every: int) -> Any:
        for block in range(0, 4, every):
            x = drawn(10 * windows, 8, seed=block)
            name = f"model.layers.{block}.x"
            yield script.Layer(name, drawn(6, 8, seed=9 + block), Seen(x), x.T @ x)

    monkeypatch.setattr(script, "layers", layers)
    first = script.measured(["low_rank"], 0.5, 2, 1, out)
    assert [row.layer for row in first] == [f"model.layers.{block}.x" for block in range(4)]
    assert script.measured(["low_rank"], 0.5, 2, 2, out) == first[::2]
    others = script.measured(["low_rank"], 0.5, 3, 2, out)
    assert [row.gram for row in others] != [row.gram for row in first[::2]]
    told = [line.split(" were there")[0] for line in capsys.readouterr().out.splitlines()]
    assert told == ["0 of 4", "2 of 2", "0 of 2"]


def test_perplexity_measures_other_windows_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, out, asked = evidence_script("perplexity"), tmp_path / "p.jsonl", []

    def measured(case: str, windows: int, checked: int) -> Any:
        asked.append((case, windows, checked))
        return script.Row(case, 20.0, 30.0 if case == "far" else 20.0, 1.0)

    def call(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["perplexity.py", *words, "--threads", "1"])
        script.main()

    monkeypatch.setattr(script, "measured", measured)
    with pytest.raises(SystemExit, match=r"^far: the perplexities are"):
        call("dense", "far", "--out", str(out))
    call("dense", "--out", str(out))  # what was found of another case is no failure of this call
    call("dense", "--out", str(out), "--windows", "16")
    call("dense", "--out", str(out), "--checked", "4")
    assert asked == [("dense", 32, 8), ("far", 32, 8), ("dense", 16, 8), ("dense", 32, 4)]
    assert "1 of 1 were there already" in capsys.readouterr().out


def test_rounds_measures_what_is_missing_and_tables_what_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, out, asked = evidence_script("rounds"), tmp_path / "r.jsonl", []

    def layers(names: Any) -> Any:
        asked.append(list(names))
        for name in names:
            x = drawn(40, 16, seed=1)
            yield script.Layer(name, drawn(16, 16), Seen(x), x.T @ x)

    def constant(*formats: str, counts: tuple[int, ...] = (1, 2)) -> Any:
        return script.Constant(script._gram, "ROUNDS", counts, formats)

    monkeypatch.setattr(script, "layers", layers)
    with torch.no_grad():
        first = script.measured(["0.a", "1.b"], [constant("monarch")], 0.5, out)
        again = script.measured(["0.a"], [constant("monarch")], 0.5, out)
        more = script.measured(["0.a"], [constant("monarch", counts=(1, 3))], 0.5, out)
    assert [(row["layer"], row["count"]) for row in first] == [
        ("0.a", 1), ("0.a", 2), ("1.b", 1), ("1.b", 2),
    ]  # fmt: skip
    assert again == first[:2]
    assert [row["count"] for row in more] == [1, 3]
    assert asked == [["0.a", "1.b"], [], ["0.a"]]
    told = [line.split(" were there")[0] for line in capsys.readouterr().out.splitlines()]
    assert told == ["0 of 4", "2 of 2", "1 of 2"]
    threads = torch.get_num_threads
    monkeypatch.setattr(script.torch, "get_num_threads", lambda: threads() + 1)
    with torch.no_grad():
        script.measured(["0.a"], [constant("monarch")], 0.5, out)
    assert asked[-1] == ["0.a"]  # a table of other threads has seconds of its own


def test_choosing_measures_again_with_other_replicates_and_other_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, asked = evidence_script("choosing"), []

    def measure(question: Any, *, threads: int | None, out: Path, **_: Any) -> Path:
        asked.append((question.replicates, threads))
        out.mkdir(parents=True, exist_ok=True)
        run = out / f"{len(asked)}.jsonl"
        run.write_text("")
        return run

    monkeypatch.setattr(study, "measure", measure)
    monkeypatch.setattr(script, "read_header", lambda path: SimpleNamespace(created="today"))

    def run(replicates: int = 3, threads: int | None = 1, question: str = "codes") -> str:
        return script.measured("", question, tmp_path, replicates, threads).name

    assert [run(), run(), run(replicates=5), run(threads=2), run(question="budgets"), run()] == [
        "1.jsonl", "1.jsonl", "2.jsonl", "3.jsonl", "4.jsonl", "1.jsonl",
    ]  # fmt: skip
    assert asked == [(3, 1), (5, 1), (3, 2), (3, 1)]
    (tmp_path / "runs" / "1.jsonl").unlink()
    assert run() == "5.jsonl"


def test_a_budget_cannot_be_met_only_where_hwbench_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = evidence_script("choosing")

    def met(end: str, *sentences: str) -> bool:
        words = "; ".join(f"echo '{each}' >&2" for each in (*sentences, "hwbench: of no matter"))
        return bool(script.met(["sh", "-c", f"{words}; {end}"]))

    assert met("exit 0")
    unmet = "hwbench: The budget time=-60% cannot be met: ask for more."
    assert not met("exit 2", unmet)
    assert unmet in capsys.readouterr().err
    for end, code in (("exit 2", 2), ("exit 5", 5), ("kill -9 $$", -9)):
        with pytest.raises(SystemExit, match=f"^hwbench choose ended with {code}: .*of no matter"):
            met(end, "" if code == 2 else unmet)


def test_what_hwbench_says_of_such_a_budget_is_what_is_looked_for() -> None:
    script = evidence_script("choosing")
    costs = study.Costs(1.0, 1.0, 1.0, 0.0)
    layers = [study.Layer("a", (2, 2), {"dense": costs})]
    with pytest.raises(script.UsageError, match=script.UNMET):
        study.choose(layers, study.Budget("bytes", 0.5))


def test_git_ignores_what_scripts_keep_in_the_checkout() -> None:
    defaults = []
    for file in sorted(EVIDENCE.glob("*.py")):
        text = file.read_text(encoding="utf-8")
        if "_kept." in text and 'default=Path("' in text:
            defaults.append(text.partition('default=Path("')[2].partition('"')[0])
    assert defaults == [
        "choosing", "gram.jsonl", "perplexity.jsonl", "quantized.jsonl", "rounds.jsonl",
    ]  # fmt: skip
    ignored = {
        line.strip("/") for line in (EVIDENCE.parent / ".gitignore").read_text().splitlines()
    }
    assert set(defaults) <= ignored
