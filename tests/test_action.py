"""The composite action, and the workflow of a team that uses it: what they run, and what they fail.

The scripts are those of the files; only GitHub's own steps (install, upload, comment) are left out.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _shell
import pytest
import yaml
from _check import Call
from _faulty import ROOT
from test_docs import _parsed

from hwbench.analysis import outcome
from hwbench.measure import revision
from hwbench.report import markdown
from hwbench.studies.baseline import promote

ACTION = ROOT / ".github/actions/hwbench/action.yml"
EXAMPLE = ROOT / "docs/examples/nightly-gate.yml"
NIGHT = ROOT / ".github/workflows/nightly-gpu.yml"
_NODE = shutil.which("node")


def loaded(path: Path) -> dict[str, Any]:
    actual: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return actual


def steps(path: Path) -> list[dict[str, Any]]:
    document = loaded(path)
    if "runs" in document:
        return list(document["runs"]["steps"])
    return [step for job in document["jobs"].values() for step in job["steps"]]


STEPS = {step["name"]: step for step in steps(ACTION) if "name" in step}


def commands(path: Path) -> Iterator[list[str]]:
    """Every call of hwbench in the scripts of a file, without its redirections."""
    for step in steps(path):
        text = step.get("run", "").replace("\\\n", " ")
        for each in re.findall(r"(?:^|\$\()\s*(hwbench [^\n]*)", text, re.MULTILINE):
            line = re.split(r" \|\| |\)(?: \|\||$)| > ", each)[0]
            yield shlex.split(line)[1:]


@pytest.mark.parametrize(
    ("path", "verbs"),
    [
        (ACTION, ["doctor", "run", "check", "report", "history", "baseline"]),
        (EXAMPLE, ["baseline", "baseline"]),
    ],
    ids=["action", "example"],
)
def test_every_command_exists_and_its_flags_parse(path: Path, verbs: list[str]) -> None:
    actual = list(commands(path))
    assert [words[0] for words in actual] == verbs
    for words in actual:
        assert _parsed(words) == words[0]
        if words[0] == "baseline":
            assert words[1] in ("list", "promote")


def test_a_flag_that_does_not_exist_would_be_found() -> None:
    words = next(iter(commands(ACTION)))
    with pytest.raises(Exception, match="No such option"):
        _parsed([*words, "--no-such-flag", "1"])


@pytest.mark.parametrize("path", [ACTION, EXAMPLE], ids=["action", "example"])
def test_actions_are_pinned_and_no_text_goes_into_a_shell(path: Path) -> None:
    for step in steps(path):
        uses = step.get("uses", "")
        ours = uses.startswith("OWNER/hwbench/")
        assert not uses or ours or re.search(r"@[0-9a-f]{40}$", uses), uses
        assert "${{" not in step.get("run", "")
        assert "${{" not in step.get("with", {}).get("script", "")
        assert "run" not in step or path is EXAMPLE or step["shell"] == "bash"


def test_the_example_gives_inputs_that_the_action_has() -> None:
    (step,) = [each for each in steps(EXAMPLE) if each.get("uses", "").startswith("OWNER/")]
    assert step["uses"].split("@")[0] == "OWNER/hwbench/.github/actions/hwbench"
    assert set(step["with"]) <= set(loaded(ACTION)["inputs"])


def test_every_input_is_described_used_and_has_a_default() -> None:
    text = ACTION.read_text(encoding="utf-8")
    for name, each in loaded(ACTION)["inputs"].items():
        assert each["description"]
        assert "default" in each
        assert f"inputs.{name}" in text, name


def test_no_job_may_more_than_it_needs_and_forks_are_kept_out() -> None:
    document = loaded(EXAMPLE)
    assert document["permissions"] == {}
    assert document["jobs"]["gate"]["permissions"] == {
        "contents": "read",
        "pull-requests": "write",
    }
    assert "head.repo.full_name == github.repository" in document["jobs"]["gate"]["if"]
    assert document["jobs"]["promote"]["permissions"] == {}
    assert document["jobs"]["promote"]["environment"]


@pytest.mark.parametrize("path", [EXAMPLE, NIGHT], ids=["example", "own"])
def test_one_run_measures_at_a_time_and_one_that_is_skipped_takes_no_place(path: Path) -> None:
    """A group of the whole workflow holds skipped runs too, and one of them ends a waiting one."""
    document = loaded(path)
    assert "concurrency" not in document
    assert document["jobs"]["gate"]["concurrency"]["cancel-in-progress"] is False
    assert "if" in document["jobs"]["gate"]


def test_artefact_and_comment_of_a_check_have_its_name() -> None:
    """A second artefact of one name is refused, and a second comment would take the first's."""
    name = "${{ steps.name.outputs.name }}"
    (upload,) = [each["with"] for each in steps(ACTION) if "upload" in each.get("uses", "")]
    assert name in upload["name"]
    assert STEPS["Comment"]["env"]["NAME"] == name
    assert "${process.env.NAME}" in STEPS["Comment"]["with"]["script"]
    assert next(iter(steps(ACTION)))["id"] == "name", "what may fail comes after it"


