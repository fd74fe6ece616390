"""``hwbench check``: every exit code, one sentence for everything that is wrong, every report."""

from __future__ import annotations

import json
import re
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from _synthetic import failed, linear_case, projection_case, run_of
from markdown_it import MarkdownIt
from msgspec.structs import replace

from hwbench.outcome import Outcome
from hwbench.records import Change, Measurement, PlannedLine, Ratio, ResultLine, Status, Verdict
from hwbench.report import github, junit, markdown
from hwbench.report.changes import table
from hwbench.store import Run, RunWriter, read_run
from hwbench.studies import gate

CASES = [linear_case("dense", None), linear_case("low_rank", 0.5), linear_case("csr", 0.5)]
FACTS = {"name": "Example Processor 9000", "threads": 2, "torch": "2.13.0"}

Call = Callable[..., tuple[int, str, str]]


def made(
    day: int,
    cases: Sequence[Any] = CASES,
    *,
    slower: float = 1.0,
    suite: str = "linear",
    facts: dict[str, Any] = FACTS,
    replicates: int = 5,
    steady: bool = False,
) -> Run:
    """A run of that day in which low_rank takes ``slower`` times as long."""
    name = f"202601{day:02d}-000000-{suite}-cpu-{day:04x}"
    run = run_of(
        cases, replicates=replicates, seed=0 if steady else day, name=name, fingerprint=facts
    )
    run.header = replace(run.header, suite=suite, created=f"2026-01-{day:02d}T00:00:00+00:00")
    run.results = [
        replace(
            result,
            measurements=[
                replace(m, values=[slower * value for value in m.values])
                if m.quantity in ("relative_time", "time_seconds", "score")
                else m
                for m in result.measurements
            ],
        )
        if "low_rank" in result.case
        else result
        for result in run.results
    ]
    return run


def kept(run: Run, folder: str | Path = ".") -> str:
    """The path of the run's file in a folder."""
    lines = [PlannedLine(id=case, planned=planned) for case, planned in run.planned.items()]
    writer = RunWriter.create(Path(folder), run.header, lines)
    writer.append(*[ResultLine(result=result) for result in run.results])
    if run.footer:
        writer.append(run.footer)
    writer.close()
    return str(writer.path)


def five(folder: str = "nights", **options: Any) -> str:
    for day in range(1, 6):
        kept(made(day, **options), folder)
    return folder


def one_sentence(err: str) -> str:
    """The only line on the error stream; nothing there looks like a bug."""
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert "Traceback" not in err
    assert "a bug" not in err
    return lines[0]


# Every exit code


def test_nothing_changed_is_0(hwbench: Call) -> None:
    code, out, err = hwbench("check", kept(made(9)), "--baseline", five())
    assert code == 0
    assert "No regression" in one_sentence(err)
    assert "against 5 runs, 20260101" in out


def test_a_regression_is_1(hwbench: Call) -> None:
    code, out, err = hwbench("check", kept(made(9, slower=1.1)), "--baseline", five())
    assert code == 1
    assert one_sentence(err) == "hwbench: Regressed (unconfirmed): 1 case."
    assert re.search(r"regressed\s+linear/forward/low_rank", out)


def test_an_improvement_is_0(hwbench: Call) -> None:
    code, out, _ = hwbench("check", kept(made(9, slower=0.9)), "--baseline", five())
    assert code == 0
    assert "improved" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.jsonl", "-b", "nights"], "Cannot read the run none.jsonl"),
        (["bad.jsonl", "-b", "nights"], "is not a run file"),
        (["new.jsonl"], "Missing option '--baseline'"),
        (["new.jsonl", "-b", "nights", "--threshold", "much"], "--threshold is a share"),
        (["new.jsonl", "-b", "nights", "--threshold", "0"], "--threshold is a share"),
        (["new.jsonl", "-b", "nights", "--threshold", "200%"], "--threshold is a share"),
        (["new.jsonl", "-b", "nights", "--metric", "tiem"], "did you mean 'time'"),
        (["new.jsonl", "-b", "nights", "--window", "0"], "--window"),
        (["new.jsonl", "-b", "nights", "--fail-on", "anything"], "--fail-on takes undecided"),
        (["new.jsonl", "-b", "nights", "--json", "--github"], "use --json-out"),
        (["new.jsonl", "-b", "nights", "--junit", "bad.jsonl/x.xml"], "Cannot write"),
    ],
)
def test_a_mistake_is_2(hwbench: Call, arguments: list[str], words: str) -> None:
    five()
    Path("bad.jsonl").write_text("= nonsense\n")
    Path(kept(made(9))).rename("new.jsonl")
    code, out, err = hwbench("check", *arguments)
    assert code == 2
    assert words in one_sentence(err)
    assert out == ""


