"""The names that `import hwbench` offers, and what tells a user of them."""

from __future__ import annotations

import inspect
import pydoc
from pathlib import Path

import pytest

import hwbench
from hwbench.errors import UsageError
from hwbench.report import decision
from hwbench.report.rows import numbered, report_rows
from hwbench.store import read_run

RUNS = sorted((Path(__file__).parents[1] / "reports").glob("*/linear*.jsonl"))


def test_completion_offers_the_api_and_nothing_else() -> None:
    assert dir(hwbench) == sorted(hwbench.__all__)
    for name in hwbench.__all__:
        assert getattr(hwbench, name) is not None


def test_help_names_what_a_user_calls() -> None:
    text = pydoc.plain(pydoc.render_doc(hwbench))
    for name in ("run(", "load_run(", "summary(", "get_format("):
        assert name in text


def test_no_signature_shows_an_address() -> None:
    """A default that is a function is ``<function … at 0x7f…>`` in the help."""
    called = [getattr(hwbench, name) for name in hwbench.__all__ if name != "__version__"]
    for each in called:
        assert " at 0x" not in str(inspect.signature(each)), each
    assert len(called) > 15


def test_several_runs_are_one_frame_that_tells_them_apart() -> None:
    one, other = RUNS[0], RUNS[1]
    frame = hwbench.load_runs([one, other])
    assert list(frame.columns[:3]) == ["run", "machine", "created"]
    assert frame["run"].nunique() == 2
    alone = hwbench.load_run(one)
    first = frame[frame["run"] == frame["run"].iloc[0]]
    assert list(first["case"]) == list(alone["case"])


def test_best_is_what_the_page_says() -> None:
    frame = hwbench.best(RUNS[0], error=0.1)
    rows = numbered(report_rows(read_run(RUNS[0])))
    for (_, row), setting in zip(frame.iterrows(), decision.settings(rows), strict=True):
        chosen = setting.best(0.1)
        assert chosen is not None
        assert (row["setting"], row["label"]) == (setting.title, chosen.name)
        assert row["error"] is None or row["error"] <= 0.1
    with pytest.raises(UsageError, match="0 or more"):
        hwbench.best(RUNS[0], error=-1)
