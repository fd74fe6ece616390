"""The page in a browser: its contents, and what is taken from it as files and as text."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from _browser import CLIPBOARD, Opened
from _synthetic import questions, run_of

from hwbench.report import decision, html
from hwbench.report.rows import numbered, report_rows
from hwbench.store import Run, read_run

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def run() -> Run:
    return run_of(questions())


@pytest.fixture(scope="module")
def text(run: Run) -> str:
    return html.render([run])


def kept(shown: Opened, figure: str, form: str) -> tuple[str, bytes]:
    """The name and the content of what a chart is saved as."""
    with shown.page.expect_download() as download:
        shown.page.locator(figure).first.locator(f"[data-save={form}]").click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_chart_is_saved_as_a_picture_that_stands_alone(
    opened: Callable[..., Opened], text: str, scheme: str
) -> None:
    shown = opened(text, color_scheme=scheme, accept_downloads=True)
    shown.tick("format", "monarch")
    shown.tick("format", "csr")
    papers = {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 28)"}
    for figure in ("#picture", "[data-section=density] figure", "[data-section=roofline] figure"):
        name, content = kept(shown, figure, "svg")
        title = shown.page.locator(figure).first.locator("h3").inner_text()
        if figure == "#picture":
            title += ": Forward, 1024×1024, 16 tokens, float32"
        assert re.fullmatch(r"(answer|density|roofline)-[\w.-]*float32\.svg", name)
        svg = content.decode()
        assert "var(" not in svg
        whole = ElementTree.fromstring(svg)  # noqa: S314 (made by the page of this test)
        words = [each.text for each in whole.iter("{http://www.w3.org/2000/svg}text")]
        assert words[0] == title
        assert {"csr", "monarch"} <= set(words)
        assert "btt" not in words
        assert "hwbench, Example Processor 9000, 20260102-030405-linear-cpu" in words
        paper = whole.find("{http://www.w3.org/2000/svg}rect")
        assert paper is not None
        assert paper.get("fill") == papers[scheme]
        name, picture = kept(shown, figure, "png")
        assert name.endswith(".png")
        assert picture[:8] == b"\x89PNG\r\n\x1a\n"
        size = struct.unpack(">II", picture[16:24])
        assert size == tuple(3 * int(whole.get(side) or 0) for side in ("width", "height"))
    assert shown.said == []
    assert shown.asked[0] == shown.path.as_uri()
    assert all(each.startswith(("blob:", "file:")) for each in shown.asked)


def copied(shown: Opened, table: str, form: str) -> list[str]:
    """The lines that a table is copied as."""
    shown.page.locator(f"[data-copy={table}][data-as={form}]").click()
    told = shown.page.locator(f":has(> [data-copy={table}]) > [data-copied]")
    told.get_by_text("Copied").wait_for()
    return shown.page.evaluate("navigator.clipboard.readText()").splitlines()


def test_the_ranking_and_the_table_are_copied_as_they_are_filtered(shown: Opened, run: Run) -> None:
    setting = decision.settings(numbered(report_rows(run)))[0]
    head, rule, *lines = copied(shown, "ranking", "markdown")
    assert head.startswith("| format | time relative to dense | time | error | stored |")
    assert rule == "| :-- | --: | --: | :-- | --: | :-- |"
    assert [line.split(" | ")[0] for line in lines] == [f"| {c.name}" for c in setting.candidates]
    assert len({line.count("|") for line in (head, rule, *lines)}) == 1
    shown.tick("format", "monarch")
    monarch = [c.name for c in setting.candidates if c.row.format == "monarch"]
    _, _, *lines = copied(shown, "ranking", "markdown")
    assert [line.split(" | ")[0] for line in lines] == [f"| {name}" for name in monarch]
    _, _, *lines = copied(shown, "table", "markdown")
    shown_rows = shown.page.locator("#table tbody tr").count()
    assert len(lines) == shown_rows > len(monarch)
    assert all("monarch" in line for line in lines)
    shown.tick("format", "monarch")
    latex = "\n".join(copied(shown, "ranking", "latex"))
    begun = re.fullmatch(
        r"\\begin\{tabular\}\{lrrlrl\}\n\\hline\n(.*)\\hline\n\\end\{tabular\}", latex, re.DOTALL
    )
    assert begun is not None
    rows = [line for line in begun[1].splitlines() if line != r"\hline"]
    assert len(rows) == len(setting.candidates) + 1
    assert all(row.endswith(r" \\") and row.count(" & ") == 5 for row in rows)
    assert r"low\_rank, density" in latex
    assert re.findall(r"(?<!\\)[%#_~^]|[^\x00-\x7f]", begun[1]) == []


def test_signs_of_a_table_are_escaped(opened: Callable[..., Opened], text: str) -> None:
    shown = opened(text, address="", permissions=CLIPBOARD)
    cell = "document.querySelector('#ranking tbody td:last-child')"
    shown.page.evaluate(f"() => {{ {cell}.textContent = 'a|b <i> 5% $x_1$ \\\\ {{}}~^#&'; }}")
    markdown = copied(shown, "ranking", "markdown")[2]
    assert markdown.endswith(r"a\|b &lt;i> 5% $x_1$ \\ {}~^#& |")
    latex = copied(shown, "ranking", "latex")[4]
    said = r"a|b $<$i$>$ 5\% \$x\_1\$ \textbackslash{} \{\}"
    assert latex.endswith(said + r"\textasciitilde{}\textasciicircum{}\#\& \\")


def test_the_contents_stay_at_the_side_and_fold_where_there_is_no_room(
    opened: Callable[..., Opened], text: str
) -> None:
    wide = opened(text).page
    wide.locator("nav a", has_text="Roofline").click()
    wide.wait_for_function("document.querySelector('nav a[aria-current]')?.hash === '#roofline'")
    side = wide.locator("#contents ol").bounding_box()
    section = wide.locator("#roofline").bounding_box()
    assert 0 < side["y"] < 200
    assert side["x"] + side["width"] < section["x"]
    narrow = opened(text, 400).page
    assert not narrow.locator("#contents ol").is_visible()
    narrow.locator("#contents summary").click()
    narrow.locator("nav a", has_text="Roofline").click()
    assert not narrow.locator("#contents ol").is_visible()
    assert narrow.evaluate("document.activeElement.id") == "roofline"


def test_a_filter_says_what_it_does_not_change_and_a_front_names_its_densities(
    opened: Callable[..., Opened],
) -> None:
    (path,) = (Path(__file__).parents[1] / "reports/2026-11-21-epyc-2core").glob("*.jsonl")
    shown = opened(html.render([read_run(path)]))
    note = shown.page.locator("#questions [data-all]")
    assert not note.is_visible()
    shown.tick("format", "btt")
    assert note.is_visible()
    rows = shown.page.evaluate(
        """() => [...document.querySelectorAll("[data-section=accuracy] figure.chart")].flatMap(
          (f) => f.view.data("table").map((r) => [r.asked_density, r.density, r.density_text]))"""
    )
    far = [row for row in rows if abs(row[1] - row[0]) > 0.1 * row[0]]
    assert {text for *_, text in far} == {"0.0625"}
    assert {text for asked, _, text in rows if [asked, _, text] not in far} == {"0.5"}
