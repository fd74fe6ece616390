"""What the page draws and says beside the answers: crossings, questions, costs, samples."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Sequence
from itertools import pairwise

import pytest
from _synthetic import linear_case, projection_case, questions, rescored, run_of, scored_case
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from hwbench import plugins, units
from hwbench.analysis.quiet import Counted
from hwbench.analysis.stats import median
from hwbench.errors import UsageError
from hwbench.records import Measurement, Reference
from hwbench.report import (
    _answers,
    _bytes,
    _charts,
    _costs,
    _crossing,
    _density,
    _facts,
    _heat,
    _paper_sweeps,
    _questions,
    _samples,
    _sections,
    _trade,
    _versus,
    _views,
    html,
    text,
    versus,
)
from hwbench.report import _words as words
from hwbench.report._palette import styles
from hwbench.report._paper import Sheet
from hwbench.report._scores import named, scores
from hwbench.report.rows import Row
from hwbench.store import Run
from hwbench.workloads._base import Workload

NAN = math.nan


def test_what_is_drawn_without_a_knob_is_not_said_to_be_missing() -> None:
    figure = _views.Figure("pareto", "Forward", "A sentence.", [0])
    assert figure.heading == ""
    figure.aside = [("low_rank kernel=mkl", "drawn; set aside to make the pair: kernel")]
    assert figure.heading == "1 matched without one of the knobs"
    figure.alone = [("semi_structured", "not timed"), ("csr", "not timed")]
    assert (
        figure.heading
        == "2 not drawn: no matching score or time, 1 matched without one of the knobs"
    )
    assert figure.packed()["alone"] == [*figure.alone, *figure.aside]


def rows_of(run: Run) -> list[Row]:
    return html._rows([run], ["somewhere"])


def asked(run: Run) -> dict[str, list[str]]:
    rows = rows_of(run)
    found = _questions.questions(rows, [j for j in _trade.joins(rows) if _trade.drawable(j)])
    return {q.text: [_answers.plain(sentence) for sentence in q.sentences] for q in found}


# shares of dense's bytes


def stored_run(name: str = "here", faster: str = "low_rank") -> Run:
    """Two formats, whose densities differ, at two shares of dense's bytes and token counts."""
    run = run_of(
        [
            linear_case(each, None, tokens=tokens, knobs=knobs)
            for tokens in (16, 256)
            for each, knobs in [
                ("dense", {}),
                *(
                    (each, {"stored": share})
                    for each in ("low_rank", "csr")
                    for share in (0.5, 0.2)
                ),
            ]
        ],
        name=name,
    )
    for result in run.results:
        relative = {"dense": 1.0, faster: 0.5}.get(run.planned[result.case].case.format, 0.8)
        for measured in result.measurements:
            if measured.quantity == "relative_time":
                measured.values[:] = [relative + 0.001 * result.replicate]
            elif measured.quantity == "time_seconds":
                measured.values[:] = [relative * 1e-3 for _ in measured.values]
    return run


def test_formats_of_one_share_of_bytes_stand_together() -> None:
    rows = rows_of(stored_run())
    densities = {row.format: row.density for row in rows}
    assert densities["low_rank"] != densities["csr"]
    for draw, most in ((_density.winners, 4), (_density.sweeps, 2 * 2)):
        found = draw(rows)
        assert len(found) == 2, "one a share"
        for figure, share in zip(found, ("0.5", "0.2"), strict=True):
            assert figure.title.endswith(f", {share} of dense's bytes")
            assert {rows[number].format for number in figure.rows} == {"low_rank", "csr"}
            assert len(figure.rows) == most
    table = _heat.heat(rows)
    assert table.densities == ["0.5 stored", "0.2 stored"] * 2
    assert all(cell.text for _, cells in table.lines for cell in cells)


def test_the_first_of_a_share_of_bytes_is_compared_between_runs() -> None:
    here, there = (rows_of(stored_run(name, name)) for name in ("low_rank", "csr"))
    found = _versus.Versus("here", "there")
    pairs = [(a, b) for a, b in zip(here, there, strict=True) if a.format != "dense"]
    _versus._flips(found, "Forward", [pair for pair in pairs if pair[0].tokens == 16])
    assert found.compared == len(found.flips) == 2
    assert versus.flips(found)[0].startswith("Forward, 0.5 of dense's bytes: low_rank on here, csr")