@pytest.mark.heavy
def test_a_check_is_named_by_its_suite_and_device(tmp_path: Path) -> None:
    told = tmp_path / "told"
    environment = {**os.environ, "GITHUB_OUTPUT": str(told)}
    script = ["bash", "-eo", "pipefail", "-c", STEPS["Name"]["run"]]
    for name, suite, device, expected in (
        ("", "linear", "auto", "linear-auto"),
        ("", "linear", "cuda:1", "linear-cuda-1"),
        ("", "bench marks/layers.toml", "cpu", "bench-marks-layers-cpu"),
        ("Zen 3", "linear", "cpu", "Zen-3"),
        ("a -->\nrun=x", "linear", "cpu", "a-----run-x"),
    ):
        told.write_text("")
        given = {"NAME": name, "SUITE": suite, "DEVICE": device}
        subprocess.run(script, env={**environment, **given}, check=True)
        assert told.read_text() == f"name={expected}\n"


_COMMENT = """
const { script, cases } = JSON.parse(require("fs").readFileSync(0, "utf8"));
const AsyncFunction = (async () => {}).constructor;
const step = new AsyncFunction("require", "github", "context", script);
const context = { repo: { owner: "o", repo: "r" }, payload: { pull_request: { number: 7 } } };
(async () => {
  for (const { login, comments } of cases) {
    const did = (verb) => async (what) => console.log(JSON.stringify({ verb, ...what }));
    await step(require, {
      graphql: async () => ({ viewer: { login } }),
      paginate: async (list, what) => comments,
      rest: { issues: { createComment: did("create"), updateComment: did("update") } },
    }, context);
  }
})();
"""
"""Runs the script of a comment as GitHub's step does, with what a pull request has already."""


@pytest.mark.heavy
@pytest.mark.skipif(_NODE is None, reason="there is no node on this machine")
def test_a_token_updates_its_own_comment_of_this_check_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "check.md").write_text(f"{markdown.MARKER}\n\n### fine\n", encoding="utf-8")
    bot, person = "github-actions[bot]", "ann"

    def comment(login: str | None, name: str) -> dict[str, Any]:
        user = None if login is None else {"login": login, "type": "User"}
        return {"id": 3, "user": user, "body": f"<!-- hwbench check {name} -->\nold"}

    kinds = [
        ("update", bot, comment(bot, "linear-cpu")),
        ("update", person, comment(person, "linear-cpu")),
        ("create", bot, comment(person, "linear-cpu")),
        ("create", bot, comment(None, "linear-cpu")),
        ("create", bot, comment(bot, "linear-cuda")),
        ("create", bot, comment(bot, "linear")),
        ("create", bot, {"id": 3, "user": {"login": bot}, "body": None}),
    ]
    given = {
        "script": STEPS["Comment"]["with"]["script"],
        "cases": [{"login": login, "comments": [each]} for _, login, each in kinds],
    }
    done = subprocess.run(
        [str(_NODE), "-e", _COMMENT], input=json.dumps(given), check=True, text=True,
        capture_output=True, env={**os.environ, "OUT": str(tmp_path), "NAME": "linear-cpu"},
    )  # fmt: skip
    calls = [json.loads(line) for line in done.stdout.splitlines()]
    assert [call["verb"] for call in calls] == [verb for verb, *_ in kinds]
    for call in calls:
        assert call["body"].startswith(f"<!-- hwbench check linear-cpu -->\n{markdown.MARKER}\n")
        assert call["comment_id" if call["verb"] == "update" else "issue_number"] in (3, 7)


