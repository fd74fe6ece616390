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
    kept: list[str] = field(default_factory=list)  # the fastest of both, where it is the same one
    compared: int = 0  # groups and densities in which there is a fastest on both sides
    environment: list[Difference] = field(default_factory=list)
    prices: tuple[float, float] | None = None  # an hour, in the user's currency


def versus(base: Run, other: Run, names: tuple[str, str], prices: Mapping[str, float]) -> Versus:
    """One run against another, from their records alone.

    Raises:
        UsageError: they have no case in common.
    """
    found = Versus(*names)
    first, second = ({_key(row): row for row in report_rows(run)} for run in (base, other))
    shared = [key for key in first if key in second]
    if not shared:
        raise UsageError(f"{names[0]} and {names[1]} have no case in common to compare.")
    values = [_replicates(run) for run in (base, other)]
    for key in shared:
        found.matched.append(_matched(first[key], second[key], values[0][key], values[1][key]))
    found.only = (len(first) - len(shared), len(second) - len(shared))
    found.roofs = _roofs(found.matched)
    _order(found)
    found.environment = differences(facts(base.header.environment), facts(other.header.environment))
    if all(name in prices for name in names):
        found.prices = (prices[names[0]], prices[names[1]])
    return found


def _key(row: Row) -> str:
    return _matching(row.case)


def _matching(case: str) -> str:
    """The case without the kind of device, which stands last."""
    return case.rpartition("/")[0]


def _replicates(run: Run) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {_key(row): [] for row in report_rows(run)}
    for row in replicate_rows(run):
        if known(row["time_seconds"]) and row["time_seconds"] > 0:
            found[_matching(row["case"])].append(row["time_seconds"])
    return found


def _matched(base: Row, other: Row, old: list[float], new: list[float]) -> Matched:
    if not (old and new):
        return Matched(base, other, None, None, "")
    if base.contract != other.contract:
        said = f"timed by {base.contract} and {other.contract}: not comparable"
        return Matched(base, other, None, None, said)
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
    found: dict[str, tuple[float, float]] = {}
    for each in matched:
        old, new = each.base.roof, each.other.roof
        if old is not None and new is not None:
            name = f"matmul {each.base.dtype}, FLOP/s"
            found[name] = (old.flops_per_second, new.flops_per_second)
            found["copy, B/s"] = (old.bytes_per_second, new.bytes_per_second)
    return [(name, *ends) for name, ends in found.items()]


def _order(found: Versus) -> None:
    """How far the formats keep their order, and where another one is the fastest."""
    sides: list[dict[str, Row]] = [{}, {}]
    for each in found.matched:
        both = relative(each.base) is not None and relative(each.other) is not None
        if both and each.base.tokens:
            for side, row in zip(sides, (each.base, each.other), strict=True):
                side[_key(row)] = row
    for members in groups(list(sides[0].values())).values():
        pairs = [(row, sides[1][_key(row)]) for row in members]
        title = words.group_title(members[0])
        if len(pairs) >= _AGREE:
            tau = _tau([(_value(a), _value(b)) for a, b in pairs])
            if math.isfinite(tau):
                found.agreement[title] = tau
        _flips(found, title, [pair for pair in pairs if pair[0].format != DENSE])


def _value(row: Row) -> float:
    return relative(row) or math.nan


def _tau(pairs: list[tuple[float, float]]) -> float:
    from scipy.stats import kendalltau

    return float(kendalltau(*zip(*pairs, strict=True)).statistic)


def _flips(found: Versus, title: str, pairs: list[tuple[Row, Row]]) -> None:
    by_density: dict[str, list[tuple[Row, Row]]] = {}
    for pair in pairs:
        by_density.setdefault(pair[0].density_word, []).append(pair)
    for density, members in by_density.items():
        if len(members) < 2:
            continue
        found.compared += 1
        here = min(members, key=lambda pair: _value(pair[0]))
        there = min(members, key=lambda pair: _value(pair[1]))
        if here is not there:
            sure = not overlap(here[0], there[0]) and not overlap(here[1], there[1])
            found.flips.append(Flip(title, density, here[0], there[1], sure))
        else:
            found.kept.append(here[0].series)


def tallied(found: Versus) -> dict[str, int]:
    """How many ratios are explained by what, in the order of their number."""
    counts: dict[str, int] = {}
    for each in found.matched:
        if each.expected is not None:
            counts[each.explained] = counts.get(each.explained, 0) + 1
    return dict(sorted(counts.items(), key=lambda entry: -entry[1]))


def summary(found: Versus) -> list[str]:
    """What the comparison says, in sentences: who is faster first, statistics last."""
    lead = f"{found.other} against {found.base}: {len(found.matched)} cases in common."
    return [lead, headline(found), *answers(found), *statistics(found)]


def headline(found: Versus) -> str:
    """Which of the two is faster, and by how much."""
    values = _ratios(found)
    if not values:
        return printable(f"{found.base} and {found.other} have no time that can be compared.")
    middle, cases = median(values), f"{len(values)} case{'' if len(values) == 1 else 's'}"
    quick, slow = (found.other, found.base) if middle < 1 else (found.base, found.other)
    share = 1 - min(middle, 1 / middle)
    if share < _SAME:
        return printable(f"{quick} and {slow} are equally fast at the median of {cases}.")
    than = f"{units.percent(share, 0)} less time than {slow}"
    return printable(f"{quick} is faster: {than} at the median of {cases}.")


