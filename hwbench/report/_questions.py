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
_TWO_FOUR = ("semi_structured", "two_four_training", "n_m")


@dataclass
class Question:
    """A question in words, and its answer."""

    text: str
    sentences: list[Sentence] = field(default_factory=list)


def questions(rows: list[Row], joins: list[Joined], *, sizes: bool = True) -> list[Question]:
    """Every question that the rows can say something of; with ``sizes`` that of bytes too."""
    every = [
        Question("Which format should this layer use?", _own_layers(joins)),
        Question("Which format is the fastest at the accuracy I need?", _at_accuracy(joins)),
        Question("Which keeps the most per byte?", _per_byte(rows) if sizes else []),
        Question("Where does 2:4 pay?", _two_four(rows)),
        Question("Where does nothing beat dense?", _nothing(rows)),
    ]
    return [question for question in every if question.sentences]


def _at_accuracy(joins: list[Joined]) -> list[Sentence]:
    """For each score and each of its levels the fastest that keeps it; what changes it, once."""
    by_score: dict[Score, list[Joined]] = {}
    for joined in joins:
        by_score.setdefault(score_of(row_of(joined.scored)), []).append(joined)
    sentences: list[Sentence] = []
    for score, of_score in by_score.items():
        before: Any = None
        begun = len(sentences)
        fastest_by_level = [
            {choice.bound: choice.fastest for choice in best_within(joined, score.levels)}
            for joined in of_score
        ]
        for level in score.levels:
            chosen = [pair for fastest in fastest_by_level if (pair := fastest[level]) is not None]
            names = Counter(pair.name for pair in chosen)
            if chosen and names != before:
                before = names
                sentences.append(
                    _choice(f"{score.bound} {level:g} {score.unit}".rstrip(), score, chosen)
                )
        notes = dict.fromkeys(
            filter(None, (_whose.noted(row_of(joined.scored)) for joined in of_score))
        )
        sentences += [[(note, REST)] for note in notes if len(sentences) > begun]
    return sentences


def _own_layers(joins: list[Joined]) -> list[Sentence]:
    """For each layer of a file and each way it was timed: what keeps each level, and its time."""
    of_files = [joined for joined in joins if _whose.layer(row_of(joined.scored))]
    sentences = [_own_layer(joined) for joined in of_files[:_LAYERS]]
    if len(of_files) > _LAYERS:
        sentences.append(
            [(f"The other {len(of_files) - _LAYERS} are among the tables below.", REST)]
        )
    return sentences


def _own_layer(joined: Joined) -> Sentence:
    """One layer: what is the fastest at each level of its score, and the fastest of all."""
    score = score_of(row_of(joined.scored))
    way = words.group_title(row_of(joined.timed), capital=False)
    chosen: dict[str, tuple[str, Pair]] = {}
    for level in score.levels:
        pair = best_within(joined, [level])[0].fastest
        if pair is not None and pair.name not in chosen:
            chosen[pair.name] = (f"{score.title} {score.bound} {level:g}: ", pair)
    for pair in joined.pairs[:1]:
        chosen.setdefault(pair.name, ("the fastest of all: ", pair))
    pieces: Sentence = [(f"{_whose.layer(row_of(joined.scored))}, {way}. ", REST)]
    for place, (lead, pair) in enumerate(chosen.values()):
        lead_text = f"; {lead}" if place else lead[:1].upper() + lead[1:]
        pieces += [(lead_text, REST), (printable(pair.name), POINT), (_measured(pair, score), REST)]
    return [*pieces, (".", REST)]


def _measured(pair: Pair, score: Score) -> str:
    """The error of a pair and its time: `` (error 0.241, 1.2 ms, 0.51× of dense)``."""
    time = units.seconds(pair.seconds)
    if pair.timed["format"] == DENSE:
        return f" (loses nothing, {time})"
    timed = row_of(pair.timed)
    significance = "" if beats(timed) else ", slower" if loses(timed) else ", not significantly"
    error = f"{score.title} {score.amount(pair.score)}"
    return f" ({error}, {time}, {units.ratio(pair.relative)} of dense{significance})"


