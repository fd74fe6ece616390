"""Two runs beside each other: the ratio of every case, and how far the measured roofs explain it.

The first run is the base. Cases are matched by their id without the kind of device. A ratio of
times is formed within one timing contract only; relative times, which cancel clock and driver, are
always set side by side. Nothing here is a verdict: machines are meant to differ.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from hwbench import units
from hwbench.analysis.fingerprint import Difference, Severity, differences, facts
from hwbench.analysis.frames import replicate_rows
from hwbench.analysis.quiet import counted
from hwbench.analysis.roofline import COMPUTE
from hwbench.analysis.stats import ratio
from hwbench.errors import UsageError
from hwbench.quantities import ENERGY
from hwbench.records import Ratio
from hwbench.report import _words as words
from hwbench.report._answers import overlap
from hwbench.report.rows import DENSE, Row, groups, known, printable, relative, report_rows
from hwbench.store import Run

NEAR = 0.1
"""A ratio is explained where the quotient of the roofs lies in its interval, or so near to it."""
_WIDE = 2.0  # an interval with ends further apart than this explains nothing
_AGREE = 3  # formats at least, before their order is compared

_SAME = 0.005  # a change of times that is none in whole per cent


@dataclass(frozen=True)
class Matched:
    """One case in both runs."""

    base: Row
    other: Row
    ratio: Ratio | None  # of times, other over base; None across contracts, or where one failed
    expected: float | None  # the quotient of the times that the roofs allow
    explained: str


@dataclass(frozen=True)
class Flip:
    """A group and density whose fastest format is another one there."""

    group: str
    density: str
    base: Row
    other: Row
    sure: bool  # neither run's interval of the one overlaps that of the other


@dataclass
class Versus:
    """One run against the base."""

    base: str
    other: str
    matched: list[Matched] = field(default_factory=list)
    only: tuple[int, int] = (0, 0)  # cases that one side alone has: base, other
    roofs: list[tuple[str, float, float]] = field(default_factory=list)  # name, base, other
    agreement: dict[str, float] = field(default_factory=dict)  # Kendall's tau, by group
    flips: list[Flip] = field(default_factory=list)
    # The fastest of both runs, where it is the same format.
    same_winners: list[str] = field(default_factory=list)
    compared: int = 0  # groups and densities in which there is a fastest on both sides
    environment: list[Difference] = field(default_factory=list)
    prices: tuple[float, float] | None = None  # an hour, in the user's currency


def compare_two(
    base: Run, other: Run, names: tuple[str, str], prices: Mapping[str, float]
) -> Versus:
    """One run against another, from their records alone.

    Raises:
        UsageError: they have no case in common.
    """
    result = Versus(*names)
    first, second = ({_key(row): row for row in report_rows(run)} for run in (base, other))
    shared = [key for key in first if key in second]
    if not shared:
        raise UsageError(f"{names[0]} and {names[1]} have no case in common to compare.")
    values = [_replicates(run) for run in (base, other)]
    for key in shared:
        result.matched.append(_matched(first[key], second[key], values[0][key], values[1][key]))
    result.only = (len(first) - len(shared), len(second) - len(shared))
    result.roofs = _roofs(result.matched)
    _order(result)
    result.environment = differences(
        facts(base.header.environment), facts(other.header.environment)
    )
    if all(name in prices for name in names):
        result.prices = (prices[names[0]], prices[names[1]])
    return result


def _key(row: Row) -> str:
    return _matching(row.case)


def _matching(case: str) -> str:
    """The case without the kind of device, which stands last."""
    return case.rpartition("/")[0]


def _replicates(run: Run) -> dict[str, list[float]]:
    """The seconds of each case, replicate by replicate, of those that the row's own time counts."""
    count = counted(run.header, run.planned, run.results)
    values: dict[str, dict[int, float]] = {case: {} for case in run.planned}
    for row in replicate_rows(run):
        if known(row["time_seconds"]) and row["time_seconds"] > 0:
            values[row["case"]][row["replicate"]] = row["time_seconds"]
    return {
        _matching(case): count[case].of(each) if case in count else [*each.values()]
        for case, each in values.items()
    }


def _matched(base: Row, other: Row, old: list[float], new: list[float]) -> Matched:
    if not (old and new):
        return Matched(base, other, None, None, "")
    if base.contract != other.contract:
        contracts = f"timed by {base.contract} and {other.contract}: not comparable"
        return Matched(base, other, None, None, contracts)
    measured = ratio(old, new)
    roofs = _measured_bound(base), _measured_bound(other)
    if roofs[0] is None or roofs[1] is None:
        return Matched(base, other, measured, None, "no measured peak")
    expected = roofs[1][0] / roofs[0][0]
    bounds = roofs[0][1], roofs[1][1]
    return Matched(base, other, measured, expected, _explained(measured, expected, bounds))


