"""A history as one self-contained HTML page with sparklines, as text, and as plain data."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hwbench import units
from hwbench.analysis.changepoints import Event, History, Night, Series, Step
from hwbench.analysis.stats import median
from hwbench.records import Verdict
from hwbench.report import _commits, _facts
from hwbench.report import _words as words
from hwbench.report.rows import printable

_TEMPLATES = Path(__file__).parent / "templates"
_LISTED = 10  # cases of an event that a line or a list names; JSON has them all
_EVENTS = 20  # events that the terminal shows
_WIDTH, _HEIGHT, _PAD = 320.0, 44.0, 4.0  # of a sparkline, in pixels
_RANGE = 0.10  # of a sparkline from bottom to top, at least: noise shall look like noise
_POINTS = 160  # a longer series is drawn as the band and the median of so many parts
_CHOICES = 40  # values of one kind that a page can be narrowed to; the rarer ones are together
_OTHER = "other"
_NAMES = {"relative": "relative to dense", "time": "time", "memory": "bytes", "score": "score"}


def render(histories: Sequence[History], notes: Sequence[str]) -> str:
    """The page: what changed, the newest first, then every case as a line."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined
    )
    template = environment.get_template("history.html.j2")
    css = (_TEMPLATES / "page.css").read_text(encoding="utf-8")
    views = [_view(number, each) for number, each in enumerate(histories)]
    classes = {name for view in views for row in view["series"] for name in row["classes"]}
    return template.render(
        css=Markup(css),  # noqa: S704 (a file of ours)
        notes=[printable(note) for note in notes],
        histories=views,
        classes=sorted(classes),
    )


def _view(number: int, history: History) -> dict[str, Any]:
    first, last = history.nights[0], history.nights[-1]
    worst = sorted(history.series, key=_weight)
    choices, classes = _choices(worst)
    return {
        "id": f"h{number}",
        "choices": choices,
        "title": printable(f"{history.suite} on {history.machine}"),
        "runs": len(history.nights),
        "cases": len(history.series),
        "span": f"{_facts.moment(first.created)} to {_facts.moment(last.created)}",
        "threshold": units.percent(history.threshold),
        "events": [_shown(history, event) for event in history.events],
        "series": [
            _row(history, series) | {"classes": own}
            for series, own in zip(worst, classes, strict=True)
        ],
    }


def _choices(series: Sequence[Series]) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """The choices that narrow the cases of a history, and the classes of each case.

    The page needs no script for it: a choice and its cases have one CSS class in common.
    """
    case_parts = [words.parts(each.case) for each in series]
    values_by_kind: dict[str, list[str]] = {
        "changes": ["changed" if each.steps else "as it was" for each in series],
        "format": [parts.format if parts else _OTHER for parts in case_parts],
        "pass": [parts.work if parts else _OTHER for parts in case_parts],
        "tokens": [parts.tokens if parts else _OTHER for parts in case_parts],
    }
    choices: list[dict[str, Any]] = []
    classes: list[list[str]] = [[] for _ in series]
    for kind, values in values_by_kind.items():
        counts = Counter(values)
        if len(counts) < 2:
            continue
        common = [value for value, _ in counts.most_common(_CHOICES) if value]
        names = {value: f"{kind}-{place}" for place, value in enumerate(common)}
        rest = f"{kind}-{_CHOICES}"
        for place, value in enumerate(values):
            classes[place].append(names.get(value, rest))
        offered = [(names[value], value, counts[value]) for value in common]
        if left := len(values) - sum(count for _, _, count in offered):
            offered.append((rest, _OTHER, left))
        choices.append({"title": kind, "values": offered})
    return choices, classes


def _anchor(history: History, series: Series) -> str:
    """The address of a case in the page, which stays the same from night to night."""
    name = f"{history.suite} {history.machine} {series.case} {series.metric}"
    return f"case-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def _weight(series: Series) -> tuple[int, float, str]:
    """Regressed levels first, the largest step first."""
    last = series.steps[-1] if series.steps else None
    order = 2 if last is None else int(last.verdict is not Verdict.REGRESSED)
    return order, -max((abs(math.log(s.ratio)) for s in series.steps), default=0.0), series.case


