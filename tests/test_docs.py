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

from hwbench import cli, plugins, summary
from hwbench.formats import _quantized_kernels
from hwbench.formats._base import FORWARD, STEP, Format
from hwbench.report import figures
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


def test_what_this_processor_says_is_no_part_of_the_page(monkeypatch):
    kind = _quantized_kernels.LinearDynamic
    monkeypatch.setattr(kind, "apply", lambda self, layer, x: x.new_zeros(len(x), 16))
    reason = _quantized_kernels._lacks_integers.__wrapped__(kind)
    assert reason
    elsewhere, here = (
        {"by_kernel": {kind.name: {"cpu float32 forward": each}}} for each in ("", reason)
    )
    assert make_formats._places(here) == make_formats._places(elsewhere)


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
        **({"chain": sum(f.products())} if "C" in known["forward"].split() else {}),
        "index": f.index_bytes(),
        "stored": f.stored_bytes(ITEM),
        "forward": f.flops(TOKENS, FORWARD),
        "step": f.flops(TOKENS, STEP),
        "between": f.intermediate_width(),
        "copied": f.copied_width(),
    }.items():
        formula = re.sub(r"\bin\b", "in_", known[key]).replace("·", "*")
        assert eval(formula, {"min": min}, ours) == value, (key, known[key], f.knobs())


@pytest.mark.parametrize("name", ["blast", "btt", "monarch"])
def test_help_of_a_format_of_blocks_names_its_factors_and_its_parameters(name):
    text = " ".join((plugins.load("formats", name, Format).__doc__ or "").split())
    assert f"{WORDS[name]['parameters']} parameters" in text
    assert text.count("of shape") == 2


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
        "C": sum(f.products()),
        "between": f.intermediate_width(),
        "I": f.index_bytes(),
        "D": kept,
    }


# --- commands ----------------------------------------------------------------------------------


def _documents() -> list[Path]:
    own = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "reports/README.md", "evidence/README.md"]
    return [*(ROOT / name for name in own), *sorted((ROOT / "docs").rglob("*.md"))]


def _shown(text: str, program: str = r"(\S*/)?hwbench") -> Iterator[str]:
    """The commands in fenced and indented blocks, and in code within sentences."""
    fenced = re.findall(r"^```.*?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^(?: {4}|\t)(.*)$", text, re.MULTILINE)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", rest)]
    for block in [*fenced, *indented, *inline]:
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.split(r"\s(?:&&|\|\||[|;])\s", line.strip().removeprefix("$ ")):
                if re.match(rf"{program}(\s|$)", command.strip()):
                    yield command.strip()


def _commands(program: str = r"(\S*/)?hwbench") -> list[str]:
    """Each command of that program, a regular expression, once."""
    texts = [path.read_text(encoding="utf-8") for path in _documents()]
    return sorted({command for text in texts for command in _shown(text, program)})


COMMANDS = _commands()


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


def test_the_table_of_perplexities_is_that_of_the_run_it_links():
    text = (ROOT / "docs/accuracy.md").read_text(encoding="utf-8")
    link, under = re.search(
        r"\]\(\.\./(\S+/compress_lm\.jsonl)\)(.*?)\n\n[^|]", text, re.DOTALL
    ).groups()
    measured = summary(ROOT / link).set_index("case")
    names = {"int8, weight only": "quantized", "2:4": "n_m"}
    lines = [line[1:-1].split("|") for line in under.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line] for line in lines]
    rows = [row for row in rows[1:] if "evidence/" not in row[3]]
    assert len(rows) == len(measured) - 1  # dense is the original
    for name, weighting, density, ratio, *others in rows:
        (case,) = (
            each
            for each, it in measured.iterrows()
            if f"/{names.get(name, name)}[" in each
            and f"weighting={weighting.split()[0]}]" in each
            and (not density or abs(it["density"] - float(density)) < 0.02)
        )
        found = measured.loc[case]
        told = [*zip(others, found[["next_token_divergence", "top1_agreement"]], strict=True)]
        numbers = re.findall(r"[\d.]+", ratio)
        ends = ["perplexity_ratio", "perplexity_ratio_low", "perplexity_ratio_high"]
        told += zip(numbers, found[ends], strict=False)
        for number, value in told:
            assert float(number) == round(value, len(number.partition(".")[2])), (name, weighting)


def test_the_caption_beside_the_figure_is_what_its_command_writes():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    run, kind, out = re.search(
        r"^hwbench plot (\S+) --kind (\w+) --out (docs/\S+)$", text, re.MULTILINE
    ).groups()
    caption = (ROOT / out).with_suffix(".caption.txt").read_text(encoding="utf-8")
    assert caption == figures.caption(read_run(ROOT / run), kind)


