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


def test_the_comment_is_found_again_by_the_marker_of_the_markdown() -> None:
    script = STEPS["Comment"]["with"]["script"]
    assert 'body.split("\\n", 1)[0]' in script
    assert "startsWith(marker)" in script
    assert "updateComment" in script
    assert "\n" not in markdown.MARKER


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


def test_a_wheel_of_the_version_that_is_there_replaces_it(tmp_path: Path) -> None:
    """pip takes a file of a version that is installed for installed, whatever it holds."""
    python, log = tmp_path / "home/venv/bin/python", tmp_path / "log"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    python.chmod(0o755)
    (tmp_path / "dist").mkdir()
    for name in ("one-0.1.0.whl", "two-0.1.0.whl"):
        (tmp_path / "dist" / name).touch()
    environment = {
        **os.environ, "WHEEL": "torch==2.13.0 dist/*.whl", "HWBENCH_SOURCE": str(ROOT),
        "HWBENCH_HOME": str(tmp_path / "home"), "GITHUB_PATH": str(tmp_path / "path"),
    }  # fmt: skip
    script = ["bash", "-eo", "pipefail", "-c", STEPS["Install"]["run"]]
    subprocess.run(script, cwd=tmp_path, env=environment, check=True)
    first, *again = log.read_text().splitlines()
    assert first.endswith(f"--upgrade torch==2.13.0 dist/one-0.1.0.whl dist/two-0.1.0.whl {ROOT}")
    assert again == [
        f"-m pip install --quiet --force-reinstall --no-deps dist/{name}-0.1.0.whl"
        for name in ("one", "two")
    ]
