"""Run × Run → changes with verdicts. Pure: records in, records out; no file is read here.

A ``Side`` holds the cases of one run; a baseline may be several sides. The replicate values are the
sample, whatever number of calls, blocks or runs they come from. Nothing is compared across two
timing contracts, two revisions of a format, or two machines with different fingerprints.

How the statuses of a case decide (baseline → new):

* anything → wrong, crashed or timed out: ``invalid``, whatever the other replicates say
* present → absent: ``gone``; absent → present: ``new``
* ok → unsupported: ``gone``, with the reason; ok → out of memory: ``regressed``, it no longer fits
* not ok → another status: ``new``, with the baseline's status; → the same status: no change
* ok → ok: the verdict on the metric
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hwbench import quantities, units
from hwbench.analysis.fingerprint import Severity, differences, facts
from hwbench.analysis.power import MOST_REPLICATES, replicates_needed
from hwbench.analysis.quiet import Counted, counted
from hwbench.analysis.stats import Judgement, Rule, as_quotient, judge, median, spread, verdict
from hwbench.errors import UnknownNameError
from hwbench.quantities import GRAPH, RELATIVE, SCORE, TIME, Quantity
from hwbench.records import (
    ANSWERS,
    Change,
    Header,
    Planned,
    PlannedLine,
    Ratio,
    Result,
    Status,
    Verdict,
)

AUTO = (RELATIVE.metric, TIME.metric, SCORE.metric)
"""The metric ``auto`` is the first of these that both runs have."""

_MILDEST_FIRST = (*ANSWERS, Status.TIMED_OUT, Status.CRASHED, Status.WRONG)
_DEFAULT = Rule()


@dataclass(frozen=True)
class Reading:
    """The replicate values of one quantity of one case in one run, by replicate."""

    values: Mapping[int, float]
    contracts: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Entry:
    """One case in one run: its gravest status, and the readings where it was ok."""

    workload: str = ""
    status: Status = Status.OK
    reason: str | None = None
    revision: int = 1
    better: str = "lower"  # the better direction of its score
    kernel: str = ""
    resolved: Mapping[str, Any] = field(default_factory=dict)
    seeds: Mapping[int, int] = field(default_factory=dict)  # by replicate
    readings: Mapping[str, Reading] = field(default_factory=dict)  # by quantity
    format: str = ""
    group: tuple[Any, ...] = ()  # the cases timed in the same rounds of dense share it


@dataclass(frozen=True)
class Side:
    """The cases of one run, and the facts of its machine."""

    cases: Mapping[str, Entry]
    facts: Mapping[str, Any] = field(default_factory=dict)
    run: str = ""
    declared: tuple[Quantity, ...] = ()  # the quantities that other packages declare


@dataclass(frozen=True)
class _Settings:
    rule: Rule
    metrics: tuple[str, ...]
    paired: bool
    blocked: str | None
    declared: tuple[Quantity, ...] = ()

    def quantity(self, name: str) -> Quantity:
        """The declaration of a quantity."""
        return quantities.find(name, self.declared)


def quantities_of(metric: str) -> tuple[str, ...]:
    """The quantities of a metric; a metric that is itself a quantity has that one."""
    return quantities.METRICS.get(metric, (metric,))


def check_metric(
    metric: str, sides: Iterable[Side] = (), declared: Iterable[Quantity] = ()
) -> None:
    """Refuse a metric that is neither hwbench's nor a quantity that the runs hold.

    Raises:
        UnknownNameError: there is no such metric.
    """
    built_in = [*quantities.METRICS, *(each.name for each in quantities.MEASURED)]
    measured = {name for one in sides for entry in one.cases.values() for name in entry.readings}
    measured |= {each.name for each in declared}
    if metric not in ("auto", *built_in, *measured):
        own = sorted(measured.difference(built_in))
        raise UnknownNameError("metric", metric, [*quantities.METRICS, "auto", *own])


# From records to sides


def side(
    header: Header,
    planned: Iterable[PlannedLine] | Mapping[str, Planned],
    results: Iterable[Result],
) -> Side:
    """Make the side of one run from its records.

    A replicate's value of a quantity is the median over its blocks that count; relative times are
    those of the replicates that were not slow, or of all where too few were quiet. A planned case
    without any result is absent, unless planning already found it unsupported.
    """
    if not isinstance(planned, Mapping):
        planned = {line.id: line.planned for line in planned}
    by_case: dict[str, dict[int, Result]] = defaultdict(dict)
    for result in results:
        by_case[result.case][result.replicate] = result
    count = counted(header, planned, [each for of in by_case.values() for each in of.values()])
    asked = header.plan.replicates
    cases = {
        case: _entry(case_plan, list(by_case[case].values()), count.get(case), asked)
        for case, case_plan in planned.items()
        if case in by_case or case_plan.unsupported is not None
    }
    return Side(
        cases=cases,
        facts=facts(header.environment),
        run=header.run,
        declared=tuple(header.quantities),
    )


def _entry(
    planned: Planned, results: list[Result], count: Counted | None, replicates: int
) -> Entry:
    status, reason = Status.UNSUPPORTED, planned.unsupported
    if results:
        gravest = max(results, key=_gravity)
        status, reason = gravest.status, gravest.reason
    good = [result for result in results if result.status is Status.OK]
    slow = count.set_aside(replicates) if count else frozenset[int]()
    quiet = [result for result in good if result.replicate not in slow]
    return Entry(
        workload=planned.case.workload,
        status=status,
        reason=reason,
        revision=planned.revision,
        better=planned.better,
        kernel=planned.kernel,
        resolved=planned.resolved,
        seeds={result.replicate: result.seed for result in good},
        readings=_readings(good, quiet),
        format=planned.case.format,
        group=planned.case.group,
    )


def _readings(good: list[Result], quiet: list[Result]) -> dict[str, Reading]:
    """The values of each quantity by replicate; relative times of ``quiet`` replicates alone."""
    counting = {result.replicate for result in quiet}
    values: dict[str, dict[int, float]] = {}
    contracts: dict[str, set[str]] = {}
    for result in good:
        for measurement in result.measurements:
            name = measurement.quantity
            if not measurement.values or (
                name == RELATIVE.name and result.replicate not in counting
            ):
                continue
            values.setdefault(name, {})[result.replicate] = median(measurement.kept())
            named = measurement.note if name == SCORE.name else measurement.contract
            contracts.setdefault(name, set()).add(named or "none")
    return {name: Reading(each, frozenset(contracts[name])) for name, each in values.items()}


def _gravity(ended: Entry | Result) -> int:
    return _MILDEST_FIRST.index(ended.status)


# Verdicts


def compare(
    baseline: Sequence[Side],
    new: Sequence[Side],
    rule: Rule = _DEFAULT,
    *,
    metric: str = "auto",
    paired: bool = False,
    across_machines: bool = False,
) -> list[Change]:
    """Compare every case of either side; the changes follow the order of the new runs.

    Args:
        baseline: the runs compared against; their replicate values are one sample.
        new: the runs under test, likewise.
        rule: what counts as a change; its floor is in seconds, and holds for times and for
            relative times (which are worth their share of the baseline's time).
        metric: ``auto`` or one of ``METRICS``.
        paired: the replicates of both sides ran in pairs, and share their numbers.
        across_machines: compare although fingerprints disagree; for showing, never for a gate.

    Raises:
        UnknownNameError: there is no such metric.
    """
    check_metric(metric, (*baseline, *new))
    differing = [
        each for old in baseline for now in new for each in differences(old.facts, now.facts)
    ]
    fatal = dict.fromkeys(str(each) for each in differing if each.severity is Severity.FATAL)
    blocked = "; ".join(fatal) if fatal and not across_machines else None
    metrics = AUTO if metric == "auto" else (metric,)
    declared = tuple(q for one in (*new, *baseline) for q in one.declared)
    settings = _Settings(rule, metrics, paired, blocked, declared)
    changes = []
    for case in dict.fromkeys(case for one in (*new, *baseline) for case in one.cases):
        before = [one.cases[case] for one in baseline if case in one.cases]
        after = [one.cases[case] for one in new if case in one.cases]
        if ended := _by_status(before, after):
            measured = (name for name in metrics if _has([*before, *after], name))
            named = next(measured, metric)
            changes.append(Change(case=case, metric=named, verdict=ended[0], reason=ended[1]))
        elif change := _by_value(case, [old for old in before if worked(old)], after, settings):
            changes.append(change)
    return changes


def _by_status(baseline: list[Entry], new: list[Entry]) -> tuple[Verdict, str | None] | None:
    """The verdict where the statuses decide it; None where the values do, or nothing changed."""
    if not new:
        return Verdict.GONE, "The new run does not have it."
    now = max(new, key=_gravity)
    if now.status not in ANSWERS:
        return Verdict.INVALID, _ending(now)
    if not baseline:
        return Verdict.NEW, None if now.status is Status.OK else _ending(now)
    if not any(map(worked, baseline)):
        old = max(baseline, key=_gravity)
        return None if old.status is now.status else (Verdict.NEW, f"Before: {_ending(old)}")
    if now.status is Status.UNSUPPORTED:
        return Verdict.GONE, _ending(now)
    before = any(old.status is Status.OUT_OF_MEMORY for old in baseline)
    if now.status is Status.OUT_OF_MEMORY and not (before and any(map(worked, new))):
        return Verdict.REGRESSED, _ending(now)
    return None


def worked(entry: Entry) -> bool:
    """Whether a run has usable values of the case; one wrong result spoils all."""
    return entry.status is Status.OK or bool(entry.readings and entry.status is not Status.WRONG)


def _ending(entry: Entry) -> str:
    words = entry.status.value.replace("_", " ")
    return f"{words}: {entry.reason}" if entry.reason else words


def _by_value(
    case: str, baseline: list[Entry], new: list[Entry], settings: _Settings
) -> Change | None:
    """The verdict on the first metric that both sides have; None where neither has any."""

    def refused(metric: str, reason: str) -> Change:
        return Change(case=case, metric=metric, verdict=Verdict.INCOMPARABLE, reason=reason)

    shared = [name for name in settings.metrics if _shared(name, baseline, new)]
    if not shared:
        single = [name for name in settings.metrics if baseline and _has([*baseline, *new], name)]
        return refused(single[0], "Only one of the runs has values of it.") if single else None
    metric, quantity = shared[0], _shared(shared[0], baseline, new)[0]
    baseline, new = ([e for e in side_ if quantity in e.readings] for side_ in (baseline, new))
    doubts = [unlike(old, new, quantity) for old in baseline]
    alike = [old for old, why in zip(baseline, doubts, strict=True) if why is None]
    doubt = next(filter(None, doubts), "")
    if settings.blocked or not alike:
        return refused(metric, settings.blocked or doubt)
    middles: dict[str, float] = {}
    if settings.quantity(quantity).exact:
        judgement, note = _exact(quantities_of(metric), alike, new, settings)
    else:
        judgement, note = _judged(quantity, alike, new, settings)
        sides = {"base": alike, "new": new}
        middles = {name: _middle(entries, quantity) for name, entries in sides.items()}
    if doubt:
        note += f" {len(baseline) - len(alike)} of {len(baseline)} baseline runs left out: {doubt}"
    return Change(
        case=case,
        metric=metric,
        verdict=judgement.verdict,
        ratio=judgement.ratio,
        reason=f"{note} {_changed(alike[-1], new[-1])}".strip() or None,
        replicates_needed=judgement.replicates_needed,
        **middles,
    )


def _middle(entries: list[Entry], quantity: str) -> float:
    """The median of a quantity over all replicates of these runs."""
    return median(list(_replicates(entries, quantity).values()))


def _has(entries: list[Entry], metric: str) -> bool:
    return any(name in entry.readings for entry in entries for name in quantities_of(metric))


def _shared(metric: str, *sides: list[Entry]) -> list[str]:
    """The quantities of a metric that every side has values of."""
    return [
        quantity
        for quantity in quantities_of(metric)
        if all(any(quantity in entry.readings for entry in entries) for entries in sides)
    ]


def unlike(old: Entry, new: list[Entry], quantity: str) -> str | None:
    """Says why a baseline run's values of a case cannot be compared with the new ones."""
    known = old.readings[quantity].contracts
    if len(known) == 1 and all(
        entry.revision == old.revision and entry.readings[quantity].contracts == known
        for entry in new
    ):
        return None
    revisions = {entry.revision for entry in (old, *new)}
    if len(revisions) > 1:
        return f"Revisions {' and '.join(map(str, sorted(revisions)))} of the format differ."
    contracts = frozenset().union(*(e.readings[quantity].contracts for e in (old, *new)))
    if len(contracts) > 1 and quantity == SCORE.name:
        return f"The scores {' and '.join(sorted(contracts))} are not comparable."
    if len(contracts) > 1:
        return f"The timing contracts {' and '.join(sorted(contracts))} are not comparable."
    return None


def _changed(old: Entry, new: Entry) -> str:
    """Names other differences between two entries, which may explain a change."""
    before = {"kernel": old.kernel, **old.resolved}
    after = {"kernel": new.kernel, **new.resolved}
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return " ".join(f"The {key} was {before.get(key)} and is {after.get(key)}." for key in keys)


def _judged(
    quantity: str, baseline: list[Entry], new: list[Entry], settings: _Settings
) -> tuple[Judgement, str]:
    by_seed = quantity == SCORE.name
    old, now = (_replicates(entries, quantity, by_seed) for entries in (baseline, new))
    pairs = [key for key in old if key in now]
    paired = bool(pairs) and (
        settings.paired or (by_seed and len(pairs) == min(len(old), len(now)))
    )
    first = [old[key] for key in (pairs if paired else old)]
    second = [now[key] for key in (pairs if paired else now)]
    if by_seed and paired and first == second:
        same = Ratio(value=1, low=1, high=1, counts=(len(pairs), len(pairs)))
        return Judgement(Verdict.EQUIVALENT, same), "The same scores from the same seeds."
    if by_seed and paired and len(pairs) < _SEEDS and len(old) == len(now) == len(pairs):
        exact = _by_seed(first, second, settings.rule, new[-1].better)
        subject = "One seed: its score is" if len(pairs) == 1 else "Few seeds: their scores are"
        return (
            exact,
            f"{subject} exact, and compared as {'it is' if len(pairs) == 1 else 'they are'}.",
        )
    timed = quantity in (TIME.name, RELATIVE.name, GRAPH.name)
    times = list(_replicates(baseline, TIME.name).values()) if timed else []
    judgement = judge(
        first,
        second,
        settings.rule,
        better=new[-1].better if by_seed else settings.quantity(quantity).better,
        paired=paired,
        base=median(times) if times else None,
    )
    note = ""
    if judgement.verdict is Verdict.UNDECIDED and math.isnan(judgement.ratio.low):
        note = "One replicate on each side tells no spread."
        if enormous(judgement.ratio):
            better = new[-1].better if by_seed else settings.quantity(quantity).better
            worse = (judgement.ratio.value > 1) == (better == "lower")
            moved = Verdict.REGRESSED if worse else Verdict.IMPROVED
            judgement = Judgement(moved, judgement.ratio)
            note = "A change by a factor of two needs no spread to be told."
    elif judgement.verdict is Verdict.UNDECIDED and judgement.replicates_needed is None:
        note = _open(spread(first, second), settings.rule)
    return judgement, note


_SEEDS = 3  # from so many on their scores have an interval worth the name
ENORMOUS = 2.0
"""Above this quotient, or below its inverse, a change counts even where no spread is known."""


def enormous(ratio: Ratio) -> bool:
    """Whether a change is so large that it needs no spread."""
    return ratio.value > ENORMOUS or 0 <= ratio.value < 1 / ENORMOUS


def _by_seed(old: Sequence[float], new: Sequence[float], rule: Rule, better: str) -> Judgement:
    """The verdict on scores of too few seeds for a spread; the scores are exact."""
    before, after = math.fsum(old) / len(old), math.fsum(new) / len(new)
    value = as_quotient(after - before, abs(before))
    exact = Ratio(value=value, low=value, high=value, counts=(len(old), len(new)))
    decision = verdict(exact, threshold=rule.threshold, margin=rule.margin, better=better)
    return Judgement(decision, exact)


def _open(noise: float, rule: Rule) -> str:
    """Says why no number of replicates would decide a case."""
    if replicates_needed(noise, min(rule.threshold, rule.margin), level=rule.level) is None:
        return (
            f"Its replicates differ by {units.percent(noise)}: more than {MOST_REPLICATES} on each "
            "side would be needed."
        )
    return "The change is too close to the threshold for more replicates to decide."


def _replicates(
    entries: list[Entry], quantity: str, by_seed: bool = False
) -> dict[Hashable, float]:
    """The sample: one value per replicate of each run, or one per seed over all runs."""
    if not by_seed:
        return {
            (run, number): value
            for run, entry in enumerate(entries)
            if quantity in entry.readings
            for number, value in entry.readings[quantity].values.items()
        }
    samples: dict[Hashable, list[float]] = defaultdict(list)
    for entry in entries:
        for number, value in entry.readings[quantity].values.items():
            samples[entry.seeds.get(number, number)].append(value)
    return {key: median(values) for key, values in samples.items()}


def _exact(
    names: Iterable[str], baseline: list[Entry], new: list[Entry], settings: _Settings
) -> tuple[Judgement, str]:
    """Judges exact quantities: regressed if worse than every baseline run, improved if better."""
    judgements, notes = [], []
    for name in names:
        old, now = (list(_replicates(each, name).values()) for each in (baseline, new))
        if not old or not now:
            continue
        quantity = settings.quantity(name)
        worst, best = (max, min) if quantity.better == "lower" else (min, max)
        verdict, before, after = Verdict.EQUIVALENT, worst(old), worst(now)
        if worst(before, after) != before:
            verdict = Verdict.REGRESSED
        elif best(after, best(old)) != best(old):
            verdict, before = Verdict.IMPROVED, best(old)
        else:
            after = before
        value = as_quotient(after - before, abs(before))
        ratio = Ratio(value=value, low=value, high=value, counts=(len(old), len(now)))
        judgements.append(Judgement(verdict, ratio))
        if before != after:
            was, now_is = (units.si(value, quantity.unit) for value in (before, after))
            notes.append(f"{name} was {was} and is {now_is}.")
    order = (Verdict.EQUIVALENT, Verdict.IMPROVED, Verdict.REGRESSED)
    return max(judgements, key=lambda each: order.index(each.verdict)), " ".join(notes)
