"""The page of `hwbench compare` in headless Chromium: its own charts and table obey the filters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from _browser import Opened
from _synthetic import DENSITIES, questions, run_of
from test_versus import faster, machine

from hwbench.report import versus

pytestmark = pytest.mark.browser

FILTERS = {
    "machine": "Slow One",
    "format": "monarch",
    "pass": "Forward and backward",
    "tokens": "256",
    "density": "0.25",
    "status": "unsupported",
}
"""Every filter of the page with a value of it that only some of the ratios have, or none."""
TABLE = "[...document.querySelectorAll('table.ratios tbody')].map((b) => b.innerText).join('\\n')"
ROWS = "document.querySelectorAll('table.ratios td:first-child').length"


def page_of(densities: Sequence[float] = DENSITIES) -> str:
    cases = questions(projection=False, densities=densities)
    base = run_of(cases, fingerprint=machine("Slow One"))
    runs = [base, faster(2, 2, densities, seed=1, fingerprint=machine("Fast Two"))]
    return versus.page(runs, versus.compare(runs))


@pytest.fixture(scope="module")
def text() -> str:
    return page_of()


def test_the_ratios_are_drawn_and_tabled_as_python_wrote_them(
    opened: Callable[..., Opened], text: str
) -> None:
    still = opened(text, java_script_enabled=False, wait=False)
    written = still.page.locator("table.ratios").inner_text()
    shown = opened(text)
    assert shown.page.locator("table.ratios").inner_text() == written
    assert shown.page.evaluate(ROWS) == 60
    shown.page.get_by_role("button", name="Show 16 more").focus()
    shown.page.keyboard.press("Enter")
    assert shown.page.evaluate(ROWS) == 76
    assert shown.said == []
    assert len(shown.drawn()["versus1"].split("\n\n")) == 5
    assert "time over the first run’s (log)" in shown.drawn()["versus1"]


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_changes_the_charts_and_the_table_of_ratios(shown: Opened, name: str) -> None:
    before, table = shown.drawn()["versus1"], shown.page.evaluate(TABLE)
    shown.tick(name, FILTERS[name])
    assert shown.drawn()["versus1"] != before
    assert shown.page.evaluate(TABLE) != table
    none = shown.page.evaluate(ROWS) == 0
    assert none == (name in ("machine", "status"))
    assert shown.page.locator(".ratios-nothing").is_visible() == none


def test_a_link_restores_the_ratios(
    shown: Opened, opened: Callable[..., Opened], text: str
) -> None:
    shown.tick("density", "0.1")  # a chart forgets what it showed before
    shown.reset()
    shown.tick("format", "btt")
    shown.tick("tokens", "256")
    there = opened(text, address=shown.page.evaluate("location.hash"))
    assert there.page.evaluate(ROWS) == 6
    assert there.page.evaluate(TABLE) == shown.page.evaluate(TABLE)
    one, two = (sorted(each.drawn()["versus1"].splitlines()) for each in (shown, there))
    assert one == two


def test_the_rows_of_a_chart_of_ratios_are_in_the_table_of_all(shown: Opened) -> None:
    shown.page.locator("[data-section=versus1] [data-rows]").nth(1).click()
    assert shown.page.locator("#count").inner_text().startswith("19 of 19 rows")
    heads = shown.page.locator("#table thead th").all_inner_texts()
    place = heads.index("of first run")
    cells = shown.page.locator(f"#table tbody td:nth-child({place + 1})").all_inner_texts()
    assert len(cells) == 19
    assert all(0.4 < float(cell.split()[0]) < 0.6 for cell in cells)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_violation(opened: Callable[..., Opened], scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    shown = opened(page_of((0.5,)), color_scheme=scheme, bypass_csp=True)
    found = axe.Axe().run(shown.page).response
    grave = [each for each in found["violations"] if each["impact"] in ("serious", "critical")]
    told = [(each["id"], [node["html"][:200] for node in each["nodes"][:3]]) for each in grave]
    assert told == []


def test_a_narrow_screen_scrolls_no_way_but_down(opened: Callable[..., Opened], text: str) -> None:
    shown = opened(text, 400)
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= 400
    spilling = """[...document.querySelectorAll("#compare figure.chart")].filter(
      (f) => f.querySelector("svg").getBoundingClientRect().right > f.getBoundingClientRect().right
    ).length"""
    assert shown.page.evaluate(spilling) == 0
