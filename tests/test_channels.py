"""No text from a file, a path or a package steers a terminal, a log, a heading or a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import msgspec
import pytest
from _faulty import ROOT
from _synthetic import questions, run_of
from _tiers import sampled
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from hwbench import channels, cli, plugins
from hwbench.cli import _shared
from hwbench.records import Footer, PlannedLine, ResultLine
from hwbench.store import read_run

NAMES = (
    "::stop-commands::tok",
    "  ::set-output name=a::b",
    "##[error file=a.py;line=1]owned",
    "x ##[add-mask]e",
    "##vso[task.setvariable variable=a]b",
    "\x1b]0;owned\x07\x1b[2J",
    "\x9b31m\u202e\u2066",
    "first\n::error::FORGED",
    "first\r::error::FORGED",
    "first\u2028::error::FORGED",
    "[/x]",
    "[bold]x[/bold] :smile: [link=a]b[/link]",
    *("=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1+1", "\r=1+1"),
)
"""What terminals, GitHub, Azure Pipelines, rich and spreadsheets obey."""

# Colours, and what a progress bar sends: hide and show the cursor, go up, begin the line anew.
RICH = re.compile(r"\x1b\[(?:[0-9;]*m|\?25[lh]|1A|2K)|\r(?=\x1b\[)")
COMMAND = re.compile(r"^\s*::|##[A-Za-z]*\[", re.MULTILINE)
OURS = re.compile(r"^::(error|warning|notice) title=[^:]*::.*$", re.MULTILINE)


def hostile(path: Path, name: str) -> Path:
    """A run file with this name in every field of it, beside what is needed to read it."""
    run = run_of(questions(tokens=(16,)))
    lines: list[object] = []
    ids = {}
    for case, planned in run.planned.items():
        own = planned.case
        if own.format != "dense":
            own = replace(own, format=name, knobs={**own.knobs, name: name, "was": case})
        own = replace(own, options={name: name})
        ids[case] = own.id
        bad = replace(planned, case=own, kernel=name, unsupported=None)
        lines.append(PlannedLine(id=own.id, planned=bad))
    for result in run.results:
        measured = [replace(m, note=name) for m in result.measurements]
        lines.append(
            ResultLine(
                result=replace(
                    result, case=ids[result.case], reason=name, flags=[name], measurements=measured
                )
            )
        )
    facts = {"device": {"name": name, name: name}, name: name, "torch": name}
    where = replace(
        run.header.environment, fingerprint=facts, state={"git": name, name: name},
        settings={name: name},
    )  # fmt: skip
    texts = dict.fromkeys(("suite", "about", "version", "created"), name)
    head = replace(run.header, **texts, environment=where, arguments={name: name})
    encode = msgspec.json.Encoder().encode
    every = [head, *lines, Footer(finished=name, wall_seconds=1.0)]
    path.write_bytes(b"".join(encode(line) + b"\n" for line in every))
    return path


def assert_steers_no_log(text: str) -> None:
    """A log of a CI system: nothing but what check says itself is a command."""
    assert not COMMAND.findall(OURS.sub("", text)), text
    assert all(c.isprintable() or c in "\n\t" for c in text), ascii(text)


VERBS = (
    ["check", "RUN", "--baseline", "OTHER", "--github"],
    ["check", "RUN", "--baseline", "OTHER", "--json"],
    ["compare", "RUN", "OTHER"],
    ["compare", "RUN", "OTHER", "--json"],
    ["run", "--resume", "RUN"],
    ["run", "--resume", "RUN", "--json"],
    ["history", "."],
    ["history", ".", "--json"],
    ["list", "runs", "--out", "."],
    ["list", "runs", "--out", ".", "--json"],
    ["baseline", "list", "--out", "."],
    ["baseline", "promote", "RUN", "--out", "kept"],
    ["baseline", "prune", "--keep", "1", "--dry-run", "--out", "."],
    ["export", "RUN", "--to", "csv", "--out", "rows.csv"],
    ["report", "OTHER", "--out", "page ::error::.html"],
    ["report", "RUN/absent"],
    ["report", "absent\n::error::FORGED.jsonl"],
    ["--debug", "report", "absent\x1b]0;x\x07##[error]x.jsonl"],
    ["plot", "RUN", "--kind", "absent\n::error::x", "--out", "x.png"],
    ["run", "--suite", "absent\n##[error]x"],
    ["list", "\x1b]0;x\x07"],
    ["::error::x"],
)


@pytest.mark.parametrize("verb", sampled(VERBS, 2), ids=lambda verb: ascii(" ".join(verb)))
def test_no_field_of_a_run_steers_what_a_verb_prints(hwbench, verb: list[str]) -> None:
    """Each verb tries a third of the names, and neighbours in the list try different ones."""
    names = NAMES[VERBS.index(verb) % 3 :: 3] if "RUN" in verb else NAMES[:1]
    for number, name in enumerate(names):
        run = hostile(Path(f"##[error]{number}\u202e.jsonl"), name)
        other = hostile(Path(f"{number}\n::error::FORGED.jsonl"), name)
        assert read_run(run).results
        places = {"RUN": str(run), "OTHER": str(other)}
        code, out, err = hwbench(*(places.get(word, word) for word in verb))
        assert code in (0, 1, 2, 3, 4, 5, 6), err
        assert out or err
        assert_steers_no_log(out)
        assert_steers_no_log(err)
        assert not re.search(r"^\s*: ?:error::FORGED\.jsonl", out + err, re.MULTILINE)
        if "--json" in verb and code != 2:
            assert json.loads(out) is not None
        if code == 2 and "--debug" not in verb:
            assert len(err.strip().split("\n")) == 1
        run.unlink()
        other.unlink()


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and is wide."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("verb", sampled(VERBS[::2], 3), ids=lambda verb: ascii(" ".join(verb)))
def test_a_terminal_is_sent_what_rich_sends_alone(hwbench, monkeypatch, verb: list[str]) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in NAMES[5:9] if "RUN" in verb else NAMES[:1]:
        run, other = hostile(Path("a.jsonl"), name), hostile(Path("b\x1b]0;x\x07.jsonl"), name)
        places = {"RUN": str(run), "OTHER": str(other)}
        words = ["hwbench", *(places.get(word, word) for word in verb)]
        out, err = Terminal(), Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", words)
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            assert cli._code() in (0, 1, 2, 3, 4, 5, 6)
        for text in (out.getvalue(), err.getvalue()):
            plain = RICH.sub("", text)
            assert all(c.isprintable() or c in "\n\t" for c in plain), ascii(plain)


@pytest.mark.parametrize("name", sampled(NAMES, 2), ids=ascii)
def test_names_of_members_of_other_packages_are_text(hwbench, monkeypatch, name: str) -> None:
    point = EntryPoint(name=name, value="nowhere:Nothing", group="hwbench.formats")
    monkeypatch.setattr(plugins, "_external", lambda kind: {name: point})
    for words in (["list", "formats"], ["list", "devices", "--json"]):
        code, out, err = hwbench(*words)
        assert code == 0
        assert_steers_no_log(out + err)
    assert name in {row["name"] for row in json.loads(out)}


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_no_cell_of_a_csv_is_a_formula(hwbench, name: str) -> None:
    run = hostile(Path("run.jsonl"), name)
    assert hwbench("export", str(run), "--to", "csv", "--out", "rows.csv")[0] == 0
    with Path("rows.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert any(name.replace("\r", r"\r") in cell for row in rows for cell in row)
    for cell in {cell for row in rows for cell in row if cell[:1] in tuple("=+-@\t\r\n")}:
        assert float(cell) < 0


def test_the_report_writes_its_csv_by_the_same_rule() -> None:
    """The signs of a formula are those of the export."""
    source = (ROOT / "hwbench/report/templates/rows.js").read_text(encoding="utf-8")
    assert "".join(channels._FORMULA) == "=+-@\t\r\n"
    assert r"/^[=+\-@\t\r\n]/.test(value) ? `'${value}` : value" in source


# --- the place where text is made safe ---------------------------------------------------------

TEXT = st.lists(
    st.sampled_from([*NAMES, "::", ":", "##", "#", "[", "vso", " ", "\n", "\t", "a", "é", "\x85"])
    | st.text(max_size=4)
).map("".join)


@settings(max_examples=60)
@given(st.lists(TEXT, max_size=6))
def test_no_writes_of_any_pieces_make_a_command(pieces: list[str]) -> None:
    raw = io.StringIO()
    stream = channels.Guarded(raw)
    for piece in pieces:
        assert stream.write(piece) == len(piece)
    assert_steers_no_log(_blank(raw))


def _blank(raw: io.StringIO) -> str:
    """What was written, with blanks of all widths as blanks."""
    return "".join(" " if c.isspace() and c != "\n" else c for c in raw.getvalue())


@given(TEXT)
def test_one_line_stays_one_and_says_what_was_there(text: str) -> None:
    shown = channels.visible(text)
    assert shown.isprintable()
    if text.isprintable():
        assert shown == text
    assert channels.line(text).isprintable()
    assert len(channels.line(text).splitlines()) <= 1


@settings(max_examples=40)
@given(st.dictionaries(TEXT, st.lists(TEXT, max_size=3), max_size=3))
def test_json_has_the_values_that_it_had(value: object) -> None:
    for text in (
        json.dumps(value),
        json.dumps(value, ensure_ascii=False, indent=1),
        msgspec.json.encode(value).decode(),
    ):
        plain = channels.plain_json(text)
        assert json.loads(plain) == json.loads(text)
        assert_steers_no_log(plain)


@given(TEXT)
def test_a_cell_is_no_formula(text: str) -> None:
    cell = channels.cell(text)
    assert not cell.startswith(tuple("=+-@\t\r\n"))
    assert cell.removeprefix("'") == text.replace("\r", r"\r") or cell == text
    assert len(next(csv.reader(io.StringIO(f'"{cell.replace(chr(34), 2 * chr(34))}"\n')))) == 1


def test_text_without_commands_is_written_as_it_is() -> None:
    text = "a :: b\nc::d\n# [x] ## [y] ##\n12.3\u202fms  é → ×\n\ttabbed"
    for stream in (io.StringIO(), Terminal()):
        channels.Guarded(stream).write(text)
        assert stream.getvalue() == text


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60)
@given(_VALUES)
def test_what_is_no_number_is_null_in_json(value: object) -> None:
    def plain(each: object) -> object:
        if isinstance(each, dict):
            return {key: plain(inner) for key, inner in each.items()}
        if isinstance(each, list):
            return [plain(inner) for inner in each]
        return None if isinstance(each, float) and not math.isfinite(each) else each

    assert json.loads(_shared.as_json(value), parse_constant=pytest.fail) == plain(value)


def test_only_the_shared_helper_prints(tmp_path: Path) -> None:
    """So that no verb prints a path, a name, or a number that JSON has no word for, raw."""
    for file in sorted((ROOT / "hwbench/cli").glob("*.py")):
        if file.name not in ("_shared.py", "__init__.py"):
            source = file.read_text(encoding="utf-8")
            raw = r"typer\.(?:secho|echo)\(|(?<![.\w])print\(|json\.(?:dumps|encode)\("
            assert not re.findall(raw, source), file
