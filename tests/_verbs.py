"""A call of every verb of the command line; one that the parser has and is not here is an error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import typer

from hwbench import cli

SUITE = (
    'schema = 1\nname = "tiny"\n[plan]\nreplicates = 2\nbudget_seconds = 0.005\n'
    '[[cases]]\nworkload = "linear"\ndirection = "forward"\nshape = [64, 64]\n'
    'tokens = 16\nformat = [{ name = "dense" }, { name = "low_rank", density = 0.5 }]\n'
)
_CHOOSE = "choose -m MODEL -b bytes=90% -f low_rank --density 0.5 --replicates 1 -o OUT/plan.json"
_SELFTEST = "selftest aa -n 2 -r 1 --suite SUITE --device cpu --out OUT"
CALLS = (
    "run --suite SUITE --device cpu --out OUT",
    "run --suite SUITE --device cpu --weights MODEL/model.safetensors:*query* --out OUT",
    f"{_CHOOSE} --runs OUT --device cpu",
    "shapes MODEL --out OUT/suite.toml",
    "capture --model MODEL --texts TEXTS --out OUT/acts.safetensors",
    "profile --format low_rank --density 0.5 --shape 64x64 --tokens 16",
    "show RUN",
    "report RUN --out OUT/page.html",
    "plot RUN --kind roofline --out OUT/figure.pdf",
    "export RUN --to csv --out OUT/rows.csv",
    "share RUN --out OUT/shared.jsonl",
    "compare RUN RUN",
    "check RUN --baseline RUN",
    "check RUN --baseline RUN --confirm",
    "ab --a PYTHON --b PYTHON --suite SUITE --out OUT",
    "history OUT/..",
    _SELFTEST,
    "baseline promote RUN --out OUT",
    "baseline list --out OUT",
    "baseline prune --keep 1 --out OUT",
    "doctor --device cpu",
    "ceilings --device cpu",
    "list formats --details",
    "list suites",
)
"""Words in capitals stand for places: a suite, a run, a model, a text, a folder for outputs."""


@cache
def verbs() -> frozenset[str]:
    """The verbs that the parser has, those of a group with its name before them."""

    def under(command: Any, way: tuple[str, ...]) -> Iterator[str]:
        inner = getattr(command, "commands", None)
        if not inner:
            yield " ".join(way)
        for name, each in (inner or {}).items():
            yield from under(each, (*way, name))

    return frozenset(under(typer.main.get_command(cli.app), ()))


def verb(call: str) -> str:
    """The verb of a call."""
    words = call.split()
    return max((each for each in verbs() if words[: len(each.split())] == each.split()), key=len)


def calls() -> list[str]:
    """A call or more of every verb.

    Raises:
        LookupError: the parser has a verb that there is no call of.
    """
    if absent := verbs() - {verb(call) for call in CALLS}:
        raise LookupError(f"tests/_verbs.py has no call of {', '.join(sorted(absent))}")
    return list(CALLS)


def placed(call: str, beside: Path, run: str) -> list[str]:
    """The words of a call whose inputs are made in a folder, and whose outputs go there."""
    import _mutants

    (beside / "out").mkdir(exist_ok=True)
    (beside / "s.toml").write_text(SUITE)
    (beside / "texts.txt").write_text("A line of text.\nAnother line.\n")
    for name, data in _mutants._encoder().items():
        (beside / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (beside / "model" / name).write_bytes(data)
    places = {
        "SUITE": beside / "s.toml", "TEXTS": beside / "texts.txt", "RUN": run,
        "OUT": beside / "out", "MODEL": beside / "model", "PYTHON": sys.executable,
    }  # fmt: skip
    collected = []
    for word in call.split():
        start = next((name for name in places if word.startswith(name)), "")
        collected.append(f"{places[start]}{word.removeprefix(start)}" if start else word)
    return collected
