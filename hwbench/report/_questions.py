"""The questions that a reader brings, each answered in sentences made from all rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hwbench import units
from hwbench.analysis.accuracy import Joined, Pair, best_within
from hwbench.report import _whose
from hwbench.report import _words as words
from hwbench.report._answers import POINT, REST, Sentence, beats, loses
from hwbench.report._scores import Score, score_of
from hwbench.report.rows import (
    DENSE,
    Row,
    groups,
    known,
    printable,
    relative,
    row_of,
)

_LAYERS = 12  # layers of a file that are answered one by one

SHARES = (0.5, 0.25, 0.1)
"""Shares of dense's bytes at which the second question is answered."""
_SPARSE = ("semi_structured", "two_four_training", "n_m")


@dataclass
class Question:
    """A question in words, and its answer."""

    asked: str
    sentences: list[Sentence] = field(default_factory=list)


def questions(rows: list[Row], joins: list[Joined], *, sizes: bool = True) -> list[Question]:
    """Every question that the rows can say something of; with ``sizes`` that of bytes too."""
    found = [
        Question("Which format should this layer use?", _own_layers(joins)),
        Question("Which format is the fastest at the accuracy I need?", _at_accuracy(joins)),
        Question("Which keeps the most per byte?", _per_byte(rows) if sizes else []),
        Question("Where does 2:4 pay?", _two_four(rows)),
        Question("Where does nothing beat dense?", _nothing(rows)),
    ]
    return [question for question in found if question.sentences]


def _at_accuracy(joins: list[Joined]) -> list[Sentence]:
    """For each score and each of its levels the fastest that keeps it; what changes it, once."""
    by_score: dict[Score, list[Joined]] = {}
    for found in joins:
        by_score.setdefault(score_of(row_of(found.scored)), []).append(found)
    said: list[Sentence] = []
    for score, own in by_score.items():
        before: Any = None
        begun = len(said)
        kept = [
            {choice.bound: choice.fastest for choice in best_within(found, score.levels)}
            for found in own
        ]
        for level in score.levels:
            chosen = [pair for each in kept if (pair := each[level]) is not None]
            names = Counter(pair.name for pair in chosen)
            if chosen and names != before:
                before = names
                said.append(
                    _choice(f"{score.bound} {level:g} {score.unit}".rstrip(), score, chosen)
                )
        notes = dict.fromkeys(filter(None, (_whose.noted(row_of(found.scored)) for found in own)))
        said += [[(note, REST)] for note in notes if len(said) > begun]
    return said


def _own_layers(joins: list[Joined]) -> list[Sentence]:
    """For each layer of a file and each way it was timed: what keeps each level, and its time."""
    own = [found for found in joins if _whose.layer(row_of(found.scored))]
    said = [_own_layer(found) for found in own[:_LAYERS]]
    if len(own) > _LAYERS:
        said.append([(f"The other {len(own) - _LAYERS} are among the tables below.", REST)])
    return said


def _own_layer(found: Joined) -> Sentence:
    """One layer: what is the fastest at each level of its score, and the fastest of all."""
    score = score_of(row_of(found.scored))
    way = words.group_title(row_of(found.timed), capital=False)
    chosen: dict[str, tuple[str, Pair]] = {}
    for level in score.levels:
        pair = best_within(found, [level])[0].fastest
        if pair is not None and pair.name not in chosen:
            chosen[pair.name] = (f"{score.title} {score.bound} {level:g}: ", pair)
    for pair in found.pairs[:1]:
        chosen.setdefault(pair.name, ("the fastest of all: ", pair))
    pieces: Sentence = [(f"{_whose.layer(row_of(found.scored))}, {way}. ", REST)]
    for place, (lead, pair) in enumerate(chosen.values()):
        shown = f"; {lead}" if place else lead[:1].upper() + lead[1:]
        pieces += [(shown, REST), (printable(pair.name), POINT), (_measured(pair, score), REST)]
    return [*pieces, (".", REST)]


def _measured(pair: Pair, score: Score) -> str:
    """The error of a pair and its time: `` (error 0.241, 1.2 ms, 0.51× of dense)``."""
    time = units.seconds(pair.seconds)
    if pair.timed["format"] == DENSE:
        return f" (loses nothing, {time})"
    timed = row_of(pair.timed)
    told = ", slower" if loses(timed) else ", not significantly"
    told = "" if beats(timed) else told
    error = f"{score.title} {score.amount(pair.score)}"
    return f" ({error}, {time}, {units.ratio(pair.relative)} of dense{told})"


