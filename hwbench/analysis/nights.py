"""Chooses the nights that are like tonight, and judges tonight against them. Pure.

A machine is not the same every night: a virtual one moves to another host, a clock falls, a
neighbour comes. So tonight is compared with the nights on which dense layers took as long as
tonight. With too few such nights it is compared with none: it is another machine tonight. A state
of the machine that leaves dense alone moves many formats at once; a change of a format moves one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from hwbench import units
from hwbench.analysis.accuracy import DENSE
from hwbench.analysis.compare import Side
from hwbench.analysis.fingerprint import differences
from hwbench.analysis.judging import (
    DENSE_MOVED,
    TIMED,
    WINDOW,
    Again,
    Judged,
    Look,
    at_first,
    decided,
    ended,
    look,
    noted,
    only,
    undecided,
)
from hwbench.analysis.noise import FEWEST_RUNS, spread_within
from hwbench.analysis.pairs import judge_pairs
from hwbench.analysis.stats import Rule, median
from hwbench.records import Change, Verdict

STORED = 20  # the last comparable runs, from which nights like tonight are chosen
KNOWN = 60  # the runs searched where too few of the last ones are like tonight
FEWEST_STORED = 10  # with fewer runs than this, all are taken
PAIRS = 10  # pairs of fresh replicates that decide about a flagged case
MOST_PAIRS = 20  # where ten leave it open
FORMATS_OF_A_MACHINE = 3  # moved at once, they are no change of one format
_SURELY = 1.5  # times the usual distance of two equal nights
_MIDDLE = 1.45  # variance of the median of a few values over that of their mean

_Dense = dict[Hashable, list[float]]  # logs of its seconds by group, replicate by replicate

Pairs = Callable[[list[str], int], tuple[Side, Side]]
"""Measures cases in a number of pairs of fresh replicates: the baseline's revision, and tonight's.

A second call with a larger number adds pairs to those that exist, and returns all.
"""

WAYS = ("fresh", "ab", "nights")
"""How flagged cases are confirmed: fresh replicates against the stored nights, pairs of both
revisions, or the night before."""


@dataclass(frozen=True, kw_only=True)
class NightResult:
    """The verdicts on a night, and the nights it was compared with."""

    judged: Judged
    first: Look  # before anything was measured again
    stranger: str | None = None  # why it cannot be compared with any night, in words
    notes: Sequence[str] = ()

    @property
    def baselines(self) -> Sequence[Side]:
        """The nights it was compared with, oldest first."""
        return self.first.baselines


@dataclass(frozen=True, kw_only=True)
class Question:
    """How a night is judged, see ``judge_night``."""

    rule: Rule
    metric: str = "auto"
    window: int = WINDOW
    way: str | None = None  # one of WAYS; None: the first look decides
    again: Again | None = None  # for fresh
    pairs: Pairs | None = None  # for ab
    same_code: str | None = None  # for ab: why both revisions are one, in words


@dataclass(frozen=True)
class Matched:
    """The nights that tonight is compared with, by their index among the stored runs."""

    nights: Sequence[int]
    stranger: str | None = None
    software: Sequence[str] = field(default_factory=list)  # what changed, in words


# Which nights


def match(stored: Sequence[Side], new: Side, window: int = WINDOW) -> Matched:
    """The nights with seconds of dense, by group, nearest to tonight's and within 5 %.

    Distances are rounded to steps of half of these 5 %, or of dense's own scatter where that is
    larger, and of equally near nights the later are taken. So an old night does not bring back a
    change after which the baseline was moved. A night that timed dense in no group of tonight's, as
    one of other shapes, is left out where another did.

    Args:
        stored: comparable runs, oldest first; the last ``STORED`` count. Where fewer than three of
            these are near, the last ``KNOWN`` count: in a pool of machines some kinds of nights
            are rare.
        new: the run under test.
        window: how many nights are taken; three at least must be near.
    """
    places = range(len(stored))[-STORED:]
    changed = [place for place in places if _software(stored[place], new)]
    if changed and len(places) - len(changed) < FEWEST_RUNS:
        before = changed if len(places) >= FEWEST_STORED else places
        return Matched(before[-window:], software=_software(stored[changed[-1]], new))
    tonight, limit = _dense(new), math.log1p(DENSE_MOVED)
    dense = {place: _dense(stored[place]) for place in places}
    away = {place: _apart(dense[place], tonight) for place in places}
    alike = [place for place in places if not math.isnan(away[place][0])]
    if len(alike) < FEWEST_STORED:
        return Matched((alike or places)[-window:])
    step = min(max(limit / 2, _SURELY * _scatter([*dense.values(), tonight])), limit)
    order = sorted(alike, key=lambda place: (math.floor(away[place][0] / step), -place))
    near = [place for place in order if away[place][0] <= limit]
    if len(near) < min(FEWEST_RUNS, window):
        earlier = range(max(0, len(stored) - KNOWN), places[0])
        comparable = [p for p in earlier if _apart(_dense(stored[p]), tonight)[0] <= limit]
        near += comparable[::-1]
    if len(near) >= min(FEWEST_RUNS, window):
        return Matched(sorted(near[:window]))
    nearest = min(away[place] for place in alike)[1]
    return Matched(alike[-window:], stranger=_strange(near, len(alike), nearest))


def _strange(near: Sequence[int], of: int, nearest: float) -> str:
    """Says why no nights are like tonight."""
    how = f"as long as in {len(near)} of the last {of} nights only"
    if not near:
        size = units.percent(abs(math.expm1(nearest)))
        how = f"{size} {'more' if nearest > 0 else 'less'} time than in the nearest of {of} nights"
    return f"dense took {how}: it is another machine tonight, and the first night of its kind"


def _apart(before: _Dense, after: _Dense) -> tuple[float, float]:
    """The distance of dense in two runs, on logs: the groups' median, without and with its sign."""
    moves = [median(after[group]) - median(before[group]) for group in after if group in before]
    if not moves:
        return math.nan, math.nan
    return median([abs(move) for move in moves]), median(moves)


