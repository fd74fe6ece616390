"""What ``hwbench ab`` compares: an interpreter as it stands, or a git revision in one of its own.

A revision is unpacked and installed once, into ``hwbench/ab`` in the user's cache folder, under a
name made of everything that decides what it becomes; a second call finds it there.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import hwbench
from hwbench.errors import UnknownNameError, UsageError
from hwbench.measure.revision import GitError, git

INSTALLS = ("shared", "fresh")
_INTERPRETER = re.compile(r"(?:python|pypy)[\d.]*t?")  # by name: HEAD and test are programs too
_DONE = "ready.json"
_TAIL = 300  # characters of pip's last words that an error quotes


@dataclass(frozen=True)
class Origin:
    """Where one side's workers run: an interpreter, and what it finds beside its own packages."""

    python: str
    paths: Sequence[str]
    label: str
    revision: str | None = None


def resolve(option: str, name: str, install: str, worker: Path) -> Origin:
    """Finds one side: an interpreter (a path, or python3.12), or a git revision.

    Args:
        option: ``--a`` or ``--b``, for messages.
        name: the interpreter or the revision.
        install: ``shared`` or ``fresh``, how a revision is installed.
        worker: a folder that holds this hwbench and nothing else.

    Raises:
        UsageError: it is neither, or the revision cannot be installed.
    """
    if install not in INSTALLS:
        raise UnknownNameError("install", install, INSTALLS)
    if _INTERPRETER.fullmatch(name) or Path(name).is_file():
        python = shutil.which(str(Path(name).absolute()) if Path(name).is_file() else name)
        if python is None:
            raise UsageError(f"{option} {name} is no program that can be started.")
        return Origin(python=python, paths=[str(worker)], label=name)
    top, sha = _revision(option, name)
    home = _home(top, sha, install)
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / _DONE).exists():
            _make(option, top, sha, install, home)
    source = home / "source"
    label = f"{name} ({sha[:12]})"
    if (source / "hwbench" / "worker.py").is_file():  # it is hwbench itself that is compared
        return Origin(sys.executable, [str(source)], label, sha)
    return Origin(str(home / "venv" / "bin" / "python"), [str(worker)], label, sha)


def worker_folder(folder: Path) -> Path:
    """Links this hwbench, and no other package, into a folder of Python's path."""
    (folder / "hwbench").symlink_to(Path(hwbench.__file__).parent)
    return folder


def _revision(option: str, name: str) -> tuple[Path, str]:
    try:
        top = git(["rev-parse", "--show-toplevel"])
    except GitError as error:
        why = "this folder is in no git repository." if error.absent else f"git says: {error}"
        raise UsageError(
            f"{option} {name} is no interpreter, and no git revision either: {why}"
        ) from None
    try:
        words = ["rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"]
        return Path(top), git(words)
    except GitError:
        raise UsageError(f"{option} {name} is no interpreter, and no revision of {top}.") from None


def _home(top: Path, sha: str, install: str) -> Path:
    """The folder of a revision in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    facts = [str(top), sha, install, sys.executable, sys.version, hwbench.__version__]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
    return cache / "hwbench" / "ab" / f"{sha[:12]}-{digest}"


def _make(option: str, top: Path, sha: str, install: str, home: Path) -> None:
    """Unpack and install a revision, after removing what an earlier try left."""
    source, venv = home / "source", home / "venv"
    for folder in (source, venv):
        shutil.rmtree(folder, ignore_errors=True)
    packed = subprocess.run(
        ["git", "-C", str(top), "archive", "--format=tar", sha], capture_output=True, check=False
    )
    if packed.returncode != 0:
        raise UsageError(f"git cannot unpack {sha}: {_last(packed.stderr.decode())}")
    try:
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(source, filter="data")
    except tarfile.TarError as error:
        raise UsageError(
            f"{option}: the revision {sha[:12]} of {top} cannot be unpacked: {error}."
        ) from error
    if not (source / "hwbench" / "worker.py").is_file():
        if not any((source / name).is_file() for name in ("pyproject.toml", "setup.py")):
            raise UsageError(
                f"{option}: the revision {sha[:12]} of {top} has neither pyproject.toml nor "
                "setup.py, so it cannot be installed."
            )
        _environment(venv, share=install == "shared")
        _install(option, source, venv, share=install == "shared")
    (home / _DONE).write_text(json.dumps({"repository": str(top), "revision": sha}) + "\n")


def _environment(venv: Path, *, share: bool) -> None:
    """Make an environment without pip; if ``share``, our packages stand behind its own."""
    process = subprocess.run(
        [sys.executable, "-P", "-m", "venv", "--without-pip", str(venv)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if process.returncode != 0:
        raise UsageError(f"No environment can be made in {venv}: {_last(process.stderr)}")
    if share:
        (packages,) = venv.glob("lib/python*/site-packages")
        ours = [path for path in site.getsitepackages() if Path(path).is_dir()]
        lines = [f"import site; site.addsitedir({path!r})" for path in ours]
        (packages / "_shared.pth").write_text("\n".join(lines) + "\n")


def _install(option: str, source: Path, venv: Path, *, share: bool) -> None:
    """Install with this interpreter's pip, first without a network."""
    pip = [sys.executable, "-P", "-m", "pip"]
    pip += ["--python", str(venv / "bin" / "python"), "install"]
    pip += ["--quiet", "--disable-pip-version-check", "--no-input"]
    if share:
        offline = ["--no-deps", "--no-index", "--no-build-isolation"]
        tries = [[*offline, str(source)], ["--no-deps", str(source)]]
    else:
        tries = [[str(source), "torch", "msgspec"]]
    message = ""
    for words in tries:
        done = subprocess.run([*pip, *words], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        message = _last(done.stderr)
    raise UsageError(f"{option}: the revision in {source} cannot be installed: {message}")


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or ["no reason was given."])[-1][:_TAIL]
