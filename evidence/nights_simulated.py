"""Nights of a simulated machine in eleven moods: what the gate fails for nothing, and finds.

Each world has six groups of eight formats with their dense layer, five replicates a night, and
twenty nights before the first that is judged. The rules are those that ``hwbench check`` runs: the
nights are chosen, compared, confirmed and given an exit code by the same code; only the times are
made up. A confirmation shares the luck of its night. The two sides of a pair share it as well, and
what changes within a night, such as a neighbour, may change between them.

Each row tells, of nights on which nothing changed, how many failed (exit 1) and how many were
another machine's (exit 4); and the share of slowed cases that were found on a tenth as many nights
with a slow-down of 10 % or 5 %, in all cases of one format or in a fifth of all cases.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from msgspec.structs import replace

from hwbench.analysis import quiet
from hwbench.analysis.compare import Entry, Reading, Side
from hwbench.analysis.judging import FLOOR_SECONDS
from hwbench.analysis.nights import KNOWN, Question, judge_night
from hwbench.analysis.stats import Rule
from hwbench.records import Verdict

FORMATS, GROUPS, REPLICATES, FRESH, BEFORE = 8, 6, 5, 10, 20
RULE = Rule(threshold=0.03, margin=0.03, floor=FLOOR_SECONDS)
WALL = frozenset(["wall"])
SIZES = (0.10, 0.05)
WHERE = ("one format", "a fifth")
SECONDS = np.geomspace(2e-4, 2e-2, GROUPS)  # dense of each group on the first host

Array = np.ndarray
Rng = np.random.Generator


@dataclass
class Night:
    """The deviations that all replicates of a night share, on logs."""

    dense: float = 0.0  # all groups
    cases: Array = field(default_factory=lambda: np.zeros((FORMATS, GROUPS)))  # relative times


@dataclass
class World:
    """A machine: its nights one after the other, and its replicates, in the order of time."""

    rng: Rng

    def night(self) -> Night:
        """The next night."""
        return Night()

    def dense(self, count: int) -> Array:
        """The logs by which dense takes longer in so many replicates; (count, groups)."""
        return self.rng.normal(0, 0.012, (count, GROUPS))

    def noise(self, count: int) -> Array:
        """Noise of relative times; (count, formats, groups)."""
        return self.rng.normal(0, 0.015, (count, FORMATS, GROUPS))

    def drawn(self, count: int) -> tuple[Array, Array]:
        """Draw the times of dense and the relative times of consecutive replicates."""
        return self.dense(count), self.noise(count)


@dataclass
class ByFormat(World):
    """Nights shift three formats by 1.5 % and the others by 0.2 %."""

    def night(self) -> Night:
        sd = np.where(np.arange(FORMATS) < 3, 0.015, 0.002)
        return Night(cases=self.rng.normal(0, sd)[:, None] + np.zeros((FORMATS, GROUPS)))


@dataclass
class SlowNight(World):
    """On one night in ten dense takes 19 % longer, and half of the cases 15 % more than that."""

    def night(self) -> Night:
        if self.rng.random() >= 0.1:
            return Night()
        half = self.rng.random((FORMATS, GROUPS)) < 0.5
        return Night(math.log(1.19), math.log(1.15) * half)


@dataclass
class Moves(World):
    """With 15 % a night the virtual machine moves to another host: formats differ by 3 %."""

    by: float = 0.0  # sd of what hosts differ by in dense
    host: Night = field(default_factory=Night)

    def night(self) -> Night:
        if self.rng.random() < 0.15:
            shift = self.rng.normal(0, 0.03, FORMATS)[:, None] + np.zeros((FORMATS, GROUPS))
            self.host = Night(float(self.rng.normal(0, self.by)), shift)
        return self.host


@dataclass
class Pool(World):
    """Every night one of three hosts, 8 % apart in dense; formats differ by 4 %."""

    hosts: list[Night] = field(default_factory=list)

    def night(self) -> Night:
        if not self.hosts:
            shifts = self.rng.normal(0, 0.04, (3, FORMATS))[:, :, None] + np.zeros(GROUPS)
            levels = (0.0, math.log(1.08), -math.log(1.08))
            self.hosts = [Night(*each) for each in zip(levels, shifts, strict=True)]
        return self.hosts[self.rng.integers(3)]


@dataclass
class Neighbour(World):
    """A neighbour streams memory for stretches of replicates: half of the cases lose 10 % more."""

    by: float = 0.18  # what dense takes longer while it is there
    there: bool = False
    felt: Array | None = None

    def drawn(self, count: int) -> tuple[Array, Array]:
        if self.felt is None:
            self.felt = math.log(1.10) * (self.rng.random((FORMATS, GROUPS)) < 0.5)
        on = np.zeros(count)
        for index in range(count):
            self.there = self.rng.random() < (0.9 if self.there else 0.025)
            on[index] = self.there
        dense, noise = super().drawn(count)
        longer = math.log1p(self.by) * on
        return dense + longer[:, None], noise + on[:, None, None] * self.felt


@dataclass
class TwoModes(World):
    """Three processes in ten are in a mode that takes 8 % longer."""

    def noise(self, count: int) -> Array:
        slow = self.rng.random((count, FORMATS, GROUPS)) < 0.3
        return super().noise(count) + math.log(1.08) * slow


@dataclass
class Crazy(World):
    """One replicate of every five in a row, at random, takes 1.2 to 2.5 times as long."""

    def noise(self, count: int) -> Array:
        fives = -(-count // 5)
        which = self.rng.permuted(
            np.broadcast_to(np.arange(5), (fives, FORMATS, GROUPS, 5)), axis=-1
        )
        crazy = np.moveaxis(which == 0, -1, 1).reshape(5 * fives, FORMATS, GROUPS)[:count]
        times = self.rng.uniform(math.log(1.2), math.log(2.5), crazy.shape)
        return super().noise(count) + crazy * times


@dataclass
class HeavyNights(World):
    """Each case has a night of its own: Student's t with three degrees of freedom, 1 %."""

    def night(self) -> Night:
        return Night(cases=0.01 / math.sqrt(3) * self.rng.standard_t(3, (FORMATS, GROUPS)))