def test_there_are_commands_to_check():
    assert COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_command_shown_is_one_that_exists(command):
    _, *words = shlex.split(re.sub(r"\s[<>]{1,2}\s*\S+$", "", command), comments=True)
    words = [word for word in words if word not in ("…", "...")]
    assert _parsed(words) == next((word for word in words if not word.startswith("-")), None)


@pytest.mark.parametrize("command", _commands("make"))
def test_target_shown_is_one_that_exists(command):
    make = (ROOT / "Makefile").read_text(encoding="utf-8")
    variables = set(re.findall(r"^(\w+) *[?:]?=", make, re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+): .*## ", make, re.MULTILINE))
    for word in shlex.split(command, comments=True)[1:]:
        name, given, _ = word.partition("=")
        assert name in (variables if given else targets)


@pytest.mark.parametrize("command", _commands(r"(\S*/)?(python|pytest)"))
def test_script_shown_is_one_that_exists(command):
    """The file is there and knows the options; what runs under ``-m`` is another's."""
    program, *words = shlex.split(command, comments=True)
    if not program.endswith("python") or not words or "-m" in words:
        paths = [word for word in words if word.startswith("tests/")]
        assert all(next(ROOT.glob(path), None) for each in paths for path in _expanded(each))
        return
    script = (ROOT / words[0]).read_text(encoding="utf-8")
    for word in words[1:]:
        assert not word.startswith("--") or f'"{word}"' in script, f"{words[0]} has no {word}"


def test_the_page_on_evidence_names_every_script_and_what_make_runs() -> None:
    page = (ROOT / "evidence/README.md").read_text(encoding="utf-8")
    make = (ROOT / "Makefile").read_text(encoding="utf-8")
    told, loop = (
        re.search(pattern, text, re.DOTALL)
        for pattern, text in [
            (r"`make evidence`\s+runs (.*?) one after", page),
            (r"for script in (.*?);", make),
        ]
    )
    assert told
    assert loop
    assert re.findall(r"`(\w+)`", told[1]) == loop[1].split()
    scripts = (ROOT / "evidence").glob("*.py")
    to_type = {path.stem for path in scripts if "__main__" in path.read_text(encoding="utf-8")}
    assert to_type <= set(re.findall(r"(\w+)\.py", page))


def _expanded(path: str) -> list[str]:
    """A path with ``{a,b}`` as a shell expands it."""
    before, brace, rest = path.partition("{")
    inside, _, after = rest.partition("}")
    return [f"{before}{each}{after}" for each in inside.split(",")] if brace else [path]


# --- blocks ------------------------------------------------------------------------------------

PROGRAMS = {"git", "hwbench", "make", "pip", "pytest", "python", "python3", "ray", "."}
LISTINGS = {
    "linear on Intel(R) Xeon(R) Processor",  # held against its run above
    "hwbench/",  # the map, which test_architecture.py holds against the folders
    "#SBATCH",  # for a cluster that no test has
}
"""How the blocks begin that are neither a language's nor commands."""

RUN = {
    "python": {"README", "add-a-device", "add-a-format", "i-have-a-checkpoint", "i-have-a-layer",
               "python", "schema", "testing"},
    "toml": {"add-a-device", "add-a-format", "suites"},
}  # fmt: skip
"""By language, the pages whose blocks a test runs or reads, each of them."""


@pytest.mark.parametrize("path", _documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_block_is_one_that_no_test_reads(path):
    text = path.read_text(encoding="utf-8")
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if language not in ("", "bash"):
            assert path.stem in RUN[language], block
            continue
        if block.startswith(tuple(LISTINGS)):
            continue
        for line in block.splitlines():
            words = [word for word in shlex.split(line, comments=True) if "=" not in word]
            assert not words or words[0].rpartition("/")[2] in PROGRAMS, line


@pytest.mark.parametrize("words", [["rum"], ["run", "--sweet", "x"], ["list", "--threads", "2"]])
def test_command_that_does_not_exist_is_found(words):
    with pytest.raises(Exception, match="No such"):
        _parsed(words)


def _parsed(words: list[str]) -> str | None:
    """Parse as the command line would, and run nothing; the verb that was understood."""
    group = cli._parser()
    name = None
    try:
        context = group.make_context("hwbench", list(words) or ["--help"])
        name, verb, rest = group.resolve_command(context, [*context._protected_args, *context.args])
        if rest:  # a verb alone is how a sentence names it
            verb.make_context(name, rest, parent=context)
    except typer.Exit:  # --help and --version
        pass
    return name
