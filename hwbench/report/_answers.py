"""The answer first: sentences made from the data, honest where the data do not decide.

A format beats dense where the whole interval of its relative time lies below one. Two formats are
told apart, or proved to be tied, by the quotient of their times replicate by replicate
(``analysis.contest``); where the replicates are not at hand, by intervals that do not overlap. One
replicate has no interval and decides nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hwbench import units
from hwbench.analysis.contest import Entrant, Outcome, standings
from hwbench.analysis.frames import NEVER_QUIET
from hwbench.report import _words as words
from hwbench.report.rows import DENSE, Row, known, printable, relative, timed

Sentence = list[tuple[str, str]]
"""Text in pieces; the second of each is its part: the POINT of the sentence, a SPAN, or nothing."""

Share = tuple[str, float]
"""The column of what was asked for, ``asked_density`` or ``asked_stored``, and how much."""

POINT, SPAN, REST = "b", "nobr", ""
_UNTOLD = (": one replicate decides nothing.", ": the machine was never quiet.")
_SAID = {"asked_density": "at density {:g}", "asked_stored": "in {:g} of dense's bytes"}
_NEAR = 0.1  # without an asked density, a format competes up to this share above its own


@dataclass(frozen=True)
class Winner:
    """The fastest of one group at one share of dense."""

    name: str | None  # dense where everything is slower; None where the data do not decide
    relative: float = 1.0
    nearest: str = ""  # where undecided: the format of the shortest time
    tied: tuple[str, ...] = ()  # those that are proved to be within 3 % of it


@dataclass
class Answer:
    """What one group of cases answers."""

    title: str
    group: int = 0  # the number of its group
    sentences: list[Sentence] = field(default_factory=list)
    winners: dict[Share, Winner] = field(default_factory=dict)


def plain(sentence: Sentence) -> str:
    """The sentence as text."""
    return "".join(text for text, _ in sentence)


def answer(members: list[Row]) -> Answer:
    """What a group of timed cases says, one sentence for each asked share."""
    found = Answer(words.group_title(members[0]), members[0].group_number)
    others = [row for row in members if row.format != DENSE]
    comparable = [row for row in others if relative(row) is not None]
    if not comparable:
        found.sentences.append(_absolute(members))
        return found
    shares = {
        (name, getattr(row, name))
        for row in comparable
        for name in _SAID
        if known(getattr(row, name))
    }
    for share in _ordered(shares):
        ordered = sorted((row for row in comparable if _competes(row, share)), key=_order)
        contest = against(ordered[0], ordered)
        found.sentences.append(_fastest(f"{_told(share).capitalize()} ", ordered, contest))
        found.winners[share] = _winner(ordered, contest)
    if not shares:
        ordered = sorted(comparable, key=_order)
        found.sentences.append(_fastest("Here ", ordered, against(ordered[0], ordered)))
    return found


def overview(answers: list[Answer], machine: str = "") -> list[Sentence]:
    """Who wins how often, over all groups; nothing where a single group says it already."""
    tallies: dict[Share, list[Winner]] = {}
    for found in answers:
        for share, winner in found.winners.items():
            tallies.setdefault(share, []).append(winner)
    if len(answers) < 2:
        return []
    return [
        _tally(f"On {machine}, {said}, " if machine else f"{said.capitalize()}, ", tallies[share])
        for share in _ordered(tallies)
        for said in [_told(share)]
    ]


def _ordered(shares: Iterable[Share]) -> list[Share]:
    """Densities first, the largest first."""
    return sorted(shares, key=lambda share: (share[0], -share[1]))


def _told(share: Share) -> str:
    name, value = share
    return _SAID[name].format(value)


def _tally(lead: str, winners: list[Winner], most: int = 3) -> Sentence:
    decided = [winner for winner in winners if winner.name is not None]
    pieces: Sentence
    groups = "groups" if len(winners) > 1 else "group"
    if not decided:
        open_said = f"{lead}no {groups.removesuffix('s')} is decided: intervals overlap"
        pieces = [(f"{open_said}. The shortest times are those of ", REST)]
        nearest = Counter(winner.nearest for winner in winners)
        for place, (near, times) in enumerate(nearest.most_common(most)):
            own = [winner.relative for winner in winners if winner.nearest == near]
            low, high = (units.significant(f(own), 2) for f in (min, max))
            span = f"{low}–{high}×" if low != high else f"{low}×"
            pieces += [(", and " if place else "", REST), (near, POINT)]
            pieces.append((f" in {times} of {len(winners)} {groups}, {span} of dense", REST))
        return [*pieces, (".", REST)]
    pieces = [(lead, REST)]
    for place, (name, times) in enumerate(Counter(w.name for w in decided).most_common(most)):
        share = f"all {times}" if times == len(winners) else f"{times} of {len(winners)}"
        pieces += [(", and " if place else "", REST), (str(name), POINT)]
        if name == DENSE:
            pieces.append((f" stays the fastest in {share} {groups}", REST))
            continue
        own = [winner.relative for winner in decided if winner.name == name]
        low, high = (units.significant(f(own), 2) for f in (min, max))
        pieces.append((f" is the fastest in {share} {groups}, at ", REST))
        pieces += [(f"{low}–{high}×" if low != high else f"{low}×", SPAN), (" of dense", REST)]
    open_ones = len(winners) - len(decided)
    if open_ones:
        pieces.append((f"; {open_ones} {'is' if open_ones == 1 else 'are'} undecided", REST))
    return [*pieces, (".", REST)]


def _winner(ordered: list[Row], found: dict[Outcome, list[Row]]) -> Winner:
    """Who is the fastest beyond doubt: clear of dense, and of every other or tied with it."""
    best = ordered[0]
    if all(loses(row) for row in ordered):
        return Winner(DENSE)
    if beats(best) and not found[Outcome.UNDECIDED]:
        tied = tuple(printable(row.series) for row in found[Outcome.TIED])
        return Winner(printable(best.series), _value(best), tied=tied)
    return Winner(None, _value(best), printable(best.series))


def against(best: Row, rivals: Sequence[Row], among: int = 0) -> dict[Outcome, list[Row]]:
    """What is said of each rival against the best, the fastest of each first.

    Args:
        best: the row that may be named the fastest.
        rivals: the others; best may be among them.
        among: how many rivals it has in all, where these are some of them.
    """
    found: dict[Outcome, list[Row]] = {outcome: [] for outcome in Outcome}
    others = sorted((row for row in rivals if row is not best), key=_value)
    outcomes = [_by_intervals(best, row) for row in others]
    if len(best.by_replicate) > 1:
        said = standings(_entrant(best), [_entrant(row) for row in others], among=among)
        for place, each in enumerate(said):
            if known(each.ratio.value) or each.outcome is Outcome.BADLY:
                outcomes[place] = each.outcome  # the two have replicates in common
    for row, outcome in zip(others, outcomes, strict=True):
        found[outcome].append(row)
    return found


def _by_intervals(best: Row, row: Row) -> Outcome:
    return Outcome.UNDECIDED if _low(row) <= _high(best) else Outcome.SLOWER


def _entrant(row: Row) -> Entrant:
    return Entrant(row.case, row.by_replicate, row.night)


def beats(row: Row) -> bool:
    """Whether a row is faster than dense beyond its interval."""
    return known(row.relative_high) and row.relative_high < 1


def loses(row: Row) -> bool:
    """Whether a row is slower than dense beyond its interval."""
    return known(row.relative_low) and row.relative_low > 1


def overlap(one: Row, other: Row) -> bool:
    """Whether the intervals of two relative times overlap, or one of them is not known."""
    ends = [
        one.relative_low,
        one.relative_high,
        other.relative_low,
        other.relative_high,
    ]
    if not all(map(known, ends)):
        return True
    return bool(ends[0] <= ends[3] and ends[2] <= ends[1])


def disturbance(rows: list[Row], share: float = 0.1) -> str | None:
    """A warning where so many timed cases were disturbed that the numbers may mislead."""
    have = [row for row in rows if timed(row)]
    disturbed = sum("disturbed" in row.flags.split(",") for row in have)
    if not have or disturbed < share * len(have):
        return None
    return (
        f"{disturbed} of {len(have)} timed cases were disturbed: something else used the machine "
        "while they ran. Where intervals are wide, measure again on a quiet machine."
    )


def _absolute(members: list[Row]) -> Sentence:
    """What can be said where nothing could be set against dense."""
    have = [row for row in members if timed(row)]
    if not have:
        return [("Nothing was timed here; the reasons are listed with the rows.", REST)]
    best = min(have, key=lambda row: row.time_seconds)
    if len(have) == 1 and best.format == DENSE:
        return [(f"Only dense was timed, {units.seconds(best.time_seconds)}.", REST)]
    lead = "Nothing was timed against dense here; the shortest time is that of "
    time = units.seconds(best.time_seconds)
    return [(lead, REST), (printable(best.label), POINT), (f", {time}.", REST)]


def _fastest(lead: str, ordered: list[Row], found: dict[Outcome, list[Row]]) -> Sentence:
    """The fastest of the formats at one density, as far as the intervals tell."""
    best, sure = ordered[0], [row for row in ordered if beats(row)]
    shown: Sentence = [(printable(best.series), POINT), (", ", REST), *_span(best)]
    if not has_interval(best):
        lead, end = (
            f"{lead}the shortest time is that of ",
            _UNTOLD[NEVER_QUIET in best.flags.split(",")],
        )
    elif all(loses(row) for row in ordered):
        lead, end = f"{lead}every format is slower than dense; the closest is ", "."
    elif not beats(best) and sure:
        lead = f"{lead}faster than dense: {_names(sure)}; the shortest time, that of "
        end = ", is not significantly below that of dense."
    elif not beats(best):
        lead = f"{lead}no format is significantly faster than dense; the shortest time is that of "
        end = "."
    else:
        lead, end = f"{lead}the fastest is ", _others(found)
    return [(lead, REST), *shown, (end, REST)]


def _others(found: dict[Outcome, list[Row]]) -> str:
    """What is said of the rest, where the best beats dense."""
    equal, tied = found[Outcome.UNDECIDED], found[Outcome.TIED]
    rest, badly = found[Outcome.SLOWER], found[Outcome.BADLY]
    faster = [row for row in rest if beats(row)]
    unsure = [row for row in rest if not beats(row) and not loses(row)]
    said = f"; tied with it within 3 %: {_names(tied)}" if tied else ""
    said += f"; not significantly slower: {_names(equal)}" if equal else ""
    if faster:
        said += f"; also faster than dense: {_names(faster)}"
    elif rest and not unsure:
        said += "; the others are slower than dense"
    if unsure:
        said += f"; not significantly different from dense: {_names(unsure)}"
    if badly:
        said += f"; not measured well enough: {_names(badly)}"
    return f"{said}."


def _names(rows: list[Row]) -> str:
    return ", ".join(f"{printable(row.series)} ({units.ratio(_value(row))})" for row in rows)


def _span(row: Row) -> Sentence:
    """``0.412× of dense (0.405–0.419)``."""
    if row.format == DENSE:
        return [("the reference", REST)]
    value = f"{units.ratio(_value(row))} of dense"
    if not has_interval(row):
        return [(value, REST)]
    low, high = map(units.significant, (row.relative_low, row.relative_high))
    return [(f"{value} ", REST), (f"({low}–{high})", SPAN)]


def _competes(row: Row, share: Share) -> bool:
    name, density = share
    if any(known(getattr(row, asked)) for asked in _SAID) or name != "asked_density":
        return bool(getattr(row, name) == density)
    own = row.density
    return known(own) and own <= density * (1 + 1e-9) and density <= own * (1 + _NEAR)


def _order(row: Row) -> tuple[bool, float]:
    """The fastest first; what has no interval comes after what has one."""
    return not has_interval(row), _value(row)


def _value(row: Row) -> float:
    value = relative(row)
    return float("inf") if value is None else value


def _low(row: Row) -> float:
    return float(row.relative_low) if known(row.relative_low) else _value(row)


def _high(row: Row) -> float:
    return float(row.relative_high) if known(row.relative_high) else _value(row)


def has_interval(row: Row) -> bool:
    """Whether the interval of a relative time is known."""
    return known(row.relative_low) and known(row.relative_high)