def test_undecided_is_3_where_that_is_asked_for(hwbench: Call) -> None:
    five()
    new = kept(made(9, slower=1.035))
    code, _, err = hwbench("check", new, "-b", "nights")
    assert code == 0
    code, out, err = hwbench("check", new, "-b", "nights", "--fail-on", "undecided")
    assert code == 3
    assert "Not decided" in one_sentence(err)
    assert "undecided" in out


@pytest.mark.parametrize("folder", [False, True])
def test_another_machine_is_4(hwbench: Call, folder: bool) -> None:
    old = kept(made(1, facts={**FACTS, "threads": 16}), "nights")
    code, out, err = hwbench(
        "check", kept(made(9, slower=1.5)), "--baseline", "nights" if folder else old
    )
    assert code == 4
    assert "threads was 16 and is 2" in one_sentence(err)
    assert "incomparable" in out


def test_runs_of_other_machines_are_passed_over(hwbench: Call) -> None:
    five()
    for day in (6, 7):
        kept(made(day, facts={**FACTS, "threads": 16}), "nights")
    code, out, _ = hwbench("check", kept(made(9)), "-b", "nights", "--json")
    assert code == 0
    assert [run[:8] for run in json.loads(out)["baseline"]] == [f"2026010{d}" for d in range(1, 6)]
    assert json.loads(out)["notes"] == ["Runs in nights that are left out: 2 of another machine."]


@pytest.mark.parametrize("status", [Status.WRONG, Status.CRASHED, Status.TIMED_OUT])
def test_a_failed_case_is_5(hwbench: Call, status: Status) -> None:
    new = made(9, slower=1.5)
    bad = failed(made(9, CASES[2:]), status, "row 3")
    new.results = [r for r in new.results if "csr" not in r.case] + bad.results
    code, out, err = hwbench("check", kept(new), "--baseline", "nowhere")
    assert code == 5  # before 6, and before 1
    assert "Wrong, crashed or timed out: 1 case" in one_sentence(err)
    assert "row 3" in out


@pytest.mark.parametrize("status", [Status.UNSUPPORTED, Status.OUT_OF_MEMORY])
def test_a_run_that_measured_nothing_is_5(hwbench: Call, status: Status) -> None:
    five()
    code, _, err = hwbench("check", kept(failed(made(9), status, "why")), "-b", "nights")
    assert code == 5
    assert "Nothing could be measured" in one_sentence(err)
    both = kept(failed(made(8), status, "why"))
    assert hwbench("check", both, "-b", kept(failed(made(7), status, "why")))[0] == 5
    empty = made(10)
    empty.results.clear()
    assert hwbench("check", kept(empty), "-b", "nights")[0] == 5


def test_no_usable_baseline_is_6(hwbench: Call) -> None:
    new = kept(made(9))
    Path("empty").mkdir()
    Path("bad.jsonl").write_text("= nonsense\n")
    Path("future.jsonl").write_text('{"line":"header","schema":99}\n')
    unfinished = made(3)
    unfinished.footer = None
    newer = Path("newer")
    kept(made(20), newer)
    kept(made(21, suite="other"), newer)
    for baseline, words in (
        ("nowhere", "There is no baseline nowhere"),
        ("empty", "No run in empty can be a baseline: it holds none"),
        ("bad.jsonl", "is not a run file"),
        ("future.jsonl", "has schema 99; this hwbench reads up to 1"),
        (kept(unfinished), "is not finished; go on with: hwbench run --resume"),
        (new, "is the run itself"),
        ("newer", "1 of another suite; 1 made after it"),
        (kept(made(4, [linear_case("btt", 0.5)])), "No case of the baseline can be compared"),
        (kept(failed(made(5), Status.CRASHED, "x")), "No case of the baseline can be compared"),
    ):
        code, _, err = hwbench("check", new, "--baseline", baseline)
        assert code == 6, baseline
        assert words in one_sentence(err)
    code, _, err = hwbench("check", new, "-b", kept(made(6)), "--metric", "score")
    assert code == 6
    assert "No case of the baseline can be compared" in one_sentence(err)


