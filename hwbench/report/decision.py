"""What to use: the candidates of each setting, fastest first, and the best at each largest error.

A *setting* is what a user has: a layer of some shape, its tokens, dtype and pass. The page, the
terminal and ``hwbench show`` all say what is decided here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import Any

from hwbench import units
from hwbench.analysis.accuracy import Joined
from hwbench.analysis.contest import BADLY, MARGIN, Outcome
from hwbench.analysis.contested import LEVELS, LOSSLESS, NEAR
from hwbench.analysis.frames import NEVER_QUIET
from hwbench.analysis.modes import Modes, modes
from hwbench.quantities import COMPILE
from hwbench.records import Mode
from hwbench.report import _whose
from hwbench.report import _words as words
from hwbench.report._answers import against, beats, has_interval, loses
from hwbench.report._scores import Score, score_of
from hwbench.report._trade import joins
from hwbench.report.rows import (
    DENSE,
    Group,
    Row,
    groups,
    known,
    printable,
    relative,
    row_of,
)

EXACT = 1e-5
"""An error up to which a layer computes what dense does, but for rounding."""
UNQUIET = "never quiet"  # the verdict of what has a time and no more
UNDECIDED = "undecided"  # … and of what may be as fast as dense
FASTER = "faster"
SLOWER = "slower"
TRY = "Try"
NOTHING_FASTER = "nothing within this error is proved to be faster"
_TRY_WORDS = f"{TRY}: its time has no interval, so it is not proved to be faster than dense."
_LEAST = -1e300  # a loss below every other, which JSON can hold; infinity it cannot
_NAMED = 3  # rivals in a line
_PLAIN = ("Keep", "Use")  # what the page's script says where it is told nothing else


@dataclass(frozen=True)
class Level:
    """A largest error, in words; ``limit`` bounds the loss of a candidate."""

    label: str
    limit: float


@dataclass
class Candidate:
    """A format in a setting."""

    row: Row
    loss: float  # its error, or a score with its sign turned; nan where nothing tells
    error: str  # the same in words
    # Later candidates: those proved to be as fast within 3 %, and those that may be.
    tied: list[int] = field(default_factory=list)
    close: list[int] = field(default_factory=list)
    surer: list[int] = field(default_factory=list)  # … to a rough one: those that may replace it
    modes: Modes | None = None  # where its replicates fall into two
    # Itself and later candidates, if in two modes of which the fast one is as fast as this one.
    modal: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The format, its density and its knobs in words."""
        return words.format_name(self.row)

    @cached_property
    def relative(self) -> float:
        """Time over dense's; nan where it was not measured."""
        value = relative(self.row)
        return math.nan if value is None else value

    @property
    def rough(self) -> bool:
        """Whether its time over dense's is not even known within a factor of ``BADLY``."""
        row = self.row
        return has_interval(row) and row.relative_high > BADLY * row.relative_low

    @property
    def advice(self) -> str:
        """What to do with it, where it is the best: of dense "Keep", of most others "Use".

        Where its interval reaches the time of dense, dense need not be replaced; where it has none,
        as after one replicate, nothing is proved. It is slower only where a filter left dense out.
        """
        if self.row.format == DENSE:
            return "Keep"
        if self.verdict == UNDECIDED:
            return "Keep dense, or try"
        if self.verdict == SLOWER:
            return "Keep dense; the least slow is"
        return "Use" if has_interval(self.row) else TRY

    def replaces(self, rough: Candidate) -> bool:
        """Whether it is known better, and faster than dense with no more doubt."""
        certain = (FASTER, UNDECIDED) if rough.verdict == UNDECIDED else (FASTER,)
        return not self.rough and self.verdict in certain and self.relative < 1

    @property
    def verdict(self) -> str:
        """Against dense, in a word."""
        if self.row.format == DENSE:
            return "baseline"
        if not has_interval(self.row):
            never = NEVER_QUIET in self.row.flags.split(",")
            return UNQUIET if never else "one replicate"
        return FASTER if beats(self.row) else SLOWER if loses(self.row) else UNDECIDED


