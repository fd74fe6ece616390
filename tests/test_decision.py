"""What a run says to use: exact first, then within an error, and what is too close to call."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from _synthetic import linear_case, projection_case, questions, rescored, run_of
from msgspec.structs import replace as changed

from hwbench.analysis import contested
from hwbench.analysis.contested import LOSSLESS
from hwbench.analysis.frames import summary_rows
from hwbench.records import Measurement
from hwbench.report import _answers, _heat, best, decision
from hwbench.report import _words as words
from hwbench.report.rows import Row, known, numbered, report_rows
from hwbench.store import Run, read_run

STORED = sorted(Path(__file__).parent.glob("../reports/*/*.jsonl"))


def rows_of(run: Run) -> list[Row]:
    return numbered(report_rows(run))


@pytest.fixture(scope="module")
def found() -> list[decision.Setting]:
    return decision.settings(rows_of(run_of(questions())))


def test_every_setting_has_its_candidates_fastest_first_with_dense(
    found: list[decision.Setting],
) -> None:
    assert len(found) == 4
    for setting in found:
        relatives = [each.relative for each in setting.candidates]
        assert relatives == sorted(relatives)
        assert sum(each.row.format == "dense" for each in setting.candidates) == 1


def test_the_best_is_the_fastest_that_keeps_the_error(found: list[decision.Setting]) -> None:
    for setting in found:
        for level in setting.levels:
            best = setting.best(level.limit)
            assert best is not None
            kept = [each for each in setting.candidates if decision.keeps(each, level.limit)]
            assert best.relative == min(each.relative for each in kept)
            assert level.limit == math.inf or best.loss <= level.limit
        exact, *_, anything = (setting.best(level.limit) for level in setting.levels)
        assert exact is not None
        assert exact.error == "exact"
        assert anything is setting.candidates[0]


def test_levels_widen_and_end_with_any(found: list[decision.Setting]) -> None:
    for setting in found:
        limits = [level.limit for level in setting.levels]
        assert all(one < other for one, other in pairwise(limits))
        assert limits[0] == 0.0
        assert limits[-1] == math.inf


def test_an_exact_and_faster_layer_stands_before_every_lossy_one() -> None:
    cases = [
        linear_case("dense", None),
        linear_case("packed_dense", None, knobs={"kernel": "onednn"}),
        linear_case("low_rank", 0.5),
        projection_case("low_rank", 0.5),
    ]
    rows = rows_of(run_of(cases))
    fast = [
        changed(row, values={**row.values, "relative_time": 0.3}, relative_low=0.29,
                relative_high=0.31)
        if row.format == "packed_dense" else row
        for row in rows
    ]  # fmt: skip
    (setting,) = decision.settings(fast)
    for level in setting.levels:
        best = setting.best(level.limit)
        assert best is not None
        assert best.name == "packed_dense (onednn)"
        assert setting.says(best).endswith("(0.300×), exact.")
    assert decision.terminal_lines([setting])[1].startswith("  exact: Use packed_dense (onednn)")


@pytest.fixture(scope="module")
def by_decibels() -> Run:
    """Timed and scored in decibels, the higher the better; dense and packed_dense have no score."""
    cases = [linear_case(name, None) for name in ("dense", "packed_dense")]
    for name in ("low_rank", "monarch"):
        cases += [linear_case(name, 0.5), projection_case(name, 0.5)]
    return rescored(run_of(cases))


def test_what_is_exact_is_within_every_level_of_a_score_that_is_no_error(by_decibels: Run) -> None:
    (setting,) = decision.settings(rows_of(by_decibels))
    assert not setting.by_error
    (packed,) = json.loads(json.dumps(decision.packed([setting]), allow_nan=False))
    assert len(packed["levels"]) == len(setting.levels) > 3
    for level, told in zip(setting.levels, packed["levels"], strict=True):
        for each, one in zip(setting.candidates, packed["candidates"], strict=True):
            within = told["limit"] is None or one["loss"] <= told["limit"]  # as the page has it
            assert within == decision.keeps(each, level.limit), (each.name, level)
            if each.row.format in LOSSLESS:
                assert within
    losses = {each.row.case: each.loss for each in setting.candidates}
    for row in summary_rows(by_decibels):
        if row["format"] in LOSSLESS and row["case"] in losses:
            assert all(contested._keeps(row, {}, level.limit) for level in setting.levels)


def test_a_largest_error_asks_nothing_of_other_scores(by_decibels: Run) -> None:
    (setting,) = decision.settings(rows_of(by_decibels))
    for error in (0.0, 0.1, 1e9):
        row = best._row(setting, error)
        assert row["format"] in LOSSLESS
        assert row["error"] == 0.0
    anything = best._row(setting, math.inf)
    assert anything["format"] == setting.candidates[0].row.format not in LOSSLESS
    assert anything["error"] is None


@pytest.mark.parametrize(
    ("ends", "advice"),
    [
        ((0.9, 1.02), "Keep dense, or try"),
        ((0.9, 0.99), "Use"),
        ((math.nan, math.nan), "Try"),  # of one replicate, or never on a quiet machine
    ],
)
def test_what_may_be_no_faster_than_dense_is_no_reason_to_replace_it(
    ends: tuple[float, float], advice: str
) -> None:
    cases = [linear_case("dense", None), linear_case("packed_dense", None)]
    rows = [
        changed(row, values={**row.values, "relative_time": 0.96}, relative_low=ends[0],
                relative_high=ends[1])
        if row.format == "packed_dense" else row
        for row in rows_of(run_of(cases))
    ]  # fmt: skip
    (setting,) = decision.settings(rows)
    best = setting.best(0.0)
    assert best is not None
    assert setting.says(best).startswith(f"{advice} packed_dense: ")
    assert setting.says(best).endswith("(0.960×), exact.")
    close = [each.name for each in setting.close(best, 0.0)]
    assert close == ([] if advice == "Use" else ["dense"])


ROUGH = [0.150, 0.480, 0.310, 0.160]
"""The least median of all, known no better than within a factor of nine."""
SURE = [0.250, 0.251, 0.250, 0.249]
LIKELY = [0.60, 0.80, 0.61, 0.83]
"""Faster than dense, and known no better than within a factor of 1.5."""
OPEN = [0.55, 1.70, 0.97, 0.90]


@pytest.mark.parametrize(
    ("times", "best", "shorter"),
    [
        ({"btt": ROUGH, "low_rank": SURE}, "low_rank", ["btt"]),
        ({"btt": ROUGH, "blast": ROUGH, "low_rank": SURE}, "low_rank", ["btt", "blast"]),
        ({"btt": SURE, "low_rank": ROUGH}, "btt", ["low_rank"]),
    ],
)
def test_what_is_hardly_known_gives_way_to_what_is_known(
    times: dict[str, list[float]], best: str, shorter: list[str]
) -> None:
    (setting,) = decision.settings(rows_of(moved(times)))
    found = setting.best(math.inf)
    assert found is not None
    assert (found.row.format, found.rough, found.verdict) == (best, False, "faster")
    named = [each.row.format for each in setting.shorter(found, math.inf)]
    assert sorted(named) == sorted(shorter)
    said = "\n".join(decision.terminal_lines([setting]))
    assert "Shorter times, but not measured well enough" in said


@pytest.mark.parametrize(
    "times",
    [
        {"btt": ROUGH, "low_rank": [3 * each for each in SURE]},  # no rival is near
        {"btt": ROUGH, "blast": ROUGH},  # none is better known
        {"btt": OPEN, "low_rank": [1.10, 1.101, 1.10, 1.099]},  # it is slower than dense
        {"btt": OPEN, "low_rank": [1.00, 1.10, 1.05, 1.04]},
        {"btt": LIKELY, "low_rank": [0.965, 0.81, 0.98, 0.80]},  # less certain to be faster
    ],
)
def test_what_is_hardly_known_stays_where_nothing_is_better(times: dict[str, list[float]]) -> None:
    (setting,) = decision.settings(rows_of(moved(times)))
    found = setting.best(math.inf)
    assert found is not None
    assert (found.row.format, found.rough) == (setting.candidates[0].row.format, True)
    assert setting.shorter(found, math.inf) == []


def test_a_level_with_another_rival_of_a_shorter_time_is_an_answer_of_its_own() -> None:
    run = moved({"packed_dense": [0.80, 0.801, 0.80, 0.799], "btt": [0.5, 1.2, 0.95, 0.6]})
    (setting,) = decision.settings(rows_of(run))
    found = [(level.label, best.row.format) for level, best in decision.answers(setting)]
    assert found == [("exact", "packed_dense"), ("any error", "packed_dense")]
    said = "\n".join(decision.terminal_lines([setting]))
    assert "Shorter times, but not measured well enough: btt" in said


@pytest.mark.parametrize(("time", "named"), [(0.2, False), (0.4, True)])
def test_no_winner_is_named_where_a_shorter_time_was_never_quiet(time: float, named: bool) -> None:
    """The next run may measure that one well, and name it."""
    rows = [
        changed(row, flags="never_quiet", relative_low=math.nan, relative_high=math.nan,
                by_replicate={}) if row.format == "btt" else row
        for row in rows_of(moved({"btt": [time] * 4, "low_rank": STEADY}))
    ]  # fmt: skip
    (winner,) = _answers.answer([row for row in rows if not row.scored]).winners.values()
    assert winner.name == ("low_rank" if named else None)
    assert winner.nearest == ("" if named else "low_rank")
    (sentence,) = _answers.answer(rows).sentences
    lead = "the fastest is" if named else "the shortest time that is known well enough is that of"
    assert f"{lead} low_rank, 0.300×" in _answers.plain(sentence)
    assert "not measured well enough: btt" in _answers.plain(sentence)
    marks = {row.format: row.level for row in _heat.marked(rows)}
    assert marks["btt"] == ("" if named else "undecided")


def test_a_level_whose_shorter_times_were_never_quiet_is_an_answer_of_its_own() -> None:
    run = moved({"packed_dense": [0.80, 0.801, 0.80, 0.799], "btt": SURE})
    rows = [
        changed(row, flags="never_quiet", relative_low=math.nan, relative_high=math.nan)
        if row.format == "btt" else row
        for row in rows_of(run)
    ]  # fmt: skip
    (setting,) = decision.settings(rows)
    found = [(level.label, best.row.format) for level, best in decision.answers(setting)]
    assert found == [("exact", "packed_dense"), ("any error", "packed_dense")]
    said = "\n".join(decision.terminal_lines([setting]))
    assert "Faster once, but the machine was never quiet: btt" in said


def test_an_answer_without_an_interval_says_what_that_means() -> None:
    cases = [linear_case("dense", None), linear_case("packed_dense", None)]
    both = [*cases, *(changed(each, mode="compile") for each in cases)]
    (said,) = {
        line
        for asked in (cases, both)
        for line in decision.terminal_lines(decision.settings(rows_of(run_of(asked, replicates=1))))
        if line.startswith("Try: ")
    }
    assert "no interval" in said
    lines = decision.terminal_lines(decision.settings(rows_of(run_of(both, replicates=1))))
    assert any(line.startswith("  Compiled, the shortest time is that of ") for line in lines)
    sure = decision.terminal_lines(decision.settings(rows_of(run_of(cases))))
    assert not any("Try" in line for line in sure)


def test_where_dense_is_left_out_the_least_slow_is_no_advice() -> None:
    slow = moved({"packed_dense": [2.0, 2.01, 2.0, 1.99], "btt": [3.0, 3.01, 3.0, 2.99]})
    (setting,) = decision.settings(rows_of(slow))
    best = next(each for each in setting.candidates if each.row.format != "dense")
    assert setting.says(best).startswith("Keep dense; the least slow is packed_dense: ")


def test_without_errors_only_what_is_exact_by_its_nature_is_called_so() -> None:
    cases = [linear_case("dense", None), linear_case("low_rank", 0.1)]
    (setting,) = decision.settings(rows_of(run_of(cases)))
    assert [level.label for level in setting.levels] == ["exact", "any error"]
    exact, anything = (setting.best(level.limit) for level in setting.levels)
    assert exact is not None
    assert anything is not None
    assert setting.says(exact).startswith("Keep dense")
    assert setting.says(anything).endswith("its error is not measured.")
    assert "measures no errors" in setting.basis


def test_overlapping_intervals_are_too_close_to_call(found: list[decision.Setting]) -> None:
    setting = found[0]
    first, second = setting.candidates[:2]

    def beside(noise: float, shift: float) -> tuple[list[int], list[int]]:
        """Who is tied with, and close to, the best of two where one is so much slower."""
        steps = [noise, -noise, 0.5 * noise, -0.5 * noise, 0.0]
        mine, other = (
            replace(each, tied=[], close=[], row=changed(each.row, by_replicate=values))
            for each, values in (
                (first, dict.fromkeys(range(5), 0.5)),
                (second, {n: 0.5 * (1 + shift + step) for n, step in enumerate(steps)}),
            )
        )
        for each in (mine, other):
            each.row = changed(each.row, values={**each.row.values, "relative_time": 0.5})
        decision._set_against_later(0, [mine, other])
        return mine.tied, mine.close

    assert beside(noise=0.004, shift=0.001) == ([1], [])
    assert beside(noise=0.1, shift=0.02) == ([], [1])
    assert beside(noise=0.001, shift=0.2) == ([], [])
    first.close = [1]
    try:
        assert setting.close(first, math.inf) == [second]
        assert setting.close(first, -1.0) == []
    finally:
        first.close = []


def test_the_density_that_a_format_has_is_told_where_it_is_another_than_asked() -> None:
    case = linear_case("btt", 0.1)
    (row,) = rows_of(run_of([case]))
    row = changed(row, density=0.1)
    assert words.format_name(row) == "btt, density 0.1"
    assert words.format_name(changed(row, density=0.0625)) == "btt, density 0.0625 (asked 0.1)"
    assert words.format_name(changed(row, density=0.0996)) == "btt, density 0.0996"


def test_a_synthetic_matrix_is_called_so_and_a_trained_one_is_preferred() -> None:
    cases = [
        linear_case("dense", None),
        linear_case("low_rank", 0.5),
        projection_case("low_rank", 0.5, matrix="power_law"),
    ]
    (setting,) = decision.settings(rows_of(run_of(cases)))
    assert setting.synthetic
    assert decision.terminal_lines([setting])[-1] == setting.basis
    trained = projection_case("low_rank", 0.5, shape=(384, 384), matrix="trained")
    (setting,) = decision.settings(rows_of(run_of([*cases, trained])))
    assert not setting.synthetic
    assert "trained" in setting.basis
    assert "384×384" in setting.basis


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_stored_runs_have_an_answer_in_every_setting(path: Path) -> None:
    run = read_run(path)
    settings = decision.settings(rows_of(run))
    assert bool(settings) == any(planned.seeds is None for planned in run.planned.values())
    for setting in settings:
        best = setting.best(math.inf)
        assert best is not None
        assert known(best.relative)
    lines = decision.terminal_lines(settings)
    assert any(line.strip().startswith("exact: ") for line in lines) == bool(settings)


def test_what_the_page_reads_is_plain_json(found: list[decision.Setting]) -> None:
    data = json.loads(json.dumps(decision.packed(found), allow_nan=False))
    assert [each["title"] for each in data] == [setting.title for setting in found]
    for each in data:
        assert each["levels"][-1]["limit"] is None
        for place, candidate in enumerate(each["candidates"]):
            assert all(later > place for later in candidate["close"])


def moved(values: dict[str, list[float]], *others: str) -> Run:
    """A run in which these formats took these times of dense, replicate by replicate."""
    cases = [linear_case("dense", None), *(linear_case(name, 0.5) for name in (*values, *others))]
    run = run_of(cases, replicates=4)
    for result in run.results:
        result.flags.clear()
        fixed = values.get(run.planned[result.case].case.format)
        for measured in result.measurements if fixed else ():
            if measured.quantity == "relative_time":
                measured.values[:] = [fixed[result.replicate]] * 6
            elif measured.quantity == "time_seconds":
                measured.values[:] = [fixed[result.replicate] * 1e-3] * 6
    return run


STEADY = [0.300, 0.301, 0.300, 0.299]


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ([0.200, 0.201, 0.200, 0.580], "0.200× of dense in 3 of 4 replicates, 0.580× in 1"),
        ([0.200, 0.580, 0.202, 0.582], "0.201× of dense in 2 of 4 replicates, 0.581× in 2"),
        ([0.302, 0.900, 0.300, 0.902], "0.301× of dense in 2 of 4 replicates, 0.901× in 2"),
    ],
    ids=["winner", "undecided rival", "rival of another median"],
)
def test_two_modes_of_the_winner_or_of_a_rival_as_fast_stand_in_the_headline(
    times: list[float], said: str
) -> None:
    (setting,) = decision.settings(rows_of(moved({"btt": times, "low_rank": STEADY}, "csr")))
    best = setting.best(math.inf)
    assert best is not None
    headline = setting.headline(best, math.inf)
    assert headline.startswith(setting.says(best))
    assert headline.endswith(f" btt, density 0.495 ran in two modes: {said}.")
    assert headline in "\n".join(decision.terminal_lines([setting]))
    packed = decision.packed([setting])[0]["candidates"]
    told = [each for each in packed if "modes" in each]
    assert [each["modes"] for each in told] == [f"ran in two modes: {said}"]
    place = packed.index(told[0])
    later = packed[setting.candidates.index(best)].get("modal", [])
    before = [setting.candidates.index(each) for each in setting.shorter(best, math.inf)]
    assert place in (*before, *later)


@pytest.mark.parametrize(
    "times", [[0.500, 0.501, 0.500, 0.900], STEADY], ids=["slower in both modes", "steady"]
)
def test_who_is_slower_in_both_modes_or_steady_is_not_in_the_headline(times: list[float]) -> None:
    (setting,) = decision.settings(rows_of(moved({"btt": times, "low_rank": STEADY})))
    best = setting.best(math.inf)
    assert best is not None
    assert setting.headline(best, math.inf) == setting.says(best)


def test_the_type_that_bytes_came_to_is_in_the_name() -> None:
    run = run_of([linear_case("quantized", None, knobs={"stored": 0.25})])
    (planned,) = run.planned.values()
    row = changed(rows_of(run)[0], density=1.0)
    assert words.format_name(row) == "quantized, stored 0.25"
    for kind in ("int8", "int4", "nf4", "mxfp4"):
        found = changed(row, resolved=json.dumps({**planned.resolved, "type": kind}))
        assert words.format_name(found) == f"quantized {kind}, stored 0.25"
    asked = changed(row, knobs='{"type": "int8"}', resolved='{"type": "int8"}')
    assert words.format_name(asked) == "quantized int8"


@pytest.mark.parametrize("with_eager", [True, False])
def test_compiled_layers_answer_in_one_sentence_beside_the_same_layers_as_they_are(
    with_eager: bool,
) -> None:
    compiled = [
        linear_case(name, density, mode="compile")
        for name, density in (("dense", None), ("monarch", 0.5), ("btt", 0.5))
    ]
    eager = [linear_case("dense", None), linear_case("low_rank", 0.5)] if with_eager else []
    run = run_of([*eager, *compiled])
    took = Measurement(quantity="compile_seconds", unit="s", values=[8.0])
    run.results = [
        changed(each, measurements=[*each.measurements, took]) if "/compile/" in each.case else each
        for each in run.results
    ]
    found = decision.settings(rows_of(run))
    lines = decision.terminal_lines(found)
    said = [line for line in lines if "Compiled, the answer is" in line]
    twin = next(each for each in found if each.mode == "compile")
    best = twin.best(math.inf)
    assert best is not None
    assert len(said) == with_eager
    assert any("compiled" in line and line.endswith(":") for line in lines) is not with_eager
    if with_eager:
        assert f"Compiled, the answer is {best.name}: " in said[0]
        assert said[0].endswith("; compiling takes 8.00 s.")
        assert [each.get("compiled", "") for each in decision.packed(found)] == [
            said[0].strip(),
            "",
        ]
