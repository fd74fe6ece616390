"""Nothing that is read is executed, and no name from a file reaches a path or a terminal."""

from __future__ import annotations

import ast
from pathlib import Path

import msgspec
import pytest
from _faulty import ROOT
from _synthetic import questions, run_of
from _tiers import sampled
from msgspec.structs import replace

from hwbench.records import Footer, PlannedLine, ResultLine
from hwbench.store import read_run, run_path

STEERS = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\n::error::owned\r| x | [bold]"
"""What sets a terminal's title, clears it, turns text around, and writes an annotation."""
SIGNS = ("\x1b", "\x07", "\x9b", "\u202e", "\r", "\n::error::owned")


def hostile(path: Path, **header: str) -> Path:
    """A run file in which every text steers a terminal, and the name of the run is given."""
    run = run_of(questions(projection=False, tokens=(16,)))
    lines = []
    names = {}
    for case, planned in run.planned.items():
        format_ = planned.case.format if planned.case.format == "dense" else STEERS
        changed = replace(planned.case, format=format_, knobs={**planned.case.knobs, STEERS: case})
        names[case] = changed.id
        bad = replace(planned, case=changed, kernel=STEERS, unsupported=None)
        lines.append(PlannedLine(id=changed.id, planned=bad))
    lines += [
        ResultLine(result=replace(result, case=names[result.case], reason=STEERS, flags=[STEERS]))
        for result in run.results
    ]
    texts = dict.fromkeys(("suite", "about", "version"), STEERS)
    environment = replace(run.header.environment, fingerprint={"device": {"name": STEERS}})
    head = replace(run.header, **(texts | header), environment=environment)
    encode = msgspec.json.Encoder().encode
    lines = [head, *lines, Footer(finished=STEERS, wall_seconds=1.0)]
    path.write_bytes(b"".join(encode(line) + b"\n" for line in lines))
    return path


WRITTEN = ("page.html", "rows.csv", "rows.json", "f.png", "compare.html", "history.html", "j.xml",
           "m.md", "j.json")  # fmt: skip
VERBS = [
    ["report", "RUN", "--out", "page.html"],
    ["export", "RUN", "--to", "csv", "--out", "rows.csv"],
    ["export", "RUN", "--to", "json", "--out", "rows.json"],
    ["plot", "RUN", "--kind", "roofline", "--out", "f.png"],
    ["list", "runs", "--details"],
    ["show", "RUN"],
    ["compare", "RUN", "OTHER", "--out", "compare.html"],
    ["history", "runs", "--out", "history.html"],
    ["run", "--resume", "RUN"],
    ["baseline", "promote", "RUN", "--out", "kept"],
    ["baseline", "list", "runs"],
    ["check", "RUN", "--baseline", "OTHER", "--github", "--junit", "j.xml", "--markdown", "m.md",
     "--json-out", "j.json"],
]  # fmt: skip
PLAIN = "20260102-030405-plain"


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: " ".join(verb[:2]))
@pytest.mark.parametrize("name", sampled([STEERS, "../../escaped", PLAIN], 3))
def test_a_name_from_a_file_is_text_everywhere(
    hwbench, tmp_path: Path, monkeypatch, verb: list[str], name: str
):
    inside = tmp_path / "a" / "b"
    (inside / "runs").mkdir(parents=True)
    paths = {
        "RUN": hostile(inside / "runs" / f"{PLAIN}.jsonl", run=name),
        "OTHER": hostile(inside / "runs" / "20260101-030405-plain.jsonl", run="other"),
    }
    assert all(len(read_run(path).results) > 0 for path in paths.values())
    monkeypatch.chdir(inside)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(inside / "summary.md"))
    code, out, err = hwbench(*(str(paths.get(word, word)) for word in verb))
    refused = verb[1] == "promote" and name != PLAIN  # a file is called as its run is
    assert code == (2 if refused else 0), err
    assert "Traceback" not in err
    for text in (out, err):
        assert not [sign for sign in SIGNS if sign in text]
    made = [p for p in tmp_path.rglob("*") if p.is_file() and inside not in p.parents]
    assert made == []  # nothing outside of the folder
    written = {path for path in inside.iterdir() if path.is_file()}
    assert {path.name for path in written} >= {word for word in verb if word in WRITTEN}
    for path in written:
        if path.suffix in (".md", ".xml"):  # pages are tested by a parser, and data is as it was
            assert not [sign for sign in SIGNS if sign in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize(
    "name", ["", "..", "a/b", "/etc/x", "a\0b", "a" * 200, "a\n", "..\\x", "ä"]
)
def test_the_name_of_a_run_leads_nowhere_else(tmp_path: Path, name: str):
    from hwbench.errors import RunFileError

    try:
        path = run_path(tmp_path, name)
    except RunFileError:
        return
    assert path.parent == tmp_path
    assert path.name == f"{name}.jsonl"


FORBIDDEN = {"eval", "exec", "compile", "__import__"}
LOADERS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml"}


def test_no_code_reads_a_file_that_could_run():
    files = sorted((ROOT / "hwbench").rglob("*.py"))
    assert len(files) > 100
    for file in files:
        _assert_reads_no_code(file)


def _assert_reads_no_code(file: Path):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN, f"{file}:{node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = ast.unparse(node.func)
            assert called not in ("torch.load", "numpy.load", "np.load", "pd.read_pickle"), file
            assert not any(word.arg == "shell" for word in node.keywords), file
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        assert not {name.partition(".")[0] for name in names} & LOADERS, f"{file}:{node.lineno}"
