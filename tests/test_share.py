"""``hwbench share``: what a shared run no longer says, and what it still does."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from _check import Call, kept, made
from _tiers import sampled

from hwbench.store import read_run
from hwbench.studies import share

STORED = sorted(Path(__file__).parents[1].glob("reports/*/*.jsonl"))
SECRETS = ("my-laptop", "/home/jane", "GPU-1234", "deadbeef")


def private(run: Path, to: Path) -> Path:
    """A run whose header, cases and results name a host, folders, a card and a revision."""
    lines = [json.loads(line) for line in run.read_text().splitlines()]
    header = lines[0]
    header["environment"]["state"] |= {"hostname": SECRETS[0], "commit": SECRETS[3]}
    header["environment"]["fingerprint"]["device"]["uuid"] = SECRETS[2]
    header["arguments"]["weights"] = f"{SECRETS[1]}/models/layer.safetensors"
    header["suite"] = f"{SECRETS[1]}/my suite.toml"
    lines[-2]["result"]["reason"] = f"No module in {SECRETS[1]}/lib/x.py: (see /tmp/log/y)."
    to.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return to


def test_secrets_are_gone_and_what_was_measured_is_there(tmp_path: Path) -> None:
    before = private(STORED[0], tmp_path / "run.jsonl")
    after = share.share(before, tmp_path / "out.jsonl")
    text = (tmp_path / "out.jsonl").read_text()
    assert not [secret for secret in SECRETS if secret in text]
    assert after.header.arguments["weights"] == "layer.safetensors"
    assert after.header.suite == "my suite.toml"
    original = read_run(before)
    assert after.planned == original.planned
    for one, other in zip(after.results, original.results, strict=True):
        assert one.measurements == other.measurements
        assert one.case == other.case
    assert "No module in x.py: (see y)." in text


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_ids_and_numbers_of_real_runs_stay(path: Path, tmp_path: Path) -> None:
    after, before = share.share(path, tmp_path / "out.jsonl"), read_run(path)
    assert (after.planned, after.results) == (before.planned, before.results)
    assert after.header.ceilings == before.header.ceilings


def test_a_path_in_text_keeps_its_last_part_and_other_slashes_stay() -> None:
    for text in ("linear/forward/dense/1024x1024/t16", "1/2", "GB/s", "and/or", "a / b", "/x"):
        assert share._text(text) == text
    assert share._text("in /a/b/c.txt, ~/d/e") == "in c.txt, e"


def test_the_verb_says_where_and_refuses_to_write_over_the_run(
    hwbench: Call, tmp_path: Path
) -> None:
    run = private(STORED[0], tmp_path / "run.jsonl")
    code, out, err = hwbench("share", str(run))
    assert code == 0, err
    assert "| suite | my suite.toml" in out
    assert (tmp_path / "run.shared.jsonl").exists()
    code, _, err = hwbench("share", str(run), "--out", str(run))
    assert code == 2
    assert len(err.strip().splitlines()) == 1


def test_a_copy_beside_its_run_is_no_run_of_its_own(hwbench: Call) -> None:
    """Neither is it the newest run of the folder, nor a second machine on a page."""
    for day in (1, 2):
        kept(made(day), "runs")
    newest = Path(kept(made(3), "runs"))
    Path("runs/notes.jsonl").write_text("no run\n")
    assert hwbench("share", "runs")[0] == 2, "what cannot be read is told"
    Path("runs/notes.jsonl").unlink()
    assert hwbench("share", "runs")[0] == 0
    copy = newest.with_suffix(".shared.jsonl")
    assert copy.exists()
    told = f"Runs in runs that are left out: 1 the same run again ({copy.name}).\n"
    code, _, err = hwbench("share", "runs")
    assert (code, "results are not written over" in err) == (2, True)
    assert len([*Path("runs").iterdir()]) == 4
    copy.rename("runs/0.jsonl")  # the run's own name is the name of the run
    told = told.replace(copy.name, "0.jsonl")
    for words in (
        ("show", "runs"),
        ("export", "runs", "--to", "csv", "--out", "rows.csv"),
        ("report", "runs", "--out", "page.html"),
        ("compare", "runs"),
        ("list", "runs", "runs"),
        ("baseline", "promote", "runs"),
    ):
        code, out, err = hwbench(*words)
        assert (code, err) == (0, told), words
        if words[0] == "list":
            assert len(out.splitlines()) == 3
        if words[0] == "show":
            assert f"The run is in {newest}." in out
    code, _, err = hwbench("compare", str(newest), "runs/0.jsonl")
    assert (code, err) == (0, ""), "who names both means both"


def test_a_stream_gets_the_run_alone(hwbench: Call, tmp_path: Path) -> None:
    """The words go to the other stream, so that what is piped on is a run."""
    run = private(STORED[0], tmp_path / "run.jsonl")
    share.share(run, tmp_path / "wanted.jsonl")
    os.mkfifo(tmp_path / "pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    code, out, err = hwbench("share", str(run), "-o", str(tmp_path / "pipe"))
    reader.join()
    assert (code, out) == (0, "")
    assert "| suite | my suite.toml" in err
    assert read == [(tmp_path / "wanted.jsonl").read_bytes()]


@pytest.mark.parametrize("rest", [b"", b'{"line":"resu', b'{"line":"\xc3'], ids=["", "cut", "half"])
@pytest.mark.parametrize("sign", sampled(["\u2028", "\x85", "\x0b", "\u00b5"], 2))
def test_every_whole_line_is_shared_and_no_other(tmp_path: Path, sign: str, rest: bytes) -> None:
    """Signs that end a line of text elsewhere end none of a run; an unfinished line is left out."""
    before = private(STORED[0], tmp_path / "run.jsonl")
    lines = [json.loads(line) for line in before.read_bytes().splitlines()]
    lines[0]["environment"]["state"]["note"] = f"a{sign}b"
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    before.write_bytes(text.encode() + rest)
    after = share.share(before, tmp_path / "out.jsonl")
    assert after.header.environment.state["note"] == f"a{sign}b"
    assert len(after.results) == len(read_run(before).results)
    assert read_run(tmp_path / "out.jsonl").results == after.results
