"""Links to commits: the repository's page that a run keeps, and what a history makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from _check import Call
from _synthetic import HOSTILE
from msgspec.structs import replace
from test_history import kept, night

from hwbench.measure import revision
from hwbench.report import _commits
from hwbench.report import history as pages
from hwbench.studies import share
from hwbench.studies.history import history

PAGE = "https://github.com/owner/name"
SHAS = "a" * 40, "b" * 40


@pytest.mark.parametrize(
    "url",
    [
        "https://github.com/owner/name", "https://github.com/owner/name.git",
        "https://github.com/owner/name/", "http://github.com/owner/name.git",
        "https://user:ghp_secret@github.com/owner/name.git", "https://ghp_secret@github.com/owner/name",
        "https://us@er:pa@ss@github.com/owner/name.git", "git@github.com:owner/name.git",
        "github.com:owner/name.git", "ssh://git@github.com/owner/name.git",
        "ssh://git@github.com:22/owner/name.git", "git://github.com/owner/name.git",
        "https://GitHub.com:443/owner/name.git\n",
    ],
)  # fmt: skip
def test_every_manner_of_writing_a_remote_is_one_page_without_secrets(url: str) -> None:
    assert revision.web_page(url) == PAGE
    assert _commits.commit(PAGE, SHAS[0]) == f"{PAGE}/commit/{SHAS[0]}"


@pytest.mark.parametrize(
    "url",
    [
        "", "/srv/git/name.git", "../name", "file:///srv/git/name", "C:\\git\\name", "name",
        "https://github.com", "https://github.com/owner", "https://github.com/owner/../../x/y",
        "https://github.com//name", "https://github.com/owner/name?token=secret",
        "https://github.com/owner/name#x", "javascript:alert(1)//a/b", "ext::sh -c x", HOSTILE,
        "https://github.com/owner/na me", "https://github.com/owner/name\nx", "host:owner/name",
    ],
)  # fmt: skip
def test_what_is_no_page_of_a_repository_is_not_kept(url: str) -> None:
    assert revision.web_page(url) is None


def test_the_remote_is_that_of_git_then_that_of_the_ci_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "CI_PROJECT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(revision, "git", lambda words: "https://t:secret@github.com/owner/name.git")
    assert revision.remote() == {"remote": PAGE}

    def refuses(*_: object) -> str:
        raise revision.GitError("no such key", code=1)

    monkeypatch.setattr(revision, "git", refuses)
    assert revision.remote() == {}
    monkeypatch.setenv("CI_PROJECT_URL", "https://gitlab.com/group/part/name")
    assert revision.remote() == {"remote": "https://gitlab.com/group/part/name"}
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://github.com")
    monkeypatch.setenv("GITHUB_REPOSITORY", "owner/name")
    assert revision.remote() == {"remote": PAGE}


@pytest.mark.parametrize(
    "remote",
    [
        None, "", "http://github.com/owner/name", "https://github.com/owner", "javascript:alert(1)",
        "https://github.com/owner/name\"><script>", "https://u:p@github.com/owner/name",
        "https://github.com/../name", "https://github.com/owner/name\n", HOSTILE,
        "https://bitbucket.org/owner/name", "//github.com/owner/name",
    ],
)  # fmt: skip
def test_no_link_is_made_of_anything_else(remote: str | None) -> None:
    assert _commits.commit(remote, SHAS[0]) is None
    assert _commits.comparison(remote, *SHAS) is None


@pytest.mark.parametrize("commit", [None, "", "abc", "A" * 40, "a" * 39 + "\n", HOSTILE, "../x"])
def test_no_link_is_made_to_what_is_no_revision(commit: str | None) -> None:
    assert _commits.commit(PAGE, commit) is None
    assert _commits.comparison(PAGE, commit, SHAS[0]) is None
    assert commit is None or _commits.short(commit) == commit


def folder_of(tmp_path: Path, remote: object) -> Path:
    """Nights of which the seventh is the first slow one, in a repository that is here."""
    for number in range(12):
        run = night(number, slower=1.2 if number >= 6 else 1.0)
        environment = run.header.environment
        state = {**environment.state, "commit": SHAS[number >= 6], "remote": remote}
        if remote is None:
            del state["remote"]
        run.header = replace(run.header, environment=replace(environment, state=state))
        kept(run, tmp_path)
    return tmp_path


def test_page_terminal_and_json_link_the_commits(tmp_path: Path, hwbench: Call) -> None:
    folder = folder_of(tmp_path, PAGE)
    told = history(folder)
    page = pages.render(told.histories, told.notes)
    compare = f"{PAGE}/compare/{SHAS[0]}...{SHAS[1]}"
    for address in (compare, *(f"{PAGE}/commit/{sha}" for sha in SHAS)):
        assert f'<a href="{address}" rel="noopener noreferrer">' in page
    code, said, _ = hwbench("history", str(folder))
    assert code == 0
    assert f"    {compare}" in said.splitlines()
    runs = json.loads(hwbench("history", str(folder), "--json")[1])["histories"][0]["runs"]
    assert runs[0]["commit_url"] == f"{PAGE}/commit/{SHAS[0]}"


@pytest.mark.parametrize("remote", [None, HOSTILE, 7, ["x"], "javascript:alert(1)"])
def test_without_a_page_nothing_is_linked(tmp_path: Path, remote: object, hwbench: Call) -> None:
    folder = folder_of(tmp_path, remote)
    told = history(folder)
    page = pages.render(told.histories, told.notes)
    assert "rel=" not in page
    assert "javascript" not in page
    assert "://" not in "\n".join(pages.lines(told.histories[0]))
    assert "commit_url" not in hwbench("history", str(folder), "--json")[1]


def test_what_is_shared_names_no_repository(tmp_path: Path) -> None:
    path = next(iter(sorted(folder_of(tmp_path, PAGE).glob("*.jsonl"))))
    shared = share.share(path, tmp_path / "shared" / "run.jsonl")
    assert "remote" not in shared.header.environment.state
    assert "owner/name" not in (tmp_path / "shared/run.jsonl").read_text(encoding="utf-8")