def answers(found: Versus, *, formats: bool = True) -> list[str]:
    """What a user acts on: where which machine is faster, and where another format wins.

    Args:
        found: the comparison.
        formats: whether the median ratio of each format is told too.
    """
    values = _ratios(found)
    said = []
    if values:
        low, high = (units.ratio(end) for end in (min(values), max(values)))
        faster, slower = decided(found)
        said.append(
            f"Of {len(values)} cases {found.other} is significantly faster in {faster or 'none'} "
            f"and slower in {slower or 'none'}; its times are {low} to {high} of those of "
            f"{found.base}."
        )
        said += _by_format(found) if formats else []
    if found.compared:
        sure = sum(flip.sure for flip in found.flips)
        said.append(
            f"Another format is the fastest in {len(found.flips)} of {found.compared} settings and "
            f"densities, {sure or 'none'} of them significantly."
        )
        said += _kept(found)
    return [printable(sentence) for sentence in [*said, *_priced(found, values)]]


def _kept(found: Versus, most: int = 3) -> list[str]:
    """Which formats to keep on both machines, as far as one is the fastest on both."""
    if not found.kept:
        return []
    parts = [f"{name} in {times}" for name, times in Counter(found.kept).most_common(most)]
    others = len(set(found.kept)) - most
    more = f", {others} others in the rest" if others > 0 else ""
    return [
        f"The same format is the fastest on both in {len(found.kept)}: {', '.join(parts)}{more}."
    ]


def statistics(found: Versus) -> list[str]:
    """How far the hardware explains the ratios, how far the order of formats agrees, the rest."""
    said = []
    counts = tallied(found)
    if counts:
        total = sum(counts.values())
        parts = ", ".join(f"{times} {why}" for why, times in counts.items())
        said.append(f"Of {total} ratios, compared with those of the measured peaks: {parts}.")
    if found.agreement:
        least = min(found.agreement, key=found.agreement.__getitem__)
        middle, several = median(found.agreement.values()), len(found.agreement) > 1
        where = f" at the median of {len(found.agreement)} settings; least" if several else ""
        said.append(
            f"The order of the formats agrees with Kendall’s τ {middle:.2f}{where} in {least}"
            f"{f' ({found.agreement[least]:.2f})' if several else ''}."
        )
    said += _watts(found)
    if any(found.only):
        said.append(f"Left out: {found.only[0]} cases of the first, {found.only[1]} of the second.")
    return [printable(sentence) for sentence in said]


def _ratios(found: Versus) -> list[float]:
    return [each.ratio.value for each in found.matched if each.ratio is not None]


def decided(found: Versus) -> tuple[int, int]:
    """In how many cases the other run is significantly faster, and slower."""
    ratios = [each.ratio for each in found.matched if each.ratio is not None]
    faster = sum(known(each.high) and each.high < 1 for each in ratios)
    return faster, sum(known(each.low) and each.low > 1 for each in ratios)


def by_format(found: Versus) -> list[tuple[str, float, str]]:
    """Each format, its median ratio, and which machine is faster with it; the lowest first."""
    ratios: dict[str, list[float]] = {}
    for each in found.matched:
        if each.ratio is not None:
            ratios.setdefault(each.base.format, []).append(each.ratio.value)
    middles = sorted((median(values), name) for name, values in ratios.items())
    return [(printable(name), middle, _faster(found, middle)) for middle, name in middles]


def _faster(found: Versus, ratio: float) -> str:
    """``Fast Two, by 30 %``: who takes so much less time."""
    share = 1 - min(ratio, 1 / ratio)
    if share < _SAME:
        return "as fast on both"
    return f"{found.other if ratio < 1 else found.base}, by {units.percent(share, 0)}"


def _by_format(found: Versus) -> list[str]:
    """The median ratio of each format in one sentence, where there are several."""
    middles = by_format(found)
    if len(middles) < 2:
        return []
    parts = ", ".join(f"{name} {units.ratio(middle)}" for name, middle, _ in middles)
    return [f"By format: {parts}."]


def _watts(found: Versus) -> list[str]:
    quotients = [
        each.other.value(ENERGY.name) / each.base.value(ENERGY.name)
        for each in found.matched
        if known(each.base.value(ENERGY.name)) and known(each.other.value(ENERGY.name))
    ]
    if not quotients:
        return ["Work per joule: energy was not read in both runs."]
    return [f"Joules a call are {units.ratio(median(quotients))} at the median."]


def _priced(found: Versus, values: list[float]) -> list[str]:
    if found.prices is None or not values:
        return []
    cost = median(values) * found.prices[1] / found.prices[0]
    old, new = (f"{price:g}" for price in found.prices)
    return [f"At {old} and {new} an hour a call costs {units.ratio(cost)} at the median."]


def matters(difference: Difference) -> str:
    """What a difference between two environments means, in words."""
    return {
        Severity.FATAL: "decides times: this is what is compared",
        Severity.WARN: "may explain a difference",
        Severity.IGNORED: "does not matter",
    }[difference.severity]