def _scatter(runs: Sequence[_Dense]) -> float:
    """The usual distance of dense in two equal nights: the median over the groups, on logs."""
    apart = []
    for group, values in runs[-1].items():
        spread, freedom = spread_within([each[group] for each in runs if group in each])
        if freedom:
            apart.append(math.sqrt(2 * _MIDDLE * spread / len(values)))
    return median(apart) if apart else 0.0


def _dense(one: Side) -> _Dense:
    """Logs of the seconds of dense by group, replicate by replicate."""
    logs: _Dense = {}
    for entry in one.cases.values():
        reading = entry.readings.get("time_seconds")
        if entry.format == DENSE and reading and min(reading.values.values()) > 0:
            logs[entry.group] = [math.log(value) for value in reading.values.values()]
    return logs


def _software(old: Side, new: Side) -> list[str]:
    differing = differences(old.facts, new.facts)
    return [str(each) for each in differing if each.software]


# The verdicts


def judge_night(stored: Sequence[Side], new: Side, question: Question) -> NightResult:
    """Judge a night; flagged cases are measured again where the question says so.

    Args:
        stored: comparable runs, oldest first; those like tonight are taken.
        new: the run under test.
        question: the rule, and how flagged cases are confirmed.
    """
    nights = match(stored, new, question.window)
    first, last = _look(stored, new, question, nights), None
    if not nights.stranger and any(_fails(each) for each in first.changes.values()):
        last = _last(stored, question)
        if last is not None and (question.way == "nights" or last.moved):
            stored = stored[:-1]
            nights = match(stored, new, question.window)
            first = _look(stored, new, question, nights)
    if nights.stranger:
        changes = [_of_another(each, "Another machine tonight.") for each in first.settled.values()]
        return NightResult(judged=Judged(changes, None), first=first, stranger=nights.stranger)
    notes = _of_software(first.baselines, new, nights)
    if question.way == "ab" and (question.pairs is not None or question.same_code):
        judged = _in_pairs(first, question)
        return NightResult(judged=judged, first=first, notes=notes)
    if question.way == "nights":
        judged = _in_two_nights(first, last)
    else:
        judged = decided(first, question.again if question.way == "fresh" else None)
    result = NightResult(judged=judged, first=first, notes=notes)
    if nights.software:  # which may move many formats at once
        return result
    return _of_the_machine(result, formats_moved(first, new), last)


def _of_software(baselines: Sequence[Side], new: Side, nights: Matched) -> list[str]:
    """Says that dense moved because the software changed; empty where it did not."""
    if not nights.software or not _dense_moved(baselines, new):
        return []
    sentence = (
        f"Dense's move is the software's ({'; '.join(nights.software)}): cases are judged by their "
        "own seconds beside their ratio."
    )
    return [sentence]


@dataclass(frozen=True)
class _Last:
    """The night before: its look, and the formats that moved if many moved at once."""

    look: Look
    moved: Mapping[str, int]


def _last(stored: Sequence[Side], question: Question) -> _Last | None:
    """Judges the night before tonight; None where that is not needed, or not possible."""
    if question.way == "ab" or len(stored) <= FEWEST_RUNS:
        return None
    before, new = stored[:-1], stored[-1]
    nights = match(before, new, question.window)
    if nights.stranger:
        return None
    first = _look(before, new, question, nights)
    moved = formats_moved(first, new)
    failed = any(_fails(each) for each in first.settled.values())
    odd = failed and len(moved) >= FORMATS_OF_A_MACHINE
    return _Last(first, moved if odd else {})


