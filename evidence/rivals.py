"""Five other tools' rules of decision, and hwbench's, on the same simulated nights.

The samples are those of ``nights_simulated.py``: replicates of dense and of eight formats, night
after night. Each rule sees the seconds of every case in the stored nights and tonight, which is
what these tools measure; hwbench's sees its relative times as well, and measures again what it
flags, as ``hwbench check --confirm`` and ``--confirm-by ab`` do. The other tools are not run: their
rules are written here from their own documentation, each with the address, and with the settings
that the documentation gives as the default or, where it gives none, as its example. Simulated, so
the table tells of the rules and not of the tools' ways of measuring.

An alarm on a night without a change is false. A slow-down is found in a case that is told of.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from nights_simulated import (
    BEFORE,
    SIZES,
    WHERE,
    WORLDS,
    Tonight,
    judge,
    slow_downs,
)
from scipy import stats

from hwbench.analysis.compare import Side

Seconds = Sequence[Sequence[float]]
"""The seconds of one case by replicate, night by night: the oldest first, tonight's last."""


def torch_benchmark(nights: Seconds) -> bool:
    """The medians differ in the digits that the table shows.

    The tool has no rule: ``Compare`` prints medians, to the digits that their interquartile ranges
    support where ``trim_significant_figures`` is asked for, and whoever reads them decides.
    https://docs.pytorch.org/docs/stable/benchmark_utils.html
    """
    old, new = nights[-2], nights[-1]
    before, after = statistics.median(old), statistics.median(new)
    digits = min(_trustworthy(old, before), _trustworthy(new, after))
    return round(after, digits) > round(before, digits)


def _trustworthy(values: Sequence[float], median: float) -> int:
    """The decimal place of the last digit that the spread supports, four significant at most."""
    low, high = np.percentile(values, (25, 75))
    spread = max(float(high - low) / 1.349 / math.sqrt(len(values)) * 1.645, 25e-9)
    figures = min(4, max(1, math.floor(math.log10(median / spread))))
    return figures - 1 - math.floor(math.log10(median))


def pytest_benchmark(nights: Seconds) -> bool:
    """``--benchmark-compare-fail=min:5%``: the minimum above the last saved one's by 5 %.

    https://pytest-benchmark.readthedocs.io/en/latest/comparing.html
    """
    return min(nights[-1]) > 1.05 * min(nights[-2])


def pyperf(nights: Seconds) -> bool:
    """``compare_to``: slower by the mean, and significant by a two-sample t test at 95 %.

    https://pyperf.readthedocs.io/en/latest/cli.html
    """
    old, new = nights[-2], nights[-1]
    significant = stats.ttest_ind(old, new).pvalue < 0.05
    return bool(significant and statistics.fmean(new) > statistics.fmean(old))


def github_action(nights: Seconds) -> bool:
    """``alert-threshold``, by default 200 %: over twice the last stored value (the mean).

    https://github.com/benchmark-action/github-action-benchmark
    """
    return statistics.fmean(nights[-1]) > 2 * statistics.fmean(nights[-2])


def github_action_tight(nights: Seconds) -> bool:
    """The same with an ``alert-threshold`` of 105 %."""
    return statistics.fmean(nights[-1]) > 1.05 * statistics.fmean(nights[-2])


def otava(nights: Seconds) -> bool:
    """A change point in one of the last three nights: E-divisive, then Student's t test.

    The candidate is the cut of the largest energy distance; it counts where the test of its two
    sides has p < 0.001. One night tells this tool nothing: a slow-down has lasted for three when it
    is asked. https://otava.apache.org/docs/math
    """
    values = [statistics.median(night) for night in nights]
    cut = _cut(values)
    if cut is None or cut < len(values) - 3:
        return False
    before, after = values[:cut], values[cut:]
    if len(after) < 2:
        return False
    worse = statistics.fmean(after) > statistics.fmean(before)
    return bool(worse and stats.ttest_ind(before, after).pvalue < 0.001)


def _cut(values: Sequence[float]) -> int | None:
    """The cut whose sides are the furthest apart in energy distance."""
    apart = np.abs(np.subtract.outer(values, values))
    best, place = 0.0, None
    for cut in range(2, len(values) - 1):
        first, second = apart[:cut, :cut], apart[cut:, cut:]
        between = 2 * apart[:cut, cut:].mean()
        inside = first.sum() / (cut * (cut - 1))
        size = len(values) - cut
        inside += second.sum() / (size * (size - 1))
        energy = cut * size / (cut + size) * (between - inside)
        if energy > best:
            best, place = energy, cut
    return place


