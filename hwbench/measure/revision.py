"""Asks git for the current revision, without executing anything in the repository.

A repository's own settings name programs: filters of files, a checker of signatures, hooks, a file
system monitor, helpers that fetch what a partial clone lacks. None of them is needed to learn a
revision, and a repository that was unpacked from an archive may be anybody's.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from typing import Any

SECONDS = 30.0
_URL = re.compile(r"(?:https?|ssh|git)://(?:[^/]*@)?([\w.-]+)(?::\d+)?/([\w./~-]+)")
_SCP = re.compile(r"(?:[^/@:]+@)?([\w.-]+\.[\w.-]+):([\w.~-][\w./~-]*)")
"""How git writes where a repository is; a folder of this machine is neither."""
CI_VARIABLES = ("GITHUB_SHA", "CI_COMMIT_SHA")
"""Where GitHub Actions and GitLab CI name the revision that a job is for."""

_NONE_FOUND = 1  # the exit code of `git config` where nothing has such a name
_NO_REPOSITORY = "not a git repository"
_DISTRUST = "detected dubious ownership"
_SAFE = (
    *("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"),
    *("-c", "log.showSignature=false", "--no-optional-locks"),
)
_NO_TRANSPORT = {"GIT_ALLOW_PROTOCOL": "", "GIT_NO_LAZY_FETCH": "1", "LC_ALL": "C"}


class GitError(Exception):
    """Git's message, in one line; ``code`` is its exit code, where it had one.

    ``absent`` says that there is no repository here, or no git at all.
    """

    def __init__(self, message: str, *, code: int | None = None, absent: bool = False) -> None:
        super().__init__(message)
        self.code, self.absent = code, absent


def git(words: Sequence[str], settings: Sequence[str] = ()) -> str:
    """The answer of git to a question, with none of the repository's own programs.

    Args:
        words: the subcommand and its arguments.
        settings: more settings, as ``key=value``; they stand before those of the repository.

    Raises:
        GitError: git refused, is not installed, or took longer than 30 s.
    """
    more = [word for setting in settings for word in ("-c", setting)]
    try:
        done = subprocess.run(
            ["git", *_SAFE, *more, *words], capture_output=True, timeout=SECONDS, check=False,
            env={**os.environ, **_NO_TRANSPORT},
        )  # fmt: skip
    except FileNotFoundError:
        raise GitError("git is not installed.", absent=True) from None
    except OSError as error:
        raise GitError(f"git cannot be started: {error.strerror}.") from None
    except subprocess.TimeoutExpired:
        raise GitError(f"git gave no answer within {SECONDS:.0f} s.") from None
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        message = (lines or [f"exit code {done.returncode}"])[0].removeprefix("fatal: ")
        if message.startswith(_DISTRUST):
            message += "; `git config --global --add safe.directory FOLDER` trusts it"
        raise GitError(message, code=done.returncode, absent=_NO_REPOSITORY in message)
    return done.stdout.decode(errors="replace").strip()


def _without_filters() -> list[str]:
    """Settings that switch off every filter of the git configuration."""
    try:
        named = git(["config", "-z", "--name-only", "--get-regexp", r"^filter\."])
    except GitError as error:
        if error.code == _NONE_FOUND:
            return []
        raise
    drivers = sorted({name.rpartition(".")[0] for name in named.split("\0") if name})
    if odd := [driver for driver in drivers if "=" in driver]:
        raise GitError(f"the filter {odd[0]!r} cannot be turned off, so no file was looked at.")
    keys = ("clean=", "process=", "required=false")
    return [f"{driver}.{key}" for driver in drivers for key in keys]


def commit() -> dict[str, Any]:
    """The git revision of the current folder, and whether files differ from it.

    Where git gives none, the revision that the CI job is for stands in its place under ``commit``,
    with the variable under ``commit_from``; and under ``git``, what git said against it. Empty
    outside of a repository and of a CI job. A file under a filter such as Git LFS is compared
    without it, so it counts as changed once its time or size is not the one that git noted.
    """
    status = ["status", "--porcelain", "--untracked-files=no", "--ignore-submodules=dirty"]
    try:
        revision = git(["rev-parse", "--verify", "HEAD^{commit}"])
    except GitError as error:
        return {**({} if error.absent else {"git": str(error)}), **_of_ci()}
    try:
        return {"commit": revision, "dirty": bool(git(status, _without_filters()))}
    except GitError as error:
        return {"commit": revision, "git": str(error)}


def _of_ci() -> dict[str, str]:
    for name in CI_VARIABLES:
        if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", value := os.environ.get(name, "")):
            return {"commit": value, "commit_from": name}
    return {}


def remote() -> dict[str, str]:
    """Where the repository lives, under ``remote``: its web page, without names and passwords.

    It is the remote ``origin``, or a CI job's repository; empty where neither is known, or
    it is a folder of this machine.
    """
    try:
        url = web_page(git(["config", "--get", "remote.origin.url"]))
    except GitError:  # no repository, or one without such a remote
        url = None
    return {"remote": page} if (page := url or web_page(_ci_project())) else {}


def _ci_project() -> str:
    server, name = (os.environ.get(f"GITHUB_{part}", "") for part in ("SERVER_URL", "REPOSITORY"))
    return f"{server}/{name}" if server and name else os.environ.get("CI_PROJECT_URL", "")


def web_page(url: str) -> str | None:
    """``https://host/owner/name`` of a repository's URL; None where it is no such URL.

    User names, passwords, ports, queries and a final ``.git`` are no part of it.
    """
    match = _URL.fullmatch(url.strip()) or _SCP.fullmatch(url.strip())
    if match is None:
        return None
    parts = match[2].removesuffix("/").removesuffix(".git").strip("/").split("/")
    if len(parts) < 2 or any(part in ("", ".", "..") for part in parts):
        return None
    return f"https://{match[1].lower()}/{'/'.join(parts)}"
