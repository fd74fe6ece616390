"""The page in a browser: names at lines, legends, axes of figures that are compared, addresses."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from _browser import Opened
from _synthetic import questions, run_of
from test_decision import STEADY, moved
from test_versus import faster, machine

from hwbench.report import decision, html, versus
from hwbench.report.rows import numbered, report_rows
from hwbench.store import Run, read_run

pytestmark = pytest.mark.browser
STORED = Path(__file__).parents[1] / "reports"


@pytest.fixture(scope="module")
def run() -> Run:
    return run_of(questions(shapes=((1024, 1024), (512, 1024))))


@pytest.fixture(scope="module")
def text(run: Run) -> str:
    return html.render([run])


# names at the ends of lines

NAMED = """() => [...document.querySelectorAll("figure.chart")].filter((f) =>
    f.view && /^(crossover|sweep|error_)/.test(f.kind)).map((f) => {
  const box = (e) => {
    const { left, top, right, bottom } = e.getBoundingClientRect();
    return [left, top, right, bottom];
  };
  const names = f.view.data("ends");
  const said = [...f.querySelectorAll("g.mark-text text")]
    .filter((t) => names.includes(t.__data__.datum));
  const last = new Map();
  const [across, up] = {
    crossover: ["density", "relative"], sweep: ["tokens", "relative"],
    error_density: ["density", "score"], error_bytes: ["stored_ratio", "score"],
  }[f.kind.split(" ")[0]];
  for (const row of f.view.data("table")) {
    if (row.format === "dense" && up === "relative") continue;
    if (!(last.get(row.series)?.[across] > row[across])) last.set(row.series, row);
  }
  const y = f.view.scale("y");
  return {
    kind: f.kind, boxes: said.map(box), frame: box(f.querySelector("svg")),
    names: names.map(({ series, y: at }) => [series, at]),
    ends: Object.fromEntries([...last].map(([series, row]) => [series, y(row[up])])),
  };
})"""


POINTS = """(kind) => [...document.querySelectorAll("figure.chart")].filter((f) =>
    f.view && f.checkVisibility() && f.kind.startsWith(kind)).map((f) => {
  const box = (e) => {
    const { left, top, right, bottom } = e.getBoundingClientRect();
    return [left, top, right, bottom];
  };
  const names = f.view.data("names");
  const texts = new Set(names.map(({ text }) => text));
  const said = [...f.querySelectorAll("g.mark-text text")].filter((t) => texts.has(t.textContent));
  const marks = [...f.querySelectorAll("g.mark-symbol path")]
    .filter((p) => p.__data__.datum.format);
  const words = [...f.querySelectorAll("g.role-mark text")]
    .filter((t) => t.textContent.trim() && !texts.has(t.textContent));
  return {
    words: words.map((t) => [...box(t), t.textContent]),
    boxes: said.map(box), names: names.map(({ front }) => front),
    frame: box(f.querySelector("svg")), front: names.some(({ front }) => front),
    points: marks.map(box).map(([l, t, r, b]) => [(l + r) / 2, (t + b) / 2]),
  };
})"""


@pytest.mark.parametrize("name", ["2026-11-21-epyc-2core/linear", "2026-11-28-epyc-2core/linear"])
def test_every_line_has_its_name_at_its_end_and_no_two_lie_on_one_another(
    opened: Callable[..., Opened], name: str
) -> None:
    shown = opened(html.render([read_run(STORED / f"{name}.jsonl")]))
    found = shown.page.evaluate(NAMED)
    named = [figure for figure in found if figure["names"]]
    assert len({figure["kind"].split(" ")[0] for figure in named}) >= 2
    for figure in named:
        assert {series for series, _ in figure["names"]} == set(figure["ends"])
        assert len(figure["boxes"]) == len(figure["names"])
        left, top, right, bottom = figure["frame"]
        for place, (x1, y1, x2, y2) in enumerate(figure["boxes"]):
            assert left <= x1, figure["kind"]
            assert x2 <= right + 1, figure["kind"]
            assert top <= y1 + 2, figure["kind"]
            assert y2 <= bottom, figure["kind"]
            for other in figure["boxes"][:place]:
                assert y1 >= other[3] - 2 or y2 <= other[1] + 2, figure["kind"]
        order = [figure["ends"][series] for series, _ in figure["names"]]
        assert order == sorted(order)  # the names stand in the order of the ends
    assert shown.said == []


def test_a_filter_moves_the_names_and_a_narrow_plot_has_none(
    shown: Opened, opened: Callable[..., Opened], text: str
) -> None:
    shown.tick("format", "monarch")
    shown.tick("format", "csr")
    for figure in shown.page.evaluate(NAMED):
        assert {series for series, _ in figure["names"]} == {"monarch", "csr"}
    narrow = opened(text, 400)
    found = narrow.page.evaluate(NAMED)
    assert [figure["names"] for figure in found] == [[]] * len(found)
    assert len(found) > 4


@pytest.mark.parametrize("width", [1400, 400])
def test_points_have_names_as_far_as_none_lies_on_another_or_on_a_point(
    opened: Callable[..., Opened], width: int
) -> None:
    path = STORED / "2026-11-28-epyc-2core/linear.jsonl"
    shown = opened(html.render([read_run(path)]), width)
    for kind in ("pareto", "roofline"):
        found = shown.page.evaluate(POINTS, kind)
        assert len(found) > 2
        for figure in found:
            assert len(figure["names"]) > 2
            assert figure["front"] or kind == "roofline"  # the best has a name at least
            boxes = figure["boxes"]
            left, top, right, bottom = figure["frame"]
            for place, (x1, y1, x2, y2) in enumerate(boxes):
                assert left <= x1 <= x2 <= right + 1
                assert top <= y1 <= y2 <= bottom
                for other in boxes[:place]:
                    apart = x1 >= other[2] or x2 <= other[0]
                    assert apart or y1 >= other[3] - 2 or y2 <= other[1] + 2
                for x, y in figure["points"]:
                    assert not (x1 < x < x2 and y1 < y < y2)
                for a, b, c, d, text in figure["words"]:
                    apart = x1 >= c - 2 or x2 <= a + 2 or y1 >= d - 3 or y2 <= b + 3
                    assert apart, text
        if width == 1400:
            others = sum(not front for figure in found for front in figure["names"])
            assert others > len(found)  # not those on the front alone


# legends

FADED = """(name) => [...document.querySelectorAll("figure.chart")].filter((f) => f.view)
  .map((f) => {
    const of = (e) => [e.__data__?.datum].flat()[0] || {};
    const own = [...f.querySelectorAll(".plot svg :is(path, line, text)")]
      .filter((e) => of(e).series);
    const others = own.filter((e) => of(e).series !== name);
    const gone = (e) => e.classList.contains("faded");
    return [others.filter(gone).length, others.length,
      own.filter((e) => of(e).series === name && gone(e)).length];
  })"""


def faded(shown: Opened, name: str) -> tuple[bool, int]:
    """Whether all marks of other series are faded, and how many of its own."""
    found = shown.page.evaluate(FADED, name)
    assert sum(others for _, others, _ in found) > 100
    return (
        all(hidden == others for hidden, others, _ in found),
        sum(own for *_, own in found),
    )


def test_a_name_of_a_legend_that_is_hovered_or_focused_stands_out(shown: Opened) -> None:
    legend = shown.page.locator("#density ul.legend")
    names = legend.get_by_role("button")
    assert names.count() == 8
    monarch = legend.get_by_role("button", name="monarch")
    monarch.hover()
    assert faded(shown, "monarch") == (True, 0)
    shown.page.locator("h1").hover()
    assert shown.page.locator(".faded").count() == 0
    names.first.focus()
    assert faded(shown, names.first.inner_text()) == (True, 0)
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End", "Home", "ArrowLeft"):
        shown.page.keyboard.press(key)
    last = names.last.inner_text()
    assert shown.page.evaluate("document.activeElement.innerText") == last
    assert faded(shown, last) == (True, 0)
    assert shown.page.evaluate("document.activeElement.tabIndex") == 0
    assert legend.locator("button[tabindex='0']").count() == 1
    shown.page.keyboard.press("Enter")
    shown.page.evaluate("document.activeElement.blur()")
    assert faded(shown, last) == (True, 0)  # pressed, it stays
    assert shown.page.locator(".legend [aria-pressed=true]").count() > 1  # in every legend
    shown.tick("tokens", "256")  # what is drawn anew is faded too
    assert faded(shown, last) == (True, 0)
    names.last.click()
    shown.page.locator("h1").hover()
    shown.page.evaluate("document.activeElement.blur()")
    assert shown.page.locator(".faded").count() == 0
    assert shown.said == []


def test_a_line_of_the_ranking_stands_out_in_the_picture_of_the_answer(
    opened: Callable[..., Opened], text: str
) -> None:
    shown = opened(text, address="")  # as a page opens: without any legend in sight
    line = shown.page.locator("#ranking tbody tr", has_text="monarch").first
    line.hover()
    seen = "(f) => ['.faded', 'svg :is(path, line, text)'].map((s) => f.querySelectorAll(s).length)"
    faded_, drawn = shown.page.locator("#picture").evaluate(seen)
    assert 5 < faded_ < drawn
    shown.page.locator("h1").hover()
    assert shown.page.locator("#picture .faded").count() == 0
    line.get_by_role("button").focus()
    assert shown.page.locator("#picture .faded").count() == faded_
    shown.page.keyboard.press("Tab")
    own = "(f) => f.querySelectorAll('.faded').length"
    assert shown.page.locator("#picture").evaluate(own) > 0  # of the next line


# axes of figures that are compared

DOMAINS = """([kinds, channel]) => [...document.querySelectorAll("figure.chart")]
  .filter((f) => f.view && kinds.includes(f.kind.split(" ")[0]))
  .map((f) => [f.figure.beside, f.view.scale(channel).domain()])"""


def test_ratios_of_two_machines_share_one_axis(opened: Callable[..., Opened]) -> None:
    base = run_of(questions(projection=False), fingerprint=machine("Slow One"))
    runs = [base, faster(2, 2, seed=1, fingerprint=machine("Fast Two"))]
    for result in runs[1].results:
        for measured in result.measurements if "/t256/" in result.case else ():
            if measured.quantity == "time_seconds":
                measured.values[:] = [4 * value for value in measured.values]
    shown = opened(versus.page(runs, versus.compare(runs)))
    for ticked in (None, "monarch"):
        if ticked:
            shown.tick("format", ticked)
        found = shown.page.evaluate(DOMAINS, [["versus", "versus_all"], "x"])
        assert len(found) == 5
        for _, domain in found:  # but for the pixels that are left free at both ends
            assert domain == pytest.approx(found[0][1], rel=0.06)
    assert shown.said == []


def test_one_question_on_two_machines_shares_its_axis(opened: Callable[..., Opened]) -> None:
    asked = questions(tokens=(256,), directions=("forward",))
    runs = [run_of(asked, fingerprint=machine(name)) for name in ("Slow One", "Fast Two")]
    for result in runs[1].results:
        for measured in result.measurements:
            if measured.quantity == "relative_time":
                measured.values[:] = [3 * value for value in measured.values]
    shown = opened(html.render(runs, names=["Slow One", "Fast Two"]))
    told = 0
    for kinds, channel in ((["pareto", "stored", "split"], "x"), (["crossover"], "y")):
        twins: dict[str, list[list[float]]] = {}
        for beside, domain in shown.page.evaluate(DOMAINS, [kinds, channel]):
            if beside:
                twins.setdefault(beside, []).append(domain)
        told += len(twins)
        for first, *others in twins.values():
            assert all(each == pytest.approx(first, rel=0.06) for each in others)
    assert told >= 3


# addresses


def test_the_address_keeps_the_answer_that_is_shown(
    opened: Callable[..., Opened], text: str
) -> None:
    shown = opened(text, address="")
    shown.page.locator("#setting").select_option("3")
    shown.page.locator("#ladder label").nth(2).click()
    address = shown.page.evaluate("location.hash")
    assert {"setting=3", "level=2"} <= set(address.lstrip("#").split("&"))
    there = opened(text, address=address)
    for part in ("#headline", "#ranking", "#ladder", "#basis"):
        assert there.page.locator(part).inner_text() == shown.page.locator(part).inner_text()
    assert there.page.locator("#setting").input_value() == "3"
    assert there.page.locator("#ladder input:checked").input_value() == "2"
    for odd in ("setting=99&level=77", "setting=-1&level=x", "setting=1e999&level=1e999"):
        nonsense = opened(text, address=f"#{odd}")
        assert nonsense.page.locator("#headline").inner_text()
        assert nonsense.said == []


@pytest.mark.parametrize(
    "figure", ["#picture", "#density figure >> nth=1", "#samples figure >> nth=1"]
)
def test_a_link_to_a_chart_opens_it_with_its_filters(
    shown: Opened, opened: Callable[..., Opened], text: str, figure: str
) -> None:
    shown.tick("tokens", "256")
    shown.page.locator(figure).locator("[data-link]").focus()
    shown.page.keyboard.press("Enter")
    shown.page.locator("#notice", has_text="Link copied.").wait_for()
    address = shown.page.evaluate("navigator.clipboard.readText()")
    assert address == shown.page.evaluate("location.href")
    there = opened(text, address="#" + address.partition("#")[2])
    asked = there.page.locator(".linked")
    assert asked.count() == 1
    title = "(f) => [f.figure.title, f.querySelector('h3').textContent]"
    assert asked.evaluate(title) == shown.page.locator(figure).evaluate(title)
    assert there.page.evaluate("document.activeElement.classList.contains('linked')")
    box = asked.bounding_box()
    assert box is not None
    assert -200 < box["y"] < 900
    assert (
        there.page.locator("#passing").inner_text() == shown.page.locator("#passing").inner_text()
    )
    there.page.locator("nav a", has_text="Roofline").click()  # a jump asks for something else
    assert "figure=" not in there.page.evaluate("location.hash")
    assert shown.said == there.said == []


def test_a_chart_of_a_list_and_a_case_have_addresses(
    shown: Opened, opened: Callable[..., Opened], text: str
) -> None:
    section = shown.page.locator("[data-section=accuracy]")
    section.locator("select").select_option(index=2)
    shown.wait()
    last = section.locator("figure.chart").last
    last.locator("[data-link]").click()
    shown.page.locator("#notice", has_text="Link copied.").wait_for()
    there = opened(text, address=shown.page.evaluate("location.hash"))
    assert there.page.locator(".linked h3").inner_text() == last.locator("h3").inner_text()
    section.locator("select").select_option(index=0)
    shown.wait()
    shown.page.locator("#table tbody button").nth(3).click()
    dialog = shown.page.locator("#case")
    dialog.locator("[data-link]").click()
    dialog.locator("[data-part=status]", has_text="Link copied.").wait_for()
    address = shown.page.evaluate("navigator.clipboard.readText()")
    case = opened(text, address="#" + address.partition("#")[2])
    assert case.page.locator("#case h2").inner_text() == dialog.locator("h2").inner_text()
    assert case.page.locator(".linked").count() == 0


def test_the_address_keeps_what_is_unfolded(
    shown: Opened, opened: Callable[..., Opened], text: str
) -> None:
    folded = "[...document.querySelectorAll('main details:not(.alone)')]"
    assert shown.page.evaluate(f"{folded}.length") > 1
    summary = shown.page.locator("#rows details summary").first
    summary.focus()
    shown.page.keyboard.press("Enter")
    shown.page.wait_for_function("location.hash.includes('open=')")
    there = opened(text, address=shown.page.evaluate("location.hash"))
    opens = f"{folded}.map((d) => d.open)"
    assert there.page.evaluate(opens) == shown.page.evaluate(opens)
    assert sum(there.page.evaluate(opens)) == 1
    summary.click()
    shown.page.wait_for_function("!location.hash.includes('open=')")


# two modes


def test_two_modes_stand_in_the_headline_of_the_page(opened: Callable[..., Opened]) -> None:
    run = moved({"btt": [0.301, 0.900, 0.300, 0.901], "low_rank": STEADY}, "csr")
    (setting,) = decision.settings(numbered(report_rows(run)))
    best = setting.best(math.inf)
    assert best is not None
    said = setting.headline(best, math.inf)
    text = html.render([run])
    shown = opened(text)
    shown.page.locator("#ladder label").last.click()
    headline = shown.page.locator("#headline")
    assert " ".join(headline.inner_text().split()) == said
    assert "btt, density 0.495 ran in two modes" in said
    assert headline.locator(".modes").count() == 1
    shown.tick("format", "low_rank")
    assert headline.locator(".modes").count() == 0