RULES: dict[str, Callable[[Seconds], bool]] = {
    "torch.utils.benchmark, digits of the median": torch_benchmark,
    "pytest-benchmark, `min:5%`": pytest_benchmark,
    "pyperf `compare_to`, t test": pyperf,
    "github-action-benchmark, 200 %": github_action,
    "github-action-benchmark, 105 %": github_action_tight,
    "Otava, p < 0.001": otava,
}


def seconds(nights: Sequence[Side]) -> Iterator[tuple[str, Seconds]]:
    """The seconds of each case of the last night, night by night."""
    for case in nights[-1].cases:
        yield (
            case,
            [list(one.cases[case].readings["time_seconds"].values.values()) for one in nights],
        )


@dataclass
class Counts:
    """The counts of one rule in one world."""

    false: int = 0
    hits: dict[tuple[float, str], int] = field(default_factory=dict)
    chances: dict[tuple[float, str], int] = field(default_factory=dict)

    def found(self, key: tuple[float, str], hits: int, chances: int) -> None:
        """Count cases that were slowed, and how many of them were told of."""
        self.hits[key] = self.hits.get(key, 0) + hits
        self.chances[key] = self.chances.get(key, 0) + chances


def told(
    stored: Sequence[Side], new: Side, tonight: Tonight, later: Sequence[Side] = ()
) -> Iterator[tuple[str, set[str]]]:
    """Yield each rule's name and the cases it flags; ``later`` nights are for Otava alone."""
    for name, rule in RULES.items():
        nights = [*stored, new, *(later if rule is otava else ())]
        yield name, {case for case, each in seconds(nights) if rule(each)}
    for way, code, regressed in judge(stored, tonight, new):
        yield f"hwbench `check {way}`", regressed if code == 1 else set()


def simulate(world_name: str, nights: int, every: int = 10, seed: int = 1) -> dict[str, Counts]:
    """Judge so many nights of a world by each rule; on each ``every``-th, slow-downs as well."""
    world = WORLDS[world_name](np.random.default_rng(seed))
    rng, counts = np.random.default_rng(seed + 1), dict[str, Counts]()
    stored: list[Side] = []
    for number in range(BEFORE + nights):
        night = world.night()
        tonight = Tonight(world, night)
        new = tonight.run()
        if number >= BEFORE:
            for name, regressed in told(stored, new, tonight):
                counts.setdefault(name, Counts()).false += bool(regressed)
            if number % every == 0:
                _slowed(counts, stored, world_night=(world, night), rng=rng)
        stored = [*stored, new][-BEFORE:]
    return counts


def _slowed(
    counts: dict[str, Counts],
    stored: Sequence[Side],
    world_night: tuple[object, object],
    rng: np.random.Generator,
) -> None:
    """Each slow-down on one night, by each rule."""
    for size, where, slower in slow_downs(rng):
        slow = Tonight(*world_night, slower)  # type: ignore[arg-type]
        true = {
            f"linear/format{number}/{group}"
            for number, group in zip(*np.nonzero(slower), strict=True)
        }
        later = [slow.run(), slow.run()]
        for name, regressed in told(stored, slow.run(), slow, later):
            counts[name].found((size, where), len(regressed & true), len(true))


def main() -> None:
    """Print a row for each rule in each world."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nights", type=int, default=100, help="nights without a change")
    parser.add_argument(
        "--worlds", nargs="+", metavar="WORLD", choices=[*WORLDS], default=[*WORLDS],
        help="only these; else all",
    )  # fmt: skip
    options = parser.parse_args()
    heads = [f"{size:.0%}, {where}" for size in SIZES for where in WHERE]
    print(f"| world | rule | false nights of {options.nights} | {' | '.join(heads)} |")
    print("|---|---|" + "--:|" * (1 + len(heads)))
    for world in options.worlds:
        for name, each in simulate(world, options.nights).items():
            keys = [(size, where) for size in SIZES for where in WHERE]
            rates = [f"{each.hits[key] / each.chances[key]:.0%}" for key in keys]
            print(f"| {world} | {name} | {each.false} | {' | '.join(rates)} |", flush=True)


if __name__ == "__main__":
    main()