def _choice(level: str, score: Score, chosen: list[Pair]) -> Sentence:
    names = Counter(pair.name for pair in chosen)
    lead = f"With {score.title} of {level}: "
    if set(names) == {DENSE}:
        return [(lead, REST), ("dense", POINT), (", nothing faster is as good.", REST)]
    pieces: Sentence = [(lead, REST)]
    for place, (name, times) in enumerate(names.most_common(3)):
        ratios = sorted(pair.relative for pair in chosen if pair.name == name)
        low, high = (units.significant(end, 2) for end in (ratios[0], ratios[-1]))
        share = f"{times} of {units.count(len(chosen), 'setting')}"
        span = f"{low}–{high}×" if low != high else f"{low}×"
        where = f" in {share}" if name == DENSE else f" in {share}, {span} of dense"
        pieces += [("; " if place else "", REST), (printable(name), POINT), (where, REST)]
    significant = sum(beats(row_of(pair.timed)) for pair in chosen)
    end = f"; significantly faster than dense in {significant} of {len(chosen)}."
    return [*pieces, (end, REST)]


def _per_byte(rows: list[Row], most: int = 2) -> list[Sentence]:
    """What keeps the most at each share, for the first experiments; alike ones are told once."""
    scored = [row for row in rows if row.scored and known(row.score)]
    sentences: list[Sentence] = []
    notes: dict[str, None] = {}
    for share in SHARES:
        fit = [r for r in scored if known(r.stored_ratio) and r.stored_ratio <= share * 1.001]
        kept: dict[str, tuple[Sentence, Row]] = {}
        for members in groups(fit).values():
            sentence, best = _keeping_most(members, share)
            kept.setdefault("".join(text for text, _ in sentence), (sentence, best))
        for sentence, best in list(kept.values())[:most]:
            sentences.append(sentence)
            notes[_whose.noted(best)] = None
    return sentences + [[(note, REST)] for note in notes if note]


def _keeping_most(members: list[Row], share: float) -> tuple[Sentence, Row]:
    score = score_of(members[0])
    best = (max if score.higher else min)(members, key=lambda row: row.score)
    low, high = best.score_low, best.score_high
    span = f" ({units.significant(low)}–{units.significant(high)})" if known(low) else ""
    sentence = [
        (f"In {units.percent(share, 0)} of dense’s bytes: ", REST),
        (printable(best.label), POINT),
        (f", {score.title} {score.amount(best.score)}{span}", REST),
        (f" on {words.workload(best)}, {words.shape(best)}.", REST),
    ]
    return sentence, best


def _two_four(rows: list[Row]) -> list[Sentence]:
    cases = [row for row in rows if row.format in _TWO_FOUR and not row.scored]
    if not cases:
        return []
    measured = [row for row in cases if relative(row) is not None]
    if not measured:
        reasons = Counter(printable(row.reason or words.status(row)) for row in cases)
        (reason, times), *_ = reasons.most_common(1)
        return [[(f"Not answered: {times} of {len(cases)} cases did not run. {reason}", REST)]]
    won, lost = [row for row in measured if beats(row)], [row for row in measured if loses(row)]
    best = min(measured, key=lambda row: row.relative_time)
    where = _where(won) if won else "nowhere significantly"
    return [
        [
            ("Faster than dense in ", REST),
            (f"{len(won)} of {len(measured)} cases", POINT),
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
                (f": in each of {len(sets)} settings a format is significantly faster.", REST),
            ]
        ]
    titles = "; ".join(words.group_title(m[0]) for m in dense_wins[:3])
    further = f"; and {len(dense_wins) - 3} more" if len(dense_wins) > 3 else ""
    if not dense_wins:
        lead = (
            f"In {len(unsure)} of {len(sets)} settings no format is significantly faster than dense"
        )
        return [[(lead, POINT), ("; in none is every format slower.", REST)]]
    lead = f"In {len(dense_wins)} of {len(sets)} settings every format is slower than dense"
    pieces: Sentence = [(lead, POINT), (f": {titles}{further}", REST)]
    if unsure:
        pieces.append((f"; in {len(unsure)} more no format is significantly faster", REST))
    return [[*pieces, (".", REST)]]
