"""``hwbench check --confirm-by``: both revisions side by side, on workers of this process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from _check import Call, kept, one_sentence
from _inline import Workers
from msgspec.structs import replace

from hwbench.measure import revision
from hwbench.store import list_runs, read_run
from hwbench.studies import ab
from hwbench.studies._sides import Origin

OLD, NEW = "a" * 40, "b" * 40
SUITE = (
    'schema = 1\nname = "tiny"\n[plan]\nreplicates = 5\nbudget_seconds = 0.005\n'
    '[[cases]]\nworkload = "linear"\ndirection = "forward"\nshape = [64, 64]\n'
    'tokens = [256, 512]\nformat = [{ name = "dense" }, { name = "low_rank", density = 0.5 }]\n'
)
SLOW = {"low_rank[density=0.5]/64x64/t512": 1.3}


class Nights:
    """A repository and a machine: what its revisions and its nights make slower."""

    def __init__(self, call: Call, patch: pytest.MonkeyPatch, workers: Workers) -> None:
        self.call, self.patch, self.workers = call, patch, workers
        self.code: dict[str, dict[str, float]] = {OLD: {}, NEW: {}}
        self.machine: dict[str, float] = {}
        self.number = 0
        start = ab._worker

        def worker(origin: Origin, device: str, threads: int) -> Any:
            self.act(self.code[str(origin.revision)])
            return start(origin, device, threads)

        patch.setattr(ab, "_worker", worker)
        patch.setattr(
            ab, "resolve",
            lambda option, asked, install, folder: Origin(sys.executable, [], asked[:7], asked),
        )  # fmt: skip

    def act(self, slow: dict[str, float]) -> None:
        """Have the simulated device be so slow in what comes next."""
        both = {**self.machine, **slow}
        script = {"seed": 1, "case_noise": 0.003, "slow": both}
        self.patch.setenv("HWBENCH_FAKE", json.dumps(script))

    def night(self, commit: str | None, *, dirty: bool = False, out: str = "nights") -> Path:
        """The run of a night in a revision."""
        state = {} if commit is None else {"commit": commit, "dirty": dirty}
        self.patch.setattr(revision, "commit", lambda: dict(state))
        self.act(self.code.get(commit or "", {}))
        self.number += 1
        words = ["run", "--suite", "tiny.toml", "--device", "fake", "--threads", "1"]
        assert self.call(*words, "--out", out, "--seed", "0")[0] == 0
        return max(list_runs(Path(out)), key=lambda path: path.stat().st_mtime_ns)

    def check(self, run: Path, *words: str) -> tuple[int, dict[str, Any], str]:
        """Exit code, verdicts by case, and what was said of the outcome."""
        way = ["--confirm-by", "ab"]
        code, out, err = self.call("check", str(run), "-b", "nights", *way, *words, "--json")
        document = json.loads(out) if out else {}
        return code, {each["case"]: each for each in document.get("changes", [])}, err


@pytest.fixture
def nights(hwbench: Call, monkeypatch: pytest.MonkeyPatch, workers: Workers) -> Nights:
    Path("tiny.toml").write_text(SUITE)
    return Nights(hwbench, monkeypatch, workers)


def slowed(found: dict[str, Any]) -> list[str]:
    return [case for case, each in found.items() if each["verdict"] == "regressed"]


def test_code_that_slowed_a_case_is_confirmed_in_pairs(nights: Nights) -> None:
    nights.night(OLD)
    nights.code[NEW] = SLOW
    run = nights.night(NEW, out="new")
    code, actual, err = nights.check(run)
    assert code == 1
    assert one_sentence(err) == "hwbench: Regressed (confirmed): 1 case."
    (case,) = slowed(actual)
    assert "t512" in case
    assert actual[case]["confirmed"] is True
    assert "Confirmed in 10 pairs of both revisions" in actual[case]["reason"]
    pairs = [run.with_name(f"{run.stem}-pairs-1-{name}.jsonl") for name in "ab"]
    runs = [read_run(path) for path in pairs]
    assert [each.header.environment.state["commit"] for each in runs] == [OLD, NEW]
    assert {p.case.format for p in runs[0].planned.values()} == {"dense", "low_rank"}
    assert {p.case.tokens for p in runs[0].planned.values()} == {512}
    seeds = {result.seed for each in runs for result in each.results}
    assert not seeds & {result.seed for result in read_run(run).results}
    before, started = [path.read_bytes() for path in pairs], len(nights.workers.started)
    assert nights.check(run)[0] == 1  # no second chance: the pairs that are there count
    assert [path.read_bytes() for path in pairs] == before
    assert len(nights.workers.started) == started
    assert len(list(Path("new").glob("*.jsonl"))) == 3


def test_a_machine_that_slowed_it_tonight_is_not(nights: Nights) -> None:
    """Fresh replicates share the night's luck and would confirm it; pairs have it on both sides."""
    nights.night(OLD)
    nights.machine = SLOW
    run = nights.night(NEW, out="new")
    code, actual, _ = nights.check(run)
    assert code == 0
    (case,) = [case for case, each in actual.items() if "pairs" in (each["reason"] or "")]
    assert "Not confirmed in 10 pairs of both revisions (3" in actual[case]["reason"]
    again = nights.call("check", str(run), "-b", "nights", "--confirm")[0]
    assert again == 1