# Never a false pass


def test_a_run_that_was_cut_off_does_not_pass(hwbench: Call) -> None:
    five()
    run = made(9)
    run.footer = None
    whole = Path(kept(run))
    code, _, err = hwbench("check", str(whole), "-b", "nights")
    assert code == 2
    assert f"go on with: hwbench run --resume {whole}" in one_sentence(err)
    whole.write_bytes(whole.read_bytes()[:-40])
    assert hwbench("check", str(whole), "-b", "nights")[0] == 2
    whole.write_bytes(b"")
    assert hwbench("check", str(whole), "-b", "nights")[0] == 2


def test_two_suites_share_no_case_and_do_not_pass(hwbench: Call) -> None:
    old = kept(made(1, [projection_case("low_rank", 0.5)], suite="projection"))
    code, _, err = hwbench("check", kept(made(9)), "-b", old)
    assert code == 6
    assert "No case of the baseline can be compared" in one_sentence(err)


def test_a_case_that_is_gone_is_told(hwbench: Call) -> None:
    five()
    fewer = kept(made(9, CASES[:2]))
    code, out, _ = hwbench("check", fewer, "-b", "nights")
    assert code == 0
    assert re.search(r"gone\s+linear/forward/csr", out)
    assert hwbench("check", fewer, "-b", "nights", "--fail-on", "undecided")[0] == 3


def test_damaged_and_unfinished_runs_of_a_folder_are_told(hwbench: Call) -> None:
    five()
    unfinished = made(6)
    unfinished.footer = None
    kept(unfinished, "nights")
    damaged = Path(kept(made(7), "nights"))
    damaged.write_bytes(damaged.read_bytes().replace(b'"replicate":3', b'"replicate":x'))
    Path("nights/notes.jsonl").write_text("remember the milk\n")
    confirming = made(8)
    confirming.header = replace(confirming.header, arguments={"confirms": "another"})
    kept(confirming, "nights")
    code, out, _ = hwbench("check", kept(made(9)), "-b", "nights", "--json")
    told = json.loads(out)
    assert code == 0
    assert len(told["baseline"]) == 5
    assert told["notes"] == [
        "Runs in nights that are left out: 1 cannot be read; 1 damaged; 1 not finished."
    ]


def test_the_window_is_the_last_runs_and_fewer_raise_the_threshold(hwbench: Call) -> None:
    for day in range(1, 9):
        kept(made(day), "nights")
    new = kept(made(9))
    _, out, _ = hwbench("check", new, "-b", "nights", "--json")
    assert [run[6:8] for run in json.loads(out)["baseline"]] == ["04", "05", "06", "07", "08"]
    _, out, _ = hwbench("check", new, "-b", "nights", "--window", "3", "--json")
    told = json.loads(out)
    assert [run[6:8] for run in told["baseline"]] == ["06", "07", "08"]
    assert told["used_threshold"] == told["threshold"] == 0.03
    _, out, _ = hwbench("check", kept(made(3), "later"), "-b", "nights", "--json")
    told = json.loads(out)
    assert [run[6:8] for run in told["baseline"]] == ["01", "02"]
    assert told["used_threshold"] == pytest.approx(0.03 * (1.5 / 1.2) ** 0.5)
    assert "Against 2 baseline runs instead of 5 the threshold is 3.4 %" in told["notes"][0]


def test_another_version_is_told_and_compared(hwbench: Call) -> None:
    five(facts={**FACTS, "torch": "2.12.0"})
    code, out, _ = hwbench("check", kept(made(9)), "-b", "nights")
    assert code == 0
    assert "Not the same as before: torch was '2.12.0' and is '2.13.0'." in out


def test_scores_are_compared_by_seed(hwbench: Call) -> None:
    cases = [projection_case("low_rank", 0.5)]
    five(cases=cases, steady=True)
    same, worse = made(8, cases, steady=True), made(9, cases, slower=1.2, steady=True)
    assert hwbench("check", kept(same), "-b", "nights")[0] == 0
    code, out, _ = hwbench("check", kept(worse), "-b", "nights", "--fail-on", "undecided")
    assert code == 3  # one seed proves nothing
    assert "One replicate on each side tells no spread" in out


