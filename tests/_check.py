"""Runs as ``hwbench check`` finds them: made up in memory, and kept in a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from _synthetic import linear_case, run_of
from msgspec.structs import replace

from hwbench import checkpoints
from hwbench.analysis.outcome import Outcome
from hwbench.records import Change, PlannedLine, Ratio, ResultLine, Verdict
from hwbench.store import Run, RunWriter

CASES = [linear_case("dense", None), linear_case("low_rank", 0.5), linear_case("csr", 0.5)]
FACTS = {"name": "Example Processor 9000", "threads": 2, "torch": "2.13.0"}

Call = Callable[..., tuple[int, str, str]]

TINY = """
schema = 1
name = "tiny"
[plan]
replicates = 2
budget_seconds = 0.005
[[cases]]
workload = "linear"
direction = "forward"
shape = [16, 16]
tokens = 4
format = [{ name = "dense" }, { name = "low_rank", density = 0.5 }]
[[cases]]
workload = "projection"
shape = [16, 16]
format = [{ name = "low_rank", density = 0.5 }]
"""
"""A suite as TOML: two timed cases, and a scored one."""


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


def model_files(folder: Path) -> Path:
    """A new folder with the files of a model, as far as names and configuration go."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert", "hidden_size": 8}')
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    assert checkpoints.unreadable(folder) is None
    return folder


def one_sentence(err: str) -> str:
    """The only line on the error stream; nothing there looks like a bug."""
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert "Traceback" not in err
    assert "a bug" not in err
    return lines[0]


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
    """A verdict whose every name and reason tries to be more than text."""
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
