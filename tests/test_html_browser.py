"""The page in headless Chromium: drawn, sorted, filtered, inert; `make test-browser` runs these."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from _synthetic import hostile_run, questions, run_of

from hwbench import units
from hwbench.report import _pack, html
from hwbench.store import Run

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def run() -> Run:
    return run_of(questions())


@pytest.fixture(scope="module")
def text(run: Run) -> str:
    return html.render([run])


def browse(text: str, folder: Path, script: str, width: int = 1200) -> dict[str, Any]:
    """Open a page in headless Chromium, run a script in it when it is drawn, return its answer."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium on this machine")
    probe = (
        "<script>setTimeout(() => { const answer = (() => {" + script + "})();"
        'parent.postMessage(JSON.stringify(answer), "*"); }, 8000)</script>'
    )
    before, end, after = text.rpartition("</body>")  # the library has one in a string
    (folder / "page.html").write_text(f"{before}{probe}{end}{after}", encoding="utf-8")
    path = folder / "frame.html"  # a window is never narrower than 500 pixels, a frame is
    path.write_text(
        f'<!doctype html><iframe src="page.html" width="{width}" height="2400"></iframe><script>'
        'addEventListener("message", ({data}) => { const out = document.createElement("pre");'
        'out.id = "answer"; out.textContent = btoa(unescape(encodeURIComponent(data)));'
        "document.body.append(out); })</script>"
    )
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={folder / 'profile'}", "--window-size=1500,2500"]
    command += ["--run-all-compositor-stages-before-draw", "--virtual-time-budget=12000"]
    done = subprocess.run(
        [*command, "--dump-dom", path.as_uri()], capture_output=True, timeout=120, check=True
    )
    found = re.search(rb'<pre id="answer">([^<]*)</pre>', done.stdout)
    assert found, "the page gave no answer"
    answer: dict[str, Any] = json.loads(base64.b64decode(found[1]))
    return answer


_LOOK = """
  const right = (element) => element.getBoundingClientRect().right;
  const figures = [...document.querySelectorAll("figure.chart")];
  return {
    figures: figures.length,
    drawn: figures.filter((f) => f.querySelector(".plot svg path")).length,
    rows: document.querySelectorAll("#table tbody tr").length,
    said: document.getElementById("count").textContent,
    images: document.images.length,
    wide: document.documentElement.scrollWidth,
    window: window.innerWidth,
    spilling: figures.filter((f) => right(f.querySelector("svg")) > right(f) + 1).length,
  };
"""


@pytest.mark.parametrize("width", [1400, 360])
def test_every_chart_is_drawn_and_nothing_scrolls_sideways(
    text: str, tmp_path: Path, width: int
) -> None:
    seen = browse(text, tmp_path, _LOOK, width)
    assert seen["figures"] == seen["drawn"] == 14
    assert seen["said"] == "60 of 99 rows"
    assert seen["rows"] == 60
    assert seen["window"] == width
    assert seen["wide"] <= width
    assert seen["spilling"] == 0


def test_hostile_names_stay_text_in_a_browser(tmp_path: Path) -> None:
    text = html.render([hostile_run()]).replace("alert(1)", "document.title=1")
    watch = 'return { title: document.title, images: document.querySelectorAll("img").length };'
    seen = browse(text, tmp_path, watch)
    assert seen["images"] == 0
    assert seen["title"] != "1"


def test_rows_are_filtered_sorted_and_taken_from_a_chart(text: str, tmp_path: Path) -> None:
    script = """
      const said = () => document.getElementById("count").textContent;
      const all = (selector) => [...document.querySelectorAll(selector)];
      const column = (name) => all("#table thead th").findIndex((c) => c.textContent === name);
      const cells = (name) => all("#table tbody tr").map((r) => r.cells[column(name)].textContent);
      const query = document.getElementById("query");
      query.value = "MONARCH step t256";
      query.dispatchEvent(new Event("input"));
      const filtered = [said(), cells("format")];
      query.value = "";
      const press = () => all("#table thead button")[column("density")].click();
      press();
      const up = cells("density").slice(0, 3);
      press();
      const down = cells("density").slice(0, 3);
      const sorted = document.querySelector("[aria-sort]").getAttribute("aria-sort");
      document.getElementById("status").value = "other";
      document.getElementById("status").dispatchEvent(new Event("change"));
      const bad = [said(), cells("status")];
      document.getElementById("status").value = "";
      document.querySelector("[data-section=density] [data-rows]").click();
      const only = said();
      document.getElementById("theme").click();
      const theme = document.documentElement.dataset.theme;
      return { filtered, up, down, sorted, bad, only, theme };
    """
    seen = browse(text, tmp_path, script)
    assert seen["filtered"] == ["3 of 3 rows, filtered from 99", ["monarch"] * 3]
    assert seen["up"] == ["0.0990"] * 3
    assert seen["down"] == ["1.00"] * 3
    assert seen["sorted"] == "descending"
    assert seen["bad"][0] == "5 of 5 rows, filtered from 99"
    assert set(seen["bad"][1]) == {"unsupported"}
    assert seen["only"] == "19 of 19 rows, filtered from 99"
    assert seen["theme"] == "dark"


def test_large_data_is_unpacked_in_the_page(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_pack, "PLAIN_LIMIT", 0)
    text = html.render([run])
    assert 'data-form="gzip"' in text
    assert browse(text, tmp_path, _LOOK)["said"] == "60 of 99 rows"


def test_the_page_writes_numbers_as_python_does(tmp_path: Path) -> None:
    values = [m * 10.0**e for e in range(-11, 15) for m in (1, 1.2346, 4.996, 9.995, 9.9951)]
    values += [0, 1234, 999.4, 999.6, 123456, 0.00012345]
    script = (html._TEMPLATES / "data.js").read_text()
    text = f"<!doctype html><body><script>{script}</script></body>"
    ask = f"const values = {json.dumps(values)};"
    ask += 'return { si: values.map((v) => si(v, "s")), three: values.map((v) => significant(v)) };'
    seen = browse(text, tmp_path, ask)
    assert seen["si"] == [units.seconds(value) for value in values]
    assert seen["three"] == [units.significant(value) for value in values]