def _shown(history: History, event: Event) -> dict[str, Any]:
    night, before = history.nights[event.run], history.nights[event.since]
    return {
        "run": printable(night.run),
        "created": _facts.moment(night.created),
        "before": printable(before.run),
        "headline": headline(event),
        "reasons": reasons(event),
        "links": links(history, event),
        "cases": [
            {
                "name": words.case(series.case),
                "id": printable(series.case),
                "metric": series.metric,
                "change": change(step),
                "anchor": _anchor(history, series),
            }
            for series, step in [*event.regressed, *event.improved][:_LISTED]
        ],
        "more": max(0, len(event.regressed) + len(event.improved) - _LISTED),
        "bad": bool(event.regressed),
    }


def headline(event: Event) -> str:
    """How many cases moved at a run, and by how much, in words."""
    parts = [
        f"{units.count(len(moved), 'case')} {word} by "
        f"{units.percent(abs(median([s.ratio for _, s in moved]) - 1))}"
        for moved, word in ((event.regressed, "worse"), (event.improved, "better"))
        if moved
    ]
    return ", ".join(parts)


def reasons(event: Event) -> list[str]:
    """The changes beside the levels: the commit, then the environment."""
    old, new = (each and _commits.short(each) for each in event.commits)
    lines = [f"commit {old} → {new}"] if old and new and old != new else []
    if not lines:
        same = f"the same commit, {new}" if new else "no commit was recorded"
        lines = [same]
    lines += list(event.changed) or ["nothing else that is recorded"]
    return [printable(line) for line in lines]


def links(history: History, event: Event) -> list[tuple[str, str]]:
    """The links of an event, words and address: both commits, and the changes between them."""
    old, new = event.commits
    before, now = (history.nights[number].remote for number in (event.since, event.run))
    between = _commits.comparison(now, old, new) if before == now else None
    candidates = [("what changed", between), *_linked(before, old), *_linked(now, new)]
    return list(dict.fromkeys((label, address) for label, address in candidates if address))


def _linked(remote: str | None, revision: str | None) -> list[tuple[str, str | None]]:
    return [(_commits.short(revision), _commits.commit(remote, revision))] if revision else []


def change(step: Step) -> str:
    """A step's size, with its sign."""
    value = units.percent(step.ratio - 1)
    return f"+{value}" if step.ratio > 1 else value


def _row(history: History, series: Series) -> dict[str, Any]:
    steps = [
        {"run": printable(history.nights[series.runs[s.index]].run), "change": change(s),
         "bad": s.verdict is Verdict.REGRESSED}
        for s in series.steps
    ]  # fmt: skip
    return {
        "case": words.case(series.case),
        "id": printable(series.case),
        "anchor": _anchor(history, series),
        "says": _says(series),
        "metric": _NAMES.get(series.metric, series.metric),
        "last": _amount(series, series.values[-1]),
        "spread": units.percent(_spread(series)),
        "count": len(series.values),
        "left_out": series.left_out,
        "steps": steps,
        "line": sparkline(series, len(history.nights)),
    }


def _says(series: Series) -> str:
    """The numbers of a line in words, also for readers who cannot see it."""
    least, most, last = (
        _amount(series, value)
        for value in (min(series.values), max(series.values), series.values[-1])
    )
    runs, steps = len(series.values), len(series.steps)
    lead = f"{units.count(runs, 'run')}, {units.count(steps, 'change')}"
    return f"{lead}: {least} to {most}, last {last}"


def _amount(series: Series, value: float) -> str:
    if series.metric == "score":
        return units.significant(value)
    if series.metric == "relative":
        return units.ratio(value)
    return words.amount(value, series.quantity)


def _spread(series: Series) -> float:
    """The usual distance of two neighbours, as a share."""
    moves = [abs(math.log(b / a)) for a, b in zip(series.values, series.values[1:], strict=False)]
    return math.expm1(median(moves)) if moves else math.nan


