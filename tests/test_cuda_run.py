"""Every reader shows a run of a GPU right: events, graphs, launch-bound cases, clocks, energy."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from _check import kept
from _cuda_run import CAUSE, NO_GRAPH, REPLICATES, cuda_run
from _synthetic import questions, run_of
from rich.console import Console

from hwbench.analysis.frames import load_run, summary
from hwbench.quantities import ENERGY, GRAPH, PAGE
from hwbench.records import Footer, Measurement, Result
from hwbench.report import _clock, _facts, _words, figures, text
from hwbench.report import rows as report
from hwbench.report._pack import unpacked
from hwbench.report.html import render
from hwbench.report.rows import report_rows
from hwbench.store import Run, read_run

Call = Callable[..., tuple[int, str, str]]

STARVED = 6
STARVED_SAID = (
    f"{STARVED} of {len(cuda_run().planned)} cases are starved: the device waited for the host in "
    f"too many of their samples, so they have no time of their own; {STARVED} have that of a graph."
)
HOST = "the host takes about as long to launch a call as the device to execute it"


@pytest.fixture(scope="module")
def run() -> Run:
    return cuda_run()


def measured(run: Run) -> int:
    """How many cases are timed and can run; those that are starved have no time all the same."""
    return sum(not (each.seeds or each.unsupported) for each in run.planned.values())


@pytest.fixture(scope="module")
def shown(run: Run) -> str:
    """The terminal's table, on one line a paragraph."""
    out = io.StringIO()
    Console(file=out, width=400, color_system=None).print(*text.table(run, 400), sep="\n")
    return out.getvalue()


