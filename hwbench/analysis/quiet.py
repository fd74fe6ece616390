"""Which replicates of a run count: those that the machine did not slow. Pure.

A neighbour on the same core, or a clock that falls, slows a machine for seconds, minutes or a whole
run, and no counter tells of it. It slows what computes and what moves bytes by different factors,
so that even the relative time is another one. The dense layer shows it, which is timed around every
block: where it takes clearly longer than this machine has shown that it can, so did all else. Only
dense decides, never the format that is judged, so that no regression of a format can hide itself.

The measure is dense's *reference* by group: the second fastest replicate of each of the last runs
of the machine, the least of them, and of the run itself.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from hwbench.analysis.stats import median, variance
from hwbench.records import Header, Planned, Reference, Result, Status

LIMIT = 1.05
"""A replicate in which dense took so many times its reference is slow."""

DEVIATIONS = 3.0
"""The same after so many of dense's own deviations, where these are larger."""

FEWEST = 2
"""Where fewer replicates were quiet, a case has no interval and no verdict."""

ENOUGH = 5
"""Runs are compared by their quiet replicates where these are so many, or as many as planned."""

ALONE = -0.5
"""Below this slope of log relative time on log dense, dense alone scatters, and all count."""

RUNS = 20
"""The number of last runs; their second fastest replicates are the machine's reference."""

DENSE = "dense"
_KNOWN = 3  # runs from which dense's own deviation is known
_HALF = math.sqrt(1 - 2 / math.pi)  # sd of the faster half of normal values over that of all


def limit_seconds(reference: Reference) -> float:
    """A replicate in which dense took longer is slow."""
    deviations = math.exp(min(1.0, DEVIATIONS * reference.deviation))
    return reference.seconds * max(LIMIT, deviations)


@dataclass(frozen=True)
class Counted:
    """Which replicates of one case count."""

    quiet: frozenset[int]
    slow: frozenset[int]

    @property
    def never(self) -> bool:
        """Whether too few replicates were quiet, though there were enough."""
        return len(self.quiet) < FEWEST <= len(self.quiet) + len(self.slow)

    def set_aside(self, planned: int) -> frozenset[int]:
        """The replicates that do not count where runs are compared with each other.

        On a machine that is hardly ever quiet the quiet ones are few, and chosen by luck: then all
        count. ``planned`` is how many replicates the plan asks for.
        """
        return self.slow if len(self.quiet) >= min(ENOUGH, planned) else frozenset()

    def of(self, values: Mapping[int, float]) -> list[float]:
        """The values of the quiet replicates; all of them where too few are."""
        quiet_values = [value for replicate, value in values.items() if replicate in self.quiet]
        return list(values.values()) if self.never or not quiet_values else quiet_values