def test_a_table_holds_densities_then_shares_then_what_has_neither() -> None:
    words = ["", "0.2", "0.2 stored", "1", "0.05", "0.5 stored"]
    assert sorted(words, key=_heat._place) == ["1", "0.2", "0.05", "0.5 stored", "0.2 stored", ""]


def test_a_sweep_on_paper_is_of_one_share(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[set[float], str]] = []
    monkeypatch.setattr(
        _paper_sweeps,
        "_sweep",
        lambda rows, looks: drawn.append(
            ({row.asked_stored for row in rows if row.format != "dense"}, _paper_sweeps._at(rows))
        ),
    )
    monkeypatch.setattr(_paper_sweeps, "paneled", lambda panels, looks, sheet, notes: None)
    _paper_sweeps.scaling(rows_of(stored_run()), Sheet())
    ((shares, title),) = drawn
    assert shares == {0.5}
    assert "0.5 of dense's bytes" in title


# crossings


def test_a_map_of_winners_has_several_settings_and_names_densities_that_were_not_asked_for() -> (
    None
):
    cases = [
        linear_case(name, density, tokens=tokens)
        for name, density in (("dense", None), ("low_rank", 0.5), ("btt", 0.5))
        for tokens in (16, 256)
    ]
    rows = rows_of(run_of(cases))
    rows = [replace(row, density=0.3) if row.format == "btt" else row for row in rows]
    (found,) = _density.winners(rows)
    best = min((row for row in rows if row.format != "dense"), key=lambda row: row.relative_time)
    name = {"btt": "btt (density 0.3)", "low_rank": "low_rank"}[best.format]
    assert f"the best is {name}, " in found.says
    assert _density.winners([row for row in rows if row.tokens == 16]) == []


def test_bytes_that_are_the_same_everywhere_are_said_to_be() -> None:
    rows = rows_of(run_of([linear_case("dense", None), linear_case("low_rank", 0.5)]))
    stored, *_ = _costs.memory(rows)
    assert stored.says.startswith("Least: low_rank density=0.5 2.08 MB (0.495× of dense); most:")
    stored, *_ = _costs.memory([replace(row, stored_bytes=4194304) for row in rows])
    assert stored.says == "The same in all 2 cases: 4.19 MB."


def test_a_crossing_lies_between_its_points_on_logs() -> None:
    found = _crossing.wins([(0.1, 0.5, 0.4, 0.6), (0.4, 2.0, 1.8, 2.2)])
    assert found is not None
    (crossing,) = found.crossings
    assert crossing.at == pytest.approx(0.2)
    assert crossing.below
    assert crossing.low < crossing.at < crossing.high
    assert found.in_words().startswith("below 0.200 (0.1")


def test_a_format_that_wins_with_many_tokens_wins_above() -> None:
    found = _crossing.wins([(16, 2.0, 1.9, 2.1), (256, 0.5, 0.48, 0.53)])
    assert found is not None
    assert found.in_words(" tokens").startswith("above 64.0 tokens (58")


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ((2.0, NAN, NAN), (0.5, NAN, NAN), "undecided"),
        ((1.1, 0.9, 1.3), (0.9, 0.7, 1.1), "undecided"),
        ((1.1, 1.05, 1.2), (0.9, 0.7, 1.1), "undecided at 256"),
    ],
)
def test_two_noisy_points_make_no_crossing(
    first: tuple[float, float, float], second: tuple[float, float, float], said: str
) -> None:
    found = _crossing.wins([(16.0, *first), (256.0, *second)])
    assert found is not None
    assert found.crossings == []
    assert found.in_words() == said
    between = _crossing.wins([(4.0, 3.0, 2.9, 3.1), (16.0, *first), (256.0, *second)])
    assert between is not None
    assert between.in_words() == {"undecided": "undecided from 16 on"}.get(said, said)
    known = [(4.0, 3.0, 2.9, 3.1), (16.0, *first), (256.0, *second), (512.0, 0.3, 0.2, 0.4)]
    assert len((_crossing.wins(known) or found).crossings) == 1