def _look(stored: Sequence[Side], new: Side, question: Question, nights: Matched) -> Look:
    """Compares a night with the nights like it; exact metrics with the latest nights."""
    baselines = [stored[place] for place in nights.nights]
    own = bool(nights.software) and _dense_moved(baselines, new)
    return look(
        baselines, new, question.rule, metric=question.metric, window=question.window,
        own_seconds=own, latest=stored[-question.window :],
    )  # fmt: skip


def _dense_moved(baselines: Sequence[Side], new: Side) -> bool:
    tonight = _dense(new)
    moves = [_apart(_dense(one), tonight)[1] for one in baselines]
    finite = [move for move in moves if not math.isnan(move)]
    return bool(finite) and abs(median(finite)) > math.log1p(DENSE_MOVED)


def formats_moved(first: Look, new: Side) -> dict[str, int]:
    """The formats with more than half of their cases outside the noise: 1 upwards, -1 downwards."""
    ways: dict[str, list[int]] = defaultdict(list)
    for case in first.known:
        entry = new.cases[case]
        if entry.format not in ("", DENSE):
            ways[entry.format].append(first.left(case))
    moved = {}
    for name, left in ways.items():
        for way in (1, -1):
            if 2 * left.count(way) > len(left):
                moved[name] = way
    return moved


def _of_the_machine(
    result: NightResult, moved: Mapping[str, int], last: _Last | None
) -> NightResult:
    """Takes failures back where so many formats moved at once that it looks like the machine."""
    failed = any(_fails(each) for each in result.judged.changes)
    if not failed or len(moved) < FORMATS_OF_A_MACHINE:
        return result
    names = ", ".join(sorted(moved))
    reason = f"{len(moved)} formats moved at once ({names})"
    before = last.moved if last else {}
    if len([name for name in moved if before.get(name) == moved[name]]) >= FORMATS_OF_A_MACHINE:
        return replace(
            result, notes=[*result.notes, f"{reason}, and the night before says the same."]
        )
    changes = [_of_another(each, "It looks like the machine.") for each in result.judged.changes]
    judged = Judged(changes, result.judged.confirmed and frozenset())
    stranger = f"{reason}; it looks like the machine, and the next night or --confirm-by ab decides"
    return replace(result, judged=judged, stranger=stranger)


def _fails(change: Change) -> bool:
    """Whether a change fails by a time."""
    return change.verdict is Verdict.REGRESSED and change.metric in TIMED


def _of_another(change: Change, sentence: str) -> Change:
    """The change; a failing time becomes undecided, because it is another machine."""
    return undecided(change, sentence) if _fails(change) else change


def _in_pairs(first: Look, question: Question) -> Judged:
    """Judges the flagged cases by pairs of both revisions."""
    settled = dict(first.settled)
    for case, change in first.settled.items():
        if _fails(change) and case not in first.flagged:
            settled[case] = undecided(change, "It was not flagged, so no pairs were made.")
    open_ = list(first.flagged)
    if question.same_code:
        settled |= {
            case: undecided(first.flagged[case], question.same_code)
            for case in open_
            if first.flagged[case].ratio is not None
        }
        return Judged(list(settled.values()), frozenset())
    for count in (PAIRS, MOST_PAIRS):
        if not open_ or question.pairs is None:
            break
        old, new = question.pairs(open_, count)
        changes = judge_pairs(only(old, open_), only(new, open_), first.rule, question.metric)
        later = {each.case: each for each in changes}
        for case in open_:
            settled[case] = _of_pairs(first.flagged[case], later.get(case))
        open_ = [case for case in open_ if settled[case].verdict is Verdict.UNDECIDED]
    return ended(first, settled)


def _of_pairs(first: Change, change: Change | None) -> Change:
    """The verdict of the pairs on a flagged case."""
    if change is None:
        return undecided(first, "Neither revision could measure it again.")
    if change.ratio is None:
        return change
    word = "Confirmed" if change.verdict is Verdict.REGRESSED else "Not confirmed"
    count = change.ratio.counts[1]
    return noted(change, f"{word} in {count} pairs of both revisions ({at_first(first)}).")


def _in_two_nights(first: Look, last: _Last | None) -> Judged:
    """Judges by two nights: a regression counts if the night before has it as well."""
    settled = dict(first.settled)
    for case in first.flagged:
        change = settled[case]
        if change.verdict is not Verdict.REGRESSED:
            continue
        if last is not None and case in last.look.flagged:
            settled[case] = noted(change, "Confirmed by the night before.")
        else:
            settled[case] = undecided(change, "The night before was not slower: the next decides.")
    return ended(first, settled)
