"""A file that is large on purpose is refused before it fills the memory, by each reader."""

from __future__ import annotations

import json
import tomllib
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from hwbench import checkpoints, environment, files, suite
from hwbench.checkpoints import tensors
from hwbench.errors import UsageError
from hwbench.measure import ceilings
from hwbench.report import pytest_benchmark
from hwbench.store import read_run
from hwbench.studies import baseline, share

HOLES = 1 << 40  # bytes of a file that takes no room on the disk
READERS: dict[str, Callable[[Path], object]] = {
    "run": read_run,
    "shared run": lambda path: share.share(path, path.with_name("shared")),
    "baseline": lambda path: baseline.promote(path, path.with_name("baselines")),
    "pytest-benchmark": pytest_benchmark.read,
    "suite": lambda path: suite.read(str(path)),
    "JSON of a model": checkpoints.described,
    "tensors": tensors.header,
}
CACHES: dict[str, Callable[[Path], object]] = {
    "ceilings": ceilings._read,
    "cache": environment.kept,
}


def large(path: Path, how: str) -> Path:
    with path.open("wb") as file:
        if how == "holes":
            file.truncate(HOLES)
        else:
            file.write(b"[" + b"[]," * 2000 + b"0]\n")
    return path


@pytest.mark.parametrize("how", ["holes", "values"])
@pytest.mark.parametrize("reader", READERS)
def test_a_large_file_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str, how: str
) -> None:
    monkeypatch.setattr(files, "MOST_OF_MEMORY", 1 << 18)
    path = large(tmp_path / "file.toml", how)
    tracemalloc.start()
    try:
        with pytest.raises(UsageError) as refusal:
            READERS[reader](path)
        used = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(refusal.value).endswith(".")
    assert "\n" not in str(refusal.value)
    assert used < 1 << 20
    words = "It is larger than" if how == "holes" else "Its values would fill the memory"
    assert words in str(refusal.value) or reader == "tensors"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("how", ["holes", "values"])
@pytest.mark.parametrize("reader", CACHES)
def test_a_large_file_of_the_cache_is_as_if_it_were_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str, how: str
) -> None:
    """Nor is it set aside as damaged, as a small file is that holds something else."""
    monkeypatch.setattr(files, "MOST_OF_MEMORY", 1 << 18)
    path = large(tmp_path / "file", how)
    tracemalloc.start()
    try:
        assert CACHES[reader](path) == {}
        used = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert used < 1 << 20
    assert list(tmp_path.iterdir()) == [path]


MANY = {
    "empty lists": b"[%s0]" % (b"[]," * 20_000),
    "empty tables": b"[%s0]" % (b"{}," * 20_000),
    "fractions": b"[%s0]" % (b"1.5," * 20_000),
    "numbers": b"[%s0]" % (b"9999," * 20_000),
    "words": b"[%s0]" % b"".join(b'"%d",' % n for n in range(20_000)),
    "keys": b"{%s}" % b",".join(b'"%d":0' % n for n in range(20_000)),
    "tables of one": b"[%s0]" % (b'{"a":0},' * 20_000),
    "depth": b"[" * 500 + b"]" * 500,
}
PARSERS: dict[str, Callable[[bytes], object]] = {
    "json": json.loads,
    "msgspec": msgspec.json.decode,
    "toml": lambda data: tomllib.loads(f"a = {data.decode()}"),
}


@pytest.mark.parametrize(
    ("parser", "what"),
    [
        *((parser, what) for parser in ("json", "msgspec") for what in MANY),
        *(pytest.param("toml", what, marks=pytest.mark.heavy) for what in ("empty lists", "words")),
    ],
)
def test_no_document_takes_more_memory_than_its_signs_say(parser: str, what: str) -> None:
    data = MANY[what]
    tracemalloc.start()
    try:
        actual = PARSERS[parser](data)
        used = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert actual
    assert used + len(data) <= files.memory(data)


def test_a_real_run_as_large_as_any_would_be_read() -> None:
    """The limit is for what is made up: real runs have few values for their bytes."""
    runs = sorted((Path(__file__).parents[1] / "reports").glob("*/linear*.jsonl"))
    assert runs
    for path in runs:
        data = path.read_bytes()
        assert files.memory(data) / len(data) * (files.MOST_OF_A_RUN // 2) < files.MOST_OF_MEMORY
