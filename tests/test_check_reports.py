"""What ``hwbench check`` writes for others to read: XML, Markdown, annotations and JSON."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from _check import FACTS, HOSTILE, Call, five, hostile, kept, made
from _synthetic import failed
from markdown_it import MarkdownIt
from rich.console import Console

from hwbench.analysis.outcome import Outcome
from hwbench.records import Change, Ratio, Status, Verdict
from hwbench.report import _words as words
from hwbench.report import github, junit, markdown
from hwbench.report.changes import amounts, table


def test_reports_are_written_whatever_the_verdict(
    hwbench: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    five()
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    runs = {
        0: (kept(made(9)), "nights"),
        1: (kept(made(10, slower=1.2)), "nights"),
        4: (kept(made(11, facts={**FACTS, "threads": 3})), "nights"),
        5: (kept(failed(made(12), Status.WRONG, "row 3")), "nights"),
        6: (kept(made(13)), "nowhere"),
    }
    for expected, (run, baseline) in runs.items():
        names = {kind: f"out/{expected}.{kind}" for kind in ("xml", "md", "json")}
        code, out, _ = hwbench(
            "check", run, "-b", baseline, "--github", "--junit", names["xml"],
            "--markdown", names["md"], "--json-out", names["json"],
        )  # fmt: skip
        assert code == expected
        told = json.loads(Path(names["json"]).read_text())
        assert told["exit"] == expected
        suite = ET.parse(names["xml"]).getroot().find("testsuite")  # noqa: S314
        assert suite is not None
        bad = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        assert (bad > 0) == (expected != 0)
        assert int(suite.get("tests", 0)) == len(suite.findall("testcase")) > 0
        assert told["sentence"] in Path(names["md"]).read_text(encoding="utf-8")
        level = "error" if expected else "notice"
        assert f"::{level} title=hwbench check::" in out
    assert Path("summary.md").read_text(encoding="utf-8").count(markdown.MARKER) == len(runs)


def test_json_is_all_there_is_on_the_output(hwbench: Call) -> None:
    five()
    code, out, _ = hwbench("check", kept(made(9, slower=1.2)), "-b", "nights", "--json")
    told = json.loads(out)
    assert told["exit"] == code == 1
    worst = told["changes"][0]
    assert {"case", "metric", "ratio", "low", "high", "verdict"} <= set(worst)
    assert worst["verdict"] == "regressed"
    assert worst["low"] < worst["ratio"] < worst["high"]
    assert worst["ratio"] == pytest.approx(1.2, rel=0.03)


def test_the_comment_names_cases_in_words_and_has_the_values_of_both_sides(hwbench: Call) -> None:
    five()
    run = kept(made(9, slower=1.2))
    code, out, _ = hwbench("check", run, "-b", "nights", "--json", "--markdown", "check.md")
    worst = json.loads(out)["changes"][0]
    assert code == 1
    assert worst["new"] / worst["base"] == pytest.approx(worst["ratio"], rel=0.03)
    text = Path("check.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| regressed \|.*$", text, re.MULTILINE)
    _, verdict, case, metric, base, now, change, *_ = (cell.strip() for cell in row.split("|"))
    assert (verdict, metric) == ("regressed", worst["metric"])
    assert case == f"` {words.case(worst['case'])} `" != worst["case"]
    assert (base, now) == (f"{worst['base']:.3g}×", f"{worst['new']:.3g}×")
    assert change.startswith("+")


@pytest.mark.parametrize(("width", "heads"), [(80, False), (119, False), (120, True)])
def test_a_wide_terminal_has_the_values_beside_their_change(width: int, heads: bool) -> None:
    ratio = Ratio(value=1.2, low=1.1, high=1.3, counts=(5, 5))
    case = "linear/forward/low_rank[density=0.5]/64x64/t4/float32/hot/eager/cpu"
    change = Change(
        case=case, metric="time", verdict=Verdict.REGRESSED, ratio=ratio, base=1e-3, new=1.2e-3
    )
    told = Outcome(run="r", suite="s", machine="m", changes=[change], measured=1)
    stream = StringIO()
    for part in table(told, width):
        Console(file=stream, width=width, force_terminal=False).print(part)
    shown = stream.getvalue()
    assert ("baseline" in shown and "1.00 ms" in shown and "1.20 ms" in shown) == heads
    assert "low_rank" in shown
    assert "linear/" not in shown


@pytest.mark.parametrize(
    ("metric", "value", "said"),
    [
        ("time", 1.5e-3, "1.50 ms"), ("relative", 0.5, "0.500×"), ("score", 26.4, "26.4"),
        ("saved_bytes", 2e6, "2.00 MB"), ("zero_share", 0.25, "0.250"), ("time", None, ""),
    ],
)  # fmt: skip
def test_a_value_has_the_unit_of_its_metric(metric: str, value: float | None, said: str) -> None:
    change = Change(case="c", metric=metric, verdict=Verdict.EQUIVALENT, base=value, new=value)
    assert amounts(change) == (said, said)


@pytest.mark.parametrize(
    ("fields", "heading"),
    [
        ({}, "### ❌ Regressed (unconfirmed): 1 case."),
        ({"confirmed": frozenset("c")}, "### ❌ Regressed (confirmed): 1 case."),
        ({"mismatch": ["*threads* were 2"]}, "### ❌ hwbench check"),
        ({"problem": "*No* run can be a baseline."}, "### ❌ hwbench check"),
        ({"measured": 0}, "### ❌ hwbench check"),
    ],
)
def test_the_heading_is_the_verdict_unless_it_quotes_a_run_file(
    fields: dict[str, Any], heading: str
) -> None:
    ratio = Ratio(value=1.2, low=1.1, high=1.3, counts=(5, 5))
    change = Change(case="c", metric="time", verdict=Verdict.REGRESSED, ratio=ratio)
    told = Outcome(
        **{"run": "*r*", "suite": "s", "machine": "m", "changes": [change], "measured": 1, **fields}
    )
    lines = markdown.render(told).splitlines()
    assert lines[2] == heading
    assert (lines[4] == f"` {told.sentence()} `") == (heading == "### ❌ hwbench check")


def test_hostile_names_stay_text_in_xml() -> None:
    root = ET.fromstring(junit.render(hostile()))  # noqa: S314 (our own)
    assert {element.tag for element in root.iter()} == {
        "testsuites", "testsuite", "testcase", "failure", "error", "skipped", "properties",
        "property",
    }  # fmt: skip
    names = [case.get("name", "") for case in root.iter("testcase")]
    assert len(names) == 3 * len(HOSTILE)
    assert any("<script>" in name for name in names)
    assert not any("\x1b" in name or "\n" in name for name in names)


def test_hostile_names_stay_text_in_markdown() -> None:
    text = markdown.render(hostile())
    tokens = MarkdownIt("commonmark").enable("table").enable("strikethrough").parse(text)
    blocks = {token.type for token in tokens if token.type == "html_block"}
    html = [token.content.strip() for token in tokens if token.type == "html_block"]
    assert blocks == {"html_block"}
    assert [html[0], html[-1]] == [markdown.MARKER, "</details>"]
    assert len(html) == 3
    inline = [child for token in tokens if token.children for child in token.children]
    assert {child.type for child in inline} <= {"text", "code_inline", "softbreak"}
    said = "".join(child.content for child in inline if child.type == "text")
    assert "evil" not in said
    assert "@" not in said
    assert "alert" not in said
    rows = sum(token.type == "tr_open" for token in tokens)
    cells = sum(token.type in ("td_open", "th_open") for token in tokens)
    assert rows == 3 * len(HOSTILE) + 2
    assert cells == 7 * rows


def test_hostile_names_stay_text_in_workflow_commands() -> None:
    lines = github.commands(hostile())
    assert len(lines) == github.MOST_ANNOTATIONS
    for line in lines:
        assert "\n" not in line
        assert "\r" not in line
        assert re.match(r"::error title=[^:,]*(%2C[^:,]*)*::", line)
    assert not re.search(r"(?m)^::error::injected", "\n".join(lines))


def test_hostile_names_stay_text_on_a_terminal() -> None:
    stream = StringIO()
    for part in table(hostile()):
        Console(file=stream, width=100, force_terminal=False).print(part)
    assert "\x1b" not in stream.getvalue()
    assert "\u202e" not in stream.getvalue()


def test_five_thousand_cases_stay_within_what_github_takes() -> None:
    name = "linear/backward_weight/low_rank[density=0.5,kernel=torch]/4096x11008/t512/bfloat16/hot"
    ratio = Ratio(value=1.2, low=1.1, high=1.3, counts=(5, 5))
    for verdict in (Verdict.REGRESSED, Verdict.UNDECIDED):
        changes = [
            Change(
                case=f"{name}/{n}", metric="time", verdict=verdict, ratio=ratio, reason="x" * 200
            )
            for n in range(5000)
        ]
        told = Outcome(run="r", suite="s", machine="m", changes=changes, measured=1)
        comment, summary = markdown.render(told), github.summary(told)
        assert 20_000 < len(comment.encode()) < 65_536
        assert 500_000 < len(summary.encode()) < 1_048_576
        for text in (comment, summary):
            shown = text.count(f"| {verdict.value} |")
            assert f"{5000 - shown} cases more, left out for length." in text
        assert len(github.commands(told)) <= 10


def test_the_worst_is_first_everywhere() -> None:
    ratios = [1.05, 1.4, 1.2]
    changes = [
        Change(
            case=f"case-{value}", metric="time", verdict=Verdict.REGRESSED,
            ratio=Ratio(value=value, low=value, high=value, counts=(5, 5)),
        )
        for value in ratios
    ]  # fmt: skip
    told = Outcome(run="r", suite="s", machine="m", changes=changes, measured=1)
    for text in (markdown.render(told), junit.render(told), "\n".join(github.commands(told))):
        assert re.findall(r"case-([\d.]+\d)", text) == ["1.4", "1.2", "1.05"]