def _choice(level: str, score: Score, chosen: list[Pair]) -> Sentence:
    names = Counter(pair.name for pair in chosen)
    lead = f"With {score.title} of {level}: "
    if set(names) == {DENSE}:
        return [(lead, REST), ("dense", POINT), (", nothing faster is as good.", REST)]
    pieces: Sentence = [(lead, REST)]
    for place, (name, times) in enumerate(names.most_common(3)):
        own = sorted(pair.relative for pair in chosen if pair.name == name)
        low, high = (units.significant(end, 2) for end in (own[0], own[-1]))
        share = f"{times} of {len(chosen)} group{'' if len(chosen) == 1 else 's'}"
        span = f"{low}–{high}×" if low != high else f"{low}×"
        said = f" in {share}" if name == DENSE else f" in {share}, {span} of dense"
        pieces += [("; " if place else "", REST), (printable(name), POINT), (said, REST)]
    sure = sum(beats(row_of(pair.timed)) for pair in chosen)
    told = f"; significantly faster than dense in {sure} of {len(chosen)}."
    return [*pieces, (told, REST)]


def _per_byte(rows: list[Row]) -> list[Sentence]:
    scored = [row for row in rows if row.scored and known(row.score)]
    said: list[Sentence] = []
    notes: dict[str, None] = {}
    for share in SHARES:
        fit = [r for r in scored if known(r.stored_ratio) and r.stored_ratio <= share * 1.001]
        for members in list(groups(fit).values())[:2]:
            score = score_of(members[0])
            best = (max if score.higher else min)(members, key=lambda row: row.score)
            low, high = best.score_low, best.score_high
            span = f" ({units.significant(low)}–{units.significant(high)})" if known(low) else ""
            said.append(
                [
                    (f"In {units.percent(share, 0)} of dense’s bytes: ", REST),
                    (printable(best.label), POINT),
                    (f", {score.title} {score.amount(best.score)}{span}", REST),
                    (f" on {words.workload(best)}, {words.shape(best)}.", REST),
                ]
            )
            notes[_whose.noted(best)] = None
    return said + [[(note, REST)] for note in notes if note]


def _two_four(rows: list[Row]) -> list[Sentence]:
    own = [row for row in rows if row.format in _SPARSE and not row.scored]
    if not own:
        return []
    have = [row for row in own if relative(row) is not None]
    if not have:
        reasons = Counter(printable(row.reason or words.status(row)) for row in own)
        (reason, times), *_ = reasons.most_common(1)
        return [[(f"Not answered: {times} of {len(own)} cases did not run. {reason}", REST)]]
    won, lost = [row for row in have if beats(row)], [row for row in have if loses(row)]
    best = min(have, key=lambda row: row.relative_time)
    where = _where(won) if won else "nowhere significantly"
    return [
        [
            ("Faster than dense in ", REST),
            (f"{len(won)} of {len(have)} cases", POINT),
            (f" ({where}), slower in {len(lost)}; at its best ", REST),
            (f"{units.ratio(best.relative_time)} of dense", POINT),
            (_span(best) + f" ({words.group_title(best)}).", REST),
        ]
    ]


def _span(row: Row) -> str:
    low, high = row.relative_low, row.relative_high
    if not known(low):
        return ", without an interval"
    return f" ({units.significant(low)}–{units.significant(high)})"


def _where(won: list[Row]) -> str:
    tokens = sorted({row.tokens for row in won if row.tokens})
    ways = dict.fromkeys(filter(None, map(words.direction, won)))
    many = f"{tokens[0]}–{tokens[-1]} tokens" if len(tokens) > 1 else f"{tokens[0]} tokens"
    return ", ".join([*(way.lower() for way in ways), *([many] if tokens else [])])


def _nothing(rows: list[Row]) -> list[Sentence]:
    layers = [row for row in rows if not row.scored and row.format != DENSE]
    sets = [
        [row for row in members if relative(row) is not None] for members in groups(layers).values()
    ]
    sets = [members for members in sets if members]
    if not sets:
        return []
    dense_wins = [m for m in sets if all(loses(row) for row in m)]
    unsure = [
        m for m in sets if not all(loses(row) for row in m) and not any(beats(row) for row in m)
    ]
    if not dense_wins and not unsure:
        return [
            [
                ("Nowhere", POINT),
                (f": in each of {len(sets)} groups a format is significantly faster.", REST),
            ]
        ]
    named = "; ".join(words.group_title(m[0]) for m in dense_wins[:3])
    further = f"; and {len(dense_wins) - 3} more" if len(dense_wins) > 3 else ""
    if not dense_wins:
        lead = (
            f"In {len(unsure)} of {len(sets)} groups no format is significantly faster than dense"
        )
        return [[(lead, POINT), ("; in none is every format slower.", REST)]]
    lead = f"In {len(dense_wins)} of {len(sets)} groups every format is slower than dense"
    said: Sentence = [(lead, POINT), (f": {named}{further}", REST)]
    if unsure:
        said.append((f"; in {len(unsure)} more no format is significantly faster", REST))
    return [[*said, (".", REST)]]
