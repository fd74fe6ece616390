"""The page: whole, self-contained, inert whatever stands in a run, and readable in every state."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from _synthetic import (
    HOSTILE,
    UNSUPPORTED,
    failed,
    hostile_run,
    linear_case,
    projection_case,
    questions,
    rescored,
    run_of,
)
from _tiers import sampled
from msgspec.structs import replace

from hwbench.errors import UsageError
from hwbench.quantities import COMPILE, ENERGY
from hwbench.records import Status
from hwbench.report import _bytes, _charts, _facts, _heat, _pack, _palette, html, versus
from hwbench.report import _words as words
from hwbench.report._scores import named
from hwbench.report.rows import numbered, report_rows
from hwbench.store import Run, read_run


class Page(HTMLParser):
    """The elements of a page, the text that is shown, and what its scripts hold."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.words: list[str] = []
        self.comments: list[str] = []
        self._inside: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        self._inside = tag if tag in ("script", "style") else None

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif self._inside is None:
            self.words.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    @property
    def shown(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def data(self) -> dict[str, Any]:
        attributes, text = next(s for s in self.scripts if s[0].get("id") == "hw-data")
        if attributes["data-form"] == "gzip":
            text = gzip.decompress(base64.b64decode(text)).decode()
        return json.loads(text)

    def column(self, name: str) -> list[Any]:
        return _pack.unpacked(self.data["columns"], name)

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


@pytest.fixture(scope="module")
def run() -> Run:
    return run_of(questions())


@pytest.fixture(scope="module")
def text(run: Run) -> str:
    return html.render([run])


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


_SHADES = {"none", *(name for name, _ in _heat.SHADES)}

# what Python and the script both draw

_NODE = shutil.which("node")
_STORED = sorted((Path(__file__).parent / "golden" / "runs").glob("*.jsonl"))
_TABLE = """
globalThis.document = { getElementById: () => ({ textContent: input.text, dataset: input }) };
const say = (data) => console.log(JSON.stringify(
  heatTable(data, new Uint8Array(data.count).fill(1), input.limit)));
readData().then(say);
"""


def many_groups() -> Run:
    """More groups than the table shows at first; a format that only the last ones have."""
    cases = [
        linear_case(name, density, tokens=tokens)
        for tokens in range(1, 45)
        for name, density in (("dense", None), ("low_rank", 0.5))
    ]
    return run_of([*cases, linear_case("csr", 0.5, tokens=44)], replicates=2)


def far_from_asked() -> Run:
    """A run in which one format has far fewer values than were asked for."""
    run = run_of([linear_case(name, share) for name, share in
                  (("dense", None), ("low_rank", 0.5), ("csr", 0.5))])  # fmt: skip
    for id_, planned in run.planned.items():
        if planned.case.format == "low_rank":
            run.planned[id_] = replace(planned, density=0.3)
    return run


def stored(path: Path) -> Callable[[], Run]:
    return lambda: read_run(path)


_DRAWN_TWICE = {
    **{path.stem: stored(path) for path in _STORED},
    "many groups": many_groups,
    "far from asked": far_from_asked,
}


@cache
def drawn(name: str) -> tuple[Run, Page]:
    """One of these runs, and its page."""
    run = _DRAWN_TWICE[name]()
    return run, Page(html.render([run]))


@pytest.mark.parametrize("name", sampled(_DRAWN_TWICE, 3))
def test_the_table_of_winners_holds_the_rows_that_the_data_names(name: str) -> None:
    run, found = drawn(name)
    against = [
        case
        for case, yes in zip(found.column("case"), found.column("against_dense"), strict=True)
        if yes
    ]
    rows = html._rows([run], [""])
    table = _heat.heat(rows, most=1000)
    assert table.groups == len({row.group for row in rows if row.case in against})
    assert all(run.planned[case].seeds is None for case in against)
    assert sum(cell.text != "" for _, cells in table.lines for cell in cells) == len(against)


def test_a_cell_with_far_fewer_values_than_its_column_asks_for_says_so() -> None:
    table = _heat.heat(html._rows([far_from_asked()], [""]))
    ((_, cells),) = table.lines
    told = {name: cell for (name, *_), cell in zip(table.heads, cells, strict=True)}
    assert told["low_rank"].text.endswith("†")
    assert told["low_rank"].says.startswith("density 0.300")
    assert "†" not in told["csr"].text
    for run, is_far in ((far_from_asked(), True), (many_groups(), False)):
        assert ("A cell with † has another density" in html.render([run])) == is_far


@pytest.mark.parametrize(
    ("times", "first", "level"),
    [
        ([0.500, 0.501, 0.499, 0.500, 0.501], 0, "tied"),
        ([0.505, 0.560, 0.490, 0.540, 0.520], 0, "undecided"),
        ([0.600, 0.601, 0.599, 0.600, 0.602], 0, ""),
        ([0.4995, 0.501, 0.499, 0.500, 0.501], 5, "undecided"),
        ([2.600, 2.601, 2.599, 2.600, 2.602], 5, ""),
    ],
)
def test_who_is_level_with_the_fastest_is_marked(
    times: list[float], first: int, level: str
) -> None:
    """Against 0.5 of dense with hardly any scatter; dense and who is slower have no mark.

    Replicates from the fifth on are none of the fastest's: then intervals decide.
    """
    made = run_of([linear_case(name, None if name == "dense" else 0.1)
                   for name in ("dense", "low_rank", "monarch")], replicates=5)  # fmt: skip
    fixed = {"low_rank": [0.4995, 0.500, 0.4995, 0.500, 0.4995], "monarch": times}
    rows = [
        replace(row, by_replicate=dict(enumerate(values, first if row.format == "monarch" else 0)),
                relative_low=min(values),
                relative_high=max(values), values={**row.values, "relative_time": median(values)})
        if (values := fixed.get(row.format)) else row
        for row in html._rows([made], [""])
    ]  # fmt: skip
    told = {row.format: row for row in _heat.marked([replace(r, best=False) for r in rows])}
    assert told["low_rank"].best
    assert [told[name].level for name in ("dense", "low_rank", "monarch")] == ["", "", level]


@pytest.mark.skipif(_NODE is None, reason="there is no node on this machine")
@pytest.mark.parametrize("name", sampled(_DRAWN_TWICE, 3))
def test_the_script_draws_the_table_that_python_wrote(name: str) -> None:
    _drawn_twice(name, *drawn(name))


def _drawn_twice(name: str, run: Run, page: Page) -> None:
    table = _heat.heat(html._rows([run], [""]))
    attributes, text = next(s for s in page.scripts if s[0].get("id") == "hw-data")
    given = json.dumps({"text": text, "form": attributes["data-form"], "limit": 40})
    scripts = [(html._TEMPLATES / f"{part}.js").read_text() for part in ("data", "heat")]
    done = subprocess.run(
        [str(_NODE), "-"], input="\n".join([*scripts, f"const input = {given};", _TABLE]),
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, f"{name}: {done.stderr}"
    drawn = json.loads(done.stdout)
    heads = [(each["format"], each["label"], len(each["words"])) for each in drawn["heads"]]
    assert heads == table.heads
    assert [word or "–" for each in drawn["heads"] for word in each["words"]] == table.densities
    assert drawn["groups"] == table.groups
    cells = [
        [(cell["text"], cell["shade"], cell.get("says") or "") for cell in line["cells"]]
        for line in drawn["lines"]
    ]
    assert cells == [
        [
            (
                cell.text,
                f"{cell.shade}{' best' if cell.best else ' level' if cell.level else ''}",
                cell.says,
            )
            for cell in line
        ]
        for _, line in table.lines
    ]


# what the page holds


def test_the_page_has_every_case(run: Run, page: Page) -> None:
    assert page.column("case") == list(run.planned)
    assert page.data["count"] == len(run.planned)


def test_the_page_has_every_number_to_four_digits(run: Run, page: Page) -> None:
    place = list(run.planned).index(
        "linear/forward/csr[density=0.5]/1024x1024/t16/float32/hot/eager/cpu"
    )
    measured = [r for r in run.results if r.case == page.column("case")[place]]
    relative = [r.values("relative_time")[0] for r in measured]
    assert min(relative) <= page.column("relative_time")[place] <= max(relative)
    assert page.column("status")[place] == "ok"
    unsupported = page.column("status").index("unsupported")
    assert page.column("reason")[unsupported] == UNSUPPORTED
    assert page.column("time_seconds")[unsupported] is None


def test_no_sample_is_carried(page: Page) -> None:
    assert "samples" not in page.data["columns"]


def test_the_answer_comes_first_and_says_numbers_and_intervals(page: Page) -> None:
    shown = page.shown
    assert shown.index("The answer") < shown.index("Accuracy against wall-clock")
    assert (
        "At density 0.5, low_rank is the fastest in all 4 settings, at 0.46–0.59× of dense."
        in shown
    )
    assert re.search(
        r"Forward, 1024×1024, 256 tokens, float32 At density 0\.5 the fastest is low_rank , "
        r"0\.458× of dense \(0\.4\d\d–0\.4\d\d\) ; also faster than dense: monarch \(0\.56\d×\)",
        shown,
    )
    assert "Which format is the fastest at the accuracy I need?" in shown
    assert re.search(
        r"In 10 % of dense’s bytes: blast density=0\.1 , projection error 0\.\d+ on projection",
        shown,
    )
    assert f"Not answered: 4 of 4 cases did not run. {UNSUPPORTED}" in shown
    assert "Nowhere : in each of 4 settings a format is significantly faster." in shown


def test_the_table_at_the_accuracy_you_need_says_time_memory_and_dense(page: Page) -> None:
    shown = page.shown.split("At the accuracy you need")[1]
    assert re.search(r"Dense takes [\d.]+ µs and stores 4\.19 MB\.", shown)
    assert re.search(r"0\.211 low_rank density=0\.5 [\d.]+ [mµ]s 0\.\d+× 2\.08 MB faster", shown)


def test_both_shapes_of_a_join_are_named(page: Page) -> None:
    assert (
        "Time measured at 1024×1024 float32; projection error of projection matrix=power_law "
        "seeds=1 at 512×512 float32 (synthetic: ranks formats differently from trained weights)."
        in page.shown
    )


def test_what_has_no_partner_is_listed(page: Page) -> None:
    assert "1 not drawn: no matching score or time" in page.shown
    assert f"semi_structured not timed: unsupported ({UNSUPPORTED})" in page.shown


def test_statuses_other_than_ok_are_listed_with_reason_and_cases(page: Page) -> None:
    after = page.shown.split("Not measured, or not to be trusted")[1]
    assert f"unsupported {UNSUPPORTED} 5 cases" in after
    assert "linear/step/semi_structured/1024x1024/t16/float32/hot/eager/cpu" in after


def test_the_machine_and_the_method_are_told(page: Page) -> None:
    for fact in ("Example Processor 9000", "33.6 MB", "avx2, avx512f", "2.13.0+cpu", "110 GFLOP/s"):
        assert fact in page.shown
    assert "How each number was made" in page.shown
    assert "Of the 72 intervals of relative time here, about 4 miss" in page.shown


def test_facts_have_few_digits_and_keys_that_break_after_dots_alone(text: str) -> None:
    for value, said in ((0.55126953125, "0.5513"), (1.02, "1.02"), (3, "3"), (True, "True")):
        assert _facts.worded("load_1min", value) == said
    keys = re.findall(r"<dt>([^<]*(?:<wbr>[^<]*)+)</dt>", text)
    assert "device.<wbr>instruction_sets" in keys
    assert [key for key in keys if re.search(r"[^.]<wbr>", key)] == []


def test_the_table_of_winners_shows_every_cell(page: Page) -> None:
    cells = [str(a.get("class", "")) for a in page.tags("td")]
    shades = [name for name in cells if name.split()[:1] and name.split()[0] in _SHADES]
    assert len(shades) == 4 * 19
    assert sum("best" in str(shade) for shade in shades) == 4
    assert sum(str(shade) == "none" for shade in shades) == 4  # semi_structured


# charts


def test_every_chart_has_title_sentence_and_role(page: Page) -> None:
    plots = [a for a in page.tags("div") if a.get("class") == "plot"]
    assert len(plots) == 1 + 5 + 4 + 2 + 4 + 5 + 4 + 3 + 2 + 3 + 3 + 2
    for attributes in plots:
        assert attributes["role"] == "img"
        title, _, says = str(attributes["aria-label"]).partition(". ")
        assert title
        assert says.endswith(".")
        assert says.replace("\xa0", " ") in page.shown


def test_each_format_has_its_own_colour_and_shape_in_the_data(page: Page) -> None:
    looks = page.data["looks"]
    assert set(looks) == set(page.column("format"))
    assert len({(look["css"], look["path"]) for look in looks.values()}) == len(looks)


@pytest.mark.heavy
def test_every_specification_compiles() -> None:
    import altair as alt
    import vl_convert

    known = [named(name) for name in ("projection_error", "psnr_db", HOSTILE)]
    looks = _palette.styles(["dense", "low_rank", HOSTILE])
    specifications = _charts.specifications(looks, known, [ENERGY, COMPILE])
    assert set(specifications) == {
        *(f"{kind} {score.name}" for score in known
          for kind in ("pareto", "error_density", "error_bytes")),
        "crossover", "sweep", "roofline", "stored",
        "saved", "reading energy_joules", "reading compile_seconds",
        "split", "winners", "spread", "series",
        "versus", "versus_all",
    }  # fmt: skip
    for name, specification in specifications.items():
        alt.Chart.from_dict(specification)  # raises where the schema of Vega-Lite is not kept
        compiled = vl_convert.vegalite_to_vega({**specification, "width": 300})
        assert compiled["marks"], name
        assert "http" not in json.dumps(specification)


def test_figures_name_rows_of_their_own_kind(page: Page) -> None:
    data = page.data
    directions, saved = page.column("direction"), page.column("saved_bytes")
    for section in data["figures"].values():
        for figure in section:
            numbers = [n for start, end in figure["rows"] for n in range(start, end)]
            assert numbers == sorted(set(numbers))
            if figure["kind"] == "saved":
                assert all(saved[n] is not None for n in numbers)
            if figure["kind"] == "pareto projection_error":
                assert len({directions[n] for n in numbers}) == 1
                assert len(figure["own"]["error"]) == len(numbers) == 18


# alone, and inert


def external(page: Page) -> list[str]:
    """Every address that a browser would load or follow out of the page."""
    names = ("src", "href", "xlink:href", "action", "poster", "data", "srcset", "formaction")
    found = [str(a[n]) for tag, a in page.elements for n in names if n in a and tag != "path"]
    return [address for address in found if not address.startswith("#")]


def test_the_page_loads_nothing(text: str, page: Page) -> None:
    assert external(page) == []
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = [a["content"] for a in page.tags("meta") if "http-equiv" in a]
    assert "default-src 'none'" in str(policy)
    assert "connect-src" not in str(policy)  # nothing is granted back


def test_our_scripts_speak_to_no_network() -> None:
    for name in html._SCRIPTS:
        script = (html._TEMPLATES / name).read_text()
        for word in (
            "fetch(",
            "XMLHttpRequest",
            "WebSocket",
            "import(",
            "http:",
            "https:",
            "innerHTML",
        ):
            assert word not in script, (name, word)


def test_hostile_names_are_text() -> None:
    safe, page = Page(html.render([run_of(questions())])), Page(html.render([hostile_run()]))
    assert page.tags("img") == []
    assert [a for tag, a in page.elements if any(n.startswith("on") for n in a)] == []
    assert len(page.scripts) == len(safe.scripts) == 3
    assert page.comments == safe.comments
    assert external(page) == []
    assert HOSTILE in page.column("format")
    assert "<img src=x onerror=alert(1)>" in page.shown


def test_data_cannot_end_its_element() -> None:
    text = _pack.embedded({"name": HOSTILE, "lone": "\ud800"})
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text)["name"] == HOSTILE


# every state of a run


def test_no_run_is_a_sentence() -> None:
    with pytest.raises(UsageError, match="no run to report"):
        html.render([])


def test_an_empty_run_says_so() -> None:
    page = Page(html.render([run_of([])]))
    assert "nothing was measured, so there is nothing to answer" in page.shown
    assert page.data["count"] == 0


def test_a_run_in_which_all_failed_says_so() -> None:
    page = Page(html.render([failed(run_of(questions()), Status.TIMED_OUT, "no answer in 60 s")]))
    assert "No case has a result to be trusted" in page.shown
    assert "timed out no answer in 60 s 99 cases" in page.shown
    assert not [a for a in page.tags("div") if a.get("role") == "img" and "Forward" in str(a)]


def test_an_unfinished_run_says_what_is_missing() -> None:
    run = run_of(questions(), complete=False)
    run.results = run.results[:120]
    page = Page(html.render([run]))
    missing = page.column("status").count("missing")
    assert missing > 0
    assert f"This run is not finished: {missing} cases without any result." in page.shown


def test_without_ceilings_there_is_a_sentence_and_no_roofline() -> None:
    page = Page(html.render([run_of(questions(), ceilings={})]))
    assert "#roofline" not in {link.get("href") for link in page.tags("a")}
    assert "not measured in this run, so there is no roofline" in page.shown
    assert page.data["figures"]["roofline"] == []


def test_without_projections_there_is_a_sentence() -> None:
    page = Page(html.render([run_of(questions(projection=False))]))
    assert 'A second block of the suite, with workload = "projection"' in page.shown
    assert "#accuracy" not in {link.get("href") for link in page.tags("a")}


def _only(name: str) -> Run:
    """A run that measures one side of the question alone, or nothing."""
    if name == "accuracy":
        return run_of([projection_case(each, 0.5) for each in ("low_rank", "csr")])
    if name == "times":
        return run_of(questions(projection=False), ceilings={})
    if name == "one case":
        return run_of([linear_case("low_rank", 0.5)])
    if name == "failures":
        return failed(run_of(questions()), Status.TIMED_OUT, "no answer in 60 s")
    return run_of([])


@pytest.mark.parametrize(
    "name", sampled(["accuracy", "times", "one case", "failures", "nothing"], 2)
)
def test_every_heading_of_the_contents_has_something_under_it(name: str) -> None:
    text = html.render([_only(name)])
    page = Page(text)
    links = [str(a["href"]) for a in page.tags("a") if str(a.get("href")).startswith("#")]
    ids = {a["id"] for _, a in page.elements if "id" in a}
    assert [link for link in links if link[1:] not in ids] == []
    parts = re.findall(r'<section id="(\w+)".*?</section>', text, re.DOTALL)
    listed = re.findall(r'<li><a href="#(\w+)">', text)
    assert parts == listed
    for part in set(parts) - {"answer", "rows", "method"}:
        inside = text[text.index(f'<section id="{part}"') :].partition("</section>")[0]
        assert re.search('class="plot"|<table|<dl|<ul class="answers"><|class="lead"', inside), part


def test_a_run_of_scores_alone_answers_in_bytes() -> None:
    cases = [
        projection_case(name, each) for name in ("low_rank", "btt", "csr") for each in (1.0, 0.5)
    ]
    run = run_of(cases)
    page = Page(html.render([run]))
    rows = [row for row in numbered(report_rows(run)) if row.stored_ratio <= 0.5]
    best = min(rows, key=lambda row: row.score)
    assert (
        f"In 50 % of dense’s bytes, use {words.format_name(best)}: projection error " in page.shown
    )
    assert "no format can be called the fastest" not in page.shown
    assert "Significantly faster than dense" not in page.shown
    assert "Which keeps the most per byte?" not in page.shown


def test_what_keeps_the_most_is_never_beaten_by_what_is_smaller() -> None:
    stored = Path(__file__).parent / "golden" / "runs" / "scored.jsonl"
    for run in (read_run(stored), run_of(questions()), rescored(run_of(questions()))):
        rows = numbered(report_rows(run))
        found = _bytes.answers(rows)
        own = {number for each in found for number in each.groups}
        assert own == {row.group_number for row in rows if row.scored}
        for each in found:
            scored = [r for r in rows if r.group_number in each.groups and r.status == "ok"]
            sign = -1 if scored[0].better == "higher" else 1
            front = [row for row, _ in each.lines]
            beaten = {
                row.number
                for row in scored
                for other in scored
                if (other.stored_ratio, sign * other.score) < (row.stored_ratio, sign * row.score)
                and sign * other.score <= sign * row.score
            }
            assert {row.number for row in front} == {r.number for r in scored} - beaten


def test_the_bytes_of_a_whole_model_are_those_of_its_dense_case() -> None:
    """Such a case counts all layers; the layer of its shape is one of them."""
    path = Path(__file__).parents[1] / "reports/2026-11-28-epyc-2core/compress_lm.jsonl"
    run = read_run(path)
    rows = numbered(report_rows(run))
    assert {row.stored_ratio for row in rows if row.format == "dense"} == {1.0}
    assert all(0.2 < row.stored_ratio < 1.1 for row in rows)
    (found,) = _bytes.answers(rows)  # what differs in its weighting is one experiment
    best = "use quantized int8 (it takes 25 %): perplexity 26.4. Dense: 26.3."
    assert found.says == f"In 50 % of dense’s bytes, {best}"
    assert found.title == "Compress_lm, 576×576, float32"
    assert set(found.groups) == {row.group_number for row in rows}
    without = read_run(path)
    for name in [n for n, each in run.planned.items() if each.case.format == "dense"]:
        del without.planned[name]
    without.results[:] = [each for each in run.results if each.case in without.planned]
    assert not _bytes.answers(numbered(report_rows(without)))  # then no share of dense is known
    weighted = [row for row in rows if row.format == "n_m" and "gram" in row.options]
    assert _bytes._cells(weighted[0])[2] == "n_m, density 0.5, weighted by gram"


def test_a_smaller_dense_model_is_a_row_beside_the_whole_one() -> None:
    path = Path(__file__).parents[1] / "reports/2026-11-28-epyc-2core/compress_lm.jsonl"
    run = read_run(path)
    (dense,) = (each for each in run.planned.values() if each.case.format == "dense")
    case = replace(dense.case, options={**dense.case.options, "depth": 0.4})
    assert dense.cost is not None
    few = replace(dense.cost, stored_bytes=dense.cost.stored_bytes * 2 // 10)
    run.planned[case.id] = replace(dense, case=case, cost=few)
    run.results += [replace(r, case=case.id) for r in run.results if r.case == dense.case.id]
    rows = numbered(report_rows(run))
    assert sorted(row.stored_ratio for row in rows if row.format == "dense") == [
        pytest.approx(0.2, abs=1e-6), 1.0,
    ]  # fmt: skip
    (found,) = _bytes.answers(rows)
    assert found.says == (
        "In 50 % of dense’s bytes, use dense, 40 % of its blocks (it takes 20 %): perplexity 26.3. "
        "Dense: 26.3."
    )


def test_scores_that_are_far_apart_have_a_logarithmic_axis() -> None:
    path = Path(__file__).parents[1] / "reports/2026-11-28-epyc-2core/compress_lm.jsonl"
    far = Page(html.render([read_run(path)])).data["specifications"]
    near = Page(html.render([rescored(run_of(questions()))])).data["specifications"]
    for charts, kind in ((far, "log"), (near, None)):
        drawn = [json.dumps(chart) for name, chart in charts.items() if name.startswith("error_")]
        assert drawn
        for chart in drawn:
            assert ("is better (log)" in chart) == (kind == "log")


def test_a_run_in_which_nothing_worked_says_why_first() -> None:
    page = Page(html.render([failed(run_of(questions()), Status.UNSUPPORTED, "Give --data.")]))
    assert page.shown.index("Unsupported: Give --data.") < page.shown.index("Every row One row")


def test_one_replicate_decides_nothing() -> None:
    page = Page(html.render([run_of(questions(), replicates=1)]))
    assert "At density 0.5, no setting is decided" in page.shown
    assert "one replicate decides nothing" in page.shown
    assert not any("best" in str(a.get("class")) for a in page.tags("td"))


def test_several_runs_stand_side_by_side_and_every_row_is_labelled() -> None:
    other = run_of(questions(), name="second", fingerprint={"device": {"name": "Accelerator X"}})
    page = Page(html.render([run_of(questions()), other]))
    assert [run["machine"] for run in page.data["runs"]] == [
        "Example Processor 9000",
        "Accelerator X",
    ]
    assert page.column("run").count(0) == page.column("run").count(1) == 99
    titles = [figure["title"] for figure in page.data["figures"]["density"]]
    question = "Forward, 1024×1024, 16 tokens, float32"
    assert titles[:2] == [f"{question}, Example Processor 9000", f"{question}, Accelerator X"]
    assert "On Accelerator X, at density 0.5, low_rank" in page.shown


def test_runs_of_one_machine_are_told_by_what_differs() -> None:
    made = [(2, "2.13.0", "linear"), (1, "2.13.0", "linear"), (2, "2.12.0", "linear"),
            (2, "2.13.0", "crossover"), (2, "2.13.0", "linear")]  # fmt: skip
    runs = []
    for number, (threads, torch, suite) in enumerate(made):
        facts = {"threads": threads, "torch": torch, "device": {"name": "Processor (R)"}}
        run = run_of(questions(), name=f"run-{number}", fingerprint=facts)
        run.header = replace(run.header, suite=suite)
        runs.append(run)
    assert _facts.machines(runs[:2]) == ["Processor (R) (2 threads)", "Processor (R) (1 thread)"]
    assert _facts.machines(runs[::2]) == [
        "Processor (R) (torch 2.13.0, run-0)",
        "Processor (R) (torch 2.12.0)",
        "Processor (R) (torch 2.13.0, run-4)",
    ]
    assert len(set(_facts.machines(runs))) == 5
    assert _facts.machines(runs)[3] == "Processor (R) (2 threads, torch 2.13.0, crossover)"
    assert html._title(runs, []) == "linear and crossover on 1 machine, 5 runs"


def test_processors_of_one_name_are_machines_of_their_own() -> None:
    made = [("25", "1", 2), ("25", "17", 2), ("26", "2", 2), ("25", "1", 8), ("25", "1", 2)]
    runs = []
    for number, (family, model, cores) in enumerate(made):
        device = {"name": "Processor (R)", "family": family, "model": model, "cores": cores}
        facts = {"threads": 2, "torch": "2.13.0", "device": device}
        runs.append(run_of(questions(), name=f"run-{number}", fingerprint=facts))
    names = ["Processor (R) (family 25, model 1)", "Processor (R) (family 25, model 17)",
             "Processor (R) (family 26, model 2)"]  # fmt: skip
    assert _facts.machines(runs[:3]) == _facts.devices(runs[:3]) == names
    assert versus.labels(runs[:3]) == names
    assert _facts.machines([runs[0], runs[3]]) == [f"Processor (R) ({n} cores)" for n in (2, 8)]
    # Cores are those that a run may use: with --cores one machine has runs with one and with two.
    assert html._title(runs, []) == "linear on 3 machines, 5 runs"
    assert html._title(runs[:3], names) == "linear on 3 machines, 3 runs"
    assert len(set(_facts.machines(runs))) == 5


def test_machines_of_one_name_are_told_apart() -> None:
    page = Page(html.render([run_of(questions(), name="a"), run_of(questions(), name="b")]))
    assert [run["machine"] for run in page.data["runs"]] == [
        "Example Processor 9000 (a)",
        "Example Processor 9000 (b)",
    ]


@pytest.mark.heavy
def test_twenty_thousand_rows_stay_small() -> None:
    shapes = [(256 * a, 256 * b) for a in range(1, 12) for b in range(1, 10)]
    run = run_of(questions(shapes=shapes, tokens=(1, 16, 64, 256, 1024)))
    text = html.render([run])
    assert len(text.encode()) < 3_000_000
    page = Page(text)
    assert len(page.column("case")) == len(run.planned) > 19_000
    assert page.column("case") == list(run.planned)
    assert "The remaining 942 settings are in who wins where" in page.shown


def test_no_text_of_the_page_s_own_files_spans_lines_or_looks_like_a_comment() -> None:
    """Indents and lines of comment are taken out of them, which would change such a text."""
    for name in ("page.css", *html._SCRIPTS):
        text = (html._TEMPLATES / name).read_text(encoding="utf-8")
        odd = [line for line in text.splitlines() if line.count("`") % 2]
        assert not odd, f"{name}: {odd[0]}"
        assert len(html._lean(name)) < len(text)
