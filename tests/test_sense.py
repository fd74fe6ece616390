"""No verb takes nonsense from a run file: edits that keep its shape and lose its sense."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from hwbench.errors import RunFileError
from hwbench.records import Plan
from hwbench.report import pytest_benchmark
from hwbench.store import read_run

ROOT = Path(__file__).parents[1]
SOURCES = [
    *sorted((ROOT / "reports").glob("*/*.jsonl")),
    *sorted((ROOT / "tests" / "golden").glob("*/*.jsonl")),
]
EDITED = [ROOT / "tests" / "golden" / "runs" / name for name in ("epyc.jsonl", "scored.jsonl")]

Lines = list[dict[str, Any]]
Edit = tuple[str, Callable[[Lines], None]]


@cache
def _read(path: Path) -> str:
    return json.dumps([json.loads(line) for line in path.read_text("utf-8").splitlines()])


def lines_of(path: Path) -> Lines:
    document: Lines = json.loads(_read(path))
    return document


def _at(lines: Lines, kind: str) -> list[int]:
    return [number for number, line in enumerate(lines) if line["line"] == kind]


def _assign(*place: Any, value: Any) -> Callable[[Lines], None]:
    def edit(lines: Lines) -> None:
        inner: Any = lines
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value

    return edit


def _again(number: int, to: int, **changes: Any) -> Callable[[Lines], None]:
    def edit(lines: Lines) -> None:
        line = copy.deepcopy(lines[number])
        if "result" in line:
            line["result"] |= changes
        lines.insert(to, line)

    return edit


def _renamed(number: int, key: str, value: str) -> Callable[[Lines], None]:
    """A word of a case, with its id and its results changed alike."""

    def edit(lines: Lines) -> None:
        old = lines[number]["id"]
        case = lines[number]["planned"]["case"]
        new = "/".join(value if part == case[key] else part for part in old.split("/"))
        case[key] = value
        lines[number]["id"] = new
        for line in lines:
            if line["line"] == "result" and line["result"]["case"] == old:
                line["result"]["case"] = new

    return edit


def edits(path: Path) -> Iterator[Edit]:
    """Every kind of edit, at several places of the file."""
    lines = lines_of(path)
    rng = random.Random(path.name)
    yield from _of_results(lines, rng)
    yield from _of_cases(lines, rng)
    for schema in (0, -1):
        yield f"schema {schema}", _assign(0, "schema", value=schema)
    for rate in (0, -1, 1e308, 1e-300, "fast", None):
        roofs = {"matmul": {"float32": {"flops_per_second": rate}}}
        yield f"roof {rate}", _assign(0, "ceilings", value=roofs)
    yield "the footer first", lambda found: found.insert(1, found.pop())
    yield "two footers", _again(len(lines) - 1, len(lines))


def _of_results(lines: Lines, rng: random.Random) -> Iterator[Edit]:
    results = [n for n in _at(lines, "result") if lines[n]["result"].get("measurements")]
    replicates = lines[0]["plan"]["replicates"]
    for number in rng.sample(results, min(8, len(results))):
        yield "the same replicate twice", _again(number, len(lines) - 1)
        yield "after the end", _again(number, len(lines), replicate=replicates)
        for wrong in (-3, 77, 3 * replicates):
            yield f"replicate {wrong}", _assign(number, "result", "replicate", value=wrong)
        for index in range(len(lines[number]["result"]["measurements"])):
            yield from _of_measurement(lines, number, index)


def _of_measurement(lines: Lines, number: int, index: int) -> Iterator[Edit]:
    read = lines[number]["result"]["measurements"][index]
    place = number, "result", "measurements", index
    yield f"unit of {read['quantity']}", _assign(*place, "unit", value="ms")
    yield "a quantity twice", _twice(number, index)
    if read["quantity"] in ("time_seconds", "relative_time"):
        for wrong in (-7e-5, 0, 1e308, 1e-300):
            values = [wrong, *read["values"][1:]]
            yield f"{read['quantity']} {wrong}", _assign(*place, "values", value=values)
        yield "another contract", _assign(*place, "contract", value="graph")
        if read.get("samples"):
            yield "a raw sample", _assign(*place, "samples", 0, 0, value=-1.0)
            yield "blocks", _assign(*place, "samples", value=read["samples"] * 2)
    elif read["unit"] in ("B", "J", "s", "FLOP"):
        yield f"negative {read['quantity']}", _assign(*place, "values", value=[-4.0])


def _of_cases(lines: Lines, rng: random.Random) -> Iterator[Edit]:
    cases = _at(lines, "case")
    for number in rng.sample(cases, min(6, len(cases))):
        yield "a case twice", _again(number, number)
        for key, word in [("dtype", "float8"), ("device", "cuda"), ("mode", "fast")]:
            if key in lines[number]["planned"]["case"]:
                yield f"{key} {word}", _renamed(number, key, word)
        yield "better", _assign(number, "planned", "better", value="sideways")
        yield "density", _assign(number, "planned", "density", value=-3.5)
        if lines[number]["planned"].get("cost"):
            yield "cost", _assign(number, "planned", "cost", "flops", value=-1)


def _twice(number: int, index: int) -> Callable[[Lines], None]:
    def edit(lines: Lines) -> None:
        measurements = lines[number]["result"]["measurements"]
        measurements.append(copy.deepcopy(measurements[index]))

    return edit


def _all() -> list[tuple[Path, str, Callable[[Lines], None]]]:
    return [(path, name, edit) for path in EDITED for name, edit in edits(path)]


ALL = _all()
DRAWN = random.Random(0).sample(ALL, 20)


def _edited(path: Path, edit: Callable[[Lines], None], to: Path) -> Path:
    lines = lines_of(path)
    edit(lines)
    to.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return to


def test_there_are_edits_enough():
    assert len(ALL) >= 200


def _word(value: Any) -> str:
    """What a test is called by: no address of a function, which differs between processes."""
    if isinstance(value, Path):
        return value.stem
    return "" if callable(value) else str(value)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_run_that_is_kept_is_read(path: Path):
    assert read_run(path).results


@pytest.mark.parametrize(("path", "name", "edit"), DRAWN, ids=_word)
def test_what_cannot_be_is_refused(tmp_path: Path, path: Path, name: str, edit: Any):
    to = _edited(path, edit, tmp_path / "run.jsonl")
    with pytest.raises(RunFileError) as caught:
        read_run(to)
    assert len(str(caught.value).splitlines()) == 1


def _through_the_verbs(hwbench: Any, path: Path, edit: Any) -> None:
    """No verb accepts it, and none calls it a bug; a folder leaves it out and says so."""
    bad = _edited(path, edit, Path("bad.jsonl"))
    before = bad.read_bytes()
    Path("nights").mkdir(exist_ok=True)
    (Path("nights") / "bad.jsonl").write_bytes(before)
    for arguments, code in [
        (["check", "bad.jsonl", "-b", str(path)], 2),
        (["check", str(path), "-b", "bad.jsonl"], 6),
        (["check", str(path), "-b", "nights"], 6),
        (["report", "bad.jsonl"], 2),
        (["export", "bad.jsonl", "--to", "csv", "-o", "rows.csv"], 2),
        (["history", "nights"], 2),
        (["compare", "bad.jsonl", str(path)], 2),
        (["run", "--resume", "bad.jsonl"], 2),
    ]:
        outcome, _, err = hwbench(*arguments)
        assert outcome == code, (arguments, outcome, err)
        assert "a bug" not in err
    assert bad.read_bytes() == before
    assert not Path("rows.csv").exists()


@pytest.mark.parametrize(("path", "name", "edit"), DRAWN, ids=_word)
def test_no_verb_takes_it(hwbench: Any, path: Path, name: str, edit: Any):
    _through_the_verbs(hwbench, path, edit)


@pytest.mark.heavy
@pytest.mark.parametrize(("path", "name", "edit"), ALL, ids=_word)
def test_no_verb_takes_any(hwbench: Any, path: Path, name: str, edit: Any):
    _through_the_verbs(hwbench, path, edit)


def test_replicates_that_were_added_later_are_read(tmp_path: Path):
    """Up to three times the plan's replicates."""
    path = EDITED[0]
    lines = lines_of(path)
    replicates = lines[0]["plan"]["replicates"]
    first = _at(lines, "result")[0]
    to = _edited(path, _again(first, first, replicate=3 * replicates - 1), tmp_path / "x.jsonl")
    assert len(read_run(to).results) == len(_at(lines, "result")) + 1


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A run as a file of pytest-benchmark, and its content."""
    path = tmp_path / "run.json"
    document = pytest_benchmark.document(read_run(EDITED[0]))
    path.write_text(json.dumps(document), encoding="utf-8")
    return path, document


def test_a_nan_of_another_benchmark_takes_nothing_away(saved: tuple[Path, dict[str, Any]]):
    path, document = saved
    whole = pytest_benchmark.read(path)
    other = {"stats": {"median": float("nan")}, "extra_info": {"speedup": float("nan")}}
    document["benchmarks"].append(other)
    path.write_text(json.dumps(document), encoding="utf-8")
    assert pytest_benchmark.read(path).results == whole.results


@pytest.mark.parametrize("number", ["²", "9" * 5000, "77", "-1", "x", ""])
def test_a_replicate_that_is_none_is_refused(saved: tuple[Path, dict[str, Any]], number: str):
    path, document = saved
    times = document["benchmarks"][0]["extra_info"]["hwbench"]["replicates"]["time_seconds"]
    times[number] = next(iter(times.values()))
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(RunFileError):
        pytest_benchmark.read(path)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{", "[]", "null", '{"benchmarks": 3}', "9" * 5000]
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(RunFileError):
        pytest_benchmark.read(tmp_path / "x.json")


def test_a_benchmark_twice_or_a_time_below_zero_is_refused(saved: tuple[Path, dict[str, Any]]):
    path, document = saved
    text = json.dumps(document)
    document["benchmarks"].append(document["benchmarks"][0])
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(RunFileError, match="twice"):
        pytest_benchmark.read(path)
    document = json.loads(text)
    times = document["benchmarks"][0]["extra_info"]["hwbench"]["replicates"]["time_seconds"]
    times["0"] = -1.0
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(RunFileError, match="cannot be -1"):
        pytest_benchmark.read(path)


@pytest.mark.parametrize(("replicates", "most"), [(5, None), (5, 7), (5, 20), (5, 1000), (1, 9)])
def test_as_many_replicates_are_read_as_a_plan_may_make(
    tmp_path: Path, replicates: int, most: int | None
) -> None:
    """``replicates_most`` may ask for more than three times the replicates."""
    lines = lines_of(EDITED[0])
    plan = lines[0]["plan"]
    plan |= {"replicates": replicates, "replicates_most": most}
    result = next(line["result"] for line in lines if line["line"] == "result")
    allowed = max(3 * replicates, Plan(replicates=replicates, replicates_most=most).most)
    for number in (allowed - 1, allowed):
        shown = [line for line in lines if line["line"] != "result"]
        shown.insert(-1, {"line": "result", "result": {**result, "replicate": number}})
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(f"{json.dumps(line)}\n" for line in shown), encoding="utf-8")
        if number < allowed:
            assert len(read_run(path).results) == 1
        else:
            with pytest.raises(RunFileError, match="is none of"):
                read_run(path)
