"""The names that `import hwbench` offers, and what tells a user of them."""

from __future__ import annotations

import inspect
import pydoc
import shlex
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from _check import kept
from _synthetic import failed, hostile_run, linear_case, run_of, scored_case
from msgspec.structs import replace

import hwbench
from hwbench import units
from hwbench.errors import RunFileError, UsageError
from hwbench.records import Measurement, Status
from hwbench.report import decision, text
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


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.parent.name)
def test_the_answer_is_that_of_the_terminal_and_a_notebook_draws_it(path: Path) -> None:
    told, run = hwbench.answer(path), read_run(path)
    settings = decision.settings(numbered(report_rows(run)))
    assert repr(told) == str(told)
    ends = [str(part) for part in text.table(run, 400)]
    answer = ends[ends.index("What to use, by the largest error that you accept") + 1 :]
    for line in answer:
        assert line in str(told).splitlines() or line.startswith("… and ")
    cells = _Cells()
    cells.feed(told._repr_html_())
    assert not cells.open
    for setting in decision.without_compiled_twins(settings):
        assert setting.title in cells.text
        for level, best in decision.answers(setting):
            place = cells.text.index(level.label, cells.text.index(setting.title))
            assert cells.text[place + 1] == f"{best.advice} {best.name}"
            assert cells.text[place + 2] == units.seconds(best.row.time_seconds)
    assert f"hwbench report {path}" in cells.text


class _Cells(HTMLParser):
    """The texts of a fragment in their order, and the elements that are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: object) -> None:
        assert tag not in ("script", "style", "link", "img")
        self.open += [] if tag == "br" else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += [data] if data.strip() else []


def said(path: str | Path) -> str:
    """What the answer says: every sentence of it stands in both of its forms."""
    told = hwbench.answer(path)
    cells = _Cells()
    cells.feed(told._repr_html_())
    whole = " ".join(cells.text)
    lines = [line for line in str(told).splitlines() if not line.startswith(" ")]
    assert lines
    for line in lines:
        assert line.rstrip(":") in whole or line.partition(":")[0] in cells.text, line
    return str(told)


def test_the_answer_of_scores_alone_and_of_nothing_is_in_words(tmp_path: Path) -> None:
    scored = next(RUNS[0].parents[1].glob("*/compress_lm_full.jsonl"))
    assert " of dense’s bytes, use " in said(scored)
    alone = run_of([linear_case("dense", None)])
    assert "times no format against dense and scores none" in said(kept(alone, tmp_path))
    with pytest.raises(RunFileError):
        hwbench.answer(tmp_path / "none.jsonl")


def test_the_answer_says_what_is_wrong_with_a_run(tmp_path: Path) -> None:
    cases = [linear_case("dense", None), linear_case("btt", 0.5), linear_case("blast", 0.5)]
    broken = failed(run_of(cases), Status.CRASHED, "It fell over.")
    told = said(kept(broken, tmp_path))
    assert "3 cases have no result that counts" in told
    assert "No case has a result that counts, so there is no answer." in told
    unfinished = run_of(cases)
    unfinished.footer = None
    del unfinished.results[-1:]
    assert "not finished" in said(kept(unfinished, tmp_path / "unfinished"))
    disturbed = run_of(cases)
    for result in disturbed.results:
        result.flags.append("disturbed")
    assert "3 of 3 timed cases were disturbed" in said(kept(disturbed, tmp_path / "disturbed"))


def test_the_command_of_the_answer_can_be_pasted(tmp_path: Path) -> None:
    path = kept(run_of([linear_case("dense", None)]), tmp_path / "my  runs; echo hi")
    page = hwbench.answer(path)._repr_html_()
    command = unescape(page.partition("<code>")[2].partition("</code>")[0])
    assert shlex.split(command) == ["hwbench", "report", path]


def test_nothing_in_a_run_becomes_an_element_of_the_notebook(tmp_path: Path) -> None:
    run = hostile_run()
    run.header = replace(run.header, run="hostile")  # the name of its file
    cells = _Cells()
    cells.feed(hwbench.answer(kept(run, tmp_path))._repr_html_())
    assert not cells.open
    assert any("</script>" in text for text in cells.text)


def test_scores_of_a_model_without_dense_say_why_there_is_no_answer(tmp_path: Path) -> None:
    """What share of dense's bytes a model of several layers has is not known without dense."""
    run = run_of([scored_case("compress", "low_rank", 64, seeds=1)], replicates=1)
    ((case, planned),) = run.planned.items()
    assert planned.cost is not None
    run.planned[case] = replace(planned, cost=replace(planned.cost, parameters=10 * 64 * 64))
    read = Measurement(quantity="score", unit="", values=[0.9], note="embedding_cosine")
    run.results[0].measurements[:] = [read]
    why = "Dense is not among what was scored"
    assert any(why in str(part) for part in text.table(run, 200))
    assert why in str(hwbench.answer(kept(run, tmp_path)))