@dataclass
class Setting:
    """One setting with its candidates, fastest first, dense among them."""

    title: str
    group: int  # the number of its group
    dense: Row | None
    candidates: list[Candidate]
    levels: list[Level]
    basis: str  # what the errors are of, or why there are none
    scored: int | None = None  # the number of the group of the experiment that they are of
    by_error: bool = True  # the losses are relative errors, or nothing was scored
    synthetic: bool = False  # of a matrix that nobody trained
    compiled: str = ""  # what the same setting answers where layers are compiled; else nothing

    @property
    def mode(self) -> str | None:
        """How its layers are executed."""
        return self.candidates[0].row.mode

    def best(self, limit: float) -> Candidate | None:
        """The fastest within a largest error; None where nothing is.

        A candidate that was never measured on a quiet machine is named where no other is there. One
        with a ``rough`` time gives way to the next that is known better, if that may be as fast and
        is as certain to be faster than dense.
        """
        accurate = [each for each in self.candidates if keeps(each, limit)]
        quiet = (each for each in accurate if each.verdict != UNQUIET)
        first = next(quiet, accurate[0] if accurate else None)
        if first is None:
            return None
        surer = next(iter(self._within(first.surer, limit)), None)
        return surer if surer in self.close(first, limit) else first

    def shorter(self, best: Candidate, limit: float) -> list[Candidate]:
        """The candidates of shorter times than the best that were not measured well enough."""
        return [each for each in self.quicker(best, limit) if each.verdict != UNQUIET]

    def unjudged(self, best: Candidate, limit: float) -> list[Candidate]:
        """The candidates that took less time than the best on a machine that was never quiet."""
        return [each for each in self.quicker(best, limit) if each.verdict == UNQUIET]

    def quicker(self, best: Candidate, limit: float) -> list[Candidate]:
        """The candidates of shorter times than the best, within the same largest error."""
        before = self.candidates[: self.candidates.index(best)]
        return [each for each in before if keeps(each, limit)]

    def tied(self, best: Candidate, limit: float) -> list[Candidate]:
        """The candidates as fast as the best within 3 %, and within the same largest error."""
        return self._within(best.tied, limit)

    def close(self, best: Candidate, limit: float) -> list[Candidate]:
        """The candidates that may be as fast as the best, within the same largest error."""
        return self._within(best.close, limit)

    def rivals(self, best: Candidate, limit: float) -> list[tuple[str, list[Candidate]]]:
        """Each relation to the best, in words, with the rivals that stand in it, if any do."""
        by_relation = [
            ("Tied with it", self.tied(best, limit)),
            ("Too close to call", self.close(best, limit)),
            ("Shorter times, but not measured well enough", self.shorter(best, limit)),
            ("Faster once, but the machine was never quiet", self.unjudged(best, limit)),
        ]
        return [(relation, rivals) for relation, rivals in by_relation if rivals]

    def _within(self, places: Iterable[int], limit: float) -> list[Candidate]:
        rivals = (self.candidates[place] for place in places)
        return [each for each in rivals if keeps(each, limit)]

    def says(self, best: Candidate) -> str:
        """The sentence on what to use, instead of what, at which error."""
        time = units.seconds(best.row.time_seconds)
        if best.row.format == DENSE:
            return f"Keep dense: {time}; {NOTHING_FASTER}."
        return f"{best.advice} {best.name}: {time}{self.instead(best)}, {best.error}."

    def modes(self, best: Candidate, limit: float) -> list[str]:
        """A sentence for the best and for each rival as fast that ran in two modes."""
        modal = [each for each in self.shorter(best, limit) if each.modes]
        modal += self._within(best.modal, limit)
        return [f"{each.name} {words.modes(each.modes)}." for each in modal]

    def headline(self, best: Candidate, limit: float) -> str:
        """``says``, and which candidates ran in two modes: one number does not describe those."""
        return " ".join([self.says(best), *self.modes(best, limit)[:_NAMED]])

    def instead(self, best: Candidate) -> str:
        """The time of dense, in words, and the time over it; nothing where dense was not timed."""
        phrase = ""
        if known(seconds := self.dense_seconds(best)):
            phrase = f" instead of {units.seconds(seconds)}"
        return f"{phrase} ({units.ratio(best.relative)})" if known(best.relative) else phrase

    def dense_seconds(self, candidate: Candidate) -> float:
        """What dense took in the rounds of a candidate; else what its own row says, or nan.

        On a machine that is not quiet dense takes another time beside every case.
        """
        if known(candidate.relative) and candidate.row.format != DENSE:
            return candidate.row.time_seconds / candidate.relative
        return self.dense.time_seconds if self.dense else math.nan


