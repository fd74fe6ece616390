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
_NO_INTERVAL = (": one replicate decides nothing.", ": the machine was never quiet.")
_SHARE_FORMATS = {"asked_density": "at density {:g}", "asked_stored": "in {:g} of dense's bytes"}
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
    """The answer of one group of cases."""

    title: str
    group: int = 0  # the number of its group
    sentences: list[Sentence] = field(default_factory=list)
    winners: dict[Share, Winner] = field(default_factory=dict)


def plain(sentence: Sentence) -> str:
    """The sentence as text."""
    return "".join(text for text, _ in sentence)


def answer(members: list[Row]) -> Answer:
    """The answer of a group of timed cases, one sentence for each asked share."""
    result = Answer(words.group_title(members[0]), members[0].group_number)
    comparable = [row for row in members if row.format != DENSE and relative(row) is not None]
    if not comparable:
        result.sentences.append(_absolute(members))
        return result
    shares = {
        (name, getattr(row, name))
        for row in comparable
        for name in _SHARE_FORMATS
        if known(getattr(row, name))
    }
    for share in _ordered(shares):
        ordered = sorted((row for row in comparable if _competes(row, share)), key=_order)
        contest = against(ordered[0], ordered)
        result.sentences.append(_fastest(f"{_share_words(share).capitalize()} ", ordered, contest))
        result.winners[share] = _winner(ordered, contest)
    if not shares:
        ordered = sorted(comparable, key=_order)
        result.sentences.append(_fastest("Here ", ordered, against(ordered[0], ordered)))
    return result


def overview(answers: list[Answer], machine: str = "") -> list[Sentence]:
    """How often each format wins over all groups; nothing where there is a single group."""
    tallies: dict[Share, list[Winner]] = {}
    for group_answer in answers:
        for share, winner in group_answer.winners.items():
            tallies.setdefault(share, []).append(winner)
    if len(answers) < 2:
        return []
    sentences = []
    for share in _ordered(tallies):
        where = _share_words(share)
        lead = f"On {machine}, {where}, " if machine else f"{where.capitalize()}, "
        sentences.append(_tally(lead, tallies[share]))
    return sentences


def _ordered(shares: Iterable[Share]) -> list[Share]:
    """Densities first, the largest first."""
    return sorted(shares, key=lambda share: (share[0], -share[1]))


def _share_words(share: Share) -> str:
    name, value = share
    return _SHARE_FORMATS[name].format(value)


def _tally(lead: str, winners: list[Winner], most: int = 3) -> Sentence:
    decided = [winner for winner in winners if winner.name is not None]
    pieces: Sentence
    settings = "settings" if len(winners) > 1 else "setting"
    if not decided:
        undecided = f"{lead}no setting is decided"
        pieces = [(f"{undecided}. The shortest times are those of ", REST)]
        nearest = Counter(winner.nearest for winner in winners)
        for place, (near, times) in enumerate(nearest.most_common(most)):
            ratios = [winner.relative for winner in winners if winner.nearest == near]
            low, high = (units.significant(f(ratios), 2) for f in (min, max))
            span = f"{low}–{high}×" if low != high else f"{low}×"
            pieces += [(", and " if place else "", REST), (near, POINT)]
            pieces.append((f" in {times} of {len(winners)} {settings}, {span} of dense", REST))
        return [*pieces, (".", REST)]
    pieces = [(lead, REST)]
    for place, (name, times) in enumerate(Counter(w.name for w in decided).most_common(most)):
        share = f"all {times}" if times == len(winners) else f"{times} of {len(winners)}"
        pieces += [(", and " if place else "", REST), (str(name), POINT)]
        if name == DENSE:
            pieces.append((f" stays the fastest in {share} {settings}", REST))
            continue
        ratios = [winner.relative for winner in decided if winner.name == name]
        low, high = (units.significant(f(ratios), 2) for f in (min, max))
        pieces.append((f" is the fastest in {share} {settings}, at ", REST))
        pieces += [(f"{low}–{high}×" if low != high else f"{low}×", SPAN), (" of dense", REST)]
    open_ones = len(winners) - len(decided)
    if open_ones:
        pieces.append((f"; {open_ones} {'is' if open_ones == 1 else 'are'} undecided", REST))
    return [*pieces, (".", REST)]


def _winner(ordered: list[Row], contest: dict[Outcome, list[Row]]) -> Winner:
    """The fastest beyond doubt: clear of dense, and clear of every other format or tied with it.

    None is named where a format that was not measured well enough took less time: the next run may
    measure that one well.
    """
    best = ordered[0]
    if all(loses(row) for row in ordered):
        return Winner(DENSE)
    if beats(best) and not contest[Outcome.UNDECIDED] and not quicker(best, contest):
        tied = tuple(words.series_name(row) for row in contest[Outcome.TIED])
        return Winner(words.series_name(best), _value(best), tied=tied)
    return Winner(None, _value(best), words.series_name(best))


