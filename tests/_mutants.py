"""Mutations that keep the structure of a file, for six kinds of file, each put through its readers.

``outcome`` is what became of one: an exit code, or ``read`` and ``refused``. An error that is no
sentence is raised. The short form is ``test_fuzz.py``; ``evidence/fuzz.py`` takes thousands.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import random
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import _fuzz
import numpy as np

from hwbench import checkpoints, cli
from hwbench.errors import HwbenchError
from hwbench.measure import ceilings
from hwbench.store.sense import impossible

RUN = Path(__file__).parent / "golden" / "runs" / "epyc.jsonl"
CODES = {0, 1, 2, 3, 4, 5, 6}
"""The exit codes that a verb may end with when it only reads."""

_NUMBERS = (0, -1, 1, 2**31, -(2**63), 10**30, 0.5, -0.0, 1e308, -1e-300, 5e-324)
_NO_NUMBERS = (math.nan, math.inf)  # that JSON of Python can hold
_VERBS = (
    ["check", "{}", "-b", "good.jsonl"], ["check", "good.jsonl", "-b", "{}", "--json"],
    ["report", "{}", "-o", "page.html"], ["compare", "good.jsonl", "{}"],
    ["export", "{}", "--to", "csv", "-o", "rows.csv"], ["export", "{}", "--to", "json", "-o", "r"],
    ["history", "."], ["list", "runs", "-o", "."], ["baseline", "promote", "{}"],
)  # fmt: skip


def edited(document: Any, source: random.Random, *, plain: bool = True) -> Any:
    """A copy with one to three values replaced, swapped, doubled, dropped or put under new keys."""
    actual = json.loads(json.dumps(document))
    for _ in range(source.randint(1, 3)):
        places = _fuzz.places(actual)
        if not places:
            return actual
        *way, last = source.choice(places)
        inner = actual
        for key in way:
            inner = inner[key]
        other = actual
        for key in source.choice(places):
            other = other[key]
        match source.randrange(6):
            case 0:
                inner[last] = source.choice([*_NUMBERS, *(() if plain else _NO_NUMBERS)])
            case 1:
                inner[last] = source.choice([*_fuzz.NASTY, None, True, [], {}, [[]], {"a": {}}])
            case 2:
                inner[last] = json.loads(json.dumps(other))
            case 3:
                del inner[last]
            case 4 if isinstance(inner, list):
                inner.insert(source.randrange(len(inner) + 1), json.loads(json.dumps(other)))
            case 5 if isinstance(inner, dict):
                inner[source.choice([*_fuzz.NASTY, "schema", "device"])] = inner.pop(last)
            case _:
                inner[last] = [inner[last]] * source.randint(2, 4)
    return actual


@cache
def _lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RUN.read_text("utf-8").splitlines()]


def _called(*arguments: str) -> int:
    """The exit code of a call in this process; a bug raises."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["hwbench", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = cli._code()
    assert code in CODES, (arguments, code, err.getvalue())
    assert "a bug" not in err.getvalue()
    assert "Traceback" not in err.getvalue()
    return code


def _through_a_verb(name: str, source: random.Random) -> str:
    return str(_called(*(word.format(name) for word in source.choice(_VERBS))))