def keeps(candidate: Candidate, limit: float) -> bool:
    """Whether a candidate stays within a largest error."""
    return limit == math.inf or candidate.loss <= limit


def settings(rows: Sequence[Row], scored: Iterable[Joined] | None = None) -> list[Setting]:
    """Every setting of one run in which something was timed against dense.

    Args:
        rows: those of the run.
        scored: its timed groups with their scores, where ``_trade.joins`` has made them.
    """
    timed = [row for row in rows if not row.scored]
    experiments: dict[int, list[Joined]] = {}
    for experiment in joins(rows) if scored is None else scored:
        experiments.setdefault(row_of(experiment.timed).group_number, []).append(experiment)
    every = []
    for members in groups(timed).values():
        measured = [row for row in members if relative(row) is not None]
        if any(row.format != DENSE for row in measured):
            every.append(_setting(measured, experiments.get(members[0].group_number, [])))
    compiled = {_but_mode(each): each for each in every if each.mode == Mode.COMPILE}
    for setting in every:
        if setting.mode != Mode.COMPILE and (twin := compiled.get(_but_mode(setting))):
            setting.compiled = _compiled(twin)
    return every


def _but_mode(setting: Setting) -> Group:
    return setting.candidates[0].row.group.without("mode")


def _compiled(setting: Setting) -> str:
    """The answer of a setting of compiled layers in one sentence, with what compiling takes."""
    best = setting.best(math.inf)
    if best is None:
        return ""
    time = units.seconds(best.row.time_seconds)
    answer = f"{DENSE}, or {best.name}" if best.verdict == UNDECIDED else best.name
    lead = "the shortest time is that of" if best.advice == TRY else "the answer is"
    sentence = f"Compiled, {lead} {answer}: {time}"
    if best.row.format != DENSE:
        sentence += f"{setting.instead(best)}, {best.error}"
    compiling = best.row.value(COMPILE.name)
    if known(compiling):
        sentence += f"; compiling takes {units.seconds(compiling)}"
    return f"{sentence}."


def _setting(rows: list[Row], experiments: list[Joined]) -> Setting:
    experiment = min(experiments, key=_trust, default=None)
    score = score_of(row_of(experiment.scored)) if experiment else None
    pairs = experiment.pairs if experiment else []
    scored = {row_of(pair.timed).number: row_of(pair.scored) for pair in pairs}
    candidates = [_candidate(row, score, scored.get(row.number)) for row in rows]
    candidates.sort(key=lambda each: each.relative)
    for place in range(len(candidates)):
        _set_against_later(place, candidates)
    _find_modes(candidates)
    dense = next((row for row in rows if row.format == DENSE), None)
    return Setting(
        title=words.group_title(rows[0]),
        group=rows[0].group_number,
        dense=dense,
        candidates=candidates,
        levels=_levels(score, candidates),
        basis=_basis(experiment, score),
        scored=row_of(experiment.scored).group_number if experiment else None,
        by_error=score is None or _is_error(score),
        synthetic=_synthetic(experiment),
    )


def _is_error(score: Score) -> bool:
    """Whether zero is exact and more is worse."""
    return score.zero and not score.higher


