"""The documents say what the code says: formats, formulas, pictures and commands."""

from __future__ import annotations

import io
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer
from _faulty import ROOT
from _formats import CLASSES, describe

from hwbench import cli, plugins
from hwbench.formats._base import FORWARD, STEP, Format
from hwbench.report.text import table
from hwbench.store import read_run

sys.path.insert(0, str(ROOT / "docs"))
import make_formats
import pictures

PAGE = (ROOT / "docs/formats.md").read_text(encoding="utf-8")
STALE = "docs/formats.md is stale: run `make docs`."
NAMES = make_formats.built_in()
WORDS = make_formats.words()
TOKENS, ITEM = 7, 4


def _section(name: str) -> str:
    match = re.search(rf"^## {name}$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert match, f"{name} has no section. {STALE}"
    return match[1]


# --- formats -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_section_names_knobs_kernels_paper_and_picture(name):
    section, cls = _section(name), plugins.load("formats", name, Format)
    assert plugins.summary("formats", name) in section, STALE
    for word in (*cls.knob_names(), *cls.KERNELS):
        assert f"`{word}`" in section, f"{word} is not named. {STALE}"
    for part in cls.PAPER.split(", "):
        assert part in section, STALE
    assert f"formats/{name}.svg" in section, STALE
    if name in WORDS:  # a format without maths of its own still has a section
        assert WORDS[name]["maths"] in section, STALE
        assert WORDS[name]["wins"] in section, STALE


def test_page_has_no_section_of_a_format_that_is_gone():
    sections = re.findall(r"^## (\w+)$", PAGE, re.MULTILINE)
    assert sections == NAMES, STALE
    assert set(WORDS) <= set(NAMES)
    assert {path.stem for path in (ROOT / "docs/formats").glob("*.svg")} == set(NAMES), STALE


def test_table_of_costs_is_that_of_the_code():
    for name in NAMES:
        cells = [c for d in make_formats.DENSITIES for c in make_formats._relative(name, d)]
        assert f"| [{name}](#{name}) | {' | '.join(cells)} |" in PAGE, STALE


@pytest.mark.parametrize("name", NAMES)
def test_picture_is_drawn_from_the_format(name):
    drawn = pictures.picture(name)  # checks that what it draws multiplies to the weight
    stored = (ROOT / f"docs/formats/{name}.svg").read_text(encoding="utf-8")
    for svg in (drawn, stored):
        assert ElementTree.fromstring(svg).tag.endswith("svg")  # noqa: S314 (a file of ours)
    assert re.findall("<title>.*", drawn) == re.findall("<title>.*", stored), STALE


@pytest.mark.parametrize("name", sorted(WORDS))
@pytest.mark.parametrize("shape", [(96, 64), (64, 64), (64, 128)])
def test_formulas_are_those_of_the_code(name, shape):
    f, known = describe(CLASSES[name], CLASSES[name].KERNELS[0], shape), WORDS[name]
    ours = _values(f)
    for key, value in {
        "parameters": f.parameters(),
        "index": f.index_bytes(),
        "stored": f.stored_bytes(ITEM),
        "forward": f.flops(TOKENS, FORWARD),
        "step": f.flops(TOKENS, STEP),
        "between": f.intermediate_width(),
        "copied": f.copied_width(),
    }.items():
        formula = re.sub(r"\bin\b", "in_", known[key]).replace("·", "*")
        assert eval(formula, {"min": min}, ours) == value, (key, known[key], f.knobs())


def _values(f: Format) -> dict[str, Any]:
    kept = getattr(f, "gradient_entries", f.parameters)()
    index = {"uint8": 1, "int32": 4, "int64": 8}.get(getattr(f, "index_dtype", ""), 0)
    return {
        **f.knobs(),
        "out": f.out_features,
        "in_": f.in_features,
        "tokens": TOKENS,
        "item": ITEM,
        "index": index,
        "P": f.parameters(),
        "I": f.index_bytes(),
        "D": kept,
    }


# --- commands ----------------------------------------------------------------------------------


def _documents() -> list[Path]:
    own = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    return [*own, *sorted((ROOT / "docs").rglob("*.md"))]


def _shown(text: str) -> Iterator[str]:
    """The commands in fenced and indented blocks, and in code within sentences."""
    fenced = re.findall(r"^```.*?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^(?: {4}|\t)(.*)$", text, re.MULTILINE)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", rest)]
    for block in [*fenced, *indented, *inline]:
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.split(r"\s(?:&&|\|\||[|;])\s", line.strip().removeprefix("$ ")):
                if re.match(r"(\S*/)?hwbench(\s|$)", command.strip()):
                    yield command.strip()


COMMANDS = sorted({command for path in _documents() for command in _shown(path.read_text())})


def test_torch_of_the_readme_is_that_of_the_constraints():
    named = re.findall(r"torch==([\d.]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    pinned = re.findall(r"^torch==([\d.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert named == pinned


def test_the_output_in_the_readme_is_that_of_the_run_it_links():
    from rich.console import Console

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    about = re.search(
        r"\]\((reports/\S+\.jsonl)\) ended like this:\n\n```\n(.*?)^```",
        text,
        re.MULTILINE | re.DOTALL,
    )
    assert about
    run = read_run(ROOT / about[1])
    out = io.StringIO()
    console = Console(file=out, width=200, no_color=True, highlight=False)
    for part in table(run, 200):
        console.print(part)
    printed = {line.rstrip() for line in out.getvalue().splitlines()}
    shown = [line for line in about[2].splitlines() if line and not line.startswith("…")]
    assert len(shown) > 40
    assert [line for line in shown if line not in printed] == []


def test_there_are_commands_to_check():
    assert COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_command_shown_is_one_that_exists(command):
    _, *words = shlex.split(re.sub(r"\s[<>]{1,2}\s*\S+$", "", command), comments=True)
    words = [word for word in words if word not in ("…", "...")]
    assert _parsed(words) == next((word for word in words if not word.startswith("-")), None)


@pytest.mark.parametrize("words", [["rum"], ["run", "--sweet", "x"], ["list", "--threads", "2"]])
def test_command_that_does_not_exist_is_found(words):
    with pytest.raises(Exception, match="No such"):
        _parsed(words)


def _parsed(words: list[str]) -> str | None:
    """Parse as the command line would, and run nothing; the verb that was understood."""
    group = typer.main.get_command(cli.app)
    name = None
    try:
        context = group.make_context("hwbench", list(words) or ["--help"])
        name, verb, rest = group.resolve_command(context, [*context._protected_args, *context.args])
        if rest:  # a verb alone is how a sentence names it
            verb.make_context(name, rest, parent=context)
    except typer.Exit:  # --help and --version
        pass
    return name