@pytest.mark.parametrize(("times", "said"), [((0.4, 0.5), "everywhere"), ((2, 3), "nowhere")])
def test_without_a_crossing_it_is_said_on_which_side_all_lie(
    times: tuple[float, float], said: str
) -> None:
    curve = [(x, time, 0.9 * time, 1.1 * time) for x, time in zip((0.1, 0.5), times, strict=True)]
    found = _crossing.wins(curve)
    assert found is not None
    assert found.in_words() == f"{said} measured"
    alone = _crossing.wins([(x, time, NAN, NAN) for x, time, _, _ in curve])
    assert alone is not None
    assert alone.in_words() == "undecided", "a point without an interval decides nothing"


@pytest.mark.parametrize(
    ("unclear", "said"),
    [
        ((False, True), "at 0.100, undecided at 0.400"),
        ((True, False), "at 0.400, undecided at 0.100"),
        ((False, False, True), "up to 0.400, undecided at 1.60"),
        ((True, False, False), "from 0.400 on, undecided at 0.100"),
        ((False, True, False), "at 0.100 and 1.60, undecided at 0.400"),
        (
            (False, True, False, True, False),
            "at 0.100, 1.60 and 25.6, undecided at 0.400 and 6.40",
        ),
        ((True, True), "undecided"),
    ],
)
def test_where_a_format_is_not_significantly_faster_it_is_not_said_to_win(
    unclear: tuple[bool, ...], said: str
) -> None:
    """Whatever the estimates say: all of them are below one here."""
    curve = [(0.1 * 4**n, 0.9, 0.85, 1.05 if wide else 0.95) for n, wide in enumerate(unclear)]
    found = _crossing.wins(curve)
    assert found is not None
    assert found.in_words() == said


def test_counts_of_tokens_are_said_whole() -> None:
    curve = [(1.0, 0.9, 0.8, 1.1), (16.0, 0.5, 0.4, 0.6), (4096.0, 0.9, 0.8, 1.1)]
    found = _crossing.wins(curve)
    assert found is not None
    assert found.in_words(" tokens") == "at 16 tokens, undecided at 1 and 4096 tokens"


def test_noise_between_two_clear_points_makes_one_crossing_whose_interval_holds_it() -> None:
    curve = [(0.1, 0.5, 0.4, 0.6), (0.2, 1.1, 0.9, 1.3), (0.3, 0.9, 0.8, 1.1), (0.4, 2.0, 1.8, 2.2)]
    found = _crossing.wins(curve)
    assert found is not None
    (crossing,) = found.crossings
    assert crossing.low <= 0.2 < crossing.at < 0.3 <= crossing.high


def test_one_point_crosses_nothing() -> None:
    assert _crossing.wins([(0.5, 0.5, 0.4, 0.6)]) is None


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.1, 10)), min_size=2, max_size=8))
def test_every_crossing_is_where_the_side_changes(points: list[tuple[float, float]]) -> None:
    curve = sorted({x: y if y != 1 else 1.01 for x, y in points}.items())
    found = _crossing.wins([(x, y, y, y) for x, y in curve])
    changes = sum((a < 1) != (b < 1) for (_, a), (_, b) in pairwise(curve))
    if found is None:
        assert len(curve) < 2
    else:
        assert len(found.crossings) == changes
        assert all(curve[0][0] <= c.at * 1.001 and c.at <= curve[-1][0] * 1.001
                   for c in found.crossings)  # fmt: skip


def test_packing_is_repaid_by_the_time_it_saves() -> None:
    assert _crossing.repaid(2.0, 0.5, 0.3) == pytest.approx(10)
    assert _crossing.repaid(2.0, 0.5, 0.6) is None