class Job:
    """The steps of the action in a folder, as a runner goes through them."""

    def __init__(self, folder: Path, hwbench: Call) -> None:
        self.folder, self.hwbench, self.home = folder, hwbench, folder / "home"
        self.given = {name: str(each["default"]) for name, each in loaded(ACTION)["inputs"].items()}
        self.given |= {"suite": "smoke", "device": "fake", "require": "", "home": str(self.home)}

    def run(self, *, start: str = "Doctor") -> int:
        """The exit code of the job from a step on."""
        shutil.rmtree(self.folder / "hwbench-out", ignore_errors=True)  # as a fresh checkout does
        self.outputs: dict[str, dict[str, str]] = {"doctor": {}, "measure": {}, "check": {}}
        names = ["Doctor", "Measure", "Check", "Report", "Verdict"]
        for name in names[names.index(start) :]:
            step = STEPS[name]
            if name != "Doctor" and not self._holds(step["if"]):
                continue
            result = self.folder / "told"
            result.write_text("")
            environment = {**os.environ, "GITHUB_OUTPUT": str(result)}
            environment["GITHUB_STEP_SUMMARY"] = str(self.folder / "summary")
            environment |= {k: self._filled(str(v)) for k, v in step["env"].items()}
            code = _shell.run(step["run"], self.folder, environment, self.hwbench)
            if "id" in step:
                lines = result.read_text(encoding="utf-8").splitlines()
                self.outputs[step["id"]] = dict(line.split("=", 1) for line in lines)
            if code:
                return code
        return 0

    def _value(self, name: str) -> str:
        if match := re.fullmatch(r"inputs\.([\w-]+)", name):
            return self.given[match[1]]
        match = re.fullmatch(r"steps\.(\w+)\.outputs\.(\w+)", name)
        assert match, name
        return self.outputs[match[1]].get(match[2], "")

    def _filled(self, text: str) -> str:
        return re.sub(r"\$\{\{ ([\w.-]+) \}\}", lambda found: self._value(found[1]), text)

    def _holds(self, condition: str) -> bool:
        for part in condition.removeprefix("always() && ").split(" && "):
            name, sign, expected = part.split(" ")
            if (self._value(name) == expected.strip("'")) != (sign == "=="):
                return False
        return True


