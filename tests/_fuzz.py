"""Inputs that no reader expects, and what is asked of every reader: a sentence, or an answer.

The short form is ``test_fuzz.py``; ``evidence/fuzz.py`` tries a hundred thousand.
"""

from __future__ import annotations

import json
import random
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from _synthetic import questions, run_of
from hypothesis import strategies as st

from hwbench import suite as suites
from hwbench.analysis.frames import replicate_rows, summary_rows
from hwbench.errors import UsageError
from hwbench.records import Footer, PlannedLine, ResultLine
from hwbench.report.text import rows_json, table
from hwbench.store import RunWriter, read_header, read_run

NASTY = ["", "\x1b[2J", "../../x", "<script>", "\u2028", "\x00", "🙂", "a" * 300, "nan", "1e999"]
"""Words that break terminals, paths and pages."""

_WORDS = [
    *("schema", "name", "about", "plan", "cases", "workload", "format", "exclude", "on", "shape"),
    *("tokens", "dtype", "direction", "regime", "mode", "density", "rank", "blocks", "cpu", "cuda"),
    *("replicates", "relative_width", "budget_seconds", "timeout_seconds", "dense", "low_rank"),
    *("linear", "projection", "forward", "step", "float32", "bfloat16", "hot", "cold", "seeds"),
]
_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(-3, 5)
    | st.floats()
    | st.sampled_from([*_WORDS, *NASTY])
    | st.text(max_size=8)
)
anything = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(_WORDS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)


def places(document: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The keys that lead to every value of a document."""
    actual = [here] if here else []
    if isinstance(document, dict):
        for key, value in document.items():
            actual += places(value, (*here, key))
    elif isinstance(document, list):
        for index, value in enumerate(document):
            actual += places(value, (*here, index))
    return actual


def changed(document: Any, place: tuple[Any, ...], value: Any, *, drop: bool) -> Any:
    """A copy of the document with one value replaced, or taken out."""
    copied = json.loads(json.dumps(document))
    inner = copied
    for key in place[:-1]:
        inner = inner[key]
    if drop:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return copied


@cache
def suite_texts() -> list[bytes]:
    """The shipped suites as they are on disk."""
    return [(suites.folder() / f"{name}.toml").read_bytes() for name in suites.names()]


@cache
def suite_documents() -> list[dict[str, Any]]:
    """The shipped suites as documents."""
    return [tomllib.loads(text.decode()) for text in suite_texts()]


@cache
def run_lines() -> list[bytes]:
    """The lines of a run as they would be on disk."""
    import tempfile

    run = run_of(questions())
    with tempfile.TemporaryDirectory() as folder:
        lines = [PlannedLine(id=case, planned=each) for case, each in run.planned.items()][:12]
        kept = {line.id for line in lines}
        writer = RunWriter.create(Path(folder), run.header, lines)
        results = [result for result in run.results if result.case in kept][:12]
        writer.append(*(ResultLine(result=result) for result in results))
        writer.append(run.footer or Footer(finished="now", wall_seconds=1.0))
        writer.close()
        return writer.path.read_bytes().splitlines(keepends=True)


@st.composite
def mutilated(draw: st.DrawFn, data: bytes) -> bytes:
    """The bytes cut off, flipped, doubled or mixed with others."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    actual = bytearray(data)
    for _ in range(draw(st.integers(1, 6))):
        at = rng.randrange(len(actual) + 1)
        match rng.randrange(5):
            case 0:
                del actual[at:]
            case 1 if actual:
                actual[min(at, len(actual) - 1)] ^= 1 << rng.randrange(8)
            case 2:
                actual[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 3:
                actual[at:at] = actual[rng.randrange(len(actual) + 1) :][: rng.randrange(200)]
            case _:
                actual[at:at] = rng.choice(
                    [b"[" * 2000, b'{"a":' * 2000, b"\n", b"\x1b[31m", b"9" * 5000]
                )
        if not actual:
            break
    return bytes(actual)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """A shipped suite with some of its values replaced by anything, or taken out."""
    document: Any = draw(st.sampled_from(suite_documents()))
    for _ in range(draw(st.integers(1, 3))):
        where = places(document)
        if not where:
            break
        place = draw(st.sampled_from(where))
        document = changed(document, place, draw(anything), drop=draw(st.booleans()))
    return document


@st.composite
def run_files(draw: st.DrawFn) -> bytes:
    """A run whose lines are mutilated, in another order, or hold anything in one place."""
    lines = list(run_lines())
    match draw(st.integers(0, 3)):
        case 0:
            return draw(mutilated(b"".join(lines)))
        case 1:
            return b"".join(draw(st.permutations(lines)))
        case _:
            for _ in range(draw(st.integers(1, 2))):
                index = draw(st.integers(0, len(lines) - 1))
                line = json.loads(lines[index])
                place = draw(st.sampled_from(places(line)))
                line = changed(line, place, draw(anything), drop=draw(st.booleans()))
                lines[index] = json.dumps(line).encode() + b"\n"
                if not isinstance(line, dict) or not places(line):
                    break
            return b"".join(lines)


def read_suite_text(path: Path, data: bytes) -> str:
    """Read a suite file as the command line would; what came of it."""
    path.write_bytes(data)
    try:
        return read_document(suites.read(str(path)))
    except UsageError as error:
        return _sentence(error)


def read_document(document: dict[str, Any]) -> str:
    """Multiply a suite out, select from it and give it the axes of a command line."""
    try:
        built = suites.build(document, "cpu")
        suites.select(built.cases, "dtype=*float*")
        suites.build(suites.override(document, tokens=[1], density=[0.5], formats=["btt"]), "cuda")
    except UsageError as error:
        return _sentence(error)
    return "read"


def read_run_file(path: Path, data: bytes) -> str:
    """Read a run file and show it as every verb would."""
    path.write_bytes(data)
    try:
        read_header(path)
        run = read_run(path)
    except UsageError as error:
        return _sentence(error)
    replicate_rows(run)
    summary_rows(run)
    json.dumps(rows_json(run))
    table(run, 100)
    return "read"


def _sentence(error: UsageError) -> str:
    text = str(error)
    assert text.strip(), "an error without a word"
    assert "\x1b" not in text, f"an error that speaks to the terminal: {text!r}"
    assert len(text) < 3000, f"an error of {len(text)} characters"
    return "refused"