def test_nothing_is_measured_where_nothing_is_flagged_or_no_code_changed(nights: Nights) -> None:
    nights.night(OLD)
    same = nights.night(NEW, out="new")
    nights.machine = SLOW
    slow = nights.night(OLD, out="new")
    started = len(nights.workers.started)
    assert nights.check(same)[0] == 0
    code, actual, _ = nights.check(slow)
    assert code == 0
    assert any("no code changed" in (each["reason"] or "") for each in actual.values())
    assert len(nights.workers.started) == started
    assert len(list(Path("new").glob("*.jsonl"))) == 2


@pytest.mark.parametrize(
    ("commit", "dirty", "words"),
    [
        (None, False, "names none; measure inside of the repository, or use --confirm"),
        (NEW, True, "commit them before a run, or use --confirm"),
    ],
)
@pytest.mark.parametrize("which", ["baseline", "tonight"])
def test_without_two_revisions_it_is_refused(
    nights: Nights, commit: str | None, dirty: bool, words: str, which: str
) -> None:
    first = which == "baseline"
    nights.night(commit if first else OLD, dirty=dirty and first)
    run = nights.night(OLD if first else commit, dirty=dirty and not first, out="new")
    code, _, err = nights.check(run)
    assert code == 2
    assert words in one_sentence(err)
    assert ("the baseline run" in err) == first


def with_facts(path: Path, **facts: Any) -> None:
    """Rewrite a run as one of a machine with these facts."""
    run = read_run(path)
    where = run.header.environment
    fingerprint = {**where.fingerprint, **facts}
    run.header = replace(run.header, environment=replace(where, fingerprint=fingerprint))
    path.unlink()
    assert kept(run, path.parent) == str(path)


def test_one_revision_with_another_torch_is_refused(nights: Nights) -> None:
    with_facts(nights.night(OLD), torch="1.0")
    run = nights.night(OLD, out="new")
    code, _, err = nights.check(run)
    assert code == 2
    assert "so no code changed, and torch was '1.0' and is" in one_sentence(err)
    assert "hwbench ab with the two interpreters" in err


def test_on_another_machine_no_pairs_are_made(nights: Nights) -> None:
    old = nights.night(OLD)
    nights.code[NEW] = SLOW
    run = nights.night(NEW, out="new")
    for path in (old, run):
        with_facts(path, device={"name": "Another Processor"})
    code, _, err = nights.check(run)
    assert code == 4
    assert "nothing could be confirmed here" in one_sentence(err)
    assert "device.name was 'Another Processor'" in err
    assert len(list(Path("new").glob("*.jsonl"))) == 1


def test_a_way_that_is_none_is_a_mistake(nights: Nights) -> None:
    run = nights.night(OLD)
    code, out, err = nights.call("check", str(run), "-b", "nights", "--confirm-by", "luck")
    assert (code, out) == (2, "")
    assert "Unknown way of confirming 'luck'" in one_sentence(err)
