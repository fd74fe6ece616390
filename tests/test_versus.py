"""Runs side by side: ratios, what explains them, flips, and what the command says."""

from __future__ import annotations

import copy
import io
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from _synthetic import CEILINGS, DENSITIES, HOSTILE, hostile_run, linear_case, questions, run_of

from hwbench.cli.compare import _prices
from hwbench.errors import UsageError
from hwbench.report import _versus, versus
from hwbench.store import Run


def machine(name: str, threads: int = 2) -> dict[str, Any]:
    return {"device": {"name": name}, "torch": "2.13.0+cpu", "threads": threads}


def scaled(roof: float) -> dict[str, Any]:
    """Ceilings that are all so many times those of the base."""
    found = copy.deepcopy(CEILINGS)
    found["copy"]["bytes_per_second"] *= roof
    for entry in found["matmul"].values():
        entry["flops_per_second"] *= roof
    return found


def faster(by: float, roof: float, densities: Sequence[float] = DENSITIES, **fields: Any) -> Run:
    """The usual run, with every time divided, on a machine whose roofs are higher."""
    cases = questions(projection=False, densities=densities)
    run = run_of(cases, ceilings=scaled(roof), **fields)
    for result in run.results:
        for measured in result.measurements:
            if measured.quantity == "time_seconds":
                measured.values[:] = [value / by for value in measured.values]
    return run


@pytest.fixture
def base() -> Run:
    return run_of(questions(projection=False), fingerprint=machine("Slow One"))


def compared(base: Run, other: Run) -> _versus.Versus:
    (found,) = versus.compare([base, other])
    return found


def test_every_case_has_its_ratio_with_an_interval_around_it(base: Run) -> None:
    found = compared(base, faster(2, 2, fingerprint=machine("Fast Two")))
    assert (found.base, found.other) == ("Slow One", "Fast Two")
    ratios = [each.ratio for each in found.matched if each.ratio is not None]
    assert len(ratios) == 4 * 19
    for measured in ratios:
        assert measured.value == pytest.approx(0.5)
        assert measured.low <= 0.5 <= measured.high


def test_what_the_roofs_explain_is_said_to_be_and_by_which(base: Run) -> None:
    found = compared(base, faster(2, 2))
    whys = {each.explained for each in found.matched if each.expected is not None}
    assert whys <= {"explained by compute", "explained by bandwidth"}
    assert [m.expected for m in found.matched if m.expected] == [pytest.approx(0.5)] * 76


def test_what_they_do_not_explain_is_not(base: Run) -> None:
    found = compared(base, faster(10, 2))
    assert _versus.tallied(found) == {"not explained": 76}
    assert versus.heads(found)[-1] == "explained by"
    told = {cells[-1] for _, lines in versus.lines(found) for cells in lines}
    assert told == {"nothing"}


def test_an_interval_that_is_too_wide_explains_nothing(base: Run) -> None:
    other = faster(2, 2)
    for result in other.results:
        for measured in result.measurements:
            if measured.quantity == "time_seconds":
                measured.values[:] = [v * 3**result.replicate for v in measured.values]
    assert set(_versus.tallied(compared(base, other))) == {"undecided"}


def test_without_ceilings_nothing_is_explained(base: Run) -> None:
    base.header = type(base.header)(
        **{n: getattr(base.header, n) for n in base.header.__struct_fields__} | {"ceilings": {}}
    )
    assert {m.explained for m in compared(base, faster(2, 2)).matched if m.ratio} == {
        "no measured peak"
    }


def test_two_timing_contracts_have_no_ratio(base: Run) -> None:
    other = faster(2, 2)
    for result in other.results:
        for place, measured in enumerate(result.measurements):
            if measured.quantity == "time_seconds":
                fields = {n: getattr(measured, n) for n in measured.__struct_fields__}
                result.measurements[place] = type(measured)(**fields | {"contract": "event"})
    found = compared(base, other)
    assert all(each.ratio is None for each in found.matched)
    assert "timed by wall and event: not comparable" in {m.explained for m in found.matched}


