"""``hwbench check``: every exit code, one sentence for everything that is wrong."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from _check import CASES, FACTS, Call, five, kept, made, one_sentence
from _synthetic import failed, linear_case, projection_case
from msgspec.structs import replace

from hwbench.records import Measurement, Status
from hwbench.store import Run, read_run
from hwbench.studies import gate

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
    assert re.search(r"regressed\s+low_rank density=0.5: forward", out)


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
        ("newer", "1 of another suite; 1 newer than this run"),
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
    assert re.search(r"gone\s+csr density=", out)
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
    document = json.loads(out)
    assert code == 0
    assert len(document["baseline"]) == 5
    assert document["notes"] == [
        "Runs in nights that are left out: 1 cannot be read; 1 damaged; 1 not finished."
    ]


def test_the_window_is_the_last_runs_and_fewer_raise_the_threshold(hwbench: Call) -> None:
    for day in range(1, 9):
        kept(made(day), "nights")
    new = kept(made(9))
    _, out, _ = hwbench("check", new, "-b", "nights", "--json")
    assert [run[6:8] for run in json.loads(out)["baseline"]] == ["04", "05", "06", "07", "08"]
    _, out, _ = hwbench("check", new, "-b", "nights", "--window", "3", "--json")
    document = json.loads(out)
    assert [run[6:8] for run in document["baseline"]] == ["06", "07", "08"]
    assert document["used_threshold"] == document["threshold"] == 0.03
    _, out, _ = hwbench("check", kept(made(3), "later"), "-b", "nights", "--json")
    document = json.loads(out)
    assert [run[6:8] for run in document["baseline"]] == ["01", "02"]
    assert document["used_threshold"] == pytest.approx(0.03 * (1.5 / 1.2) ** 0.5)
    assert "Against 2 baseline runs instead of 5 the threshold is 3.4 %" in document["notes"][0]


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
    code, out, _ = hwbench("check", kept(worse), "-b", "nights")
    assert code == 1
    assert "One seed: its score is exact" in " ".join(out.split())


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
        document = json.loads(out)
        assert code == expected
        assert [c["verdict"] for c in document["changes"] if c["ratio"]] == [verdict]
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
        (document,) = json.loads(out)["changes"]
        assert document["metric"] == "score"
        assert document["ratio"] == pytest.approx(worse)


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
    document = json.loads(out)
    assert code == document["exit"] == 1
    assert one_sentence(err) == "hwbench: Regressed (confirmed): 1 case."
    assert [c["case"].split("/")[4] for c in document["changes"] if c["confirmed"]] == ["t512"]
    again = new.with_name(f"{new.stem}-confirm.jsonl")
    run_ = read_run(again)
    assert {planned.case.format for planned in run_.planned.values()} == {"dense", "low_rank"}
    assert {planned.case.tokens for planned in run_.planned.values()} == {512}
    assert {result.replicate for result in run_.results} == {0, 1, 2}
    seeds = {result.seed for result in run_.results}
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


@pytest.mark.heavy
def test_twenty_thousand_cases_are_checked_in_seconds(hwbench: Call) -> None:
    cases = [
        linear_case(name, density, shape=(64 + side, 64), tokens=1 + tokens)
        for side in range(200)
        for tokens in range(25)
        for name, density in (("dense", None), ("low_rank", 0.5), ("csr", 0.5), ("btt", 0.5))
    ]
    old, new = kept(made(1, cases, replicates=3)), kept(made(2, cases, replicates=3))
    hwbench("check", new, "-b", old, "--json")  # what is imported at first use is
    begun = time.process_time()
    assert all(read_run(Path(path)).results for path in (old, new))
    read = time.process_time() - begun
    begun = time.process_time()
    code, out, _ = hwbench("check", new, "-b", old, "--json")
    used = time.process_time() - begun
    assert (code, len(json.loads(out)["changes"])) == (0, len(cases))
    # Seconds of the processor, beside those of reading both runs: evidence/scale.py tells seconds
    # of a quiet machine, and this holds on any.
    assert used < 6 * read