def _measured_bound(row: Row) -> tuple[float, str] | None:
    """Attainable seconds and bound under the roof as measured: what raised it explains nothing."""
    place, roof = row.placement, row.roof
    if place is None or roof is None:
        return None
    raised = roof.flops_per_second / roof.measured_flops_per_second if roof.raised_by else 1.0
    compute = place.compute_seconds * raised
    if compute >= place.attainable_seconds:
        return compute, COMPUTE
    return place.attainable_seconds, place.bound


def _explained(measured: Ratio, expected: float, bounds: tuple[str, str]) -> str:
    low, high = measured.low, measured.high
    if not (math.isfinite(low) and math.isfinite(high)):
        low = high = measured.value
    if not low / (1 + NEAR) <= expected <= high * (1 + NEAR):
        return "not explained"
    if high > _WIDE * low:
        return "undecided"
    return f"explained by {' and '.join(dict.fromkeys(map(_kind, bounds)))}"


def _kind(bound: str) -> str:
    return bound if bound in ("compute", "launch") else "bandwidth"


def _roofs(matched: list[Matched]) -> list[tuple[str, float, float]]:
    by_name: dict[str, tuple[float, float]] = {}
    for case in matched:
        old, new = case.base.roof, case.other.roof
        if old is not None and new is not None:
            name = f"matmul {case.base.dtype}, FLOP/s"
            by_name[name] = (old.flops_per_second, new.flops_per_second)
            by_name["copy, B/s"] = (old.bytes_per_second, new.bytes_per_second)
    return [(name, *ends) for name, ends in by_name.items()]


def _order(versus: Versus) -> None:
    """How far the formats keep their order, and where another one is the fastest."""
    sides: list[dict[str, Row]] = [{}, {}]
    for case in versus.matched:
        compared = relative(case.base) is not None and relative(case.other) is not None
        if compared and case.base.tokens:
            for side, row in zip(sides, (case.base, case.other), strict=True):
                side[_key(row)] = row
    for members in groups(list(sides[0].values())).values():
        pairs = [(row, sides[1][_key(row)]) for row in members]
        title = words.group_title(members[0])
        if len(pairs) >= _AGREE:
            tau = _tau([(_value(a), _value(b)) for a, b in pairs])
            if math.isfinite(tau):
                versus.agreement[title] = tau
        _flips(versus, title, [pair for pair in pairs if pair[0].format != DENSE])


def _value(row: Row) -> float:
    return relative(row) or math.nan


def _tau(pairs: list[tuple[float, float]]) -> float:
    from scipy.stats import kendalltau

    return float(kendalltau(*zip(*pairs, strict=True)).statistic)


def _flips(versus: Versus, title: str, pairs: list[tuple[Row, Row]]) -> None:
    by_density: dict[str, list[tuple[Row, Row]]] = {}
    for pair in pairs:
        by_density.setdefault(pair[0].density_word, []).append(pair)
    for density, members in by_density.items():
        if len(members) < 2:
            continue
        versus.compared += 1
        base_best = min(members, key=lambda pair: _value(pair[0]))
        other_best = min(members, key=lambda pair: _value(pair[1]))
        if base_best is not other_best:
            sure = not (
                overlap(base_best[0], other_best[0]) or overlap(base_best[1], other_best[1])
            )
            versus.flips.append(Flip(title, density, base_best[0], other_best[1], sure))
        else:
            versus.same_winners.append(base_best[0].series)


def tallied(versus: Versus) -> dict[str, int]:
    """How many ratios are explained by what, in the order of their number."""
    counts: dict[str, int] = {}
    for case in versus.matched:
        if case.expected is not None:
            counts[case.explained] = counts.get(case.explained, 0) + 1
    return dict(sorted(counts.items(), key=lambda entry: -entry[1]))


def summary(versus: Versus) -> list[str]:
    """The comparison in sentences: the faster side first, statistics last."""
    lead = f"{versus.other} against {versus.base}: {len(versus.matched)} cases in common."
    return [lead, headline(versus), *answers(versus), *statistics(versus)]


def headline(versus: Versus) -> str:
    """The faster of the two, and by how much."""
    values = _ratios(versus)
    if not values:
        return printable(f"{versus.base} and {versus.other} have no time that can be compared.")
    middle, cases = median(values), units.count(len(values), "case")
    quick, slow = (versus.other, versus.base) if middle < 1 else (versus.base, versus.other)
    share = 1 - min(middle, 1 / middle)
    if share < _SAME:
        return printable(f"{quick} and {slow} are equally fast at the median of {cases}.")
    than = f"{units.percent(share, 0)} less time than {slow}"
    return printable(f"{quick} is faster: {than} at the median of {cases}.")