def sparkline(series: Series, nights: int) -> dict[str, Any]:
    """The paths of a series over all runs of its history: band, line, levels and steps."""
    low, high = math.log(min(series.values)), math.log(max(series.values))
    room = max(high - low, math.log1p(_RANGE))
    foot = (low + high - room) / 2

    def x(number: float) -> float:
        return _PAD + (_WIDTH - 2 * _PAD) * number / max(1, nights - 1)

    def y(value: float) -> float:
        share = (math.log(value) - foot) / room
        return _HEIGHT - _PAD - (_HEIGHT - 2 * _PAD) * share

    parts = list(_parts(series))
    line = [(x(at), y(middle)) for at, _, middle, _ in parts]
    tops = [(x(at), y(most)) for at, _, _, most in parts]
    feet = [(x(at), y(least)) for at, least, _, _ in reversed(parts)]
    edges = [0, *(step.index for step in series.steps), len(series.values)]
    levels = [
        {"x1": _at(x(series.runs[a])), "x2": _at(x(series.runs[b - 1])),
         "y": _at(y(median(series.values[a:b])))}
        for a, b in itertools.pairwise(edges)
    ]  # fmt: skip
    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "line": _path(line),
        "band": _path(tops + feet) + "Z" if len(parts) < len(series.values) else "",
        "levels": levels,
        "steps": [
            {"x": _at(x(series.runs[s.index])), "bad": s.verdict is Verdict.REGRESSED}
            for s in series.steps
        ],
    }


def _parts(series: Series) -> Iterator[tuple[float, float, float, float]]:
    """Place, least, median and most of each point, or of each part of a long series."""
    size = max(1, math.ceil(len(series.values) / _POINTS))
    for begin in range(0, len(series.values), size):
        values = series.values[begin : begin + size]
        yield median(series.runs[begin : begin + size]), min(values), median(values), max(values)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{_at(x)} {_at(y)}" for x, y in points)


def _at(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def lines(history: History) -> list[str]:
    """The history for a terminal: what changed, the newest first."""
    count = len(history.nights)
    first, last = (_facts.moment(history.nights[place].created) for place in (0, -1))
    output = [(f"{history.suite} on {history.machine}: {units.count(count, 'run')}, {first} "
            f"to {last}, {units.count(len(history.series), 'case')}")]  # fmt: skip
    for event in history.events[:_EVENTS]:
        night = history.nights[event.run]
        output.append(f"{_facts.moment(night.created)}  {night.run}: {headline(event)}")
        output += [f"    {line}" for line in reasons(event)]
        output += [f"    {address}" for _, address in links(history, event)[:1]]
        moved = [*event.regressed, *event.improved]
        output += [f"    {change(step)}  {each.case} ({each.metric})" for each, step in moved[:3]]
        output += [f"    … and {len(moved) - 3} more"] if len(moved) > 3 else []
    if len(history.events) > _EVENTS:
        output.append(f"… and {len(history.events) - _EVENTS} earlier; --json has them all")
    if not history.events:
        output.append(f"No case changed by {units.percent(history.threshold)} or more.")
    return [line[: len(line) - len(line.lstrip())] + printable(line) for line in output]


def plain(histories: Sequence[History], notes: Sequence[str]) -> dict[str, Any]:
    """The histories as ``history --json`` prints them."""
    return {"notes": list(notes), "histories": [_plain(each) for each in histories]}


def _night(night: Night) -> dict[str, Any]:
    fields = {"run": night.run, "created": night.created, "commit": night.commit}
    address = _commits.commit(night.remote, night.commit)
    return {**fields, "commit_url": address} if address else fields


def _plain(history: History) -> dict[str, Any]:
    def moved(pairs: Sequence[tuple[Series, Step]]) -> list[dict[str, Any]]:
        return [{"case": s.case, "metric": s.metric, "ratio": step.ratio} for s, step in pairs]

    runs = [night.run for night in history.nights]
    return {
        "suite": history.suite,
        "machine": history.machine,
        "threshold": history.threshold,
        "runs": [_night(each) for each in history.nights],
        "changes": [
            {
                "first_run": runs[event.run],
                "run_before": runs[event.since],
                "commits": list(event.commits),
                "changed": list(event.changed),
                "regressed": moved(event.regressed),
                "improved": moved(event.improved),
            }
            for event in history.events
        ],
        "series": [
            {
                "case": each.case,
                "metric": each.metric,
                "runs": [runs[number] for number in each.runs],
                "values": list(each.values),
                "left_out": each.left_out,
                "steps": [
                    {"run": runs[each.runs[s.index]], "ratio": s.ratio, "verdict": s.verdict.value}
                    for s in each.steps
                ],
            }
            for each in history.series
        ],
    }
