"""The answer as Markdown: it names what to use, stays in its bounds, and is inert."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from _check import kept
from _synthetic import HOSTILE, hostile_run, linear_case, projection_case, questions, run_of
from msgspec.structs import replace

from hwbench import units
from hwbench.report import decision, issue
from hwbench.report.markdown import COMMENT_BYTES, code
from hwbench.report.rows import numbered, report_rows
from hwbench.store import Run

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run() -> Run:
    return run_of(questions())


def outside_code(text: str) -> str:
    """What Markdown and HTML read: the text without code spans and what is escaped."""
    bare = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", text)
    return re.sub(r"\\.", "", bare)


def test_it_says_what_to_use_in_each_setting_as_the_page_does(run: Run) -> None:
    text = issue.render([run])
    for setting in decision.settings(numbered(report_rows(run))):
        assert f"**{code(setting.title)}**" in text
        best = setting.best(math.inf)
        assert best is not None
        time = units.seconds(best.row.time_seconds)
        assert f"**use {code(best.name)}**, {time}{setting.instead(best)}, " in text
        ranks = [text.rindex(f"| {code(each.name)} |") for each in setting.candidates]
        assert len(ranks) == len(setting.candidates)
    first = decision.settings(numbered(report_rows(run)))[0]
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    names = [line.split(" | ")[0].removeprefix("| ") for line in rows[: len(first.candidates)]]
    assert names == [code(each.name) for each in first.candidates]  # the fastest first
    assert all(line.count(" | ") == 5 for line in rows)


@pytest.mark.parametrize("most", [1500, 4000, COMMENT_BYTES])
def test_it_stays_in_its_bounds_and_counts_what_it_left_out(run: Run, most: int) -> None:
    text = issue.render([run], most)
    assert len(text.encode()) <= most
    assert ("left out for length" in text) == (most < COMMENT_BYTES)
    assert text.count("<details>") == text.count("</details>")


def test_names_of_a_run_are_inert() -> None:
    """Neither Markdown nor HTML, a mention, a reference nor a link comes from a run file."""
    evil = "@team #12 http://x.example www.x.example [a](b) ![c](d) |x| <b> `y` *z* GH-7"
    hostile = hostile_run()
    renamed = replace(hostile.header, suite=evil, run=evil, version=evil, created=evil)
    renamed.environment.fingerprint["device"] = {"name": evil}
    hostile.header = renamed
    for text in (issue.render([hostile]), issue.render([hostile, run_of(questions())])):
        bare = outside_code(text).replace("<details><summary>", "").replace("</summary>", "")
        bare = bare.replace("</details>", "")
        for bad in ("@team", "#12", "http:", "www.", "](", "<b>", "<img", "GH-7", "*z*"):
            assert bad not in bare, bad
        assert HOSTILE not in bare
    assert issue.inert("a_b <i> @x") == "a\\_b \\<i\\> @\u200bx"


def test_compiled_layers_are_a_sentence_of_the_same_layers_as_they_are() -> None:
    members = [("dense", None), ("low_rank", 0.5)]
    modes = ("eager", "compile")
    run = run_of([linear_case(n, d, mode=mode) for mode in modes for n, d in members])
    (eager, compiled) = decision.settings(numbered(report_rows(run)))
    text = issue.render([run])
    assert f"\n- {issue.inert(eager.compiled)}\n" in text
    assert eager.compiled.startswith("Compiled, the answer is low_rank, density 0.495: ")
    answer = text.partition("<details>")[0]
    assert f"**{code(eager.title)}**" in answer
    assert f"**{code(compiled.title)}**" not in answer
    assert f"<summary>{compiled.title}</summary>" in text


@pytest.mark.parametrize("rivals", ["tied", "close", "shorter", "unjudged", "modes"])
def test_every_kind_of_rival_of_the_terminal_is_in_the_document(
    run: Run, rivals: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = decision.settings(numbered(report_rows(run)))[0]
    said = ["csr ran in two modes."] if rivals == "modes" else [setting.candidates[3]]
    monkeypatch.setattr(decision.Setting, rivals, lambda self, best, limit: said)
    text = issue.render([run])
    spoken = "\n".join(decision.terminal_lines([setting]))
    if rivals == "modes":
        assert f"  - {issue.inert(said[0])}" in text
        assert said[0] in spoken
        return
    words = {
        "tied": "ied with it",
        "close": "oo close to call",
        "shorter": "horter times, but not measured",
        "unjudged": "aster once, but the",
    }
    name = setting.candidates[3].name
    assert re.search(rf"  - .{words[rivals]}.*: {re.escape(code(name))}", text)
    assert re.search(rf"    .{words[rivals]}.*: {re.escape(name)}", spoken)


def test_the_document_gives_the_advice_of_the_terminal(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision.Candidate, "verdict", decision.UNDECIDED)
    text = issue.render([run])
    assert "**keep dense, or try " in text
    assert "**use " not in text


def test_a_run_of_scores_says_what_keeps_the_most() -> None:
    cases = [projection_case(name, each) for name in ("low_rank", "csr") for each in (1.0, 0.5)]
    assert "In 50 % of dense’s bytes, use " in issue.render([run_of(cases)])
    assert "times no format against dense" in issue.render([run_of([linear_case("dense", None)])])


def test_the_verb_prints_it_and_writes_it(hwbench: Call, run: Run, tmp_path: Path) -> None:
    path = kept(run, tmp_path)
    code_, said, _ = hwbench("report", str(path), "--format", "md")
    assert code_ == 0
    assert said.startswith("### ` ")
    page = tmp_path / "page.md"
    assert hwbench("report", str(path), "-o", str(page))[0] == 0
    assert page.read_text(encoding="utf-8").split() == said.split()
    other = tmp_path / "other.md"
    assert hwbench("report", str(path), "--format", "html", "-o", str(other))[0] == 0
    assert other.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "html or md" in hwbench("report", str(path), "--format", "pdf")[2]
    told = hwbench("report", str(path), "--format", "md", "--samples", "csr")[2]
    assert "Markdown shows no samples" in told
