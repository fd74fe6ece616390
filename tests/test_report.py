"""What is shown of a run outside the page: the terminal's table, sentences, figures, exports."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path

import pandas as pd
import pytest
from _synthetic import (
    CEILINGS,
    UNSUPPORTED,
    failed,
    linear_case,
    questions,
    run_of,
)
from _tiers import sampled
from msgspec.structs import replace
from rich.cells import cell_len
from rich.console import Console

from hwbench import plugins
from hwbench.analysis.frames import replicate_rows
from hwbench.errors import MissingPartError, RunFileError, UnknownNameError, UsageError
from hwbench.quantities import RELATIVE, TIME
from hwbench.records import Status
from hwbench.report import _answers, _facts, _palette, export, figures, text
from hwbench.report.rows import Row, printable, report_rows
from hwbench.store import Run


@pytest.fixture(scope="module")
def run() -> Run:
    return run_of(questions())


def lines(run: Run, width: int, *, terminal: bool = False) -> list[str]:
    out = io.StringIO()
    colours = "standard" if terminal else "auto"  # a file has none
    console = Console(
        file=out, width=width, force_terminal=terminal, color_system=colours, _environ={}
    )
    console.print(*text.table(run, width), sep="\n")
    return out.getvalue().splitlines()


# the terminal's table


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_no_line_is_wider_than_the_terminal(run: Run, width: int) -> None:
    assert max(cell_len(line) for line in lines(run, width)) <= width


@pytest.mark.parametrize("width", [80, 120])
def test_no_number_is_cut(run: Run, width: int) -> None:
    assert "…" not in "\n".join(lines(run, width))


def test_what_is_piped_has_no_colours(run: Run) -> None:
    assert "\x1b" not in "\n".join(lines(run, 80))
    assert "\x1b[" in "\n".join(lines(run, 80, terminal=True))  # or the line above says nothing


def test_a_narrow_terminal_loses_columns_in_the_stated_order() -> None:
    run = run_of(questions(directions=["step"], tokens=[256], projection=False))
    heads = {
        "numerical_error": "num. error",
        "saved_bytes": "saved",
        "efficiency": "of roof",
        "rate": "executed",
    }
    heads |= {"stored": "stored", "time": "time"}
    gone: list[str] = []
    for width in range(120, 45, -1):
        head = next(line for line in lines(run, width) if line.startswith("format"))
        gone += [n for n, title in heads.items() if title not in head and n not in gone]
        assert "relative" in head
        assert "density" in head
    assert gone == [name for name in text.DROPPED_FIRST if name in heads]


def test_groups_failures_and_reasons_are_listed(run: Run) -> None:
    shown = "\n".join(lines(run, 100))
    for title in ("Forward, 1024×1024, 16 tokens, float32", "Forward and backward, 1024×1024, 256"):
        assert title in shown
    assert UNSUPPORTED in " ".join(shown.split())
    assert "linear/forward/semi_structured/1024x1024/t16/float32/hot/eager/cpu" in shown
    assert "0.458 ±0.00" in shown  # low_rank at density 0.5, 256 tokens


def test_a_run_without_cases_says_so() -> None:
    assert "nothing was measured" in "\n".join(lines(run_of([]), 80))


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        (10, "89 cases have no result yet"),
        (98, "1 case has no result yet"),
        (99, "every case has a result, and some replicates are missing"),
    ],
)
def test_an_unfinished_run_says_what_is_missing_and_how_to_go_on(kept: int, told: str) -> None:
    unfinished = run_of(questions(), complete=False)
    assert len(unfinished.planned) == 99
    with_results = list(unfinished.planned)[:kept]
    unfinished.results = [r for r in unfinished.results if r.case in with_results]
    shown = " ".join("\n".join(lines(unfinished, 100)).split())
    assert f"The run is not finished: {told}; go on with" in shown
    assert "--resume 20260102-030405-linear-cpu.jsonl" in shown
    state = _facts.summary(unfinished, "a machine", report_rows(unfinished)).state
    assert state.startswith("not finished: ")
    assert " 0 cases" not in state


@pytest.mark.parametrize(
    ("rival", "stands", "beside"),
    [
        ([0.505, 0.560, 0.490, 0.540, 0.520], "shortest time", "undecided"),
        ([0.500, 0.501, 0.499, 0.500, 0.501], "fastest", "tied"),
        ([0.700, 0.701, 0.699, 0.700, 0.702], "fastest", "ok"),
    ],
)
def test_nothing_is_the_fastest_beside_a_rival_that_is_undecided(
    rival: list[float], stands: str, beside: str
) -> None:
    names = {"low_rank": [0.4995, 0.500, 0.4995, 0.500, 0.4995], "monarch": rival}
    members = [("dense", None), *((name, 0.5) for name in names)]
    run = run_of([linear_case(*each) for each in members], replicates=5)
    for result in run.results:
        result.flags.clear()
        times = names.get(run.planned[result.case].case.format, [1.0] * 5)
        for measured in result.measurements:
            if measured.quantity == "relative_time":
                measured.values[:] = [times[result.replicate]] * 6
            elif measured.quantity == "time_seconds":
                measured.values[:] = [1e-3 * times[result.replicate]] * 6
    shown = lines(run, 140)
    ends = {
        line.split()[0]: line.rstrip().split("  ")[-1].strip()
        for line in shown
        if line[:3] in ("low", "mon")
    }
    assert ends["low_rank"] == f"ok, {stands}"
    assert ends["monarch"].endswith(beside)
    assert ("fastest" in " ".join(ends.values())) == (beside != "undecided")


def test_one_replicate_has_no_interval() -> None:
    shown = "\n".join(lines(run_of(questions(), replicates=1), 100))
    assert "±" not in shown
    assert "one replicate gives no interval" in shown


def test_an_interval_wider_than_its_value_is_given_by_its_ends() -> None:
    noisy = run_of([linear_case("dense", None), linear_case("low_rank", 0.5)])
    for result, value in zip(noisy.results[3:], (0.01, 1.0, 100.0), strict=True):
        relative = next(m for m in result.measurements if m.quantity == "relative_time")
        relative.values[:] = [value] * 6
    shown = "\n".join(lines(noisy, 100))
    assert re.search(r" 1\.00 \(1\.08e-05–929\d\d\) ", shown)  # exp(± 4.303 · ln 100 / √3)


def test_nothing_in_a_run_can_steer_the_terminal() -> None:
    name = "low\x1b]0;owned\x07_rank\u202e\r[bold red]"
    hostile = failed(
        run_of([linear_case(name, 0.5)], fingerprint={"device": {"name": name}}),
        Status.CRASHED,
        f"line one\n{name}",
    )
    shown = "\n".join(lines(hostile, 200))
    assert not any(c in shown for c in "\x1b\x07\u202e\r")
    assert "[bold red]" in shown  # markup is text
    assert r"\x1b]0;owned" in shown


def test_printable_keeps_what_can_be_read() -> None:
    assert printable("Ŵ × 1024\n\tµs") == "Ŵ × 1024 µs"


def test_rows_for_json_have_no_nan_and_carry_the_roofline(run: Run) -> None:
    rows = json.loads(json.dumps(text.rows_json(run), allow_nan=False))
    assert [row["case"] for row in rows] == list(run.planned)
    by_case = {row["case"]: row for row in rows}
    row = by_case["linear/forward/low_rank[density=0.5]/1024x1024/t256/float32/hot/eager/cpu"]
    assert row["roofline"]["bound"] == "compute"
    assert row["roofline"]["flops_per_second"] == pytest.approx(row["flops"] / row["time_seconds"])
    unsupported = next(row for row in rows if row["status"] == "unsupported")
    assert unsupported["time_seconds"] is None
    assert unsupported["roofline"] is None


# sentences


def told(*members: tuple[str, float, float, float], dense: bool = True) -> list[Row]:
    """Rows of one group at density 0.5: format, relative time and its interval."""
    (template,) = report_rows(run_of([linear_case("low_rank", 0.5)], replicates=1))
    rows = [
        replace(
            template,
            format=name,
            series=name,
            label=f"{name} density=0.5",
            values={TIME.name: value * 1e-3, RELATIVE.name: value if dense else math.nan},
            relative_low=low if dense else math.nan,
            relative_high=high if dense else math.nan,
        )
        for name, value, low, high in members
    ]
    if not dense:
        return rows
    reference = replace(
        template,
        format="dense",
        series="dense",
        label="dense",
        values={TIME.name: 1e-3, RELATIVE.name: math.nan},
        relative_low=math.nan,
        relative_high=math.nan,
        asked_density=math.nan,
        density=1.0,
    )
    return [reference, *rows]


def sentence(*members: tuple[str, float, float, float]) -> str:
    return _answers.plain(_answers.answer(told(*members)).sentences[0])


def test_formats_of_equal_bytes_are_told_as_such() -> None:
    dense, *rows = told(("low_rank", 0.41, 0.40, 0.42), ("csr", 5.0, 4.9, 5.1))
    rows = [replace(row, asked_density=math.nan, asked_stored=0.25, density=0.2) for row in rows]
    found = _answers.answer([dense, *rows])
    (said,) = map(_answers.plain, found.sentences)
    assert said.startswith("In 0.25 of dense's bytes the fastest is low_rank, 0.410× of dense")
    (total, *_) = map(_answers.plain, _answers.overview([found, found], "here"))
    assert total.startswith("On here, in 0.25 of dense's bytes, low_rank is the fastest in all 2")


def test_one_clear_winner() -> None:
    said = sentence(("low_rank", 0.41, 0.40, 0.42), ("csr", 5.0, 4.9, 5.1))
    assert said == (
        "At density 0.5 the fastest is low_rank, 0.410× of dense (0.400–0.420); "
        "the others are slower than dense."
    )


def test_others_that_beat_dense_are_named() -> None:
    said = sentence(("low_rank", 0.41, 0.40, 0.42), ("btt", 0.6, 0.58, 0.62))
    assert said.endswith("; also faster than dense: btt (0.600×).")


def test_a_format_with_far_fewer_values_than_asked_for_is_named_with_its_density() -> None:
    dense, *rows = told(("btt", 0.3, 0.29, 0.31), ("low_rank", 0.41, 0.40, 0.42))
    rows = [replace(row, density=0.3 if row.format == "btt" else 0.496) for row in rows]
    found = _answers.answer([dense, *rows])
    (said,) = map(_answers.plain, found.sentences)
    assert said.startswith("At density 0.5 the fastest is btt (density 0.3), 0.300× of dense")
    assert said.endswith("also faster than dense: low_rank (0.410×).")
    (total,) = map(_answers.plain, _answers.overview([found, found]))
    assert total.startswith("At density 0.5, btt (density 0.3) is the fastest in all 2 settings")


def test_formats_whose_intervals_overlap_are_not_significantly_slower() -> None:
    said = sentence(("low_rank", 0.41, 0.40, 0.45), ("btt", 0.44, 0.43, 0.46))
    assert "not significantly slower: btt (0.440×)" in said
    assert "the others" not in said


def test_an_interval_that_holds_one_decides_nothing() -> None:
    said = sentence(("low_rank", 0.95, 0.9, 1.02), ("btt", 1.4, 1.3, 1.5))
    assert said == (
        "At density 0.5 no format is significantly faster than dense; the shortest time is that of "
        "low_rank, 0.950× of dense (0.900–1.02)."
    )


def test_a_steady_second_is_preferred_to_an_unsteady_first() -> None:
    said = sentence(("low_rank", 0.2, 0.01, 4.0), ("btt", 0.5, 0.49, 0.51))
    assert said == (
        "At density 0.5 faster than dense: btt (0.500×); the shortest time, that of low_rank, "
        "0.200× of dense (0.0100–4.00), is not significantly below that of dense."
    )


def test_where_everything_is_slower_dense_stays() -> None:
    said = sentence(("csr", 5.0, 4.9, 5.1), ("coo", 8.0, 7.0, 9.0))
    assert said == (
        "At density 0.5 every format is slower than dense; the closest is csr, 5.00× of dense "
        "(4.90–5.10)."
    )


def test_one_replicate_decides_nothing() -> None:
    said = sentence(("low_rank", 0.41, math.nan, math.nan))
    assert said.endswith("0.410× of dense: one replicate decides nothing.")
    answer = _answers.answer(told(("low_rank", 0.41, math.nan, math.nan)))
    assert answer.winners["asked_density", 0.5].name is None


def test_without_dense_there_is_no_relative_time() -> None:
    answer = _answers.answer(told(("low_rank", 0.41, 0.4, 0.42), dense=False))
    assert "Nothing was timed against dense here" in _answers.plain(answer.sentences[0])
    assert "410 µs" in _answers.plain(answer.sentences[0])


def test_the_overview_counts_groups_and_keeps_what_is_undecided() -> None:
    clear = _answers.answer(told(("low_rank", 0.41, 0.40, 0.42), ("btt", 0.6, 0.58, 0.62)))
    other = _answers.answer(told(("low_rank", 0.31, 0.30, 0.32), ("btt", 0.6, 0.58, 0.62)))
    level = _answers.answer(told(("low_rank", 0.41, 0.3, 0.6), ("btt", 0.44, 0.43, 0.46)))
    lost = _answers.answer(told(("csr", 4.0, 3.9, 4.1)))
    (said,) = _answers.overview([clear, other, level, lost])
    assert _answers.plain(said) == (
        "At density 0.5, low_rank is the fastest in 2 of 4 settings, at 0.31–0.41× of dense, "
        "and dense stays the fastest in 1 of 4 settings; 1 is undecided."
    )
    (none,) = _answers.overview([level, level])
    assert _answers.plain(none) == (
        "At density 0.5, no setting is decided. "
        "The shortest times are those of low_rank in 2 of 2 settings, 0.41× of dense."
    )
    assert _answers.overview([clear]) == []


def test_a_disturbed_run_is_said_to_be_one() -> None:
    quiet, noisy = told(("btt", 0.5, 0.4, 0.6)), told(("btt", 0.5, 0.4, 0.6))
    noisy[1] = replace(noisy[1], flags="disturbed,not_steady")
    assert _answers.disturbance(quiet) is None
    assert "1 of 2 timed cases were disturbed" in str(_answers.disturbance(noisy))


# colours and shapes


def test_no_two_formats_look_alike() -> None:
    names = ["dense", "low_rank", "monarch", *(f"new_{number}" for number in range(60))]
    looks = _palette.styles(names)
    assert len({(look.colour, look.shape) for look in looks.values()}) == len(names)
    assert _palette.styles(["monarch"])["monarch"] == looks["monarch"]  # whatever else is there
    own = [name for name in plugins.names("formats") if name != "dense"]
    assert not set(own) - set(_palette._KNOWN)
    assert len(set(_palette._KNOWN.values())) == len(_palette._KNOWN)


def test_the_series_of_a_format_differ_by_their_marks_or_lines() -> None:
    many = [("quantized", f"quantized type=t{number:02d}") for number in range(18)]
    many += [("low_rank", "low_rank kernel=mkl"), ("low_rank", "low_rank")]
    found = _palette.variants(many)
    assert found["low_rank"] == 0  # what names no kernel is a filled mark and a whole line
    looks = [_palette.VARIANTS[found[series]] for _, series in many[:18]]
    assert len(set(looks)) == 18
    assert len({(look.opacity, look.edge, look.dotted) for look in looks[:5]}) == 5  # marks alone
    assert len({look.dash for look in looks[:4]}) == 4  # by the line alone
    assert found == _palette.variants(reversed(many))


@pytest.mark.parametrize(
    ("colours", "background"),
    [(_palette.LIGHT, "#ffffff"), (_palette.DARK, "#16181c")],
    ids=["light", "dark"],
)
def test_every_colour_stands_out_from_its_background(
    colours: tuple[str, ...], background: str
) -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for colour in colours:
        low, high = sorted((luminance(colour), luminance(background)))
        assert (high + 0.05) / (low + 0.05) >= 3, colour  # WCAG 2.2, graphical objects


# figures for papers

_MAGIC = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}


@pytest.mark.parametrize("kind", sampled(sorted(figures.KINDS), 3))
@pytest.mark.parametrize(
    "suffix", [".svg", *(pytest.param(s, marks=pytest.mark.heavy) for s in (".pdf", ".png"))]
)
def test_every_kind_of_figure_is_drawn(run: Run, tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / "new" / f"figure{suffix}"
    figures.plot(run, kind, path)
    assert path.read_bytes().startswith(_MAGIC[suffix])
    assert path.stat().st_size > 5000


@pytest.mark.heavy
def test_the_same_run_gives_the_same_figure(run: Run, tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        figures.plot(run, "crossover", tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_a_figure_shows_names_as_they_are(tmp_path: Path) -> None:
    cases = [linear_case("dense", None), linear_case("a$b$_<script>", 0.5)]
    figures.plot(run_of(cases), "heatmap", tmp_path / "figure.svg")
    assert "<script>" not in (tmp_path / "figure.svg").read_text()


def test_an_unknown_kind_of_figure_names_the_nearest(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'roofline'"):
        figures.plot(run, "rooflines", tmp_path / "figure.png")


def test_an_unknown_suffix_is_a_sentence(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"png, svg or pdf, not as 'figure\.gif'"):
        figures.plot(run, "roofline", tmp_path / "figure.gif")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("roofline", "ceilings were not measured"),
        ("pareto", "no score that goes with a time"),
        ("crossover", "nothing can cross"),
        ("heatmap", "nothing to map"),
        ("scaling", "at least two token counts"),
    ],
)
def test_a_figure_without_data_is_a_sentence(tmp_path: Path, kind: str, said: str) -> None:
    bare = run_of([linear_case("dense", None)], ceilings={})
    with pytest.raises(UsageError, match=said):
        figures.plot(bare, kind, tmp_path / "figure.png")
    assert not (tmp_path / "figure.png").exists()


def test_a_figure_that_cannot_be_written_is_a_sentence(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFileError, match="Cannot write the figure"):
        figures.plot(run, "roofline", tmp_path / "file" / "figure.png")


# exports


def test_csv_holds_every_row_in_full(run: Run, tmp_path: Path) -> None:
    export.export(run, "csv", tmp_path / "new" / "rows.csv")
    read = pd.read_csv(tmp_path / "new" / "rows.csv")
    rows = replicate_rows(run)
    assert list(read["case"]) == [row["case"] for row in rows]
    assert list(read.columns) == list(rows[0])
    pd.testing.assert_series_equal(
        read["time_seconds"], pd.Series([row["time_seconds"] for row in rows], name="time_seconds")
    )


def test_json_has_null_where_nothing_is_known(run: Run, tmp_path: Path) -> None:
    export.export(run, "json", tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text(), parse_constant=pytest.fail)
    assert len(rows) == len(run.results)
    unsupported = next(row for row in rows if row["status"] == "unsupported")
    assert unsupported["time_seconds"] is None
    assert unsupported["reason"] == UNSUPPORTED


def test_parquet_without_pyarrow_says_what_to_install(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPartError, match="pip install pyarrow"):
        export.export(run, "parquet", tmp_path / "rows.parquet")
    assert not (tmp_path / "rows.parquet").exists()


def test_parquet_with_pyarrow(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    export.export(run, "parquet", tmp_path / "rows.parquet")
    assert len(pd.read_parquet(tmp_path / "rows.parquet")) == len(run.results)


def test_an_unknown_kind_of_export_is_a_sentence(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="known: bencher, csv, json, parquet"):
        export.export(run, "xlsx", tmp_path / "rows.xlsx")


def test_an_export_that_cannot_be_written_is_a_sentence(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFileError, match="Cannot write"):
        export.export(run, "csv", tmp_path / "file" / "rows.csv")


def test_rows_know_their_roof() -> None:
    rows = report_rows(
        run_of([linear_case("dense", None), linear_case("dense", None, dtype="bfloat16")])
    )
    assert [row.roof and row.roof.flops_per_second for row in rows] == [
        CEILINGS["matmul"]["float32"]["flops_per_second"],
        CEILINGS["matmul"]["bfloat16"]["flops_per_second"],
    ]
    bare = report_rows(run_of([linear_case("dense", None)], ceilings={}))
    assert bare[0].roof is None
    assert bare[0].placement is None
