"""``hwbench baseline``: runs kept by the machine that they come from."""

from __future__ import annotations

import json
import re
from pathlib import Path

from _check import FACTS, Call, kept, made, one_sentence
from _synthetic import failed
from msgspec.structs import replace

from hwbench.records import Status


def test_baselines_are_kept_by_machine_and_found_again(hwbench: Call) -> None:
    for day in range(1, 5):
        path = kept(made(day), "runs")
        code, out, _ = hwbench("baseline", "promote", path)
        assert code == 0
    kept(made(5, facts={**FACTS, "threads": 16}), "runs")
    assert hwbench("baseline", "promote", "runs")[0] == 0  # again: nothing is kept twice
    code, json_of_all, _ = hwbench("baseline", "list", "--json")
    rows = json.loads(json_of_all)
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
    document = json.loads(out)
    assert code == 1
    assert [run[6:8] for run in document["baseline"]] == ["01", "02", "03", "04"]
    assert hwbench("baseline", "list", "baselines", "--json")[1] == json_of_all
    assert hwbench("baseline", "list", "baselines", "--out", "nowhere", "--json")[1] == json_of_all
    code, out, _ = hwbench("baseline", "prune", "baselines", "--keep", "2", "--dry-run")
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
        (confirming, "measured cases of another run again"),
        (delayed, "slowed on purpose"),
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