def answers(versus: Versus, *, formats: bool = True) -> list[str]:
    """What a user acts on: where which machine is faster, and where another format wins.

    Args:
        versus: the comparison.
        formats: whether the median ratio of each format is among the answers.
    """
    values = _ratios(versus)
    sentences = []
    if values:
        low, high = (units.ratio(end) for end in (min(values), max(values)))
        faster, slower = decided(versus)
        sentences.append(
            f"Of {len(values)} cases {versus.other} is significantly faster in {faster or 'none'} "
            f"and slower in {slower or 'none'}; its times are {low} to {high} of those of "
            f"{versus.base}."
        )
        sentences += _by_format(versus) if formats else []
    if versus.compared:
        significant = sum(flip.sure for flip in versus.flips)
        sentences.append(
            f"Another format is the fastest in {len(versus.flips)} of {versus.compared} settings "
            f"and densities, {significant or 'none'} of them significantly."
        )
        sentences += _same_winners(versus)
    return [printable(sentence) for sentence in [*sentences, *_priced(versus, values)]]


def _same_winners(versus: Versus, most: int = 3) -> list[str]:
    """The formats that are the fastest on both machines, and how often."""
    if not versus.same_winners:
        return []
    parts = [f"{name} in {times}" for name, times in Counter(versus.same_winners).most_common(most)]
    further = len(set(versus.same_winners)) - most
    more = f", {further} others in the rest" if further > 0 else ""
    lead = f"The same format is the fastest on both in {len(versus.same_winners)}"
    return [f"{lead}: {', '.join(parts)}{more}."]


def statistics(versus: Versus) -> list[str]:
    """How far the hardware explains the ratios, how far the order of formats agrees, the rest."""
    sentences = []
    counts = tallied(versus)
    if counts:
        total = sum(counts.values())
        parts = ", ".join(f"{times} {why}" for why, times in counts.items())
        sentences.append(f"Of {total} ratios, compared with those of the measured peaks: {parts}.")
    if versus.agreement:
        least = min(versus.agreement, key=versus.agreement.__getitem__)
        middle, several = median(versus.agreement.values()), len(versus.agreement) > 1
        where = f" at the median of {len(versus.agreement)} settings; least" if several else ""
        sentences.append(
            f"The order of the formats agrees with Kendall’s τ {middle:.2f}{where} in {least}"
            f"{f' ({versus.agreement[least]:.2f})' if several else ''}."
        )
    sentences += _watts(versus)
    if any(versus.only):
        sentences.append(
            f"Left out: {versus.only[0]} cases of the first, {versus.only[1]} of the second."
        )
    return [printable(sentence) for sentence in sentences]


def _ratios(versus: Versus) -> list[float]:
    return [case.ratio.value for case in versus.matched if case.ratio is not None]


def decided(versus: Versus) -> tuple[int, int]:
    """In how many cases the other run is significantly faster, and slower."""
    ratios = [each.ratio for each in versus.matched if each.ratio is not None]
    faster = sum(known(each.high) and each.high < 1 for each in ratios)
    return faster, sum(known(each.low) and each.low > 1 for each in ratios)


def by_format(versus: Versus) -> list[tuple[str, float, str]]:
    """Each format, its median ratio, and which machine is faster with it; the lowest first."""
    ratios: dict[str, list[float]] = {}
    for case in versus.matched:
        if case.ratio is not None:
            ratios.setdefault(case.base.format, []).append(case.ratio.value)
    middles = sorted((median(values), name) for name, values in ratios.items())
    return [(printable(name), middle, _faster(versus, middle)) for middle, name in middles]


def _faster(versus: Versus, ratio: float) -> str:
    """``Fast Two, by 30 %``: who takes so much less time."""
    share = 1 - min(ratio, 1 / ratio)
    if share < _SAME:
        return "as fast on both"
    return f"{versus.other if ratio < 1 else versus.base}, by {units.percent(share, 0)}"


def _by_format(versus: Versus) -> list[str]:
    """The median ratio of each format in one sentence, where there are several."""
    middles = by_format(versus)
    if len(middles) < 2:
        return []
    parts = ", ".join(f"{name} {units.ratio(middle)}" for name, middle, _ in middles)
    return [f"By format: {parts}."]


def _watts(versus: Versus) -> list[str]:
    quotients = [
        case.other.value(ENERGY.name) / case.base.value(ENERGY.name)
        for case in versus.matched
        if known(case.base.value(ENERGY.name)) and known(case.other.value(ENERGY.name))
    ]
    if not quotients:
        return ["Work per joule: energy was not read in both runs."]
    return [f"Joules a call are {units.ratio(median(quotients))} at the median."]


def _priced(versus: Versus, values: list[float]) -> list[str]:
    if versus.prices is None or not values:
        return []
    cost = median(values) * versus.prices[1] / versus.prices[0]
    old, new = (f"{price:g}" for price in versus.prices)
    return [f"At {old} and {new} an hour a call costs {units.ratio(cost)} at the median."]


def matters(difference: Difference) -> str:
    """The meaning of a difference between two environments, in words."""
    return {
        Severity.FATAL: "decides times: this is what is compared",
        Severity.WARN: "may explain a difference",
        Severity.IGNORED: "does not matter",
    }[difference.severity]
