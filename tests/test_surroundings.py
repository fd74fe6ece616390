"""What lies in the current folder, and in the settings of the user, reaches no process of ours."""

from __future__ import annotations

import errno
import os
import pkgutil
import runpy
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from _check import kept
from _faulty import ROOT
from _synthetic import questions, run_of
from _verbs import calls, placed, verb

from hwbench import environment, protocol
from hwbench.errors import UsageError
from hwbench.measure import revision
from hwbench.measure import run as runner
from hwbench.measure.transports.local import LocalWorker
from hwbench.store import read_run
from hwbench.studies import _sides

ABSENT = "cupy dill flash_attn jax numba onnx psutil redis tensorflow torch_xla triton xformers"
"""Top-level names that torch and its friends try to import where they are not installed."""
SHA = "0123456789abcdef0123456789abcdef01234567"


def every_name() -> set[str]:
    """Top-level names of modules that a process of ours could import."""
    installed = {module.name for module in pkgutil.iter_modules()}
    names = {*sys.stdlib_module_names, *installed, *ABSENT.split(), "hwbench", "usercustomize"}
    assert {"torch", "numpy", "msgspec", "random", "typing", "matplotlib"} <= names
    return names


def trapped(folder: Path, names: Iterable[str]) -> Path:
    """A folder with a module under each of these names, which leaves its name in the trace."""
    folder.mkdir(exist_ok=True)
    trace = folder / "executed.txt"
    for name in names:
        (folder / f"{name}.py").write_text(f"open({str(trace)!r}, 'a').write({name!r} + '\\n')\n")
    return trace


def member(folder: Path) -> Path:
    """A format of another package, as it is installed."""
    info = folder / "outside-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hwbench.formats]\noutside = outside_format:Outside\n")
    (folder / "outside_format.py").write_text(
        "from hwbench.formats.dense import Dense\n\n\nclass Outside(Dense):\n"
        '    """A format of another package."""\n'
    )
    return folder


def test_a_worker_imports_nothing_from_the_current_folder(tmp_path: Path, monkeypatch) -> None:
    """An empty part of PYTHONPATH would mean that folder; a named one goes on to hold."""
    trace = trapped(tmp_path / "here", every_name())
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(member(tmp_path / "site"))]))
    worker = LocalWorker("cpu", 1)
    try:
        asked = protocol.DescribeRequest(names=["outside", "monarch"])
        reply = worker.ask(asked, protocol.DescribeReply, 60.0)
    finally:
        worker.close()
    assert [each.name for each in reply.formats] == ["outside", "monarch"]
    assert not trace.exists(), trace.read_text()


def test_the_command_works_where_the_current_folder_was_deleted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def deleted() -> str:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(os, "getcwd", deleted)
    monkeypatch.setattr(sys, "argv", ["hwbench", "list", "formats"])
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "hwbench" / "__main__.py"), run_name="__main__")
    assert ended.value.code in (0, None)
    assert "low_rank" in capsys.readouterr().out


