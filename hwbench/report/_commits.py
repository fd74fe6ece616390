"""Links to the commits of a history, built from the repository's page that a run file names.

A run file may be anybody's, so a link is made of an https page with plain parts and of a revision
in hexadecimal digits, or it is not made.
"""

from __future__ import annotations

import re

_PAGE = re.compile(r"https://[a-z0-9][a-z0-9.-]*(?:/[A-Za-z0-9_~.-]+){2,}")
_REVISION = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_OTHERWISE = ("bitbucket.org",)  # hosts whose commits have other addresses
_SHOWN = 12  # digits of a revision that a page shows


def commit(remote: str | None, revision: str | None) -> str | None:
    """The page of a commit, ``https://github.com/owner/name/commit/…``; None where none is known.

    It is where GitHub, GitLab, Gitea and Forgejo have it.
    """
    page = _page(remote)
    return f"{page}/commit/{revision}" if page and _is_revision(revision) else None


def comparison(remote: str | None, old: str | None, new: str | None) -> str | None:
    """The page of what changed between two commits; None where there is no such page."""
    page = _page(remote)
    differ = _is_revision(old) and _is_revision(new) and old != new
    return f"{page}/compare/{old}...{new}" if page and differ else None


def short(revision: str) -> str:
    """The first digits of a revision; another text as it is."""
    return revision[:_SHOWN] if _is_revision(revision) else revision


def _is_revision(text: str | None) -> bool:
    return text is not None and _REVISION.fullmatch(text) is not None


def _page(remote: str | None) -> str | None:
    if remote is None or _PAGE.fullmatch(remote) is None:
        return None
    host, *parts = remote.removeprefix("https://").split("/")
    if host in _OTHERWISE or any(part in (".", "..") for part in parts):
        return None
    return remote