def test_packing_is_only_told_where_it_was_measured_at_the_shape() -> None:
    cases = [linear_case("dense", None), linear_case("btt", 0.5), linear_case("btt", 0.1)]
    elsewhere = run_of([*cases, projection_case("btt", 0.1)])
    assert not _density.starts(rows_of(elsewhere)).packed
    here = run_of([*cases, projection_case("btt", 0.1, shape=(1024, 1024))])
    for result in here.results:
        if result.case.startswith("projection"):
            result.measurements.append(
                Measurement(quantity="prepare_seconds", unit="s", values=[3.0])
            )
    ((_, line),) = _density.starts(rows_of(here)).lines
    assert line[-1].endswith("calls (0.099)")


# questions


def test_what_keeps_the_accuracy_is_named_with_its_range() -> None:
    found = asked(run_of(questions()))["Which format is the fastest at the accuracy I need?"]
    assert found[0] == ("With projection error of at most 0.05: dense, nothing faster is as good.")
    assert any("monarch density=0.5 in 4 of 4 settings" in sentence for sentence in found)


def test_a_score_has_its_name_unit_and_direction_wherever_it_stands() -> None:
    run = rescored(run_of(questions()))
    fastest, per_byte = list(asked(run).values())[:2]
    assert fastest[0] == "With PSNR of at least 40 dB: dense, nothing faster is as good."
    assert fastest[1].startswith("With PSNR of at least 30 dB: monarch density=0.5 in 4 of 4")
    assert per_byte[0].startswith("In 50 % of dense’s bytes: blast density=0.5, PSNR 35.3 dB on")
    rows = rows_of(run)
    (pareto, *_) = [_trade.pareto(join) for join in _trade.joins(rows)]
    assert pareto.kind == "pareto psnr_db"
    assert re.search(r"from \w+ density=0\.5 \(0.* of dense, PSNR \d\d\.\d dB\) to", pareto.says)
    (by_density, _) = _trade.errors(rows)
    assert by_density.title.endswith(": PSNR, by parameters kept")
    assert by_density.says.startswith("Best PSNR: ")
    told = _trade.trade(_trade.joins(rows)[0])
    assert told.heads[0] == "PSNR (dB) at least"
    assert [float(line[0]) for line in told.lines] == sorted(
        [float(line[0]) for line in told.lines], reverse=True
    )
    axes = json.dumps(_charts.specifications(styles(["btt"]), scores(rows).values()))
    assert axes.count("PSNR (dB), higher is better") >= 3
    assert "error" not in " ".join([*fastest, *per_byte, pareto.says, by_density.says])


def test_errors_of_gaussian_matrices_stand_beside_the_closed_forms() -> None:
    gaussian = [projection_case("coo", each, matrix="gaussian") for each in (0.5, 0.1)]
    by_density, by_bytes, *others = _trade.errors(
        rows_of(run_of([*gaussian, projection_case("coo", 0.1), projection_case("btt", 0.5)]))
    )
    *curve, two_four = by_density.packed()["closed"]
    assert curve[0]["density"] == pytest.approx(0.1, abs=0.01)  # the least that is drawn
    assert (curve[-1]["density"], curve[-1]["score"]) == (1, 0)
    assert all(a["score"] > b["score"] for a, b in pairwise(curve))
    near = min(curve, key=lambda each: abs(each["density"] - 0.3))  # the error at 0.3 is 0.4655
    assert near["score"] == pytest.approx(0.4655, abs=0.03)
    assert (two_four["density"], two_four["score"]) == (0.5, pytest.approx(0.3636, abs=5e-4))
    assert [each["text"] for each in (*curve, two_four) if each["text"]] == [
        "unstructured, closed form", "2:4, closed form",
    ]  # fmt: skip
    assert "closed forms" in by_density.note
    assert not any(figure.extra for figure in (by_bytes, *others))
    assert {figure.note for figure in (by_bytes, *others)} == {
        "Projection error (synthetic: ranks formats differently from trained weights)."
    }


def test_a_score_nobody_knows_is_shown_by_its_name() -> None:
    score = named("code_bleu", better="higher")
    assert score.axis == "code bleu, higher is better"
    assert score.amount(0.5) == "0.500"


def test_every_score_of_the_workloads_is_known() -> None:
    names = ("projection", "image", "compress", "training")
    found = [plugins.load("workloads", name, Workload).SCORE for name in names]
    for quantity in found:
        assert quantity
        score = named(quantity.name)
        assert (score.unit, score.better) == (quantity.unit, quantity.better)
        assert score.levels
    perplexity = named("perplexity")
    assert (perplexity.axis, perplexity.zero) == ("perplexity, lower is better", False)