@pytest.fixture(scope="module")
def page(run: Run) -> str:
    """The words of the page, without its scripts."""
    body = re.sub(r"<(script|style).*?</\1>", "", render([run]), flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", body)))


def test_the_run_is_complete_and_has_what_a_gpu_leaves(run: Run, tmp_path: Path) -> None:
    """What the other tests look for is there, after the file was written and read."""
    read = read_run(Path(kept(run, tmp_path)))
    assert read.complete
    assert read.results == run.results
    assert read.header == run.header
    flags = {flag for result in read.results for flag in result.flags}
    assert flags == {"launch_bound", "starved", "disturbed"}
    contracts = {m.contract for r in read.results for m in r.measurements}
    assert contracts == {None, "event", "graph", "wall"}
    assert {len(r.flags) for r in read.results} > {0}
    assert [p.case.direction for p in read.planned.values() if p.unsupported] == ["step"] * 4


# --- the terminal -----------------------------------------------------------------------------


def test_the_terminal_shows_graphs_and_energy(run: Run, shown: str) -> None:
    titles = [line for line in shown.splitlines() if re.match(r"format +density +time", line)]
    assert len(titles) == 10
    assert re.search(r"stored +graph +energy", titles[0])
    assert all("energy" in title for title in titles)
    rows = [r for r in report_rows(run) if r.format == "low_rank" and r.tokens == 1]
    row = min((r for r in rows if r.direction == "forward"), key=lambda r: r.time_seconds)
    line = next(line for line in shown.splitlines() if line.startswith("low_rank"))
    assert f"{1e6 * row.value('graph_seconds'):.2f} µs" in line
    assert f"{1e3 * row.value('energy_joules'):.2f} mJ" in line
    assert "ok, launch bound" in line


def test_the_terminal_says_what_its_times_and_flags_mean(shown: str) -> None:
    assert _clock.CONTRACTS["event"] in shown
    assert HOST in shown
    assert STARVED_SAID in shown
    assert f"What disturbed: {CAUSE} (and 20 like it)." in shown
    for flag in ("launch_bound", "starved", "disturbed"):
        assert f"{_words.flag(flag)}: {_words.FLAGS[flag]}." in shown
    assert "The SM clock was 1.98 GHz and became 1.60 GHz" in shown
    assert "the power was 71.2 W and became 640 W" in shown
    assert "the power limit is 700 W; in the end the clock was set by: power cap." in shown


def test_a_run_of_a_cpu_says_none_of_it() -> None:
    out = io.StringIO()
    run = run_of(questions())
    Console(file=out, width=400, color_system=None).print(*text.table(run, 400), sep="\n")
    for words in ("graph", "energy", "launch", "queue", "SM clock"):
        assert words not in out.getvalue()


# --- sentences --------------------------------------------------------------------------------


def test_launch_bound_cases_are_counted_with_their_graphs_and_why_some_have_none(run: Run) -> None:
    said = _clock.launches(run, report_rows(run))
    assert said is not None
    starved = {r.case for r in run.results if "starved" in r.flags}
    bound = {r.case for r in run.results if "launch_bound" in r.flags} - starved
    without = {r.case for r in run.results for m in r.measurements if m.note == NO_GRAPH}
    assert 0 < len(without) < len(bound)
    assert said.startswith(
        f"{len(bound)} of {measured(run) - STARVED} timed cases are launch-bound"
    )
    assert f"{len(bound) - len(without)} of them take 0.97× of their time" in said
    assert said.endswith(f"{len(without)} have no graph: {NO_GRAPH}")


def test_causes_that_differ_by_figures_alone_are_one() -> None:
    run = run_of(questions(projection=False))
    notes = ["warmed by 6 °C; others took 200 MB of its memory", "warmed by 7.5 °C", "heat"]
    notes += ["power brake", "idle", "display clocks"]
    time = [
        Measurement(quantity="time_seconds", unit="s", values=[1.0], note=note) for note in notes
    ]
    case = next(iter(run.planned))
    run.results = [
        Result(case=case, replicate=n, seed=n, status=run.results[0].status, flags=["disturbed"],
               measurements=[each])
        for n, each in enumerate(time)
    ]  # fmt: skip
    assert _clock.causes(run) == (
        "What disturbed: warmed by 6 °C (and 1 like it); others took 200 MB of its memory; heat; "
        "and 3 other causes."
    )


def test_an_unfinished_run_tells_the_clock_that_it_began_with(run: Run) -> None:
    cut = Run(path=run.path, header=run.header, planned=run.planned, results=run.results)
    said = _clock.clocks(cut)
    assert said is not None
    assert said.startswith("The SM clock was 1.98 GHz, the power was 71.2 W")
    assert "became" not in said
    assert "set by" not in said


def test_readings_that_are_reasons_are_no_clocks(run: Run) -> None:
    """NVML may refuse a field in words, which stand where a number would."""
    state = {"sm_clock_hertz": "NVML does not tell the clock: Not Supported.", "power_watts": 70.0}
    environment = type(run.header.environment)(state=state)
    header = type(run.header)(
        **{n: getattr(run.header, n) for n in run.header.__struct_fields__}
        | {"environment": environment}
    )
    refused = Run(path=run.path, header=header)
    refused.footer = Footer(finished="now", wall_seconds=1.0, state={**state, "power_watts": "no"})
    assert _clock.clocks(refused) == "The power was 70.0 W."


# --- the page ---------------------------------------------------------------------------------


def test_the_page_says_before_its_answer_is_believed_who_waits_for_the_host(page: str) -> None:
    begin = page.index("The answer")
    answer = page[begin : page.index("Who wins where", begin)]
    assert HOST in answer
    assert STARVED_SAID in answer


def test_the_page_tells_the_clock_and_the_machine_in_units(page: str) -> None:
    method = page[page.index("The machine and the method") :]
    names = method.replace(". ", ".")  # a line may break behind a dot
    assert _clock.CONTRACTS["event"] in method
    assert f"What disturbed: {CAUSE} (and 20 like it)." in method
    for words in (
        "sm_clock_hertz 1.60 GHz",
        "power_watts 640 W",
        "temperature_celsius 71.0 °C",
        "device.power_limit_watts 700 W",
        "throttled_seconds.power_cap_seconds 12.5 s",
        "Starved: the device waited for the host",
    ):
        assert words in method or words in names


def test_two_runs_on_a_page_each_tell_their_clock(run: Run) -> None:
    other = cuda_run("20260103-030405-linear-cuda-h100", seed=1)
    words = html.unescape(render([run, other]))
    named = [f"NVIDIA H100 80GB HBM3 ({each.header.run})" for each in (run, other)]
    for name in named:
        assert f"{name}: {_clock.CONTRACTS['event']}" in words
        timed = measured(run) - STARVED
        assert re.search(rf"{re.escape(name)}: \d+ of {timed} timed cases are launch-bound", words)


def test_the_pages_rows_hold_graphs_energy_and_the_contract(run: Run) -> None:
    from hwbench.report._pack import columns
    from hwbench.report.html import _rows

    rows = _rows([run], ["H100"])
    packed = columns(rows, [GRAPH.name, ENERGY.name])
    graphs = [value for value in unpacked(packed, "graph_seconds") if value is not None]
    assert len(graphs) == sum(not math.isnan(row.value("graph_seconds")) for row in rows) > 0
    assert len([v for v in unpacked(packed, "energy_joules") if v is not None]) == measured(run)
    assert set(unpacked(packed, "contract")) == {"event", None}
    columns_shown = {each.name for each in report.quantities_shown([run], PAGE)}
    assert {GRAPH.name, ENERGY.name} <= columns_shown


def test_every_ceiling_is_told_with_its_library_and_clock(run: Run) -> None:
    told = dict(_facts.ceilings(run.header.ceilings))
    product = "760 TFLOP/s, product of 8192 × 8192 × 8192 by cublaslt, at 1.75 GHz"
    assert told["matmul bfloat16"] == product
    assert told["matmul float32_tf32"] == "390 TFLOP/s, product of 8192 × 8192 × 8192"
    assert told["copy from L2"] == "5.60 TB/s"
    assert told["triad"] == "3.02 TB/s, working set 2.00 GB"
    assert told["smallest call"] == (
        "2.10 µs on the device, 3.90 µs of the host, 4.40 µs as a graph of one, "
        "1.30 µs in a graph of many"
    )


# --- figures, exports, verdicts ---------------------------------------------------------------


@pytest.mark.heavy
@pytest.mark.parametrize("kind", figures.KINDS)
def test_every_figure_is_drawn(run: Run, kind: str, tmp_path: Path) -> None:
    figures.plot(run, kind, tmp_path / f"{kind}.svg")
    assert len((tmp_path / f"{kind}.svg").read_text()) > 10_000


def test_the_roofline_has_the_makers_roofs_beside_the_measured_ones(run: Run) -> None:
    roofs = {each.source: each for each in report_rows(run)[0].roofs}
    assert set(roofs) == {"measured", "cache", "datasheet", "formula"}
    assert roofs["datasheet"].flops_per_second > roofs["measured"].flops_per_second


def test_tables_hold_the_contract_the_graph_and_the_energy(run: Run, tmp_path: Path) -> None:
    path = kept(run, tmp_path)
    rows, one = load_run(path), summary(path)
    timed = rows[rows.workload == "linear"]
    assert set(timed.contract.dropna()) == {"event"}
    both = one[one["flags"].str.contains("launch_bound") & one.graph_seconds.notna()]
    starved = both["flags"].str.contains("starved")
    assert both.time_seconds[starved].isna().all()
    assert (both.graph_seconds[~starved] < both.time_seconds[~starved]).all()
    assert starved.sum() == 6
    assert one.energy_joules.notna().sum() == measured(run)
    assert timed[timed.replicate > 0].energy_joules.isna().all()
    assert (one[one.energy_joules.notna()].joules_per_dense_flop > 0).all()


def test_exports_hold_them_too(run: Run, tmp_path: Path, hwbench: Call) -> None:
    path = kept(run, tmp_path)
    assert hwbench("export", path, "--to", "csv", "--out", "run.csv")[0] == 0
    with (tmp_path / "run.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(run.results)
    assert {row["contract"] for row in rows} == {"event", ""}
    assert sum(bool(row["energy_joules"]) for row in rows) == measured(run)
    assert hwbench("export", path, "--to", "pytest-benchmark", "--out", "run.json")[0] == 0
    found = json.loads((tmp_path / "run.json").read_text())
    assert {b["extra_info"]["hwbench"]["contract"] for b in found["benchmarks"]} == {"event"}


def test_a_gate_finds_the_slower_format_alone(tmp_path: Path, hwbench: Call) -> None:
    old = kept(cuda_run(), tmp_path)
    new = kept(cuda_run("20260103-030405-linear-cuda-h100", slower=1.1, seed=1), tmp_path)
    code, out, err = hwbench("check", new, "--baseline", old, "--json")
    assert code == 1, err
    changes = json.loads(out)["changes"]
    verdicts = {c["verdict"] for c in changes if "low_rank" in c["case"] and "forward" in c["case"]}
    others = {c["verdict"] for c in changes if "low_rank" not in c["case"]}
    assert "regressed" in verdicts
    assert "regressed" not in others


def test_a_comparison_pairs_events_with_events(tmp_path: Path, hwbench: Call) -> None:
    old = kept(cuda_run(), tmp_path)
    new = kept(cuda_run("20260103-030405-linear-cuda-h100", slower=1.1, seed=1), tmp_path)
    code, out, _ = hwbench("compare", old, new, "--json")
    assert code == 0
    assert "not comparable" not in out


def test_seeds_and_replicates_are_counted_apart(run: Run) -> None:
    assert (
        _facts.counts(run)
        == f"{len(run.planned)} cases, {REPLICATES} of {REPLICATES} replicates, 1 of 1 seed"
    )