def _trust(experiment: Joined) -> tuple[bool, bool, float]:
    """The experiment that tells most of a layer: of errors, on trained weights, of its shape."""
    timed, scored = row_of(experiment.timed), row_of(experiment.scored)
    score = score_of(scored)
    size = abs(math.log(scored.out_features * scored.in_features)
               - math.log(timed.out_features * timed.in_features))  # fmt: skip
    return (score.higher, _synthetic(experiment), size)


def _synthetic(experiment: Joined | None) -> bool:
    return experiment is not None and _whose.synthetic(row_of(experiment.scored))


def _candidate(row: Row, score: Score | None, scored: Row | None) -> Candidate:
    if row.format in LOSSLESS and scored is None:
        return Candidate(row, 0.0 if score is None or _is_error(score) else _LEAST, "exact")
    if score is None or scored is None:
        return Candidate(row, math.nan, "its error is not measured")
    value = scored.score
    if _is_error(score) and value <= EXACT:
        return Candidate(row, 0.0, "exact")
    span = ""
    if known(scored.score_low):
        low, high = (units.significant(end, 2) for end in (scored.score_low, scored.score_high))
        span = f" ({low}–{high})" if low != high else ""
    error = f"{score.title} {score.amount(value)}{span}"
    return Candidate(row, -value if score.higher else value, error)


def _levels(score: Score | None, candidates: list[Candidate]) -> list[Level]:
    if score is None:
        return [Level("exact", 0.0), Level("any error", math.inf)]
    if not _is_error(score):
        sign = -1 if score.higher else 1
        levels = [
            Level(f"{score.bound} {score.amount(level)}", sign * level) for level in score.levels
        ]
        return [*levels, Level(f"any {score.title}", math.inf)]
    named_levels = [
        Level("exact" if limit == 0 else f"≤ {units.percent(limit, 0)}", limit) for limit in LEVELS
    ]
    largest = max((each.loss for each in candidates if known(each.loss)), default=0.0)
    below = [level for level in named_levels if level.limit < largest or level.limit == 0]
    return [*below, Level("any error", math.inf)]


def _basis(experiment: Joined | None, score: Score | None) -> str:
    if experiment is None or score is None:
        return (
            "This run measures no errors: what a format loses is known of exact ones alone. A "
            'second block of the suite, with workload = "projection" and the same formats, '
            "measures it."
        )
    timed, scored = experiment.shapes
    row = row_of(experiment.scored)
    basis = _whose.noted(row) or f"{score.title.capitalize()} of {words.workload(row)}."
    return basis if timed == scored else f"{basis} Scored at {printable(scored)}."


def _set_against_later(place: int, candidates: list[Candidate]) -> None:
    """Note which later candidates may be as fast as this one, or are proved to be."""
    best, later = candidates[place], range(place + 1, len(candidates))
    most = NEAR * best.relative
    near = list(takewhile(lambda each: candidates[each].relative <= most, later))  # they are sorted
    best.surer = [each for each in near if best.rough and candidates[each].replaces(best)]
    layers = {
        candidates[each].row.number: each for each in near if candidates[each].row.format != DENSE
    }
    if best.row.format == DENSE:
        best.close = [each for each in near if candidates[each].verdict not in (FASTER, SLOWER)]
        return
    rivals = [candidates[each].row for each in layers.values()]
    contest = against(best.row, rivals, among=len(candidates) - 1)
    best.tied = sorted(layers[row.number] for row in contest[Outcome.TIED])
    best.close = [layers[row.number] for row in contest[Outcome.UNDECIDED]]
    if best.verdict not in (FASTER, SLOWER):
        best.close += [each for each in near if candidates[each].row.format == DENSE]
    best.close.sort()


def _find_modes(candidates: list[Candidate]) -> None:
    """Note the modes of each candidate, and beside which others they are to be mentioned.

    A median lies in one mode. A rival whose fast mode is as fast as the best may be faster than it,
    whatever its own median is.
    """
    for candidate in candidates:
        candidate.modes = modes(candidate.row.by_replicate.values())
    in_two_modes = [
        (place, candidate.modes.fast)
        for place, candidate in enumerate(candidates)
        if candidate.modes
    ]
    for number, candidate in enumerate(candidates):
        reach = (1 + MARGIN) * candidate.relative
        candidate.modal = [
            at for at, fast in in_two_modes if at == number or (at > number and fast <= reach)
        ]