def test_a_replicate_of_a_scored_case_is_a_seed() -> None:
    scored = run_of([projection_case("btt", 0.5)], replicates=5)
    assert _facts.counts(scored) == "1 case, 1 of 1 seed"
    timed = run_of([linear_case("btt", 0.5)], replicates=5)
    assert _facts.counts(timed) == "1 case, 5 of 5 replicates"
    both = run_of([linear_case("btt", 0.5), projection_case("btt", 0.5)], replicates=5)
    assert _facts.counts(both) == "2 cases, 5 of 5 replicates, 1 of 1 seed"


@pytest.mark.parametrize(
    ("asked", "made", "said"),
    [
        (4, 3, "1 case, 3 of 4 replicates"),
        (4, 4, "1 case, 4 of 4 replicates"),
        (4, 12, "1 case, 12 replicates (4 asked, 8 further)"),
        (1, 2, "1 case, 2 replicates (1 asked, 1 further)"),
    ],
)
def test_further_replicates_are_told_apart_from_those_asked_for(
    asked: int, made: int, said: str
) -> None:
    run = run_of([linear_case("btt", 0.5)], replicates=made)
    plan = replace(run.header.plan, replicates=asked)
    run.header = replace(run.header, plan=plan)
    assert _facts.counts(run) == said


def test_what_keeps_the_most_is_told_once_where_several_runs_say_the_same() -> None:
    cases = [linear_case("dense", None), linear_case("low_rank", 0.5)]
    cases += [projection_case(name, 0.5, shape) for name in ("low_rank", "csr")
              for shape in ((512, 512), (256, 256))]  # fmt: skip
    runs = [run_of(cases), run_of(cases, name="other")]
    rows = html._rows(runs, ["here", "there"])
    said = [_answers.plain(sentence) for sentence in _questions._per_byte(rows)]
    shares = [each for each in said if each.startswith("In ")]
    assert len(shares) == len(set(shares))
    assert {each.rpartition(", ")[2] for each in shares} == {"512×512.", "256×256."}


def test_two_four_is_counted_where_it_ran() -> None:
    run = run_of([linear_case("dense", None), linear_case("two_four_training", 0.5)])
    for result in run.results:
        for measured in result.measurements:
            if measured.quantity == "relative_time":
                measured.values[:] = [0.6 + 0.01 * result.replicate]
    (said,) = asked(run)["Where does 2:4 pay?"]
    assert said.startswith("Faster than dense in 1 of 1 cases (forward, 256 tokens), slower in 0")


def test_where_all_is_slower_dense_wins_and_is_said_to() -> None:
    run = run_of([linear_case("dense", None), linear_case("coo", 0.5), linear_case("csr", 0.5)])
    (said,) = asked(run)["Where does nothing beat dense?"]
    assert said == (
        "In 1 of 1 settings every format is slower than dense: Forward, 1024×1024, 256 tokens, "
        "float32."
    )


def test_where_nothing_is_decided_it_is_said() -> None:
    run = run_of([linear_case("dense", None), linear_case("btt", 0.5)], replicates=1)
    (said,) = asked(run)["Where does nothing beat dense?"]
    assert said.startswith(
        "In 1 of 1 settings no format is significantly faster than dense; in none"
    )


# what is one experiment, and what stands beside one another


def weighted_run(whole: Sequence[str] = ("none",)) -> Run:
    """Two formats fitted to three things, dense under some of them, and a dense of half depth."""
    cases = [
        scored_case("compress_lm", name, 64, density, weighting=weighting)
        for weighting in ("none", "activations", "gram")
        for name in ("csr", "n_m")
        for density in (0.5, 0.25)
    ]
    cases += [scored_case("compress_lm", "dense", 64, weighting=weighting) for weighting in whole]
    cases += [scored_case("compress_lm", "dense", 64, weighting="none", depth=0.5)]
    run = run_of(cases, replicates=1)
    for number, result in enumerate(run.results):
        read = Measurement(quantity="score", unit="", values=[20.0 + number], note="perplexity")
        result.measurements[:] = [read]
    for case, planned in run.planned.items():
        run.planned[case] = replace(planned, seeds=1)
    return run