def with_bytes(run: Run, peak: float) -> Run:
    """The run in which low_rank takes so many bytes at most."""
    memory = Measurement(quantity="peak_bytes", unit="B", values=[peak])
    run.results = [
        replace(r, measurements=[*r.measurements, memory])
        if "low_rank" in r.case and r.replicate == 0
        else r
        for r in run.results
    ]
    return run


def test_one_byte_more_is_a_regression_and_one_less_an_improvement(hwbench: Call) -> None:
    for day in range(1, 6):
        kept(with_bytes(made(day), 1e6), "nights")
    for day, peak, expected, verdict in (
        (9, 1e6, 0, "equivalent"),
        (10, 1e6 + 1, 1, "regressed"),
        (11, 1e6 - 1, 0, "improved"),
    ):
        new = kept(with_bytes(made(day), peak))
        code, out, _ = hwbench("check", new, "-b", "nights", "--metric", "memory", "--json")
        told = json.loads(out)
        assert code == expected
        assert [c["verdict"] for c in told["changes"] if c["ratio"]] == [verdict]
        assert hwbench("check", new, "-b", "nights")[0] == 0  # by time nothing changed


def test_a_worse_score_of_the_same_seeds_is_a_regression(hwbench: Call) -> None:
    cases = [projection_case("low_rank", 0.5)]

    def seeded(day: int, worse: float = 1.0) -> Run:
        run = made(day, cases, steady=True)
        run.results = [
            replace(
                run.results[0],
                replicate=seed,
                seed=seed,
                measurements=[
                    Measurement(quantity="score", unit="", values=[worse * 0.2 * (1 + 0.1 * seed)])
                ],
            )
            for seed in range(5)
        ]
        return run

    for day in range(1, 6):
        kept(seeded(day), "nights")
    for day, worse, expected in ((8, 1.0, 0), (9, 1.1, 1), (10, 0.9, 0)):
        code, out, _ = hwbench("check", kept(seeded(day, worse)), "-b", "nights", "--json")
        assert code == expected
        (told,) = json.loads(out)["changes"]
        assert told["metric"] == "score"
        assert told["ratio"] == pytest.approx(worse)


def test_the_replicates_that_are_named_would_decide(hwbench: Call) -> None:
    """Two values a side, too few; the number that is named then shows a change of the threshold."""
    old, new = made(1, replicates=2), made(9, replicates=2, slower=1.02)
    code, out, _ = hwbench("check", kept(new), "-b", kept(old), "--json")
    assert code == 0
    named = [c["replicates_needed"] for c in json.loads(out)["changes"] if "low_rank" in c["case"]]
    assert named[0] is not None
    many = max(named[0], 3)
    old, new = made(2, replicates=many), made(10, replicates=many, slower=1.10)
    code, out, _ = hwbench("check", kept(new), "-b", kept(old), "--json")
    assert code == 1


# A confirmation