def terminal_lines(settings: Iterable[Setting], most: int = 8) -> list[str]:
    """The answers of a run for a terminal: exact first, then within 10 %, then the fastest.

    Args:
        settings: the settings of the run.
        most: settings that are spelled out; the others are counted.
    """
    settings = without_compiled_twins(settings)
    lines = setting_lines(settings[:most])
    if len(settings) > most:
        lines.append(f"… and {len(settings) - most} more settings; the page has them all.")
    lines += explained(settings[:most])
    lines += dict.fromkeys(setting.basis for setting in settings if setting.synthetic)
    return lines


def setting_lines(settings: Iterable[Setting]) -> list[str]:
    """The answers of each setting: what to use, and its rivals."""
    lines: list[str] = []
    for setting in settings:
        lines.append(f"{setting.title}:")
        for level, best in answers(setting):
            lines.append(f"  {level.label}: {setting.headline(best, level.limit)}")
            for relation, rivals in setting.rivals(best, level.limit):
                names = "; ".join(each.name for each in rivals[:_NAMED])
                more = f" and {len(rivals) - _NAMED} more" if len(rivals) > _NAMED else ""
                lines.append(f"    {relation}: {names}{more}.")
        lines += [f"  {setting.compiled}"] if setting.compiled else []
    return lines


def explained(settings: Iterable[Setting]) -> list[str]:
    """What "Try" means, where an answer says so."""
    said = (best for setting in settings for _, best in answers(setting))
    return [_TRY_WORDS] if any(best.advice == TRY for best in said) else []


def without_compiled_twins(settings: Iterable[Setting]) -> list[Setting]:
    """The settings but for those of compiled layers that another one tells of (``compiled``)."""
    settings = list(settings)
    covered = {_but_mode(setting) for setting in settings if setting.compiled}
    return [
        each for each in settings if each.mode != Mode.COMPILE or _but_mode(each) not in covered
    ]


def answers(setting: Setting) -> list[tuple[Level, Candidate]]:
    """The answers that differ, each with the smallest error that allows it."""
    differing: list[tuple[Level, Candidate]] = []
    before: list[Candidate] = []
    for level in setting.levels:
        best = setting.best(level.limit)
        if best is None:
            continue
        found = [best, *setting.quicker(best, level.limit)]
        if found == before:
            continue
        before = found
        differing.append((level, best))
    return differing


def packed(settings: Iterable[Setting]) -> list[dict[str, Any]]:
    """The settings as the page's script reads them."""
    return [
        {
            "title": setting.title,
            "group": setting.group,
            "basis": setting.basis,
            "scored": setting.scored,
            "synthetic": setting.synthetic,
            "by_error": setting.by_error,
            **({"compiled": setting.compiled} if setting.compiled else {}),
            "dense": None if setting.dense is None else setting.dense.number,
            "levels": [
                {"label": level.label, "limit": None if level.limit == math.inf else level.limit}
                for level in setting.levels
            ],
            "candidates": [
                {
                    "row": candidate.row.number,
                    "name": candidate.name,
                    "loss": candidate.loss if known(candidate.loss) else None,
                    "error": candidate.error,
                    "instead": setting.instead(candidate),
                    "verdict": candidate.verdict,
                    **({} if candidate.advice in _PLAIN else {"advice": candidate.advice}),
                    **({"surer": candidate.surer} if candidate.surer else {}),
                    "tied": candidate.tied,
                    "close": candidate.close,
                    **({"modes": words.modes(candidate.modes)} if candidate.modes else {}),
                    **({"modal": candidate.modal} if candidate.modal else {}),
                }
                for candidate in setting.candidates
            ],
        }
        for setting in settings
    ]