@pytest.mark.parametrize("whole", [("none",), ("gram",), ("none", "activations", "gram")])
def test_weightings_and_depth_are_series_of_one_chart_as_they_are_of_one_answer(
    whole: Sequence[str],
) -> None:
    rows = rows_of(weighted_run(whole))
    by_density, by_bytes = _trade.errors(rows)
    (answer,) = _bytes.answers(rows)
    assert set(answer.groups) == {row.group_number for row in rows}
    for figure in (by_density, by_bytes):
        assert figure.rows == [row.number for row in rows]
        assert figure.title.startswith(f"{answer.title}: ")
        series = figure.own["series"]
        assert set(series) == {
            *("csr", "n_m", "csr, weighted by activations", "n_m, weighted by activations"),
            *(
                "csr, weighted by gram",
                "n_m, weighted by gram",
                "dense",
                "dense, 50 % of its blocks",
            ),
        }
        assert all(label.startswith(one.split(",")[0]) for label, one
                   in zip(figure.own["label"], series, strict=True))  # fmt: skip
    numbers = html._marks(rows, styles(row.format for row in rows))
    drawn = [numbers[one] for one in dict.fromkeys(series)]
    assert len({(style.path, style.css, variant) for style, variant in drawn}) == len(drawn) == 8


def test_without_a_whole_dense_weightings_stay_apart_in_charts_and_answers() -> None:
    rows = rows_of(weighted_run(whole=()))
    assert len(_trade.errors(rows)) == 2 * len({row.options for row in rows}) == 8


def test_rows_that_are_fitted_to_nothing_else_have_no_series_of_their_own() -> None:
    assert [figure.own for figure in _trade.errors(rows_of(run_of(questions())))] == [{}, {}]


def test_what_is_compared_of_several_runs_shares_an_axis_and_nothing_else_does() -> None:
    runs = [run_of(questions(), name=name, fingerprint={"device": {"name": name}})
            for name in ("one", "two")]  # fmt: skip
    rows = html._rows(runs, ["one", "two"])
    joined = [j for n in (0, 1) for j in _trade.joins([r for r in rows if r.run == n])]
    found = _sections.sections(rows, runs, [j for j in joined if _trade.drawable(j)], set())
    twins: dict[str, list[_views.Figure]] = {}
    for section in found:
        for figure in section.figures:
            if "beside" in figure.extra:
                twins.setdefault(figure.extra["beside"], []).append(figure)
    titles = [[figure.title for figure in members] for members in twins.values()]
    assert len(titles) == 4 + 4 + 2 * 3 + 1 + 2 + 2
    assert all(
        [title.replace(f", {name}", "") for title, name in zip(pair, ("one", "two"), strict=True)]
        == [pair[0].replace(", one", "")] * 2
        for pair in titles
    )
    alone = _sections.sections(
        [r for r in rows if r.run == 0],
        runs[:1],
        [j for j in joined[:4] if _trade.drawable(j)],
        set(),
    )
    assert not any("beside" in f.extra for section in alone for f in section.figures)


def test_the_ridge_of_a_roofline_says_its_intensity() -> None:
    rows = rows_of(run_of(questions()))
    for figure in _views.rooflines(rows):
        (ridge,) = [each for each in figure.extra["roofs"] if each.get("at") == "ridge"]
        ceiling = rows[figure.rows[0]].roof
        assert ceiling is not None
        assert ridge["intensity"] == ceiling.flops_per_second / ceiling.bytes_per_second
        assert ridge["text"] == f"ridge, {units.significant(ceiling.ridge)} FLOP/B"
        assert f"meet at {units.significant(ceiling.ridge)} FLOP per byte" in figure.says