@pytest.mark.heavy
def test_nights_of_the_action(
    tmp_path: Path, hwbench: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No baseline yet is a warning, a baseline is judged, an unusable baseline fails."""
    monkeypatch.setattr(revision, "commit", lambda: {"commit": "a" * 40, "dirty": False})
    job = Job(tmp_path, hwbench)
    assert job.run() == 0
    assert job.outputs["check"]["code"] == str(outcome.NO_BASELINE)
    [first] = (job.home / "nights").glob("*.jsonl")
    promote(first, job.home / "baselines")
    job.given["keep"] = "false"
    assert job.run() == 0
    assert job.outputs["check"]["code"] == str(outcome.FINE)
    assert [first] == list((job.home / "nights").glob("*.jsonl"))
    assert first.stem in (tmp_path / "summary").read_text(encoding="utf-8")
    assert list((tmp_path / "hwbench-out/baselines").rglob("*.jsonl"))
    names = {each.name for each in (tmp_path / "hwbench-out").iterdir()}
    assert {"check.xml", "check.md", "check.json", "report.html", "history.html"} <= names
    text = (tmp_path / "hwbench-out/check.md").read_text(encoding="utf-8")
    assert text.split("\n", 1)[0] == markdown.MARKER


@pytest.mark.heavy
def test_the_baselines_of_a_second_check_in_one_job_take_the_place_of_the_first(
    tmp_path: Path,
) -> None:
    home, out = tmp_path / "home", tmp_path / "out"
    for folder in (home / "nights", home / "baselines/machine", out):
        folder.mkdir(parents=True)
    (out / "night.jsonl").touch()
    environment = {
        **os.environ, "RUN": str(out / "night.jsonl"), "KEEP": "false", "HWBENCH_HOME": str(home),
        "OUT": str(out),
    }  # fmt: skip
    for kept in ("first.jsonl", "second.jsonl"):
        for old in (home / "baselines").rglob("*.jsonl"):
            old.unlink()
        (home / "baselines/machine" / kept).touch()
        script = STEPS["Report"]["run"]
        assert _shell.run(script, tmp_path, environment, lambda *words: (0, "", "")) == 0
        found = [path.relative_to(out) for path in (out / "baselines").rglob("*.jsonl")]
        assert found == [Path("baselines/machine") / kept]


@pytest.mark.parametrize(
    ("code", "listed", "ends", "said"),
    [
        (0, [], 0, ""),
        (1, [], 1, ""),
        (2, [], 2, ""),
        (3, [], 3, ""),
        (4, [], 0, "::warning title=hwbench check::The machine"),
        (5, [], 5, ""),
        (6, [{"suite": "other"}], 0, "no baseline of suite smoke yet"),
        (6, [{"suite": "smoke"}], 6, "::error title=hwbench check::"),
        (70, [], 70, ""),
    ],
)
@pytest.mark.heavy
def test_what_each_code_does_to_the_job(
    tmp_path: Path, capfd: pytest.CaptureFixture[str],
    code: int, listed: list[dict[str, str]], ends: int, said: str,
) -> None:  # fmt: skip
    def hwbench(*words: str) -> tuple[int, str, str]:
        assert words[:2] == ("baseline", "list")
        return 0, json.dumps(listed), ""

    out = tmp_path / "hwbench-out"
    out.mkdir()
    (out / "check.json").write_text('{"suite": "smoke"}')
    environment = {
        **os.environ, "CODE": str(code), "RUN": "a/b.jsonl", "HWBENCH_HOME": "h", "OUT": str(out),
    }  # fmt: skip
    assert _shell.run(STEPS["Verdict"]["run"], tmp_path, environment, hwbench) == ends
    assert said in capfd.readouterr().out


@pytest.mark.parametrize(("code", "ends", "ready"), [(0, 0, True), (4, 0, False), (2, 2, False)])
@pytest.mark.heavy
def test_a_busy_machine_measures_nothing_and_fails_nobody(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], code: int, ends: int, ready: bool
) -> None:
    job = Job(tmp_path, lambda *words: (code if words[0] == "doctor" else 70, "", ""))
    job.given["require"] = "quiet"
    result = tmp_path / "told"
    result.write_text("")
    environment = {
        **os.environ, "GITHUB_OUTPUT": str(result), "DEVICE": "fake", "REQUIRE": "quiet",
        "HWBENCH_HOME": str(job.home), "OUT": str(tmp_path / "out"),
    }  # fmt: skip
    assert _shell.run(STEPS["Doctor"]["run"], tmp_path, environment, job.hwbench) == ends
    assert ("ready=yes" in result.read_text()) is ready
    assert ("::warning" in capfd.readouterr().out) is (code == 4)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("night", "ends"), [("../x", 2), ("a b", 2), ("good", 0), ("good.jsonl", 0)]
)
def test_promotion_takes_a_name_and_no_path(tmp_path: Path, night: str, ends: int) -> None:
    arguments: list[tuple[str, ...]] = []

    def hwbench(*words: str) -> tuple[int, str, str]:
        arguments.append(words)
        return 0, "", ""

    (script,) = [step["run"] for step in steps(EXAMPLE) if step.get("name") == "Promote"]
    environment = {**os.environ, "NIGHT": night, "HWBENCH_HOME": str(tmp_path / "none")}
    assert _shell.run(script, tmp_path, environment, hwbench) == ends
    if not ends:
        assert arguments[0][:2] == ("baseline", "promote")
        assert arguments[0][2].endswith("nights/good.jsonl")


def test_a_wheel_of_the_version_that_is_there_replaces_it_and_nothing_else_does(
    tmp_path: Path,
) -> None:
    """pip takes a file of a version that is installed for installed, whatever it holds.

    Without its option a file of constraints would be the name of a package in the index.
    """
    python, log = tmp_path / "home/venv/bin/python", tmp_path / "log"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    python.chmod(0o755)
    (tmp_path / "dist").mkdir()
    for name in ("dist/one-0.1.0.whl", "dist/two-0.1.0.whl", "constraints.txt"):
        (tmp_path / name).touch()
    (own,) = [step["with"]["wheel"] for step in steps(NIGHT) if "wheel" in step.get("with", {})]
    for wheel, expanded, again in (
        (own, own, []),
        ("torch==2.13.0 dist/*.whl", "torch==2.13.0 {one} {two}", ["{one}", "{two}"]),
        ("--constraint constraints.txt dist/one*", "--constraint constraints.txt {one}", ["{one}"]),
        ("", "", []),
    ):
        paths = {"one": "dist/one-0.1.0.whl", "two": "dist/two-0.1.0.whl"}
        environment = {
            **os.environ, "WHEEL": wheel, "HWBENCH_SOURCE": str(ROOT),
            "HWBENCH_HOME": str(tmp_path / "home"), "GITHUB_PATH": str(tmp_path / "path"),
        }  # fmt: skip
        script = ["bash", "-eo", "pipefail", "-c", STEPS["Install"]["run"]]
        log.write_text("")
        subprocess.run(script, cwd=tmp_path, env=environment, check=True)
        words = f"{expanded.format(**paths)} {ROOT}".strip()
        assert log.read_text().splitlines() == [
            f"-m pip install --quiet --upgrade {words}",
            *(
                f"-m pip install --quiet --force-reinstall --no-deps {each.format(**paths)}"
                for each in again
            ),
        ]
