"""All linear layers of a model together: sums over its shapes, in the table and on the page."""

from __future__ import annotations

import io

import pytest
from _synthetic import linear_case, run_of
from msgspec.structs import replace

from hwbench import suite
from hwbench.records import Case
from hwbench.report import _totals, html, text
from hwbench.report.rows import report_rows

SHAPES = {(512, 512): 64, (2048, 512): 32, (512, 2048): 16}


def cases(tokens: int = 1, direction: str = "forward") -> list[Case]:
    members = [("dense", None), ("low_rank", 0.5), ("csr", 0.25), ("csr", 0.1)]
    return [
        replace(
            linear_case(name, density, shape=shape, tokens=tokens, direction=direction), count=count
        )
        for shape, count in SHAPES.items()
        for name, density in members
    ]


def test_each_shape_counts_as_often_as_it_stands_in_the_model():
    rows = report_rows(run_of(cases(16)))
    (actual,) = _totals.totals(rows)
    assert (actual.layers, actual.tokens, actual.left_out) == (112, 16, [])
    assert actual.title == "All linear layers of the model, Forward, 16 tokens, float32"
    lines = {line.label: line for line in actual.lines}
    for label in ("dense", "low_rank density=0.5", "csr density=0.1"):
        own = [row for row in rows if row.label == label]
        assert lines[label].seconds == pytest.approx(sum(r.count * r.time_seconds for r in own))
        assert lines[label].stored_bytes == sum(r.count * r.stored_bytes for r in own)
        assert lines[label].layers == 112
    mix = lines[_totals.MIX]
    best = [
        min((r.time_seconds, r.count) for r in rows if (r.out_features, r.in_features) == shape)
        for shape in SHAPES
    ]
    assert mix.seconds == pytest.approx(sum(seconds * count for seconds, count in best))
    assert mix.seconds <= min(line.seconds for line in actual.lines)
    assert mix.relative == pytest.approx(mix.seconds / lines["dense"].seconds)


def test_a_format_that_a_shape_lacks_leaves_its_layers_dense():
    run = run_of(c for c in cases() if not (c.format == "csr" and c.out_features == 2048))
    rows = report_rows(run)
    (actual,) = _totals.totals(rows)
    line = next(each for each in actual.lines if each.label == "csr density=0.1")
    assert line.layers == 112 - 32
    dense = next(r for r in rows if r.format == "dense" and r.out_features == 2048)
    others = [r for r in rows if r.label == line.label]
    expected = 32 * dense.time_seconds + sum(r.count * r.time_seconds for r in others)
    assert line.seconds == pytest.approx(expected)


def test_what_was_not_timed_is_named():
    run = run_of(cases())
    gone = [c for c in run.planned if "2048x512" in c and "/dense/" in c]
    run.results = [result for result in run.results if result.case not in gone]
    (actual,) = _totals.totals(report_rows(run))
    assert actual.left_out == ["2048×512"]
    assert actual.layers == 64 + 16


def test_numbers_of_tokens_and_directions_stand_apart():
    actual = _totals.totals(report_rows(run_of([*cases(1), *cases(64), *cases(64, "step")])))
    assert [(each.tokens, each.title.split(", ")[1]) for each in actual] == [
        (1, "Forward"), (64, "Forward"), (64, "Forward and backward"),
    ]  # fmt: skip


def test_a_suite_of_no_model_has_no_sum():
    assert _totals.totals(report_rows(run_of(replace(c, count=1) for c in cases()))) == []


def test_the_table_and_the_page_show_the_sums():
    from rich.console import Console

    run = run_of(cases())
    out = Console(file=io.StringIO(), width=120)
    for part in text.table(run, 120):
        out.print(part)
    shown = out.file.getvalue()  # type: ignore[attr-defined]
    (actual,) = _totals.totals(report_rows(run))
    assert actual.title in shown
    assert "112 of 112" in shown
    assert actual.cells()[-1][2] in shown
    page = html.render([run])
    assert actual.title in page
    assert all(cell in page for line in actual.cells() for cell in line)


def test_a_shipped_suite_of_a_model_is_summed_whole():
    """Every layer of the suite is in the sum of one token."""
    built = suite.build(suite.read("models/smollm2_135m"), "cpu")
    once = [c for c in built.cases if c.tokens == 1 and c.format in ("dense", "low_rank")]
    (actual,) = _totals.totals(report_rows(run_of(once)))
    assert actual.layers == 30 * 7 + 1
    assert actual.left_out == []