def test_a_roofline_is_of_one_pass_and_token_count_and_shares_its_axes() -> None:
    rows = rows_of(run_of(questions(shapes=((1024, 1024), (512, 1024)))))
    figures = _views.rooflines(rows)
    assert [figure.title for figure in figures] == [
        f"{way}, {tokens} tokens, float32"
        for way in ("Forward", "Forward and backward")
        for tokens in (16, 256)
    ]
    placed = [row.number for row in rows if row.placement]
    assert sorted(number for figure in figures for number in figure.rows) == placed
    for figure in figures:
        own = [rows[number] for number in figure.rows]
        assert len({(row.direction, row.tokens) for row in own}) == 1
        assert len({row.out_features for row in own}) == 2
    corners = [figure.extra["roofs"] for figure in figures]
    assert all(each == corners[0] for each in corners)  # so that the axes are the same, too
    rates = [each["flops_per_second"] for each in corners[0] if each.get("at") == "room"]
    every = [rows[number].flops / rows[number].time_seconds for number in placed]
    assert rates[:2] == [min(every), max(every)]
    one_shape = _views.rooflines(rows_of(run_of(questions())))
    assert one_shape[0].title == "Forward, 1024×1024, 16 tokens, float32"


def test_the_roof_of_a_roofline_names_the_library_that_reached_it() -> None:
    run = run_of(questions())
    measured = run.header.ceilings["matmul"]["float32"]
    for library, said in (("onednn", "110 GFLOP/s matmul by onednn"), (None, "110 GFLOP/s matmul")):
        product = {**measured, "library": library} if library else measured
        ceilings = {**run.header.ceilings, "matmul": {"float32": product}}
        run.header = replace(run.header, ceilings=ceilings)
        figure = _views.rooflines(rows_of(run))[0]
        assert said in [each["text"] for each in figure.extra["roofs"]]


def test_a_case_that_raises_the_roof_is_told_in_words() -> None:
    run = run_of(questions())
    ceilings = {**run.header.ceilings, "matmul": {"float32": {"flops_per_second": 1e9}}}
    run.header = replace(run.header, ceilings=ceilings)
    rows = rows_of(run)
    roof = rows[0].roof
    assert roof is not None
    said = f" {words.case(roof.raised_by)} executed "
    figure = _views.rooflines(rows)[0]
    assert said in figure.says
    assert "linear/" not in figure.says
    assert any(each["text"].endswith("FLOP/s by a case") for each in figure.extra["roofs"])
    assert [f" {note}" for note in text._raised(rows) if said in f" {note}"]


# samples


def spiked(replicates: int = 3) -> Run:
    """Samples from 1 to 2 ms; every second block is disturbed and far slower."""
    run = run_of([linear_case("dense", None), linear_case("btt", 0.5)], replicates=replicates)
    rng = random.Random(1)
    for result in run.results:
        result.flags.clear()
        for place, measured in enumerate(result.measurements):
            if measured.quantity == "time_seconds":
                blocks = [[rng.uniform(1e-3, 2e-3) for _ in range(50)] for _ in range(4)]
                blocks[3] = [0.1] * 50
                result.measurements[place] = Measurement(
                    quantity="time_seconds",
                    unit="s",
                    contract="wall",
                    values=[sorted(block)[25] for block in blocks],
                    samples=blocks,
                    disturbed=[False, False, False, True],
                )
    return run


def test_quantiles_are_of_quiet_samples_and_keep_three_digits() -> None:
    row = rows_of(spiked())[0]
    low, high = (
        row.time_seconds * math.exp(code / 1000) for code in (row.spread[0], row.spread[-1])
    )
    assert 1.0e-3 < low < 1.15e-3
    assert 1.85e-3 < high < 2.0e-3
    assert len(row.replicate_codes) == 3
    assert all(abs(code) < 150 for code in row.replicate_codes)


def test_a_named_case_carries_every_sample_and_shows_the_disturbed() -> None:
    run = spiked()
    rows = rows_of(run)
    (figure,) = _samples.series(run, rows, _samples.named_cases([run], ["btt"]))
    assert figure.says == "600 samples of 3 replicates, 150 of them (crosses) in disturbed blocks."
    states = [point["state"] for point in figure.extra["points"]]
    assert states.count("disturbed") == 150
    assert _samples.series(run, rows, set()) == []