@pytest.mark.heavy
def test_a_figure_takes_no_settings_from_outside(tmp_path: Path, monkeypatch) -> None:
    """`python -m hwbench` needs no PYTHONPATH beside its checkout, and imports nothing else."""
    run = Path(kept(run_of(questions(projection=False, tokens=(16,))), tmp_path))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("MPLBACKEND", "module://a_backend_that_is_not_there")
    here = tmp_path / "here"
    trace = trapped(here, "typing random json string typer torch numpy matplotlib".split())
    (here / "matplotlibrc").write_bytes(b"text.usetex: True\nsavefig.bbox: tight\n\xff")
    (here / "hwbench").symlink_to(ROOT / "hwbench")
    words = ["plot", str(run), "--kind", "crossover", "--out", "figure.svg"]
    ended = subprocess.run(
        [sys.executable, "-m", "hwbench", *words], cwd=here, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    assert not trace.exists(), trace.read_text()
    import matplotlib as mpl

    from hwbench.report import figures

    drawn = tmp_path / "plain.svg"
    with mpl.rc_context({"savefig.bbox": "tight", "font.size": 30, "lines.linewidth": 9}):
        figures.plot(read_run(run), "crossover", drawn)
    assert drawn.read_bytes() == (here / "figure.svg").read_bytes()


def ended(call: str, start: list[str], here: Path, beside: Path) -> None:
    """Run a verb in a folder; its inputs are made beside, and its outputs go there."""
    words = placed(call, beside, kept(run_of(questions(projection=False, tokens=(16,))), beside))
    done = subprocess.run([*start, *words], cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1, 3, 4, 5, 6), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.heavy
@pytest.mark.parametrize("call", calls())
def test_no_verb_imports_anything_from_the_current_folder(
    tmp_path: Path, call: str, monkeypatch
) -> None:
    """As the installed command starts: by file."""
    trace = trapped(tmp_path / "here", every_name())
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "hwbench"
    command.write_text("from hwbench.cli import main\n\nmain()\n")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    ended(call, [sys.executable, str(command)], tmp_path / "here", tmp_path)
    assert not trace.exists(), trace.read_text()


@pytest.mark.heavy
@pytest.mark.parametrize("call", [each for each in calls() if verb(each) in ("list", "report")])
def test_nothing_does_as_a_module_of_python_either(tmp_path: Path, call: str, monkeypatch) -> None:
    """But for what Python itself imports before it comes to a module that ``-m`` names."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    code = "import importlib.util, runpy, sys; print(*sys.modules)"
    before = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    here = tmp_path / "here"
    names = every_name() - {name.partition(".")[0] for name in before} - {"hwbench"}
    trace = trapped(here, names)
    (here / "hwbench").symlink_to(ROOT / "hwbench")
    ended(call, [sys.executable, "-m", "hwbench"], here, tmp_path)
    assert not trace.exists(), trace.read_text()


# --- two sides ---------------------------------------------------------------------------------


@pytest.mark.heavy
def test_ab_measures_the_revisions_and_not_the_folder_that_it_is_given_in(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "outside"\nversion = "1"\n'
        '[project.entry-points."hwbench.formats"]\noutside = "outside_format:Outside"\n'
        "[tool.hatch.build.targets.wheel]\ninclude = ['outside_format.py']\n"
    )
    for about in ("first", "second"):
        (tmp_path / "outside_format.py").write_text(
            f'"""The {about} one."""\n\nfrom hwbench.formats.dense import Dense\n\n\n'
            "class Outside(Dense):\n    pass\n"
        )
        git("init", "-q")
        git("add", "pyproject.toml", "outside_format.py")
        git("commit", "-qm", about)
    (tmp_path / "worker").mkdir()
    _sides.worker_folder(tmp_path / "worker")
    collected = []
    for revision_ in ("HEAD~1", "HEAD"):
        origin = _sides.resolve("--a", revision_, "shared", tmp_path / "worker")
        worker = LocalWorker("cpu", 1, origin.python, origin.paths)
        try:
            asked = protocol.DescribeRequest(names=["outside"])
            (result,) = worker.ask(asked, protocol.DescribeReply, 60.0).formats
        finally:
            worker.close()
        collected.append(result.summary)
    assert collected == ["The first one.", "The second one."]


# --- git ---------------------------------------------------------------------------------------


def git(*words: str) -> str:
    who = ["-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *who, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, in which one stands."""
    for name in revision.CI_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.chdir(folder)
    git("init", "-q")
    (folder / "a.txt").write_text("a\n")
    (folder / ".gitattributes").write_text("*.txt filter=one\n*.txt filter=two\n")
    git("add", "a.txt", ".gitattributes")
    git("commit", "-qm", "one")
    return folder


@pytest.mark.heavy
def test_git_executes_nothing_that_a_repository_names(repository: Path) -> None:
    trace = repository / "executed"
    program = repository / "program.sh"
    program.write_text(f"#!/bin/sh\necho \"$0 $@\" >> '{trace}'\ncat\n")
    program.chmod(0o755)
    hooks = repository / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in (
        "post-index-change",
        "post-checkout",
        "fsmonitor-watchman",
        "reference-transaction",
    ):
        (hooks / name).write_text(program.read_text())
        (hooks / name).chmod(0o755)
    named = [f"filter.{n}.{key}" for n in ("one", "two") for key in ("clean", "process", "smudge")]
    named += ["core.fsmonitor", "gpg.program", "gpg.ssh.program", "core.sshCommand", "core.pager"]
    named += ["diff.external", "core.askPass", "core.editor"]
    for name in named:
        git("config", name, str(program))
    for name in ("log.showSignature", "filter.one.required", "filter.two.required"):
        git("config", name, "true")
    head = git("rev-parse", "HEAD")
    os.utime("a.txt", (1, 1))
    trace.unlink(missing_ok=True)
    assert revision.commit() == {"commit": head, "dirty": False}
    Path("a.txt").write_text("b\n")
    assert revision.commit() == {"commit": head, "dirty": True}
    assert not trace.exists(), trace.read_text()
    git("config", "filter.a=b.clean", str(program))
    result = revision.commit()
    assert result["commit"] == head
    assert "cannot be turned off" in result["git"]
    assert not trace.exists(), trace.read_text()


@pytest.mark.heavy
def test_what_git_says_of_a_folder_of_somebody_else_is_told(repository: Path, monkeypatch) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    result = revision.commit()
    assert set(result) == {"git"}
    assert result["git"].startswith("detected dubious ownership")
    assert "safe.directory" in result["git"]
    with pytest.raises(UsageError, match="git says: detected dubious ownership"):
        _sides.resolve("--a", "HEAD", "shared", repository)
    monkeypatch.setenv("GITHUB_SHA", SHA)
    result = revision.commit()
    assert (result["commit"], result["commit_from"]) == (SHA, "GITHUB_SHA")
    assert result["git"].startswith("detected dubious ownership")


@pytest.mark.parametrize("variable", revision.CI_VARIABLES)
@pytest.mark.parametrize(
    ("value", "taken"), [(SHA, True), ("", False), (SHA + "\n::x", False), ("--help", False)]
)
@pytest.mark.parametrize(
    "error",
    [
        revision.GitError("detected dubious ownership in repository at '/x'", code=128),
        revision.GitError("git is not installed.", absent=True),
        revision.GitError("not a git repository", code=128, absent=True),
    ],
    ids=str,
)
def test_the_revision_of_a_ci_job_stands_in_for_one_that_git_does_not_give(
    monkeypatch, variable: str, value: str, taken: bool, error: revision.GitError
) -> None:
    def refuses(*_: object) -> str:
        raise error

    for name in revision.CI_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(revision, "git", refuses)
    result = revision.commit()
    assert result.get("commit") == (SHA if taken else None)
    assert result.get("commit_from") == (variable if taken else None)
    assert result.get("git") == (None if error.absent else str(error))


# --- threads -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "threads"), [("1", 1), (" 3 ", 3), ("4,2", 4), ("64", 64), ("", 7), (None, 7)]
)
def test_omp_num_threads_is_the_default_of_threads(monkeypatch, value, threads) -> None:
    monkeypatch.setattr(environment, "usable_cores", lambda: 7)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if value is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert runner.usable_threads(None) == threads
    assert runner.usable_threads(2) == 2


@pytest.mark.parametrize("value", ["0", "-1", "two", "4097", "99999", "1.5", ",2", "\x1b]0;x\x07"])
def test_a_number_of_threads_that_is_none_is_refused(monkeypatch, value) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    with pytest.raises(UsageError, match="OMP_NUM_THREADS must be") as raised:
        runner.usable_threads(None)
    assert str(raised.value).isprintable()
