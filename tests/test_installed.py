"""What pip brings has a reason, and a verb loads what it uses and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from _faulty import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import make_pages

WORDS = make_pages.WORDS["packages"]
GOLDEN = ROOT / "tests/golden"
RUN = str(GOLDEN / "runs/scored.jsonl")
NIGHTS = str(GOLDEN / "nights")
TONIGHT = str(GOLDEN / "tonight/slower.jsonl")

LIGHT = {
    "list": ["list", "formats"],
    "show": ["show", RUN],
    "check": ["check", TONIGHT, "--baseline", NIGHTS],
}
OTHERS = {
    "history": ["history", NIGHTS, "--out", "history.html"],
    "report": ["report", RUN, "--out", "report.html"],
    "list suites": ["list", "suites"],
    "compare": ["compare", RUN, TONIGHT, "--out", "compare.html"],
    "plot": ["plot", RUN, "--kind", "pareto", "--out", "pareto.svg"],
    "export": ["export", RUN, "--to", "csv", "--out", "rows.csv"],
    "share": ["share", RUN, "--out", "shared.jsonl"],
}
"""Verbs that read what was measured; each is tried with one command."""

EACH = """
import json, os, sys
import hwbench.cli
verbs, modules = map(json.loads, sys.argv[1:])
for verb, words in verbs.items():
    sys.stdout.flush()
    if not os.fork():
        out = os.dup(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv = ["hwbench", *words]
        code = hwbench.cli._code()
        loaded = [name for name in modules if name in sys.modules]
        os.write(out, (json.dumps([verb, code, loaded]) + "\\n").encode())
        os._exit(0)
    os.wait()
"""
"""Every verb in a copy of one process that has only the command line."""


def test_every_package_that_is_installed_has_a_reason_and_a_size() -> None:
    named = make_pages.requirements()
    assert {name for names in named.values() for name in names} == set(WORDS)
    for name, words in WORDS.items():
        assert words["why"], name
        assert words["megabytes"] > 0, name
    assert {name for name in WORDS if "module" in WORDS[name]} == set(named[""])
    loaded = {verb for name in named[""] for verb in WORDS[name]["loaded"]}
    assert loaded <= {*LIGHT, *OTHERS}


@pytest.mark.parametrize("verbs", [LIGHT, pytest.param(OTHERS, marks=pytest.mark.heavy)],
                         ids=["light", "others"])  # fmt: skip
def test_a_verb_loads_what_the_page_says(verbs: dict[str, list[str]], tmp_path: Path) -> None:
    modules = {WORDS[name]["module"]: name for name in make_pages.requirements()[""]}
    done = subprocess.run(
        [sys.executable, "-c", EACH, json.dumps(verbs), json.dumps(list(modules))],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PATH": ""},
    )  # fmt: skip
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [verb for verb, _, _ in told] == list(verbs), done.stderr
    for verb, code, loaded in told:
        assert code == (1 if verb == "check" else 0), (verb, done.stderr)
        said = {module for module, name in modules.items() if verb in WORDS[name]["loaded"]}
        assert set(loaded) == said, verb
