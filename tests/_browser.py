"""A page opened in headless Chromium; `make test-browser` runs the tests that use it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")
"""The first one found is used: the shell draws the same page in three quarters of the time."""
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
DRAWN = "document.body.dataset.drawn === 'yes'"
EVERYTHING = "#view=everything"
CLIPBOARD = ["clipboard-read", "clipboard-write"]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip(f"there is no Chromium on this machine: none of {', '.join(BROWSERS)}")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A page from disk, with everything that it said and asked for."""

    def __init__(self, page: Any, path: Path) -> None:
        self.page, self.path = page, path
        self.said: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))

    def wait(self) -> None:
        self.page.wait_for_function(DRAWN, timeout=120_000)

    def reset(self) -> None:
        """Bring the page back to how it was opened: its address holds all that may be chosen."""
        self.page.evaluate(f"location.hash = {EVERYTHING!r}; document.activeElement.blur();")
        self.page.evaluate("new Promise((done) => setTimeout(done, 0))")  # the address is read
        self.wait()
        self.page.evaluate("scrollTo(0, 0)")

    def tick(self, name: str, value: str) -> None:
        """Choose one value of a filter with the mouse."""
        choice = self.page.locator(f"[data-filter={name}]")
        choice.locator("summary").click()
        choice.locator("label", has_text=value).first.click()
        self.page.keyboard.press("Escape")
        self.wait()

    def drawn(self) -> dict[str, str]:
        """What each section draws, and the table's own words."""
        return self.page.evaluate(
            """() => {
              const found = { table: document.getElementById("passing").textContent };
              const marks = (f) => [...f.querySelectorAll("svg path, svg text, svg line")].map(
                (e) => [e.getAttribute("transform"), e.getAttribute("d"), e.textContent].join(" ")
                  .replace(/-?\\d+(\\.\\d+)?(e-?\\d+)?/g, (number) => Math.round(number) || 0));
              for (const box of document.querySelectorAll(".figures")) {
                found[box.dataset.section] = [...box.querySelectorAll("figure.chart")]
                  .filter((f) => !f.hidden)
                  .map((f) => [f.querySelector("h3").textContent, ...marks(f).sort()].join("\\n"))
                  .join("\\n\\n");
              }
              const heat = document.getElementById("heat");
              found.heat = heat.hidden ? "" : heat.innerText;
              return found;
            }"""
        )


def _opened(
    chromium: Any,
    path: Path,
    text: str,
    width: int = 1400,
    address: str = EVERYTHING,
    **options: Any,
) -> Opened:
    path.write_text(text, encoding="utf-8")
    view = {"width": width, "height": 1000}
    context = chromium.new_context(viewport=view, reduced_motion="reduce", **options)
    shown = Opened(context.new_page(), path)
    shown.page.goto(f"{path.as_uri()}{address}")
    return shown


@pytest.fixture(scope="module")
def _page(chromium: Any, tmp_path_factory: pytest.TempPathFactory, text: str) -> Iterator[Opened]:
    path = tmp_path_factory.mktemp("page") / "page.html"
    shown = _opened(chromium, path, text, permissions=CLIPBOARD, accept_downloads=True)
    yield shown
    shown.page.context.close()


@pytest.fixture
def shown(_page: Opened) -> Iterator[Opened]:
    """The page of the module's ``text``, opened once; for tests whose choices its address holds.

    It has nothing to say in any of them.
    """
    _page.reset()
    yield _page
    said = list(_page.said)
    _page.said.clear()  # of the next test it says nothing
    assert said == []


@pytest.fixture
def opened(chromium: Any, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    made: list[Opened] = []

    def start(text: str, *where: Any, wait: bool = True, **options: Any) -> Opened:
        shown = _opened(chromium, tmp_path / "page.html", text, *where, **options)
        made.append(shown)
        if wait:
            shown.wait()
        return shown

    yield start
    for shown in made:
        shown.page.context.close()
