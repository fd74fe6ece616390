"""Levels over many runs: when they changed, what else did, and how rarely noise makes one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _synthetic import CEILINGS, HOSTILE, linear_case, run_of, scored_case
from msgspec.structs import replace

from hwbench import units
from hwbench.analysis.changepoints import FEWEST, Series, change_points, correlation
from hwbench.quantities import ENERGY, Quantity
from hwbench.records import (
    Case,
    Measurement,
    Planned,
    PlannedLine,
    Result,
    ResultLine,
    Status,
    Verdict,
)
from hwbench.report import _words as words
from hwbench.report import history as pages
from hwbench.report.rows import printable
from hwbench.store import Run, RunWriter
from hwbench.studies.history import history

CASES = [linear_case("dense", None), linear_case("low_rank", 0.5), linear_case("csr", 0.5)]
SLOW = CASES[1].id


def noisy(
    rng: np.random.Generator, count: int, sd: float = 0.01, *, spike: float = 0.0, ar: float = 0.0
) -> np.ndarray:
    noise = rng.normal(0, sd, count)
    for index in range(1, count):
        noise[index] += ar * noise[index - 1]
    return np.asarray(np.exp(noise + math.log(1.3) * (rng.random(count) < spike)))


# Change points


@pytest.mark.parametrize("kind", [{}, {"sd": 0.03}, {"ar": 0.5}, {"spike": 0.05}])
def test_noise_makes_a_change_in_few_series(kind: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    found = [change_points(noisy(rng, 60, **kind).tolist(), floor=0.03) for _ in range(200)]
    assert sum(map(bool, found)) <= (4 if "spike" in kind else 2)  # of 200 series of 60 nights


@pytest.mark.parametrize("kind", [{}, {"ar": 0.3}, {"spike": 0.05}])
def test_a_step_is_found_within_five_nights(kind: dict[str, Any]) -> None:
    rng = np.random.default_rng(2)
    exact = 0
    for _ in range(100):
        values = noisy(rng, 60, **kind)
        values[55:] *= 1.05
        steps = change_points(values.tolist(), floor=0.03, series=200)
        exact += bool(steps) and abs(steps[-1].index - 55) <= 1
    assert exact >= 85


@pytest.mark.parametrize("nights", [12, 30, 100])
@pytest.mark.parametrize("ar", [0.0, 0.5])
def test_nights_that_keep_half_of_the_night_before_make_no_levels(nights: int, ar: float) -> None:
    """240 series of noise without a change, twenty a machine, at a floor of one σ."""
    rng = np.random.default_rng(nights)
    found = independent = 0
    for _ in range(12):
        machine = [noisy(rng, nights, ar=ar).tolist() for _ in range(20)]
        kept = correlation(machine)
        assert nights == 12 or kept >= ar - 0.2  # it may be taken larger, and not much smaller
        found += sum(bool(change_points(v, floor=0.01, kept=kept)) for v in machine)
        independent += sum(bool(change_points(v, floor=0.01)) for v in machine)
    assert found <= 5  # 1 % of a series, with its chance
    if ar and nights > 12:
        assert independent > 10 * max(1, found)  # what the correlation is read for


def test_steps_of_all_series_are_not_taken_for_correlation() -> None:
    rng = np.random.default_rng(7)
    machine = [noisy(rng, 60) for _ in range(20)]
    for values in machine:
        values[30:] *= 1.05
    kept = correlation([values.tolist() for values in machine])
    assert kept < 0.4
    steps = [change_points(v.tolist(), floor=0.03, series=20, kept=kept) for v in machine]
    assert sum(len(each) == 1 and abs(each[0].index - 30) <= 1 for each in steps) >= 19


def test_no_times_have_no_correlation() -> None:
    assert correlation([]) == correlation([[1.0]]) == correlation([[1.0] * 30]) == 0.0


def test_a_slow_down_and_its_repair_are_two_steps() -> None:
    rng = np.random.default_rng(3)
    values = noisy(rng, 300, 0.005)
    values[100:200] *= 1.10
    steps = change_points(values.tolist(), floor=0.03, series=50)
    assert [(s.index, s.verdict) for s in steps] == [
        (100, Verdict.REGRESSED),
        (200, Verdict.IMPROVED),
    ]
    assert steps[0].ratio == pytest.approx(1.10, rel=0.01)
    higher = change_points(values.tolist(), floor=0.03, series=50, better="higher")
    assert [s.verdict for s in higher] == [Verdict.IMPROVED, Verdict.REGRESSED]


def test_what_is_below_the_floor_or_in_the_last_nights_is_no_level() -> None:
    exact = [1.0] * 20
    assert change_points(exact, floor=0.03) == []
    assert change_points(exact + [1.02] * 20, floor=0.03) == []
    assert change_points(exact + [1.5] * (FEWEST - 1), floor=0.03) == []
    (step,) = change_points(exact + [1.5] * FEWEST, floor=0.03)
    assert (step.index, step.verdict) == (20, Verdict.REGRESSED)
    assert change_points([1.0, 2.0], floor=0.03) == []


def test_drift_below_the_floor_a_night_is_still_seen() -> None:
    values = [1.0 * 1.004**night for night in range(60)]
    steps = change_points(values, floor=0.03)
    assert steps
    assert all(step.verdict is Verdict.REGRESSED for step in steps)


# Folders of runs


def night(number: int, **fields: Any) -> Run:
    """The run of one night; ``slower`` is what low_rank takes longer."""
    slower, commit = fields.pop("slower", 1.0), fields.pop("commit", "a" * 40)
    facts = {"name": "Example", "threads": 2, "torch": fields.pop("torch", "2.12.0")}
    created = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=number)
    name = f"{created:%Y%m%d}-000000-linear-cpu-{number:04x}"
    run = run_of(CASES, replicates=3, seed=number, name=name, fingerprint=facts)
    where = replace(run.header.environment, state={"commit": commit, "dirty": False})
    run.header = replace(run.header, created=created.isoformat(), environment=where, **fields)
    run.results = [
        replace(
            r,
            measurements=[
                replace(m, values=[slower * v for v in m.values])
                if m.quantity == "relative_time"
                else m
                for m in r.measurements
            ],
        )
        if r.case == SLOW
        else r
        for r in run.results
    ]
    return run


def kept(run: Run, folder: Path) -> Path:
    lines = [PlannedLine(id=case, planned=planned) for case, planned in run.planned.items()]
    writer = RunWriter.create(folder, run.header, lines)
    writer.append(*[ResultLine(result=result) for result in run.results])
    if run.footer:
        writer.append(run.footer)
    writer.close()
    return writer.path


@pytest.fixture
def nights(tmp_path: Path) -> Path:
    """Forty nights; from the 26th low_rank is slower, with another commit and another torch."""
    for number in range(40):
        changed = {"slower": 1.1, "commit": "b" * 40, "torch": "2.13.0"} if number >= 25 else {}
        kept(night(number, **changed), tmp_path / "nights")
    return tmp_path / "nights"


def test_the_first_bad_run_is_named_with_what_changed(nights: Path) -> None:
    told = history(nights)
    (one,) = told.histories
    assert told.notes == []
    assert len(one.nights) == 40
    (event,) = one.events
    assert one.nights[event.run].run.startswith("20260126")
    assert one.nights[event.since].run.startswith("20260125")
    assert [(s.case, s.metric) for s, _ in event.regressed] == [(SLOW, "relative")]
    assert event.improved == []
    assert event.commits == ("a" * 40, "b" * 40)
    assert event.changed == ["torch was '2.12.0' and is '2.13.0'"]
    assert {s.metric for s in one.series} == {"relative", "time"}  # dense has its time alone


@pytest.mark.parametrize("better", ["lower", "higher"])
@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_a_score_is_judged_in_its_own_direction(tmp_path: Path, better: str, factor: float) -> None:
    case = scored_case("image", "low_rank", 64)
    for number in range(12):
        run = night(number)
        run.planned = {case.id: Planned(case=case, better=better, seeds=1)}
        score = 30.0 * (factor if number >= 6 else 1.0)
        read = Measurement(quantity="score", unit="", values=[score], note="example")
        run.results = [
            Result(case=case.id, replicate=0, seed=0, status=Status.OK, measurements=[read])
        ]
        kept(run, tmp_path / "nights")
    (one,) = history(tmp_path / "nights").histories
    ((step,),) = [series.steps for series in one.series]
    good = (factor > 1) == (better == "higher")
    assert step.verdict is (Verdict.IMPROVED if good else Verdict.REGRESSED)
    (event,) = one.events
    assert pages.headline(event).startswith(f"1 case {'better' if good else 'worse'} by 2")
    text = pages.render([one], [])
    assert f"last {units.significant(30.0 * factor)}<" in text  # a score is no quotient


def test_the_terminal_and_json_say_it(
    nights: Path, hwbench: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, err = hwbench("history", str(nights))
    assert (code, err) == (0, "")
    assert "20260126-000000-linear-cpu-0019: 1 case worse by 10." in out
    assert f"commit {'a' * 12} → {'b' * 12}\n" in out
    assert "2026-01-26 00:00 UTC 20260126-" in out
    assert "+00:00" not in out
    assert "torch was '2.12.0' and is '2.13.0'" in out
    code, out, _ = hwbench("history", str(nights), "--json", "--case", "low_rank")
    (one,) = json.loads(out)["histories"]
    assert [each["case"] for each in one["series"]] == [SLOW]
    assert one["changes"][0]["first_run"].startswith("20260126")
    assert one["changes"][0]["regressed"][0]["ratio"] == pytest.approx(1.1, rel=0.02)
    assert len(one["series"][0]["values"]) == 40
    assert (
        "No case changed by 15.0 % or more."
        in hwbench("history", str(nights), "--threshold", "15%")[1]
    )


def test_what_is_no_nights_measure_is_left_out_and_counted(nights: Path) -> None:
    unfinished = night(50)
    unfinished.footer = None
    kept(unfinished, nights)
    for number, arguments in enumerate(({"confirms": "x"}, {"slower": 0.1}, {"pair": "a"})):
        kept(night(60 + number, arguments=arguments), nights)
    (nights / "notes.jsonl").write_text("remember the milk\n")
    (nights / "copy.jsonl").write_bytes(min(nights.iterdir()).read_bytes())
    kept(night(70, suite="other"), nights)
    told = history(nights)
    assert [(each.suite, len(each.nights)) for each in told.histories] == [
        ("linear", 40),
        ("other", 1),
    ]
    for why in (
        *("cannot be read", "not finished", "slowed on purpose", "a side of hwbench ab"),
        "the same run again",
    ):
        assert f"1 {why}" in told.notes[0]
    assert [each.suite for each in history(nights, suite="other").histories] == ["other"]


def test_other_machines_and_contracts_are_not_one_series(nights: Path) -> None:
    other = night(80)
    where = other.header.environment
    facts = {**where.fingerprint, "threads": 16}
    other.header = replace(other.header, environment=replace(where, fingerprint=facts))
    kept(other, nights)
    assert [len(each.nights) for each in history(nights).histories] == [40, 1]
    revised = night(81)
    revised.planned = {c: replace(p, revision=2) for c, p in revised.planned.items()}
    kept(revised, nights)
    one = history(nights).histories[0]
    assert {s.left_out for s in one.series} == {40}
    assert {len(s.values) for s in one.series} == {1}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (["empty"], "holds no run that makes a history"),
        (["empty", "--metric", "tiem"], "did you mean 'time'"),
        (["empty", "--threshold", "much"], "--threshold is a share"),
        ([], "Missing argument"),
    ],
)
def test_a_mistake_is_one_sentence_and_2(hwbench, tmp_path, arguments, words) -> None:
    Path("empty").mkdir()
    code, out, err = hwbench("history", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.strip().splitlines()) == 1


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_stands_alone_and_draws_every_case(
    nights: Path, tmp_path: Path, hwbench: Callable[..., tuple[int, str, str]]
) -> None:
    out = tmp_path / "history.html"
    assert hwbench("history", str(nights), "--out", str(out))[0] == 0
    text = out.read_text(encoding="utf-8")
    page = Page(text)
    assert sum(tag == "svg" for tag, _ in page.tags) == len(CASES)
    assert not [tag for tag, _ in page.tags if tag in ("script", "img", "link", "iframe")]
    assert not re.search(r"(?:src|href)=\"(?!#)", text)
    assert "1 case worse by 10." in text
    assert sum("step bad" in (a.get("class") or "") for t, a in page.tags if t == "line") == 1
    numbers = re.findall(r"[ML]([\d.]+) ([\d.]+)", " ".join(re.findall(r' d="([^"]+)"', text)))
    assert len(numbers) == 40 * len(CASES)
    assert all(0 <= float(x) <= 320 and 0 <= float(y) <= 44 for x, y in numbers)


def test_the_page_can_be_narrowed_without_a_script(nights: Path) -> None:
    """A choice hides what has not its class, and says how many cases have it."""
    text = pages.render(history(nights).histories, [])
    page = Page(text)
    rows = [set((a.get("class") or "").split()) for t, a in page.tags if t == "tr" and "id" in a]
    assert len(rows) == len(CASES)
    offered = re.findall(
        r'<input type="radio" name="h0-(\w+)" class="pick-([\w-]+)"> ([^<]+) <small>(\d+)<', text
    )
    assert [(kind, value.strip(), int(count)) for kind, _, value, count in offered] == [
        ("changes", "as it was", 2), ("changes", "changed", 1),
        ("format", "low_rank", 1), ("format", "csr", 1), ("format", "dense", 1),
    ]  # fmt: skip
    style = text.partition("</style>")[0]
    for _, name, _, count in offered:
        assert sum(name in own for own in rows) == int(count)
        rule = f".cases:has(.pick-{name}:checked) tbody tr:not(.{name}, :target)"
        assert f"{rule} {{ display: none; }}" in style
    checked = [a for tag, a in page.tags if tag == "input" and "checked" in a]
    assert [a["name"] for a in checked] == ["h0-changes", "h0-format"]  # all, at first


def test_a_change_leads_to_the_line_of_its_case_whose_address_stays(nights: Path) -> None:
    before = Page(pages.render(history(nights).histories, []))
    kept(night(40, slower=1.1, commit="b" * 40, torch="2.13.0"), nights)
    page = Page(pages.render(history(nights).histories, []))
    ids, ids_before = (
        {a["id"]: a for tag, a in each.tags if tag == "tr" and "id" in a} for each in (page, before)
    )
    assert set(ids) == set(ids_before)
    assert len(ids) == len(CASES)
    led = [str(a["href"])[1:] for t, a in page.tags if t == "a" and a.get("href", "#h")[1] == "c"]
    assert set(led) == set(ids)
    (changed,) = {each for each in led if led.count(each) == 2}  # by its line, and by the change
    assert "changes-1" in str(ids[changed]["class"])


def test_what_is_rare_among_many_values_is_one_choice() -> None:
    values = [1.0, 1.0, 1.0]
    many = [
        Series(linear_case("csr", 0.5, tokens=tokens).id, "time", range(3), values)
        for tokens in range(1, 61)
    ]
    kinds, chosen = pages._choices(many)
    assert [kind["title"] for kind in kinds] == ["tokens"]
    listed = kinds[0]["values"]
    assert len(listed) == 41
    assert listed[-1] == ("tokens-40", "other", 20)
    assert [own for own in chosen if own == ["tokens-40"]] == [["tokens-40"]] * 20
    assert pages._choices(many[:1]) == ([], [[]])


@pytest.mark.parametrize(
    ("case", "told"),
    [
        (linear_case("csr", 0.5, tokens=1), ("csr", "forward", "1 token")),
        (linear_case("dense", None, direction="step"),
         ("dense", "forward and backward", "256 tokens")),
        (scored_case("compress", "n_m", 64), ("n_m", "compress", "")),
    ],
)  # fmt: skip
def test_the_parts_of_a_case_are_read_from_its_id(case: Case, told: tuple[str, ...]) -> None:
    assert words.parts(case.id) == told


def test_the_page_names_cases_moments_and_commits_as_people_read_them(nights: Path) -> None:
    text = pages.render(history(nights).histories, [])
    assert "low_rank density=0.5: forward, 1024×1024, 256 tokens, float32" in text
    assert "2026-01-01 00:00 UTC to 2026-02-09 00:00 UTC" in text
    assert "40 runs, 1 change: " in text  # what a line shows, where it is hovered or read
    assert text.count("<title>") == 1 + len(CASES)
    assert not re.search(r"\b[0-9a-f]{13,}\b|\+00:00", text)
    assert f'title="{SLOW}"' in text


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (linear_case("dense", None), "dense: forward, 1024×1024, 256 tokens, float32"),
        (
            linear_case("csr", 0.5, tokens=1, direction="step", regime="cold", mode="compile"),
            "csr density=0.5: forward and backward, 1024×1024, 1 token, float32, cold, compile",
        ),
        (
            scored_case("compress", "n_m", 64, weights="a/b.safetensors"),
            "n_m density=0.5: compress weights=a/b.safetensors, 64×64, float32",
        ),
    ],
)
def test_the_id_of_a_case_is_read_back(case: Case, said: str) -> None:
    assert words.case(case.id) == said


@pytest.mark.parametrize("odd", ["", "nobody", "a/b", "1x1", "a/1x1", "a/b/1x1", HOSTILE])
def test_what_is_no_id_of_a_case_stays(odd: str) -> None:
    assert words.case(odd) == printable(odd)
    assert words.parts(odd) is None


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    for number in range(8):
        run = night(number, slower=1.0 if number < 4 else 2.0, commit=HOSTILE + str(number > 3))
        run.header = replace(run.header, suite=HOSTILE)
        kept(run, tmp_path)
    told = history(tmp_path)
    text = pages.render(told.histories, [HOSTILE])
    assert not [tag for tag, _ in Page(text).tags if tag in ("script", "img")]
    shown = "\n".join(pages.lines(told.histories[0]))
    assert "\u2028" not in shown
    assert "\x1b" not in shown


def test_a_long_series_is_drawn_in_parts_that_lose_no_extreme() -> None:
    values = [1.0 + 0.001 * (index % 7) for index in range(1000)]
    values[500] = 3.0
    drawn = pages.sparkline(Series("a", "time", range(1000), values), 1000)
    assert drawn["line"].count("L") < 200
    ys = [float(y) for _, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", drawn["band"])]
    assert min(ys) == pytest.approx(4.0)  # the spike is in the band


@pytest.mark.heavy
def test_a_thousand_runs_are_one_history(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    run = night(0)
    template = run.results
    for number in range(1000):
        made = night(0)
        created = datetime(2020, 1, 1, tzinfo=UTC) + timedelta(days=number)
        made.header = replace(
            run.header, run=f"n{number:04}", created=created.isoformat(), ceilings=CEILINGS
        )
        slower = 1.08 if number >= 700 else 1.0
        made.results = [
            Result(
                case=r.case, replicate=r.replicate, seed=0, status=Status.OK,
                measurements=[
                    Measurement(
                        quantity="relative_time", unit="×", contract="wall",
                        values=[float(rng.normal(1, 0.01)) * (slower if r.case == SLOW else 1)],
                    )
                ],
            )
            for r in template
        ]  # fmt: skip
        kept(made, tmp_path)
    (one,) = history(tmp_path).histories
    assert len(one.nights) == 1000
    (event,) = one.events
    assert abs(event.run - 700) <= 1
    assert len(pages.render([one], [])) < 1_000_000


@pytest.mark.parametrize(
    ("metric", "quantity", "value", "said"),
    [
        ("energy_joules", ENERGY, 0.0123, "12.3 mJ"),
        ("warmth", Quantity(name="warmth", unit="K"), 300.0, "300 K"),
        ("relative", Quantity(name="relative_time", unit="×"), 0.5, "0.500×"),
        ("pages", Quantity(name="pages"), 12.0, "12.0"),
    ],
)
def test_a_quantity_is_written_in_its_unit(
    metric: str, quantity: Quantity, value: float, said: str
) -> None:
    series = Series("case", metric, range(3), [value] * 3, quantity=quantity)
    assert pages._says(series) == f"3 runs, 0 changes: {said} to {said}, last {said}"


def test_a_series_knows_what_it_is_of_and_counts_what_has_no_logarithm(tmp_path: Path) -> None:
    case = scored_case("image", "low_rank", 64)
    for number in range(12):
        run = night(number)
        run.planned = {case.id: Planned(case=case, better="higher", seeds=1)}
        score = 30.0 if number < 10 else -1.0
        read = Measurement(quantity="score", unit="", values=[score], note="example")
        run.results = [
            Result(case=case.id, replicate=0, seed=0, status=Status.OK, measurements=[read])
        ]
        kept(run, tmp_path / "nights")
    (one,) = history(tmp_path / "nights").histories
    (series,) = one.series
    assert (len(series.values), series.left_out, series.quantity.name) == (10, 2, "score")
