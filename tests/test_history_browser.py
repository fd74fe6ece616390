"""The history page in a browser: it has no script, and is narrowed all the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from _browser import Opened

from hwbench.report import history as pages
from hwbench.studies.history import history

pytestmark = pytest.mark.browser
NIGHTS = Path(__file__).parents[1] / "docs/examples/nights"


@pytest.mark.parametrize("width", [1400, 400])
def test_choices_narrow_the_cases_and_a_change_leads_to_its_line(
    opened: Callable[..., Opened], width: int
) -> None:
    text = pages.render(history(NIGHTS).histories, [])
    shown = opened(text, width, "", wait=False, java_script_enabled=False)
    page = shown.page

    def seen() -> list[str]:
        names = page.locator(".cases tbody tr").all()
        return [row.locator("a").inner_text() for row in names if row.is_visible()]

    every = seen()
    assert len(every) == 8
    page.locator(".chips label", has_text="low_rank").click()
    assert seen() == [name for name in every if name.startswith("low_rank")] != []
    page.locator(".chips label", has_text="64 tokens").click()
    assert [name.split(":")[0] for name in seen()] == ["low_rank density=0.5"]
    assert "64 tokens" in seen()[0]
    page.locator(".chips label", has_text="all").nth(1).click()
    page.locator(".chips label", has_text="monarch").click()
    page.locator(".events a", has_text="16 tokens").click()  # what is led to is shown
    assert any(name.startswith("low_rank") for name in seen())
    page.keyboard.press("Tab")
    assert page.locator("html").evaluate("(e) => e.scrollWidth <= e.clientWidth")
    assert shown.said == []
    assert shown.asked == [shown.path.as_uri()]
