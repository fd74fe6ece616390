"""Figures for papers: what stands in them, their options, and the words for their captions."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from _check import Call, kept
from _synthetic import linear_case, projection_case, questions, run_of
from _tiers import sampled
from matplotlib.figure import Figure
from matplotlib.text import Text

from hwbench.errors import SuiteError, UnknownNameError, UsageError
from hwbench.report import _caption, _paper, _paper_heat, figures
from hwbench.report._heat import shade
from hwbench.report._paper import Looks, Sheet
from hwbench.report.rows import DENSE, known, relative, report_rows
from hwbench.store import Run, read_run

ROOT = Path(__file__).parents[1]


FEW = ("dense", "semi_structured", "low_rank", "monarch", "csr")
CASES = [case for case in questions() if case.format in FEW]


@pytest.fixture(scope="module")
def run() -> Run:
    return run_of(CASES)


@pytest.fixture(scope="module")
def second() -> Run:
    return run_of(CASES, name="another")


@pytest.fixture(scope="module")
def crossover() -> Run:
    """A suite like `crossover`: many densities at one token count, one density at others."""
    return read_run(Path(__file__).parent / "golden/runs/crossover.jsonl")


def titles(figure: Figure) -> list[str]:
    found = [ax.get_title(loc="left") or ax.get_title() for ax in figure.axes if ax.get_visible()]
    return [" ".join(title.split()) for title in found]


def words(figure: Figure) -> list[str]:
    return [text.get_text() for ax in figure.axes for text in ax.texts]


_DRAWN: dict[Any, tuple[list[Run], Figure]] = {}  # the runs are kept: their ids are the key


def drawn(kind: str, runs: list[Run], filtered: str = "", **asked: Any) -> Figure:
    key = kind, *map(id, runs), filtered, *asked.items()
    if key not in _DRAWN:
        with figures.styled():
            figure = figures.KINDS[kind](figures.drawn_rows(runs, filtered), Sheet(**asked))
            figure.draw_without_rendering()
        _DRAWN[key] = runs, figure
    return _DRAWN[key][1]


# --- the five kinds -----------------------------------------------------------------------------


def test_a_crossover_of_one_density_is_drawn_against_tokens(crossover: Run) -> None:
    figure = drawn("crossover", [crossover])
    labels = [ax.get_xlabel() for ax in figure.axes if ax.get_visible()]
    rows = [row for row in report_rows(crossover) if relative(row) is not None]
    alone = {
        row.tokens
        for row in rows
        if len({r.density_word for r in rows if r.group == row.group and r.format != DENSE}) == 1
    }
    assert alone, "the stored run has no group of one density, so this shows nothing"
    assert "tokens" in labels
    for ax in figure.axes:
        if ax.get_visible() and ax.get_xlabel() != "tokens":
            across = {round(float(x), 6) for line in ax.lines for x in line.get_xdata()[:1]}
            assert len(across) > 2, "a panel holds one density"


def test_two_points_are_no_curve(run: Run) -> None:
    """The made-up suite has three densities; with two of them nothing is joined."""

    def joined(filtered: str) -> int:
        figure = drawn("crossover", [run], filtered)
        return sum(len(set(line.get_xdata())) > 2 for ax in figure.axes for line in ax.lines)

    assert joined("format=low_rank") > 0
    cases = [linear_case("dense", None), *(linear_case("low_rank", d) for d in (0.5, 0.1))]
    figure = drawn("crossover", [run_of(cases)])
    across = [line for ax in figure.axes for line in ax.lines if len(set(line.get_xdata())) > 1]
    assert [list(line.get_xdata()) for line in across] == [[0, 1]]  # the line of dense alone


def test_the_front_says_the_density_of_every_point(run: Run) -> None:
    figure = drawn("pareto", [run])
    told = words(figure)
    pairs = [row for row in report_rows(run) if not row.scored and row.format != DENSE]
    for row in pairs:
        if relative(row) is not None and known(row.density):
            assert any(word.startswith(f"{row.density:.3g}") for word in told), row.case


def test_marks_at_an_error_of_zero_are_whole() -> None:
    exact = run_of(case for case in questions(tokens=(16,)) if case.format in FEW)
    for result in exact.results:
        if result.case.startswith("projection") and "csr" in result.case:
            result.measurements[0].values[:] = [0.0]
    (ax, *_) = drawn("pareto", [exact]).axes
    assert ax.get_ylim()[0] == 0
    lines = [line for line in ax.lines if line.get_marker() not in (None, "None", "")]
    assert any(0 in line.get_ydata() for line in lines)
    assert not any(line.get_clip_on() for line in lines)


def test_what_the_scores_are_of_stands_once_below(run: Run) -> None:
    figure = drawn("pareto", [run])
    (heading,) = [legend.get_title().get_text() for legend in figure.legends]
    assert "512×512" in heading or "1024×1024" in heading
    assert "synthetic" in " ".join(heading.split())
    assert {ax.get_ylabel() for ax in figure.axes if ax.get_visible()} == {
        "projection error (lower is better)"
    }


def test_passes_and_tokens_are_panels_of_the_roofline(run: Run) -> None:
    told = titles(drawn("roofline", [run]))
    assert len(told) == len(set(told)) == 4
    assert all("tokens" in title for title in told)


def test_a_point_above_the_roof_has_a_name(run: Run) -> None:
    above = [row for row in report_rows(run) if row.placement and row.efficiency > 1]
    told = words(drawn("roofline", [run]))
    for row in above:
        assert any(word.startswith(row.format) for word in told), row.case
    fast = run_of([linear_case("dense", None), linear_case("low_rank", 0.5)])
    for result in fast.results:
        for each in result.measurements:
            if each.quantity == "time_seconds":
                each.values[:] = [value / 1000 for value in each.values]
    assert "low_rank" in words(drawn("roofline", [fast]))


def test_the_slope_of_a_roof_and_its_word_run_alike(run: Run) -> None:
    figure = drawn("roofline", [run])
    for ax in figure.axes:
        (copy,) = [text for text in ax.texts if text.get_text().endswith("copy")]
        assert 10 < copy.get_rotation() < 80


def test_the_map_is_grey_where_the_page_is(run: Run) -> None:
    figure = drawn("heatmap", [run])
    faces = [patch.get_facecolor() for ax in figure.axes for patch in ax.patches]
    rows = [row for row in report_rows(run) if row.format != DENSE and relative(row) is not None]
    assert len(faces) == len(rows)
    from matplotlib.colors import to_rgba

    grey = to_rgba(_paper_heat._COLOURS["even"])
    assert faces.count(grey) == sum(shade(row) == "even" for row in rows)


def test_the_colours_of_the_map_are_those_of_the_page() -> None:
    css = (ROOT / "hwbench/report/templates/page.css").read_text(encoding="utf-8")
    page = {
        name: colour if len(colour) > 4 else "#" + "".join(2 * c for c in colour[1:])
        for name, colour in re.findall(r"--h-(\w+): light-dark\((#\w+),", css)
    }
    assert page == _paper_heat._COLOURS


def _lab(colour: str) -> tuple[float, float, float]:
    """A colour in CIELAB, in which distances are about those that are seen."""
    full = colour[1:] if len(colour) > 4 else "".join(2 * c for c in colour[1:])
    shares = [int(full[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    r, g, b = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
    x = (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.95047
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    z = (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.08883
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def test_neighbouring_shades_of_the_map_are_told_apart_in_both_themes() -> None:
    css = (ROOT / "hwbench/report/templates/page.css").read_text(encoding="utf-8")
    shades = re.findall(r"--h-(\w+): light-dark\((#\w+), (#\w+)\)", css)
    assert len(shades) == 9
    for (name, *ours), (other, *theirs) in pairwise(shades):
        for one, two in zip(ours, theirs, strict=True):
            assert math.dist(_lab(one), _lab(two)) > 8, (name, other, one, two)


def test_little_of_a_map_is_empty(crossover: Run) -> None:
    figure = drawn("heatmap", [crossover])
    empty = sum(text.get_text() == "·" for ax in figure.axes for text in ax.texts)
    full = sum(len(ax.patches) for ax in figure.axes)
    assert full
    assert empty <= full


def test_columns_of_a_map_say_only_what_tells_them_apart(run: Run) -> None:
    (ax, *_) = drawn("heatmap", [run]).axes
    heads = [label.get_text() for label in ax.get_xticklabels()]
    assert len(set(heads)) == len(heads)
    assert not any("1024×1024" in head or "float32" in head for head in heads)


def test_ticks_of_time_have_units_and_every_short_axis_several(run: Run) -> None:
    figure = drawn("scaling", [run])
    for ax in figure.axes:
        if ax.get_visible():
            low, high = ax.get_ylim()
            ticks = [tick for tick in ax.get_yticks() if low <= tick <= high]
            assert len(ticks) >= 3
            shown = [label.get_text() for label in ax.get_yticklabels()]
            assert all(re.fullmatch(r"[\d.]+ (ns|µs|ms|s)", text) for text in shown), shown


def test_what_has_no_other_density_is_named_with_the_one_that_it_has() -> None:
    cases = [
        linear_case(name, density, tokens=tokens)
        for name, density in (("dense", None), ("two_four_training", None), ("btt", 0.5))
        for tokens in (16, 256)
    ]
    said = " ".join(text.get_text() for text in drawn("scaling", [run_of(cases)]).findobj(Text))
    assert "dense at density 1.00 and two_four_training at density 0.495" in " ".join(said.split())


def test_panels_of_two_experiments_are_told_apart() -> None:
    cases = [linear_case("dense", None), linear_case("low_rank", 0.5), linear_case("btt", 0.5)]
    cases += [
        projection_case(name, 0.5, matrix=matrix)
        for matrix in ("gaussian", "power_law")
        for name in ("low_rank", "btt")
    ]
    axes = drawn("pareto", [run_of(cases)]).axes
    titles = [title for ax in axes if (title := ax.get_title(loc="left") or ax.get_title())]
    assert len(titles) == len(set(titles)) == 2
    assert any("gaussian" in title for title in titles)


def test_both_axes_of_a_roofline_have_several_ticks(run: Run) -> None:
    for ax in drawn("roofline", [run]).axes:
        if ax.get_visible():
            for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
                labels = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
                shown = [text.get_text() for at, text in labels if low <= at <= high]
                assert len([text for text in shown if text]) >= 3, shown


@pytest.mark.parametrize("kind", sorted(figures.KINDS))
def test_formats_stand_in_one_order_in_every_legend(run: Run, kind: str) -> None:
    order = list(dict.fromkeys(row.format for row in report_rows(run)))
    if kind == "heatmap":
        return
    (legend,) = drawn(kind, [run]).legends
    told = [text.get_text() for text in legend.get_texts()]
    assert told == [name for name in order if name in told]


def test_kernels_of_one_format_are_told_apart() -> None:
    packed = [
        linear_case("packed_dense", None, knobs={"kernel": name}) for name in ("mkl", "onednn")
    ]
    rows = report_rows(run_of([linear_case("dense", None), *packed]))
    looks = Looks(rows)
    ours = [row for row in rows if row.format == "packed_dense"]
    assert [looks.kernel(row) for row in ours] == ["mkl", "onednn"]
    assert looks.dash(ours[0]) != looks.dash(ours[1])
    assert looks.kernel(rows[0]) == ""


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sampled(["pareto", "crossover", "roofline"], 3))
def test_one_panel_by_its_number_or_a_part_of_its_title(run: Run, kind: str) -> None:
    told = titles(drawn(kind, [run]))
    assert titles(drawn(kind, [run], panels=("2",))) == [told[1]]
    some = titles(drawn(kind, [run], panels=("16 TOKENS",)))
    assert some == [title for title in told if " 16 tokens" in title]


@pytest.mark.parametrize("asked", ["0", "99", "300 tokens", ""])
def test_a_panel_that_is_not_there_is_a_sentence_with_those_that_are(run: Run, asked: str) -> None:
    for kind in figures.KINDS:
        with pytest.raises(UsageError, match=r"has no panel .*; it has: 1 Forward, "):
            drawn(kind, [run], panels=(asked,))


def test_a_legend_shows_what_its_panels_show(run: Run) -> None:
    figure = drawn("crossover", [run], "format=monarch", panels=("1",))
    told = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert told == ["monarch"]


@pytest.mark.heavy
def test_the_title_replaces_that_of_one_panel_and_stands_above_several(run: Run) -> None:
    assert titles(drawn("crossover", [run], panels=("1",), title="A & B")) == ["A & B"]
    assert titles(drawn("crossover", [run], panels=("1",), title="")) == [""]
    several = drawn("crossover", [run], title="All of it")
    assert several.get_suptitle() == "All of it"
    assert all(titles(several))


@pytest.mark.parametrize(("width", "across"), sampled([(3.35, 1), (6.9, 2), (10.0, 3)], 3))
def test_the_width_is_that_of_the_figure(run: Run, width: float, across: int) -> None:
    figure = drawn("crossover", [run], width=width)
    assert figure.get_figwidth() == width
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert len({ax.get_subplotspec().colspan.start for ax in shown}) == across


@pytest.mark.parametrize(
    ("kind", "width"),
    sampled(
        [
            ("scaling", 3.35),
            ("crossover", 3.35),
            ("pareto", 3.35),
            ("pareto", 6.9),
            ("roofline", 2.5),
        ],
        5,
    ),
)
def test_no_legend_is_wider_than_the_figure(run: Run, second: Run, kind: str, width: float) -> None:
    figure = drawn(kind, [run, second], width=width)
    for legend in figure.legends:
        box = legend.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1 + 1


def test_the_filter_is_that_of_run_and_keeps_scores(run: Run) -> None:
    rows = figures.drawn_rows([run], "format=monarch,direction=forward")
    timed = [row for row in rows if not row.scored]
    assert {(row.format, row.direction) for row in timed} == {("monarch", "forward")}
    assert any(row.scored for row in rows)
    assert titles(drawn("pareto", [run], "format=monarch,direction=forward"))
    with pytest.raises(SuiteError, match="leaves no case"):
        figures.drawn_rows([run], "format=absent")
    with pytest.raises(UnknownNameError, match="key of --filter"):
        figures.drawn_rows([run], "formt=monarch")


def test_a_filter_may_leave_one_of_two_runs_empty(run: Run) -> None:
    other = run_of([linear_case("dense", None), linear_case("low_rank", 0.5)], name="other")
    rows = figures.drawn_rows([run, other], "format=monarch")
    assert {row.run for row in rows if not row.scored} == {0}


@pytest.mark.heavy
def test_runs_share_panels_and_are_told_apart_by_their_marks(run: Run, second: Run) -> None:
    one, both = drawn("crossover", [run]), drawn("crossover", [run, second])
    assert titles(one) == titles(both)
    looks = Looks(figures.drawn_rows([run, second]))
    (legend,) = both.legends
    told = [" ".join(text.get_text().split()) for text in legend.get_texts()]
    for machine in looks.runs.values():
        assert machine in told
    faces = {
        line.get_markerfacecolor()
        for line in both.axes[0].lines
        if line.get_marker() == looks.styles["monarch"].marker
    }
    assert faces == {looks.styles["monarch"].light, "white"}


def test_more_runs_than_marks_are_a_sentence(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one to 4 runs, not 5"):
        figures.plot([run] * 5, "crossover", tmp_path / "figure.svg")
    assert len(_caption.FILLED) == len(_paper.FILLS)


@pytest.mark.parametrize("width", [0.5, 1000.0, float("nan")])
def test_a_width_of_no_page_is_a_sentence(run: Run, tmp_path: Path, width: float) -> None:
    with pytest.raises(UsageError, match="2 to 40 inches wide"):
        figures.plot(run, "crossover", tmp_path / "figure.svg", Sheet(width=width))


# --- labels and captions ------------------------------------------------------------------------


def test_labels_do_not_cover_each_other() -> None:
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=(4, 3), layout="constrained")
    ax = figure.subplots()
    rows = report_rows(run_of([linear_case("low_rank", 0.5)]))
    looks = Looks(rows)
    for number in range(4):
        looks.mark(ax, rows[0], 1 + number / 200, 1.0)
        looks.say(ax, rows[0], 1 + number / 200, 1.0, "0.5")
    ax.set(xlim=(0, 2), ylim=(0, 2))
    _paper.place(figure, looks)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == 4
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])


def test_a_caption_names_machine_versions_and_marks(run: Run) -> None:
    one = figures.caption(run, "pareto")
    facts = run.header.environment.fingerprint
    for word in (run.header.machine, facts["torch"], run.header.version, run.header.run):
        assert str(word) in one
    assert "hollow" not in one
    both = figures.caption([run, run_of(questions(), name="another")], "pareto", "format=a*")
    assert "hollow" in both
    assert "'format=a*'" in both
    assert set(_caption.WHAT) == set(figures.KINDS)


def test_a_caption_steers_no_terminal() -> None:
    hostile = run_of(questions(), name="a\x1b]0;b\nc")
    assert "\x1b" not in figures.caption(hostile, "crossover")


def test_the_verb_writes_figure_and_caption(hwbench: Call, tmp_path: Path) -> None:
    name = kept(run_of(questions(projection=False, tokens=(16,))), tmp_path)
    target = tmp_path / "figure.svg"
    options = ["--filter", "format=monarch", "--panel", "1", "--width", "column", "--title", "T"]
    code, said, _ = hwbench(
        "plot", name, name, "--kind", "crossover", "--out", str(target), *options
    )
    assert code == 0
    assert "figure.caption.txt" in said
    text = (tmp_path / "figure.caption.txt").read_text(encoding="utf-8")
    assert "format=monarch" in text
    assert target.read_text(encoding="utf-8").startswith("<?xml")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--width", "wide"], "--width is column, text, or a number of inches"),
        (["--panel", "7"], "has no panel '7'"),
        (["--filter", "format=absent"], "leaves no case"),
        (["--width", "nan"], "inches wide"),
    ],
)
def test_what_cannot_be_drawn_leaves_no_file(
    hwbench: Call, tmp_path: Path, options: list[str], said: str
) -> None:
    name = kept(run_of(questions(projection=False, tokens=(16,))), tmp_path)
    target = tmp_path / "figure.svg"
    code, _, error = hwbench("plot", name, "--kind", "crossover", "--out", str(target), *options)
    assert code == 2
    assert said in error
    assert not list(tmp_path.glob("figure*"))


@pytest.mark.heavy
@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests/golden/runs").glob("*.jsonl")), ids=lambda path: path.stem
)
def test_every_stored_run_is_drawn_or_says_why_not(path: Path) -> None:
    """Runs that were cut off, that failed, whose machine was never quiet, of other packages."""
    stored = read_run(path)
    refused = []
    for kind in figures.KINDS:
        try:
            assert drawn(kind, [stored]).axes
        except UsageError as error:
            refused.append(str(error))
    assert all(said.startswith(("The run has no", "Scaling needs")) for said in refused)
    assert len(refused) < len(figures.KINDS) or path.stem == "scored"