WORLDS: dict[str, Callable[[Rng], World]] = {
    "plain": World,
    "nights shift by format": ByFormat,
    "one night in ten is slow": SlowNight,
    "host moves, dense as before": Moves,
    "host moves, dense by 6 %": lambda rng: Moves(rng, by=0.06),
    "neighbour, dense +4 %": lambda rng: Neighbour(rng, by=0.04),
    "neighbour, dense +18 %": Neighbour,
    "a pool of three hosts": Pool,
    "two modes a process": TwoModes,
    "one crazy replicate in five": Crazy,
    "nights of heavy tails": HeavyNights,
}


# From a world to what a run says


def side(night: Night, noise: tuple[Array, Array], slower: Array | float = 0.0) -> Side:
    """A run: times and relative times of every case, by the rule of slowed replicates."""
    dense = np.exp(noise[0] + night.dense) * SECONDS  # (replicates, groups)
    relative = np.exp(noise[1] + night.cases + slower)  # (replicates, formats, groups)
    numbers = range(len(dense))
    cases = {}
    for group in range(GROUPS):
        seconds = dense[:, group].tolist()
        counted = _not_slowed(seconds)
        times = {"time_seconds": _reading(numbers, seconds)}
        cases[f"linear/dense/{group}"] = Entry("linear", readings=times, format="dense",
                                               group=(group,))  # fmt: skip
        for number in range(FORMATS):
            ratios = relative[:, number, group].tolist()
            readings = {
                "relative_time": _reading(counted, [ratios[index] for index in counted]),
                "time_seconds": _reading(
                    numbers, [a * b for a, b in zip(ratios, seconds, strict=True)]
                ),
            }
            name = f"format{number}"
            cases[f"linear/{name}/{group}"] = Entry("linear", readings=readings, format=name,
                                                    group=(group,))  # fmt: skip
    return Side(cases)


def _not_slowed(dense: Sequence[float]) -> list[int]:
    """The replicates that count for relative times, as ``hwbench.analysis.quiet`` has it."""
    reference = quiet.of_run(dense)
    if reference is None:
        return list(range(len(dense)))
    limit = quiet.limit_seconds(replace(reference, deviation=0.0))
    counted = [index for index, seconds in enumerate(dense) if seconds <= limit]
    return counted if len(counted) >= quiet.FEWEST else list(range(len(dense)))


def _reading(numbers: Sequence[int], values: Sequence[float]) -> Reading:
    return Reading(dict(zip(numbers, values, strict=True)), WALL)


def _only(one: Side, cases: Sequence[str]) -> Side:
    return Side({case: one.cases[case] for case in cases})


