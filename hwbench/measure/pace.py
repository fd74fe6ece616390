"""How long the rest of a run will take, by what its groups took so far and how large they are.

The mean of all results is far too short where small layers come first, and too long after large
ones or once the readings are over that only the first replicate makes. So each group is told by its
own visits, and before its first by a line over the arithmetic of all layers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple

from hwbench.analysis.roofline import roof
from hwbench.records import Header, Planned, Result, Status


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
"""What results of the first replicate are taken to take until some groups have ended."""
LATER = Line(0.7, 0.25)
"""The same of later replicates, as shares: they make fewer readings."""
TRUST = 0.1  # in these; 1 stands for the word of one group


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
class Visits:
    """The visits to a group, one in each replicate: what is left of each, and what it took.

    The results of a timed group come in bunches, after readings of all its members, so that a visit
    tells nothing before it ends; those of a ``scored`` group come one by one.
    """

    work: float
    scored: bool
    left: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    took: dict[int, Took] = field(default_factory=lambda: defaultdict(Took))

    def ended(self, *, first: bool) -> Took:
        """What the visits that tell something took: the first one, or all later ones."""
        return sum(
            (
                took
                for replicate, took in self.took.items()
                if self.scored or ((replicate == 0) is first and not self.left[replicate])
            ),
            Took(),
        )

    def rest(self, replicate: int, each: float) -> float:
        """Seconds of what is left of a visit where a result takes ``each``."""
        took = self.took.get(replicate, Took())
        return max(0.0, (took.results + len(self.left[replicate])) * each - took.seconds)


@dataclass
class Pace:
    """What is left of a run, and what its visits took; seconds are those of one device."""

    groups: dict[tuple[Any, ...], Visits] = field(default_factory=dict)
    starts: list[float] = field(default_factory=list)  # seconds that workers took to start
    reads: dict[int, float] = field(default_factory=dict)
    """Seconds of the first scored result, for which a worker reads the model, by replicate."""
    begun: set[int] = field(default_factory=set)  # replicates

    @classmethod
    def of(
        cls, header: Header, planned: Mapping[str, Planned], done: Collection[tuple[str, int]]
    ) -> Pace:
        """The pace of a run as planned, of which so much is ``done``: cases and replicates."""
        pace = cls()
        groups: dict[tuple[Any, ...], list[Planned]] = defaultdict(list)
        for each in planned.values():
            groups[each.case.group].append(each)
        for group, members in groups.items():
            work = fmean(_work(each, header.ceilings) for each in members)
            pace.groups[group] = Visits(work, scored=members[0].seeds is not None)
        for each in planned.values():
            for replicate in range(header.plan.seeds(each)):
                if (each.case.id, replicate) not in done:
                    pace.expect(each, replicate)
        return pace

    def expect(self, planned: Planned, replicate: int) -> None:
        """Wait for a result; what cannot run here is answered at once."""
        if planned.unsupported is None:
            self.groups[planned.case.group].left[replicate].add(planned.case.id)

    def give_up(self, replicate: int) -> None:
        """Wait for nothing more of a replicate."""
        for visits in self.groups.values():
            visits.left.pop(replicate, None)

    def add(self, planned: Planned, result: Result, seconds: float | None) -> None:
        """Count a result that came so many seconds after the one before it; None: at once.

        One that failed tells nothing of others, and is answered at once from then on.
        """
        visits, replicate = self.groups[planned.case.group], result.replicate
        if result.status is Status.OK:
            visits.left[replicate].discard(result.case)
        else:
            for later, left in visits.left.items():
                if later >= replicate:
                    left.discard(result.case)
        if seconds is None or result.status is not Status.OK:
            return
        self.begun.add(replicate)
        if visits.scored and replicate not in self.reads:
            self.reads[replicate] = seconds
        else:
            visits.took[replicate] += Took(1, seconds)

    @property
    def over(self) -> bool:
        """Whether nothing is left."""
        return not any(left for visits in self.groups.values() for left in visits.left.values())

    def seconds(self) -> float | None:
        """Seconds of what is left; None where nothing tells of it yet."""
        ended = [(v, v.ended(first=True), v.ended(first=False)) for v in self.groups.values()]
        reads = [*self.reads.values()]
        if not reads and not any(first.results or later.results for _, first, later in ended):
            return None
        timed = [each for each in ended if not each[0].scored]
        anew = _line([(v.work, took.each) for v, took, _ in timed if took.results], FIRST)
        again = _line(
            [(v.work, took.each) for v, _, took in timed if took.results],
            Line(LATER.fixed * anew.fixed, LATER.slope * anew.slope),
        )
        scores = [took.each for v, took, _ in ended if v.scored and took.results] or reads
        score = fmean(scores or [anew.fixed])
        total, waited, to_score = 0.0, set[int](), set[int]()
        for visits, first, later in ended:
            usual = score if visits.scored else anew(visits.work)
            in_first = first.each if first.results else usual
            if visits.scored:
                in_later = in_first
            elif later.results:
                in_later = later.each
            else:  # as much slower than others of its size as it was in the first replicate
                in_later = again(visits.work) * (in_first / usual if usual else 1.0)
            coming = {replicate for replicate, left in visits.left.items() if left}
            total += sum(visits.rest(each, in_later if each else in_first) for each in coming)
            waited |= coming
            to_score |= coming if visits.scored else set()
        unread = to_score - self.reads.keys()
        total += len(unread) * max(0.0, fmean(reads or [0.0]) - score)
        return total + len(waited - self.begun) * fmean(self.starts or [0.0])


def _line(points: Iterable[tuple[float, float]], prior: Line) -> Line:
    """The line through pairs of work and seconds of a result.

    It is that of the least relative errors, with the numbers of ``prior`` among the points: groups
    of one size tell no slope. Neither number is negative. It is solved by hand, for a library takes
    half a second to be imported in the middle of a run.
    """
    rows = [(1 / each, work / each, 1.0) for work, each in points if each > 0]
    rows += [(TRUST / prior.fixed, 0.0, TRUST)] if prior.fixed else []
    rows += [(0.0, TRUST / prior.slope, TRUST)] if prior.slope else []
    aa, ab, bb, a, b = (
        sum(row[i] * row[j] for row in rows) for i, j in ((0, 0), (0, 1), (1, 1), (0, 2), (1, 2))
    )
    determinant = aa * bb - ab * ab
    if determinant <= 0:
        return Line(a / aa, 0.0) if aa else Line(0.0, b / bb)
    fixed, slope = (a * bb - b * ab) / determinant, (aa * b - ab * a) / determinant
    if slope < 0:
        return Line(a / aa, 0.0)
    return Line(fixed, slope) if fixed >= 0 else Line(0.0, b / bb)


def _work(planned: Planned, ceilings: Mapping[str, Any]) -> float:
    """The work of a case's dense layer, at the best rate; 0 where that is not known."""
    known = roof(ceilings, planned.case.dtype)
    if planned.cost is None or known is None:
        return 0.0
    return (planned.cost.dense_flops / known.flops_per_second) ** POWER
