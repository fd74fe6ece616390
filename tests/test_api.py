"""The names that `import hwbench` offers, and what tells a user of them."""

from __future__ import annotations

import pydoc

import hwbench


def test_completion_offers_the_api_and_nothing_else() -> None:
    assert dir(hwbench) == sorted(hwbench.__all__)
    for name in hwbench.__all__:
        assert getattr(hwbench, name) is not None


def test_help_names_what_a_user_calls() -> None:
    text = pydoc.plain(pydoc.render_doc(hwbench))
    for name in ("run(", "load_run(", "summary(", "get_format("):
        assert name in text