@pytest.mark.parametrize("name", ["btt", "dense"])
def test_every_replicate_of_a_series_has_its_band_and_median_and_says_if_it_was_left_out(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run = spiked()
    counts = dict.fromkeys(run.planned, Counted(frozenset({0, 2}), frozenset({1})))
    monkeypatch.setattr(_samples, "counted", lambda *_: counts)
    (figure,) = _samples.series(run, rows_of(run), _samples.named_cases([run], [name]))
    if name == "dense":
        assert "1 of the replicates (dashed) left out" in figure.says
        return
    assert figure.says.endswith(
        "in disturbed blocks; 1 of the replicates (dashed) left out: the machine was slower."
    )
    bands = figure.extra["bands"]
    assert [(band["low"], band["high"]) for band in bands] == [
        (0.5, 200.5), (200.5, 400.5), (400.5, 600.5),
    ]  # fmt: skip
    assert [(band["text"], band["slow"]) for band in bands] == [
        ("0", False), ("1", True), ("2", False),
    ]  # fmt: skip
    for band in bands:
        own = [
            point["seconds"]
            for point in figure.extra["points"]
            if band["low"] < point["at"] < band["high"] and point["state"] == "quiet"
        ]
        assert len(own) == 150
        assert band["seconds"] == pytest.approx(median(own), rel=1e-3)


def test_the_health_of_the_machine_is_told_also_where_all_is_well() -> None:
    run = run_of(questions())
    where = replace(run.header.environment, state={"governor": "performance"})
    run.header = replace(run.header, environment=where)
    run.results = [replace(result, flags=[]) for result in run.results]
    rows = rows_of(run)
    assert _facts.health(run, rows) == (
        "machine: no replicate slowed, no case disturbed, governor performance", True,
    )  # fmt: skip
    slow = [replace(row, slowed=2) if row.format == "csr" else row for row in rows]
    assert _facts.health(run, slow)[0].startswith("machine: up to 2 of 3 replicates slowed, no")
    timed_cases = sum(math.isfinite(row.time_seconds) for row in rows)
    some = [row.case for row in rows if math.isfinite(row.time_seconds)][:3]
    moved = [
        replace(row, flags="disturbed,never_quiet") if row.case in some else row for row in rows
    ]
    said, well = _facts.health(run, moved)
    assert f"never quiet in 3 of {timed_cases} timed cases, 3 of {timed_cases} timed cases" in said
    assert not well
    assert not _facts.health(run, slow)[1]


def test_one_replicate_tells_nothing_of_the_machine_unless_its_reference_is_known() -> None:
    run = run_of(questions(), replicates=1)
    rows = rows_of(run)
    assert _facts.health(run, rows)[0].startswith("machine: one replicate, which does not show")
    known = {"a group": Reference(seconds=1.0, deviation=0.0, runs=3)}
    run.header = replace(run.header, references=known)
    assert _facts.health(run, rows)[0].startswith("machine: no replicate slowed")
    scored = run_of([projection_case("low_rank", 0.5)])
    assert _facts.health(scored, rows_of(scored)) == ("", True)


def test_many_replicates_have_fewer_numbers_than_bands() -> None:
    run = spiked(replicates=30)
    (figure,) = _samples.series(run, rows_of(run), _samples.named_cases([run], ["btt"]))
    numbered_bands = [band["numbered"] for band in figure.extra["bands"]]
    assert (len(numbered_bands), sum(numbered_bands)) == (30, 15)


def test_a_long_series_is_thinned_and_says_so() -> None:
    run = spiked(replicates=9)
    (figure,) = _samples.series(run, rows_of(run), _samples.named_cases([run], ["btt"]))
    assert figure.note == "One sample in 2 is drawn."
    assert len(figure.extra["points"]) == 900


def test_a_name_of_no_case_is_an_error() -> None:
    with pytest.raises(UsageError, match="'nobody' is part of no case"):
        html.render([spiked()], samples=["nobody"])


def test_flagged_cases_come_without_being_asked_for() -> None:
    run = spiked()
    run.results[0].flags.append("disturbed")
    (figure,) = _samples.series(run, rows_of(run), set())
    assert figure.title.startswith("dense")