@pytest.mark.slow
def test_what_is_flagged_is_measured_again_with_its_dense(
    hwbench: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("tiny.toml").write_text(
        'schema = 1\nname = "tiny"\n[plan]\nreplicates = 3\nbudget_seconds = 0.005\n'
        '[[cases]]\nworkload = "linear"\ndirection = "forward"\nshape = [64, 64]\n'
        'tokens = [256, 512]\nformat = [{ name = "dense" }, { name = "low_rank", density = 0.5 }]\n'
    )
    run = ["run", "--suite", "tiny.toml", "--device", "fake", "--threads", "1"]
    script = {"seed": 1, "case_noise": 0.003}
    monkeypatch.setattr(gate, "CONFIRMATIONS", 3)
    monkeypatch.setenv("HWBENCH_FAKE", json.dumps(script))
    assert hwbench(*run, "--out", "old")[0] == 0
    slow = {**script, "slow": {"low_rank[density=0.5]/64x64/t512": 1.3}}
    monkeypatch.setenv("HWBENCH_FAKE", json.dumps(slow))
    assert hwbench(*run, "--out", "new")[0] == 0
    (old,), (new,) = Path("old").glob("*.jsonl"), Path("new").glob("*.jsonl")
    check = ["check", str(new), "-b", str(old), "--confirm", "--json"]
    code, out, err = hwbench(*check)
    told = json.loads(out)
    assert code == told["exit"] == 1
    assert one_sentence(err) == "hwbench: Regressed (confirmed): 1 case."
    assert [c["case"].split("/")[4] for c in told["changes"] if c["confirmed"]] == ["t512"]
    again = new.with_name(f"{new.stem}-confirm.jsonl")
    found = read_run(again)
    assert {planned.case.format for planned in found.planned.values()} == {"dense", "low_rank"}
    assert {planned.case.tokens for planned in found.planned.values()} == {512}
    assert {result.replicate for result in found.results} == {0, 1, 2}
    seeds = {result.seed for result in found.results}
    assert not seeds & {result.seed for result in read_run(new).results}
    before = again.read_bytes()
    assert hwbench(*check)[0] == 1  # no second chance: the confirmation that is there counts
    assert again.read_bytes() == before
    assert len(list(Path("new").glob("*.jsonl"))) == 2
    again.unlink()
    monkeypatch.setenv("HWBENCH_FAKE", json.dumps(script))  # it was the night, not the code
    code, out, _ = hwbench(*check)
    assert code == 0
    assert "Not confirmed in " in out


@pytest.mark.slow
def test_a_confirmation_on_another_machine_is_refused(hwbench: Call) -> None:
    from hwbench.environment import usable_cores

    facts = {**FACTS, "threads": usable_cores()}
    five(facts=facts)
    new = kept(made(9, slower=1.2, facts=facts))
    code, _, err = hwbench("check", new, "-b", "nights", "--confirm")
    assert code == 4
    assert "nothing could be confirmed here" in one_sentence(err)
    assert not list(Path().glob("*-confirm.jsonl"))


def test_a_run_may_not_lead_a_confirmation_anywhere(hwbench: Call) -> None:
    five()
    run = made(9, slower=1.2)
    path = Path(kept(run))
    path.write_bytes(path.read_bytes().replace(run.header.run.encode(), b"../../nights/x"))
    code, _, err = hwbench("check", str(path), "-b", "nights", "--confirm")
    assert code == 2
    assert "is not a name that a run can have" in one_sentence(err)


# Reports


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


HOSTILE = [
    "</failure><script>alert(1)</script>&amp;]]>",
    "`` `tick` ``|cell| \\| [x](http://evil.example) ![i](http://evil.example/i.png) <img src=x>",
    "line\nbreak\r\n::error::injected %0A::warning::x",
    "\x00\x1b[31mred\x1b[0m \u202ereversed \ufffe",
    "@everyone #1 www.evil.example </details> <!-- --> ###",
    "`" * 50,
    "",
    "a" * 5000,
]


def hostile() -> Outcome:
    ratio = Ratio(value=1.2, low=1.1, high=1.3, counts=(5, 5))
    changes = [
        Change(case=f"{text}{index}", metric="time", verdict=verdict, ratio=ratio, reason=text)
        for index, text in enumerate(HOSTILE)
        for verdict in (Verdict.REGRESSED, Verdict.INVALID, Verdict.UNDECIDED)
    ]
    text = " ".join(HOSTILE[:5])
    return Outcome(
        run=text,
        suite=text,
        machine=text,
        baseline=[text],
        changes=changes,
        measured=1,
        notes=[text],
    )


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
    assert cells == 5 * rows


def test_hostile_names_stay_text_in_workflow_commands() -> None:
    lines = github.commands(hostile())
    assert len(lines) == github.MOST_ANNOTATIONS
    for line in lines:
        assert "\n" not in line
        assert "\r" not in line
        assert re.match(r"::error title=[^:,]*(%2C[^:,]*)*::", line)
    assert not re.search(r"(?m)^::error::injected", "\n".join(lines))


def test_hostile_names_stay_text_on_a_terminal() -> None:
    from io import StringIO

    from rich.console import Console

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


@pytest.mark.slow
def test_twenty_thousand_cases_are_checked_in_seconds(hwbench: Call) -> None:
    cases = [
        linear_case(name, density, shape=(64 + side, 64), tokens=1 + tokens)
        for side in range(200)
        for tokens in range(25)
        for name, density in (("dense", None), ("low_rank", 0.5), ("csr", 0.5), ("btt", 0.5))
    ]
    old, new = kept(made(1, cases, replicates=3)), kept(made(2, cases, replicates=3))
    begun = time.process_time()
    code, out, _ = hwbench("check", new, "-b", old, "--json")
    taken = time.process_time() - begun
    assert (code, len(json.loads(out)["changes"])) == (0, len(cases))
    assert taken < 10  # seconds of the processor, which others on the machine do not add to


# Baselines that are kept


def test_baselines_are_kept_by_machine_and_found_again(hwbench: Call) -> None:
    for day in range(1, 5):
        path = kept(made(day), "runs")
        code, out, _ = hwbench("baseline", "promote", path)
        assert code == 0
    kept(made(5, facts={**FACTS, "threads": 16}), "runs")
    assert hwbench("baseline", "promote", "runs")[0] == 0  # again: nothing is kept twice
    code, out, _ = hwbench("baseline", "list", "--json")
    rows = json.loads(out)
    assert [row["created"][8:10] for row in rows if "01" <= row["created"][8:10] <= "04"] == [
        "01", "02", "03", "04",
    ]  # fmt: skip
    assert len(rows) == 5
    assert len(list(Path("baselines").iterdir())) == 2  # one folder a machine
    for row in rows:
        assert (
            Path(row["path"]).read_bytes() == (Path("runs") / Path(row["path"]).name).read_bytes()
        )
    code, out, _ = hwbench("check", kept(made(9, slower=1.2)), "-b", "baselines", "--json")
    told = json.loads(out)
    assert code == 1
    assert [run[6:8] for run in told["baseline"]] == ["01", "02", "03", "04"]
    code, out, _ = hwbench("baseline", "prune", "--keep", "2", "--dry-run")
    assert code == 0
    assert len(out.splitlines()) == 2
    assert len(json.loads(hwbench("baseline", "list", "--json")[1])) == 5
    assert hwbench("baseline", "prune", "--keep", "2")[0] == 0
    left = [row["created"][8:10] for row in json.loads(hwbench("baseline", "list", "--json")[1])]
    assert sorted(left) == ["03", "04", "05"]


def test_a_machine_has_one_folder_whatever_its_torch_and_free_memory(hwbench: Call) -> None:
    from hwbench.studies.baseline import machine_key

    device = {"name": "Example/../Processor  9000", "memory_bytes": 8_000_000_000}
    base = machine_key(made(1, facts={**FACTS, "device": device}).header)
    assert re.fullmatch(r"example-processor-9000-[0-9a-f]{8}", base)
    for other, same in (
        ({**FACTS, "device": {**device, "memory_bytes": 8_050_000_000}}, True),
        ({**FACTS, "device": device, "torch": "2.14.0"}, True),
        ({**FACTS, "device": {**device, "uuid": "GPU-1"}}, True),
        ({**FACTS, "device": device, "threads": 3}, False),
        ({**FACTS, "device": {**device, "name": "Other"}}, False),
    ):
        assert (machine_key(made(1, facts=other).header) == base) is same


def test_what_is_no_measure_of_the_usual_is_not_promoted(hwbench: Call) -> None:
    unfinished, confirming, delayed = made(1), made(2), made(3)
    unfinished.footer = None
    confirming.header = replace(confirming.header, arguments={"confirms": "another"})
    delayed.header = replace(delayed.header, arguments={"slower": 0.05})
    for run, words in (
        (unfinished, "is not finished"),
        (confirming, "measured some cases of another run again"),
        (delayed, "was slowed on purpose"),
        (failed(made(4), Status.CRASHED, "x"), "3 cases in it failed"),
        (failed(made(5), Status.UNSUPPORTED, "x"), "nothing could be measured"),
    ):
        code, out, err = hwbench("baseline", "promote", kept(run))
        assert (code, out) == (2, "")
        assert words in one_sentence(err)
    assert not Path("baselines").exists()


def test_mistakes_with_baselines_are_one_sentence_and_2(hwbench: Call) -> None:
    path = kept(made(1))
    assert hwbench("baseline", "promote", path)[0] == 0
    (there,) = Path("baselines").rglob("*.jsonl")
    there.write_bytes(there.read_bytes()[:-1])
    Path("file").write_text("")
    for arguments, words in (
        (["promote", path], "is another run of that name"),
        (["promote", "none.jsonl"], "There is no run file none.jsonl"),
        (["promote", path, "-o", "file"], "Cannot write"),
        (["list", "-o", "nowhere"], "nowhere is not a folder"),
        (["prune", "--keep", "0"], "--keep"),
        (["prun"], "No such command 'prun'"),
    ):
        code, _, err = hwbench("baseline", *arguments)
        assert code == 2
        assert words in one_sentence(err)