def quicker(best: Row, contest: dict[Outcome, list[Row]]) -> list[Row]:
    """The rivals that took less time than the best, and were not measured well enough."""
    return [row for row in contest[Outcome.BADLY] if _value(row) < _value(best)]


def against(best: Row, rivals: Sequence[Row], among: int = 0) -> dict[Outcome, list[Row]]:
    """The rivals by the outcome of each against the best, the fastest of each outcome first.

    Args:
        best: the row that may be named the fastest.
        rivals: the rows that may be as fast; best may be among them.
        among: how many rivals it has in all, where there are more than these.
    """
    by_outcome: dict[Outcome, list[Row]] = {outcome: [] for outcome in Outcome}
    opponents = sorted((row for row in rivals if row is not best), key=_value)
    if len(best.by_replicate) <= 1:
        for row in opponents:
            by_outcome[_by_intervals(best, row)].append(row)
        return by_outcome
    verdicts = standings(_entrant(best), [_entrant(row) for row in opponents], among=among)
    for row, verdict in zip(opponents, verdicts, strict=True):
        in_common = known(verdict.ratio.value) or verdict.outcome is Outcome.BADLY
        by_outcome[verdict.outcome if in_common else _by_intervals(best, row)].append(row)
    return by_outcome


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
    cases = [row for row in rows if timed(row)]
    disturbed = sum("disturbed" in row.flags.split(",") for row in cases)
    if not cases or disturbed < share * len(cases):
        return None
    return (
        f"{disturbed} of {len(cases)} timed cases were disturbed: something else used the machine "
        "while they ran. Where intervals are wide, measure again on a quiet machine."
    )


def _absolute(members: list[Row]) -> Sentence:
    """The answer of a group in which nothing was timed against dense: the shortest time."""
    cases = [row for row in members if timed(row)]
    if not cases:
        return [("Nothing was timed here; the reasons are listed with the rows.", REST)]
    best = min(cases, key=lambda row: row.time_seconds)
    if len(cases) == 1 and best.format == DENSE:
        return [(f"Only dense was timed, {units.seconds(best.time_seconds)}.", REST)]
    lead = "Nothing was timed against dense here; the shortest time is that of "
    time = units.seconds(best.time_seconds)
    return [(lead, REST), (printable(best.label), POINT), (f", {time}.", REST)]


def _fastest(lead: str, ordered: list[Row], contest: dict[Outcome, list[Row]]) -> Sentence:
    """The fastest of the formats at one density, as far as the intervals tell."""
    best, faster = ordered[0], [row for row in ordered if beats(row)]
    best_words: Sentence = [(words.series_name(best), POINT), (", ", REST), *_span(best)]
    if not has_interval(best):
        lead, end = (
            f"{lead}the shortest time is that of ",
            _NO_INTERVAL[NEVER_QUIET in best.flags.split(",")],
        )
    elif all(loses(row) for row in ordered):
        lead, end = f"{lead}every format is slower than dense; the closest is ", "."
    elif not beats(best) and faster:
        lead = f"{lead}faster than dense: {_names(faster)}; the shortest time, that of "
        end = ", is not significantly below that of dense."
    elif not beats(best):
        lead = f"{lead}no format is significantly faster than dense; the shortest time is that of "
        end = "."
    else:
        known_best = "the shortest time that is known well enough is that of "
        lead += known_best if quicker(best, contest) else "the fastest is "
        end = _rivals(contest)
    return [(lead, REST), *best_words, (end, REST)]


def _rivals(contest: dict[Outcome, list[Row]]) -> str:
    """The end of the sentence on a best that beats dense: its rivals by their outcome."""
    undecided, tied = contest[Outcome.UNDECIDED], contest[Outcome.TIED]
    rest, badly = contest[Outcome.SLOWER], contest[Outcome.BADLY]
    faster = [row for row in rest if beats(row)]
    near_dense = [row for row in rest if not beats(row) and not loses(row)]
    text = f"; tied with it within 3 %: {_names(tied)}" if tied else ""
    text += f"; not significantly slower: {_names(undecided)}" if undecided else ""
    if faster:
        text += f"; also faster than dense: {_names(faster)}"
    elif rest and not near_dense:
        text += "; the others are slower than dense"
    if near_dense:
        text += f"; not significantly different from dense: {_names(near_dense)}"
    if badly:
        text += f"; not measured well enough: {_names(badly)}"
    return f"{text}."


def _names(rows: list[Row]) -> str:
    return ", ".join(f"{words.series_name(row)} ({units.ratio(_value(row))})" for row in rows)


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
    name, asked_density = share
    if any(known(getattr(row, column)) for column in _SHARE_FORMATS) or name != "asked_density":
        return bool(getattr(row, name) == asked_density)
    own_density = row.density
    return (
        known(own_density)
        and own_density <= asked_density * (1 + 1e-9)
        and asked_density <= own_density * (1 + _NEAR)
    )


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