def run_file(source: random.Random) -> str:
    """A run with lines edited, doubled, dropped or in another order, through a verb."""
    lines = list(_lines())
    for _ in range(source.randint(1, 2)):
        at, to = source.randrange(len(lines)), source.randrange(len(lines))
        match source.randrange(5):
            case 0:
                lines.insert(to, lines[at])
            case 1:
                del lines[at]
            case 2:
                lines[at], lines[to] = lines[to], lines[at]
            case _:
                lines[at] = edited(lines[at], source)
    Path("good.jsonl").write_bytes(RUN.read_bytes())
    Path("bad.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return _through_a_verb("bad.jsonl", source)


def suite(source: random.Random) -> str:
    """A shipped suite with keys and values edited, built for a device."""
    return _fuzz.read_document(edited(source.choice(_fuzz.suite_documents()), source))


def benchmark_file(source: random.Random) -> str:
    """A file of pytest-benchmark, edited, on one side of the gate or the other."""
    if not Path("good.json").exists():
        Path("good.jsonl").write_bytes(RUN.read_bytes())
        code = _called("export", "good.jsonl", "--to", "pytest-benchmark", "-o", "good.json")
        assert code == 0
    document = json.loads(Path("good.json").read_text("utf-8"))
    document["hwbench"]["header"]["run"] += "-edited"
    Path("bad.json").write_text(json.dumps(edited(document, source, plain=False)))
    sides = source.choice([("good.json", "bad.json"), ("bad.json", "good.json")])
    return str(_called("check", sides[0], "-b", sides[1], "--json"))


def cache_file(source: random.Random) -> str:
    """A cache of ceilings, edited: taken where it can be that of a machine, else set aside."""
    rates = {"flops_per_second": 1e11}, {"bytes_per_second": 1e10}, {"seconds": 1e-6}
    actual = {
        "matmul": {"float32": rates[0], "bfloat16": rates[0]}, "copy": rates[1],
        "launch": rates[2], "disturbed": 0.0, "measured": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    path = Path("ceilings.json")
    path.write_text(json.dumps(edited(actual, source, plain=False)))
    stored = ceilings._read(path)
    assert not stored or impossible(stored) is None
    assert stored or not path.exists()
    return "read" if stored else "refused"


@cache
def _encoder() -> dict[Path, bytes]:
    """The files of an encoder of one narrow layer, with the tokenizer of the packaged one."""
    from safetensors.torch import save

    from hwbench.workloads import _trained
    from hwbench.workloads._bert import Bert

    packaged = _trained.folder()
    actual = {p.relative_to(packaged): p.read_bytes() for p in packaged.rglob("*.json")}
    small = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    config = json.loads(actual[Path("config.json")]) | small | {"num_attention_heads": 2}
    actual[Path("config.json")] = json.dumps(config).encode()
    weights = Bert(config, checkpoints.MEAN).state_dict()
    actual[Path("model.safetensors")] = save({n: v.contiguous() for n, v in weights.items()})
    return actual


def model_folder(source: random.Random) -> str:
    """A small encoder with its JSON or the head of its weights edited."""
    from hwbench.workloads._bert import Bert, _unreadable

    folder, whole = Path("model"), _encoder()
    picked = source.choice(sorted(whole))
    for name, data in whole.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    data = whole[picked]
    if picked.suffix == ".json":
        (folder / picked).write_text(json.dumps(edited(json.loads(data), source)))
    else:
        length = int.from_bytes(data[:8], "little")
        head = json.dumps(edited(json.loads(data[8 : 8 + length]), source)).encode()
        (folder / picked).write_bytes(len(head).to_bytes(8, "little") + head + data[8 + length :])
    if checkpoints.unreadable(folder):
        return "refused"
    _unreadable.cache_clear()
    if checkpoints.kind(folder) != checkpoints.BERT or Bert.unreadable(folder):
        return "refused"
    Bert.load(folder)
    return "read"


def _bent(data: bytearray, record: int, source: random.Random) -> bytearray:
    """A file of records as it is, cut off, with a value, whole records or bytes changed."""
    at = source.randrange(len(data))
    match source.randrange(10):
        case 0:
            del data[at:]
        case 1:
            data[at // record * record] = 255
        case 2:
            del data[: at // record * record]
        case 3:
            data[:] = bytes(len(data))
        case 4:
            data[at:at] = bytes(source.randrange(1, 9))
    return data


def data_folder(source: random.Random) -> str:
    """Tokens or pictures with values, lengths or whole files edited: read, or refused in words."""
    import torch

    from hwbench.workloads import _language, _sets

    for path in Path.cwd().glob("data/*"):
        path.unlink()
    folder = Path("data")
    folder.mkdir(exist_ok=True)
    pictures = source.random() < 0.5
    names = [*_sets._TRAINING, _sets._TEST] if pictures else ["train.bin", "val.bin"]
    for name in names:
        if pictures:
            rows = np.zeros((12, 3073), np.uint8)
            rows[:, 0] = np.arange(12) % 10
            data = bytearray(rows.tobytes())
        else:
            data = bytearray(np.arange(300, dtype="<u2").tobytes())
        (folder / name).write_bytes(_bent(data, 3073 if pictures else 2, source))
    if source.random() < 0.1:
        (folder / source.choice(names)).unlink()
    reason = _sets.no_cifar10(folder) if pictures else _language.no_tokens(folder, 16)
    if reason:
        return "refused"
    if pictures:
        assert int(_sets.cifar10(folder).y.max()) <= 9
    else:
        _language.tokens(folder, 16, torch.device("cpu"))
    return "read"


KINDS: dict[str, Callable[[random.Random], str]] = {
    "run files": run_file,
    "suites": suite,
    "files of pytest-benchmark": benchmark_file,
    "caches of ceilings": cache_file,
    "model folders": model_folder,
    "data folders": data_folder,
}


def outcome(kind: str, seed: int, folder: Path) -> str:
    """What became of one mutation, made in a folder; what is neither answer nor sentence raises."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        return KINDS[kind](random.Random(f"{kind} {seed}"))
    except HwbenchError as error:
        if len(str(error).splitlines()) == 1:
            return "refused"
        raise
    finally:
        os.chdir(before)