@dataclass
class Tonight:
    """A night that is checked: its run, and how its cases are measured again."""

    world: World
    night: Night
    slower: Array | float = 0.0
    flagged: bool = False  # whether a case was measured again
    paired: tuple[Array, ...] = (np.zeros((0, GROUPS)), np.zeros((0, FORMATS, GROUPS)))

    def run(self) -> Side:
        """The run of the night."""
        return side(self.night, self.world.drawn(REPLICATES), self.slower)

    def fresh(self, cases: list[str]) -> Side:
        """Fresh replicates of some cases."""
        self.flagged = True
        return _only(side(self.night, self.world.drawn(FRESH), self.slower), cases)

    def pairs(self, cases: list[str], count: int) -> tuple[Side, Side]:
        """The revision of the last baseline night and tonight's, in turn; it goes on with more."""
        more = self.world.drawn(2 * (count - len(self.paired[0]) // 2))
        self.paired = tuple(map(np.concatenate, zip(self.paired, more, strict=True)))
        dense, noise = self.paired
        first = side(self.night, (dense[::2], noise[::2]))
        second = side(self.night, (dense[1::2], noise[1::2]), self.slower)
        return _only(first, cases), _only(second, cases)


# What the gate says


def judge(
    stored: Sequence[Side], tonight: Tonight, new: Side
) -> Iterator[tuple[str, int, set[str]]]:
    """In each way: its name, the exit code, and the cases that regressed."""
    code, regressed = 0, set[str]()
    for name, way in WAYS.items():
        if way == "fresh" or tonight.flagged:
            question = Question(rule=RULE, way=way, again=tonight.fresh, pairs=tonight.pairs)
            decision = judge_night(stored, new, question)
            changes = decision.judged.changes
            regressed = {each.case for each in changes if each.verdict is Verdict.REGRESSED}
            code = 4 if decision.stranger else int(bool(regressed))
        yield name, code, regressed  # where nothing is flagged, all ways are one


WAYS = {"--confirm": "fresh", "--confirm-by ab": "ab"}


@dataclass
class Tallies:
    """Counts of one world and one way."""

    nights: int = 0
    false: int = 0
    others: int = 0  # exit 4
    chances: dict[tuple[float, str], int] = field(default_factory=dict)
    hits: dict[tuple[float, str], int] = field(default_factory=dict)

    def row(self) -> list[str]:
        """The cells of its row."""
        rates = [
            f"{self.hits[key] / self.chances[key]:.0%}" if self.chances.get(key) else "–"
            for key in ((size, where) for size in SIZES for where in WHERE)
        ]
        return [str(self.false), str(self.others), *rates]


def slow_downs(rng: Rng) -> Iterator[tuple[float, str, Array]]:
    """Each size and place of a slow-down, on logs."""
    for size in SIZES:
        one = np.zeros((FORMATS, GROUPS))
        one[rng.integers(FORMATS)] = math.log1p(size)
        yield size, WHERE[0], one
        fifth = rng.random((FORMATS, GROUPS)) < 0.2
        yield size, WHERE[1], math.log1p(size) * fifth


def simulate(
    make: Callable[[Rng], World], nights: int, *, seed: int = 1, every: int = 10
) -> dict[str, Tallies]:
    """Judge so many nights of a world in each way; on each ``every``-th, slow-downs as well."""
    world, rng = make(np.random.default_rng(seed)), np.random.default_rng(seed + 1)
    tallies = {way: Tallies() for way in WAYS}
    stored: list[Side] = []
    for number in range(BEFORE + nights):
        tonight = Tonight(world, world.night())
        new = tonight.run()
        if number >= BEFORE:
            _same(tallies, stored, new, tonight)
            if number % every == 0:
                _slowed(tallies, stored, tonight, rng)
        stored = [*stored, new][-KNOWN:]
    return tallies


def _same(tallies: dict[str, Tallies], stored: Sequence[Side], new: Side, tonight: Tonight) -> None:
    for way, code, _ in judge(stored, Tonight(tonight.world, tonight.night), new):
        tallies[way].nights += 1
        tallies[way].false += code == 1
        tallies[way].others += code == 4


def _slowed(
    tallies: dict[str, Tallies], stored: Sequence[Side], tonight: Tonight, rng: Rng
) -> None:
    for size, where, slower in slow_downs(rng):
        slow = Tonight(tonight.world, tonight.night, slower)
        new, key = slow.run(), (size, where)
        true = {
            f"linear/format{number}/{group}" for number, group in zip(*np.nonzero(slower),
                                                                      strict=True)
        }  # fmt: skip
        for way, code, regressed in judge(stored, slow, new):
            count = tallies[way].chances
            count[key] = count.get(key, 0) + len(true)
            hits = tallies[way].hits
            hits[key] = hits.get(key, 0) + (len(regressed & true) if code == 1 else 0)


def main() -> None:
    """Print a row for each world and way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nights", type=int, default=500, help="nights without a change")
    parser.add_argument("--world", help="only the worlds whose name has this part")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.world and not any(options.world in name for name in WORLDS):
        parser.error(f"no world is called {options.world!r}: {', '.join(WORLDS)}")
    heads = [f"{size:.0%}, {where}" for size in SIZES for where in WHERE]
    print(f"| of {options.nights} nights | | false | exit 4 | {' | '.join(heads)} |")
    print("|---|---|" + "--:|" * (2 + len(heads)))
    for name, make in WORLDS.items():
        if options.world and options.world not in name:
            continue
        for way, counts in simulate(make, options.nights, seed=options.seed).items():
            print(f"| {name} | `{way}` | {' | '.join(counts.row())} |", flush=True)


if __name__ == "__main__":
    main()