def test_the_same_order_agrees_and_another_winner_is_a_flip(base: Run) -> None:
    same = compared(base, faster(2, 2))
    assert set(same.agreement.values()) == {1.0}
    assert same.flips == []
    assert len(same.same_winners) == same.compared == 12
    other = faster(2, 2)
    for result in other.results:
        for measured in result.measurements:
            if measured.quantity == "relative_time" and "btt[density=0.5]" in result.case:
                measured.values[:] = [0.1 + 0.001 * result.replicate]
    found = compared(base, other)
    flips = found.flips
    assert len(found.same_winners) == found.compared - 4
    counted = ", ".join(f"{name} in {n}" for name, n in Counter(found.same_winners).most_common())
    assert f"The same format is the fastest on both in 8: {counted}." in _versus.answers(found)
    assert [(f.base.format, f.other.format, f.sure) for f in flips] == [
        ("low_rank", "btt", True)
    ] * 4


def test_devices_of_two_kinds_are_matched_without_their_name() -> None:
    cases = [linear_case("dense", None), linear_case("btt", 0.5)]
    there = [linear_case("dense", None, device="cuda"), linear_case("btt", 0.5, device="cuda")]
    assert len(compared(run_of(cases), run_of(there)).matched) == 2


def test_prices_count_by_the_hour(base: Run) -> None:
    other = faster(2, 2, fingerprint=machine("Fast Two"))
    (found,) = versus.compare([base, other], {"slow": 1.0, "fast": 3.0})
    assert any(
        said == "At 1 and 3 an hour a call costs 1.50× at the median."
        for said in _versus.summary(found)
    )
    with pytest.raises(UsageError, match="names none of the runs"):
        versus.compare([base, other], {"tpu": 1.0})
    with pytest.raises(UsageError, match="NAME=PRICE"):
        _prices(["a100"])


def test_thread_counts_tell_runs_of_one_machine_apart() -> None:
    runs = [run_of([], fingerprint=machine("One", threads)) for threads in (1, 2)]
    assert versus.labels(runs) == ["One, 1 thread", "One, 2 threads"]


def test_what_differs_between_environments_is_said_with_what_it_means(base: Run) -> None:
    found = compared(base, faster(2, 2, fingerprint=machine("Slow One", threads=8)))
    assert ("threads", "2 → 8", "decides times: this is what is compared") in versus.environment(
        found
    )


def test_facts_that_differ_have_units_on_the_page_and_stay_as_recorded_in_json(base: Run) -> None:
    here, there = machine("Slow One"), machine("Slow One")
    here["device"] |= {"caches_bytes": {"L3": 33554432}, "sets": ["avx2"], "odd_bytes": 33554432}
    there["device"] |= {"caches_bytes": {"L3": 314572800}, "sets": ["avx2", "amx"]}
    there["device"]["odd_bytes"] = 33554433
    base = run_of(questions(projection=False), fingerprint=here)
    found = compared(base, faster(2, 2, fingerprint=there))
    told = {name: said for name, said, _ in versus.environment(found)}
    assert told["device.caches_bytes.L3"] == "33.6 MB → 315 MB"
    assert told["device.sets"] == "avx2 → avx2, amx"
    assert told["device.odd_bytes"] == "33554432 → 33554433"  # else both would read alike
    (plain,) = versus.plain([found])
    changes = {each["fact"]: each["change"] for each in plain["environment"]}
    assert changes["device.caches_bytes.L3"] == "33554432 → 314572800"


def test_one_run_and_strangers_are_errors(base: Run) -> None:
    with pytest.raises(UsageError, match="two runs or more"):
        versus.compare([base])
    with pytest.raises(UsageError, match="no case in common"):
        versus.compare([base, run_of([linear_case("dense", None, shape=(8, 8))])])


# the outputs


def test_the_table_fits_80_columns(base: Run) -> None:
    from rich.console import Console

    console = Console(width=80, record=True, file=io.StringIO())
    for part in versus.table(versus.compare([base, faster(2, 2)])):
        console.print(part)
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 80
    assert "explained by" in shown


