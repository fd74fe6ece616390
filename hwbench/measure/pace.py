"""How long the rest of a run will take, by what its groups took so far and how large they are.

The mean of all results is far too short where small layers come first, and too long after large
ones or once the readings are over that only a group's first visit makes. So each group is told by
its own visits, and before its first by a line over the arithmetic of all layers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple

from hwbench.analysis.roofline import roof
from hwbench.records import Header, Planned

Group = tuple[Any, ...]
Visit = tuple[Group, int]  # a group in a replicate


class Line(NamedTuple):
    """Seconds of a result: fixed ones, and those that grow with the work of its layer."""

    fixed: float
    slope: float

    def __call__(self, work: float) -> float:
        return self.fixed + self.slope * work


POWER = 0.75
"""Work is this power of the seconds of a dense call, for long calls are made less often.

It fits the visits to layers of 384×384 to 14336×4096 by the Xeon with AMX, as ``FIRST`` and
``LATER`` do.
"""
FIRST = Line(0.3, 20.0)
"""What first visits of timed groups are taken to be until some have ended."""
LATER = Line(0.7, 0.25)
"""The same of those after a group's first, as shares: they make fewer readings."""
TRUST = 0.1  # in these; 1 stands for the word of one visit


@dataclass
class Took:
    """Results that came, and their seconds."""

    results: int = 0
    seconds: float = 0.0

    @property
    def each(self) -> float:
        """Seconds of a result."""
        return self.seconds / self.results

    def __add__(self, other: Took) -> Took:
        return Took(self.results + other.results, self.seconds + other.seconds)


@dataclass
class Pace:
    """What is left of each visit, and what those before took.

    ``work`` is that of a group's dense layer, see ``POWER``. The results of a timed group
    come in bunches, after readings of all its members, so that a visit tells nothing before it
    ends; those of ``scored`` groups come one by one.
    """

    work: Mapping[Group, float] = field(default_factory=dict)
    scored: set[Group] = field(default_factory=set)
    left: Counter[Visit] = field(default_factory=Counter)
    took: dict[Visit, Took] = field(default_factory=lambda: defaultdict(Took))
    first: dict[Group, int] = field(default_factory=dict)  # the replicate of the first visit
    starts: list[float] = field(default_factory=list)  # seconds that workers took to start

    @classmethod
    def of(
        cls, header: Header, planned: Mapping[str, Planned], done: Collection[tuple[str, int]]
    ) -> Pace:
        """The pace of a run as planned, of which so much is ``done``: cases and replicates."""
        groups: dict[Group, list[Planned]] = defaultdict(list)
        for each in planned.values():
            groups[each.case.group].append(each)
        work = {
            group: fmean(_work(each, header.ceilings) for each in members)
            for group, members in groups.items()
        }
        pace = cls(work, {group for group in groups if groups[group][0].seeds is not None})
        for each in planned.values():
            for replicate in range(header.plan.seeds(each)):
                if (each.case.id, replicate) not in done:
                    pace.expect(each, replicate)
        return pace

    def expect(self, planned: Planned, replicate: int) -> None:
        """Count a result that is to come; a case that cannot run here is answered at once."""
        self.left[planned.case.group, replicate] += planned.unsupported is None

    def give_up(self, replicate: int) -> None:
        """Expect nothing more of a replicate."""
        for visit in [visit for visit in self.left if visit[1] == replicate]:
            del self.left[visit]

    def add(self, planned: Planned, replicate: int, seconds: float | None) -> None:
        """Count a result that came.

        It took ``seconds`` since the one before it; None where they tell nothing of the others.
        """
        visit = (planned.case.group, replicate)
        self.left[visit] -= planned.unsupported is None
        if seconds is not None:
            self.first.setdefault(planned.case.group, replicate)
            self.took[visit] += Took(1, seconds)

    def seconds(self) -> float | None:
        """Seconds of what is left, by one device; None where nothing tells of it yet."""
        if (each := self._each()) is None:
            return None
        visits = {visit: results for visit, results in self.left.items() if results > 0}
        begun = {replicate for _, replicate in self.took}
        starts = len({replicate for _, replicate in visits} - begun)
        return starts * fmean(self.starts or [0.0]) + sum(
            self._rest(visit, results, each(visit)) for visit, results in visits.items()
        )

    def _rest(self, visit: Visit, results: int, each: float) -> float:
        """Seconds of what is left of a visit; results of one that has begun come in bunches."""
        took = self.took.get(visit, Took())
        rest = (took.results + results) * each - took.seconds
        return rest if rest > 0 else results * each

    def _each(self) -> Callable[[Visit], float] | None:
        """The seconds of a result by its visit, as those that ended tell them; None before one."""
        first: dict[Group, Took] = defaultdict(Took)
        later: dict[Group, Took] = defaultdict(Took)
        for (group, replicate), took in self.took.items():
            if group in self.scored or self.left[group, replicate] <= 0:
                new = group in self.scored or replicate == self.first[group]
                (first if new else later)[group] += took
        if not first:
            return None
        anew = _line(self._points(first), FIRST)
        again = _line(self._points(later), Line(LATER.fixed * anew.fixed, LATER.slope * anew.slope))
        scores = [first[group].each for group in self.scored & first.keys()]
        score = fmean(scores) if scores else anew.fixed

        def each(visit: Visit) -> float:
            group, replicate = visit
            work = self.work[group]
            if group in self.scored:
                return first[group].each if group in first else score
            if group in later:
                return later[group].each
            if self.first.get(group, replicate) == replicate:
                return first[group].each if group in first else anew(work)
            usual = anew(work)
            return again(work) * (first[group].each / usual if group in first and usual else 1.0)

        return each

    def _points(self, took: Mapping[Group, Took]) -> list[tuple[float, float]]:
        """Work and seconds of a result of the timed groups among these."""
        return [(self.work[g], each.each) for g, each in took.items() if g not in self.scored]


def _line(points: Sequence[tuple[float, float]], prior: Line) -> Line:
    """The line through pairs of work and seconds of a result.

    It is that of the least relative errors, with the numbers of ``prior`` among the points: groups
    of one size tell no slope. Neither number is negative.
    """
    import numpy as np
    from scipy.optimize import nnls

    rows = [(1 / each, work / each, 1.0) for work, each in points if each > 0]
    rows += [(TRUST / prior.fixed, 0.0, TRUST)] if prior.fixed else []
    rows += [(0.0, TRUST / prior.slope, TRUST)] if prior.slope else []
    table = np.array(rows)
    fixed, slope = nnls(table[:, :2], table[:, 2])[0]
    return Line(float(fixed), float(slope))


def _work(planned: Planned, ceilings: Mapping[str, Any]) -> float:
    """The work of a case's dense layer, at the best rate; 0 where that is not known."""
    known = roof(ceilings, planned.case.dtype)
    if planned.cost is None or known is None:
        return 0.0
    return (planned.cost.dense_flops / known.flops_per_second) ** POWER