def of_run(seconds: Iterable[float]) -> Reference | None:
    """The reference of a group by one run: its second fastest replicate; None below two.

    The deviation is that of the faster half, which a slowed half does not touch.
    """
    ordered = sorted(seconds)
    if len(ordered) < FEWEST:
        return None
    half = ordered[: -(-len(ordered) // 2)]
    spread = variance([math.log(each) for each in half]) if len(half) > 1 else 0.0
    return Reference(seconds=ordered[1], deviation=math.sqrt(spread) / _HALF, runs=1)


def of_machine(runs: Sequence[Reference]) -> Reference | None:
    """The least of the last runs, with their usual deviation; None without any."""
    last = runs[-RUNS:]
    if not last:
        return None
    return Reference(
        seconds=min(each.seconds for each in last),
        deviation=median([each.deviation for each in last]) if len(last) >= _KNOWN else 0.0,
        runs=len(last),
    )


def dense_seconds(result: Result) -> float | None:
    """Seconds of the dense layer around the blocks of a case, the median; None without any."""
    times, ratios = result.values("time_seconds"), result.values("relative_time")
    if not ratios or len(times) != len(ratios) or min(ratios) <= 0:
        return None
    return median([seconds / ratio for seconds, ratio in zip(times, ratios, strict=True)])


def dense_by_group(
    planned: Mapping[str, Planned], results: Iterable[Result]
) -> dict[str, dict[int, float]]:
    """Dense's seconds by group and replicate: the median around all cases of the group."""
    usable = [result for result in results if result.case in planned]
    return _by_group(planned, [(each, _dense(planned[each.case], each)) for each in usable])


def _by_group(
    planned: Mapping[str, Planned], results: Iterable[tuple[Result, float | None]]
) -> dict[str, dict[int, float]]:
    """The same of results with dense's seconds around each."""
    groups: dict[str, str] = {}
    samples: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result, seconds in results:
        if not seconds:
            continue
        if result.case not in groups:
            groups[result.case] = planned[result.case].case.among
        samples[groups[result.case]][result.replicate].append(seconds)
    return {
        group: {replicate: median(each) for replicate, each in by_replicate.items()}
        for group, by_replicate in samples.items()
    }


def references(header: Header, by_group: Mapping[str, Mapping[int, float]]) -> dict[str, Reference]:
    """The reference of each group: the machine's, or the run's own where it is lower.

    Earlier runs give dense's own deviation: a run slowed for most of its time would take its own
    scatter for quiet.
    """
    known = {}
    for group, seconds in by_group.items():
        own, stored = of_run(seconds.values()), header.references.get(group)
        if own and stored:
            known[group] = Reference(
                seconds=min(own.seconds, stored.seconds),
                deviation=stored.deviation,
                runs=stored.runs,
            )
        elif stored:
            known[group] = stored
        elif own:
            known[group] = replace(own, deviation=0.0)
    return known


def counted(
    header: Header, planned: Mapping[str, Planned], results: Iterable[Result]
) -> dict[str, Counted]:
    """Which replicates of each case count, by case; those without any dense around them all do."""
    return _weighed(header, planned, results).counted


@dataclass(frozen=True)
class _Weighed:
    """The replicates that count, and the references they were compared with, by group."""

    counted: dict[str, Counted]
    by_group: Mapping[str, Mapping[int, float]]  # dense's seconds by replicate
    references: Mapping[str, Reference]


def _weighed(header: Header, planned: Mapping[str, Planned], results: Iterable[Result]) -> _Weighed:
    good = [result for result in results if result.status is Status.OK and result.case in planned]
    around = [(result, _dense(planned[result.case], result)) for result in good]
    by_group = _by_group(planned, around)
    measure = references(header, by_group)
    of_case: dict[str, dict[int, Result]] = defaultdict(dict)
    dense: dict[str, dict[int, float]] = defaultdict(dict)
    for result, seconds in around:
        of_case[result.case][result.replicate] = result
        dense[result.case][result.replicate] = seconds or 0.0
    groups: dict[str, list[str]] = defaultdict(list)
    for case in of_case:
        groups[planned[case].case.among].append(case)
    counts = {}
    for group, cases in groups.items():
        reference = measure.get(group)
        slow = {case: _slow(dense[case], reference) for case in cases}
        replicates = [list(of_case[case].values()) for case in cases]
        if reference and any(slow.values()) and _alone(replicates, limit_seconds(reference)):
            slow = dict.fromkeys(cases, frozenset())
        for case in cases:
            counts[case] = Counted(frozenset(of_case[case].keys() - slow[case]), slow[case])
    return _Weighed(counts, by_group, measure)


def _alone(cases: Sequence[Sequence[Result]], limit: float) -> bool:
    """Whether it is dense alone that moved within the run, from what it takes on a quiet machine.

    Where dense did not move by more than the limit, or every replicate is slow, its noise does not
    show the cause: a machine that is busy throughout scatters too.
    """
    seconds = [each for results in cases for result in results if (each := dense_seconds(result))]
    if not seconds or min(seconds) > limit or max(seconds) <= LIMIT * min(seconds):
        return False
    return slope(cases) < ALONE


def slope(cases: Iterable[Iterable[Result]]) -> float:
    """How log relative time goes with log dense from replicate to replicate, over the cases.

    −1 where dense scatters and the formats do not; about 0 where the machine slows both; 0 where
    dense does not move.
    """
    together = moved = 0.0
    for results in cases:
        points = [
            (math.log(seconds), math.log(median(result.values("relative_time"))))
            for result in results
            if (seconds := dense_seconds(result))
        ]
        if len(points) < FEWEST:
            continue
        centre = [sum(each) / len(points) for each in zip(*points, strict=True)]
        together += sum((x - centre[0]) * (y - centre[1]) for x, y in points)
        moved += sum((x - centre[0]) ** 2 for x, _ in points)
    return together / moved if moved else 0.0


@dataclass(frozen=True)
class Slowed:
    """How a run was slowed: in how many of its groups, and by what factor in the usual one."""

    groups: int
    of: int
    factor: float
    cases: int  # of these cases the machine was never quiet

    def __str__(self) -> str:
        some = f"in {self.groups} of {self.of} settings"
        where = "everywhere" if self.groups == self.of else some
        return (
            f"The machine was slower during this whole run: dense took {self.factor:.2f} times "
            f"what it takes on this machine when it is quiet, {where}. Nothing is compared where "
            "it was never quiet; measure again when nothing else runs."
        )


def slowed(
    header: Header, planned: Mapping[str, Planned], results: Iterable[Result]
) -> Slowed | None:
    """A note on a run in which the machine was never quiet for more than half of the cases.

    None where it was quiet often enough, or nothing is known of the machine.
    """
    weighed = _weighed(header, planned, results)
    count, by_group = weighed.counted, weighed.by_group
    never = [case for case, each in count.items() if each.never]
    if 2 * len(never) <= len([case for case, each in count.items() if each.slow or each.quiet]):
        return None
    groups = {planned[case].case.among for case in never}
    factors = [
        median(list(by_group[group].values())) / weighed.references[group].seconds
        for group in sorted(groups)
    ]
    return Slowed(len(groups), len(by_group), median(factors), len(never))


def _slow(dense: Mapping[int, float], reference: Reference | None) -> frozenset[int]:
    """The replicates of a case in which dense took too long, by its seconds."""
    if reference is None:
        return frozenset()
    limit = limit_seconds(reference)
    return frozenset(replicate for replicate, seconds in dense.items() if seconds > limit)


def _dense(planned: Planned, result: Result) -> float | None:
    """Dense's seconds in one replicate of a case, which may be dense itself."""
    if planned.case.format == DENSE and (times := result.values("time_seconds")):
        return median(times)
    return dense_seconds(result)