@pytest.mark.parametrize(
    ("by", "said"),
    [
        (2, "Fast Two is faster: 50 % less time than Slow One at the median of 76 cases."),
        (0.8, "Slow One is faster: 20 % less time than Fast Two at the median of 76 cases."),
        (1, "Slow One and Fast Two are equally fast at the median of 76 cases."),
    ],
)
def test_who_is_faster_is_said_first_and_statistics_last(base: Run, by: float, said: str) -> None:
    found = compared(base, faster(by, 2, fingerprint=machine("Fast Two")))
    assert _versus.headline(found) == _versus.summary(found)[1] == said
    middles = _versus.by_format(found)
    quick = {2: "Fast Two, by 50 %", 0.8: "Slow One, by 20 %", 1: "as fast on both"}[by]
    assert {who for _, _, who in middles} == {quick}
    page = versus.page([base, faster(by, 2, fingerprint=machine("Fast Two"))], [found])
    first, whole = page.split('<div class="whole">')[:2]
    assert said in first
    assert "Kendall" not in first.partition("<main>")[2]
    assert "Kendall" in whole


def test_the_page_says_where_the_winner_flips(base: Run) -> None:
    other = faster(2, 2, fingerprint=machine("Fast Two"))
    for result in other.results:
        for measured in result.measurements:
            if measured.quantity == "relative_time" and "btt[density=0.5]" in result.case:
                measured.values[:] = [0.1 + 0.001 * result.replicate]
    found = compared(base, other)
    setting = "Forward, 1024×1024, 16 tokens, float32, density 0.5"
    assert (setting, "low_rank", "btt", "yes") in versus.winners(found)
    page = versus.page([base, other], [found])
    assert f'<td class="left">{setting}</td><td class="left">low_rank</td>' in page


def test_the_page_has_the_comparison_first_and_stays_inert(base: Run) -> None:
    runs = [base, faster(2, 2, fingerprint=machine("Fast Two"))]
    page = versus.page(runs, versus.compare(runs))
    assert page.index("Side by side") < page.index('id="answer"')
    assert "Fast Two against Slow One" in page
    hostile = [hostile_run(), hostile_run()]
    text = versus.page(hostile, versus.compare(hostile))
    assert "<img src=x" not in text.replace("\\u003c", "<").split('id="hw-data"')[0]
    assert HOSTILE not in text


def test_the_machine_readable_form_is_whole(base: Run) -> None:
    (found,) = json.loads(json.dumps(versus.plain(versus.compare([base, faster(2, 2)]))))
    assert len(found["cases"]) == len(base.planned)
    assert {"case", "ratio", "low", "high", "expected", "explained"} <= set(found["cases"][0])


def test_a_ratio_counts_the_replicates_that_the_times_beside_it_count(base: Run) -> None:
    """Half of the replicates ran beside a busy neighbour, which dense shows."""
    other = run_of(questions(projection=False), replicates=8, fingerprint=machine("Slow One"))
    for result in other.results:
        for measured in result.measurements:
            if measured.quantity == "time_seconds" and result.replicate % 2:
                measured.values[:] = [1.5 * value for value in measured.values]
    for matched in compared(base, other).matched:
        if matched.ratio is not None:
            beside = matched.other.time_seconds / matched.base.time_seconds
            assert matched.ratio.value == pytest.approx(beside, rel=0.01)
            assert matched.ratio.counts[1] == (4 if matched.other.slowed else 8)


def test_cases_that_the_table_leaves_out_are_counted(
    base: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparisons = versus.compare([base, faster(2, 2, fingerprint=machine("Fast Two"))])
    words = "more cases: --out writes a page with all"
    assert words not in "".join(map(str, versus.table(comparisons)))
    monkeypatch.setattr(versus, "_MOST", 70)
    assert f"6 {words}" in "".join(map(str, versus.table(comparisons)))
